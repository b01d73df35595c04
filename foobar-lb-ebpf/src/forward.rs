//! Rewriting a packet towards its new end and sending it to its next hop.

use network_types::{tcp::TcpHdr, udp::UdpHdr};

use crate::{
    checksum::Change,
    flow::{IP, Kind, Parsed},
    headers::{Ethernet, Icmp, Macs, Ports, Side, UDP_LENGTH},
    ip::Family,
    layout::{Address, Endpoint, FlowKey, NO_ADDRESS, NextHop, TCP, VLAN_DEVICE},
    packet::Frame,
    reason::{Reason, Verdict},
    tables::Tables,
};

/// Replaces one end of a packet's flow: its destination on the way to a backend, its source on the way back.
#[inline(always)]
pub fn rewrite(frame: &mut Frame<'_>, parsed: &Parsed, side: Side, to: &Endpoint) -> Result<(), Reason> {
    rewrite_end(frame, parsed, side, to, Routers::Stay)
}

/// Replaces both ends of a packet's flow. What a router on the way complains of seems to come from the new source then:
/// the receiver need not have a route to the router.
#[inline(always)]
pub fn replace(frame: &mut Frame<'_>, parsed: &Parsed, to: &FlowKey) -> Result<(), Reason> {
    rewrite_end(frame, parsed, Side::Destination, &to.destination, Routers::Hide)?;
    rewrite_end(frame, parsed, Side::Source, &to.source, Routers::Hide)
}

/// What becomes of the address of a router that complains of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Routers {
    Stay,
    Hide,
}

#[inline(always)]
fn rewrite_end(
    frame: &mut Frame<'_>,
    parsed: &Parsed,
    side: Side,
    to: &Endpoint,
    routers: Routers,
) -> Result<(), Reason> {
    let from = match side {
        Side::Source => &parsed.flow.source,
        Side::Destination => &parsed.flow.destination,
    };
    match parsed.kind {
        Kind::Error { quoted, transport } => {
            let places = Quoted { ip: quoted, transport, end: parsed.end() };
            rewrite_error(frame, parsed, side, from, to, places, routers)
        }
        _ => {
            parsed.family.set_address(frame, IP, side, &to.address)?;
            if !parsed.ip.first {
                return Ok(());
            }
            let port = to.port_or(from.port);
            *side.port(frame.at_mut::<Ports>(parsed.ip.next)?) = port;
            let change = parsed.family.change(&from.address, &to.address).word(from.port, port);
            let check = checksum(frame, parsed.ip.next, to.protocol)?;
            *check = apply(change, to.protocol, *check);
            Ok(())
        }
    }
}

/// How a frame leaves.
#[derive(Clone, Copy, Default)]
pub struct Hop {
    /// Index of the interface, with [`VLAN_DEVICE`] where it is one; 0: not known.
    pub interface: u32,
    /// The largest IP packet that fits, bytes, where the packet does not; else 0.
    pub mtu: u32,
    /// What the frame's addresses are to be.
    pub macs: Macs,
}

impl Hop {
    /// To the next hop.
    #[inline(always)]
    pub fn to(next_hop: &NextHop) -> Self {
        let NextHop { interface, source, destination, .. } = *next_hop;
        Self { interface, mtu: 0, macs: Macs::new(source, destination) }
    }

    /// Whether a frame can leave.
    #[inline(always)]
    pub fn is_known(&self) -> bool {
        self.interface != 0
    }
}

/// What the kernel needs to know of a packet to find its way.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// Index of the interface it came in by.
    pub ingress: u32,
    /// What follows its IP header.
    pub protocol: u8,
    /// Its length in bytes as it goes on, IP header included.
    pub length: u16,
    /// Routers may fragment it.
    pub may_fragment: bool,
    /// Its source as it goes on.
    pub source: &'a Address,
    /// Its destination as it goes on.
    pub destination: &'a Address,
}

/// The way of a packet to a client: by a route that is known here; as the kernel says where none is, and where the
/// packet does not fit.
#[inline(always)]
pub fn find_way<T: Tables>(tables: &T, question: &Question<'_>, hop: &mut Hop) -> Result<(), Reason> {
    if tables.find_known_way(question.destination, question.length, hop) {
        return Ok(());
    }
    tables.route(question, hop)
}

/// Whether the first route that is for a destination leads where a packet of so many bytes fits; `hop` is there then.
#[inline(always)]
pub fn find_known_way<T: Tables>(tables: &T, destination: &Address, length: u16, hop: &mut Hop) -> bool {
    let Some(routes) = tables.routes() else { return false };
    let routes = match Family::of(destination) {
        Family::V4 => &routes.v4,
        Family::V6 => &routes.v6,
    };
    let route = routes.iter().find(|route| route.covers(destination));
    let fits = |next_hop: &&NextHop| next_hop.interface != 0 && u32::from(length) <= next_hop.mtu;
    match route.map(|route| &route.next_hop).filter(fits) {
        Some(next_hop) => {
            *hop = Hop::to(next_hop);
            true
        }
        None => false,
    }
}

