//! Remembered flows: state only where a flow would otherwise break.
//!
//! A settled slot needs none of this. While a slot is *moving*, flows that begin go to its new owner and are
//! remembered there; a packet of a flow that is not remembered belongs to the previous owner, and is remembered
//! there. Once a slot only carries *traces* of a move, what is remembered still counts, all else goes to the
//! owner. The rule for each case is in [`follow`], the reasons are in `ARCHITECTURE.md`.

use crate::{
    flow::{Kind, Sign},
    layout::{Entry, FlowKey, NO_BACKEND, Remembered, Reply, Slot, TRACES, backend_flag, entry_state},
    reason::Reason,
    tables::Tables,
};

/// Where flows are remembered.
pub trait Conntrack {
    /// A flow that showed a SYN only.
    fn half_open(&self, flow: &FlowKey) -> Option<&Entry>;
    /// Any other remembered flow.
    fn remembered(&self, flow: &FlowKey) -> Option<&Entry>;
    /// Remembers a flow that begins; false where there is no room.
    fn insert_half_open(&self, flow: &FlowKey, entry: Entry) -> bool;
    /// Remembers a flow that answered a SYN-ACK; false where there is no room.
    fn insert_established(&self, flow: &FlowKey, entry: Entry) -> bool;
    /// Remembers a flow first seen in mid-flow; false where there is no room.
    fn insert_adopted(&self, flow: &FlowKey, entry: Entry) -> bool;
    /// Forgets a flow that showed a SYN only.
    fn forget_half_open(&self, flow: &FlowKey);
    /// Forgets a flow altogether.
    fn forget(&self, flow: &FlowKey);
}

/// Silence after which a flow is forgotten that is about to end, as a FIN or RST shows, or has only sent a SYN: as
/// long as Linux' TIME_WAIT, and about as long as it keeps sending SYN-ACKs. Nanoseconds.
pub const BRIEF_IDLE: u64 = 60_000_000_000;

/// Whether a remembered flow has been silent for too long. `idle` is its service's limit, `silent` how long it has
/// been; both in nanoseconds.
#[inline(always)]
pub fn is_over(state: u32, idle: u64, silent: u64) -> bool {
    let brief = state & (entry_state::ENDING | entry_state::OPENING) != 0;
    silent > if brief { idle.min(BRIEF_IDLE) } else { idle }
}

/// The backend of a packet whose slot is not settled. `idle` is its service's limit of silence, nanoseconds.
#[inline(always)]
pub fn follow<T: Tables>(tables: &T, flow: &FlowKey, kind: Kind, slot: Slot, idle: u64) -> u32 {
    let now = tables.now();
    let moving = slot.previous != TRACES;
    let entry = find(tables.conntrack(), flow);
    let alive = entry.and_then(|entry| recall(entry, kind, idle, now));
    let known = alive.filter(|known| stays(tables, known, kind));
    match (kind, known) {
        (Kind::Error { .. } | Kind::Opaque | Kind::Start, Some(known)) => known.backend,
        (Kind::Error { .. } | Kind::Opaque, None) if moving => slot.previous,
        (Kind::Error { .. } | Kind::Opaque, None) => slot.owner,
        (Kind::Start, None) if moving && slot.owner != NO_BACKEND => {
            remember(tables, flow, slot.owner, now);
            slot.owner
        }
        (Kind::Ongoing(sign), Some(known)) => {
            touch(tables, flow, sign, known, now);
            known.backend
        }
        (Kind::Ongoing(sign), None) if moving => {
            adopt(tables, flow, sign, slot.previous, now);
            slot.previous
        }
        (Kind::Start | Kind::Ongoing(_), None) => {
            // What does not count now must not count later, when its backend serves again.
            if entry.is_some() {
                tables.conntrack().forget(flow);
            }
            slot.owner
        }
    }
}

/// A backend has reset a flow, or refused one. Its client need not say so, and may use the port again. `answer` is the
/// flow as the backend sees it, in the direction of its packet.
#[inline(always)]
pub fn note_reset<T: Tables>(tables: &T, answer: &FlowKey, reply: &Reply) {
    // The one or the other as a whole: the verifier refuses a copy of what is around the port.
    let has_port = reply.service.port != [0; 2];
    let port = if has_port { &reply.service } else { &answer.source };
    let mut flow = FlowKey { source: answer.destination, destination: *port };
    flow.destination.address = reply.service.address;
    if let Some(entry) = find(tables.conntrack(), &flow) {
        let known = entry.load();
        if known.backend == reply.backend {
            entry.store(Remembered { state: entry_state::RESET, ..known }, entry.seen());
        }
    }
}

