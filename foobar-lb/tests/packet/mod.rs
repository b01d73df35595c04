//! The packet table: what arrives, what the maps hold, and what the data path has to make of it. Each ring runs the
//! same rows on its own build of the data path, see [`DataPath`].

pub mod frame;
pub mod host;
pub mod noise;
pub mod rows;
pub mod way;
pub mod wiring;
pub mod world;

use std::{fmt, time::Duration};

use etherparse::Ipv6Header;
use foobar_lb::{
    image::Image,
    sweep::{RememberedFlow, Store},
};
use foobar_lb_ebpf::{
    headers::Side,
    layout::{Count, Endpoint, Entry, FlowKey, Mapping, Remembered, TCP, Traffic, mapped, name},
    reason::{Action, Reason, Verdict},
};

pub use self::rows::all;
use self::{frame::ETHERNET, wiring::untagged};

/// A build of the data path.
pub trait DataPath {
    /// Puts these in the maps, and no remembered flow.
    fn load(&mut self, image: &Image);
    /// Nanoseconds of its clock.
    fn now(&self) -> u64;
    /// Remembers a flow; false where there is no room.
    fn remember(&mut self, flow: &RememberedFlow) -> bool;
    /// Gives a flow a mapping.
    fn map(&mut self, flow: &FlowKey, mapping: &Mapping);
    /// All mappings, in any order.
    fn mappings(&mut self) -> Vec<(FlowKey, Mapping)>;
    /// Hands it a frame that arrived on the interface with this index.
    fn run(&mut self, frame: &mut Vec<u8>, ingress: u32) -> Verdict;
    /// All remembered flows, in any order.
    fn remembered(&mut self) -> Vec<RememberedFlow>;
    /// How often each reason occurred.
    fn reasons(&self) -> Vec<(Reason, Count)>;
    /// What a backend was sent and sent back.
    fn traffic(&self, backend: u32) -> Traffic;
}

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

/// A line of the table.
#[derive(Clone)]
pub struct Row {
    pub name: String,
    pub image: Image,
    /// What arrives before.
    pub before: Vec<Arrival>,
    pub ingress: u32,
    pub frame: Vec<u8>,
    /// Bytes of its VLAN tags, which are not counted.
    tags: usize,
    /// Remembered before.
    known: Vec<Memory>,
    /// Has no room left.
    full: Option<&'static str>,
    verdict: Verdict,
    out: Vec<u8>,
    pub reasons: Vec<Reason>,
    traffic: Option<(u32, Side)>,
    /// The backend that a remembered flow has to leave.
    repicked: Option<u32>,
    /// Remembered afterwards.
    remembered: Vec<Memory>,
    /// Mapped before.
    mapped: Vec<Held>,
    /// Mapped afterwards.
    held: Vec<Held>,
}

/// A mapping of one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    pub flow: FlowKey,
    pub to: FlowKey,
    /// It is the one from the backend to the client.
    pub back: bool,
    pub backend: u32,
    /// Bits of `entry_state`.
    pub state: u32,
    /// How long this direction has been silent.
    pub age: Duration,
}

/// A remembered flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub map: &'static str,
    pub flow: FlowKey,
    pub backend: u32,
    /// Bits of `entry_state`.
    pub state: u32,
    /// How long the flow has been silent.
    pub age: Duration,
}

impl Held {
    /// As it was read at this moment of the data path's clock.
    pub fn of(flow: FlowKey, mapping: &Mapping, now: u64) -> Self {
        let Mapping { to, entry, back, .. } = mapping;
        let Remembered { backend, state } = entry.load();
        let age = Duration::from_nanos(now.saturating_sub(entry.seen()));
        Self { flow, to: *to, back: *back != 0, backend, state, age }
    }

    /// As it is to be written at this moment.
    pub fn mapping(&self, now: u64) -> Mapping {
        let Self { to, back, backend, state, age, .. } = *self;
        let entry = Entry::new(Remembered { backend, state }, now.saturating_sub(age.as_nanos() as u64));
        Mapping { to, entry, mss: 0, back: back.into() }
    }
}

impl Row {
    /// The frame goes on as it is.
    pub fn passes(name: impl Into<String>, image: Image, ingress: u32, frame: Vec<u8>, why: Reason) -> Self {
        Self {
            name: name.into(),
            image,
            before: vec![],
            ingress,
            out: frame.clone(),
            frame,
            tags: 0,
            known: vec![],
            full: None,
            verdict: Verdict::Pass,
            reasons: vec![why],
            traffic: None,
            repicked: None,
            remembered: vec![],
            mapped: vec![],
            held: vec![],
        }
    }

    /// The frame is dropped.
    pub fn drops(name: impl Into<String>, image: Image, ingress: u32, frame: Vec<u8>, why: Reason) -> Self {
        Self { verdict: Verdict::Drop, ..Self::passes(name, image, ingress, frame, why) }
    }

