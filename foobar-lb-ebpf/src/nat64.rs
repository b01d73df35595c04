//! Translation of packets from IPv4 to IPv6 and back (RFC 7915), for flows whose backend is of the other family than the
//! VIP. IP headers are left to `header`, ICMP errors to `error`.
//!
//! What a translator of single packets cannot do: fragment what IPv4 lets routers fragment (its sender is told how large
//! a packet may be, whether it asked or not), and hide the routers of the other family, which have no address in this
//! one: what they complain of seems to come from the end behind them.

mod error;
mod header;
mod message;

use network_types::{ip::Ipv4Hdr, udp::UdpHdr};

use self::header::Carried;
use crate::{
    checksum::Change,
    flow::{IP, Kind, Parsed},
    forward::{apply, checksum},
    fragment,
    headers::{Ethernet, Ports, UDP_LENGTH, Word},
    ip::Family,
    layout::{FlowKey, UDP},
    packet::{Frame, Packet},
    reason::Reason,
    tables::Tables,
};

/// Bytes that a packet grows by as one of this family.
#[inline(always)]
pub fn growth(parsed: &Parsed, family: Family) -> i32 {
    if family == parsed.family {
        return 0;
    }
    let length = family.header_length() as i32;
    let part = header::length(family, parsed.ip.fragment) as i32;
    let headers = part - (parsed.ip.next - IP) as i32;
    match parsed.kind {
        Kind::Error { quoted, transport } => headers + length - (transport - quoted) as i32,
        _ => headers,
    }
}

/// Makes a packet of a flow that has a mapping to the other family one of that family; `is_error` says whether it is an
/// ICMP error. All else has been decided and done. False where it cannot be made one, which is counted.
#[inline(always)]
pub fn translate<P: Packet, T: Tables>(packet: &mut P, tables: &T, is_error: bool) -> bool {
    match try_translate(packet, tables, is_error) {
        Ok(()) => true,
        Err(reason) => {
            tables.count(reason, packet.length().into());
            false
        }
    }
}

#[inline(always)]
fn try_translate<P: Packet, T: Tables>(packet: &mut P, tables: &T, is_error: bool) -> Result<(), Reason> {
    let parsed = &mut Parsed::new();
    parsed.parse(packet)?;
    if !is_error {
        fragment::recall_ports(parsed, tables);
    }
    let to = &tables.mapping(&parsed.flow).ok_or(Reason::Unmapped)?.to;
    if parsed.family == Family::V4 && packet.is_source_routed(parsed.ip.next) {
        return Err(Reason::Untranslatable);
    }
    match parsed.kind {
        Kind::Error { quoted, transport } if is_error => {
            error::translate(packet, parsed, to, quoted, transport)
        }
        _ if is_error => Err(Reason::Untranslatable),
        _ => translate_datagram(packet, parsed, to),
    }
}

#[inline(always)]
fn translate_datagram<P: Packet>(packet: &mut P, parsed: &Parsed, to: &FlowKey) -> Result<(), Reason> {
    let mut header = Carried::read(&packet.frame(), parsed.family, IP, &parsed.ip)?;
    if parsed.ip.first {
        header.identify(replace_ports(packet, parsed, to)?);
    }
    let family = parsed.family.other();
    resize(packet, growth(parsed, family), family)?;
    header.write(&mut packet.frame(), family, IP, &to.source.address, &to.destination.address)
}

/// Replaces the ports of TCP or UDP, and its checksum by what it is to be in the other family, which it says.
#[inline(always)]
fn replace_ports<P: Packet>(packet: &mut P, parsed: &Parsed, to: &FlowKey) -> Result<[u8; 2], Reason> {
    let (transport, protocol) = (parsed.ip.next, to.source.protocol);
    let old = *checksum(&mut packet.frame(), transport, protocol)?;
    let new = if protocol == UDP && old == [0; 2] && parsed.family == Family::V4 {
        sum(packet, parsed, to)?
    } else {
        apply(difference(parsed, to), protocol, old)
    };
    let mut frame = packet.frame();
    *frame.at_mut(transport)? = ports(&to.source.port, &to.destination.port);
    *checksum(&mut frame, transport, protocol)? = new;
    Ok(new)
}

