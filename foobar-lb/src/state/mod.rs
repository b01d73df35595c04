//! What the control plane knows, and what follows from it: the tables and the wanted image. No I/O and no
//! clock: events and `now` come in, an [`Image`](crate::image::Image) goes out.
//!
//! `services` takes in a configuration, `recall` what the maps hold already, `word` what the operator says, `preview` tells what a configuration would do, `quic` knows whom connection ids name, `obstacle`
//! what a mode asks of a next hop, `vlan` which VLAN devices are served beside attached interfaces, `render` writes the
//! image, `vips` the part of it that is about VIPs; this file has what is known and what follows for each backend.

mod obstacle;
mod preview;
mod quic;
mod recall;
mod render;
mod services;
mod vips;
mod vlan;
mod word;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::{Duration, Instant},
};

use foobar_lb_ebpf::{
    flow::{HashKey, hash_key},
    layout::{self, NO_BACKEND},
};

use self::vips::Groups;
pub use self::{
    obstacle::Obstacle,
    preview::{Moves, Preview, TooMuch},
    recall::Recalled,
    services::{Refusal, Room},
    word::{Origin, Said, Terms, Unheard, Words},
};
use crate::{
    health::{self, Report},
    maglev::{self, Member},
    model::{self, Admin, Down, Eligibility, Health, Protocol, Remember, UdpDrain, WhenEmpty, eligibility},
    neighbour::{self, View},
    slots::Table,
    sweep::{Found, GRACE},
};

/// All that is known. A clone shares its tables with the original until one of them changes.
#[derive(Clone)]
pub struct State {
    /// The services, in the order of the configuration.
    pub services: Vec<Service>,
    /// The attached interfaces, by index.
    pub attached: BTreeMap<u32, layout::Interface>,
    view: View,
    seed: u64,
    groups: Groups,
    /// Ids that a remembered flow may still name, and since when nothing else does.
    retired: BTreeMap<u32, Option<Instant>>,
    /// Regions of the arena that a packet under way may still read, and since when no service has them.
    left: Vec<(Range<u32>, Option<Instant>)>,
}

/// A service and what became of it.
#[derive(Clone)]
pub struct Service {
    /// As configured.
    pub config: model::Service,
    /// Its backends, in the order of the configuration, and then those that the configuration has no more.
    pub backends: Vec<Backend>,
    /// Who owns its slots.
    pub table: Table,
    /// Whom the table was built for.
    members: Vec<(u32, Member)>,
    /// Who may keep flows that are not remembered.
    holding: BTreeSet<u32>,
    /// Which flows were remembered so far.
    remembering: Remember,
    /// Since the start some backend has not been measured yet. Those that have not take new flows until they
    /// are: if they gave them to the first that answers, most slots would move and move back.
    cold_start: bool,
    /// Who disabled it, if it is.
    pub disabled: Option<Origin>,
    /// The number of its lists, that of direct clients and that of server ids; 0: it has none.
    list: u32,
}

/// A backend and what is known of it.
#[derive(Clone)]
pub struct Backend {
    /// As configured, or as it last was.
    pub config: model::Backend,
    /// Its id in the maps.
    pub id: u32,
    /// What the operator said of it.
    pub word: Word,
    /// The last that its health check said.
    pub report: Option<Report>,
    /// How many of its probes have succeeded since the last that did not.
    pub successes: u64,
    /// Where its packets go.
    pub next_hop: Option<neighbour::NextHop>,
    /// Why they cannot go there.
    pub obstacle: Option<Obstacle>,
    /// How its flows leave it.
    pub drain: Option<Drain>,
    /// Remembered flows that had to leave it while they were alive, and were silent: those that sent are counted by
    /// the data path.
    pub repicked: u64,
    removed: bool,
    /// Since when no slot and no connection id names it.
    unnamed: Option<Instant>,
    health_kind: health::Kind,
}

/// The operator's word about a backend, which counts more than the configuration's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Draining or disabled, if one of them was said.
    pub admin: Option<Said<Admin>>,
    /// Its weight, if one was said.
    pub weight: Option<Said<u16>>,
}

