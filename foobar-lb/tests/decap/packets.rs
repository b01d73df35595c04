//! Packets in packets. All headers are written by another implementation, etherparse: lengths and checksums are its own.

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions, Ipv6FlowLabel,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, PacketBuilder,
};

/// Where GUE comes to: not the default, so that it is seen to be taken from the operator.
pub const GUE_PORT: u16 = 6081;
/// Bytes of an Ethernet header, and of the shortest frame that the kernel runs a program on.
pub const ETHERNET: usize = 14;
/// Bytes of a UDP header.
pub const UDP: usize = 8;

// The codes of ECN (RFC 3168).
pub const NOT_ECT: u8 = 0b00;
pub const ECT_1: u8 = 0b01;
pub const ECT_0: u8 = 0b10;
pub const CE: u8 = 0b11;

const HOPS: u8 = 63;
/// DSCP of the packets inside, and of those around them.
const INNER_DSCP: u8 = 46 << 2;
const OUTER_DSCP: u8 = 10 << 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// How it is called inside of the other.
    pub fn number(self) -> IpNumber {
        match self {
            Self::V4 => IpNumber::IPV4,
            Self::V6 => IpNumber::IPV6,
        }
    }

    pub fn ether_type(self) -> EtherType {
        match self {
            Self::V4 => EtherType::IPV4,
            Self::V6 => EtherType::IPV6,
        }
    }
}

/// An IPv4 address and the IPv6 address beside it.
pub struct Dual(&'static str, &'static str);

const CLIENT: Dual = Dual("198.51.100.7", "2001:db8:7::7");
pub const VIP: Dual = Dual("203.0.113.80", "2001:db8::80");
pub const OTHER: Dual = Dual("203.0.113.81", "2001:db8::81");
const BALANCER: Dual = Dual("10.0.1.1", "fd00:b::1");
const BACKEND: Dual = Dual("10.0.1.11", "fd00:b::11");

impl Dual {
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.0.parse(),
            Family::V6 => self.1.parse(),
        }
        .expect("it is an address")
    }
}

/// How a packet is put into another.
#[derive(Clone, Copy, Debug)]
pub enum Encapsulation {
    Ip,
    /// GUE without a header of its own.
    Gue,
    /// GUE with one.
    GueHeader,
}

pub const ENCAPSULATIONS: [Encapsulation; 3] =
    [Encapsulation::Ip, Encapsulation::Gue, Encapsulation::GueHeader];

/// A packet in a packet, in a frame.
#[derive(Clone)]
pub struct Tunnelled {
    pub outer: IpHeaders,
    pub inner: Family,
    /// The IP packet inside.
    pub packet: Vec<u8>,
}

impl Tunnelled {
    pub fn new(outer: Family, inner: Family) -> Self {
        Self::with(outer, NOT_ECT, inner, packet(inner, NOT_ECT, &VIP))
    }

    pub fn with(outer: Family, ecn: u8, inner: Family, packet: Vec<u8>) -> Self {
        Self { outer: ip(outer, OUTER_DSCP | ecn, &BALANCER, &BACKEND), inner, packet }
    }

    pub fn frame(&self, encapsulation: Encapsulation) -> Vec<u8> {
        match encapsulation {
            Encapsulation::Ip => self.frame_of(self.inner.number(), &self.packet),
            Encapsulation::Gue => self.frame_of_udp(&self.packet),
            Encapsulation::GueHeader => self.frame_of_gue([0, self.inner.number().0, 0, 0]),
        }
    }

    pub fn frame_of_gue(&self, header: [u8; 4]) -> Vec<u8> {
        self.frame_of_udp(&[&header, &self.packet[..]].concat())
    }

    fn frame_of_udp(&self, payload: &[u8]) -> Vec<u8> {
        self.frame_of_udp_to(GUE_PORT, payload)
    }

    pub fn frame_of_udp_to(&self, port: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let step = PacketBuilder::ip(self.outer.clone()).udp(0xc001, port);
        step.write(&mut packet, payload).expect("a vector takes all that is written");
        ethernet(self.outer_family(), &packet)
    }

    pub fn frame_of(&self, number: IpNumber, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let step = PacketBuilder::ip(self.outer.clone());
        step.write(&mut packet, number, payload).expect("a vector takes all that is written");
        ethernet(self.outer_family(), &packet)
    }

    fn outer_family(&self) -> Family {
        match self.outer {
            IpHeaders::Ipv4(..) => Family::V4,
            IpHeaders::Ipv6(..) => Family::V6,
        }
    }
}

/// A client's packet.
pub fn packet(family: Family, ecn: u8, to: &Dual) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = PacketBuilder::ip(ip(family, INNER_DSCP | ecn, &CLIENT, to)).udp(40_000, 53);
    step.write(&mut packet, b"a payload of odd length").expect("a vector takes all that is written");
    packet
}

/// The headers up to the transport; lengths and checksums are filled in when they are known.
fn ip(family: Family, traffic_class: u8, from: &Dual, to: &Dual) -> IpHeaders {
    match (from.of(family), to.of(family)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = Ipv4Header::new(0, HOPS, IpNumber::UDP, from.octets(), to.octets())
                .expect("nothing is short enough");
            header.dscp = (traffic_class >> 2).try_into().expect("6 bits");
            header.ecn = (traffic_class & CE).try_into().expect("2 bits");
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                traffic_class,
                flow_label: Ipv6FlowLabel::try_new(0xf_1234).expect("20 bits"),
                hop_limit: HOPS,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        }
        _ => unreachable!("both are of the same family"),
    }
}

pub fn fragment(headers: &mut IpHeaders, offset: u16, more: bool) {
    let offset = IpFragOffset::try_new(offset).expect("13 bits");
    match headers {
        IpHeaders::Ipv4(header, _) => {
            header.dont_fragment = false;
            header.more_fragments = more;
            header.fragment_offset = offset;
        }
        IpHeaders::Ipv6(_, extensions) => {
            extensions.fragment = Some(Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, 7));
        }
    }
}

/// Three options that do nothing and the end of the list (RFC 791), or options that pad (RFC 8200, 4.2), where Linux
/// puts the limit of encapsulations (RFC 2473).
pub fn add_options(headers: &mut IpHeaders) {
    match headers {
        IpHeaders::Ipv4(header, _) => header.options = [1, 1, 1, 0].into(),
        IpHeaders::Ipv6(_, extensions) => {
            let padding = Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[1, 4, 0, 0, 0, 0]);
            extensions.destination_options = Some(padding.expect("it is short enough"));
        }
    }
}

pub fn ethernet(family: Family, payload: &[u8]) -> Vec<u8> {
    ethernet_of(family.ether_type(), payload)
}

pub fn ethernet_of(ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
    let header =
        Ethernet2Header { source: [2, 0, 0, 0, 0, 1], destination: [2, 0, 0, 0, 0, 0x11], ether_type };
    [&header.to_bytes(), payload].concat()
}
