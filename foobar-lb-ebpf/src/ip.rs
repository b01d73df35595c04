//! IP headers, without caring for the family: what is read of them, what is changed, and fresh ones.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    checksum::Change,
    extension::{Beyond, is_extension},
    headers::{EtherType, Side, ether_type},
    layout::{Address, MAPPED_PREFIX, mapped},
    packet::Frame,
    reason::Reason,
};

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

/// What an IP header says besides its addresses. In whole words, which the compiler clears at once.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Ip {
    /// Where the next header begins, bytes from the start of the frame.
    pub next: u32,
    /// Identification of the datagram that it is a part of.
    pub id: u32,
    /// Bytes of the IP packet, header included.
    pub length: u16,
    /// What follows.
    pub protocol: u8,
    /// Remaining hops.
    pub hops: u8,
    /// A part of a larger datagram.
    pub fragment: bool,
    /// Carries the beginning of its datagram, and so the ports.
    pub first: bool,
    /// Routers may fragment it.
    pub may_fragment: bool,
    pad: bool,
}

/// What a fresh header says. Routers may not fragment it.
pub struct Fresh<'a> {
    /// Who sends it.
    pub source: &'a Address,
    /// Who is to receive it.
    pub destination: &'a Address,
    /// What follows.
    pub protocol: u8,
    /// Bytes of the IP packet, header included.
    pub length: u16,
    /// DSCP and ECN (RFC 2474, RFC 3168).
    pub traffic_class: u8,
}

impl Family {
    /// That of an address.
    #[inline(always)]
    pub fn of(address: &Address) -> Self {
        if is_mapped(&address.0) { Self::V4 } else { Self::V6 }
    }

    /// That of a packet behind an Ethernet header that says this.
    #[inline(always)]
    pub const fn of_ether_type(ether_type: EtherType) -> Option<Self> {
        // As numbers, because LLVM compares arrays byte by byte.
        const IPV4: u16 = u16::from_ne_bytes(ether_type::IPV4);
        const IPV6: u16 = u16::from_ne_bytes(ether_type::IPV6);
        match u16::from_ne_bytes(ether_type) {
            IPV4 => Some(Self::V4),
            IPV6 => Some(Self::V6),
            _ => None,
        }
    }

    /// What it changes in a checksum that one address is replaced by another.
    #[inline(always)]
    pub fn change(self, old: &Address, new: &Address) -> Change {
        match self {
            Self::V4 => Change::new().long(unmapped(old), unmapped(new)),
            Self::V6 => Change::new().address(old, new),
        }
    }

    /// The other one.
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// How Ethernet calls it.
    #[inline(always)]
    pub const fn ether_type(self) -> [u8; 2] {
        match self {
            Self::V4 => ether_type::IPV4,
            Self::V6 => ether_type::IPV6,
        }
    }

