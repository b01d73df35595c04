//! What the control plane knows, and what follows from it: the tables and the wanted image. No I/O and no
//! clock: events and `now` come in, an [`Image`] goes out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use foobar_lb_ebpf::{
    flow::{hash, hash_key, reduce},
    layout::{
        self, Address, DirectKey, Endpoint, FlowKey, NO_BACKEND, NextHop, Reply, address_flag, backend_flag,
    },
};
use ipnet::IpNet;

use crate::{
    health::{self, Report},
    image::{DirectPrefix, Image, address, endpoint},
    maglev::{self, Member},
    model::{self, Down, Eligibility, Health, Protocol, WhenEmpty, eligibility},
    neighbour::{self, View},
    slots::Table,
};

/// All that is known.
pub struct State {
    /// The services, in the order of the configuration.
    pub services: Vec<Service>,
    /// The attached interfaces, by index.
    pub attached: BTreeMap<u32, layout::Interface>,
    view: View,
    seed: u64,
}

/// A service and what became of it.
pub struct Service {
    /// As configured.
    pub config: model::Service,
    /// Its backends, in the order of the configuration.
    pub backends: Vec<Backend>,
    /// Who owns its slots.
    pub table: Table,
    /// Whom the table was built for.
    members: Vec<Member>,
    /// Since the start some backend has not been measured yet. Those that have not take new flows until they
    /// are: if they gave them to the first that answers, most slots would move and move back.
    cold_start: bool,
    /// Its list of direct clients; 0: it has none.
    direct_list: u32,
}

/// A backend and what is known of it.
pub struct Backend {
    /// As configured.
    pub config: model::Backend,
    /// Its id in the maps.
    pub id: u32,
    /// The last that its health check said.
    pub report: Option<Report>,
    /// Where its packets go.
    pub next_hop: Option<neighbour::NextHop>,
    health_kind: health::Kind,
}

/// What follows for a backend from all that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// New flows are sent to it.
    pub eligible: bool,
    /// Known flows may stay.
    pub serves: bool,
}

impl Backend {
    /// Its health. One that is not checked is as well as its next hop; one that was never reachable is silent.
    pub fn health(&self) -> Health {
        match (&self.report, self.next_hop) {
            (_, None) if self.health_kind == health::Kind::None => Health::Down(Down::Silent),
            (Some(report), Some(_)) => report.health,
            (Some(Report { health: down @ Health::Down(_), .. }), None) => *down,
            (_, None) | (None, _) => Health::Unknown,
        }
    }

    /// What its health is said to be, for the operator.
    pub fn reason(&self) -> String {
        match (&self.report, self.next_hop) {
            (_, None) if self.health_kind == health::Kind::None => "no neighbour answers".to_owned(),
            (Some(report), None) if report.health == Health::Up => "no neighbour answers".to_owned(),
            (Some(report), _) => report.reason.clone(),
            (None, _) => "not probed yet".to_owned(),
        }
    }

    fn is_unmeasured(&self) -> bool {
        self.report.as_ref().is_none_or(|report| report.health == Health::Unknown)
    }

    fn eligibility(&self, cold_start: bool) -> Eligibility {
        eligibility(self.config.admin(), self.health(), cold_start && self.next_hop.is_some())
    }
}

impl Service {
    /// What follows for each of its backends, in their order. Where nobody is eligible and the service is to
    /// fail open, every backend with a weight is taken.
    pub fn standings(&self) -> Vec<Standing> {
        let own = |backend: &Backend| backend.eligibility(self.cold_start);
        let udp = self.config.key.protocol == Protocol::Udp;
        let fail_open = self.config.when_empty == WhenEmpty::FailOpen
            && !self.backends.iter().any(|backend| own(backend).new_flows);
        let standing = |backend: &Backend| {
            let Eligibility { new_flows, serves } = own(backend);
            // No kernel ends the UDP flows of a server that is gone.
            let serves = serves && !(udp && matches!(backend.health(), Health::Down(_)));
            let taken = fail_open && backend.config.weight > 0 && backend.next_hop.is_some();
            Standing { eligible: new_flows || taken, serves: serves || taken }
        };
        self.backends.iter().map(standing).collect()
    }

    /// Whether new flows are spread over backends that are not eligible, for want of any that is.
    pub fn fails_open(&self) -> bool {
        let eligible = |backend: &Backend| backend.eligibility(self.cold_start).new_flows;
        !self.backends.iter().any(eligible) && self.standings().iter().any(|standing| standing.eligible)
    }

