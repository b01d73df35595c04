//! Outer headers: how a packet reaches a backend that takes them off again and answers by itself. IPv4 or IPv6 in
//! either of them (RFC 2003, RFC 2473, RFC 4213), or behind a UDP header, as generic UDP encapsulation has it for an IP
//! packet without a header of its own (draft-ietf-intarea-gue, variant 1).

use network_types::udp::UdpHdr;

use crate::{
    flow::{IP, Parsed},
    headers::{Ethernet, UDP_LENGTH},
    ip::{Family, Fresh},
    layout::{Address, Tunnel, UDP},
    packet::Packet,
    reason::Reason,
};

/// A way to a backend through a tunnel.
#[derive(Clone, Copy)]
pub struct Way<'t> {
    /// The outer headers but for their destination.
    pub tunnel: &'t Tunnel,
    /// The outer destination.
    pub backend: &'t Address,
    /// Hash of the flow; what varies with it is taken from the upper half, as the lower one chose the slot.
    pub hash: u64,
}

impl Way<'_> {
    /// Bytes that it adds to a packet.
    #[inline(always)]
    pub fn overhead(&self) -> u32 {
        let udp = if self.has_udp() { UDP_LENGTH } else { 0 };
        Family::of(self.backend).header_length() + udp
    }

    #[inline(always)]
    fn has_udp(&self) -> bool {
        self.tunnel.port != [0; 2]
    }

    /// The outer source: addresses of its prefix stand for flows.
    #[inline(always)]
    fn source(&self) -> Address {
        let Address(mut bytes) = self.tunnel.source;
        let hash = ((self.hash >> 32) as u32).to_ne_bytes();
        for (byte, (varying, hash)) in bytes[12..].iter_mut().zip(self.tunnel.varying.iter().zip(hash)) {
            *byte |= varying & hash;
        }
        Address(bytes)
    }
}

/// Puts the outer headers around a packet. Its traffic class, ECN included, is copied to the outer header (RFC 6040,
/// 4.1, normal mode). Nobody may fragment what comes out: to take it apart again a backend would have to wait for all of
/// the fragments.
#[inline(always)]
pub fn encapsulate<P: Packet>(packet: &mut P, parsed: &Parsed, way: &Way<'_>) -> Result<(), Reason> {
    let outer = Family::of(way.backend);
    let frame = packet.frame();
    let traffic_class = parsed.family.traffic_class(&frame, IP)?;
    let macs = frame.at::<Ethernet>(0)?.macs();
    packet.move_start(-(way.overhead() as i32))?;
    let mut frame = packet.frame();
    let ethernet = frame.at_mut::<Ethernet>(0)?;
    ethernet.set_macs(macs);
    ethernet.ether_type = outer.ether_type();
    let inner = parsed.family.protocol();
    let fresh = Fresh {
        source: &way.source(),
        destination: way.backend,
        protocol: if way.has_udp() { UDP } else { inner },
        length: parsed.ip.length.saturating_add(way.overhead() as u16),
        traffic_class,
    };
    outer.write(&mut frame, IP, &fresh)?;
    if way.has_udp() {
        let length = parsed.ip.length.saturating_add(UDP_LENGTH as u16);
        *frame.at_mut::<UdpHdr>(IP + outer.header_length())? = UdpHdr {
            src: source_port(way.hash),
            dst: way.tunnel.port,
            len: length.to_be_bytes(),
            // None: what is inside has its own (RFC 6935 allows it in IPv6).
            check: [0; 2],
        };
    }
    Ok(())
}

/// Of the ephemeral ports, as RFC 8085, 5.1.1 asks.
#[inline(always)]
fn source_port(hash: u64) -> [u8; 2] {
    ((hash >> 32) as u16 | 0xc000).to_be_bytes()
}
