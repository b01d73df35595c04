//! The sweep: forgets remembered flows that have been silent too long, and settles slots that no remembered
//! flow needs any more. It deletes first and settles last; a slot that were settled with an entry left would
//! hand that entry to a later flow.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use foobar_lb_ebpf::{conntrack::CLOSING_IDLE, layout::entry_state};
use nix::time::{ClockId, clock_gettime};

use crate::{
    bpf::{self, Bpf, RememberedFlow},
    state::State,
};

/// A packet that saw a slot move has left the data path long before this is over: RCU readers run for
/// microseconds.
const GRACE: Duration = Duration::from_secs(1);

/// Sweeps once. A scan that the kernel disturbed proves nothing, so it settles nothing.
pub fn sweep(state: &mut State, bpf: &mut Bpf, now: Instant) -> Result<(), bpf::Error> {
    let Some(flows) = bpf.remembered()? else { return Ok(()) };
    let clock = monotonic();
    let mut needed = BTreeSet::new();
    for flow in flows {
        match state.slot_of(&flow.flow) {
            Some((service, place, idle)) if !is_over(&flow, idle, clock) => {
                needed.insert((service, place));
            }
            _ => bpf.forget(&flow)?,
        }
    }
    state.settle(&needed, GRACE, now);
    Ok(())
}

fn is_over(flow: &RememberedFlow, idle: Duration, clock: Duration) -> bool {
    let closing = flow.remembered.state & entry_state::CLOSING != 0;
    let idle = if closing { idle.min(Duration::from_nanos(CLOSING_IDLE)) } else { idle };
    clock.saturating_sub(Duration::from_nanos(flow.seen)) > idle
}

/// The clock of the data path.
fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock").into()
}
