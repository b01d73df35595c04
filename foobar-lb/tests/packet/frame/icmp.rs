//! ICMP and ICMPv6: errors, and pings.

use std::net::IpAddr;

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpHeaders, IpNumber, icmpv4, icmpv6};

use super::{Datagram, ETHERNET, Link, ip};

/// What an ICMP error says of the packet it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    PortUnreachable,
    /// Fragmentation needed, packet too big: the largest that fits.
    TooBig(u16),
    /// Time exceeded in transit.
    HopLimit,
}

/// An ICMP error on a wire.
#[derive(Clone, Debug)]
pub struct IcmpError {
    pub link: Link,
    pub from: IpAddr,
    pub to: IpAddr,
    pub hops: u8,
    pub complaint: Complaint,
    /// The packet it quotes, or as much of it as fits.
    pub quoted: Vec<u8>,
}

impl IcmpError {
    /// What the balancer says to the sender of this packet.
    pub fn about(datagram: &Datagram, packet: &[u8], from: IpAddr, complaint: Complaint) -> Self {
        /// It quotes no more.
        const MOST: usize = 128;
        let quoted = packet[..packet.len().min(MOST) & !3].to_vec();
        Self { link: datagram.link.back(), from, to: datagram.from.ip(), hops: 64, complaint, quoted }
    }

    pub fn frame(&self) -> Vec<u8> {
        let step = ip(self.link, self.from, self.to, self.hops);
        let mut frame = Vec::new();
        match self.to {
            IpAddr::V4(_) => step.icmpv4(self.icmpv4()).write(&mut frame, &self.quoted),
            IpAddr::V6(_) => step.icmpv6(self.icmpv6()).write(&mut frame, &self.quoted),
        }
        .expect("a vector takes all that is written");
        frame
    }

    /// The IP packet in it.
    pub fn packet(&self) -> Vec<u8> {
        self.frame().split_off(ETHERNET)
    }

    fn icmpv4(&self) -> Icmpv4Type {
        use icmpv4::{DestUnreachableHeader, TimeExceededCode};
        match self.complaint {
            Complaint::PortUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port),
            Complaint::TooBig(next_hop_mtu) => {
                Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu,
                })
            }
            Complaint::HopLimit => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
        }
    }

    fn icmpv6(&self) -> Icmpv6Type {
        use icmpv6::{DestUnreachableCode, TimeExceededCode};
        match self.complaint {
            Complaint::PortUnreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
            Complaint::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
            Complaint::HopLimit => Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded),
        }
    }
}

/// An ICMP message by its numbers: its type, its code, and the four bytes before its body.
pub type Numbered = (u8, u8, [u8; 4]);

/// A packet with a message of ICMP, or of ICMPv6 if it is between such addresses, behind this header.
pub fn message((type_u8, code_u8, bytes5to8): Numbered, header: IpHeaders, body: &[u8]) -> Vec<u8> {
    let (protocol, message) = match &header {
        IpHeaders::Ipv4(..) => {
            let kind = Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 };
            (IpNumber::ICMP, Icmpv4Header::with_checksum(kind, body).to_bytes().to_vec())
        }
        IpHeaders::Ipv6(header, _) => {
            let kind = Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8 };
            let message = Icmpv6Header::with_checksum(kind, header.source, header.destination, body);
            (IpNumber::IPV6_ICMP, message.expect("bodies are short").to_bytes().to_vec())
        }
    };
    ip::packet(header, &[], protocol, &[message, body.to_vec()].concat())
}

/// A ping on a wire, or its answer.
#[derive(Clone, Debug)]
pub struct Ping {
    pub link: Link,
    pub from: IpAddr,
    pub to: IpAddr,
    pub hops: u8,
    pub is_reply: bool,
    pub data: Vec<u8>,
}

impl Ping {
    /// What its receiver answers.
    pub fn answer(&self) -> Self {
        let data = self.data.clone();
        Self { link: self.link.back(), from: self.to, to: self.from, hops: 64, is_reply: true, data }
    }

    pub fn frame(&self) -> Vec<u8> {
        const ID: u16 = 0x1234;
        const SEQUENCE: u16 = 7;
        let step = ip(self.link, self.from, self.to, self.hops);
        let mut frame = Vec::new();
        match (self.to, self.is_reply) {
            (IpAddr::V4(_), false) => step.icmpv4_echo_request(ID, SEQUENCE).write(&mut frame, &self.data),
            (IpAddr::V4(_), true) => step.icmpv4_echo_reply(ID, SEQUENCE).write(&mut frame, &self.data),
            (IpAddr::V6(_), false) => step.icmpv6_echo_request(ID, SEQUENCE).write(&mut frame, &self.data),
            (IpAddr::V6(_), true) => step.icmpv6_echo_reply(ID, SEQUENCE).write(&mut frame, &self.data),
        }
        .expect("a vector takes all that is written");
        frame
    }
}
