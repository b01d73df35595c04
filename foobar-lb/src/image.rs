//! The exact contents of every map that the control plane writes, as sorted values. `State` renders the wanted
//! one, `bpf` reads the current one, `plan` compares them; `Display` is the dump that golden tests compare.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use foobar_lb_ebpf::layout::{
    Address, Backend, DirectKey, Endpoint, Interface, Member, NO_ADDRESS, NO_BACKEND, NextHop, PrefixKey,
    Quic, RangeKey, Reply, ReplyKey, Route, Routes, SETTLED, ServerId, Service, Slot, Sources, TCP, TRACES,
    Tags, Tunnel, UDP, VLAN_DEVICE, Vip, VlanKey, address_flag, backend_flag, mapped, member_health, mode,
};
use ipnet::IpNet;

use crate::{
    model::{Place, Ports, Protocol},
    plan::Step,
    wide::port_prefixes,
};

/// A key for longest prefix match: the key and how many bits of it count.
pub type Prefix<K> = (K, u32);

/// All maps that the control plane writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The attached interfaces, and the VLAN devices on them, by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// The indices of the VLAN devices.
    pub vlans: BTreeMap<VlanKey, u32>,
    /// Routes to clients.
    pub routes: Routes,
    /// What the daemon that takes over is to know of backends, by id.
    pub members: BTreeMap<u32, Member>,
    /// Backends by id.
    pub backends: BTreeMap<u32, Backend>,
    /// Outer headers of packets to backends, by id.
    pub tunnels: BTreeMap<u32, Tunnel>,
    /// Where packets to backends come from whose source is replaced, by id.
    pub sources: BTreeMap<u32, Sources>,
    /// Server ids of QUIC connection ids, and the ids of the backends they name.
    pub server_ids: BTreeMap<ServerId, u32>,
    /// Prefixes of direct clients.
    pub direct: BTreeMap<Prefix<DirectKey>, u32>,
    /// Backends' ends and what packets from them are rewritten to.
    pub replies: BTreeMap<Endpoint, Reply>,
    /// The same for backends' ranges of ports.
    pub reply_ranges: BTreeMap<Prefix<ReplyKey>, Reply>,
    /// VIPs and the balancer's own addresses.
    pub addresses: BTreeMap<Address, Vip>,
    /// Prefixes of VIPs.
    pub prefixes: BTreeMap<Prefix<PrefixKey>, Vip>,
    /// Tables by the index of their first slot. Those that have not changed since are shared with other images.
    pub tables: BTreeMap<u32, Arc<[Slot]>>,
    /// Services and their tables.
    pub services: BTreeMap<Endpoint, Service>,
    /// Those of ranges of ports.
    pub ranges: BTreeMap<Prefix<RangeKey>, Service>,
}

impl Image {
    /// Does to the image what a step does to the maps.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::PutInterface(index, interface) => drop(self.interfaces.insert(*index, *interface)),
            Step::PutVlan(vlan, index) => drop(self.vlans.insert(*vlan, *index)),
            Step::SetRoutes(routes) => self.routes = **routes,
            Step::PutBackend(id, backend) => drop(self.backends.insert(*id, *backend)),
            Step::PutMember(id, member) => drop(self.members.insert(*id, *member)),
            Step::PutTunnel(id, tunnel) => drop(self.tunnels.insert(*id, *tunnel)),
            Step::PutSources(id, sources) => drop(self.sources.insert(*id, *sources)),
            Step::PutServerId(server, id) => drop(self.server_ids.insert(*server, *id)),
            Step::PutDirect(prefix, value) => drop(self.direct.insert(*prefix, *value)),
            Step::PutReply(end, reply) => drop(self.replies.insert(*end, *reply)),
            Step::PutReplyRange(prefix, reply) => drop(self.reply_ranges.insert(*prefix, *reply)),
            Step::PutAddress(address, vip) => drop(self.addresses.insert(*address, *vip)),
            Step::PutPrefix(prefix, vip) => drop(self.prefixes.insert(*prefix, *vip)),
            Step::StoreSlots { table, place, slots } => self.store(*table, *place, slots),
            // What follows from the other maps is no part of it.
            Step::StoreKnown(..) => {}
            Step::PutService(end, service) => drop(self.services.insert(*end, *service)),
            Step::PutRange(prefix, service) => drop(self.ranges.insert(*prefix, *service)),
            Step::RemoveService(end) => drop(self.services.remove(end)),
            Step::RemoveRange(prefix) => drop(self.ranges.remove(prefix)),
            Step::RemoveTable(first) => drop(self.tables.remove(first)),
            Step::RemoveAddress(address) => drop(self.addresses.remove(address)),
            Step::RemovePrefix(prefix) => drop(self.prefixes.remove(prefix)),
            Step::RemoveReply(end) => drop(self.replies.remove(end)),
            Step::RemoveServerId(server) => drop(self.server_ids.remove(server)),
            Step::RemoveReplyRange(prefix) => drop(self.reply_ranges.remove(prefix)),
            Step::RemoveDirect(prefix) => drop(self.direct.remove(prefix)),
            Step::RemoveSources(id) => drop(self.sources.remove(id)),
            Step::RemoveTunnel(id) => drop(self.tunnels.remove(id)),
            Step::RemoveBackend(id) => drop(self.backends.remove(id)),
            Step::RemoveMember(id) => drop(self.members.remove(id)),
            Step::RemoveVlan(vlan) => drop(self.vlans.remove(vlan)),
            Step::RemoveInterface(index) => drop(self.interfaces.remove(index)),
        }
    }

    fn store(&mut self, table: u32, place: u32, slots: &[Slot]) {
        let table = self.tables.entry(table).or_default();
        let end = place as usize + slots.len();
        if table.len() < end {
            let missing = vec![Slot::settled(NO_BACKEND); end - table.len()];
            *table = [&**table, &missing].concat().into();
        }
        Arc::make_mut(table)[place as usize..end].copy_from_slice(slots);
    }
}

