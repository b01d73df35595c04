//! Services and backends come, change and go. What a configuration has no more is not forgotten at once: a backend
//! lingers until its flows are gone, and ids and regions of the arena are given again only when nothing can name
//! them any more.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use thiserror::Error;

use super::{Backend, Groups, Service, State, View, Word};
use crate::{
    model::{self, Affinity, Ports, Protocol, ServiceKey},
    slots::Table,
    wide::PrefixMap,
};

/// How much the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Slots of all tables together.
    pub slots: u32,
    /// Backends of all services together, lingering ones included.
    pub backends: u32,
}

/// Why a configuration cannot take the place of the one in force. Nothing has changed then.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// Another size of the table sends nearly every flow elsewhere, and there is no owner to fall back on.
    #[error(
        "service `{service}`: table_size is {current} and cannot become {wanted} while it serves: its flows would \
         go to other backends and break; keep {current}, or restart foobar-lb when that may happen"
    )]
    TableSize {
        /// Name of the service.
        service: String,
        /// Slots now.
        current: u32,
        /// Slots wanted.
        wanted: u32,
    },
    /// What reaches the backends, and what they answer, is another thing in another mode.
    #[error(
        "service `{service}`: mode is {current} and cannot become {wanted} while it serves: backends that are set up \
         for one do not answer in the other, so its flows would break; keep {current}, give the new mode another VIP \
         or port and move the clients there, or restart foobar-lb when flows may break"
    )]
    Mode {
        /// Name of the service.
        service: String,
        /// Mode now.
        current: &'static str,
        /// Mode wanted.
        wanted: &'static str,
    },
    /// Another affinity sends nearly every flow elsewhere, and there is no owner to fall back on.
    #[error(
        "service `{service}`: affinity cannot become {wanted} while it serves: its flows would go to other backends and \
         break; keep {current}, or restart foobar-lb when that may happen"
    )]
    Affinity {
        /// Name of the service.
        service: String,
        /// Affinity now.
        current: Affinity,
        /// Affinity wanted.
        wanted: Affinity,
    },
    /// No gap in the arena is large enough.
    #[error(
        "service `{service}`: no {needed} slots in one piece are free, of {room} that there are; raise `slots` of \
         [daemon] and restart foobar-lb, or try again in half a minute if services were removed just now"
    )]
    Slots {
        /// Name of the service.
        service: String,
        /// Slots that it needs.
        needed: u32,
        /// Slots that there are.
        room: u32,
    },
    /// All ids are taken.
    #[error(
        "{added} backends are new and only {free} more find room, {lingering} of {room} places being kept for flows \
         of backends that are gone; raise `backends` of [daemon] and restart foobar-lb, or try again when those \
         flows have ended"
    )]
    Backends {
        /// Backends that are new.
        added: usize,
        /// Places that are free.
        free: usize,
        /// Places that are kept.
        lingering: usize,
        /// Places that there are.
        room: u32,
    },
}

impl State {
    /// Nothing measured yet: tables from the start of the arena, ids in the order of the configuration.
    pub fn new(services: Vec<model::Service>, seed: u64) -> Self {
        let mut state = Self::empty(seed);
        let everything = Room { slots: u32::MAX, backends: u32::MAX };
        state.reconfigure(services, everything).expect("a validated configuration fits into empty maps");
        state
    }

    pub(super) fn empty(seed: u64) -> Self {
        Self {
            services: Vec::new(),
            attached: BTreeMap::new(),
            view: View::default(),
            seed,
            groups: Groups::default(),
            retired: BTreeMap::new(),
            left: Vec::new(),
        }
    }

