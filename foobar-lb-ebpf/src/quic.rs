//! QUIC by connection id: servers issue ids that name them, as draft-ietf-quic-load-balancers has it without a key, so
//! that a connection stays on its backend when its client's address changes. What names nobody is left to the hash.

use network_types::udp::UdpHdr;

use crate::{
    flow::{Kind, Parsed},
    headers::{ConnectionId, LongHeader, UDP_LENGTH, Word},
    layout::{NO_BACKEND, Quic, ServerId, Service, UDP, backend_flag},
    packet::{Frame, Packet},
    reason::Reason,
    tables::Tables,
};

/// Of the first byte of a packet; its other bits depend on the version (RFC 8999, 5).
const LONG: u8 = 0x80;
/// Bits of the first byte of a connection id behind the config rotation bits.
const LENGTH_BITS: u32 = 5;

/// The backend that the packet itself names, if the service has connection ids do so, else `NO_BACKEND`. The fragments
/// of a datagram stay together, and only the first would show an id.
#[inline(always)]
pub fn find_backend<P: Packet, T: Tables>(
    packet: &mut P,
    parsed: &Parsed,
    service: &Service,
    tables: &T,
) -> u32 {
    let whole = parsed.ip.protocol == UDP && !parsed.ip.fragment;
    match service.quic.list != 0 && whole && matches!(parsed.kind, Kind::Ongoing(_)) {
        true => tables.named_backend(packet, parsed.ip.next, service.quic),
        false => NO_BACKEND,
    }
}

/// The backend that the destination connection id of a datagram names, if it serves, else `NO_BACKEND`. `udp` is where
/// the UDP header begins.
#[inline(always)]
pub fn named_backend<T: Tables>(frame: &Frame<'_>, tables: &T, udp: u32, quic: Quic) -> u32 {
    let Ok(Some(server)) = server_id(frame, udp, quic) else { return NO_BACKEND };
    let Some(id) = tables.named(&server) else { return NO_BACKEND };
    let serves = tables.backend(id).is_some_and(|backend| backend.flags & backend_flag::SERVES != 0);
    if serves { id } else { NO_BACKEND }
}

/// The server id in the datagram, if it may be one. No QUIC packet is so short that less follows the shortest
/// connection id than would be a part of the longest server id (RFC 9000, 10.3).
#[inline(always)]
fn server_id(frame: &Frame<'_>, udp: u32, quic: Quic) -> Result<Option<ServerId>, Reason> {
    let payload = udp + UDP_LENGTH;
    let [first, ..] = *frame.at::<Word>(payload)?;
    let (header, length) = match first & LONG {
        0 => (1, u8::MAX),
        _ => (size_of::<LongHeader>() as u32, frame.at::<LongHeader>(payload)?.length),
    };
    let id = frame.at::<ConnectionId>(payload + header)?;
    let end = UDP_LENGTH + header + size_of::<ConnectionId>() as u32;
    let whole = u32::from(u16::from_be_bytes(frame.at::<UdpHdr>(udp)?.len)) >= end;
    let routable = u16::from(id.first >> LENGTH_BITS) == quic.rotation && u16::from(length) > quic.length;
    Ok((whole && routable).then(|| beginning(id.rest, quic)))
}

/// The server id that these bytes begin with.
#[inline(always)]
fn beginning(bytes: [u8; 16], quic: Quic) -> ServerId {
    const HALF: u32 = 8;
    let length = u32::from(quic.length);
    // A shift by all bits of a number is none.
    let kept = |bytes: u32| u64::MAX.checked_shl((HALF - bytes) * u8::BITS).unwrap_or(0).to_be();
    let [high, low]: [u64; 2] = zerocopy::transmute!(bytes);
    let (high, low) = (high & kept(length.min(HALF)), low & kept(length.saturating_sub(HALF).min(HALF)));
    ServerId { list: quic.list, length, id: zerocopy::transmute!([high, low]) }
}
