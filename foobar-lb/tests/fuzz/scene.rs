//! A balancer with a past, out of a fuzzer's bytes: what it is configured for, what has happened to it, what it
//! remembers. What arrives is left to `wire`.

use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use foobar_lb::{
    image::Image,
    model::{Affinity, Down, Health, Mode, Mss, Pool, Protocol, Unmatched},
    sweep::RememberedFlow,
};
use foobar_lb_ebpf::layout::{Remembered, entry_state, name};

use super::wire::arrivals;
use crate::packet::{
    Arrival,
    noise::{Event, Reach, Settings, Surroundings},
    rows::nat64,
    way::{WAYS, Way},
    world::{self, CLIENT, COLLEAGUE, FAR, Family, Host, Story, TRANSITION, WEBS},
};

const SECOND: u64 = 1_000_000_000;
/// The first ports that the balancer talks to backends from.
pub const OWN_PORTS: [u16; 2] = [40_100, 40_101];

/// A balancer, and what it hears.
#[derive(Arbitrary, Debug)]
pub struct Scene {
    #[arbitrary(with = mapping)]
    mapping: Option<Mapping>,
    #[arbitrary(with = settings)]
    settings: Settings,
    #[arbitrary(with = surroundings)]
    surroundings: Surroundings,
    #[arbitrary(with = |bytes: &mut Unstructured| several(bytes, 5, event))]
    events: Vec<Event>,
    #[arbitrary(with = |bytes: &mut Unstructured| several(bytes, 3, known))]
    pub known: Vec<Known>,
    #[arbitrary(with = |bytes: &mut Unstructured| several(bytes, 8, step))]
    pub steps: Vec<Step>,
}

impl Scene {
    /// How flows reach backends that are not mapped.
    pub fn way(&self) -> Way {
        if self.mapping.is_some() { Way::Nat } else { self.settings.way }
    }

    /// What the maps hold.
    pub fn image(&self) -> Image {
        let settings = Settings { way: self.way(), ..self.settings };
        let story = self.surroundings.around(settings.of(Story::new()));
        let story = self.mapping.map_or_else(|| story.clone(), |mapping| mapping.of(story.clone()));
        self.events.iter().cloned().fold(story, |story, event| event.happen(story).render()).image()
    }
}

/// What arrives next.
#[derive(Debug)]
pub struct Step {
    /// Nanoseconds after what arrived before.
    pub later: u64,
    pub arrivals: Vec<Arrival>,
    /// Each of them arrives twice.
    pub again: bool,
}

fn step(bytes: &mut Unstructured) -> Result<Step> {
    let later = pick(bytes, &[0, SECOND, 61 * SECOND, 91 * SECOND])?;
    Ok(Step { later, again: bytes.arbitrary()?, arrivals: arrivals(bytes)? })
}

/// A remembered flow from a client to a service.
#[derive(Debug)]
pub struct Known {
    map: &'static str,
    family: Family,
    protocol: Protocol,
    client: Host,
    backend: Host,
    /// Bits of `entry_state`.
    state: u32,
    /// Nanoseconds for which it has been silent.
    age: u64,
}

impl Known {
    /// As the maps have it.
    pub fn remembered(&self, now: u64) -> RememberedFlow {
        let Self { map, family, protocol, client, backend, state, age } = *self;
        RememberedFlow {
            map,
            flow: world::flow(world::client(client, family), world::service(family), protocol),
            remembered: Remembered { backend: world::id(backend, family, protocol), state },
            seen: now - age,
        }
    }
}

fn known(bytes: &mut Unstructured) -> Result<Known> {
    Ok(Known {
        map: pick(bytes, &[name::HALF_OPEN, name::ESTABLISHED, name::ADOPTED])?,
        family: pick(bytes, &Family::BOTH)?,
        protocol: pick(bytes, &[Protocol::Tcp, Protocol::Udp])?,
        client: pick(bytes, &[CLIENT, FAR, COLLEAGUE])?,
        backend: pick(bytes, &WEBS)?,
        state: pick(bytes, &[0, entry_state::CLOSING, entry_state::RESET, entry_state::OPENING])?,
        age: pick(bytes, &[0, 61 * SECOND, 91 * SECOND])?,
    })
}

fn settings(bytes: &mut Unstructured) -> Result<Settings> {
    Ok(Settings {
        way: pick(bytes, &WAYS)?,
        reach: Reach::Port,
        mss: pick(bytes, &[None, Some(Mss::Auto), Some(Mss::Bytes(536)), Some(Mss::Bytes(1200))])?,
        affinity: pick(bytes, &[Affinity::Flow, Affinity::Source(24)])?,
        quic: bytes.arbitrary()?,
        unmatched: pick(bytes, &[Unmatched::Pass, Unmatched::Drop, Unmatched::Reject])?,
        ping: bytes.arbitrary()?,
        announce: bytes.arbitrary()?,
        refuse: bytes.arbitrary()?,
        all: bytes.arbitrary()?,
        varied: bytes.arbitrary()?,
    })
}

fn surroundings(bytes: &mut Unstructured) -> Result<Surroundings> {
    Ok(Surroundings {
        local: bytes.arbitrary()?,
        known: bytes.arbitrary()?,
        named: bytes.arbitrary()?,
        mtu: pick(bytes, &[576, 1280, 1500, 9000])?,
    })
}

/// Both ends are replaced, of all flows or of those of the backends' subnet.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    mode: fn(Pool) -> Mode,
    /// The last port that the balancer talks to backends from.
    last: u16,
    /// Backends are of the other IP than their service.
    is_mixed: bool,
}

impl Mapping {
    fn of(self, story: Story) -> Story {
        let story = if self.is_mixed { nat64::mixed(story) } else { story };
        let pool = || Pool { addresses: vec![], ports: OWN_PORTS[0]..=self.last };
        story.configured(|service| service.mode = (self.mode)(pool()))
    }
}

fn mapping(bytes: &mut Unstructured) -> Result<Option<Mapping>> {
    const SNAT: fn(Pool) -> Mode = Mode::Snat;
    let mode = pick(bytes, &[None, Some((SNAT, false)), Some((Mode::Hairpin, false)), Some((SNAT, true))])?;
    let last = pick(bytes, &[OWN_PORTS[0], OWN_PORTS[1], u16::MAX])?;
    Ok(mode.map(|(mode, is_mixed)| Mapping { mode, last, is_mixed }))
}

fn event(bytes: &mut Unstructured) -> Result<Event> {
    const WAIT: Event = Event::Wait(Duration::from_nanos(TRANSITION.as_nanos() as u64));
    let health =
        [Health::Unknown, Health::Up, Health::Down(Down::Answers), Health::Down(Down::Silent)].map(Some);
    Ok(match pick(bytes, &[&health[..], &[None]].concat())? {
        Some(health) => Event::Health(pick(bytes, &WEBS)?, health),
        None => WAIT,
    })
}

/// One of these.
pub fn pick<T: Copy>(bytes: &mut Unstructured, choices: &[T]) -> Result<T> {
    bytes.choose(choices).copied()
}

/// A few of these, or none.
pub fn several<'b, T>(
    bytes: &mut Unstructured<'b>,
    most: usize,
    one: impl Fn(&mut Unstructured<'b>) -> Result<T>,
) -> Result<Vec<T>> {
    let count = bytes.int_in_range(0..=most)?;
    (0..count).map(|_| one(bytes)).collect()
}
