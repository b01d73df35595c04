//! What one configuration changes of another, key by key, in the words of the configuration and the shapes of the API.
//! What moves is left to [`State::preview`](crate::state::State::preview).

use std::{collections::HashMap, fmt::Display, net::SocketAddr, time::Duration};

use humantime::format_duration;

use crate::{
    api::{Change, PlannedBackend, PlannedService, Turn},
    config::Config,
    health::{self, Kind},
    model::{
        Backend, Encapsulation, Mode, Mss, Place, Pool, Remember, Service, Tunnel, UdpDrain, Unmatched,
        WhenEmpty,
    },
};

/// Keys by name, each with its value.
type Keys = Vec<(&'static str, String)>;

/// The section that has changed in a way that takes effect at a restart only, if one has.
pub fn needs_restart(before: &Config, after: &Config) -> Option<&'static str> {
    if before.daemon.needs_restart(&after.daemon) {
        return Some("[daemon]");
    }
    (before.metrics_listen != after.metrics_listen).then_some("[metrics]")
}

/// Keys outside of services that change and can do so while the daemon runs.
pub fn of_daemon(before: &Config, after: &Config) -> Vec<Change> {
    let keys = |config: &Config| {
        vec![("max_moved", optional(config.daemon.max_moved)), ("watch", config.daemon.watch.to_string())]
    };
    differences(keys(before), keys(after))
}

/// A service that was not there before.
pub fn added(service: &Service) -> PlannedService {
    let backends = service.backends.iter().map(|backend| planned(backend, Turn::Added));
    PlannedService { backends: backends.collect(), slots_moved: Some(0), ..entry(service, Turn::Added) }
}

/// A service that is there no more.
pub fn removed(service: &Service) -> PlannedService {
    entry(service, Turn::Removed)
}

/// A service that is there before and after; none if it stays as it is.
pub fn between(before: &Service, after: &Service) -> Option<PlannedService> {
    let keys = differences(service_keys(before), service_keys(after));
    let backends = between_backends(before, after);
    let same = keys.is_empty() && backends.is_empty();
    (!same).then(|| PlannedService { keys, backends, ..entry(after, Turn::Changed) })
}

fn entry(service: &Service, turn: Turn) -> PlannedService {
    PlannedService {
        name: service.name.clone(),
        address: service.key.address.to_string(),
        protocol: service.key.protocol.to_string(),
        turn,
        keys: Vec::new(),
        backends: Vec::new(),
        slots: service.table_size,
        slots_moved: None,
        max_moved: service.max_moved.map(|most| most.to_string()),
        flows_on_moved: None,
        transition_seconds: service.transition.as_secs(),
    }
}

/// In the order of the configuration, then those that it has no more.
fn between_backends(before: &Service, after: &Service) -> Vec<PlannedBackend> {
    let mut gone: HashMap<SocketAddr, &Backend> =
        before.backends.iter().map(|backend| (backend.address, backend)).collect();
    let mut planned_backends = Vec::new();
    for backend in &after.backends {
        let Some(known) = gone.remove(&backend.address) else {
            planned_backends.push(planned(backend, Turn::Added));
            continue;
        };
        let keys = differences(backend_keys(known), backend_keys(backend));
        if !keys.is_empty() {
            planned_backends.push(PlannedBackend { keys, ..planned(backend, Turn::Changed) });
        }
    }
    let leaving = before.backends.iter().filter(|backend| gone.contains_key(&backend.address));
    let stay = after.drain_time.map(|time| time.as_secs());
    planned_backends.extend(
        leaving.map(|backend| PlannedBackend { flows_stay_seconds: stay, ..planned(backend, Turn::Removed) }),
    );
    planned_backends
}

fn planned(backend: &Backend, turn: Turn) -> PlannedBackend {
    PlannedBackend {
        name: backend.name.clone(),
        address: Place(backend.address).to_string(),
        turn,
        keys: Vec::new(),
        flows: None,
        flows_stay_seconds: None,
    }
}

fn differences(before: Keys, after: Keys) -> Vec<Change> {
    let both = before.into_iter().zip(after).filter(|((_, from), (_, to))| from != to);
    both.map(|((key, from), (_, to))| Change { key: key.to_owned(), from, to }).collect()
}