/// Sends the frame out of the interface it came in by or another.
#[inline(always)]
pub fn transmit(frame: &mut Frame<'_>, hop: &Hop, ingress: u32) -> Result<Verdict, Reason> {
    frame.at_mut::<Ethernet>(0)?.set_macs(hop.macs);
    let back = hop.interface & !VLAN_DEVICE == ingress;
    Ok(if back { Verdict::Transmit } else { Verdict::Redirect(hop.interface) })
}

/// The checksum of the TCP or UDP header at `transport`.
#[inline(always)]
pub fn checksum<'f>(
    frame: &'f mut Frame<'_>,
    transport: u32,
    protocol: u8,
) -> Result<&'f mut [u8; 2], Reason> {
    Ok(match protocol {
        TCP => &mut frame.at_mut::<TcpHdr>(transport)?.check,
        _ => &mut frame.at_mut::<UdpHdr>(transport)?.check,
    })
}

/// The checksum of TCP or UDP after a change.
#[inline(always)]
pub fn apply(change: Change, protocol: u8, check: [u8; 2]) -> [u8; 2] {
    match protocol {
        TCP => change.apply(check),
        _ => change.apply_udp(check),
    }
}

/// Bytes of a TCP header without options, or of a UDP header.
#[inline(always)]
pub const fn transport_length(protocol: u8) -> u32 {
    match protocol {
        TCP => TcpHdr::LEN as u32,
        _ => UDP_LENGTH,
    }
}

/// Where the headers lie of the packet that an ICMP error quotes, and where the error ends.
struct Quoted {
    ip: u32,
    transport: u32,
    end: u32,
}

/// An ICMP error quotes a packet that went the other way, so the end to replace is on its other side. The
/// outer address is that end too, except where a router on the way speaks for itself.
#[inline(always)]
fn rewrite_error(
    frame: &mut Frame<'_>,
    parsed: &Parsed,
    side: Side,
    from: &Endpoint,
    to: &Endpoint,
    quoted: Quoted,
    routers: Routers,
) -> Result<(), Reason> {
    let mut change = Change::new();
    if routers == Routers::Hide || parsed.family.has_address(frame, IP, side, &from.address)? {
        let mut speaker = NO_ADDRESS;
        parsed.family.address(frame, IP, side, &mut speaker)?;
        parsed.family.set_address(frame, IP, side, &to.address)?;
        change = icmp_pseudo_header(parsed.family, change, &speaker, &to.address);
    }
    change = rewrite_quoted(frame, parsed.family, side.opposite(), from, to, quoted, change)?;
    let icmp = frame.at_mut::<Icmp>(parsed.ip.next)?;
    icmp.check = change.apply(icmp.check);
    Ok(())
}

/// ICMPv6 sums its pseudo header (RFC 4443, 2.3), ICMP does not.
#[inline(always)]
fn icmp_pseudo_header(family: Family, change: Change, old: &Address, new: &Address) -> Change {
    match family {
        Family::V4 => change,
        Family::V6 => change.address(old, new),
    }
}

/// Rewrites the quoted packet and adds all that changed in it, its own checksums included, to `change`.
#[inline(always)]
fn rewrite_quoted(
    frame: &mut Frame<'_>,
    family: Family,
    side: Side,
    from: &Endpoint,
    to: &Endpoint,
    quoted: Quoted,
    change: Change,
) -> Result<Change, Reason> {
    family.set_address(frame, quoted.ip, side, &to.address)?;
    // The quoted IPv4 header's checksum moves by as much as its address, in the opposite direction.
    let mut change = icmp_pseudo_header(family, change, &from.address, &to.address);
    let port = to.port_or(from.port);
    *side.port(frame.at_mut::<Ports>(quoted.transport)?) = port;
    change = change.word(from.port, port);
    // Only the first eight bytes behind the IP header are sure to be quoted (RFC 792); what lies behind the error is none
    // of it.
    match checksum(frame, quoted.transport, to.protocol) {
        Ok(check) if quoted.transport + transport_length(to.protocol) <= quoted.end => {
            let old = *check;
            let moved = Change::new().address(&from.address, &to.address).word(from.port, port);
            *check = apply(moved, to.protocol, old);
            Ok(change.word(old, *check))
        }
        _ => Ok(change),
    }
}