/// A drain under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// When it began.
    pub since: Instant,
    /// The drain time is over: known flows are re-picked.
    pub over: bool,
}

/// What follows for a backend from all that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// New flows are sent to it.
    pub eligible: bool,
    /// Known flows may stay.
    pub serves: bool,
    /// Flows that are not remembered may stay, if it had them before.
    pub holds: bool,
}

impl Backend {
    /// The operator's word, else the configuration's; a weight of 0 drains.
    pub fn admin(&self) -> Admin {
        match self.word.admin.as_ref().map(|said| said.what) {
            Some(Admin::Disabled) => Admin::Disabled,
            _ if self.removed => Admin::Removed,
            Some(admin) => admin,
            None if self.weight() == 0 => Admin::Draining,
            None => Admin::Enabled,
        }
    }

    /// What the configuration says: that it is there, and not with a weight of 0.
    pub fn configured_admin(&self) -> Admin {
        match (self.removed, self.config.weight) {
            (true, _) => Admin::Removed,
            (false, 0) => Admin::Draining,
            (false, _) => Admin::Enabled,
        }
    }

    /// Its share of new flows relative to its siblings.
    pub fn weight(&self) -> u16 {
        self.word.weight.as_ref().map_or(self.config.weight, |said| said.what)
    }

    /// Whether its health is measured.
    pub fn is_checked(&self) -> bool {
        self.health_kind != health::Kind::None
    }

    /// Its health. One that is not checked is as well as its next hop; one that was never reachable is silent, as is
    /// one whose probes get through where clients' packets do not.
    pub fn health(&self) -> Health {
        if self.obstacle.is_some() {
            return Health::Down(Down::Silent);
        }
        match (&self.report, self.next_hop) {
            (_, None) if self.health_kind == health::Kind::None => Health::Down(Down::Silent),
            (Some(report), Some(_)) => report.health,
            (Some(Report { health: down @ Health::Down(_), .. }), None) => *down,
            (_, None) | (None, _) => Health::Unknown,
        }
    }

    /// What its health is said to be, for the operator.
    pub fn reason(&self) -> String {
        if let Some(obstacle) = &self.obstacle {
            return obstacle.to_string();
        }
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
        let admin = if self.drain.is_some_and(|drain| drain.over) { Admin::Disabled } else { self.admin() };
        eligibility(admin, self.health(), cold_start && self.next_hop.is_some())
    }

    /// Whether it may take new flows although the configuration has it no more.
    fn can_stand_in(&self) -> bool {
        let over = self.drain.is_some_and(|drain| drain.over);
        self.removed && !over && self.word.admin.is_none() && self.weight() > 0 && self.health() == Health::Up
    }

    /// Starts the clock of a drain, or stops it.
    fn follow_drain(&mut self, drain_time: Option<Duration>, now: Instant) {
        self.drain = self.admin().drains().then(|| {
            let since = self.drain.map_or(now, |drain| drain.since);
            Drain { since, over: drain_time.is_some_and(|limit| now.duration_since(since) >= limit) }
        });
    }
}

impl Service {
    /// What follows for each of its backends, in their order. Where a configuration replaces them all, those that it has
    /// no more stand in, if they are up, until one of the new ones has been measured. Else, if nobody is eligible and
    /// the service is to fail open, every enabled backend is taken.
    pub fn standings(&self) -> Vec<Standing> {
        let own = |backend: &Backend| backend.eligibility(self.cold_start);
        let udp = self.config.key.protocol == Protocol::Udp;
        let nobody = !self.backends.iter().any(|backend| own(backend).new_flows);
        let stands_in = |backend: &Backend| nobody && self.is_new() && backend.can_stand_in();
        let fail_open =
            nobody && self.config.when_empty == WhenEmpty::FailOpen && !self.backends.iter().any(stands_in);
        let standing = |backend: &Backend| {
            let Eligibility { new_flows, serves } = own(backend);
            let admin = backend.admin();
            // No kernel ends the UDP flows of a server that is gone.
            let serves = serves && !(udp && matches!(backend.health(), Health::Down(_)));
            let enabled = admin == Admin::Enabled && backend.next_hop.is_some() && backend.obstacle.is_none();
            let taken = fail_open && enabled || stands_in(backend);
            let switches = udp && admin.drains() && !taken && self.config.udp_drain == UdpDrain::Switch;
            let (eligible, serves) = (new_flows || taken, serves || taken);
            Standing { eligible, serves, holds: serves && !switches }
        };
        self.backends.iter().map(standing).collect()
    }

