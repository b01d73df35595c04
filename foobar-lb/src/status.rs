//! What the daemon tells about itself: gathered from the state and the counters, in the words of the API.

use std::time::Instant;

use foobar_lb_ebpf::layout::{NO_BACKEND, Traffic};

use crate::{
    api,
    bpf::{self, Bpf, Link},
    image::Mac,
    model::WhenEmpty,
    state::{Backend, Service, Standing, State},
};

/// Gathers the status.
pub fn gather<'l>(
    state: &State,
    bpf: &Bpf,
    links: impl Iterator<Item = &'l Link>,
    failure: Option<&str>,
    started: Instant,
) -> Result<api::Status, bpf::Error> {
    let reasons = bpf.reasons()?;
    Ok(api::Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: started.elapsed().as_secs(),
        failure: failure.map(str::to_owned),
        interfaces: links
            .map(|link| api::Interface { name: link.interface.clone(), mode: link.mode.to_string() })
            .collect(),
        services: state
            .services
            .iter()
            .map(|service| gather_service(service, state, bpf))
            .collect::<Result<_, _>>()?,
        reasons: reasons
            .into_iter()
            .map(|(reason, count)| {
                let counted = api::Count {
                    packets: count.packets,
                    bytes: count.bytes,
                    help: reason.help().trim().to_owned(),
                };
                (reason.name().to_owned(), counted)
            })
            .collect(),
    })
}

fn gather_service(service: &Service, state: &State, bpf: &Bpf) -> Result<api::Service, bpf::Error> {
    let owned = service.table.owned();
    let backends = service
        .backends
        .iter()
        .zip(service.standings())
        .map(|(backend, standing)| {
            let slots = owned.get(&backend.id).copied().unwrap_or(0);
            Ok(gather_backend(backend, standing, slots, state, bpf.traffic(backend.id)?))
        })
        .collect::<Result<Vec<_>, bpf::Error>>()?;
    let total = |part: fn(&api::Backend) -> u64| backends.iter().map(part).sum();
    let config = &service.config;
    Ok(api::Service {
        name: config.name.clone(),
        address: config.key.address,
        protocol: config.key.protocol.to_string(),
        mode: "nat".to_owned(),
        slots: config.table_size,
        slots_moving: service.table.unsettled() as u32,
        slots_unowned: owned.get(&NO_BACKEND).copied().unwrap_or(0),
        fails_open: service.fails_open(),
        when_empty: match config.when_empty {
            WhenEmpty::FailOpen => "fail-open",
            WhenEmpty::Refuse => "refuse",
        }
        .to_owned(),
        packets: total(|backend| backend.packets),
        bytes: total(|backend| backend.bytes),
        reply_packets: total(|backend| backend.reply_packets),
        reply_bytes: total(|backend| backend.reply_bytes),
        backends,
    })
}

fn gather_backend(
    backend: &Backend,
    standing: Standing,
    slots: u32,
    state: &State,
    traffic: Traffic,
) -> api::Backend {
    let next_hop = backend.next_hop.map(|hop| {
        let link = state.view().links.get(&hop.interface);
        let interface = link.map_or_else(|| hop.interface.to_string(), |link| link.name.clone());
        format!("{} via {interface}", Mac(hop.destination))
    });
    let report = backend.report.as_ref();
    api::Backend {
        name: backend.config.name.clone(),
        address: backend.config.address,
        weight: backend.config.weight,
        admin: backend.config.admin().to_string(),
        health: backend.health().to_string(),
        reason: backend.reason(),
        since_seconds: report.map(|report| report.since.elapsed().as_secs()),
        latency_ms: report.and_then(|report| report.latency).map(|latency| latency.as_secs_f64() * 1e3),
        transitions: report.map_or(0, |report| report.transitions),
        eligible: standing.eligible,
        serves: standing.serves,
        slots,
        next_hop,
        packets: traffic.forward.packets,
        bytes: traffic.forward.bytes,
        reply_packets: traffic.reply.packets,
        reply_bytes: traffic.reply.bytes,
    }
}
