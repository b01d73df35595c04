//! Frames that are nearly right, and images that happen: for properties that hold for all of them.

use std::{fmt, ops::Range, time::Duration};

use foobar_lb::{
    image::Image,
    model::{Down, Health, Remember, WhenEmpty},
};
use proptest::prelude::*;

use super::{
    Row,
    frame::ETHERNET,
    hex,
    world::{Family, Host, PORTS, Story, TRANSITION, VIP, WEB1, WEB2, WEB3},
};

/// A frame and the interface it arrives on.
#[derive(Clone)]
pub struct Arrival {
    pub ingress: u32,
    pub frame: Vec<u8>,
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "on {}: {}", self.ingress, hex(&self.frame))
    }
}

/// Frames of the table with some bytes changed, cut or extended, and pure noise.
pub fn arrivals(rows: &[Row], length: Range<usize>) -> impl Strategy<Value = Arrival> + use<> {
    let rows = rows.iter().filter(|row| length.contains(&row.frame.len()));
    let (translated, others): (Vec<&Row>, Vec<&Row>) = rows.partition(|row| row.traffic.is_some());
    let any_of = |rows: Vec<&Row>| prop::sample::select(rows.into_iter().map(arrival).collect::<Vec<_>>());
    // There are many more ways of not being translated.
    let arrivals = prop_oneof![3 => any_of(translated), 1 => any_of(others)];
    let changes = prop::collection::vec((0usize..128, any::<u8>()), 0..4);
    let cut = prop::option::weighted(0.1, length.clone());
    let changed = (arrivals, changes, cut).prop_map(|(arrival, changes, cut)| change(arrival, changes, cut));
    prop_oneof![9 => changed, 1 => noise(length)]
}

fn arrival(row: &Row) -> Arrival {
    Arrival { ingress: row.ingress, frame: row.frame.clone() }
}

fn change(mut arrival: Arrival, changes: Vec<(usize, u8)>, cut: Option<usize>) -> Arrival {
    for (place, byte) in changes {
        let place = place % arrival.frame.len().max(1);
        arrival.frame.iter_mut().skip(place).take(1).for_each(|old| *old = byte);
    }
    if let Some(length) = cut {
        arrival.frame.resize(length, 0x5a);
    }
    arrival
}

/// Random bytes, some of them behind the first byte of an IPv4 header.
fn noise(length: Range<usize>) -> impl Strategy<Value = Arrival> {
    let bytes = prop::collection::vec(any::<u8>(), length);
    (prop::sample::select(PORTS.to_vec()), bytes, any::<bool>()).prop_map(|(port, mut frame, is_ip)| {
        if is_ip && frame.len() > ETHERNET {
            frame[ETHERNET - 2..=ETHERNET].copy_from_slice(&[8, 0, 0x45]);
        }
        Arrival { ingress: port.index, frame }
    })
}

/// Images that follow from what may happen to a balancer.
pub fn images() -> impl Strategy<Value = Image> {
    let settings = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let events = prop::collection::vec(event(), 0..6);
    (settings, events).prop_map(|((announce, refuse, local, known, all), events)| {
        let mut story = Story::new().configured(|service| {
            service.announce = announce;
            service.remember = if all { Remember::All } else { Remember::Needed };
            service.when_empty = if refuse { WhenEmpty::Refuse } else { WhenEmpty::FailOpen };
        });
        story = story.seen(|view| {
            if local {
                view.locals.extend(Family::BOTH.map(|family| VIP.ip(family)));
            }
            if !known {
                view.next_hops.retain(|ip, _| !Family::BOTH.map(|family| WEB2.ip(family)).contains(ip));
            }
        });
        events.into_iter().fold(story, |story, event| event.happen(story).render()).image()
    })
}

#[derive(Clone, Debug)]
enum Event {
    Health(Host, Health),
    Wait(Duration),
}

impl Event {
    fn happen(self, story: Story) -> Story {
        match self {
            Self::Health(backend, health) => story.health(backend, health),
            Self::Wait(duration) => story.wait(duration),
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let health = prop::sample::select(vec![
        Health::Unknown,
        Health::Up,
        Health::Down(Down::Answers),
        Health::Down(Down::Silent),
    ]);
    let backend = prop::sample::select(vec![WEB1, WEB2, WEB3]);
    prop_oneof![
        4 => (backend, health).prop_map(|(backend, health)| Event::Health(backend, health)),
        1 => Just(Event::Wait(TRANSITION)),
    ]
}