    /// Whether none of its backends has been measured yet.
    fn is_new(&self) -> bool {
        self.backends.iter().filter(|backend| !backend.removed).all(Backend::is_unmeasured)
    }

    /// Whether new flows go to a backend because it is eligible, not because none is.
    fn has_eligible(&self) -> bool {
        self.backends.iter().any(|backend| backend.eligibility(self.cold_start).new_flows)
    }

    /// Whether new flows are spread over backends that are not eligible, for want of any that is.
    pub fn fails_open(&self) -> bool {
        let eligible = |backend: &Backend| {
            backend.eligibility(self.cold_start).new_flows || self.is_new() && backend.can_stand_in()
        };
        !self.backends.iter().any(eligible) && self.standings().iter().any(|standing| standing.eligible)
    }

    /// The ids of the backends on which known flows may stay.
    pub fn serving(&self) -> BTreeSet<u32> {
        let backends = self.backends.iter().zip(self.standings());
        backends.filter(|(_, standing)| standing.serves).map(|(backend, _)| backend.id).collect()
    }

    /// Brings drains and the table up to date.
    fn assign(&mut self, seed: u64, now: Instant) {
        let Self { backends, config, .. } = self;
        backends.iter_mut().for_each(|backend| backend.follow_drain(config.drain_time, now));
        let standings = self.standings();
        let with_standings = || self.backends.iter().zip(&standings);
        let members: Vec<(u32, Member)> = with_standings()
            .filter(|(_, standing)| standing.eligible)
            .map(|(backend, _)| {
                (backend.id, Member { address: backend.config.address, weight: backend.weight() })
            })
            .collect();
        let holding: BTreeSet<u32> =
            with_standings().filter(|(_, standing)| standing.holds).map(|(backend, _)| backend.id).collect();
        if self.remembering != self.config.remember {
            self.remembering = self.config.remember;
            self.table.distrust(now);
        }
        // Most changes are about other services.
        if members != self.members || holding != self.holding {
            let owners = if members == self.members {
                self.table.slots().iter().map(|slot| slot.owner).collect()
            } else {
                owners(&members, self.config.table_size, seed)
            };
            self.table.assign(&owners, |id| holding.contains(&id), now);
            (self.members, self.holding) = (members, holding);
        }
        self.table.end_moves(self.config.transition, now);
        self.note_unnamed(now);
    }

    /// Of backends that the configuration has no more, since when neither a slot nor a connection id names them: that
    /// may be in use for as long as they serve.
    fn note_unnamed(&mut self, now: Instant) {
        let mut in_use = self.serving();
        let by_connection_id: BTreeSet<u32> = self.server_ids().into_values().collect();
        in_use.retain(|id| by_connection_id.contains(id));
        for backend in self.backends.iter_mut().filter(|backend| backend.removed) {
            let named = self.table.names(backend.id) || in_use.contains(&backend.id);
            backend.unnamed = if named { None } else { backend.unnamed.or(Some(now)) };
        }
    }
}

fn owners(members: &[(u32, Member)], table_size: u32, seed: u64) -> Vec<u32> {
    let (ids, members): (Vec<u32>, Vec<Member>) = members.iter().copied().unzip();
    let table = maglev::table(&members, table_size, seed);
    if table.is_empty() {
        return vec![NO_BACKEND; table_size as usize];
    }
    table.into_iter().map(|member| ids[member as usize]).collect()
}

impl State {
    /// The key of the flow hash.
    pub fn hash_key(&self) -> HashKey {
        hash_key(self.seed)
    }

