//! What is none of the balancer's business, or cannot be read: it stays as it is.

use etherparse::EtherType;
use foobar_lb::model::Protocol;
use foobar_lb_ebpf::reason::Reason;

use super::{called, each};
use crate::packet::{
    Row,
    frame::{Complaint, Datagram, ETHERNET, IcmpError, Transport, arriving, ethernet, ip_header},
    world::{self, BACKEND_SIDE, CLIENT, CLIENT_SIDE, FAR, Family, Host, Port, Story, VIP, WEB2},
};

/// Bytes of an ICMP header.
const ICMP: usize = 8;

pub fn rows() -> Vec<Row> {
    let mut rows = each(to_another_address);
    rows.extend(each(to_the_balancer));
    rows.extend(each(from_another_port));
    for family in Family::BOTH {
        for transport in [Transport::Ack, Transport::Udp] {
            rows.extend(truncated_requests(family, transport));
            rows.extend(truncated_replies(family, transport));
        }
        rows.extend(truncated_errors(family));
        rows.push(of_another_version(family));
    }
    rows.extend([EtherType(0x88cc), EtherType(60)].map(not_ip));
    rows.extend([short_header(), cut_options()]);
    rows.extend([0, 19].map(shorter_than_its_header));
    rows.extend(each(ended_by_padding));
    rows.extend([CLIENT, VIP].map(mapped));
    rows
}

fn passes(name: String, by: Port, frame: Vec<u8>, why: Reason) -> Row {
    Row::passes(name, Story::settled().image(), by.index, frame, why)
}

fn drops(name: String, frame: Vec<u8>, why: Reason) -> Row {
    Row::drops(name, Story::settled().image(), CLIENT_SIDE.index, frame, why)
}

fn to(host: Host, family: Family, transport: Transport) -> Datagram {
    Datagram { to: world::client(host, family), ..Datagram::request(family, transport) }
}

fn to_another_address(family: Family, transport: Transport) -> Row {
    let datagram = to(FAR, family, transport);
    passes(called("to another address", &datagram), CLIENT_SIDE, datagram.frame(), Reason::NotForService)
}

fn to_the_balancer(family: Family, transport: Transport) -> Row {
    let datagram = to(CLIENT_SIDE.balancer, family, transport);
    passes(called("to the balancer", &datagram), CLIENT_SIDE, datagram.frame(), Reason::NotForService)
}

fn from_another_port(family: Family, transport: Transport) -> Row {
    let mut datagram = Datagram { link: arriving(WEB2, BACKEND_SIDE), ..Datagram::reply(family, transport) };
    datagram.from.set_port(22);
    let name = called("from another port of a backend", &datagram);
    passes(name, BACKEND_SIDE, datagram.frame(), Reason::NotForService)
}

/// Every beginning of a request that does not reach the end of its transport header.
fn truncated_requests(family: Family, transport: Transport) -> impl Iterator<Item = Row> {
    let datagram = Datagram { payload: vec![], ..Datagram::request(family, transport) };
    let frame = datagram.frame();
    (0..frame.len()).map(move |length| {
        let name = called(&format!("the first {length} bytes of a request"), &datagram);
        let frame = frame[..length].to_vec();
        match is_readable(family, length) {
            true => drops(name, frame, Reason::NoService),
            false => passes(name, CLIENT_SIDE, frame, Reason::Malformed),
        }
    })
}

fn truncated_replies(family: Family, transport: Transport) -> impl Iterator<Item = Row> {
    let datagram = Datagram { payload: vec![], ..Datagram::reply(family, transport) };
    let frame = datagram.frame();
    (0..frame.len()).map(move |length| {
        let name = called(&format!("the first {length} bytes of a reply"), &datagram);
        let why = if is_readable(family, length) { Reason::NotForService } else { Reason::Malformed };
        passes(name, BACKEND_SIDE, frame[..length].to_vec(), why)
    })
}

