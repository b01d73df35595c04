//! The vocabulary: services, backends, what the operator says of them and what is measured.
//! No I/O, no clock, no serde; everyone else speaks in these types.

use std::{fmt, net::SocketAddr, time::Duration};

use ipnet::IpNet;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The destination is rewritten; replies come back through the balancer and are rewritten without state.
    Nat,
}

/// What clients share: where a service is reached. One service per key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The VIP and the port.
    pub address: SocketAddr,
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
    /// Whether the balancer answers ARP and neighbour solicitations for the VIP.
    pub announce: bool,
    /// What happens to new flows when no backend is eligible.
    pub when_empty: WhenEmpty,
    /// How its backends are checked.
    pub health: health::Settings,
    /// At least one, no two with the same address.
    pub backends: Vec<Backend>,
}

/// A server behind a service. Its identity is its address and port, never its weight or position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Unique within the service.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share of new flows relative to its siblings, 0..=1000; 0 drains.
    pub weight: u16,
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