/// The address in the form of the maps.
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => Address(v6.octets()),
    }
}

/// The prefix in the form of the maps.
pub fn vip_prefix(prefix: &IpNet) -> Prefix<PrefixKey> {
    let (Address(address), bits) = address_prefix(prefix);
    (PrefixKey { pad: 0, address }, PrefixKey::PAD_BITS + bits)
}

/// The prefix as an address and how many of its bits count.
pub fn address_prefix(prefix: &IpNet) -> Prefix<Address> {
    let mapped_bits = u128::BITS - u32::from(prefix.max_prefix_len());
    (address(prefix.network()), mapped_bits + u32::from(prefix.prefix_len()))
}

/// The protocol in the form of the maps.
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}

/// The end in the form of the maps.
pub fn endpoint(socket: SocketAddr, protocol: Protocol) -> Endpoint {
    Endpoint::new(address(socket.ip()), socket.port().to_be_bytes(), protocol_number(protocol))
}

/// Ports of the VIPs of a group in the form of the maps.
pub fn range_prefixes(
    group: u32,
    protocol: Protocol,
    ports: Ports,
) -> impl Iterator<Item = Prefix<RangeKey>> {
    let key = move |port| Endpoint::new(NO_ADDRESS, port, protocol_number(protocol)).range_key(group);
    with_ports(ports).map(move |(port, free)| (key(port), RangeKey::BITS - free))
}

/// Ports of a backend in the form of the maps.
pub fn reply_prefixes(
    backend: IpAddr,
    protocol: Protocol,
    ports: Ports,
) -> impl Iterator<Item = Prefix<ReplyKey>> {
    let key = move |port| Endpoint::new(address(backend), port, protocol_number(protocol)).reply_key();
    with_ports(ports).map(move |(port, free)| (key(port), ReplyKey::BITS - free))
}

/// The prefixes that the ports consist of: the first port of each, network order, and how many of its bits do not count.
fn with_ports(ports: Ports) -> impl Iterator<Item = ([u8; 2], u32)> {
    port_prefixes(ports).into_iter().map(|(first, bits)| (first.to_be_bytes(), u16::BITS - bits))
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, interface) in &self.interfaces {
            write!(f, "interface {index}: {}", Mac(interface.mac))?;
            for own in [interface.address_v4, interface.address_v6] {
                if own != NO_ADDRESS {
                    write!(f, " {}", Ip(&own))?;
                }
            }
            writeln!(f, "{}", Leaving(interface))?;
        }
        for (VlanKey { interface, tags }, index) in &self.vlans {
            writeln!(f, "vlan {} on interface {interface}: interface {index}", Vlan(tags))?;
        }
        let routes = self.routes.v4.iter().chain(&self.routes.v6);
        for Route { prefix, mask, next_hop, .. } in routes.filter(|route| **route != Route::default()) {
            let bits = u128::from_be_bytes(mask.0).count_ones();
            writeln!(f, "route {}: {}", Net(prefix, bits), Hop(next_hop))?;
        }
        for (address, vip) in &self.addresses {
            writeln!(f, "address {}:{}", Ip(address), Known(vip))?;
        }
        for ((key, bits), vip) in &self.prefixes {
            let prefix = Net(&Address(key.address), *bits - PrefixKey::PAD_BITS);
            writeln!(f, "prefix {prefix}:{}", Known(vip))?;
        }
        for (end, service) in &self.services {
            write!(f, "service {}: ", End(end))?;
            write_service(f, service)?;
            if let Some(table) = self.tables.get(&service.first_slot) {
                write_table(f, table)?;
            }
        }
        self.write_ranges(f)?;
        for (id, backend) in &self.backends {
            let serves = if backend.flags & backend_flag::SERVES != 0 { "serves" } else { "does not serve" };
            write!(f, "backend {id}: {}, {serves}, {}", End(&backend.endpoint), Hop(&backend.next_hop))?;
            writeln!(f, "{}", self.members.get(id).map_or("", health_name))?;
        }
        for (id, tunnel) in &self.tunnels {
            writeln!(f, "tunnel to backend {id}: {}", Outer(tunnel))?;
        }
        for (id, sources) in &self.sources {
            writeln!(f, "sources of packets to backend {id}: {}", From(sources))?;
        }
        for (ServerId { list, length, id }, backend) in &self.server_ids {
            write!(f, "quic list {list}: ")?;
            id.iter().take(*length as usize).try_for_each(|byte| write!(f, "{byte:02x}"))?;
            writeln!(f, " is backend {backend}")?;
        }
        for (end, reply) in &self.replies {
            write!(f, "reply {}: ", End(end))?;
            write_reply(f, reply)?;
        }
        for ((key, bits), reply) in &self.reply_ranges {
            let (name, ip) = (protocol_name(key.protocol as u8), Address(key.address));
            write!(f, "reply {name} {} ports {}: ", Ip(&ip), ports_of(key.port, ReplyKey::BITS - bits))?;
            write_reply(f, reply)?;
        }
        for (key, bits) in self.direct.keys() {
            let prefix = Net(&Address(key.client), *bits - DirectKey::LIST_BITS);
            writeln!(f, "direct list {}: {prefix}", key.list)?;
        }
        Ok(())
    }
}

