//! The vocabulary: services, backends, what the operator says of them and what is measured.
//! No I/O, no clock, no serde; everyone else speaks in these types.

mod destination;
mod share;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use ipnet::IpNet;

pub use self::{
    destination::{Destination, Place, Ports, is_host},
    share::{NotAShare, Share, percentage},
};
use crate::health;

/// The transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293; a flow begins with a SYN.
    Tcp,
    /// RFC 768; a flow has no beginning that a packet shows.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// How a service's packets reach its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The destination is rewritten; replies come back through the balancer and are rewritten without state.
    Nat,
    /// The same, but a client in a backend's own subnet, who would get its reply past the balancer, comes from one of
    /// the balancer's own addresses.
    Hairpin(Pool),
    /// Only the MAC addresses change: backends on the balancer's own links have the VIP and reply directly.
    Dsr,
    /// The packet travels inside another to the backend, which takes it out, has the VIP and replies directly.
    Tunnel(Tunnel),
    /// Both ends are rewritten: backends see the balancer as their client, and reply to it wherever their routes lead.
    Snat(Pool),
}

impl Mode {
    /// The name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nat | Self::Hairpin(_) => "nat",
            Self::Dsr => "dsr",
            Self::Tunnel(_) => "tunnel",
            Self::Snat(_) => "snat",
        }
    }

    /// Whether packets reach the backend with the VIP and the port that the client sent them to.
    pub fn keeps_destination(&self) -> bool {
        matches!(self, Self::Dsr | Self::Tunnel(_))
    }

    /// Whether replies are known by the backend that they come from.
    pub fn knows_replies_by_backend(&self) -> bool {
        matches!(self, Self::Nat | Self::Hairpin(_))
    }

    /// Where packets to backends come from, if their source is replaced.
    pub fn pool(&self) -> Option<&Pool> {
        match self {
            Self::Hairpin(pool) | Self::Snat(pool) => Some(pool),
            Self::Nat | Self::Dsr | Self::Tunnel(_) => None,
        }
    }
}

/// Where packets to backends come from whose source is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Addresses, at most [`Sources::MOST`](foobar_lb_ebpf::layout::Sources::MOST) of each family. Without one of the
    /// backend's family it is the balancer's own address towards the backend.
    pub addresses: Vec<IpAddr>,
    /// Ports of each of them.
    pub ports: RangeInclusive<u16>,
}

/// The outer headers of a service's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// What they are.
    pub encapsulation: Encapsulation,
    /// Where outer sources are taken from, at most one prefix for each family; whatever is longer than the prefix
    /// varies with the flow. Without one the source is the balancer's own address towards the backend.
    pub sources: Vec<IpNet>,
}

/// How a packet travels inside another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// IP in IP, any family in any (RFC 2003, RFC 2473, RFC 4213).
    Ipip,
    /// Generic UDP encapsulation, to this port.
    Gue(u16),
}

/// Which flows of a service share a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// None: every flow has its own.
    Flow,
    /// Those of clients whose addresses begin with the same so many bits.
    Source(u8),
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flow => f.write_str("flow"),
            Self::Source(bits) => write!(f, "source/{bits}"),
        }
    }
}

/// What the connection ids look like that the servers of a service issue, and by which they are told apart
/// (draft-ietf-quic-load-balancers, without a key).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quic {
    /// Bytes of a server id, 1..=15.
    pub server_id_length: u8,
    /// The first three bits of a connection id, 0..=6.
    pub config_rotation: u8,
}

/// The largest segment that TCP connections of a service may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mss {
    /// What fits on the way to every one of its backends.
    Auto,
    /// So many bytes.
    Bytes(u16),
}

/// What the balancer does for a VIP apart from the services on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vip {
    /// What becomes of TCP and UDP to a port that no service has.
    pub unmatched: Unmatched,
    /// Whether the balancer answers pings of it.
    pub ping: bool,
}

/// What becomes of packets to a port of a VIP that no service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmatched {
    /// The kernel gets them if it has the address; else they are dropped, as passing them on would make a loop.
    Pass,
    /// They are dropped.
    Drop,
    /// Their sender gets a RST, or an ICMP error.
    Reject,
}

/// What clients share: where a service is reached. One service per key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The VIP and the port, or more of them.
    pub address: Destination,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.address)
    }
}

/// What is done with new flows when no backend is eligible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenEmpty {
    /// Spread them over all enabled backends: a wrong health check must not take the site down.
    FailOpen,
    /// Drop them, counted.
    Refuse,
}

/// What becomes of UDP flows that are not remembered when their backend begins to drain. Nothing in a packet shows
/// whether its flow is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpDrain {
    /// They stay until the transition is over, and new ones with them.
    Keep,
    /// They go to another backend at once.
    Switch,
}

/// Which flows of a service are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remember {
    /// Those that a change of the table would break.
    Needed,
    /// All.
    All,
}