    /// The frame goes on to, or from, a backend.
    pub fn translates(
        name: impl Into<String>,
        image: Image,
        ingress: u32,
        frame: Vec<u8>,
        out: Vec<u8>,
        verdict: Verdict,
        traffic: (u32, Side),
    ) -> Self {
        let reasons = if verdict == Verdict::Pass { vec![Reason::HandedToKernel] } else { vec![] };
        let row = Self::passes(name, image, ingress, frame, Reason::HandedToKernel);
        Self { out, verdict, reasons, traffic: Some(traffic), ..row }
    }

    /// The frame is answered.
    pub fn answers(
        name: impl Into<String>,
        image: Image,
        ingress: u32,
        frame: Vec<u8>,
        out: Vec<u8>,
        why: Reason,
    ) -> Self {
        let row = Self::passes(name, image, ingress, frame, why);
        Self { out, verdict: Verdict::Transmit, ..row }
    }

    /// It goes on another way.
    pub fn ending_in(self, verdict: Verdict) -> Self {
        let reasons = if verdict == Verdict::Pass { vec![Reason::HandedToKernel] } else { vec![] };
        Self { verdict, reasons, ..self }
    }

    /// Another backend gets it.
    pub fn by_backend(self, backend: u32) -> Self {
        Self { traffic: self.traffic.map(|(_, side)| (backend, side)), ..self }
    }

    /// Another frame has arrived by the same interface before.
    pub fn after(mut self, frame: Vec<u8>) -> Self {
        self.before.push(Arrival { ingress: self.ingress, frame });
        self
    }

    /// All that arrives, in its order.
    pub fn arrivals(&self) -> Vec<Arrival> {
        let last = Arrival { ingress: self.ingress, frame: self.frame.clone() };
        self.before.iter().cloned().chain([last]).collect()
    }

    /// Something else is counted too.
    pub fn remarking(mut self, reason: Reason) -> Self {
        self.reasons.push(reason);
        self
    }

    /// A flow is remembered already.
    pub fn knowing(mut self, memory: Memory) -> Self {
        self.known.push(memory);
        self
    }

    /// A map has no room left.
    pub fn full(self, map: &'static str) -> Self {
        Self { full: Some(map), ..self }
    }

    /// A flow is remembered afterwards.
    pub fn remembering(mut self, memory: Memory) -> Self {
        self.remembered.push(memory);
        self
    }

    /// Flows are mapped already.
    pub fn mapped(mut self, held: impl IntoIterator<Item = Held>) -> Self {
        self.mapped.extend(held);
        self
    }

    /// One of the mappings of before is not there.
    pub fn lacking(mut self, place: usize) -> Self {
        self.mapped.remove(place);
        self
    }

    /// Flows are mapped afterwards.
    pub fn holding(mut self, held: impl IntoIterator<Item = Held>) -> Self {
        self.held.extend(held);
        self
    }

    /// The flow leaves the backend that it is remembered on.
    pub fn repicking(self, backend: u32) -> Self {
        Self { repicked: Some(backend), ..self }
    }

