//! What the daemon tells about itself: gathered from the state and the counters, in the words of the API.

use std::{collections::BTreeMap, fmt::Display, time::Instant};

use foobar_lb_ebpf::layout::NO_BACKEND;

use crate::{
    api,
    bpf::{self, Bpf, Link},
    fingerprint::{Fingerprint, fingerprints},
    image::{Image, Mac},
    keeper::Keeper,
    model::{self, Admin, Health, Place, WhenEmpty},
    reload::Reload,
    state::{Backend, Drain, Origin, Service, Standing, State},
    sweep::{Flows, monotonic},
};

/// Where all of it comes from.
pub struct Sources<'s> {
    /// What is known.
    pub state: &'s State,
    /// The counters.
    pub bpf: &'s Bpf,
    /// What the maps hold.
    pub image: &'s Image,
    /// Flows remembered on each backend, by its id, if they were counted.
    pub flows: Option<&'s BTreeMap<u32, Flows>>,
    /// Why the maps are not as they should be.
    pub failure: Option<&'s str>,
    /// The operator's words.
    pub keeper: &'s Keeper,
    /// The configuration in force.
    pub reload: &'s Reload,
    /// When the daemon started.
    pub started: Instant,
}

impl Sources<'_> {
    /// Gathers the status.
    pub fn gather<'l>(
        &self,
        links: impl Iterator<Item = &'l Link>,
        program_id: u32,
    ) -> Result<api::Status, bpf::Error> {
        let prints = fingerprints(self.image, &self.state.hash_key());
        let services = self.state.services.iter().map(|service| self.gather_service(service, &prints));
        let reasons = self.bpf.reasons()?.into_iter().map(|(reason, count)| {
            let help = reason.help().trim().to_owned();
            (reason.name().to_owned(), api::Count { packets: count.packets, bytes: count.bytes, help })
        });
        Ok(api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            failure: self.failure.map(str::to_owned),
            config_seconds: self.reload.loaded.elapsed().as_secs(),
            reload_failure: self.reload.failure.as_ref().map(|failure| failure.why.clone()),
            reload_failed_seconds: self.reload.failure.as_ref().map(|failure| failure.at.elapsed().as_secs()),
            words_lost: self.keeper.lost.clone(),
            words_unkept: self.keeper.failure.clone(),
            program_id,
            interfaces: links
                .map(|link| api::Interface { name: link.interface.clone(), mode: link.mode.to_string() })
                .collect(),
            next_program: self.bpf.next_program().map(str::to_owned),
            services: services.collect::<Result<_, _>>()?,
            reasons: reasons.collect(),
        })
    }

    /// Gathers what is told of the backend at this position.
    pub fn gather_one(&self, service: &Service, position: usize) -> Result<api::Backend, bpf::Error> {
        let backend = &service.backends[position];
        let gathered = self.gather_backend(backend, service.standings()[position])?;
        let slots = service.table.owned().get(&backend.id).copied().unwrap_or(0);
        Ok(api::Backend { slots, drain: self.gather_drain(backend, service), ..gathered })
    }

    fn gather_service(
        &self,
        service: &Service,
        prints: &BTreeMap<u32, Fingerprint>,
    ) -> Result<api::Service, bpf::Error> {
        let owned = service.table.owned();
        let backends = service
            .backends
            .iter()
            .zip(service.standings())
            .map(|(backend, standing)| {
                let gathered = self.gather_backend(backend, standing)?;
                let slots = owned.get(&backend.id).copied().unwrap_or(0);
                Ok(api::Backend { slots, drain: self.gather_drain(backend, service), ..gathered })
            })
            .collect::<Result<Vec<_>, bpf::Error>>()?;
        let total = |part: fn(&api::Backend) -> u64| backends.iter().map(part).sum();
        let config = &service.config;
        Ok(api::Service {
            name: config.name.clone(),
            address: config.key.address.to_string(),
            protocol: config.key.protocol.to_string(),
            mode: service.config.mode.name().to_owned(),
            disabled: service.disabled.as_ref().map(|origin| saying("disabled", origin)),
            slots: config.table_size,
            first_slot: service.table.first(),
            fingerprint: prints.get(&service.table.first()).map(Fingerprint::to_string),
            slots_unsettled: service.table.unsettled() as u32,
            slots_unowned: owned.get(&NO_BACKEND).copied().unwrap_or(0),
            fails_open: service.fails_open(),
            when_empty: name_of(config.when_empty).to_owned(),
            packets: total(|backend| backend.packets),
            bytes: total(|backend| backend.bytes),
            reply_packets: total(|backend| backend.reply_packets),
            reply_bytes: total(|backend| backend.reply_bytes),
            backends,
        })
    }

    /// All but what the service's table knows.
    fn gather_backend(&self, backend: &Backend, standing: Standing) -> Result<api::Backend, bpf::Error> {
        let next_hop = backend.next_hop.map(|hop| {
            let link = self.state.view().links.get(&hop.interface);
            let interface = link.map_or_else(|| hop.interface.to_string(), |link| link.name.clone());
            format!("{} via {interface}", Mac(hop.destination))
        });
        let report = backend.report.as_ref();
        let traffic = self.bpf.traffic(backend.id)?;
        Ok(api::Backend {
            name: backend.config.name.clone(),
            address: Place(backend.config.address).to_string(),
            weight: backend.weight(),
            admin: backend.admin().to_string(),
            admin_said: backend.word.admin.as_ref().map(|said| saying(said.what, &said.origin)),
            weight_said: backend.word.weight.as_ref().map(|said| saying(said.what, &said.origin)),
            admin_configured: backend.configured_admin().to_string(),
            weight_configured: backend.config.weight,
            drain: None,
            repicked: backend.repicked + traffic.repicked,
            health: backend.health().to_string(),
            reason: backend.reason(),
            since_seconds: report.map(|report| report.since.elapsed().as_secs()),
            checked: backend.is_checked(),
            successes: backend.successes,
            latency_ms: report.and_then(|report| report.latency).map(|latency| latency.as_secs_f64() * 1e3),
            transitions: report.map_or(0, |report| report.transitions),
            eligible: standing.eligible,
            serves: standing.serves,
            slots: 0,
            next_hop,
            packets: traffic.forward.packets,
            bytes: traffic.forward.bytes,
            reply_packets: traffic.reply.packets,
            reply_bytes: traffic.reply.bytes,
        })
    }

    fn gather_drain(&self, backend: &Backend, service: &Service) -> Option<api::Drain> {
        let Drain { since, over } = backend.drain?;
        let seconds_until = |end: Instant| end.saturating_duration_since(Instant::now()).as_secs();
        let model::Service { transition, drain_time, .. } = service.config;
        let flows = self.flows.map(|flows| flows.get(&backend.id).copied().unwrap_or_default());
        let last_end = service.table.last_end(backend.id, transition);
        Some(api::Drain {
            seconds: since.elapsed().as_secs(),
            seen: flows.map(|flows| flows.seen),
            closing: flows.map(|flows| flows.closing),
            quietest_seconds: flows
                .and_then(|flows| flows.quietest)
                .map(|seen| monotonic().saturating_sub(seen).as_secs()),
            silent_for_seconds: last_end.map(seconds_until),
            remaining_seconds: drain_time.filter(|_| !over).map(|limit| seconds_until(since + limit)),
            over,
        })
    }
}

