//! What arrives, out of a fuzzer's bytes: frames that are right in themselves, such with some bytes changed or cut, and
//! frames that are nothing but bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arbitrary::{Arbitrary, Result, Unstructured};
use etherparse::ArpOperation;

use super::{
    scene::{OWN_PORTS, pick, several},
    seen::mend_checksums,
};
use crate::packet::{
    Arrival,
    frame::{
        Complaint, Datagram, Extension, Fragment, Header, IcmpError, Link, Ping, Transport, arp, ip, octets,
    },
    rows::quic,
    world::{
        BACKEND_SIDE, CLIENT, CLIENT_SIDE, COLLEAGUE, FAR, Family, Host, MONITOR, PORTS, UNRESOLVED,
        UNROUTED, VIP, WEBS,
    },
};

const TRANSPORTS: [Transport; 8] = [
    Transport::Syn,
    Transport::SynAck,
    Transport::Ack,
    Transport::BareAck,
    Transport::Fin,
    Transport::Rst,
    Transport::Udp,
    Transport::BareUdp,
];
const CLIENTS: [Host; 8] =
    [CLIENT, FAR, COLLEAGUE, UNRESOLVED, UNROUTED, MONITOR, CLIENT_SIDE.balancer, BACKEND_SIDE.balancer];
/// As long as headers of IPv4 may be.
const OPTIONS: [&[u8]; 3] = [&[], &[1; 4], &[1; 40]];
/// Bytes of TCP options at most.
const TCP_OPTIONS: usize = 40;
/// Bytes of a payload at most, and of a frame that is cut or lengthened.
const LONGEST: u16 = 1600;
/// Bytes of a frame without sense.
const LONGEST_NOISE: usize = 128;

/// Frames of one message, in the order of their arrival.
pub fn arrivals(bytes: &mut Unstructured) -> Result<Vec<Arrival>> {
    let mut arrivals = match bytes.int_in_range(0..=7)? {
        0..=2 => vec![whole(bytes)?],
        3 => parts(bytes)?,
        4 => vec![error(bytes)?],
        5 => vec![ping(bytes)?],
        6 => vec![question(bytes)?],
        _ => vec![noise(bytes)?],
    };
    for arrival in &mut arrivals {
        if bytes.ratio(1, 8)? {
            arrival.ingress = pick(bytes, &PORTS)?.index;
        }
        change(bytes, &mut arrival.frame)?;
    }
    Ok(arrivals)
}

/// Some bytes become others, or it ends elsewhere; its checksums may follow.
fn change(bytes: &mut Unstructured, frame: &mut Vec<u8>) -> Result<()> {
    for (place, byte) in several(bytes, 3, <(u8, u8)>::arbitrary)? {
        let place = usize::from(place) % frame.len().max(1);
        frame.iter_mut().skip(place).take(1).for_each(|old| *old = byte);
    }
    if bytes.ratio(1, 8)? {
        frame.resize(bytes.int_in_range(0..=LONGEST)?.into(), 0x5a);
    }
    if bytes.arbitrary()? {
        mend_checksums(frame);
    }
    Ok(())
}

fn whole(bytes: &mut Unstructured) -> Result<Arrival> {
    let datagram = datagram(bytes)?;
    Ok(arrival(&datagram, datagram.frame()))
}

/// The parts of two datagrams between the same hosts, in any order.
fn parts(bytes: &mut Unstructured) -> Result<Vec<Arrival>> {
    let datagram = datagram(bytes)?;
    let mut other = Datagram { id: datagram.id + 1, ..datagram.clone() };
    other.from.set_port(other.from.port() ^ 1);
    let first = usize::from(bytes.arbitrary::<u8>()?) + 1;
    let mut parts = [halves(&datagram, first), halves(&other, first)].concat();
    let mut arrivals = vec![];
    while !parts.is_empty() {
        arrivals.push(parts.swap_remove(bytes.choose_index(parts.len())?));
    }
    Ok(arrivals)
}

/// The first so many times eight bytes of a datagram, and the others.
fn halves(datagram: &Datagram, first: usize) -> Vec<Arrival> {
    const UNIT: usize = 8;
    let length = datagram.segment().len();
    let middle = (first * UNIT).min(length / UNIT * UNIT);
    let ends = [0..middle, middle..length].into_iter().filter(|part| !part.is_empty());
    ends.map(|part| arrival(datagram, datagram.carrying(datagram.part(part)))).collect()
}

/// An error about what the datagram answers, from its sender or from a router on the way.
fn error(bytes: &mut Unstructured) -> Result<Arrival> {
    let datagram = datagram(bytes)?;
    let complaint = pick(bytes, &[Complaint::PortUnreachable, Complaint::TooBig(1400), Complaint::HopLimit])?;
    let Datagram { link, from, to, hops, .. } = datagram.clone();
    let from_ip = if bytes.arbitrary()? { from.ip() } else { FAR.ip(datagram.family()) };
    let mut quoted = Datagram { from: to, to: from, hops: 60, ..datagram.clone() }.packet();
    quoted.truncate(28 + usize::from(bytes.arbitrary::<u8>()?));
    let error = IcmpError { link, from: from_ip, to: to.ip(), hops, complaint, quoted };
    Ok(arrival(&datagram, error.frame()))
}

fn ping(bytes: &mut Unstructured) -> Result<Arrival> {
    let datagram = datagram(bytes)?;
    let Datagram { link, from, hops, payload, .. } = datagram.clone();
    let to = VIP.ip(datagram.family());
    let ping = Ping { link, from: from.ip(), to, hops, is_reply: bytes.ratio(1, 8)?, data: payload };
    Ok(arrival(&datagram, ping.frame()))
}

