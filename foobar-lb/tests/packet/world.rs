//! The network that all rows of the packet table play in: a balancer with clients on one side and backends on the
//! other, in both families at once, and the images its state renders. What is sent in it is left to the rows.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use foobar_lb::{
    health::{self, Report, Target},
    image::{Image, endpoint},
    model::{self, Down, Health, Mode, Protocol, Remember, ServiceKey, UdpDrain, WhenEmpty},
    neighbour::{Link, NextHop, View},
    state::State,
    twin::Route,
};
use foobar_lb_ebpf::{
    layout::{Endpoint, FlowKey, Interface},
    reason::Reason,
};
use ipnet::IpNet;

/// The key of the flow hash and of the Maglev tables.
pub const SEED: u64 = 7;
/// Of every interface.
pub const MTU: u32 = 1500;
/// Remembered flows that showed more than a SYN.
pub const FLOWS: u32 = 1024;
/// Remembered flows that showed a SYN only.
pub const HALF_OPEN: u32 = 1024;
/// Moves last as long, and so do remembered flows that are silent.
pub const TRANSITION: Duration = Duration::from_secs(90);

const TABLE_SIZE: u32 = 13;
const SERVICE_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;
const CLIENT_PORT: u16 = 40_000;

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// A host with an address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    pub mac: [u8; 6],
    v4: [u8; 4],
    v6: [u16; 8],
}

impl Host {
    pub fn ip(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

/// An interface of the balancer.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    pub index: u32,
    /// The balancer's addresses on it.
    pub balancer: Host,
    /// The program runs on it.
    pub attached: bool,
    /// The kernel forwards what arrives on it.
    pub forwards: bool,
}

const fn host(number: u8, v4: [u8; 4], v6: [u16; 8]) -> Host {
    Host { mac: [2, 0, 0, 0, 0, number], v4, v6 }
}

const fn client_side(host: u16) -> [u16; 8] {
    [0xfd00, 0xa, 0, 0, 0, 0, 0, host]
}

const fn backend_side(host: u16) -> [u16; 8] {
    [0xfd00, 0xb, 0, 0, 0, 0, 0, host]
}

pub const CLIENT_SIDE: Port =
    Port { index: 101, balancer: host(1, [10, 0, 0, 1], client_side(1)), attached: true, forwards: true };
pub const BACKEND_SIDE: Port =
    Port { index: 102, balancer: host(2, [10, 0, 1, 1], backend_side(1)), attached: true, forwards: true };
/// Nothing that arrives on it is forwarded.
pub const CLOSED: Port = Port {
    index: 103,
    balancer: host(3, [10, 0, 3, 1], [0xfd00, 0xc, 0, 0, 0, 0, 0, 1]),
    attached: true,
    forwards: false,
};
/// The program cannot send by it.
pub const UNATTACHED: Port = Port {
    index: 104,
    balancer: host(4, [10, 0, 4, 1], [0xfd00, 0xd, 0, 0, 0, 0, 0, 1]),
    attached: false,
    forwards: true,
};
pub const PORTS: [Port; 4] = [CLIENT_SIDE, BACKEND_SIDE, CLOSED, UNATTACHED];

pub const VIP: Host = host(0, [203, 0, 113, 80], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x80]);
pub const CLIENT: Host = host(11, [10, 0, 0, 2], client_side(2));
/// A client in the list of direct clients.
pub const MONITOR: Host = host(12, [10, 0, 0, 66], client_side(0x42));
/// A client that has no neighbour entry.
pub const UNRESOLVED: Host = host(13, [10, 0, 0, 9], client_side(9));
/// A client in the backends' subnet.
pub const COLLEAGUE: Host = host(14, [10, 0, 1, 77], backend_side(0x77));
/// The router before `FAR`, in the backends' subnet.
pub const ROUTER: Host = host(15, [10, 0, 1, 254], backend_side(0xfe));
/// A client behind the router.
pub const FAR: Host = host(0, [192, 0, 2, 7], [0x2001, 0xdb8, 7, 0, 0, 0, 0, 7]);
/// A client on the interface that the program does not run on.
pub const ELSEWHERE: Host = host(16, [10, 0, 4, 2], [0xfd00, 0xd, 0, 0, 0, 0, 0, 2]);
/// A client to whom there is no route.
pub const UNROUTED: Host = host(0, [198, 18, 0, 1], [0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 1]);
pub const WEB1: Host = host(21, [10, 0, 1, 11], backend_side(0x11));
pub const WEB2: Host = host(22, [10, 0, 1, 12], backend_side(0x12));
pub const WEB3: Host = host(23, [10, 0, 1, 13], backend_side(0x13));