    /// Runs the row and tells what is not as expected.
    pub fn check(&self, path: &mut impl DataPath) -> Result<(), String> {
        path.load(&self.image);
        let before = path.now();
        self.prepare(path, before);
        let (reasons, traffic) = (path.reasons(), self.read_traffic(path));
        let mut frame = self.frame.clone();
        let verdict = path.run(&mut frame, self.ingress);
        let mut wrong = String::new();
        let mut expect = |what: &str, expected: String, actual: String| {
            if expected != actual {
                wrong += &format!("{}: {what}\n  expected {expected}\n  actual   {actual}\n", self.name);
            }
        };
        expect("verdict", format!("{:?}", self.verdict), format!("{verdict:?}"));
        expect("frame", hex(&self.out), hex(&frame));
        let counted = increase(&reasons, &path.reasons());
        expect("reasons", format!("{:?}", self.expected_counts()), format!("{counted:?}"));
        let carried: Vec<_> = traffic.iter().zip(self.read_traffic(path)).map(since).collect();
        expect("traffic", in_words(&self.expected_traffic()), in_words(&carried));
        let mut expected = self.remembered.clone();
        let mut actual = memories(path, before);
        expected.sort_by_key(|memory| (memory.map, memory.flow));
        actual.sort_by_key(|memory| (memory.map, memory.flow));
        expect("remembered flows", format!("{expected:?}"), format!("{actual:?}"));
        let mut held = self.held.clone();
        held.sort();
        expect("mappings", format!("{held:?}"), format!("{:?}", mappings(path, before)));
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn prepare(&self, path: &mut impl DataPath, now: u64) {
        for memory in &self.known {
            let flow = RememberedFlow {
                map: memory.map,
                flow: memory.flow,
                remembered: Remembered { backend: memory.backend, state: memory.state },
                seen: now.saturating_sub(memory.age.as_nanos() as u64),
            };
            assert!(path.remember(&flow), "{}: no room for {memory:?}", self.name);
        }
        self.mapped.iter().for_each(|held| path.map(&held.flow, &held.mapping(now)));
        if let Some(map) = self.full {
            fill(path, map);
        }
        for Arrival { ingress, frame } in &self.before {
            path.run(&mut frame.clone(), *ingress);
        }
    }

    fn expected_counts(&self) -> Vec<(Reason, Count)> {
        let count = |reason| comparable(reason, Count { packets: 1, bytes: self.length() });
        let expected = Reason::ALL.iter().filter(|reason| self.reasons.contains(reason));
        expected.map(|reason| (*reason, count(*reason))).collect()
    }

    /// Bytes that its frame is counted as.
    fn length(&self) -> u64 {
        length(&untagged(&self.frame, self.tags))
    }

    /// What is counted of each backend.
    fn expected_traffic(&self) -> Vec<Traffic> {
        let count = |id: u32, side| match self.traffic == Some((id, side)) {
            true => Count { packets: 1, bytes: self.length() },
            false => Count::default(),
        };
        let traffic = |id: &u32| Traffic {
            forward: count(*id, Side::Destination),
            reply: count(*id, Side::Source),
            repicked: u64::from(self.repicked == Some(*id)),
        };
        self.image.backends.keys().map(traffic).collect()
    }

    fn read_traffic(&self, path: &impl DataPath) -> Vec<Traffic> {
        self.image.backends.keys().map(|id| path.traffic(*id)).collect()
    }
}

/// Bytes that a frame is counted as. It may lie in several buffers, so its IP header tells; that of a frame which is
/// cut short tells too much.
fn length(frame: &[u8]) -> u64 {
    let number =
        |at: usize| frame.get(at..at + 2).map_or(0, |two| usize::from(two[0]) << 8 | usize::from(two[1]));
    let packet = match (frame.get(12..15), frame.len()) {
        (Some([8, 0, 0x45..=0x4f]), 34..) => number(16),
        (Some([0x86, 0xdd, 0x60..=0x6f]), 54..) => number(18) + Ipv6Header::LEN,
        _ => 0,
    };
    frame.len().max(ETHERNET + packet) as u64
}

/// What was counted meanwhile.
pub fn increase(before: &[(Reason, Count)], after: &[(Reason, Count)]) -> Vec<(Reason, Count)> {
    let counts = before
        .iter()
        .zip(after)
        .map(|((reason, before), (_, after))| (*reason, comparable(*reason, subtract(*after, *before))));
    counts.filter(|(_, count)| count.packets > 0).collect()
}

/// The bytes of remarks are those that were at hand when they were made.
fn comparable(reason: Reason, count: Count) -> Count {
    let bytes = if reason.action() == Action::Forward { 0 } else { count.bytes };
    Count { bytes, ..count }
}

/// What was counted of backends, but for those that nothing was counted of.
fn in_words(traffic: &[Traffic]) -> String {
    let counted = traffic.iter().enumerate().filter(|(_, traffic)| **traffic != Traffic::default());
    format!("{:?}", counted.collect::<Vec<_>>())
}

fn since((before, after): (&Traffic, Traffic)) -> Traffic {
    Traffic {
        forward: subtract(after.forward, before.forward),
        reply: subtract(after.reply, before.reply),
        repicked: after.repicked - before.repicked,
    }
}

fn subtract(a: Count, b: Count) -> Count {
    Count { packets: a.packets - b.packets, bytes: a.bytes - b.bytes }
}

/// What is remembered, but for what [`fill`] put there. What was seen after `now` is as young as can be.
pub fn memories(path: &mut impl DataPath, now: u64) -> Vec<Memory> {
    let memory = |flow: RememberedFlow| Memory {
        map: flow.map,
        flow: flow.flow,
        backend: flow.remembered.backend,
        state: flow.remembered.state,
        age: Duration::from_nanos(now.saturating_sub(flow.seen)),
    };
    let remembered = path.remembered().into_iter().filter(|flow| flow.flow.destination != FILLER);
    remembered.map(memory).collect()
}

/// Mappings in their order. What was seen after `now` is as young as can be.
pub fn mappings(path: &mut impl DataPath, now: u64) -> Vec<Held> {
    let mappings = path.mappings().into_iter();
    let mut held: Vec<_> = mappings.map(|(flow, mapping)| Held::of(flow, &mapping, now)).collect();
    held.sort();
    held
}

/// All flows that are remembered; none if the maps changed meanwhile.
pub fn list<S: Store>(store: &mut S) -> Result<Option<Vec<RememberedFlow>>, S::Error> {
    let mut flows = Vec::new();
    let whole = store.retain(|flow| {
        flows.push(*flow);
        true
    })?;
    Ok(whole.then_some(flows))
}

/// The other end of flows that only take up room.
const FILLER: Endpoint = Endpoint::new(mapped([0, 0, 0, 0]), [0, 0], TCP);

fn fill(path: &mut impl DataPath, map: &'static str) {
    assert_ne!(map, name::HALF_OPEN, "it makes room by itself");
    let remembered = Remembered { backend: 0, state: 0 };
    let clients = (0u32..).map(|number| Endpoint::new(mapped(number.to_be_bytes()), [0, 0], TCP));
    for source in clients {
        let flow = FlowKey { source, destination: FILLER };
        if !path.remember(&RememberedFlow { map, flow, remembered, seen: 0 }) {
            return;
        }
    }
}

/// Bytes for people, to be found in a capture.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
