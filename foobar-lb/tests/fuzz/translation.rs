//! What a forwarded frame has to be, but for its checksums, which only have to be right: the frame that arrived with
//! another end, one hop less and other MACs, and behind outer headers where there are any.

use anyhow::{Context, Result, ensure};
use etherparse::{IpNumber, Ipv4Header, Ipv6Header, UdpHeader};
use foobar_lb_ebpf::{
    headers::Side,
    layout::{Endpoint, FlowKey, MAPPED_PREFIX, Tunnel},
};

use super::seen::Seen;
use crate::packet::{
    frame::{ETHERNET, ether_type, ip_header},
    hex,
    world::Family,
};

/// The frame with one end replaced: that of its flow, and so the opposite one of a packet that it quotes.
pub fn with_end(frame: &[u8], seen: &Seen, side: Side, to: &Endpoint) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let Some(quoted) = seen.quoted(&frame) else {
        set_address(&mut frame, seen, side, to);
        if seen.is_first() {
            set_port(&mut frame, seen, side, to);
        }
        return frame;
    };
    let (own, of_flow) = match side {
        Side::Source => (seen.source, quoted.destination),
        Side::Destination => (seen.destination, quoted.source),
    };
    // A router on the way speaks for itself.
    if own == of_flow {
        set_address(&mut frame, seen, side, to);
    }
    set_address(&mut frame, &quoted, side.opposite(), to);
    set_port(&mut frame, &quoted, side.opposite(), to);
    frame
}

/// The frame with both ends of its flow replaced.
pub fn with_ends(frame: &[u8], seen: &Seen, to: &FlowKey) -> Vec<u8> {
    let frame = with_end(frame, seen, Side::Destination, &to.destination);
    let mut frame = with_end(&frame, seen, Side::Source, &to.source);
    // The receiver need not know a router on the way.
    set_address(&mut frame, seen, Side::Source, &to.source);
    frame
}

fn set_address(frame: &mut [u8], seen: &Seen, side: Side, to: &Endpoint) {
    let address = match seen.family() {
        Family::V4 => &to.address.0[MAPPED_PREFIX.len()..],
        Family::V6 => &to.address.0[..],
    };
    let source = match seen.family() {
        Family::V4 => seen.at + 12,
        Family::V6 => seen.at + 8,
    };
    let place = if side == Side::Source { source } else { source + address.len() };
    frame[place..place + address.len()].copy_from_slice(address);
}

fn set_port(frame: &mut [u8], seen: &Seen, side: Side, to: &Endpoint) {
    let place = if side == Side::Source { seen.next } else { seen.next + 2 };
    frame[place..place + 2].copy_from_slice(&to.port);
}

/// The frame with one hop less.
pub fn with_hop_less(mut frame: Vec<u8>, seen: &Seen) -> Vec<u8> {
    frame[seen.at + hops(seen.family())] -= 1;
    frame
}

/// Where the TTL or hop limit is in a header.
pub fn hops(family: Family) -> usize {
    match family {
        Family::V4 => 8,
        Family::V6 => 7,
    }
}

/// The frame without what is checked by computing it.
pub fn without_checksums(mut frame: Vec<u8>, seen: &Seen) -> Vec<u8> {
    let quoted = seen.quoted(&frame);
    for packet in [Some(*seen), quoted].into_iter().flatten() {
        let transport = if packet.is_first() { packet.transport_checksum() } else { None };
        for place in packet.header_checksum().into_iter().chain(transport) {
            frame.iter_mut().skip(place).take(2).for_each(|byte| *byte = 0);
        }
    }
    frame
}

/// Gives the frame the segment size that `out` asks for, if it was lowered to one of these.
pub fn with_segment_size(mut frame: Vec<u8>, seen: &Seen, out: &[u8], allowed: &[u32]) -> Vec<u8> {
    const OPTIONS: usize = 20;
    const SYN: u8 = 2;
    const OPTION: [u8; 2] = [2, 4];
    let is_syn =
        seen.protocol == IpNumber::TCP && frame.get(seen.next + 13).is_some_and(|flags| flags & SYN != 0);
    if !is_syn || out.len() != frame.len() {
        return frame;
    }
    let words = usize::from(frame[seen.next + 12] >> 4);
    let options = seen.next + OPTIONS..(seen.next + words * 4).min(frame.len());
    let place = options.clone().find(|place| {
        let Some(value) = place.checked_add(2).filter(|value| value + 2 <= options.end) else { return false };
        let size = |frame: &[u8]| u16::from_be_bytes([frame[value], frame[value + 1]]);
        frame[*place..value] == OPTION && size(out) < size(&frame) && allowed.contains(&size(out).into())
    });
    if let Some(value) = place.map(|place| place + 2) {
        frame[value..value + 2].copy_from_slice(&out[value..value + 2]);
    }
    frame
}

