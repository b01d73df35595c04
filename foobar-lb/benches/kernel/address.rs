//! The addresses of everybody who takes part.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;

pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const NEIGHBOUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const SERVICE_PORT: u16 = 80;
pub const GUE_PORT: u16 = 6080;
/// As many addresses as a service may take, so as many flows as possible.
pub const SNAT_SOURCES: u16 = 8;

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The address of a service, by its number. It differs from that of the first in the bits of the number, which is
    /// how the generator chooses one.
    pub fn vip(self, number: u16) -> SocketAddr {
        let last = 0x7150 ^ number;
        SocketAddr::new(self.address([203, 0], 0, last), SERVICE_PORT)
    }

    /// A backend's address, by its number.
    pub fn backend(self, number: u16) -> IpAddr {
        self.address([10, 1], 1, 1 + number)
    }

    /// The first client of one of two crowds, with as many zeros at the end as the generator fills in: of RFC 2544's and
    /// RFC 5180's networks.
    pub fn client(self, crowd: u8) -> SocketAddr {
        let ip = match self {
            Self::V4 => self.address([198, 18 + crowd], 0, 0),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0x2, 0, crowd.into(), 0, 0, 0, 0)),
        };
        SocketAddr::new(ip, 40_000)
    }

    /// No service.
    pub fn stranger(self) -> SocketAddr {
        SocketAddr::new(self.address([192, 0], 0xffff, 0x0201), SERVICE_PORT)
    }

    /// The balancer's own address in the backends' network.
    pub fn own(self) -> IpAddr {
        self.address([10, 1], 1, 0xfffd)
    }

    /// Behind whom clients are.
    pub fn gateway(self) -> IpAddr {
        self.address([10, 1], 1, 0xfffe)
    }

    /// The backends' network.
    pub fn network(self) -> IpNet {
        let bits = if self == Self::V4 { 16 } else { 64 };
        IpNet::new(self.address([10, 1], 1, 0), bits).expect("an address has so many bits")
    }

    /// All addresses.
    pub fn any(self) -> IpNet {
        IpNet::new(self.own(), 0).expect("no bit is too few").trunc()
    }

    /// Prefixes of hosts that are neighbours, and of the host itself: what a machine with one interface has of them.
    pub fn near(self) -> impl Iterator<Item = IpNet> {
        let own = match self {
            Self::V4 => &["127.0.0.0/8"][..],
            Self::V6 => &["::1/128", "fe80::/64", "ff00::/8"],
        };
        own.iter().map(|prefix| prefix.parse().expect("a prefix")).chain([self.network()])
    }

    /// Where packets to backends come from in mode `snat`.
    pub fn snat_sources(self) -> impl Iterator<Item = IpAddr> {
        (0..SNAT_SOURCES).map(move |number| self.address([10, 2], 2, number))
    }

    /// With `net` before `last` in IPv4, and 2001:db8:`net`:: in IPv6.
    fn address(self, [a, b]: [u8; 2], net: u16, last: u16) -> IpAddr {
        let [c, d] = last.to_be_bytes();
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, last)),
        }
    }
}