#[inline(always)]
fn find<'c>(conntrack: &'c impl Conntrack, flow: &FlowKey) -> Option<&'c Entry> {
    conntrack.remembered(flow).or_else(|| conntrack.half_open(flow))
}

/// What is remembered of a flow, if it is alive for this kind of packet.
#[inline(always)]
fn recall(entry: &Entry, kind: Kind, idle: u64, now: u64) -> Option<Remembered> {
    let known = entry.load();
    // A client may use the port of a flow that it has closed again.
    let is_old = known.state & entry_state::ENDING != 0 && kind == Kind::Start;
    let is_over = is_over(known.state, idle, now.saturating_sub(entry.seen()));
    if is_old || is_over { None } else { Some(known) }
}

/// Whether the flow may stay on its backend; one that goes on and has to leave is counted.
#[inline(always)]
fn stays<T: Tables>(tables: &T, known: &Remembered, kind: Kind) -> bool {
    let backend = tables.backend(known.backend);
    let serves = backend.is_some_and(|backend| backend.flags & backend_flag::SERVES != 0);
    if !serves && matches!(kind, Kind::Ongoing(_)) && known.state & entry_state::ENDING == 0 {
        tables.count_repicked(known.backend);
    }
    serves
}

/// A flow begins on `backend`. An entry that is already there is overwritten in place, whatever it said.
#[inline(always)]
fn remember<T: Tables>(tables: &T, flow: &FlowKey, backend: u32, now: u64) {
    let conntrack = tables.conntrack();
    let remembered = Remembered { backend, state: entry_state::OPENING };
    if let Some(entry) = find(conntrack, flow) {
        entry.store(remembered, now);
    } else if !conntrack.insert_half_open(flow, Entry::new(remembered, now)) {
        tables.count(Reason::NotRemembered, 0);
    }
}

/// A remembered flow sent again: its life is renewed, or shortened by FIN or RST. The first packet after the
/// SYN shows a client that really is there, which lifts the flow out of reach of a SYN flood.
#[inline(always)]
fn touch<T: Tables>(tables: &T, flow: &FlowKey, sign: Sign, known: Remembered, now: u64) {
    let conntrack = tables.conntrack();
    let remembered = Remembered { state: state_after(sign, known.state), ..known };
    if let Some(entry) = conntrack.remembered(flow) {
        entry.store(remembered, now);
    } else if conntrack.insert_established(flow, Entry::new(remembered, now)) {
        conntrack.forget_half_open(flow);
    } else {
        tables.count(Reason::NotRemembered, 0);
        // It stays within reach of the flood, but does not die of age.
        if let Some(entry) = conntrack.half_open(flow) {
            entry.store(remembered, now);
        }
    }
}

/// A flow that began before the move is remembered on the previous owner. One that finds no room goes there all
/// the same, as long as the slot is moving.
#[inline(always)]
fn adopt<T: Tables>(tables: &T, flow: &FlowKey, sign: Sign, backend: u32, now: u64) {
    let conntrack = tables.conntrack();
    let remembered = Remembered { backend, state: state_after(sign, 0) };
    if let Some(entry) = find(conntrack, flow) {
        entry.store(remembered, now);
    } else if !conntrack.insert_adopted(flow, Entry::new(remembered, now)) {
        tables.count(Reason::NotRemembered, 0);
    }
}

/// Data shows that the flow goes on, and that a FIN or RST before was forged. So does an acknowledgement after a RST;
/// but after a FIN the acknowledgement of the other side's FIN is the last packet of all.
#[inline(always)]
pub fn state_after(sign: Sign, before: u32) -> u32 {
    match sign {
        Sign::Data => 0,
        Sign::Acknowledgement => before & entry_state::CLOSING,
        Sign::Fin => entry_state::CLOSING,
        Sign::Reset => entry_state::RESET,
    }
}