impl Image {
    /// Each table at the first of its ranges.
    fn write_ranges(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut written = BTreeSet::new();
        for ((key, bits), service) in &self.ranges {
            let RangeKey { group, protocol, port, .. } = *key;
            let ports = ports_of(port, RangeKey::BITS - bits);
            write!(f, "group {group} {} ports {ports}: ", protocol_name(protocol as u8))?;
            write_service(f, service)?;
            let table = self.tables.get(&service.first_slot);
            if let Some(table) = table.filter(|_| written.insert(service.first_slot)) {
                write_table(f, table)?;
            }
        }
        Ok(())
    }
}

fn write_service(f: &mut fmt::Formatter<'_>, service: &Service) -> fmt::Result {
    let Service { first_slot, slots, idle, mode, mss, affinity, quic } = service;
    let idle = std::time::Duration::from_nanos(*idle);
    write!(f, "{}, slots {first_slot}+{slots}, idle {idle:?}", mode_name(*mode))?;
    writeln!(f, "{}{}{}", Mss(*mss), Affinity(affinity), ConnectionIds(*quic))
}

fn write_reply(f: &mut fmt::Formatter<'_>, reply: &Reply) -> fmt::Result {
    write!(f, "as {}, backend {}", End(&reply.service), reply.backend)?;
    if reply.direct != 0 {
        write!(f, ", direct list {}", reply.direct)?;
    }
    writeln!(f, "{}", Mss(reply.mss))
}

/// How frames leave by it, if it is a VLAN device.
struct Leaving<'a>(&'a Interface);

impl fmt::Display for Leaving<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.physical {
            0 => Ok(()),
            physical => write!(f, ", vlan {} on interface {physical}", Vlan(&self.0.tags)),
        }
    }
}

/// The ids of the VLANs that tags name, outermost first; one of 802.1Q needs no mention of its protocol.
struct Vlan<'a>(&'a Tags);

impl fmt::Display for Vlan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DOT1Q: u32 = 0x8100;
        let Tags { outer, inner } = *self.0;
        for (place, tag) in [outer, inner].into_iter().filter(|tag| *tag != 0).enumerate() {
            let dot = if place == 0 { "" } else { "." };
            write!(f, "{dot}{}", tag & 0xfff)?;
            if tag >> 16 != DOT1Q {
                write!(f, " ({:#x})", tag >> 16)?;
            }
        }
        Ok(())
    }
}

/// What the daemon that takes over is to know of its health; of most that they are up.
fn health_name(member: &Member) -> &'static str {
    match member.health {
        member_health::UNKNOWN => ", not measured",
        member_health::UP => "",
        member_health::ANSWERS => ", down but answers",
        _ => ", down and silent",
    }
}