    /// Replaces the configuration, or refuses and changes nothing. Services are known by their address and protocol, or
    /// see [`predecessors`]; backends by their address. Returns the backends that could not linger, because their address now belongs to
    /// another service.
    pub fn reconfigure(
        &mut self,
        services: Vec<model::Service>,
        room: Room,
    ) -> Result<Vec<SocketAddr>, Refusal> {
        let allocation = self.allocate(&services, room)?;
        let predecessors = predecessors(&self.services, &services);
        let mut before: HashMap<ServiceKey, Service> =
            self.services.drain(..).map(|service| (service.config.key, service)).collect();
        let Allocation { mut ids, mut regions } = allocation;
        let mut lists = free_lists(&before, &predecessors);
        for (config, predecessor) in services.into_iter().zip(predecessors) {
            let service = match predecessor.and_then(|key| before.remove(&key)) {
                Some(service) => service.reconfigured(config, &mut ids, &mut lists),
                None => {
                    let first = regions.next().expect("every new service was given a region");
                    Service::new(config, first, &mut ids, &mut lists)
                }
            };
            self.services.push(service);
        }
        before.into_values().for_each(|service| self.retire(service));
        let displaced = self.displace();
        let view = std::mem::take(&mut self.view);
        self.observe_network(view);
        Ok(displaced)
    }

    /// Whether the configuration can take the place of the one in force.
    pub fn check(&self, services: &[model::Service], room: Room) -> Result<(), Refusal> {
        self.allocate(services, room).map(drop)
    }

    fn allocate(&self, services: &[model::Service], room: Room) -> Result<Allocation, Refusal> {
        let before: HashMap<ServiceKey, &Service> =
            self.services.iter().map(|service| (service.config.key, service)).collect();
        let mut taken: Vec<Range<u32>> = self.services.iter().map(Service::region).collect();
        taken.extend(self.left.iter().map(|(region, _)| region.clone()));
        let mut regions = Vec::new();
        let mut added = 0;
        for (config, predecessor) in services.iter().zip(predecessors(&self.services, services)) {
            let Some(service) = predecessor.and_then(|key| before.get(&key)) else {
                let first =
                    find_gap(&mut taken, config.table_size, room.slots).ok_or_else(|| Refusal::Slots {
                        service: config.name.clone(),
                        needed: config.table_size,
                        room: room.slots,
                    })?;
                regions.push(first);
                added += config.backends.len();
                continue;
            };
            service.check_unchanged(config)?;
            added += config.backends.iter().filter(|backend| !service.has(backend.address)).count();
        }
        let taken = self.taken_ids();
        let free = room.backends as usize - taken.len().min(room.backends as usize);
        if added > free {
            let configured = services.iter().map(|service| service.backends.len()).sum::<usize>();
            let lingering = (taken.len() + added).saturating_sub(configured);
            return Err(Refusal::Backends { added, free, lingering, room: room.backends });
        }
        let ids: Vec<u32> = (0..room.backends).filter(|id| !taken.contains(id)).take(added).collect();
        Ok(Allocation { ids: ids.into_iter(), regions: regions.into_iter() })
    }

    fn taken_ids(&self) -> HashSet<u32> {
        let backends = self.backends();
        backends.map(|backend| backend.id).chain(self.retired.keys().copied()).collect()
    }

    /// A service that is no more leaves its flows to nobody.
    fn retire(&mut self, service: Service) {
        self.left.push((service.region(), None));
        self.retired.extend(service.backends.iter().map(|backend| (backend.id, None)));
    }