    /// Brings the table up to date with the standings.
    fn assign(&mut self, seed: u64, now: Instant) {
        let standings = self.standings();
        let eligible = self.backends.iter().zip(&standings).filter(|(_, standing)| standing.eligible);
        let (ids, members): (Vec<u32>, Vec<Member>) = eligible
            .map(|(Backend { config, id, .. }, _)| {
                (*id, Member { address: config.address, weight: config.weight })
            })
            .unzip();
        let serving: BTreeSet<u32> = self
            .backends
            .iter()
            .zip(&standings)
            .filter_map(|(backend, standing)| standing.serves.then_some(backend.id))
            .collect();
        let owners = if members == self.members {
            self.table.slots().iter().map(|slot| slot.owner).collect()
        } else {
            self.owners(&ids, &members, seed)
        };
        self.members = members;
        self.table.assign(&owners, |id| serving.contains(&id), now);
        self.table.end_moves(self.config.transition, now);
    }

    fn owners(&self, ids: &[u32], members: &[Member], seed: u64) -> Vec<u32> {
        let table = maglev::table(members, self.config.table_size, seed);
        if table.is_empty() {
            return vec![NO_BACKEND; self.config.table_size as usize];
        }
        table.into_iter().map(|member| ids[member as usize]).collect()
    }
}

impl State {
    /// Nothing measured yet: tables from the start of the arena, ids in the order of the configuration.
    pub fn new(services: Vec<model::Service>, seed: u64) -> Self {
        let mut first_slot = 0;
        let mut next_id = 0;
        let mut lists = 1..;
        let services = services
            .into_iter()
            .map(|config| {
                let table = Table::new(first_slot, config.table_size);
                first_slot += config.table_size;
                let backends = config
                    .backends
                    .iter()
                    .map(|backend| {
                        next_id += 1;
                        Backend {
                            config: backend.clone(),
                            id: next_id - 1,
                            report: None,
                            next_hop: None,
                            health_kind: config.health.kind.clone(),
                        }
                    })
                    .collect();
                let direct_list =
                    if config.direct.is_empty() { 0 } else { lists.next().expect("lists do not run out") };
                Service { config, backends, table, members: Vec::new(), cold_start: true, direct_list }
            })
            .collect();
        Self { services, attached: BTreeMap::new(), view: View::default(), seed }
    }

    /// A health check has something to say. Returns the service and the backend it is about.
    pub fn observe_health(&mut self, report: Report) -> Option<(&Service, &Backend)> {
        let service = self.services.iter_mut().find(|service| service.config.key == report.target.service)?;
        let position =
            service.backends.iter().position(|backend| backend.config.address == report.target.backend)?;
        service.backends[position].report = Some(report);
        service.cold_start &= service.backends.iter().any(|backend| backend.is_unmeasured());
        Some((service, &service.backends[position]))
    }

    /// The network has changed. A backend whose neighbour does not answer at the moment keeps its next hop as
    /// long as its health check succeeds: the check is the better witness.
    pub fn observe_network(&mut self, view: View) {
        for backend in self.services.iter_mut().flat_map(|service| &mut service.backends) {
            let found = view.next_hops.get(&backend.config.address.ip()).copied();
            let last = backend.next_hop.filter(|hop| {
                backend.health_kind != health::Kind::None && view.links.contains_key(&hop.interface)
            });
            backend.next_hop = found.or(last);
        }
        self.view = view;
    }

    /// The network as last seen.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Brings all tables up to date and tells what the maps should hold.
    pub fn render(&mut self, now: Instant) -> Image {
        let seed = self.seed;
        self.services.iter_mut().for_each(|service| service.assign(seed, now));
        let mut image = Image { interfaces: self.attached.clone(), ..Image::default() };
        for local in &self.view.locals {
            image.addresses.insert(address(*local), address_flag::LOCAL);
        }
        for service in &self.services {
            self.render_service(service, &mut image);
        }
        image
    }