/// A table as counts: how many slots each pair of owner and previous owner has.
fn write_table(f: &mut fmt::Formatter<'_>, table: &[Slot]) -> fmt::Result {
    let mut counts = BTreeMap::<(u32, u32), usize>::new();
    for slot in table {
        *counts.entry((slot.owner, slot.previous)).or_default() += 1;
    }
    for ((owner, previous), count) in counts {
        match owner {
            NO_BACKEND => write!(f, "  nobody")?,
            id => write!(f, "  backend {id}")?,
        }
        match previous {
            SETTLED => writeln!(f, ": {count} slots")?,
            TRACES => writeln!(f, ": {count} slots with traces")?,
            id => writeln!(f, ": {count} slots moving from {id}")?,
        }
    }
    Ok(())
}

struct Ip<'a>(&'a Address);

impl fmt::Display for Ip<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::net::Ipv6Addr::from(self.0.0).to_canonical())
    }
}

struct End<'a>(&'a Endpoint);

impl fmt::Display for End<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = std::net::Ipv6Addr::from(self.0.address.0).to_canonical();
        let place = Place(SocketAddr::new(ip, u16::from_be_bytes(self.0.port)));
        write!(f, "{} {place}", protocol_name(self.0.protocol))
    }
}

fn protocol_name(protocol: u8) -> &'static str {
    if protocol == TCP { "tcp" } else { "udp" }
}

/// The ports that have the bits of the first that count; so many do not.
fn ports_of(first: [u8; 2], free: u32) -> Ports {
    let first = u16::from_be_bytes(first);
    Ports { first, last: first | u16::MAX.checked_shr(u16::BITS - free).unwrap_or(0) }
}

struct Known<'a>(&'a Vip);

impl fmt::Display for Known<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (address_flag::VIP, "vip"),
            (address_flag::LOCAL, "local"),
            (address_flag::ANNOUNCED, "announced"),
            (address_flag::ECHO, "echo"),
            (address_flag::DROP, "drop"),
            (address_flag::REJECT, "reject"),
            (address_flag::SOURCE, "source"),
        ];
        let flags = self.0.flags;
        names.iter().filter(|(flag, _)| flags & flag != 0).try_for_each(|(_, name)| write!(f, " {name}"))?;
        match self.0.group {
            0 => Ok(()),
            group => write!(f, " group {group}"),
        }
    }
}

fn mode_name(mode: u32) -> &'static str {
    match mode {
        mode::DSR => "dsr",
        mode::TUNNEL => "tunnel",
        mode::SNAT => "snat",
        mode::HAIRPIN => "nat with hairpin",
        _ => "nat",
    }
}

/// The largest segment, if there is a limit.
struct Mss(u32);

impl fmt::Display for Mss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            bytes => write!(f, ", mss {bytes}"),
        }
    }
}

/// The mask of a client's address, if flows share a backend by it.
struct Affinity<'a>(&'a Address);

impl fmt::Display for Affinity<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_unspecified() {
            true => Ok(()),
            false => write!(f, ", affinity by source & {}", std::net::Ipv6Addr::from(self.0.0)),
        }
    }
}

/// Addresses and ports.
struct From<'a>(&'a Sources);

impl fmt::Display for From<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sources { addresses, count, first_port, ports } = self.0;
        for address in &addresses[..*count as usize] {
            write!(f, "{} ", Ip(address))?;
        }
        write!(f, "ports {first_port}+{ports}")
    }
}

/// What connection ids look like, if they name backends.
struct ConnectionIds(Quic);

impl fmt::Display for ConnectionIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Quic { list: 0, .. } => Ok(()),
            Quic { list, length, rotation } => {
                write!(f, ", quic list {list} of {length} bytes, rotation {rotation}")
            }
        }
    }
}

struct Outer<'a>(&'a Tunnel);

impl fmt::Display for Outer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tunnel { source, varying, port, .. } = self.0;
        match u16::from_be_bytes(*port) {
            0 => write!(f, "ip in ip")?,
            port => write!(f, "gue to port {port}")?,
        }
        write!(f, " from {}", Ip(source))?;
        match u32::from_be_bytes(*varying) {
            0 => Ok(()),
            bits => write!(f, " varying {bits:#x}"),
        }
    }
}

struct Hop<'a>(&'a NextHop);

impl fmt::Display for Hop<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NextHop { interface, mtu, source, destination } = self.0;
        match interface {
            0 => write!(f, "by the kernel"),
            _ => {
                let interface = interface & !VLAN_DEVICE;
                write!(f, "interface {interface} mtu {mtu} from {} to {}", Mac(*source), Mac(*destination))
            }
        }
    }
}

/// A MAC address in its usual spelling.
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A prefix and how many bits of the mapped address it has.
struct Net<'a>(&'a Address, u32);

impl fmt::Display for Net<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(address, bits) = self;
        match std::net::Ipv6Addr::from(address.0).to_canonical() {
            ip @ IpAddr::V4(_) => write!(f, "{ip}/{}", bits - 96),
            ip @ IpAddr::V6(_) => write!(f, "{ip}/{bits}"),
        }
    }
}
