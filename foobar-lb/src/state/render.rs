//! The image that follows from the state.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use foobar_lb_ebpf::{
    headers::UDP_LENGTH,
    ip::Family,
    layout::{
        self, Address, DirectKey, Member, NO_ADDRESS, NextHop, PrefixKey, Reply, Route, Routes, address_flag,
        backend_flag, mode,
    },
};
use ipnet::IpNet;

use super::{
    Backend, Service, Standing, State,
    obstacle::{outer_source, sources},
    vlan::vlans,
};
use crate::{
    image::{Image, Prefix, address, address_prefix, endpoint},
    model::{self, Affinity, Destination, Encapsulation, Mode, Mss, Pool, Protocol, ServiceKey},
    neighbour::{self, Link},
    prime::largest_prime,
};

impl State {
    /// Brings all tables up to date and tells what the maps should hold.
    pub fn render(&mut self, now: Instant) -> Image {
        let seed = self.seed;
        self.note_obstacles();
        self.services.iter_mut().for_each(|service| service.assign(seed, now));
        self.note_left(now);
        let interfaces = self.interfaces().into_iter();
        let interfaces =
            interfaces.map(|(index, interface)| (index, self.render_interface(index, interface)));
        let mut image = Image { interfaces: interfaces.collect(), ..Image::default() };
        image.vlans = vlans(&image.interfaces);
        image.routes = self.render_routes(&image.interfaces);
        let wide = self.wide();
        self.groups.number(&wide);
        self.render_vips(&wide, &mut image);
        for service in &self.services {
            self.render_service(service, &mut image);
        }
        self.render_ranges(&wide, &mut image);
        image
    }

    /// From now on no packet reads the regions of services that are gone, nor finds their backends, but for those
    /// packets that are under way.
    fn note_left(&mut self, now: Instant) {
        for since in self.retired.values_mut().chain(self.left.iter_mut().map(|(_, since)| since)) {
            since.get_or_insert(now);
        }
    }

    fn render_service(&self, service: &Service, image: &mut Image) {
        let ServiceKey { address: destination, protocol } = service.config.key;
        if let Some(exact) = destination.exact().filter(|_| service.disabled.is_none()) {
            image.services.insert(endpoint(exact, protocol), service.record());
        }
        image.tables.insert(service.table.first(), service.table.render(service.config.remember));
        for prefix in &service.config.direct {
            image.direct.insert(direct_prefix(service.list, prefix), 1);
        }
        image.server_ids.extend(service.server_ids());
        for (backend, standing) in service.backends.iter().zip(service.standings()) {
            let rendered = self.render_backend(backend, protocol, standing, &image.interfaces);
            if let Some(pool) = service.config.mode.pool() {
                self.render_sources(pool, backend, service.config.announce, image);
            }
            match &service.config.mode {
                // Of the others there is a range for each of the service's.
                Mode::Nat | Mode::Hairpin(_) if destination.exact().is_some() => {
                    image.replies.insert(rendered.endpoint, service.reply(backend));
                }
                Mode::Nat | Mode::Hairpin(_) | Mode::Dsr | Mode::Snat(_) => {}
                Mode::Tunnel(tunnel) => {
                    let source = outer_source(tunnel, backend);
                    let tunnel = source.map(|source| render_tunnel(tunnel.encapsulation, &source));
                    image.tunnels.extend(tunnel.map(|tunnel| (backend.id, tunnel)));
                }
            }
            image
                .members
                .insert(backend.id, Member { table: service.table.first(), health: backend.measured() });
            image.backends.insert(backend.id, rendered);
        }
    }