/// One line on how the services are: `3 of 3 services up, 7 of 8 backends up`, and what is not as it should be. A service
/// is up if one of its backends is and takes new flows.
pub fn summarize(state: &State, reload: &Reload, failure: Option<&str>) -> String {
    let is_up = |backend: &Backend| backend.health() == Health::Up;
    let takes = |(backend, standing): (&Backend, Standing)| is_up(backend) && standing.eligible;
    let serves = |service: &&Service| service.backends.iter().zip(service.standings()).any(takes);
    let configured = || state.backends().filter(|backend| backend.admin() != Admin::Removed);
    let mut line = format!(
        "{} of {} services up, {} of {} backends up",
        state.services.iter().filter(serves).count(),
        state.services.len(),
        configured().filter(|backend| is_up(backend)).count(),
        configured().count()
    );
    let refused = reload.failure.as_ref().map(|failure| ("not reloaded", failure.why.as_str()));
    let behind = failure.map(|why| ("the maps are not up to date", why));
    for (what, why) in refused.into_iter().chain(behind) {
        // What is wrong with a file is told in many lines, the first of which has the place and the mistake.
        let why = why.lines().next().unwrap_or_default();
        line.push_str(&format!("; {what}: {why}"));
    }
    line
}

fn name_of(when_empty: WhenEmpty) -> &'static str {
    match when_empty {
        WhenEmpty::FailOpen => "fail-open",
        WhenEmpty::Refuse => "refuse",
    }
}

fn saying(word: impl Display, Origin { by, at, until }: &Origin) -> api::Saying {
    let until = until.map(|until| until.to_string());
    api::Saying { word: word.to_string(), by: by.clone(), at: at.to_string(), until }
}