/// Hosts whose MACs the balancer's kernel knows, and their interface.
pub const NEIGHBOURS: [(Host, Port); 8] = [
    (CLIENT, CLIENT_SIDE),
    (MONITOR, CLIENT_SIDE),
    (COLLEAGUE, BACKEND_SIDE),
    (ROUTER, BACKEND_SIDE),
    (ELSEWHERE, UNATTACHED),
    (WEB1, BACKEND_SIDE),
    (WEB2, BACKEND_SIDE),
    (WEB3, BACKEND_SIDE),
];
const BACKENDS: [(&str, Host); 3] = [("web1", WEB1), ("web2", WEB2), ("web3", WEB3)];
const SERVICES: [(Family, Protocol); 4] = [
    (Family::V4, Protocol::Tcp),
    (Family::V4, Protocol::Udp),
    (Family::V6, Protocol::Tcp),
    (Family::V6, Protocol::Udp),
];

/// Where clients reach the service.
pub fn service(family: Family) -> SocketAddr {
    SocketAddr::new(VIP.ip(family), SERVICE_PORT)
}

/// Where a backend listens.
pub fn server(backend: Host, family: Family) -> SocketAddr {
    SocketAddr::new(backend.ip(family), BACKEND_PORT)
}

/// Where a client talks from.
pub fn client(client: Host, family: Family) -> SocketAddr {
    SocketAddr::new(client.ip(family), CLIENT_PORT)
}

/// The id of a backend of the family's and protocol's service: they are numbered through.
pub fn id(backend: Host, family: Family, protocol: Protocol) -> u32 {
    let service =
        SERVICES.iter().position(|service| *service == (family, protocol)).expect("all pairs are there");
    let position = BACKENDS.iter().position(|(_, host)| *host == backend).expect("it is a backend");
    (service * BACKENDS.len() + position) as u32
}

/// The flow from one end to the other as a key of the maps.
pub fn flow(from: SocketAddr, to: SocketAddr, protocol: Protocol) -> FlowKey {
    let end = |socket| -> Endpoint { endpoint(socket, protocol) };
    FlowKey { source: end(from), destination: end(to) }
}

/// The subnet of an interface.
pub fn subnet(port: Port, family: Family) -> IpNet {
    let bits = match family {
        Family::V4 => 24,
        Family::V6 => 64,
    };
    IpNet::new(port.balancer.ip(family), bits).expect("a prefix of that family").trunc()
}

/// A prefix of `FAR`'s network, which the router leads to.
pub fn far_network(family: Family) -> IpNet {
    let bits = match family {
        Family::V4 => 24,
        Family::V6 => 64,
    };
    IpNet::new(FAR.ip(family), bits).expect("a prefix of that family").trunc()
}

/// What the kernel answers to questions for the way to a client, for packets that arrive on this interface.
pub fn routes(ingress: u32) -> Vec<Route> {
    let mut routes = Vec::new();
    for family in Family::BOTH {
        for port in PORTS {
            let subnet = subnet(port, family);
            routes.push((subnet, Ok(unresolved())));
            let last = match family {
                Family::V4 => subnet.broadcast(),
                Family::V6 => subnet.network(),
            };
            routes.extend([last, port.balancer.ip(family)].map(|ip| (ip.into(), Err(Reason::NoRoute))));
        }
        let resolved = NEIGHBOURS.iter().filter(|(_, port)| port.attached);
        routes.extend(resolved.map(|(host, port)| (host.ip(family).into(), Ok(hop(*host, *port)))));
        routes.push((far_network(family), Ok(hop(ROUTER, BACKEND_SIDE))));
    }
    if PORTS.iter().any(|port| port.index == ingress && !port.forwards) {
        routes.iter_mut().for_each(|(_, route)| *route = Err(Reason::ForwardingOff));
        routes.extend(
            ["0.0.0.0/0", "::/0"].map(|all| (all.parse().expect("a prefix"), Err(Reason::ForwardingOff))),
        );
    }
    routes
}

fn unresolved() -> foobar_lb_ebpf::layout::NextHop {
    foobar_lb_ebpf::layout::NextHop { mtu: MTU, ..Default::default() }
}

fn hop(neighbour: Host, port: Port) -> foobar_lb_ebpf::layout::NextHop {
    foobar_lb_ebpf::layout::NextHop {
        interface: port.index,
        mtu: MTU,
        source: port.balancer.mac,
        destination: neighbour.mac,
    }
}

/// What the balancer lives through, and the image that follows.
#[derive(Clone)]
pub struct Story {
    services: Vec<model::Service>,
    view: View,
    chapters: Vec<Chapter>,
}

#[derive(Clone)]
enum Chapter {
    Health(Host, Health),
    Render,
    Wait(Duration),
}

