//! ICMP errors: what they say, and the packet that they quote, in the other family (RFC 7915, 4.2 to 4.5 and 5.2 to 5.5).

use core::mem::offset_of;

use network_types::ip::Ipv6Hdr;

use super::{
    difference,
    header::{Carried, length},
    message::Message,
    ports, resize,
};
use crate::{
    checksum::Change,
    extension::FRAGMENT,
    flow::{IP, Parsed},
    forward::{apply, checksum, transport_length},
    headers::{Extension, ICMP_LENGTH, Icmp, Ports},
    ip::{Family, ICMPV6, Ip},
    layout::FlowKey,
    packet::{Frame, Packet},
    reason::Reason,
};

/// Translates an error about the packet quoted at `quoted`, with its TCP or UDP header at `transport`. What it quotes
/// went the other way: its ends are those of `to` in the other order.
#[inline(always)]
pub fn translate<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    to: &FlowKey,
    quoted: u32,
    transport: u32,
) -> Result<(), Reason> {
    // ICMPv6 sums the length of the whole message, of which a part knows nothing.
    if parsed.ip.fragment {
        return Err(Reason::Untranslatable);
    }
    let (old, new, icmp) = (parsed.family, parsed.family.other(), parsed.ip.next);
    let before = sum(packet, old, icmp, transport + PORTS, parsed.ip.length - (icmp - IP) as u16)?;
    let frame = &mut packet.frame();
    let mut outer = Carried::read(frame, old, IP, &parsed.ip)?;
    let ip = read_quoted(frame, old, quoted, transport, to.source.protocol)?;
    let inner = Carried::read(frame, old, quoted, &ip)?;
    let check = frame.at::<Icmp>(icmp)?.check;
    let message = Message::translated(old, frame.at(icmp)?, ip.length)?;
    outer.identify(check);
    let change = before.undone().word([0; 2], check);
    let change = replace_quoted_ports(frame, parsed, to, transport, change)?;

    let quoted_length = length(new, ip.fragment);
    let grown = quoted_length as i32 - (transport - quoted) as i32;
    outer.behind = outer.behind.saturating_add_signed(grown as i16);
    outer.protocol = new.icmp();
    resize(packet, (IP + new.header_length()) as i32 - icmp as i32 + grown, new)?;
    let frame = &mut packet.frame();
    let (source, destination) = (&to.source.address, &to.destination.address);
    outer.write(frame, new, IP, source, destination)?;
    let icmp = IP + new.header_length();
    *frame.at_mut(icmp)? = message.header();
    inner.write(frame, new, icmp + ICMP_LENGTH, destination, source)?;
    let after = sum(packet, new, icmp, icmp + ICMP_LENGTH + quoted_length + PORTS, outer.behind)?;
    let change = change.and(after);
    packet.frame().at_mut::<Icmp>(icmp)?.check = change.apply(check);
    Ok(())
}

/// Bytes of what every error quotes of TCP or UDP.
const PORTS: u32 = size_of::<Ports>() as u32;

#[inline(always)]
fn read_quoted(
    frame: &Frame<'_>,
    family: Family,
    quoted: u32,
    transport: u32,
    protocol: u8,
) -> Result<Ip, Reason> {
    const MORE: u8 = 1;
    let mut ip = family.read(frame, quoted)?;
    if family == Family::V6 && ip.protocol == FRAGMENT {
        let header = frame.at::<Extension>(quoted + Ipv6Hdr::LEN as u32)?;
        ip.fragment = header.offset[1] & MORE != 0;
        ip.id = u32::from_be_bytes(header.id);
    }
    (ip.next, ip.protocol) = (transport, protocol);
    Ok(ip)
}

/// Replaces the ports that are quoted, and the checksum as far as it is; adds the latter to `change`.
#[inline(always)]
fn replace_quoted_ports(
    frame: &mut Frame<'_>,
    parsed: &Parsed,
    to: &FlowKey,
    transport: u32,
    change: Change,
) -> Result<Change, Reason> {
    let protocol = to.source.protocol;
    *frame.at_mut(transport)? = ports(&to.destination.port, &to.source.port);
    match checksum(frame, transport, protocol) {
        Ok(check) if transport + transport_length(protocol) <= parsed.end() => {
            let old = *check;
            *check = apply(difference(parsed, to), protocol, old);
            Ok(change.word(old, *check))
        }
        _ => Ok(change),
    }
}

/// What the headers of a message add to its checksum, from its own to before `end`, the pseudo header of one of so many
/// bytes included (RFC 4443, 2.3), which ICMP does not have.
#[inline(always)]
fn sum<P: Packet>(packet: &mut P, family: Family, icmp: u32, end: u32, bytes: u16) -> Result<Change, Reason> {
    const ADDRESSES: u32 = offset_of!(Ipv6Hdr, src_addr) as u32;
    let headers = packet.sum(icmp, end - icmp)?;
    Ok(match family {
        Family::V4 => headers,
        Family::V6 => {
            let addresses = packet.sum(IP + ADDRESSES, Ipv6Hdr::LEN as u32 - ADDRESSES)?;
            headers.and(addresses).word([0; 2], bytes.to_be_bytes()).word([0; 2], [0, ICMPV6])
        }
    })
}
