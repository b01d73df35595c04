//! Mappings: the state of flows both of whose ends are replaced. A flow that begins gets a port of one of the balancer's
//! own addresses, so that its replies come back to the balancer, wherever the backend's routes lead. Two mappings hold
//! that, one for each direction; the one for replies is what makes the port taken.
//!
//! A packet of a flow that is mapped costs one look-up, [`recall`] or [`recall_reply`]; all else is in [`open`].

use core::num::NonZeroU32;

use crate::{
    conntrack::{is_over, state_after},
    flow::{Kind, Parsed, hash, reduce},
    layout::{Entry, FlowKey, Mapping, Remembered, Sources, UDP, backend_flag, entry_state},
    packet::Packet,
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

/// The mapping of a client's packet, where its flow goes on by it; `idle` is its service's limit of silence, nanoseconds.
/// One that begins a flow goes through [`open`] first.
#[inline(always)]
pub fn recall<'t, T: Tables>(
    tables: &'t T,
    flow: &FlowKey,
    kind: Kind,
    idle: u64,
    is_open: bool,
) -> Option<&'t Mapping> {
    let mapping = tables.mapping(flow)?;
    match kind {
        Kind::Start if is_open => Some(mapping),
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

/// Gives the flow of a client's packet that begins mappings towards `backend`. One that has mappings keeps them as long
/// as they are alive. In mid-flow nothing is opened: the backend would not know the flow by its new source.
#[inline(always)]
pub fn open<P: Packet, T: Tables>(packet: &mut P, tables: &T, backend: u32) -> Result<(), Reason> {
    let mut parsed = Parsed::new();
    parsed.parse(packet)?;
    let Parsed { flow, kind, .. } = &parsed;
    // A fragment without ports shows none here: of a flow whose mappings are gone, as it could not open one anyway.
    let service = tables.service_of(&flow.destination).ok_or(Reason::Unmapped)?;
    if tables.renew(flow, *kind, service.idle) {
        return Ok(());
    }
    let begins = *kind == Kind::Start || matches!(kind, Kind::Ongoing(_)) && flow.source.protocol == UDP;
    if begins { allocate(tables, flow, service.mss, backend) } else { Err(Reason::Unmapped) }
}

/// Whether the flow has mappings that are alive for this kind of packet; else they are removed.
#[inline(always)]
pub fn renew<T: Tables>(tables: &T, flow: &FlowKey, kind: Kind, idle: u64) -> bool {
    let Some(mapping) = tables.mapping(flow) else { return false };
    let (now, known) = (tables.now(), mapping.entry.load());
    let back = reversed(&mapping.to);
    let life = Life::of(mapping, tables.mapping(&back));
    // A client may use the port of a flow that it has closed again.
    let is_over = life.is_over(idle, now) || kind == Kind::Start && life.has_ended();
    if !is_over && serves(tables, known.backend) {
        mapping.entry.store(known, now);
        return true;
    }
    if !is_over {
        tables.count_repicked(known.backend);
    }
    tables.remove_mapping(flow);
    tables.remove_mapping(&back);
    false
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

    /// When the later one sent last, nanoseconds of the data path's clock.
    pub fn seen(&self) -> u64 {
        self.seen
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

/// Tries one source after the other.
#[inline(always)]
fn allocate<T: Tables>(tables: &T, flow: &FlowKey, mss: u32, backend: u32) -> Result<(), Reason> {
    if tables.sources(backend).is_none_or(|sources| sources.count == 0) {
        return Err(Reason::Unresolved);
    }
    let hash = hash(tables.hash_key(), flow);
    for attempt in 0..2 * TRIES {
        let claim = Claim { backend, mss, hash, attempt };
        if !tables.is_free(flow, claim) {
            continue;
        }
        match tables.take(flow, claim) {
            Added::Yes => return Ok(()),
            Added::Taken => {}
            Added::NoRoom => return Err(Reason::NotMapped),
        }
    }
    Err(Reason::NoPort)
}

/// What a flow asks for.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// The backend.
    pub backend: u32,
    /// The largest segment, in bytes, that its SYNs may ask for; 0: any.
    pub mss: u32,
    /// The flow's hash.
    pub hash: u64,
    /// How many sources were tried.
    pub attempt: u32,
}

/// Whether a flow may have the source of an attempt: nobody has it, or a flow that is as good as over, which then goes.
#[inline(always)]
pub fn is_free<T: Tables>(tables: &T, flow: &FlowKey, claim: Claim) -> bool {
    let mut back = *flow;
    if !find_replies(tables, &claim, &mut back) {
        return false;
    }
    // What a service or a socket of the host gets there must not be taken for replies.
    if tables.service(&back.destination).is_some() || tables.host_has(&back) {
        return false;
    }
    let Some(holder) = tables.mapping(&back) else { return true };
    claim.attempt >= TRIES && evict(tables, &back, holder)
}

#[inline(always)]
fn evict<T: Tables>(tables: &T, back: &FlowKey, holder: &Mapping) -> bool {
    let forward = reversed(&holder.to);
    let is_worn = Life::of(holder, tables.mapping(&forward)).is_worn(tables.now());
    // Another CPU may be faster.
    is_worn && tables.remove_mapping(back) && {
        tables.remove_mapping(&forward);
        true
    }
}

/// Gives a flow the source of an attempt: whoever adds the mapping of its replies has it, on whatever CPU.
#[inline(always)]
pub fn take<T: Tables>(tables: &T, flow: &FlowKey, claim: Claim) -> Added {
    let mut back = *flow;
    if !find_replies(tables, &claim, &mut back) {
        return Added::Taken;
    }
    let state = if flow.source.protocol == UDP { 0 } else { entry_state::OPENING };
    let entry = Entry::new(Remembered { backend: claim.backend, state }, tables.now());
    let mut mapping = Mapping { to: reversed(flow), entry, mss: claim.mss, back: 1 };
    match tables.add_mapping(&back, &mapping) {
        Added::Yes => {}
        refused => return refused,
    }
    mapping.to = reversed(&back);
    mapping.back = 0;
    match tables.add_mapping(flow, &mapping) {
        Added::Yes => Added::Yes,
        refused => {
            tables.remove_mapping(&back);
            // Where another CPU was faster with this very flow, it has its source.
            if refused == Added::Taken { Added::Yes } else { refused }
        }
    }
}

/// Makes a flow the one of its replies to the source of an attempt; false where there is none. Attempts are steps of a walk
/// over all ports, each of all addresses, another one for every flow.
#[inline(always)]
fn find_replies<T: Tables>(tables: &T, claim: &Claim, flow: &mut FlowKey) -> bool {
    const LAST: usize = Sources::MOST - 1;
    let Claim { backend, hash, attempt, .. } = *claim;
    let (Some(sources), Some(backend)) = (tables.sources(backend), tables.backend(backend)) else {
        return false;
    };
    let (count, ports) = (NonZeroU32::new(sources.count), NonZeroU32::new(sources.ports.into()));
    let (Some(count), Some(ports)) = (count, ports) else { return false };
    let address = (reduce(hash >> 16, count.get()) + attempt) % count;
    let stride = 1 + reduce(hash, ports.get() - 1);
    let port = (reduce(hash >> 32, ports.get()) + attempt / count * stride) % ports;
    flow.source.address = backend.endpoint.address;
    flow.source.port = backend.endpoint.port_or(flow.destination.port);
    flow.destination.address = sources.addresses[address as usize & LAST];
    flow.destination.port = sources.first_port.wrapping_add(port as u16).to_be_bytes();
    true
}

#[inline(always)]
fn serves<T: Tables>(tables: &T, backend: u32) -> bool {
    tables.backend(backend).is_some_and(|backend| backend.flags & backend_flag::SERVES != 0)
}