impl Story {
    /// A service on the VIP for each family and protocol, with three backends that nothing is known of.
    pub fn new() -> Self {
        Self { services: SERVICES.map(configure).to_vec(), view: view(), chapters: Vec::new() }
    }

    /// The first backend is up, the others are not, and so it owns everything.
    pub fn settled() -> Self {
        let down = Health::Down(Down::Answers);
        Self::new().health(WEB1, Health::Up).health(WEB2, down).health(WEB3, down).render()
    }

    /// The first backend ends gracefully: its slots move to the second. The third is silent.
    pub fn moving() -> Self {
        let silent = Health::Down(Down::Silent);
        let story = Self::settled().health(WEB1, Health::Down(Down::Answers));
        story.health(WEB2, Health::Up).health(WEB3, silent).render()
    }

    /// The move is over.
    pub fn traces() -> Self {
        Self::moving().wait(TRANSITION).render()
    }

    /// Configures all services differently.
    pub fn configured(mut self, change: impl FnMut(&mut model::Service)) -> Self {
        self.services.iter_mut().for_each(change);
        self
    }

    /// Lets the network look different.
    pub fn seen(mut self, change: impl FnOnce(&mut View)) -> Self {
        change(&mut self.view);
        self
    }

    /// The health checks of all services say this of the backend.
    pub fn health(self, backend: Host, health: Health) -> Self {
        self.then(Chapter::Health(backend, health))
    }

    /// Tables are brought up to date, as the daemon does after its events.
    pub fn render(self) -> Self {
        self.then(Chapter::Render)
    }

    /// Time passes.
    pub fn wait(self, duration: Duration) -> Self {
        self.then(Chapter::Wait(duration))
    }

    fn then(mut self, chapter: Chapter) -> Self {
        self.chapters.push(chapter);
        self
    }

    /// What the maps hold in the end.
    pub fn image(&self) -> Image {
        let mut state = State::new(self.services.clone(), SEED);
        let mut now = Instant::now();
        for Port { index, balancer, .. } in PORTS.into_iter().filter(|port| port.attached) {
            state.attached.insert(index, Interface { mac: balancer.mac, pad: [0; 2] });
        }
        state.observe_network(self.view.clone());
        for chapter in &self.chapters {
            match chapter {
                Chapter::Health(backend, health) => report(&mut state, *backend, *health, now),
                Chapter::Render => drop(state.render(now)),
                Chapter::Wait(duration) => now += *duration,
            }
        }
        state.render(now)
    }
}

fn configure((family, protocol): (Family, Protocol)) -> model::Service {
    let backend = |(name, host): (&str, Host)| model::Backend {
        name: name.to_owned(),
        address: server(host, family),
        weight: 1,
    };
    model::Service {
        name: format!("{protocol} {family:?}"),
        key: ServiceKey { address: service(family), protocol },
        mode: Mode::Nat,
        table_size: TABLE_SIZE,
        transition: TRANSITION,
        idle: TRANSITION,
        drain_time: None,
        udp_drain: UdpDrain::Keep,
        remember: Remember::Needed,
        direct: ["10.0.0.64/28", "fd00:a::40/124"].map(|prefix| prefix.parse().expect("a prefix")).to_vec(),
        announce: false,
        when_empty: WhenEmpty::FailOpen,
        health: health::Settings {
            kind: health::Kind::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 1,
        },
        backends: BACKENDS.map(backend).to_vec(),
    }
}

fn view() -> View {
    let mut view = View::default();
    for port in PORTS {
        let name = format!("eth{}", port.index);
        view.links.insert(port.index, Link { name, mac: Some(port.balancer.mac), up: true, mtu: MTU });
        for family in Family::BOTH {
            view.locals.insert(port.balancer.ip(family));
            view.connected.push((subnet(port, family), port.index));
        }
    }
    for (_, backend) in BACKENDS {
        for family in Family::BOTH {
            view.next_hops.insert(backend.ip(family), by(backend, BACKEND_SIDE));
        }
    }
    view
}

/// The way to a backend by an interface.
pub fn by(backend: Host, port: Port) -> NextHop {
    NextHop { interface: port.index, source: port.balancer.mac, destination: backend.mac, mtu: MTU }
}

fn report(state: &mut State, backend: Host, health: Health, now: Instant) {
    for (family, protocol) in SERVICES {
        let service = ServiceKey { address: service(family), protocol };
        let target = Target { service, backend: server(backend, family) };
        let report = Report {
            target,
            health,
            transition: None,
            since: now,
            transitions: 0,
            inconclusive: 0,
            reason: String::new(),
            latency: None,
        };
        state.observe_health(report).expect("the backend is configured");
    }
}
