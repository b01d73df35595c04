//! Mappings: the state of flows both of whose ends are replaced. A flow that begins gets a port of one of the balancer's
//! own addresses, so that its replies come back to the balancer, wherever the backend's routes lead. Two mappings hold
//! that, one for each direction; the one for replies is what makes the port taken.
//!
//! A packet of a flow that is mapped costs one look-up, [`recall`] or [`recall_reply`]; all else is in [`open`].

use crate::{
    conntrack::{is_over, state_after},
    flow::{Kind, hash, reduce},
    layout::{
        Endpoint, Entry, FlowKey, Mapping, Remembered, Service, Sources, UDP, backend_flag, entry_state,
    },
    reason::Reason,
    tables::Tables,
};

/// What came of adding a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is there.
    Yes,
    /// There was one for this flow.
    Taken,
    /// There is no room.
    NoRoom,
}

/// The mapping of a client's packet, where its flow goes on by it without a question; `idle` is its service's limit of
/// silence, nanoseconds.
#[inline(always)]
pub fn recall<'t, T: Tables>(tables: &'t T, flow: &FlowKey, kind: Kind, idle: u64) -> Option<&'t Mapping> {
    let mapping = tables.mapping(flow)?;
    match kind {
        Kind::Start => None,
        Kind::Error { .. } | Kind::Opaque => Some(mapping),
        Kind::Ongoing(sign) => {
            let (now, known) = (tables.now(), mapping.entry.load());
            if is_over(known.state, idle, now.saturating_sub(mapping.entry.seen())) {
                return None;
            }
            if !serves(tables, known.backend) {
                return None;
            }
            mapping.entry.store(Remembered { state: state_after(sign, known.state), ..known }, now);
            Some(mapping)
        }
    }
}

/// The mapping of a packet from a backend to one of the balancer's sources.
#[inline(always)]
pub fn recall_reply<'t, T: Tables>(tables: &'t T, flow: &FlowKey, kind: Kind) -> Option<&'t Mapping> {
    let mapping = tables.mapping(flow)?;
    if let Kind::Ongoing(sign) = kind {
        let known = mapping.entry.load();
        mapping.entry.store(Remembered { state: state_after(sign, known.state), ..known }, tables.now());
    }
    Some(mapping)
}

/// Gives a client's flow that begins mappings towards `backend`. One that has mappings keeps them as long as they are
/// alive. In mid-flow nothing is opened: the backend would not know the flow by its new source.
#[inline(always)]
pub fn open<T: Tables>(
    tables: &T,
    flow: &FlowKey,
    kind: Kind,
    service: &Service,
    backend: u32,
) -> Result<(), Reason> {
    let begins = kind == Kind::Start || matches!(kind, Kind::Ongoing(_)) && flow.source.protocol == UDP;
    if let Some(mapping) = tables.mapping(flow) {
        let (now, known) = (tables.now(), mapping.entry.load());
        let life = Life::of(mapping, tables.mapping(&reversed(&mapping.to)));
        // A client may use the port of a flow that it has closed again.
        let is_old = kind == Kind::Start && life.has_ended();
        let is_over = life.is_over(service.idle, now);
        if !is_old && !is_over && serves(tables, known.backend) {
            mapping.entry.store(known, now);
            return Ok(());
        }
        if !is_old && !is_over {
            tables.count_repicked(known.backend);
        }
        let back = reversed(&mapping.to);
        tables.remove_mapping(flow);
        tables.remove_mapping(&back);
    }
    if begins { allocate(tables, flow, kind, service, backend) } else { Err(Reason::Unmapped) }
}

/// What both directions of a flow have shown.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Bits of [`entry_state`] that either direction has.
    either: u32,
    /// Bits that both have.
    both: u32,
    /// When the later one sent last, nanoseconds.
    seen: u64,
}

impl Life {
    /// That of a flow by its mapping and the one of the other direction, without which it is reset.
    #[inline(always)]
    pub fn of(one: &Mapping, other: Option<&Mapping>) -> Self {
        let (state, seen) = (one.entry.load().state, one.entry.seen());
        match other {
            Some(other) => {
                let other_state = other.entry.load().state;
                Self {
                    either: state | other_state,
                    both: state & other_state,
                    seen: seen.max(other.entry.seen()),
                }
            }
            None => Self { either: entry_state::RESET, both: 0, seen },
        }
    }

    /// Whether it has been silent for too long; `idle` is its service's limit, both in nanoseconds.
    #[inline(always)]
    pub fn is_over(&self, idle: u64, now: u64) -> bool {
        is_over(self.either, idle, now.saturating_sub(self.seen))
    }

    /// Whether one of both ends has shown its end.
    #[inline(always)]
    pub fn has_ended(&self) -> bool {
        self.either & entry_state::ENDING != 0
    }