    /// Where packets to the backend come from. What is no address of this machine is as a VIP without a service.
    fn render_sources(&self, pool: &Pool, backend: &Backend, announce: bool, image: &mut Image) {
        let known = sources(pool, backend);
        if known.is_empty() {
            return;
        }
        let mut addresses = [NO_ADDRESS; layout::Sources::MOST];
        for (place, source) in addresses.iter_mut().zip(&known) {
            *place = address(*source);
            let around = image.prefixes.iter().filter(|(prefix, _)| contains(prefix, place));
            let around = around.max_by_key(|((_, bits), _)| *bits).map(|(_, vip)| *vip).unwrap_or_default();
            let flags = &mut image.addresses.entry(*place).or_insert(around).flags;
            *flags |= address_flag::SOURCE;
            if *flags & address_flag::LOCAL == 0 {
                let announced = if announce { address_flag::ANNOUNCED } else { 0 };
                *flags |= address_flag::VIP | announced;
            }
        }
        let count = known.len().min(addresses.len()) as u32;
        let (first_port, ports) =
            (*pool.ports.start(), largest_prime(pool.ports.len() as u32).unwrap_or(1) as u16);
        let sources = layout::Sources { addresses, count, first_port, ports };
        image.sources.insert(backend.id, sources);
    }

    /// With the addresses that ICMP errors come from.
    fn render_interface(&self, index: u32, interface: layout::Interface) -> layout::Interface {
        let own = self.view.links.get(&index).map_or(&[][..], |link| &link.addresses);
        let first = |family: fn(&IpAddr) -> bool| {
            own.iter().find(|own| family(own)).map_or(NO_ADDRESS, |own| address(*own))
        };
        let (address_v4, address_v6) = (first(IpAddr::is_ipv4), first(IpAddr::is_ipv6));
        layout::Interface { address_v4, address_v6, ..interface }
    }

    /// The routes to clients. Where packets arrive that the kernel does not forward, it is to say so itself.
    fn render_routes(&self, interfaces: &BTreeMap<u32, layout::Interface>) -> Routes {
        let mut routes = Routes::default();
        let forwards = |forwards: fn(&Link) -> bool| {
            let mut links = interfaces.keys().map(|index| self.view.links.get(index));
            links.all(|link| link.is_some_and(forwards))
        };
        let of =
            |family: fn(&IpNet) -> bool| self.view.routes.iter().filter(move |(prefix, _)| family(prefix));
        if forwards(|link| link.forwards_v4) {
            fill(&mut routes.v4, of(|prefix| prefix.addr().is_ipv4()), interfaces);
        }
        if forwards(|link| link.forwards_v6) {
            fill(&mut routes.v6, of(|prefix| prefix.addr().is_ipv6()), interfaces);
        }
        routes
    }

    fn render_backend(
        &self,
        backend: &Backend,
        protocol: Protocol,
        standing: Standing,
        interfaces: &BTreeMap<u32, layout::Interface>,
    ) -> layout::Backend {
        let reached = backend.next_hop.filter(|_| backend.obstacle.is_none());
        layout::Backend {
            endpoint: endpoint(backend.config.address, protocol),
            flags: if standing.serves { backend_flag::SERVES } else { 0 },
            next_hop: reached.map_or_else(NextHop::default, |hop| render_next_hop(hop, interfaces)),
            subnet: self.subnet(backend.config.address.ip()),
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
        mask(bits)
    }
}

/// Those that there is no room for are the shortest prefixes, to which the kernel then knows the way.
fn fill<'r>(
    room: &mut [Route; Routes::MOST],
    routes: impl Iterator<Item = &'r (IpNet, Option<neighbour::NextHop>)>,
    interfaces: &BTreeMap<u32, layout::Interface>,
) {
    for (route, (prefix, hop)) in room.iter_mut().zip(routes) {
        let (prefix, bits) = address_prefix(prefix);
        let next_hop = hop.map_or_else(NextHop::default, |hop| render_next_hop(hop, interfaces));
        *route = Route { prefix, mask: mask(bits), next_hop, pad: 0 };
    }
}

/// The program can only send by interfaces it is attached to, and VLAN devices on them; the rest is left to the kernel.
fn render_next_hop(hop: neighbour::NextHop, interfaces: &BTreeMap<u32, layout::Interface>) -> NextHop {
    let neighbour::NextHop { interface: index, source, destination, mtu, .. } = hop;
    match interfaces.get(&index) {
        Some(interface) => NextHop { interface: interface.egress(index), mtu, source, destination },
        None => NextHop::default(),
    }
}

