//! Where packets are sent: addresses, ports, and how people write them.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

/// Ports, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// The lowest.
    pub first: u16,
    /// The highest; not less than the first.
    pub last: u16,
}

impl Ports {
    /// All there are.
    pub const ANY: Self = Self { first: 0, last: u16::MAX };

    /// A single one.
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Whether these are all of the others, or more.
    pub fn contains(self, others: Self) -> bool {
        self.first <= others.first && others.last <= self.last
    }

    /// Whether some port is one of both.
    pub fn overlaps(self, others: Self) -> bool {
        self.first <= others.last && others.first <= self.last
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ANY => f.write_str("*"),
            Self { first, last } if first == last => write!(f, "{first}"),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

/// Where clients send their packets: a VIP or all addresses of a prefix, and a port or a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The VIP, as the prefix that has no other address, or the VIPs.
    pub vip: IpNet,
    /// The ports.
    pub ports: Ports,
}

impl Destination {
    /// The VIP and the port, if there is one of each.
    pub fn exact(&self) -> Option<SocketAddr> {
        let Self { vip, ports } = self;
        let is_one = is_host(vip) && ports.first == ports.last;
        is_one.then(|| SocketAddr::new(vip.addr(), ports.first))
    }

    /// The VIPs, unless they are too many to tell everybody of each: who asks for one of them is answered.
    pub(super) fn announced(&self) -> Vec<IpAddr> {
        const MOST: u32 = 256;
        let longest = self.vip.max_prefix_len();
        let few = u32::from(longest - self.vip.prefix_len()) <= MOST.ilog2();
        let vips = self.vip.subnets(longest).ok().filter(|_| few);
        vips.into_iter().flatten().map(|vip| vip.addr()).collect()
    }

    /// Of which family it is.
    pub fn is_ipv6(&self) -> bool {
        self.vip.addr().is_ipv6()
    }
}

impl From<SocketAddr> for Destination {
    fn from(address: SocketAddr) -> Self {
        Self { vip: address.ip().into(), ports: Ports::one(address.port()) }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vip, ports } = self;
        match (vip.addr(), is_host(vip)) {
            (IpAddr::V4(address), true) => write!(f, "{address}:{ports}"),
            (IpAddr::V4(_), false) => write!(f, "{vip}:{ports}"),
            (IpAddr::V6(address), true) => write!(f, "[{address}]:{ports}"),
            (IpAddr::V6(_), false) => write!(f, "[{vip}]:{ports}"),
        }
    }
}

/// Whether the prefix is one address.
pub fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// Where a backend listens, for people: without a port if packets keep theirs.
#[derive(Clone, Copy, Debug)]
pub struct Place(pub SocketAddr);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.port() {
            0 => write!(f, "{}", self.0.ip()),
            _ => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_shown_as_they_are_configured() {
        let shown = |vip: &str, first, last| {
            let vip = vip.parse().expect("a prefix");
            Destination { vip, ports: Ports { first, last } }.to_string()
        };
        assert_eq!(shown("203.0.113.80/32", 80, 80), "203.0.113.80:80");
        assert_eq!(shown("203.0.113.0/28", 5000, 5100), "203.0.113.0/28:5000-5100");
        assert_eq!(shown("2001:db8::80/128", 0, u16::MAX), "[2001:db8::80]:*");
        assert_eq!(shown("2001:db8::/64", 53, 53), "[2001:db8::/64]:53");
    }
}