    /// Whether another flow may have its port where none is free: when nothing more is to come but what got lost on the
    /// way, or when the client has let a SYN-ACK and the first of its repetitions go unanswered.
    #[inline(always)]
    fn is_worn(&self, now: u64) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let closed = self.either & entry_state::RESET != 0 || self.both & entry_state::CLOSING != 0;
        let silent = now.saturating_sub(self.seen);
        closed && silent > SECOND || self.either & entry_state::OPENING != 0 && silent > 4 * SECOND
    }
}

/// The flow in its other direction.
#[inline(always)]
pub fn reversed(flow: &FlowKey) -> FlowKey {
    FlowKey { source: flow.destination, destination: flow.source }
}

/// Ports that are tried for a flow: of those that are taken with a probability of three in four, one is found to be free
/// but for one flow in ten thousand. After as many again those are good enough whose flow is as good as over.
const TRIES: u32 = 32;

/// Takes a source for the flow: whoever adds the mapping of its replies has it, on whatever CPU.
#[inline(always)]
fn allocate<T: Tables>(
    tables: &T,
    flow: &FlowKey,
    kind: Kind,
    service: &Service,
    backend: u32,
) -> Result<(), Reason> {
    let known = |sources: &&Sources| sources.count != 0;
    let sources = tables.sources(backend).filter(known).ok_or(Reason::Unresolved)?;
    let target = &tables.backend(backend).ok_or(Reason::NoBackend)?.endpoint;
    let mut walk = Walk::new(sources, hash(tables.hash_key(), flow));
    let mut back = FlowKey { source: *target, destination: *target };
    if back.source.port == [0; 2] {
        back.source.port = flow.destination.port;
    }
    for attempt in 0..2 * TRIES {
        walk.step(sources, &mut back.destination);
        let may_have = match tables.mapping(&back) {
            None => true,
            Some(holder) if attempt >= TRIES => evict(tables, &back, holder),
            Some(_) => false,
        };
        let is_own = || tables.service(&back.destination).is_none() && !tables.host_has(&back);
        if may_have && is_own() && add(tables, flow, kind, service.mss, backend, &back)? {
            return Ok(());
        }
    }
    Err(Reason::NoPort)
}

/// Adds both mappings of a flow; false where another flow has this source.
#[inline(always)]
fn add<T: Tables>(
    tables: &T,
    flow: &FlowKey,
    kind: Kind,
    mss: u32,
    backend: u32,
    back: &FlowKey,
) -> Result<bool, Reason> {
    let state = if kind == Kind::Start { entry_state::OPENING } else { 0 };
    let (remembered, now) = (Remembered { backend, state }, tables.now());
    let mapping = |to, back| Mapping { to, entry: Entry::new(remembered, now), mss, back };
    match tables.add_mapping(back, &mapping(reversed(flow), 1)) {
        Added::Yes => {}
        Added::Taken => return Ok(false),
        Added::NoRoom => return Err(Reason::NotMapped),
    }
    match tables.add_mapping(flow, &mapping(reversed(back), 0)) {
        Added::Yes => return Ok(true),
        // Another CPU was first with the same flow.
        Added::Taken => drop(tables.remove_mapping(back)),
        Added::NoRoom => {
            tables.remove_mapping(back);
            return Err(Reason::NotMapped);
        }
    }
    Ok(true)
}

/// Removes the mappings of a flow that is as good as over, `back` being its replies; false where it is not, or where
/// another CPU was faster.
#[inline(always)]
fn evict<T: Tables>(tables: &T, back: &FlowKey, holder: &Mapping) -> bool {
    let forward = reversed(&holder.to);
    let is_worn = Life::of(holder, tables.mapping(&forward)).is_worn(tables.now());
    is_worn && tables.remove_mapping(back) && {
        tables.remove_mapping(&forward);
        true
    }
}

/// A walk over all ports of all sources, different for every flow.
struct Walk {
    address: u32,
    port: u32,
    stride: u32,
}

impl Walk {
    #[inline(always)]
    fn new(sources: &Sources, hash: u64) -> Self {
        let ports = u32::from(sources.ports);
        let address = reduce(hash >> 16, sources.count);
        let stride = reduce(hash, ports.saturating_sub(1)) + 1;
        Self { address, port: reduce(hash >> 32, ports), stride }
    }

    /// Writes the next address and port.
    #[inline(always)]
    fn step(&mut self, sources: &Sources, own: &mut Endpoint) {
        const LAST: usize = Sources::MOST - 1;
        own.address = sources.addresses[self.address as usize & LAST];
        own.port = sources.first_port.wrapping_add(self.port as u16).to_be_bytes();
        self.address += 1;
        if self.address >= sources.count {
            self.address = 0;
        }
        self.port += self.stride;
        if self.port >= u32::from(sources.ports) {
            self.port -= u32::from(sources.ports);
        }
    }
}

#[inline(always)]
fn serves<T: Tables>(tables: &T, backend: u32) -> bool {
    tables.backend(backend).is_some_and(|backend| backend.flags & backend_flag::SERVES != 0)
}
