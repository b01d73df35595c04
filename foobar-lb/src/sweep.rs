//! The sweep: forgets remembered flows that are over or need not be remembered, and mappings of flows that are over, and
//! tells the state what it saw, so that slots can settle and ids can be given again. It deletes first and settles last: a slot that were settled
//! with an entry left would hand that entry to a later flow.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv6Addr,
    time::{Duration, Instant},
};

use foobar_lb_ebpf::{
    conntrack,
    flow::{HashKey, hash, reduce},
    layout::{Endpoint, FlowKey, Remembered, TCP, entry_state},
    snat::Life,
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    image::endpoint,
    model::{Protocol, Remember, ServiceKey},
    state::{self, State},
    wide::Wide,
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

/// A mapped flow as it was read.
#[derive(Clone, Copy, Debug)]
pub struct MappedFlow {
    /// The flow, from the client to the service.
    pub flow: FlowKey,
    /// The id of its backend.
    pub backend: u32,
    /// What both of its directions have shown.
    pub life: Life,
}

/// Where flows are remembered, and mapped.
pub trait Store {
    /// What can go wrong.
    type Error;

    /// Shows every remembered flow, and forgets those that are not to be kept. False if some may have been missed
    /// or shown twice.
    fn retain(&mut self, keep: impl FnMut(&RememberedFlow) -> bool) -> Result<bool, Self::Error>;

    /// The same for mapped flows, each of which is shown once. A store need not have any.
    fn retain_mapped(&mut self, _: impl FnMut(&MappedFlow) -> bool) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Found {
    /// Slots to which a remembered flow belongs, whether it was then kept or not, by their index in the arena.
    pub slots: BTreeSet<u32>,
    /// Backends that a remembered or mapped flow names, whether it was then kept or not, by id.
    pub backends: BTreeSet<u32>,
    /// Flows that were kept, by the id of their backend.
    pub flows: BTreeMap<u32, Flows>,
    /// Flows that were alive on a backend that does not serve any more, by its id.
    pub repicked: BTreeMap<u32, u64>,
    /// Nothing was missed or seen twice.
    pub whole: bool,
    /// When the scan began.
    pub began: Option<Instant>,
}

/// How many flows are remembered on a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// That go on.
    pub seen: u64,
    /// That have shown their end: of most, nothing more will come.
    pub closing: u64,
    /// When the one that has been quiet the longest last sent, by the data path's clock; none if there are no flows.
    pub quietest: Option<Duration>,
}

impl Flows {
    fn count(&mut self, has_ended: bool, seen: u64) {
        match has_ended {
            false => self.seen += 1,
            true => self.closing += 1,
        }
        let seen = Duration::from_nanos(seen);
        self.quietest = Some(self.quietest.map_or(seen, |quietest| quietest.min(seen)));
    }
}

/// The clock of the kernel's data path.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock").into()
}

/// What it takes to tell which flows to keep, as it is at one moment. It can go to another thread: a scan of full maps
/// takes longer than the daemon may be kept from its events.
pub struct Broom {
    hash_key: HashKey,
    services: Vec<Service>,
    exact: HashMap<Endpoint, usize>,
    wide: Wide<usize>,
    clock: u64,
    now: Instant,
}

/// A service, as far as its flows are concerned.
struct Service {
    first_slot: u32,
    table_size: u32,
    idle: u64,
    /// The backends on which known flows may stay.
    serving: BTreeSet<u32>,
    /// Places that have carried nothing but traces for the time of grace, and their owners: what is not remembered goes
    /// the same way there as what is.
    homes: BTreeMap<u32, u32>,
}

impl Broom {
    /// For the state as it is now; `clock` is the data path's.
    pub fn new(state: &State, clock: Duration, now: Instant) -> Self {
        let service = |service: &state::Service| {
            let homes = match service.config.remember {
                Remember::Needed => service.table.traced(GRACE, now).collect(),
                Remember::All => BTreeMap::new(),
            };
            let (table_size, idle) = (service.config.table_size, nanos(service.config.idle));
            let (first_slot, serving) = (service.table.first(), service.serving());
            Service { first_slot, table_size, idle, serving, homes }
        };
        let keys = || state.services.iter().map(|service| service.config.key).zip(0..);
        let exact = |(ServiceKey { address, protocol }, place): (_, usize)| {
            Some((endpoint(address.exact()?, protocol), place))
        };
        Self {
            hash_key: state.hash_key(),
            services: state.services.iter().map(service).collect(),
            exact: keys().filter_map(exact).collect(),
            wide: Wide::new(keys()),
            clock: nanos(clock),
            now,
        }
    }