    /// A lingering backend makes way for a service that has its address: replies of `nat` say nothing but where they
    /// come from, and what is sent to a VIP would come back.
    fn displace(&mut self) -> Vec<SocketAddr> {
        let mut claims: HashMap<(Protocol, IpAddr), Vec<(Ports, ServiceKey)>> = HashMap::new();
        let claiming = self.services.iter().filter(|service| service.config.mode.knows_replies_by_backend());
        for service in claiming {
            let key = service.config.key;
            for backend in service.backends.iter().filter(|backend| !backend.removed) {
                let address = backend.config.address;
                claims
                    .entry((key.protocol, address.ip()))
                    .or_default()
                    .push((service.reply_ports(address), key));
            }
        }
        let mut vips = PrefixMap::<()>::new();
        self.services.iter().for_each(|service| *vips.entry(service.config.key.address.vip) = ());
        let mut displaced = Vec::new();
        for service in &mut self.services {
            let (key, replies) = (service.config.key, service.config.mode.knows_replies_by_backend());
            let backends = std::mem::take(&mut service.backends);
            let stays = |backend: &Backend| {
                let address = backend.config.address;
                let ports = service.reply_ports(address);
                let is_claim =
                    |(others, other): &(Ports, ServiceKey)| *other != key && others.overlaps(ports);
                let claims = claims.get(&(key.protocol, address.ip()));
                let claimed = replies && claims.is_some_and(|claims| claims.iter().any(is_claim));
                !backend.removed || !claimed && vips.around(address.ip().into()).next().is_none()
            };
            let (staying, leaving): (Vec<_>, Vec<_>) = backends.into_iter().partition(stays);
            service.backends = staying;
            self.retired.extend(leaving.iter().map(|backend| (backend.id, None)));
            displaced.extend(leaving.iter().map(|backend| backend.config.address));
        }
        displaced
    }
}

/// Which service each of the configured ones goes on from: the one with the same address and protocol. One that has more
/// than one port keeps its flows, too, when it gets others: it is known by its name then.
pub(super) fn predecessors(before: &[Service], services: &[model::Service]) -> Vec<Option<ServiceKey>> {
    let keys: HashSet<ServiceKey> = services.iter().map(|config| config.key).collect();
    let known: HashSet<ServiceKey> = before.iter().map(|service| service.config.key).collect();
    let is_wide = |key: &ServiceKey| key.address.exact().is_none();
    let gone = before.iter().filter(|service| !keys.contains(&service.config.key));
    let gone = gone.filter(|service| is_wide(&service.config.key));
    let gone: HashMap<&str, ServiceKey> =
        gone.map(|service| (service.config.name.as_str(), service.config.key)).collect();
    let by_name = |config: &model::Service| {
        let key = gone.get(config.name.as_str()).filter(|_| is_wide(&config.key))?;
        let same = key.protocol == config.key.protocol && key.address.vip == config.key.address.vip;
        same.then_some(*key)
    };
    let predecessor = |config: &model::Service| match known.contains(&config.key) {
        true => Some(config.key),
        false => by_name(config),
    };
    services.iter().map(predecessor).collect()
}

/// What new services and backends are given.
struct Allocation {
    ids: std::vec::IntoIter<u32>,
    regions: std::vec::IntoIter<u32>,
}

/// The first gap of the arena that a table fits into; it is taken then.
fn find_gap(taken: &mut Vec<Range<u32>>, size: u32, room: u32) -> Option<u32> {
    taken.sort_by_key(|region| region.start);
    let mut first = 0;
    for region in taken.iter() {
        if region.start - first >= size {
            break;
        }
        first = region.end;
    }
    let end = first.checked_add(size).filter(|end| *end <= room)?;
    taken.push(first..end);
    Some(first)
}

/// Numbers for lists that no service has.
fn free_lists(
    before: &HashMap<ServiceKey, Service>,
    predecessors: &[Option<ServiceKey>],
) -> impl Iterator<Item = u32> + use<> {
    let kept = predecessors.iter().flatten().filter_map(|key| before.get(key));
    let taken: HashSet<u32> = kept.map(|service| service.list).collect();
    (1..).filter(move |list| !taken.contains(list))
}

impl Service {
    fn new(
        config: model::Service,
        first_slot: u32,
        ids: &mut impl Iterator<Item = u32>,
        lists: &mut impl Iterator<Item = u32>,
    ) -> Self {
        let mut service = Self {
            table: Table::new(first_slot, config.table_size),
            backends: Vec::new(),
            members: Vec::new(),
            holding: BTreeSet::new(),
            remembering: config.remember,
            cold_start: true,
            disabled: None,
            list: 0,
            config,
        };
        service.take_backends(ids);
        service.take_list(lists);
        service
    }

