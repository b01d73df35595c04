//! Which header types a [`Frame`](crate::packet::Frame) may show. What is said of IP headers is left to `ip`.

use network_types::{
    arp::ArpHdr,
    icmp::Icmpv4Hdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

/// A type that any bytes at any place are a valid value of.
///
/// # Safety
/// Implemented only in this file, for structs of byte arrays without padding.
pub unsafe trait Header: Copy {
    /// Fails to compile for a type that a frame cannot show at any offset.
    const UNALIGNED: () = assert!(align_of::<Self>() == 1);
}

macro_rules! headers {
    ($($header:ty),+ $(,)?) => {
        $(
            // SAFETY: a `repr(C)` struct of integers' bytes; its alignment is checked by the constant below.
            unsafe impl Header for $header {}
            const _: () = <$header as Header>::UNALIGNED;
        )+
    };
}

headers!(
    Ethernet,
    ArpHdr,
    Ipv4Hdr,
    Ipv6Hdr,
    TcpHdr,
    UdpHdr,
    Icmp,
    Ports,
    LinkOption,
    Target,
    Extension,
    Word,
    LongHeader,
    ConnectionId,
    EtherType
);

/// An Ethernet header; that of network-types asks for alignment 2.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ethernet {
    /// MAC of the receiver.
    pub destination: [u8; 6],
    /// MAC of the sender.
    pub source: [u8; 6],
    /// What follows.
    pub ether_type: [u8; 2],
}

/// The MAC addresses of a frame, as numbers: LLVM copies six bytes on the stack four at once, and the verifier wants
/// those aligned to four.
#[derive(Clone, Copy, Default)]
pub struct Macs {
    /// Of the receiver, its first byte the lowest in memory.
    pub destination: u64,
    /// Of the sender.
    pub source: u64,
}

impl Macs {
    /// Of a frame from one to another.
    #[inline(always)]
    pub fn new(source: [u8; 6], destination: [u8; 6]) -> Self {
        // Not byte by byte, as LLVM does it with six.
        let number = |[a, b, c, d, e, f]: [u8; 6]| {
            u64::from(u16::from_le_bytes([e, f])) << 32 | u64::from(u32::from_le_bytes([a, b, c, d]))
        };
        Self { destination: number(destination), source: number(source) }
    }

    /// Those of the answer.
    #[inline(always)]
    pub fn turned_back(self) -> Self {
        Self { destination: self.source, source: self.destination }
    }
}

impl Ethernet {
    /// Its addresses.
    #[inline(always)]
    pub fn macs(&self) -> Macs {
        Macs::new(self.source, self.destination)
    }

    /// Replaces its addresses.
    #[inline(always)]
    pub fn set_macs(&mut self, macs: Macs) {
        for (mac, number) in [(&mut self.destination, macs.destination), (&mut self.source, macs.source)] {
            // Not byte by byte, as LLVM does it with six.
            mac[..4].copy_from_slice(&(number as u32).to_le_bytes());
            mac[4..].copy_from_slice(&((number >> 32) as u16).to_le_bytes());
        }
    }

    /// Whether it goes to more than one host: to a group, or to all.
    #[inline(always)]
    pub fn is_to_many(&self) -> bool {
        self.destination[0] & 1 != 0
    }

    /// Makes it the header of an answer.
    #[inline(always)]
    pub fn turn_back(&mut self) {
        self.set_macs(self.macs().turned_back());
    }
}

/// ICMP and ICMPv6 share their first eight bytes.
pub type Icmp = Icmpv4Hdr;

/// Bytes of [`Icmp`].
pub const ICMP_LENGTH: u32 = size_of::<Icmp>() as u32;
/// Bytes of a UDP header.
pub const UDP_LENGTH: u32 = size_of::<UdpHdr>() as u32;

/// What TCP and UDP begin with.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Port of the sender.
    pub source: [u8; 2],
    /// Port of the receiver.
    pub destination: [u8; 2],
}

/// The target of a neighbour solicitation or advertisement (RFC 4861, 4.3).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Target(pub [u8; 16]);

/// A link-layer address option of neighbour discovery (RFC 4861, 4.6.1).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LinkOption {
    /// 1: of the source, 2: of the target.
    pub kind: u8,
    /// In units of 8 bytes.
    pub length: u8,
    /// The MAC.
    pub mac: [u8; 6],
}

/// What IPv6 extension headers begin with, and all of a fragment header (RFC 8200, 4).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Extension {
    /// What follows.
    pub next: u8,
    /// Its length; the unit, and what does not count, depend on its kind.
    pub length: u8,
    /// Of a fragment header: where the fragment begins, in units of 8 bytes, above three bits of flags.
    pub offset: [u8; 2],
    /// Of a fragment header: the datagram it is a part of.
    pub id: [u8; 4],
}

/// What QUIC packets with a long header begin with (RFC 8999, 5.1).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LongHeader {
    /// Its highest bit is set.
    pub first: u8,
    /// Version of QUIC.
    pub version: [u8; 4],
    /// Bytes of the destination connection id, which follows.
    pub length: u8,
}

/// As much of a QUIC connection id as may say where it is to be routed, and what follows a shorter one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ConnectionId {
    /// Config rotation bits, and five others.
    pub first: u8,
    /// Begins with the server id.
    pub rest: [u8; 16],
}
/// What follows an Ethernet header, or a VLAN tag.
pub type EtherType = [u8; 2];

/// Four bytes of anything.
pub type Word = [u8; 4];

/// Ether types.
pub mod ether_type {
    /// RFC 894.
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    /// RFC 826.
    pub const ARP: [u8; 2] = [0x08, 0x06];
    /// RFC 2464.
    pub const IPV6: [u8; 2] = [0x86, 0xdd];
    /// IEEE 802.1Q: here begins a tag, and behind it comes another ether type.
    pub const VLAN: [u8; 2] = [0x81, 0x00];
    /// IEEE 802.1ad: the same, of whoever carries the VLANs of others.
    pub const SERVICE_VLAN: [u8; 2] = [0x88, 0xa8];
}

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who sent it.
    Source,
    /// Who receives it.
    Destination,
}

impl Side {
    /// The other end.
    #[inline(always)]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    /// The port of this end.
    #[inline(always)]
    pub fn port(self, ports: &mut Ports) -> &mut [u8; 2] {
        match self {
            Self::Source => &mut ports.source,
            Self::Destination => &mut ports.destination,
        }
    }
}