    /// How IP calls it inside of another (RFC 2003, RFC 2473).
    #[inline(always)]
    pub const fn protocol(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 41,
        }
    }

    /// Bytes of its header without options.
    #[inline(always)]
    pub const fn header_length(self) -> u32 {
        match self {
            Self::V4 => Ipv4Hdr::LEN as u32,
            Self::V6 => Ipv6Hdr::LEN as u32,
        }
    }

    /// Reads the IP header at `offset`.
    #[inline(always)]
    pub fn read(self, frame: &Frame<'_>, offset: u32) -> Result<Ip, Reason> {
        match self {
            Self::V4 => read_v4(frame.at(offset)?, offset),
            Self::V6 => read_v6(frame.at(offset)?, offset),
        }
    }

    /// Reads the IP header at `offset` and steps over extension headers behind it, so many of them at most.
    #[inline(always)]
    pub fn read_through(self, frame: &Frame<'_>, offset: u32, extensions: u32) -> Result<Ip, Reason> {
        let mut ip = self.read(frame, offset)?;
        if self.has_extension(&ip) {
            Beyond::of(frame, ip.next, ip.protocol, extensions).apply(&mut ip);
        }
        Ok(ip)
    }

    /// Whether an extension header follows that can be stepped over.
    #[inline(always)]
    pub fn has_extension(self, ip: &Ip) -> bool {
        self == Self::V6 && is_extension(ip.protocol)
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
            (Self::V6, Side::Source) => in_words(frame.at::<Ipv6Hdr>(offset)?.src_addr),
            (Self::V6, Side::Destination) => in_words(frame.at::<Ipv6Hdr>(offset)?.dst_addr),
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
                let change = Change::new().long(*place, unmapped(address));
                *place = unmapped(address);
                header.check = change.apply(header.check);
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
                set_ttl(header, header.ttl - 1);
            }
            Self::V6 => frame.at_mut::<Ipv6Hdr>(offset)?.hop_limit -= 1,
        }
        Ok(())
    }

    /// DSCP and ECN of the header at `offset`.
    #[inline(always)]
    pub fn traffic_class(self, frame: &Frame<'_>, offset: u32) -> Result<u8, Reason> {
        Ok(match self {
            Self::V4 => frame.at::<Ipv4Hdr>(offset)?.tos,
            Self::V6 => {
                let [high, low, ..] = frame.at::<Ipv6Hdr>(offset)?.vcf;
                high << 4 | low >> 4
            }
        })
    }

    /// Gives the packet at `offset` so many hops.
    #[inline(always)]
    pub fn set_hops(self, frame: &mut Frame<'_>, offset: u32, hops: u8) -> Result<(), Reason> {
        match self {
            Self::V4 => set_ttl(frame.at_mut::<Ipv4Hdr>(offset)?, hops),
            Self::V6 => frame.at_mut::<Ipv6Hdr>(offset)?.hop_limit = hops,
        }
        Ok(())
    }

    /// Gives the packet at `offset` all hops of a fresh one.
    #[inline(always)]
    pub fn renew_hops(self, frame: &mut Frame<'_>, offset: u32) -> Result<(), Reason> {
        self.set_hops(frame, offset, HOPS)
    }

    /// Writes a fresh header at `offset`.
    #[inline(always)]
    pub fn write(self, frame: &mut Frame<'_>, offset: u32, fresh: &Fresh<'_>) -> Result<(), Reason> {
        match self {
            Self::V4 => *frame.at_mut::<Ipv4Hdr>(offset)? = fresh_v4(fresh),
            Self::V6 => *frame.at_mut::<Ipv6Hdr>(offset)? = fresh_v6(fresh),
        }
        Ok(())
    }

    /// The beginning of a checksum of what follows a fresh header: its pseudo header (RFC 9293, 3.1; RFC 8200, 8.1),
    /// which ICMP does not have.
    #[inline(always)]
    pub fn pseudo_header(self, fresh: &Fresh<'_>) -> Change {
        if fresh.protocol == ICMP {
            return Change::new();
        }
        let length = fresh.length - self.header_length() as u16;
        Change::new()
            .added_address(fresh.source)
            .added_address(fresh.destination)
            .word([0; 2], length.to_be_bytes())
            .word([0; 2], [0, fresh.protocol])
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

/// Hops of a fresh packet (RFC 1700).
const HOPS: u8 = 64;

#[inline(always)]
fn set_ttl(header: &mut Ipv4Hdr, ttl: u8) {
    let old = [header.ttl, header.proto];
    header.ttl = ttl;
    header.check = Change::new().word(old, [ttl, header.proto]).apply(header.check);
}

#[inline(always)]
fn fresh_v4(fresh: &Fresh<'_>) -> Ipv4Hdr {
    const VERSION_AND_LENGTH: u8 = 0x45;
    let length = fresh.length.to_be_bytes();
    let frags = DO_NOT_FRAGMENT.to_be_bytes();
    let check = Change::new()
        .word([0; 2], [VERSION_AND_LENGTH, fresh.traffic_class])
        .word([0; 2], length)
        .word([0; 2], frags)
        .word([0; 2], [HOPS, fresh.protocol])
        .added_address(fresh.source)
        .added_address(fresh.destination)
        .finish();
    Ipv4Hdr {
        vihl: VERSION_AND_LENGTH,
        tos: fresh.traffic_class,
        tot_len: length,
        // One that is never fragmented needs none (RFC 6864).
        id: [0; 2],
        frags,
        ttl: HOPS,
        proto: fresh.protocol,
        check,
        src_addr: unmapped(fresh.source),
        dst_addr: unmapped(fresh.destination),
    }
}

#[inline(always)]
fn fresh_v6(fresh: &Fresh<'_>) -> Ipv6Hdr {
    const VERSION: u8 = 6;
    Ipv6Hdr {
        vcf: [VERSION << 4 | fresh.traffic_class >> 4, fresh.traffic_class << 4, 0, 0],
        payload_len: (fresh.length - Ipv6Hdr::LEN as u16).to_be_bytes(),
        next_hdr: fresh.protocol,
        hop_limit: HOPS,
        src_addr: fresh.source.0,
        dst_addr: fresh.destination.0,
    }
}

const DO_NOT_FRAGMENT: u16 = 0x4000;

#[inline(always)]
fn read_v4(header: &Ipv4Hdr, offset: u32) -> Result<Ip, Reason> {
    const MORE_FRAGMENTS: u16 = 0x2000;
    const FRAGMENT_OFFSET: u16 = 0x1fff;
    let header_length = u32::from(header.vihl & 0xf) * 4;
    let length = u16::from_be_bytes(header.tot_len);
    let is_whole = header_length >= Ipv4Hdr::LEN as u32 && u32::from(length) >= header_length;
    if header.vihl >> 4 != 4 || !is_whole {
        return Err(Reason::Malformed);
    }
    let fragmentation = u16::from_be_bytes(header.frags);
    Ok(Ip {
        protocol: header.proto,
        hops: header.ttl,
        length,
        next: offset + header_length,
        fragment: fragmentation & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0,
        first: fragmentation & FRAGMENT_OFFSET == 0,
        may_fragment: fragmentation & DO_NOT_FRAGMENT == 0,
        id: u32::from(u16::from_be_bytes(header.id)),
        pad: false,
    })
}

#[inline(always)]
fn read_v6(header: &Ipv6Hdr, offset: u32) -> Result<Ip, Reason> {
    if header.vcf[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    if is_mapped(&header.src_addr) || is_mapped(&header.dst_addr) {
        return Err(Reason::MappedAddress);
    }
    Ok(Ip {
        protocol: header.next_hdr,
        hops: header.hop_limit,
        length: u16::from_be_bytes(header.payload_len).saturating_add(Ipv6Hdr::LEN as u16),
        next: offset + Ipv6Hdr::LEN as u32,
        first: true,
        ..Ip::default()
    })
}

/// An address that is copied in whole words: LLVM takes it byte by byte otherwise.
#[inline(always)]
fn in_words(address: [u8; 16]) -> Address {
    let words: [u64; 2] = zerocopy::transmute!(address);
    zerocopy::transmute!(words)
}

#[inline(always)]
fn is_mapped(address: &[u8; 16]) -> bool {
    address[..MAPPED_PREFIX.len()] == MAPPED_PREFIX
}

#[inline(always)]
fn unmapped(address: &Address) -> [u8; 4] {
    // As in `mapped`.
    let [_, lower]: [u64; 2] = zerocopy::transmute!(*address);
    (u64::from_be(lower) as u32).to_be_bytes()
}
