//! The network that all rows of the packet table play in: a balancer with clients on one side and backends on the
//! other, in both families at once. What the balancer is configured for and lives through is in `story`, what is sent
//! to it is left to the rows.

mod story;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use foobar_lb::{image::endpoint, model::Protocol, twin::Route};
use foobar_lb_ebpf::{
    layout::{Endpoint, FlowKey, NextHop},
    reason::Reason,
};
use ipnet::IpNet;

pub use self::story::{Story, by};

/// The key of the flow hash and of the Maglev tables.
pub const SEED: u64 = 7;
/// Of every interface.
pub const MTU: u32 = 1500;
/// Remembered flows that showed more than a SYN.
pub const FLOWS: u32 = 1024;
/// Remembered flows that showed a SYN only.
pub const HALF_OPEN: u32 = 1024;
/// Flows that are mapped.
pub const MAPPINGS: u32 = 64;
/// Moves last as long, and so do remembered flows that are silent.
pub const TRANSITION: Duration = Duration::from_secs(90);

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

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
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
/// Nobody is there but in VLANs.
pub const TRUNK: Port = Port {
    index: 105,
    balancer: host(5, [10, 0, 5, 1], [0xfd00, 0xe, 0, 0, 0, 0, 0, 1]),
    attached: true,
    forwards: true,
};
pub const PORTS: [Port; 5] = [CLIENT_SIDE, BACKEND_SIDE, CLOSED, UNATTACHED, TRUNK];

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
pub const WEBS: [Host; 3] = [WEB1, WEB2, WEB3];
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
    (service * WEBS.len() + place(backend)) as u32
}

/// Which of the backends it is.
fn place(backend: Host) -> usize {
    WEBS.iter().position(|host| *host == backend).expect("it is a backend")
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

fn unresolved() -> NextHop {
    NextHop { mtu: MTU, ..Default::default() }
}

/// The kernel's way by a neighbour.
pub fn hop(neighbour: Host, port: Port) -> NextHop {
    NextHop { interface: port.index, mtu: MTU, source: port.balancer.mac, destination: neighbour.mac }
}