    /// Forgets what is over, what serves nobody, and what goes home by itself.
    pub fn sweep<S: Store>(&self, store: &mut S) -> Result<Found, S::Error> {
        let mut found = Found { began: Some(self.now), ..Found::default() };
        let remembered = store.retain(|flow| self.keep(flow, &mut found))?;
        let mapped = store.retain_mapped(|flow| self.keep_mapped(flow, &mut found))?;
        found.whole = remembered && mapped;
        Ok(found)
    }

    /// Shows the slot, by its index in the arena, and the backend of every flow that is remembered or mapped and goes on.
    /// Nothing is forgotten. False if some may have been missed or shown twice.
    pub fn look<S: Store>(&self, store: &mut S, mut show: impl FnMut(u32, u32)) -> Result<bool, S::Error> {
        let slot = |service: &Service, flow: &FlowKey| {
            service.first_slot + reduce(hash(&self.hash_key, flow), service.table_size)
        };
        let remembered = store.retain(|RememberedFlow { flow, remembered, seen, .. }| {
            let silent = self.clock.saturating_sub(*seen);
            if let Some(service) = self.service(&flow.destination)
                && !conntrack::is_over(remembered.state, service.idle, silent)
            {
                show(slot(service, flow), remembered.backend);
            }
            true
        })?;
        let mapped = store.retain_mapped(|MappedFlow { flow, backend, life }| {
            if let Some(service) = self.service(&flow.destination)
                && !life.is_over(service.idle, self.clock)
            {
                show(slot(service, flow), *backend);
            }
            true
        })?;
        Ok(remembered && mapped)
    }

    fn keep(&self, flow: &RememberedFlow, found: &mut Found) -> bool {
        let Remembered { backend, state } = flow.remembered;
        found.backends.insert(backend);
        // What has sent since this moment may have done so by other tables than those of this moment.
        let has_sent_since = flow.seen > self.clock;
        let Some(service) = self.service(&flow.flow.destination) else { return has_sent_since };
        let place = reduce(hash(&self.hash_key, &flow.flow), service.table_size);
        found.slots.insert(service.first_slot + place);
        let keeps = has_sent_since || self.needs(flow, service, place, found);
        if keeps {
            found.flows.entry(backend).or_default().count(state & entry_state::ENDING != 0, flow.seen);
        }
        keeps
    }

    fn keep_mapped(&self, mapped: &MappedFlow, found: &mut Found) -> bool {
        let MappedFlow { flow, backend, life } = mapped;
        found.backends.insert(*backend);
        let has_sent_since = life.seen() > self.clock;
        let Some(service) = self.service(&flow.destination) else { return has_sent_since };
        if !has_sent_since {
            if life.is_over(service.idle, self.clock) {
                return false;
            }
            if !service.serving.contains(backend) {
                *found.repicked.entry(*backend).or_default() += u64::from(!life.has_ended());
                return false;
            }
        }
        found.flows.entry(*backend).or_default().count(life.has_ended(), life.seen());
        true
    }

    /// The service of flows to this end.
    fn service(&self, destination: &Endpoint) -> Option<&Service> {
        let wide = || {
            let address = Ipv6Addr::from(destination.address.0).to_canonical();
            let protocol = if destination.protocol == TCP { Protocol::Tcp } else { Protocol::Udp };
            self.wide.find(address, protocol, u16::from_be_bytes(destination.port))
        };
        let place = self.exact.get(destination).copied().or_else(wide)?;
        Some(&self.services[place])
    }

    /// Whether the flow would break if it were forgotten.
    fn needs(&self, flow: &RememberedFlow, service: &Service, place: u32, found: &mut Found) -> bool {
        let Remembered { backend, state } = flow.remembered;
        if conntrack::is_over(state, service.idle, self.clock.saturating_sub(flow.seen)) {
            return false;
        }
        if !service.serving.contains(&backend) {
            let goes_on = state & entry_state::ENDING == 0;
            *found.repicked.entry(backend).or_default() += u64::from(goes_on);
            return false;
        }
        service.homes.get(&place) != Some(&backend)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
