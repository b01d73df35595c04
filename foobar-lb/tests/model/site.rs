//! The service that a story is about, its backends, and the network around them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use foobar_lb::{
    health::{self, Report, Target},
    image::endpoint,
    model::{self, Affinity, Health, Mode, ServiceKey, Unmatched, Vip},
    neighbour::{Link, NextHop, View},
};
use foobar_lb_ebpf::{
    flow::{hash, hash_key, reduce},
    layout::FlowKey,
};

use super::{
    frames,
    story::{BACKENDS, Setting, name},
};

/// The key of the flow hash and of the table.
pub const SEED: u64 = 7;
/// Of the table.
pub const SLOTS: u32 = 13;
/// The only interface.
pub const INTERFACE: u32 = 1;

const MTU: u32 = 1500;

/// Where a client's flow belongs in the table.
pub fn place(setting: &Setting, client: u8) -> u32 {
    let end = |socket: SocketAddr| endpoint(socket, setting.protocol);
    let source = end((frames::CLIENT, frames::client_port(client)).into());
    let destination = end((frames::VIP, frames::SERVICE_PORT).into());
    reduce(hash(&hash_key(SEED), &FlowKey { source, destination }), SLOTS)
}

/// Where a backend listens.
pub fn server(backend: u8) -> SocketAddr {
    (frames::backend_address(backend), 8080).into()
}

/// The backend that listens there.
pub fn number(server: SocketAddr) -> u8 {
    let backend = |number: &u8| frames::backend_address(*number) == server.ip();
    (0..BACKENDS).find(backend).expect("there are no others")
}

/// A backend as it is configured.
pub fn backend(number: u8) -> model::Backend {
    model::Backend { name: name(number), address: server(number), weight: 1, quic_id: None }
}

/// The service as it is configured at first.
pub fn configure(setting: &Setting) -> model::Service {
    let Setting { protocol, udp_drain, remember, when_empty, transition, idle, drain_time, backends, .. } =
        *setting;
    model::Service {
        name: "www".to_owned(),
        key: ServiceKey { address: SocketAddr::from((frames::VIP, frames::SERVICE_PORT)).into(), protocol },
        mode: Mode::Nat,
        table_size: SLOTS,
        transition,
        idle,
        drain_time,
        udp_drain,
        remember,
        direct: Vec::new(),
        affinity: Affinity::Flow,
        quic: None,
        mss: None,
        vip: Vip { unmatched: Unmatched::Pass, ping: true },
        announce: false,
        when_empty,
        max_moved: None,
        health: health::Settings {
            port: None,
            kind: health::Kind::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 1,
        },
        backends: backends.iter().map(backend).collect(),
    }
}

/// A network in which every backend can be reached.
pub fn view() -> View {
    let mut view = View::default();
    let mac = frames::BALANCER_MAC;
    let link = Link { name: "eth0".to_owned(), mac: Some(mac), up: true, mtu: MTU, ..Link::default() };
    view.links.insert(INTERFACE, link);
    for backend in 0..BACKENDS {
        let destination = [2, 0, 0, 0, 1, backend];
        let hop =
            NextHop { interface: INTERFACE, source: mac, destination, mtu: MTU, on_link: true, local: None };
        view.next_hops.insert(frames::backend_address(backend).into(), hop);
    }
    view
}

/// What a health check says.
pub fn report(target: Target, health: Health, now: Instant) -> Report {
    Report {
        target,
        health,
        transition: None,
        since: now,
        transitions: 0,
        inconclusive: 0,
        reason: String::new(),
        latency: None,
    }
}