    /// The seed of the flow hash.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A health check has something to say. Returns the service and the backend it is about.
    pub fn observe_health(&mut self, report: Report) -> Option<(&Service, &Backend)> {
        let service = self.services.iter_mut().find(|service| service.config.key == report.target.service)?;
        let position =
            service.backends.iter().position(|backend| backend.config.address == report.target.backend)?;
        let backend = &mut service.backends[position];
        backend.successes = report.latency.map_or(0, |_| backend.successes + 1);
        backend.report = Some(report);
        service.cold_start &= service.backends.iter().any(|backend| backend.is_unmeasured());
        Some((service, &service.backends[position]))
    }

    /// The network has changed. A backend whose neighbour does not answer at the moment keeps its next hop as
    /// long as its health check succeeds: the check is the better witness.
    pub fn observe_network(&mut self, view: View) {
        for backend in self.backends_mut() {
            let found = view.next_hops.get(&backend.config.address.ip()).copied();
            let last = backend.next_hop.filter(|hop| {
                backend.health_kind != health::Kind::None && view.links.contains_key(&hop.interface)
            });
            backend.next_hop = found.or(last);
        }
        self.view = view;
    }

    /// The backends of all services.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.services.iter().flat_map(|service| &service.backends)
    }

    /// Names of the interfaces that the data path serves: the attached ones and the VLAN devices on them.
    pub fn interface_names(&self) -> Vec<String> {
        self.interfaces().keys().filter_map(|index| Some(self.view.links.get(index)?.name.clone())).collect()
    }

    /// The network as last seen.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// When something will change by itself, at the earliest: a move or a drain will be over.
    pub fn next_change(&self) -> Option<Instant> {
        let of_service = |service: &Service| {
            let drains = service.backends.iter().filter_map(|backend| {
                let Drain { since, over } = backend.drain?;
                service.config.drain_time.filter(|_| !over).map(|limit| since + limit)
            });
            drains.chain(service.table.next_end(service.config.transition)).min()
        };
        self.services.iter().filter_map(of_service).min()
    }

    /// Whether flows may be remembered, or ids wait to be given again.
    pub fn needs_sweep(&self) -> bool {
        let needs = |service: &Service| {
            service.table.unsettled() > 0
                || service.config.remember == Remember::All
                || service.config.mode.pool().is_some()
                || service.backends.iter().any(|backend| backend.removed)
        };
        !self.retired.is_empty() || !self.left.is_empty() || self.services.iter().any(needs)
    }

    /// Settles the slots that have carried traces for long enough and to which no remembered flow belongs, and lets
    /// backends go that nothing names any more. A scan that was disturbed proves nothing, so it settles nothing.
    /// Returns whether backends are gone.
    pub fn settle(&mut self, found: &Found) -> bool {
        for backend in self.backends_mut() {
            backend.repicked += found.repicked.get(&backend.id).copied().unwrap_or(0);
        }
        let Some(now) = found.began else { return false };
        let long_ago =
            |since: &Option<Instant>| since.is_some_and(|since| now.duration_since(since) >= GRACE);
        self.left.retain(|(_, since)| !long_ago(since));
        if !found.whole {
            return false;
        }
        self.retired.retain(|id, since| !long_ago(since) || found.backends.contains(id));
        let mut gone = false;
        for service in &mut self.services {
            let first = service.table.first();
            let is_free = |place: &u32| !found.slots.contains(&(first + place));
            let traced = service.table.traced(GRACE, now).map(|(place, _)| place);
            let free: Vec<u32> = traced.filter(is_free).collect();
            free.into_iter().for_each(|place| service.table.settle(place, now));
            service.backends.retain(|backend| {
                let named = !long_ago(&backend.unnamed) || found.backends.contains(&backend.id);
                gone |= !named;
                named
            });
        }
        gone
    }

    /// The maps were not what the state said until now, so every time of grace begins now.
    pub fn renew_grace(&mut self, now: Instant) {
        self.retired.values_mut().chain(self.left.iter_mut().map(|(_, since)| since)).for_each(|since| {
            *since = Some(now);
        });
        for service in &mut self.services {
            service.table.renew_traces(now);
            let backends = service.backends.iter_mut();
            backends.filter_map(|backend| backend.unnamed.as_mut()).for_each(|since| *since = now);
        }
    }

    fn backends_mut(&mut self) -> impl Iterator<Item = &mut Backend> {
        self.services.iter_mut().flat_map(|service| &mut service.backends)
    }
}