impl Service {
    /// What the data path knows of it.
    pub(super) fn record(&self) -> layout::Service {
        let model::Service { key, mode, table_size: slots, idle, affinity, .. } = &self.config;
        layout::Service {
            first_slot: self.table.first(),
            slots: *slots,
            idle: u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX),
            mode: mode_number(mode),
            mss: largest_segment(self),
            affinity: affinity_mask(*affinity, key.address.is_ipv6()),
            quic: self.connection_ids(),
        }
    }

    /// What replies of a backend are rewritten to.
    pub(super) fn reply(&self, backend: &Backend) -> Reply {
        let Destination { vip, ports } = self.config.key.address;
        let port = if ports.first == ports.last { ports.first } else { 0 };
        Reply {
            service: endpoint((vip.addr(), port).into(), self.config.key.protocol),
            backend: backend.id,
            direct: if self.config.direct.is_empty() { 0 } else { self.list },
            mss: largest_segment(self),
            pad: 0,
        }
    }
}

pub(super) fn mode_number(mode: &Mode) -> u32 {
    match mode {
        Mode::Nat => mode::NAT,
        Mode::Hairpin(_) => mode::HAIRPIN,
        Mode::Dsr => mode::DSR,
        Mode::Tunnel(_) => mode::TUNNEL,
        Mode::Snat(_) => mode::SNAT,
    }
}

/// The bits of a client's address that count; none where every flow has its own backend.
pub(super) fn affinity_mask(affinity: Affinity, is_ipv6: bool) -> Address {
    match affinity {
        Affinity::Flow => NO_ADDRESS,
        Affinity::Source(bits) => {
            let mapped = if is_ipv6 { 0 } else { u128::BITS - Ipv4Addr::BITS };
            mask(mapped + u32::from(bits))
        }
    }
}

/// Of the outer source as many bits vary as the prefix leaves, up to a word.
fn render_tunnel(encapsulation: Encapsulation, source: &IpNet) -> layout::Tunnel {
    let free = u32::from(source.max_prefix_len() - source.prefix_len());
    let port = match encapsulation {
        Encapsulation::Ipip => 0,
        Encapsulation::Gue(port) => port,
    };
    layout::Tunnel {
        source: address(source.network()),
        varying: 1u32.checked_shl(free).map_or(u32::MAX, |bit| bit - 1).to_be_bytes(),
        port: port.to_be_bytes(),
        pad: [0; 2],
    }
}

/// The largest segment that its connections may use; 0: any.
fn largest_segment(service: &Service) -> u32 {
    const TCP_HEADER: u32 = 20;
    let family = |address: IpAddr| if address.is_ipv4() { Family::V4 } else { Family::V6 };
    let vip = family(service.config.key.address.vip.addr());
    let outer = |backend: &Backend| match &service.config.mode {
        Mode::Nat | Mode::Hairpin(_) | Mode::Dsr => 0,
        // What it grows by where the backend is of the other family.
        Mode::Snat(_) => {
            family(backend.config.address.ip()).header_length().saturating_sub(vip.header_length())
        }
        Mode::Tunnel(tunnel) => {
            let udp = if tunnel.encapsulation == Encapsulation::Ipip { 0 } else { UDP_LENGTH };
            family(backend.config.address.ip()).header_length() + udp
        }
    };
    let fits = |backend: &Backend| {
        let headers = outer(backend) + vip.header_length() + TCP_HEADER;
        Some(backend.next_hop?.mtu.saturating_sub(headers))
    };
    match service.config.mss {
        None => 0,
        Some(Mss::Bytes(bytes)) => bytes.into(),
        Some(Mss::Auto) => service.backends.iter().filter_map(fits).min().unwrap_or(0),
    }
}

/// Whether the address is in the prefix.
fn contains((prefix, bits): &Prefix<PrefixKey>, address: &Address) -> bool {
    let difference = u128::from_be_bytes(prefix.address) ^ u128::from_be_bytes(address.0);
    difference.leading_zeros() >= bits - PrefixKey::PAD_BITS
}

/// So many ones.
fn mask(bits: u32) -> Address {
    Address(u128::MAX.checked_shl(u128::BITS - bits).unwrap_or(0).to_be_bytes())
}

fn direct_prefix(list: u32, prefix: &IpNet) -> Prefix<DirectKey> {
    let (Address(client), bits) = address_prefix(prefix);
    (DirectKey { list, client }, DirectKey::LIST_BITS + bits)
}
