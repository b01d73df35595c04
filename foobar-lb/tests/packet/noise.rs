//! Frames that are nearly right, and images that happen: for properties that hold for all of them.

mod composed;

use std::{ops::Range, time::Duration};

use foobar_lb::{
    image::Image,
    model::{Affinity, Destination, Down, Health, Mode, Mss, Ports, Remember, Unmatched, WhenEmpty},
};
use proptest::{prelude::*, sample::select};

use self::composed::composed;
use super::{
    Arrival, Row,
    frame::ETHERNET,
    rows::{nat64, quic, snat, wide},
    way::{WAYS, Way},
    wiring::{WIRINGS, Wiring},
    world::{Family, Host, PORTS, Story, TRANSITION, WEB1, WEB2, WEB3},
};

/// Bytes of frames that are changed.
const LONGEST: usize = 1600;
/// Bytes of frames without sense.
const LONGEST_NOISE: usize = 300;

/// What arrives one after the other: frames of the table and such that are composed by chance, with some bytes
/// changed, cut or extended, and pure noise. None is shorter than `shortest`, and all fit into one buffer.
pub fn arrivals(rows: &[Row], shortest: usize) -> impl Strategy<Value = Vec<Arrival>> + use<> {
    let fits = |arrival: &Arrival| (shortest..LONGEST).contains(&arrival.frame.len());
    let rows = rows.iter().filter(|row| row.arrivals().iter().all(fits));
    let (translated, others): (Vec<&Row>, Vec<&Row>) = rows.partition(|row| row.traffic.is_some());
    let any_of = |rows: Vec<&Row>| select(rows.into_iter().map(Row::arrivals).collect::<Vec<_>>());
    let composed =
        (prop::collection::vec(composed(), 1..3), wiring()).prop_map(|(arrivals, wiring)| match wiring {
            Some(wiring) => arrivals.iter().map(|arrival| wiring.arrive(arrival)).collect(),
            None => arrivals,
        });
    // There are many more ways of not being translated.
    let arrivals = prop_oneof![3 => any_of(translated), 1 => any_of(others), 2 => composed];
    let changes = prop::collection::vec((any::<usize>(), 0usize..128, any::<u8>()), 0..4);
    let cut = prop::option::weighted(0.1, (any::<usize>(), shortest..LONGEST));
    let changed =
        (arrivals, changes, cut).prop_map(|(arrivals, changes, cut)| change(arrivals, changes, cut));
    let noise = noise(shortest..LONGEST_NOISE).prop_map(|arrival| vec![arrival]);
    let any = prop_oneof![9 => changed, 1 => noise];
    prop::collection::vec(any, 1..4).prop_map(|sequences| sequences.concat())
}

/// `changes` says which bytes of which frames are others, `cut` which frame ends elsewhere.
fn change(
    mut arrivals: Vec<Arrival>,
    changes: Vec<(usize, usize, u8)>,
    cut: Option<(usize, usize)>,
) -> Vec<Arrival> {
    let count = arrivals.len();
    for (which, place, byte) in changes {
        let frame = &mut arrivals[which % count].frame;
        let place = place % frame.len().max(1);
        frame.iter_mut().skip(place).take(1).for_each(|old| *old = byte);
    }
    if let Some((which, length)) = cut {
        arrivals[which % count].frame.resize(length, 0x5a);
    }
    arrivals
}

/// Random bytes, some of them behind the first byte of an IPv4 header.
fn noise(length: Range<usize>) -> impl Strategy<Value = Arrival> {
    let bytes = prop::collection::vec(any::<u8>(), length);
    (select(PORTS.to_vec()), bytes, any::<bool>()).prop_map(|(port, mut frame, is_ip)| {
        if is_ip && frame.len() > ETHERNET {
            frame[ETHERNET - 2..=ETHERNET].copy_from_slice(&[8, 0, 0x45]);
        }
        Arrival { ingress: port.index, frame }
    })
}

/// Images that follow from what may happen to a balancer.
pub fn images() -> impl Strategy<Value = Image> {
    let events = prop::collection::vec(event(), 0..6);
    let happened = (settings(), mapping(), surroundings(), events).prop_map(
        |(settings, mapping, surroundings, events)| {
            let story = surroundings.around(mapping(settings.of(Story::new())));
            events.into_iter().fold(story, |story, event| event.happen(story).render()).image()
        },
    );
    (happened, wiring()).prop_map(|(image, wiring)| match wiring {
        Some(wiring) => wiring.image(image),
        None => image,
    })
}

/// None where no frame has tags.
fn wiring() -> impl Strategy<Value = Option<Wiring>> {
    prop::option::of(select(WIRINGS.to_vec()))
}

/// Which flows are mapped, if any: all, those of the backends' subnet, all while the backends are of the other IP.
fn mapping() -> impl Strategy<Value = fn(Story) -> Story> {
    let none: fn(Story) -> Story = |story| story;
    let snat: fn(Story) -> Story = |story| snat::mapped(nat64::unmixed(story), Mode::Snat);
    let hairpin: fn(Story) -> Story = |story| snat::mapped(nat64::unmixed(story), Mode::Hairpin);
    select(vec![none, none, none, snat, hairpin, nat64::mixed])
}