    fn render_service(&self, service: &Service, image: &mut Image) {
        let model::Service { key, transition, announce, .. } = &service.config;
        let end = endpoint(key.address, key.protocol);
        let flags = image.addresses.entry(end.address).or_default();
        *flags |= address_flag::VIP;
        // An address of this machine is answered for by its kernel.
        if *announce && *flags & address_flag::LOCAL == 0 {
            *flags |= address_flag::ANNOUNCED;
        }
        let first_slot = service.table.first();
        let slots = service.config.table_size;
        let idle = u64::try_from(transition.as_nanos()).unwrap_or(u64::MAX);
        image.services.insert(end, layout::Service { first_slot, slots, idle });
        image.tables.insert(first_slot, service.table.slots().to_vec());
        for prefix in &service.config.direct {
            image.direct.insert(direct_prefix(service.direct_list, prefix), 1);
        }
        for (backend, standing) in service.backends.iter().zip(service.standings()) {
            let rendered = self.render_backend(service, backend, standing);
            let reply = Reply { service: end, backend: backend.id, direct: service.direct_list };
            image.replies.insert(rendered.endpoint, reply);
            image.backends.insert(backend.id, rendered);
        }
    }

    fn render_backend(&self, service: &Service, backend: &Backend, standing: Standing) -> layout::Backend {
        layout::Backend {
            endpoint: endpoint(backend.config.address, service.config.key.protocol),
            flags: if standing.serves { backend_flag::SERVES } else { 0 },
            next_hop: backend.next_hop.map_or_else(NextHop::default, |hop| self.render_next_hop(hop)),
            subnet: self.subnet(backend.config.address.ip()),
        }
    }

    /// The program can only send by interfaces it is attached to; the rest is left to the kernel.
    fn render_next_hop(&self, hop: neighbour::NextHop) -> NextHop {
        let neighbour::NextHop { interface, source, destination, mtu } = hop;
        if self.attached.contains_key(&interface) {
            NextHop { interface, mtu, source, destination }
        } else {
            NextHop::default()
        }
    }

    /// The mask of the subnet a backend is reached in without a gateway; all ones where there is a gateway.
    fn subnet(&self, backend: IpAddr) -> Address {
        let prefix = self
            .view
            .connected
            .iter()
            .filter(|(prefix, _)| prefix.contains(&backend))
            .map(|(prefix, _)| prefix)
            .max_by_key(|prefix| prefix.prefix_len());
        let bits = prefix.map_or(u128::BITS, |prefix| {
            u32::from(prefix.prefix_len()) + u128::BITS - u32::from(prefix.max_prefix_len())
        });
        Address(u128::MAX.checked_shl(u128::BITS - bits).unwrap_or(0).to_be_bytes())
    }

    /// When a move of some slot will be over, at the earliest.
    pub fn next_end_of_moves(&self) -> Option<Instant> {
        let ends = self.services.iter().map(|service| service.table.next_end(service.config.transition));
        ends.flatten().min()
    }

    /// Whether some slot is not settled.
    pub fn is_unsettled(&self) -> bool {
        self.services.iter().any(|service| service.table.unsettled() > 0)
    }

    /// The slot, by service and place, that a remembered flow belongs to, and the silence it may keep.
    pub fn slot_of(&self, flow: &FlowKey) -> Option<(usize, u32, Duration)> {
        let matches = |service: &Service| is_for(&flow.destination, &service.config);
        let number = self.services.iter().position(matches)?;
        let config = &self.services[number].config;
        let place = reduce(hash(&hash_key(self.seed), flow), config.table_size);
        Some((number, place, config.transition))
    }

    /// Settles the slots that have carried traces for at least `grace` and that no remembered flow needs.
    pub fn settle(&mut self, needed: &BTreeSet<(usize, u32)>, grace: Duration, now: Instant) {
        for (number, service) in self.services.iter_mut().enumerate() {
            let free: Vec<u32> = service
                .table
                .traced(grace, now)
                .filter(|place| !needed.contains(&(number, *place)))
                .collect();
            free.into_iter().for_each(|place| service.table.settle(place, now));
        }
    }
}

fn is_for(end: &Endpoint, service: &model::Service) -> bool {
    *end == endpoint(service.key.address, service.key.protocol)
}

fn direct_prefix(list: u32, prefix: &IpNet) -> DirectPrefix {
    let mapped_bits = u128::BITS - u32::from(prefix.max_prefix_len());
    let bits = DirectKey::LIST_BITS + mapped_bits + u32::from(prefix.prefix_len());
    (DirectKey { list, client: address(prefix.network()).0 }, bits)
}
