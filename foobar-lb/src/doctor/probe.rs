//! Real probes through the real data path: the first packet of a client's connection is given to the program as if it
//! had come in by an attached interface, and the program sends it to the backend that it chooses. The host twin tells
//! beforehand which source port makes it choose which backend. This is the daemon's part; what comes of it is watched
//! by `answers`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::PacketBuilder;
use ipnet::IpNet;

use crate::{
    api,
    bpf::Bpf,
    image::Image,
    model::Protocol,
    neighbour::NextHop,
    state::{Backend, Service, State},
    twin::Twin,
};

/// A probe's sequence number.
const SEQUENCE: u32 = 0x0ba1_a4ce;
/// Source ports are tried from here on: no socket of this machine is given one of them by default.
const FIRST_PORT: u16 = 20_000;
/// So many: of 100 equal backends one stays without a port once in 10^16 times.
const PORTS: u16 = 4_000;
/// Clients that nobody is (RFC 5737, RFC 3849), where there is a default route to them.
const NOBODY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
];

/// Sends a probe to each backend of a TCP service that takes new flows, or ends what such have begun. There are none where
/// the service has more than one VIP or port.
pub fn send_probes(
    api::Probe { service, end }: &api::Probe,
    state: &State,
    image: &Image,
    bpf: &mut Bpf,
) -> Result<api::Probed, api::Failure> {
    let found = state.services.iter().find(|known| known.config.name == *service);
    let service = found.ok_or_else(|| api::Failure::new(format!("there is no service {service:?}")))?;
    let mut sent = Vec::new();
    for probe in Probe::all(service, state, image) {
        bpf.inject(&probe.frame(*end), probe.ingress).map_err(api::Failure::of)?;
        sent.push(api::SentProbe {
            backend: probe.backend.config.name.clone(),
            client: probe.client.to_string(),
            vip: probe.vip.to_string(),
        });
    }
    Ok(api::Probed { sent })
}

struct Probe<'s> {
    backend: &'s Backend,
    client: SocketAddr,
    vip: SocketAddr,
    ingress: u32,
    mac: [u8; 6],
}

impl<'s> Probe<'s> {
    /// One for each backend that a port leads to.
    fn all(service: &'s Service, state: &State, image: &Image) -> Vec<Self> {
        let Some(vip) = service.config.key.address.exact() else { return Vec::new() };
        if service.config.key.protocol != Protocol::Tcp {
            return Vec::new();
        }
        let twin = Twin::new(image.clone(), state.seed());
        let mut probes: Vec<Self> = Vec::new();
        let mut missing: Vec<&Backend> =
            service.backends.iter().filter(|backend| backend.next_hop.is_some()).collect();
        for port in (FIRST_PORT..).take(PORTS.into()) {
            let sent = |backend: &Backend| twin.traffic(backend.id).forward.packets;
            let before: Vec<u64> = missing.iter().map(|backend| sent(backend)).collect();
            let Some(place) = missing.first().and_then(|backend| Place::find(service, backend, vip, state))
            else {
                break;
            };
            let client = SocketAddr::new(place.client, port);
            twin.run(&mut frame(client, vip, place.mac, false), place.ingress);
            let reached = missing.iter().zip(before).position(|(backend, before)| sent(backend) > before);
            if let Some(reached) = reached {
                let backend = missing.remove(reached);
                probes.push(Self { backend, client, vip, ingress: place.ingress, mac: place.mac });
            }
        }
        probes
    }

    fn frame(&self, end: bool) -> Vec<u8> {
        frame(self.client, self.vip, self.mac, end)
    }
}

/// Where a client seems to be.
struct Place {
    client: IpAddr,
    ingress: u32,
    mac: [u8; 6],
}

impl Place {
    /// Replies that pass through the balancer go to somebody else than the balancer, those that do not, to the
    /// balancer itself, so that it sees them.
    fn find(service: &Service, backend: &Backend, vip: SocketAddr, state: &State) -> Option<Self> {
        let hop = backend.next_hop?;
        let interfaces = &state.attached;
        let other = interfaces.iter().find(|(index, _)| **index != hop.interface);
        let (&ingress, interface) = other.or_else(|| interfaces.iter().next())?;
        let client = match service.config.mode.keeps_destination() {
            true => own(hop, vip, state)?,
            false => nobody(hop, vip, state)?,
        };
        Some(Self { client, ingress, mac: interface.mac })
    }
}

/// An address of this machine, of the VIP's family, that the backend can answer to.
fn own(hop: NextHop, vip: SocketAddr, state: &State) -> Option<IpAddr> {
    let addresses = state.view().links.get(&hop.interface)?.addresses.iter().copied();
    hop.local.into_iter().chain(addresses).find(|address| address.is_ipv4() == vip.is_ipv4())
}

/// An address that is nobody's, on a way that the kernel knows: behind the default route, or in a network that is not the
/// backend's.
fn nobody(hop: NextHop, vip: SocketAddr, state: &State) -> Option<IpAddr> {
    let is_vips = |prefix: &IpNet| prefix.addr().is_ipv4() == vip.is_ipv4();
    let view = state.view();
    if view.routes.iter().any(|(prefix, _)| is_vips(prefix) && prefix.prefix_len() == 0) {
        return NOBODY.into_iter().find(|address| address.is_ipv4() == vip.is_ipv4());
    }
    let others = view.connected.iter().filter(|(prefix, interface)| {
        is_vips(prefix) && *interface != hop.interface && state.attached.contains_key(interface)
    });
    let mut lasts = others.filter_map(|(prefix, _)| last(prefix));
    lasts.find(|address| !view.locals.contains(address))
}

/// The last address of a network that a host may have.
fn last(prefix: &IpNet) -> Option<IpAddr> {
    match prefix {
        IpNet::V4(prefix) => {
            prefix.broadcast().to_bits().checked_sub(1).map(|host| Ipv4Addr::from_bits(host).into())
        }
        IpNet::V6(prefix) => {
            Some(IpAddr::V6(prefix.broadcast())).filter(|_| !prefix.addr().is_unicast_link_local())
        }
    }
}

/// The SYN of a connection, or the RST that ends it.
fn frame(client: SocketAddr, vip: SocketAddr, mac: [u8; 6], end: bool) -> Vec<u8> {
    const HOPS: u8 = 64;
    const WINDOW: u16 = 64_240;
    let ethernet = PacketBuilder::ethernet2(mac, mac);
    let ip = match (client.ip(), vip.ip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => ethernet.ipv4(client.octets(), vip.octets(), HOPS),
        (IpAddr::V6(client), IpAddr::V6(vip)) => ethernet.ipv6(client.octets(), vip.octets(), HOPS),
        _ => unreachable!("the client's address is of the VIP's family"),
    };
    let sequence = if end { SEQUENCE + 1 } else { SEQUENCE };
    let tcp = ip.tcp(client.port(), vip.port(), sequence, WINDOW);
    let tcp = if end { tcp.rst() } else { tcp.syn() };
    let mut frame = Vec::with_capacity(tcp.size(0));
    tcp.write(&mut frame, &[]).expect("a vector takes every byte");
    frame
}
