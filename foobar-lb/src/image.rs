//! The exact contents of every map that the control plane writes, as sorted values. `State` renders the wanted
//! one, `bpf` reads the current one, `plan` compares them; `Display` is the dump that golden tests compare.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use foobar_lb_ebpf::layout::{
    Address, Backend, DirectKey, Endpoint, Interface, NO_ADDRESS, NO_BACKEND, NextHop, Quic, Reply, SETTLED,
    ServerId, Service, Slot, Sources, TCP, TRACES, Tunnel, UDP, address_flag, backend_flag, mapped, mode,
};

use crate::{model::Protocol, plan::Step};

/// A prefix of direct clients: the key and how many bits of it count.
pub type DirectPrefix = (DirectKey, u32);

/// All maps that the control plane writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The attached interfaces by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// Backends by id.
    pub backends: BTreeMap<u32, Backend>,
    /// Outer headers of packets to backends, by id.
    pub tunnels: BTreeMap<u32, Tunnel>,
    /// Where packets to backends come from whose source is replaced, by id.
    pub sources: BTreeMap<u32, Sources>,
    /// Server ids of QUIC connection ids, and the ids of the backends they name.
    pub server_ids: BTreeMap<ServerId, u32>,
    /// Prefixes of direct clients.
    pub direct: BTreeMap<DirectPrefix, u32>,
    /// Backends' ends and what packets from them are rewritten to.
    pub replies: BTreeMap<Endpoint, Reply>,
    /// Flags of VIPs and of the balancer's own addresses.
    pub addresses: BTreeMap<Address, u32>,
    /// Tables by the index of their first slot.
    pub tables: BTreeMap<u32, Vec<Slot>>,
    /// Services and their tables.
    pub services: BTreeMap<Endpoint, Service>,
}

impl Image {
    /// Does to the image what a step does to the maps.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::PutInterface(index, interface) => drop(self.interfaces.insert(*index, *interface)),
            Step::PutBackend(id, backend) => drop(self.backends.insert(*id, *backend)),
            Step::PutTunnel(id, tunnel) => drop(self.tunnels.insert(*id, *tunnel)),
            Step::PutSources(id, sources) => drop(self.sources.insert(*id, *sources)),
            Step::PutServerId(server, id) => drop(self.server_ids.insert(*server, *id)),
            Step::PutDirect(prefix, value) => drop(self.direct.insert(*prefix, *value)),
            Step::PutReply(end, reply) => drop(self.replies.insert(*end, *reply)),
            Step::PutAddress(address, flags) => drop(self.addresses.insert(*address, *flags)),
            Step::StoreSlots { table, place, slots } => self.store(*table, *place, slots),
            Step::PutService(end, service) => drop(self.services.insert(*end, *service)),
            Step::RemoveService(end) => drop(self.services.remove(end)),
            Step::RemoveTable(first) => drop(self.tables.remove(first)),
            Step::RemoveAddress(address) => drop(self.addresses.remove(address)),
            Step::RemoveReply(end) => drop(self.replies.remove(end)),
            Step::RemoveServerId(server) => drop(self.server_ids.remove(server)),
            Step::RemoveDirect(prefix) => drop(self.direct.remove(prefix)),
            Step::RemoveSources(id) => drop(self.sources.remove(id)),
            Step::RemoveTunnel(id) => drop(self.tunnels.remove(id)),
            Step::RemoveBackend(id) => drop(self.backends.remove(id)),
            Step::RemoveInterface(index) => drop(self.interfaces.remove(index)),
        }
    }

    fn store(&mut self, table: u32, place: u32, slots: &[Slot]) {
        let table = self.tables.entry(table).or_default();
        let end = place as usize + slots.len();
        if table.len() < end {
            table.resize(end, Slot::settled(NO_BACKEND));
        }
        table[place as usize..end].copy_from_slice(slots);
    }
}

/// The address in the form of the maps.
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => Address(v6.octets()),
    }
}

/// The end in the form of the maps.
pub fn endpoint(socket: SocketAddr, protocol: Protocol) -> Endpoint {
    let protocol = match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    };
    Endpoint::new(address(socket.ip()), socket.port().to_be_bytes(), protocol)
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
            writeln!(f)?;
        }
        for (address, flags) in &self.addresses {
            writeln!(f, "address {}:{}", Ip(address), AddressFlags(*flags))?;
        }
        for (end, service) in &self.services {
            let Service { first_slot, slots, idle, mode, mss, affinity, quic } = service;
            let idle = std::time::Duration::from_nanos(*idle);
            write!(f, "service {}: {}, ", End(end), mode_name(*mode))?;
            write!(f, "slots {first_slot}+{slots}, idle {idle:?}")?;
            writeln!(f, "{}{}{}", Mss(*mss), Affinity(affinity), ConnectionIds(*quic))?;
            if let Some(table) = self.tables.get(first_slot) {
                write_table(f, table)?;
            }
        }
        for (id, backend) in &self.backends {
            let serves = if backend.flags & backend_flag::SERVES != 0 { "serves" } else { "does not serve" };
            writeln!(f, "backend {id}: {}, {serves}, {}", End(&backend.endpoint), Hop(&backend.next_hop))?;
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
            write!(f, "reply {}: as {}, backend {}", End(end), End(&reply.service), reply.backend)?;
            if reply.direct != 0 {
                write!(f, ", direct list {}", reply.direct)?;
            }
            writeln!(f, "{}", Mss(reply.mss))?;
        }
        for (key, bits) in self.direct.keys() {
            writeln!(f, "direct list {}: {}", key.list, Prefix(key, *bits))?;
        }
        Ok(())
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
        let protocol = if self.0.protocol == TCP { "tcp" } else { "udp" };
        write!(f, "{protocol} {}", SocketAddr::new(ip, u16::from_be_bytes(self.0.port)))
    }
}

struct AddressFlags(u32);

impl fmt::Display for AddressFlags {
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
        names.iter().filter(|(flag, _)| self.0 & flag != 0).try_for_each(|(_, name)| write!(f, " {name}"))
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

struct Prefix<'a>(&'a DirectKey, u32);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.1 - DirectKey::LIST_BITS;
        match std::net::Ipv6Addr::from(self.0.client).to_canonical() {
            ip @ IpAddr::V4(_) => write!(f, "{ip}/{}", bits - 96),
            ip @ IpAddr::V6(_) => write!(f, "{ip}/{bits}"),
        }
    }
}
