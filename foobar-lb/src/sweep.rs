//! The sweep: forgets remembered flows that are over or need not be remembered, and tells the state what it saw, so
//! that slots can settle and ids can be given again. It deletes first and settles last: a slot that were settled
//! with an entry left would hand that entry to a later flow.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use foobar_lb_ebpf::{
    conntrack,
    flow::{HashKey, hash, reduce},
    layout::{Endpoint, FlowKey, Remembered, entry_state},
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    model::Remember,
    state::{Service, State},
};

/// A packet that saw the maps before a change has left the data path long before this is over: RCU readers run for
/// microseconds.
pub const GRACE: Duration = Duration::from_secs(1);

/// A remembered flow as it was read.
#[derive(Clone, Copy, Debug)]
pub struct RememberedFlow {
    /// The map that holds it.
    pub map: &'static str,
    /// The flow.
    pub flow: FlowKey,
    /// Its backend and state.
    pub remembered: Remembered,
    /// When it last sent, nanoseconds of the data path's clock.
    pub seen: u64,
}

/// Where flows are remembered.
pub trait Store {
    /// What can go wrong.
    type Error;

    /// Shows every remembered flow, and forgets those that are not to be kept. False if some may have been missed
    /// or shown twice.
    fn retain(&mut self, keep: impl FnMut(&RememberedFlow) -> bool) -> Result<bool, Self::Error>;
}

/// What a whole scan found, whether it was then kept or not.
#[derive(Debug, Default)]
pub struct Found {
    /// Slots to which a remembered flow belongs: number of the service and place in its table.
    pub slots: BTreeSet<(usize, u32)>,
    /// Backends that a remembered flow names, by id.
    pub backends: BTreeSet<u32>,
}

/// Sweeps once; `clock` is the data path's. A scan that was disturbed proves nothing, so it settles nothing.
/// Returns whether backends are gone for good.
pub fn sweep<S: Store>(
    state: &mut State,
    store: &mut S,
    clock: Duration,
    now: Instant,
) -> Result<bool, S::Error> {
    let index = Index::new(state);
    let mut found = Found::default();
    let mut repicked = BTreeMap::new();
    let whole = store.retain(|flow| {
        found.backends.insert(flow.remembered.backend);
        let Some(place) = index.place(&flow.flow) else { return false };
        found.slots.insert((place.number, place.slot));
        let over = is_over(flow, place.service, clock);
        if over || place.is_home(flow, now) {
            return false;
        }
        let serves = place.serving.contains(&flow.remembered.backend);
        if !serves {
            *repicked.entry(flow.remembered.backend).or_default() += 1;
        }
        serves
    })?;
    state.count_repicked(&repicked);
    Ok(whole && state.settle(&found, now))
}

/// How many flows that are neither over nor ending are remembered on each backend, by id; none if the scan was
/// disturbed.
pub fn count<S: Store>(
    state: &State,
    store: &mut S,
    clock: Duration,
) -> Result<Option<BTreeMap<u32, u64>>, S::Error> {
    let index = Index::new(state);
    let mut flows = BTreeMap::new();
    let whole = store.retain(|flow| {
        let ending = flow.remembered.state & entry_state::ENDING != 0;
        if let Some(place) = index.place(&flow.flow)
            && !ending
            && !is_over(flow, place.service, clock)
        {
            *flows.entry(flow.remembered.backend).or_default() += 1;
        }
        true
    })?;
    Ok(whole.then_some(flows))
}

/// The clock of the kernel's data path.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock").into()
}

/// Services by their end, because flows are many.
struct Index<'s> {
    hash_key: HashKey,
    services: HashMap<Endpoint, (usize, &'s Service, BTreeSet<u32>)>,
}

/// The slot that a flow belongs to.
struct Place<'s> {
    number: usize,
    service: &'s Service,
    /// The backends on which its flows may stay.
    serving: &'s BTreeSet<u32>,
    slot: u32,
}

impl<'s> Index<'s> {
    fn new(state: &'s State) -> Self {
        let services = state.services.iter().enumerate();
        let entry =
            |(number, service): (usize, &'s Service)| (service.end(), (number, service, service.serving()));
        Self { hash_key: state.hash_key(), services: services.map(entry).collect() }
    }

    fn place(&self, flow: &FlowKey) -> Option<Place<'_>> {
        let (number, service, serving) = self.services.get(&flow.destination)?;
        let slot = reduce(hash(&self.hash_key, flow), service.config.table_size);
        Some(Place { number: *number, service, serving, slot })
    }
}

impl Place<'_> {
    /// Whether the flow goes to its backend without being remembered, too.
    fn is_home(&self, flow: &RememberedFlow, now: Instant) -> bool {
        let Service { config, table, .. } = self.service;
        config.remember == Remember::Needed && table.is_home(self.slot, flow.remembered.backend, GRACE, now)
    }
}

fn is_over(flow: &RememberedFlow, service: &Service, clock: Duration) -> bool {
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let silent = nanos(clock).saturating_sub(flow.seen);
    conntrack::is_over(flow.remembered.state, nanos(service.config.idle), silent)
}