/// Who has the VIP, or another address?
fn question(bytes: &mut Unstructured) -> Result<Arrival> {
    let wanted = pick(bytes, &[VIP, CLIENT_SIDE.balancer])?;
    let link = Link { from: CLIENT.mac, to: pick(bytes, &[[0xff; 6], CLIENT_SIDE.balancer.mac])? };
    let frame = match pick(bytes, &Family::BOTH)? {
        Family::V4 => {
            let operation = pick(bytes, &[ArpOperation::REQUEST, ArpOperation::REPLY])?;
            arp(link, operation, (CLIENT.mac, octets(CLIENT)), ([0; 6], octets(wanted)))
        }
        Family::V6 => solicitation(link, wanted),
    };
    Ok(Arrival { ingress: CLIENT_SIDE.index, frame })
}

/// RFC 4861, 4.3.
fn solicitation(link: Link, wanted: Host) -> Vec<u8> {
    const HOPS: u8 = 255;
    const SOLICITATION: u8 = 135;
    const SOURCE_MAC: [u8; 2] = [1, 1];
    let IpAddr::V6(target) = wanted.ip(Family::V6) else { unreachable!("asked for the IPv6 address") };
    let body = [&target.octets()[..], &SOURCE_MAC, &CLIENT.mac].concat();
    let mut frame = Vec::new();
    ip(link, CLIENT.ip(Family::V6), wanted.ip(Family::V6), HOPS)
        .icmpv6_raw(SOLICITATION, 0, [0; 4])
        .write(&mut frame, &body)
        .expect("a vector takes all that is written");
    frame
}

fn noise(bytes: &mut Unstructured) -> Result<Arrival> {
    let length = bytes.int_in_range(0..=LONGEST_NOISE)?.min(bytes.len());
    Ok(Arrival { ingress: pick(bytes, &PORTS)?.index, frame: bytes.bytes(length.min(bytes.len()))?.to_vec() })
}

fn arrival(datagram: &Datagram, frame: Vec<u8>) -> Arrival {
    let is_request = datagram.link.to == CLIENT_SIDE.balancer.mac;
    Arrival { ingress: if is_request { CLIENT_SIDE } else { BACKEND_SIDE }.index, frame }
}

fn datagram(bytes: &mut Unstructured) -> Result<Datagram> {
    let (family, transport) = (pick(bytes, &Family::BOTH)?, pick(bytes, &TRANSPORTS)?);
    let datagram = match bytes.arbitrary()? {
        true => request(bytes, family, transport)?,
        false => reply(bytes, family, transport)?,
    };
    let v6 = family == Family::V6;
    Ok(Datagram {
        hops: pick(bytes, &[64, 0, 1, 2, 255])?,
        traffic_class: bytes.arbitrary()?,
        id: bytes.int_in_range(0..=2)?,
        may_fragment: bytes.arbitrary()?,
        options: pick(bytes, &OPTIONS)?,
        extensions: several(bytes, if v6 { 5 } else { 0 }, extension)?,
        tcp_options: several(bytes, TCP_OPTIONS, u8::arbitrary)?,
        payload: payload(bytes)?,
        ..datagram
    })
}

fn request(bytes: &mut Unstructured, family: Family, transport: Transport) -> Result<Datagram> {
    let mut request = Datagram::request(family, transport);
    request.from.set_ip(client(bytes, family)?);
    request.to.set_port(pick(bytes, &[80, 81])?);
    Ok(request)
}

fn reply(bytes: &mut Unstructured, family: Family, transport: Transport) -> Result<Datagram> {
    let mut reply = Datagram::reply(family, transport);
    reply.from.set_ip(pick(bytes, &WEBS)?.ip(family));
    reply.from.set_port(pick(bytes, &[8080, 80])?);
    reply.to.set_ip(client(bytes, family)?);
    reply.to.set_port(pick(bytes, &[&[40_000, 8080], &OWN_PORTS[..]].concat())?);
    Ok(reply)
}

fn client(bytes: &mut Unstructured, family: Family) -> Result<IpAddr> {
    if bytes.ratio(1, 16)? {
        return Ok(match family {
            Family::V4 => Ipv4Addr::new(224, 0, 0, 1).into(),
            Family::V6 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        });
    }
    Ok(pick(bytes, &CLIENTS)?.ip(family))
}

fn extension(bytes: &mut Unstructured) -> Result<Extension> {
    Ok(match bytes.int_in_range(0..=4)? {
        0 => Extension::HopByHop,
        1 => Extension::Destination(bytes.int_in_range(0..=31)?),
        2 => Extension::Routing,
        3 => Extension::Authentication,
        _ => Extension::Fragment(Fragment {
            offset: bytes.int_in_range(0..=2)?,
            more: bytes.arbitrary()?,
            id: bytes.int_in_range(0..=2)?,
        }),
    })
}

/// Now and then a QUIC packet to a backend that it names. Else its first bytes let checksums have any value.
fn payload(bytes: &mut Unstructured) -> Result<Vec<u8>> {
    if bytes.ratio(1, 8)? {
        let id = quic::connection_id(pick(bytes, &WEBS)?, quic::LENGTH);
        return Ok(pick(bytes, &Header::BOTH)?.packet(&id));
    }
    let mut payload = vec![0x5a; bytes.int_in_range(0..=LONGEST)?.into()];
    let first: [u8; 2] = bytes.arbitrary()?;
    payload.iter_mut().zip(first).for_each(|(byte, first)| *byte = first);
    Ok(payload)
}
