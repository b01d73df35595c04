//! Remembered flows: state only where a flow would otherwise break.
//!
//! A settled slot needs none of this. While a slot is *moving*, flows that begin go to its new owner and are
//! remembered there; a packet of a flow that is not remembered belongs to the previous owner, and is remembered
//! there. Once a slot only carries *traces* of a move, what is remembered still counts, all else goes to the
//! owner. The rule for each case is in [`follow`], the reasons are in `ARCHITECTURE.md`.

use crate::{
    balance::Tables,
    flow::Kind,
    layout::{Entry, FlowKey, NO_BACKEND, Remembered, Service, Slot, TRACES, backend_flag, entry_state},
    reason::Reason,
};

/// Silence after which a flow that showed FIN or RST is forgotten: the maximum segment lifetime that Linux'
/// TIME_WAIT waits for. Nanoseconds.
pub const CLOSING_IDLE: u64 = 60_000_000_000;

/// The backend of a packet whose slot is not settled.
#[inline(always)]
pub fn follow<T: Tables>(tables: &T, flow: &FlowKey, kind: Kind, slot: Slot, service: &Service) -> u32 {
    let now = tables.now();
    let moving = slot.previous != TRACES;
    let known = recall(tables, flow, kind, service, now);
    match (kind, known) {
        (Kind::Error { .. } | Kind::Opaque, Some(backend)) => backend,
        (Kind::Error { .. } | Kind::Opaque, None) if moving => slot.previous,
        (Kind::Error { .. } | Kind::Opaque, None) => slot.owner,
        (Kind::Start, Some(backend)) => backend,
        (Kind::Start, None) if moving && slot.owner != NO_BACKEND => {
            remember(tables, flow, slot.owner, now);
            slot.owner
        }
        (Kind::Start, None) => {
            tables.forget(flow);
            slot.owner
        }
        (Kind::Ongoing | Kind::Closing, Some(backend)) => {
            touch(tables, flow, kind, backend, now);
            backend
        }
        (Kind::Ongoing | Kind::Closing, None) if moving => {
            adopt(tables, flow, kind, slot.previous, now);
            slot.previous
        }
        (Kind::Ongoing | Kind::Closing, None) => slot.owner,
    }
}

/// The backend a flow is remembered on, if the entry is alive for this kind of packet and the backend serves.
#[inline(always)]
fn recall<T: Tables>(tables: &T, flow: &FlowKey, kind: Kind, service: &Service, now: u64) -> Option<u32> {
    let entry = match tables.remembered(flow) {
        Some(entry) => entry,
        None => tables.half_open(flow)?,
    };
    let Remembered { backend, state } = entry.load();
    let closing = state & entry_state::CLOSING != 0;
    // A client may use the port of a flow that it has closed again.
    if closing && kind == Kind::Start {
        return None;
    }
    let idle = if closing { service.idle.min(CLOSING_IDLE) } else { service.idle };
    if now.saturating_sub(entry.seen()) > idle {
        return None;
    }
    let serves = tables.backend(backend)?.flags & backend_flag::SERVES != 0;
    serves.then_some(backend)
}

/// A flow begins on `backend`. An entry that is already there is overwritten in place, whatever it said.
#[inline(always)]
fn remember<T: Tables>(tables: &T, flow: &FlowKey, backend: u32, now: u64) {
    let remembered = Remembered { backend, state: 0 };
    if let Some(entry) = tables.remembered(flow).or_else(|| tables.half_open(flow)) {
        entry.store(remembered, now);
    } else if !tables.insert_half_open(flow, Entry::new(remembered, now)) {
        tables.count(Reason::NotRemembered, 0);
    }
}

/// A remembered flow sent again: its life is renewed, or shortened by FIN or RST. The first packet after the
/// SYN shows a client that really is there, which lifts the flow out of reach of a SYN flood.
#[inline(always)]
fn touch<T: Tables>(tables: &T, flow: &FlowKey, kind: Kind, backend: u32, now: u64) {
    let remembered = Remembered { backend, state: state_after(kind) };
    if let Some(entry) = tables.remembered(flow) {
        entry.store(remembered, now);
    } else if tables.insert_established(flow, Entry::new(remembered, now)) {
        tables.forget_half_open(flow);
    } else {
        tables.count(Reason::NotRemembered, 0);
        // It stays within reach of the flood, but does not die of age.
        if let Some(entry) = tables.half_open(flow) {
            entry.store(remembered, now);
        }
    }
}

/// A flow that began before the move is remembered on the previous owner. One that finds no room goes there all
/// the same, as long as the slot is moving.
#[inline(always)]
fn adopt<T: Tables>(tables: &T, flow: &FlowKey, kind: Kind, backend: u32, now: u64) {
    let remembered = Remembered { backend, state: state_after(kind) };
    if let Some(entry) = tables.remembered(flow) {
        entry.store(remembered, now);
    } else if !tables.insert_adopted(flow, Entry::new(remembered, now)) {
        tables.count(Reason::NotRemembered, 0);
    }
}

#[inline(always)]
fn state_after(kind: Kind) -> u32 {
    if kind == Kind::Closing { entry_state::CLOSING } else { 0 }
}