/// What the operator wants.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub way: Way,
    pub mss: Option<Mss>,
    pub affinity: Affinity,
    /// Connection ids name backends.
    pub reach: Reach,
    pub quic: bool,
    pub unmatched: Unmatched,
    pub ping: bool,
    pub announce: bool,
    pub refuse: bool,
    pub all: bool,
    /// The outer source varies.
    pub varied: bool,
}

fn settings() -> impl Strategy<Value = Settings> {
    let mss = select(vec![None, Some(Mss::Auto), Some(Mss::Bytes(536)), Some(Mss::Bytes(1200))]);
    let unmatched = select(vec![Unmatched::Pass, Unmatched::Drop, Unmatched::Reject]);
    let choices = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let affinity = select(vec![Affinity::Flow, Affinity::Flow, Affinity::Source(24)]);
    let reach = select(vec![Reach::Port, Reach::Port, Reach::Range, Reach::Any, Reach::Prefix]);
    let choices = (affinity, any::<bool>(), unmatched, choices);
    let places = (select(WAYS.to_vec()), reach);
    (places, mss, choices).prop_map(|((way, reach), mss, (affinity, quic, unmatched, choices))| {
        let (ping, announce, refuse, all, varied) = choices;
        Settings { way, reach, mss, affinity, quic, unmatched, ping, announce, refuse, all, varied }
    })
}

impl Settings {
    pub fn of(self, story: Story) -> Story {
        let story = if self.quic { quic::name_backends(story, quic::LENGTH) } else { story };
        let story = self.reach.configure(self.way, self.way.configure(story));
        story.configured(|service| {
            service.mss = self.mss;
            service.affinity = self.affinity;
            service.vip.unmatched = self.unmatched;
            service.vip.ping = self.ping;
            service.announce = self.announce;
            service.remember = if self.all { Remember::All } else { Remember::Needed };
            service.when_empty = if self.refuse { WhenEmpty::Refuse } else { WhenEmpty::FailOpen };
            if let (Mode::Tunnel(tunnel), true) = (&mut service.mode, self.varied) {
                let sources = ["100.64.0.0/20", "2001:db8:64::/64"];
                tunnel.sources = sources.map(|prefix| prefix.parse().expect("a prefix")).to_vec();
            }
        })
    }
}

/// How much of a VIP, or of VIPs, services have.
#[derive(Clone, Copy, Debug)]
pub enum Reach {
    Port,
    /// And the next ones.
    Range,
    Any,
    /// All ports of some VIPs; of one, where the mode cannot have more.
    Prefix,
}

impl Reach {
    fn configure(self, way: Way, story: Story) -> Story {
        let family = |ipv6| if ipv6 { Family::V6 } else { Family::V4 };
        story.configured(|service| {
            let address = &mut service.key.address;
            match self {
                Self::Port => return,
                Self::Range => address.ports.last += 1,
                Self::Any => address.ports = Ports::ANY,
                Self::Prefix => {
                    let vip = wide::prefix(family(address.is_ipv6()));
                    let vip = if way == Way::Nat { address.vip } else { vip };
                    *address = Destination { vip, ports: Ports::ANY };
                }
            }
            service.backends.iter_mut().for_each(|backend| backend.address.set_port(0));
        })
    }
}

/// What the balancer's kernel says of the network.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// The VIP is an address of its own.
    pub local: bool,
    /// The second backend is resolved.
    pub known: bool,
    /// Interfaces have addresses.
    pub named: bool,
    /// On the way to the first backend.
    pub mtu: u32,
}

fn surroundings() -> impl Strategy<Value = Surroundings> {
    let choices = (any::<bool>(), any::<bool>(), any::<bool>());
    (choices, select(vec![576, 1280, 1500, 9000])).prop_map(|((local, known, named), mtu)| Surroundings {
        local,
        known,
        named,
        mtu,
    })
}

impl Surroundings {
    pub fn around(self, story: Story) -> Story {
        let story = if self.local { story.with_local_vip() } else { story };
        story.with_mtu(self.mtu).seen(|view| {
            if !self.known {
                view.next_hops.retain(|ip, _| !Family::BOTH.map(|family| WEB2.ip(family)).contains(ip));
            }
            if !self.named {
                view.links.values_mut().for_each(|link| link.addresses.clear());
            }
        })
    }
}

/// What happens to a balancer.
#[derive(Clone, Debug)]
pub enum Event {
    Health(Host, Health),
    Wait(Duration),
}

impl Event {
    pub fn happen(self, story: Story) -> Story {
        match self {
            Self::Health(backend, health) => story.health(backend, health),
            Self::Wait(duration) => story.wait(duration),
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let health =
        select(vec![Health::Unknown, Health::Up, Health::Down(Down::Answers), Health::Down(Down::Silent)]);
    let backend = select(vec![WEB1, WEB2, WEB3]);
    prop_oneof![
        4 => (backend, health).prop_map(|(backend, health)| Event::Health(backend, health)),
        1 => Just(Event::Wait(TRANSITION)),
    ]
}
