//! Which header types a [`Frame`] may show, and what is said of IP headers without caring for the family.

use network_types::{
    arp::ArpHdr,
    icmp::Icmpv4Hdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{
    checksum::Change,
    layout::{Address, MAPPED_PREFIX, mapped},
    packet::Frame,
    reason::Reason,
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

headers!(Ethernet, ArpHdr, Ipv4Hdr, Ipv6Hdr, TcpHdr, UdpHdr, Icmp, Ports, LinkOption, Target);

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

/// ICMP and ICMPv6 share their first eight bytes.
pub type Icmp = Icmpv4Hdr;

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

/// Ether types.
pub mod ether_type {
    /// RFC 894.
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    /// RFC 826.
    pub const ARP: [u8; 2] = [0x08, 0x06];
    /// RFC 2464.
    pub const IPV6: [u8; 2] = [0x86, 0xdd];
}

/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
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

/// What an IP header says besides its addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ip {
    /// What follows.
    pub protocol: u8,
    /// Remaining hops.
    pub hops: u8,
    /// Bytes of the IP packet, header included.
    pub length: u16,
    /// Where the next header begins, bytes from the start of the frame.
    pub next: u32,
    /// A part of a larger datagram.
    pub fragment: bool,
    /// Carries the beginning of its datagram, and so the ports.
    pub first: bool,
    /// Routers may fragment it.
    pub may_fragment: bool,
}

impl Family {
    /// Reads the IP header at `offset`.
    #[inline(always)]
    pub fn read(self, frame: &Frame<'_>, offset: u32) -> Result<Ip, Reason> {
        match self {
            Self::V4 => read_v4(frame.at(offset)?, offset),
            Self::V6 => read_v6(frame.at(offset)?, offset),
        }
    }

    /// Copies an address of the header at `offset`.
    #[inline(always)]
    pub fn address(
        self,
        frame: &Frame<'_>,
        offset: u32,
        side: Side,
        address: &mut Address,
    ) -> Result<(), Reason> {
        *address = match (self, side) {
            (Self::V4, Side::Source) => mapped(frame.at::<Ipv4Hdr>(offset)?.src_addr),
            (Self::V4, Side::Destination) => mapped(frame.at::<Ipv4Hdr>(offset)?.dst_addr),
            (Self::V6, Side::Source) => Address(frame.at::<Ipv6Hdr>(offset)?.src_addr),
            (Self::V6, Side::Destination) => Address(frame.at::<Ipv6Hdr>(offset)?.dst_addr),
        };
        Ok(())
    }

    /// Whether the header at `offset` has this address.
    #[inline(always)]
    pub fn has_address(
        self,
        frame: &Frame<'_>,
        offset: u32,
        side: Side,
        address: &Address,
    ) -> Result<bool, Reason> {
        Ok(match (self, side) {
            (Self::V4, Side::Source) => frame.at::<Ipv4Hdr>(offset)?.src_addr == unmapped(address),
            (Self::V4, Side::Destination) => frame.at::<Ipv4Hdr>(offset)?.dst_addr == unmapped(address),
            (Self::V6, Side::Source) => frame.at::<Ipv6Hdr>(offset)?.src_addr == address.0,
            (Self::V6, Side::Destination) => frame.at::<Ipv6Hdr>(offset)?.dst_addr == address.0,
        })
    }

    /// Replaces an address; an IPv4 header's checksum follows.
    #[inline(always)]
    pub fn set_address(
        self,
        frame: &mut Frame<'_>,
        offset: u32,
        side: Side,
        address: &Address,
    ) -> Result<(), Reason> {
        match self {
            Self::V4 => {
                let header = frame.at_mut::<Ipv4Hdr>(offset)?;
                let place = match side {
                    Side::Source => &mut header.src_addr,
                    Side::Destination => &mut header.dst_addr,
                };
                let old = mapped(*place);
                *place = unmapped(address);
                header.check = Change::new().address(&old, address).apply(header.check);
            }
            Self::V6 => {
                let header = frame.at_mut::<Ipv6Hdr>(offset)?;
                match side {
                    Side::Source => header.src_addr = address.0,
                    Side::Destination => header.dst_addr = address.0,
                }
            }
        }
        Ok(())
    }

    /// Takes one from the TTL (RFC 1812, 5.3.1) or hop limit.
    #[inline(always)]
    pub fn decrement_hops(self, frame: &mut Frame<'_>, offset: u32) -> Result<(), Reason> {
        match self {
            Self::V4 => {
                let header = frame.at_mut::<Ipv4Hdr>(offset)?;
                let old = [header.ttl, header.proto];
                header.ttl -= 1;
                header.check = Change::new().word(old, [header.ttl, header.proto]).apply(header.check);
            }
            Self::V6 => frame.at_mut::<Ipv6Hdr>(offset)?.hop_limit -= 1,
        }
        Ok(())
    }

    /// The ICMP of this family.
    #[inline(always)]
    pub const fn icmp(self) -> u8 {
        match self {
            Self::V4 => ICMP,
            Self::V6 => ICMPV6,
        }
    }

    /// Whether an ICMP message of this type is an error, which quotes a packet (RFC 792; RFC 4443, 2.1).
    #[inline(always)]
    pub const fn quotes(self, icmp_type: u8) -> bool {
        match self {
            Self::V4 => matches!(icmp_type, 3 | 11 | 12),
            Self::V6 => icmp_type < 128,
        }
    }
}

#[inline(always)]
fn read_v4(header: &Ipv4Hdr, offset: u32) -> Result<Ip, Reason> {
    const MORE_FRAGMENTS: u16 = 0x2000;
    const DO_NOT_FRAGMENT: u16 = 0x4000;
    const FRAGMENT_OFFSET: u16 = 0x1fff;
    let header_length = u32::from(header.vihl & 0xf) * 4;
    if header.vihl >> 4 != 4 || header_length < Ipv4Hdr::LEN as u32 {
        return Err(Reason::Malformed);
    }
    let fragmentation = u16::from_be_bytes(header.frags);
    Ok(Ip {
        protocol: header.proto,
        hops: header.ttl,
        length: u16::from_be_bytes(header.tot_len),
        next: offset + header_length,
        fragment: fragmentation & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0,
        first: fragmentation & FRAGMENT_OFFSET == 0,
        may_fragment: fragmentation & DO_NOT_FRAGMENT == 0,
    })
}

#[inline(always)]
fn read_v6(header: &Ipv6Hdr, offset: u32) -> Result<Ip, Reason> {
    const FRAGMENT_HEADER: u8 = 44;
    if header.vcf[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    if is_mapped(&header.src_addr) || is_mapped(&header.dst_addr) {
        return Err(Reason::MappedAddress);
    }
    let fragment = header.next_hdr == FRAGMENT_HEADER;
    Ok(Ip {
        protocol: header.next_hdr,
        hops: header.hop_limit,
        length: u16::from_be_bytes(header.payload_len).saturating_add(Ipv6Hdr::LEN as u16),
        next: offset + Ipv6Hdr::LEN as u32,
        fragment,
        first: !fragment,
        may_fragment: false,
    })
}

#[inline(always)]
fn is_mapped(address: &[u8; 16]) -> bool {
    address[..MAPPED_PREFIX.len()] == MAPPED_PREFIX
}

#[inline(always)]
fn unmapped(address: &Address) -> [u8; 4] {
    let [.., a, b, c, d] = address.0;
    [a, b, c, d]
}