/// A balanced service, validated: it cannot be wrong by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique name, as the operator knows it.
    pub name: String,
    /// Where clients reach it.
    pub key: ServiceKey,
    /// How packets reach the backends.
    pub mode: Mode,
    /// Which flows share a backend.
    pub affinity: Affinity,
    /// How its QUIC connection ids name its backends, if they do.
    pub quic: Option<Quic>,
    /// Slots of its Maglev table; a prime.
    pub table_size: u32,
    /// How long a slot that changed its owner still honours the previous one.
    pub transition: Duration,
    /// Silence after which a remembered flow is forgotten; at least `transition`.
    pub idle: Duration,
    /// How long the flows of a draining backend may stay on it; without limit if absent.
    pub drain_time: Option<Duration>,
    /// What becomes of flows of a draining backend that show no beginning; of no effect for TCP.
    pub udp_drain: UdpDrain,
    /// Which flows are remembered.
    pub remember: Remember,
    /// Clients that talk to the backends directly: replies to them are not rewritten.
    pub direct: Vec<IpNet>,
    /// The largest segment of its TCP connections, where that is clamped.
    pub mss: Option<Mss>,
    /// What is done for its VIP; the same for all services on one.
    pub vip: Vip,
    /// Whether the balancer answers ARP and neighbour solicitations for the VIP.
    pub announce: bool,
    /// What happens to new flows when no backend is eligible.
    pub when_empty: WhenEmpty,
    /// The largest share of its slots that a reload may move.
    pub max_moved: Option<Share>,
    /// How its backends are checked.
    pub health: health::Settings,
    /// At least one, no two with the same address.
    pub backends: Vec<Backend>,
}

impl Service {
    /// The addresses that the balancer answers ARP and neighbour solicitations for, unless they are its own anyway.
    pub fn announced(&self) -> impl Iterator<Item = IpAddr> {
        let sources = self.mode.pool().into_iter().flat_map(|pool| &pool.addresses).copied();
        self.key.address.announced().into_iter().chain(sources).filter(|_| self.announce)
    }
}

/// A server behind a service. Its identity is its address and port, never its weight or position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Unique within the service.
    pub name: String,
    /// Where it listens. Port 0: packets keep theirs.
    pub address: SocketAddr,
    /// Its share of new flows relative to its siblings, 0..=1000; 0 drains.
    pub weight: u16,
    /// The server id in its QUIC connection ids, where the service has such; unique within the service.
    pub quic_id: Option<Vec<u8>>,
}

/// The operator's word about a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Admin {
    /// In service.
    Enabled,
    /// No new flows; known ones stay until they end or the drain time is over.
    Draining,
    /// No flows at all.
    Disabled,
    /// Draining because the configuration has it no more.
    Removed,
}

impl Admin {
    /// Whether known flows stay for the drain time only.
    pub fn drains(self) -> bool {
        matches!(self, Self::Draining | Self::Removed)
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Enabled => "enabled",
            Self::Draining => "draining",
            Self::Disabled => "disabled",
            Self::Removed => "removed",
        })
    }
}

/// What is measured of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Not measured yet.
    Unknown,
    /// Its health check succeeds.
    Up,
    /// Its health check fails.
    Down(Down),
}

/// How a backend is down: decides what becomes of its known flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Down {
    /// The host answers (refused, wrong status): its own kernel ends what is dead, so known flows stay.
    Answers,
    /// Nothing comes back (timeout, no neighbour, unreachable): known flows are re-picked.
    Silent,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down(Down::Answers) => "down (answers)",
            Self::Down(Down::Silent) => "down (silent)",
        })
    }
}

/// What a backend may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eligibility {
    /// New flows are sent to it.
    pub new_flows: bool,
    /// It serves: known flows may stay on it. Otherwise they are re-picked.
    pub serves: bool,
}

/// The one place where admin state and health meet. `cold_start`: since the daemon started the backends of the
/// service have not all been measured, so unmeasured ones take new flows.
pub fn eligibility(admin: Admin, health: Health, cold_start: bool) -> Eligibility {
    let serves = admin != Admin::Disabled && health != Health::Down(Down::Silent);
    let new_flows = match (admin, health) {
        (Admin::Enabled, Health::Up) => true,
        (Admin::Enabled, Health::Unknown) => cold_start,
        (Admin::Enabled, Health::Down(_)) | (Admin::Draining | Admin::Disabled | Admin::Removed, _) => false,
    };
    Eligibility { new_flows, serves }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eligibility_is_the_table_of_the_architecture() {
        let every_health =
            [Health::Unknown, Health::Up, Health::Down(Down::Answers), Health::Down(Down::Silent)];
        let rows = [
            (Admin::Enabled, false, [(false, true), (true, true), (false, true), (false, false)]),
            (Admin::Enabled, true, [(true, true), (true, true), (false, true), (false, false)]),
            (Admin::Draining, false, [(false, true), (false, true), (false, true), (false, false)]),
            (Admin::Draining, true, [(false, true), (false, true), (false, true), (false, false)]),
            (Admin::Disabled, true, [(false, false); 4]),
            (Admin::Removed, true, [(false, true), (false, true), (false, true), (false, false)]),
        ];
        for (admin, cold_start, expected) in rows {
            for (health, (new_flows, serves)) in every_health.into_iter().zip(expected) {
                assert_eq!(
                    eligibility(admin, health, cold_start),
                    Eligibility { new_flows, serves },
                    "{admin} {health} cold_start={cold_start}"
                );
            }
        }
    }
}
