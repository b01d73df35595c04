//! Real probes through the real data path: the first packet of a client's connection is given to the program as if it
//! had come in by an attached interface, and the program sends it to the backend that it chooses. Which source port makes it
//! choose which backend follows from the hash and the table. This is the daemon's part; what comes of it is watched by
//! `answers`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use etherparse::PacketBuilder;
use foobar_lb_ebpf::{
    flow::{HashKey, hash, reduce},
    layout::{self, FlowKey, Slot},
};
use ipnet::IpNet;

use crate::{
    api,
    bpf::Bpf,
    image::{Image, endpoint},
    model::Protocol,
    neighbour::NextHop,
    state::{Backend, Service, State},
};

/// A probe's sequence number.
const SEQUENCE: u32 = 0x0ba1_a4ce;
/// Source ports are tried from here on: no socket of this machine is given one of them by default.
const FIRST_PORT: u16 = 20_000;
/// So many at most: of 1,000 equal backends one stays without a port once in 100 times.
const PORTS: u16 = 12_000;
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
        bpf.inject(&probe.frame(*end), probe.place.ingress).map_err(api::Failure::of)?;
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
    place: Place,
}

impl<'s> Probe<'s> {
    /// One for each backend that a port leads to.
    fn all(service: &'s Service, state: &State, image: &Image) -> Vec<Self> {
        let mut probes = Vec::new();
        let Some(vip) = service.config.key.address.exact() else { return probes };
        let Some(table) = Table::find(vip, service.config.key.protocol, state, image) else { return probes };
        let located =
            |backend: &'s Backend| Some((backend.id, (backend, Place::find(service, backend, vip, state)?)));
        let mut missing: BTreeMap<u32, _> = service.backends.iter().filter_map(located).collect();
        let clients: BTreeSet<IpAddr> = missing.values().map(|(_, place)| place.client).collect();
        for port in (FIRST_PORT..).take(PORTS.into()) {
            if missing.is_empty() {
                break;
            }
            for client in clients.iter().map(|client| SocketAddr::new(*client, port)) {
                let owner = table.owner(client);
                let is_clients = missing.get(&owner).is_some_and(|(_, place)| place.client == client.ip());
                let found = is_clients.then(|| missing.remove(&owner)).flatten();
                probes.extend(found.map(|(backend, place)| Self { backend, client, vip, place }));
            }
        }
        probes
    }

    fn frame(&self, end: bool) -> Vec<u8> {
        frame(self.client, self.vip, self.place.mac, end)
    }
}

/// Who gets the connections of a TCP service.
struct Table<'i> {
    service: &'i layout::Service,
    slots: &'i [Slot],
    hash_key: HashKey,
    vip: SocketAddr,
}

impl<'i> Table<'i> {
    fn find(vip: SocketAddr, protocol: Protocol, state: &State, image: &'i Image) -> Option<Self> {
        let service = image.services.get(&endpoint(vip, protocol)).filter(|_| protocol == Protocol::Tcp)?;
        let slots = image.tables.get(&service.first_slot)?;
        Some(Self { service, slots, hash_key: state.hash_key(), vip })
    }

    /// The id of the backend of a new connection.
    fn owner(&self, client: SocketAddr) -> u32 {
        let end = |address| endpoint(address, Protocol::Tcp);
        let flow = FlowKey { source: end(client), destination: end(self.vip) };
        let common = self.service.has_affinity().then(|| self.service.common(&flow));
        let hash = hash(&self.hash_key, common.as_ref().unwrap_or(&flow));
        self.slots[reduce(hash, self.service.slots) as usize].owner
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use foobar_lb_ebpf::layout::Interface;

    use super::*;
    use crate::{
        config,
        neighbour::{Link, View},
        twin::Twin,
    };

    const SEED: u64 = 3;
    const CONFIG: &str = r#"
        [[service]]
        name = "web"
        address = "203.0.113.80:80"
        protocol = "tcp"
        health = { kind = "none" }
    "#;

    #[test]
    fn each_probe_goes_to_the_backend_that_it_is_for() {
        let backend = |number| {
            format!("[[service.backend]]\nname = \"web{number}\"\naddress = \"10.0.1.{number}:80\"\n")
        };
        let text = CONFIG.to_owned() + &(11..60).map(backend).collect::<String>();
        let config = config::parse(&text, "test").unwrap_or_else(|error| panic!("{error}"));
        let mut state = State::new(config.services, SEED);
        state.observe_network(view(&state));
        state.attached = [(1, Interface::new([4; 6])), (2, Interface::new([2; 6]))].into();
        let image = state.render(Instant::now());
        let probes = Probe::all(&state.services[0], &state, &image);
        assert_eq!(probes.len(), 49, "one for each backend");
        let twin = Twin::new(image.clone(), SEED);
        for probe in probes {
            twin.run(&mut probe.frame(false), probe.place.ingress);
            let name = &probe.backend.config.name;
            assert_eq!(twin.traffic(probe.backend.id).forward.packets, 1, "{name} {}", probe.client);
        }
    }

    fn view(state: &State) -> View {
        let link = |name: &str| Link { name: name.to_owned(), up: true, mtu: 1500, ..Link::default() };
        let local = Some([10, 0, 1, 1].into());
        let hop =
            NextHop { interface: 2, source: [2; 6], destination: [3; 6], mtu: 1500, on_link: true, local };
        View {
            links: [(1, link("eth0")), (2, link("eth1"))].into(),
            next_hops: state.backends().map(|backend| (backend.config.address.ip(), hop)).collect(),
            connected: vec![("10.0.0.0/24".parse().unwrap(), 1), ("10.0.1.0/24".parse().unwrap(), 2)],
            ..View::default()
        }
    }
}