fn service_keys(service: &Service) -> Keys {
    let Service { name, key, affinity, quic, table_size, transition, idle, drain_time, direct, .. } = service;
    let mut keys = vec![
        ("name", name.clone()),
        ("address", key.address.to_string()),
        ("affinity", affinity.to_string()),
        ("table_size", table_size.to_string()),
        ("transition", time(*transition)),
        ("idle", time(*idle)),
        ("drain_time", drain_time.map_or_else(|| "0s".to_owned(), time)),
        ("udp_drain", udp_drain(service.udp_drain).to_owned()),
        ("remember", remember(service.remember).to_owned()),
        ("direct", list(direct)),
        ("mss", mss(service.mss)),
        ("announce", service.announce.to_string()),
        ("when_empty", when_empty(service.when_empty).to_owned()),
        ("max_moved", optional(service.max_moved)),
        ("unmatched", unmatched(service.vip.unmatched).to_owned()),
        ("ping", service.vip.ping.to_string()),
        ("quic.server_id_length", optional(quic.map(|quic| quic.server_id_length))),
        ("quic.config_rotation", optional(quic.map(|quic| quic.config_rotation))),
    ];
    keys.extend(mode_keys(&service.mode));
    keys.extend(health_keys(&service.health));
    keys
}

/// All keys of all modes, so that those of two modes can be compared.
fn mode_keys(mode: &Mode) -> Keys {
    let none = || "none".to_owned();
    let (tunnel, pool) = match mode {
        Mode::Nat | Mode::Dsr => (None, None),
        Mode::Tunnel(tunnel) => (Some(tunnel), None),
        Mode::Snat(pool) | Mode::Hairpin(pool) => (None, Some(pool)),
    };
    let encapsulation = tunnel.map(|tunnel| match tunnel.encapsulation {
        Encapsulation::Ipip => "ipip".to_owned(),
        Encapsulation::Gue(port) => format!("gue, port {port}"),
    });
    let snat = if matches!(mode, Mode::Hairpin(_)) { "hairpin".to_owned() } else { none() };
    vec![
        ("mode", mode.name().to_owned()),
        ("encapsulation", encapsulation.unwrap_or_else(none)),
        ("outer_source", tunnel.map_or_else(none, |Tunnel { sources, .. }| list(sources))),
        ("snat", snat),
        ("snat_source", pool.map_or_else(none, |Pool { addresses, .. }| list(addresses))),
    ]
}

fn health_keys(settings: &health::Settings) -> Keys {
    let health::Settings { kind, port, interval, timeout, rise, fall } = settings;
    let http = match kind {
        Kind::Http(http) => Some(http),
        Kind::None | Kind::Tcp => None,
    };
    let name = match kind {
        Kind::None => "none",
        Kind::Tcp => "tcp",
        Kind::Http(_) => "http",
    };
    let status = http.map(|http| format!("{}-{}", http.status.start(), http.status.end()));
    vec![
        ("health.kind", name.to_owned()),
        ("health.port", optional(*port)),
        ("health.path", optional(http.map(|http| &http.path))),
        ("health.host", optional(http.and_then(|http| http.host.as_ref()))),
        ("health.status", optional(status)),
        ("health.body", optional(http.and_then(|http| http.body.as_ref()))),
        ("health.interval", time(*interval)),
        ("health.timeout", time(*timeout)),
        ("health.rise", rise.to_string()),
        ("health.fall", fall.to_string()),
    ]
}

fn backend_keys(backend: &Backend) -> Keys {
    let id =
        backend.quic_id.as_ref().map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    vec![("name", backend.name.clone()), ("weight", backend.weight.to_string()), ("quic_id", optional(id))]
}

fn udp_drain(udp_drain: UdpDrain) -> &'static str {
    match udp_drain {
        UdpDrain::Keep => "keep",
        UdpDrain::Switch => "switch",
    }
}

fn remember(remember: Remember) -> &'static str {
    match remember {
        Remember::Needed => "needed",
        Remember::All => "all",
    }
}

fn when_empty(when_empty: WhenEmpty) -> &'static str {
    match when_empty {
        WhenEmpty::FailOpen => "fail-open",
        WhenEmpty::Refuse => "refuse",
    }
}

fn unmatched(unmatched: Unmatched) -> &'static str {
    match unmatched {
        Unmatched::Pass => "pass",
        Unmatched::Drop => "drop",
        Unmatched::Reject => "reject",
    }
}

fn mss(mss: Option<Mss>) -> String {
    match mss {
        None => "none".to_owned(),
        Some(Mss::Auto) => "auto".to_owned(),
        Some(Mss::Bytes(bytes)) => bytes.to_string(),
    }
}

fn time(time: Duration) -> String {
    format_duration(time).to_string()
}

fn optional(value: Option<impl Display>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

fn list(values: &[impl Display]) -> String {
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    format!("[{}]", texts.join(", "))
}