/// Takes the outer headers off again, and checks them.
pub fn take_out(
    out: &[u8],
    frame: &[u8],
    seen: &Seen,
    tunnel: &Tunnel,
    backend: &Endpoint,
) -> Result<Vec<u8>> {
    let inner = ether_type(seen.family()).0.to_be_bytes();
    let gue = tunnel.port != [0; 2];
    let outer = if backend.address.0.starts_with(&MAPPED_PREFIX) { Family::V4 } else { Family::V6 };
    let overhead = ip_header(outer) + if gue { UdpHeader::LEN } else { 0 };
    ensure!(
        out.len() == frame.len() + overhead,
        "it grew by {} bytes",
        out.len() as isize - frame.len() as isize
    );
    ensure!(out[ETHERNET - 2..ETHERNET] == ether_type(outer).0.to_be_bytes(), "the outer ether type");
    let header = Header::read(&out[ETHERNET..], outer)?;
    let length = declared_length(frame, seen) + overhead;
    ensure!(
        header.length == length,
        "the outer header says {} bytes, {length} would be right",
        header.length
    );
    ensure!(header.destination == backend.address.0, "the outer destination is not the backend");
    ensure!(is_of(tunnel, header.source), "the outer source {}", hex(&header.source));
    ensure!(header.traffic_class == traffic_class(frame, seen), "the outer traffic class");
    let ip = if seen.family() == Family::V4 { IpNumber::IPV4 } else { IpNumber::IPV6 };
    ensure!(header.protocol == if gue { IpNumber::UDP } else { ip }, "the outer protocol");
    if gue {
        check_udp(&out[ETHERNET + ip_header(outer)..], length - ip_header(outer), tunnel)?;
    }
    Ok([&out[..ETHERNET - 2], &inner, &out[ETHERNET + overhead..]].concat())
}

/// What an outer header says.
struct Header {
    source: [u8; 16],
    destination: [u8; 16],
    length: usize,
    protocol: IpNumber,
    traffic_class: u8,
}

impl Header {
    fn read(packet: &[u8], family: Family) -> Result<Self> {
        match family {
            Family::V4 => {
                let (header, _) = Ipv4Header::from_slice(packet).context("the outer header")?;
                ensure!(
                    header.header_checksum == header.calc_header_checksum(),
                    "the outer header's checksum"
                );
                ensure!(header.dont_fragment && !header.is_fragmenting_payload(), "it may be fragmented");
                Ok(Self {
                    source: std::net::Ipv4Addr::from(header.source).to_ipv6_mapped().octets(),
                    destination: std::net::Ipv4Addr::from(header.destination).to_ipv6_mapped().octets(),
                    length: header.total_len.into(),
                    protocol: header.protocol,
                    traffic_class: header.dscp.value() << 2 | header.ecn.value(),
                })
            }
            Family::V6 => {
                let (header, _) = Ipv6Header::from_slice(packet).context("the outer header")?;
                Ok(Self {
                    source: header.source,
                    destination: header.destination,
                    length: usize::from(header.payload_length) + Ipv6Header::LEN,
                    protocol: header.next_header,
                    traffic_class: header.traffic_class,
                })
            }
        }
    }
}

fn check_udp(packet: &[u8], length: usize, tunnel: &Tunnel) -> Result<()> {
    let (udp, _) = UdpHeader::from_slice(packet).context("the outer UDP header")?;
    ensure!(usize::from(udp.length) == length, "the UDP header says {} bytes", udp.length);
    ensure!(udp.destination_port.to_be_bytes() == tunnel.port, "to port {}", udp.destination_port);
    ensure!(udp.source_port >= 49_152 && udp.checksum == 0, "{udp:?}");
    Ok(())
}

/// Whether it is the tunnel's source, but for what varies with flows.
fn is_of(tunnel: &Tunnel, source: [u8; 16]) -> bool {
    let (fixed, varying) = source.split_at(12);
    let same = varying
        .iter()
        .zip(&tunnel.source.0[12..])
        .zip(tunnel.varying)
        .all(|((a, b), may)| (a ^ b) & !may == 0);
    fixed == &tunnel.source.0[..12] && same
}

/// Bytes of the packet by its own account.
pub fn declared_length(frame: &[u8], seen: &Seen) -> usize {
    let place = if seen.family() == Family::V4 { seen.at + 2 } else { seen.at + 4 };
    let length = usize::from(u16::from_be_bytes([frame[place], frame[place + 1]]));
    if seen.family() == Family::V4 { length } else { length + Ipv6Header::LEN }
}

fn traffic_class(frame: &[u8], seen: &Seen) -> u8 {
    match seen.family() {
        Family::V4 => frame[seen.at + 1],
        Family::V6 => frame[seen.at] << 4 | frame[seen.at + 1] >> 4,
    }
}
