//! Rewriting a packet towards its new end and sending it to its next hop.

use network_types::{tcp::TcpHdr, udp::UdpHdr};

use crate::{
    checksum::Change,
    flow::{IP, Kind, Parsed},
    headers::{Ethernet, Family, Icmp, Ports, Side},
    layout::{Address, Endpoint, NextHop, TCP},
    packet::Frame,
    reason::{Reason, Verdict},
};

/// Replaces one end of a packet's flow: its destination on the way to a backend, its source on the way back.
#[inline(always)]
pub fn rewrite(frame: &mut Frame<'_>, parsed: &Parsed, side: Side, to: &Endpoint) -> Result<(), Reason> {
    let from = match side {
        Side::Source => &parsed.flow.source,
        Side::Destination => &parsed.flow.destination,
    };
    match parsed.kind {
        Kind::Error { quoted, transport } => {
            let places = Quoted { ip: quoted, transport };
            rewrite_error(frame, parsed, side, from, to, places)
        }
        _ => {
            parsed.family.set_address(frame, IP, side, &to.address)?;
            *side.port(frame.at_mut::<Ports>(parsed.ip.next)?) = to.port;
            let change = Change::new().address(&from.address, &to.address).word(from.port, to.port);
            let check = checksum(frame, parsed.ip.next, to.protocol)?;
            *check = apply(change, to.protocol, *check);
            Ok(())
        }
    }
}

/// Sends the frame to the next hop, out of the interface it came in by or another.
#[inline(always)]
pub fn transmit(frame: &mut Frame<'_>, next_hop: &NextHop, ingress: u32) -> Result<Verdict, Reason> {
    let ethernet = frame.at_mut::<Ethernet>(0)?;
    ethernet.destination = next_hop.destination;
    ethernet.source = next_hop.source;
    Ok(if next_hop.interface == ingress { Verdict::Transmit } else { Verdict::Redirect(next_hop.interface) })
}

#[inline(always)]
fn checksum<'f>(frame: &'f mut Frame<'_>, transport: u32, protocol: u8) -> Result<&'f mut [u8; 2], Reason> {
    Ok(match protocol {
        TCP => &mut frame.at_mut::<TcpHdr>(transport)?.check,
        _ => &mut frame.at_mut::<UdpHdr>(transport)?.check,
    })
}

#[inline(always)]
fn apply(change: Change, protocol: u8, check: [u8; 2]) -> [u8; 2] {
    match protocol {
        TCP => change.apply(check),
        _ => change.apply_udp(check),
    }
}

/// Where the headers lie of the packet that an ICMP error quotes.
struct Quoted {
    ip: u32,
    transport: u32,
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
) -> Result<(), Reason> {
    let mut change = Change::new();
    if parsed.family.has_address(frame, IP, side, &from.address)? {
        parsed.family.set_address(frame, IP, side, &to.address)?;
        change = icmp_pseudo_header(parsed.family, change, &from.address, &to.address);
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
    *side.port(frame.at_mut::<Ports>(quoted.transport)?) = to.port;
    change = change.word(from.port, to.port);
    // Only the first eight bytes behind the IP header are sure to be quoted (RFC 792).
    if let Ok(check) = checksum(frame, quoted.transport, to.protocol) {
        let old = *check;
        let moved = Change::new().address(&from.address, &to.address).word(from.port, to.port);
        *check = apply(moved, to.protocol, old);
        change = change.word(old, *check);
    }
    Ok(change)
}