#[inline(always)]
fn ports(source: &[u8; 2], destination: &[u8; 2]) -> Ports {
    Ports { source: *source, destination: *destination }
}

/// What the new ends change in a checksum of TCP or UDP. The pseudo headers of both families (RFC 9293, 3.1; RFC 8200,
/// 8.1) have the same length and protocol in them, and an IPv4 address that is mapped counts as without its prefix: the
/// prefix is 0xffff, which is zero in the ones' complement.
#[inline(always)]
fn difference(parsed: &Parsed, to: &FlowKey) -> Change {
    let FlowKey { source, destination } = &parsed.flow;
    Change::new()
        .address(&source.address, &to.source.address)
        .address(&destination.address, &to.destination.address)
        .word(source.port, to.source.port)
        .word(destination.port, to.destination.port)
}

/// The checksum that a UDP datagram has to have in IPv6 that was sent without one in IPv4 (RFC 7915, 4.5). Only of one
/// that is short enough to be read as a whole.
#[inline(always)]
fn sum<P: Packet>(packet: &mut P, parsed: &Parsed, to: &FlowKey) -> Result<[u8; 2], Reason> {
    const WORD: u32 = size_of::<Word>() as u32;
    let (udp, too_long) = (parsed.ip.next, |_| Reason::NoChecksum);
    let length = packet.frame().at::<UdpHdr>(udp)?.len;
    let bytes = u32::from(u16::from_be_bytes(length));
    if parsed.ip.fragment || bytes < UDP_LENGTH || udp + bytes > parsed.end() {
        return Err(Reason::NoChecksum);
    }
    let whole_words = packet.sum(udp, bytes & !(WORD - 1)).map_err(too_long)?;
    let frame = packet.frame();
    let [_, a, b, c] = *frame.at::<Word>(udp + bytes - WORD).map_err(too_long)?;
    let rest = match bytes % WORD {
        0 => [0; 4],
        1 => [c, 0, 0, 0],
        2 => [b, c, 0, 0],
        _ => [a, b, c, 0],
    };
    let FlowKey { source, destination } = &parsed.flow;
    let sum = whole_words
        .added(rest)
        .word(source.port, to.source.port)
        .word(destination.port, to.destination.port)
        .added_address(&to.source.address)
        .added_address(&to.destination.address)
        .word([0; 2], length)
        .word([0; 2], [0, UDP]);
    Ok(match sum.finish() {
        [0, 0] => [0xff, 0xff],
        check => check,
    })
}

/// Moves the start of the frame so that its IP packet grows by so many bytes, and calls it one of this family.
#[inline(always)]
fn resize<P: Packet>(packet: &mut P, growth: i32, family: Family) -> Result<(), Reason> {
    let macs = packet.frame().at::<Ethernet>(0)?.macs();
    packet.move_start(-growth)?;
    let mut frame = packet.frame();
    let ethernet = frame.at_mut::<Ethernet>(0)?;
    ethernet.set_macs(macs);
    ethernet.ether_type = family.ether_type();
    Ok(())
}

/// Behind so many others an option is not looked for.
const FARTHEST_OPTION: u32 = 10;

/// Whether the IPv4 header that ends here has a source route (RFC 791, 3.1) that leads elsewhere first.
#[inline(always)]
pub fn is_source_routed(frame: &Frame<'_>, end: u32) -> bool {
    const END_OF_OPTIONS: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    let mut at = IP + Ipv4Hdr::LEN as u32;
    for _ in 0..FARTHEST_OPTION {
        if at >= end {
            return false;
        }
        let Ok([kind, length, pointer, _]) = frame.at::<Word>(at).copied() else { return false };
        match kind {
            END_OF_OPTIONS => return false,
            NO_OPERATION => at += 1,
            LOOSE | STRICT => return pointer <= length,
            _ if length < 2 => return false,
            _ => at += u32::from(length),
        }
    }
    false
}