/// Every beginning of an ICMP error that does not reach the ports of the packet that it quotes.
fn truncated_errors(family: Family) -> impl Iterator<Item = Row> {
    let quoted = Datagram { from: world::service(family), ..to(CLIENT, family, Transport::Udp) };
    let error = IcmpError {
        link: arriving(CLIENT, CLIENT_SIDE),
        from: CLIENT.ip(family),
        to: VIP.ip(family),
        hops: 64,
        complaint: Complaint::PortUnreachable,
        quoted: quoted.packet(),
    };
    let (frame, ip) = (error.frame(), ip_header(family));
    let ports = ETHERNET + ip + ICMP + ip + 4;
    (ETHERNET + ip..ports).map(move |length| {
        let name = format!("the first {length} bytes of an ICMP error ({family:?})");
        drops(name, frame[..length].to_vec(), Reason::NoService)
    })
}

fn is_readable(family: Family, length: usize) -> bool {
    length >= ETHERNET + ip_header(family)
}

fn not_ip(ether_type: EtherType) -> Row {
    let packet = Datagram::request(Family::V4, Transport::Ack).packet();
    let frame = ethernet(arriving(CLIENT, CLIENT_SIDE), ether_type, &packet);
    passes(format!("ether type {:#06x}", ether_type.0), CLIENT_SIDE, frame, Reason::NotIp)
}

fn of_another_version(family: Family) -> Row {
    let mut frame = Datagram::request(family, Transport::Ack).frame();
    frame[ETHERNET] = 0x50 | frame[ETHERNET] & 0xf;
    passes(format!("IP version 5 as {family:?}"), CLIENT_SIDE, frame, Reason::Malformed)
}

/// The packet ends within its header (RFC 1812, 5.2.2).
fn shorter_than_its_header(length: u8) -> Row {
    const TOTAL_LENGTH: usize = ETHERNET + 2;
    let mut frame = Datagram::request(Family::V4, Transport::Ack).frame();
    frame[TOTAL_LENGTH..TOTAL_LENGTH + 2].copy_from_slice(&[0, length]);
    passes(format!("an IPv4 packet of {length} bytes"), CLIENT_SIDE, frame, Reason::Malformed)
}

/// What looks like the rest of its transport header lies behind the packet.
fn ended_by_padding(family: Family, transport: Transport) -> Row {
    let request = Datagram::request(family, transport);
    let last = match transport.protocol() {
        Protocol::Tcp => 19,
        Protocol::Udp => 7,
    };
    let mut frame = request.frame();
    let (place, length) = match family {
        Family::V4 => (ETHERNET + 2, ip_header(family) + last),
        Family::V6 => (ETHERNET + 4, last),
    };
    frame[place..place + 2].copy_from_slice(&(length as u16).to_be_bytes());
    drops(called("a packet that ends within its transport header", &request), frame, Reason::NoService)
}

fn short_header() -> Row {
    let mut frame = Datagram::request(Family::V4, Transport::Ack).frame();
    frame[ETHERNET] = 0x44;
    passes("an IPv4 header of four words".into(), CLIENT_SIDE, frame, Reason::Malformed)
}

/// The header says that it is longer than the frame.
fn cut_options() -> Row {
    let mut frame = Datagram::request(Family::V4, Transport::Ack).frame();
    frame[ETHERNET] = 0x4f;
    frame.truncate(ETHERNET + 40);
    drops("IPv4 options that are cut short".into(), frame, Reason::NoService)
}

/// One end is an IPv4-mapped IPv6 address, in a header of IPv6.
fn mapped(host: Host) -> Row {
    let mut frame = Datagram::request(Family::V6, Transport::Ack).frame();
    let place = ETHERNET + if host == CLIENT { 8 } else { 24 };
    let address = foobar_lb::image::address(host.ip(Family::V4));
    frame[place..place + 16].copy_from_slice(&address.0);
    let which = if host == CLIENT { "source" } else { "destination" };
    passes(format!("a mapped {which}"), CLIENT_SIDE, frame, Reason::MappedAddress)
}