    fn reconfigured(
        mut self,
        config: model::Service,
        ids: &mut impl Iterator<Item = u32>,
        lists: &mut impl Iterator<Item = u32>,
    ) -> Self {
        self.config = config;
        self.take_backends(ids);
        self.take_list(lists);
        self
    }

    /// The backends of the configuration in its order, those that were there before with all that is known of them;
    /// then those that it has no more.
    fn take_backends(&mut self, ids: &mut impl Iterator<Item = u32>) {
        let mut before: BTreeMap<SocketAddr, Backend> =
            self.backends.drain(..).map(|backend| (backend.config.address, backend)).collect();
        let kind = &self.config.health.kind;
        for config in &self.config.backends {
            let backend = match before.remove(&config.address) {
                Some(backend) => backend.reconfigured(config),
                None => Backend::new(config, ids.next().expect("every new backend was given an id")),
            };
            self.backends.push(Backend { health_kind: kind.clone(), ..backend });
        }
        let gone = before.into_values();
        let gone = gone.map(|backend| Backend { removed: true, health_kind: kind.clone(), ..backend });
        self.backends.extend(gone);
    }

    fn take_list(&mut self, lists: &mut impl Iterator<Item = u32>) {
        if self.config.direct.is_empty() && self.config.quic.is_none() {
            self.list = 0;
        } else if self.list == 0 {
            self.list = lists.next().expect("lists do not run out");
        }
    }

    /// What cannot change while flows know the service.
    fn check_unchanged(&self, config: &model::Service) -> Result<(), Refusal> {
        let service = || config.name.clone();
        let (current, wanted) = (self.config.mode.name(), config.mode.name());
        if current != wanted {
            return Err(Refusal::Mode { service: service(), current, wanted });
        }
        let (current, wanted) = (self.config.affinity, config.affinity);
        if current != wanted {
            return Err(Refusal::Affinity { service: service(), current, wanted });
        }
        let (current, wanted) = (self.config.table_size, config.table_size);
        if current != wanted {
            return Err(Refusal::TableSize { service: service(), current, wanted });
        }
        Ok(())
    }

    fn has(&self, address: SocketAddr) -> bool {
        self.backends.iter().any(|backend| backend.config.address == address)
    }

    /// The ports that replies of a backend come from.
    fn reply_ports(&self, backend: SocketAddr) -> Ports {
        match backend.port() {
            0 => self.config.key.address.ports,
            port => Ports::one(port),
        }
    }

    fn region(&self) -> Range<u32> {
        self.table.first()..self.table.first() + self.config.table_size
    }
}

impl Backend {
    pub(super) fn new(config: &model::Backend, id: u32) -> Self {
        Self {
            config: config.clone(),
            id,
            word: Word::default(),
            report: None,
            successes: 0,
            next_hop: None,
            obstacle: None,
            drain: None,
            repicked: 0,
            removed: false,
            unnamed: None,
            health_kind: crate::health::Kind::None,
        }
    }

    /// A weight that the file changes is the operator's latest word on it.
    fn reconfigured(mut self, config: &model::Backend) -> Self {
        if self.config.weight != config.weight {
            self.word.weight = None;
        }
        Self { config: config.clone(), removed: false, unnamed: None, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_filled_from_the_start() {
        let mut taken = vec![0..7, 20..31];
        assert_eq!(find_gap(&mut taken, 13, 40), Some(7));
        assert_eq!(find_gap(&mut taken, 2, 40), Some(31));
        assert_eq!(find_gap(&mut taken, 7, 40), Some(33));
        assert_eq!(find_gap(&mut taken, 1, 40), None);
    }
}
