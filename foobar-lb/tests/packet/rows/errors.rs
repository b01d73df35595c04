//! ICMP errors about packets of a service's flows, in both directions.

use foobar_lb_ebpf::{
    headers::Side,
    reason::{Reason, Verdict},
};

use super::each;
use crate::packet::{
    Row,
    frame::{Complaint, Datagram, IcmpError, Link, Transport, arriving, ip, ip_header, leaving},
    world::{self, BACKEND_SIDE, CLIENT, CLIENT_SIDE, FAR, Family, Host, ROUTER, Story, VIP, WEB1, WEB2, id},
};

const COMPLAINTS: [Complaint; 3] = [Complaint::PortUnreachable, Complaint::TooBig(1400), Complaint::HopLimit];
/// Bytes behind the IP header that every router quotes (RFC 792).
const LEAST: usize = 8;

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for complaint in COMPLAINTS {
        for speaker in [CLIENT, FAR] {
            rows.extend(each(|family, transport| about_reply(speaker, complaint, family, transport, whole)));
            rows.extend(each(|family, transport| about_reply(speaker, complaint, family, transport, least)));
        }
        for speaker in [WEB1, ROUTER] {
            rows.extend(each(|family, transport| {
                about_request(speaker, complaint, family, transport, whole)
            }));
            rows.extend(each(|family, transport| {
                about_request(speaker, complaint, family, transport, least)
            }));
        }
    }
    for family in Family::BOTH {
        rows.extend([stray(family), stray_to_client(family), about_another_port(family)]);
        rows.extend([at_its_end(family), about_an_error(family), redirect(family)]);
    }
    rows.push(about_later_fragment());
    rows
}

/// All of a packet is quoted.
fn whole(datagram: &Datagram) -> Vec<u8> {
    datagram.packet()
}

/// No more is quoted than must be.
fn least(datagram: &Datagram) -> Vec<u8> {
    let mut packet = datagram.packet();
    packet.truncate(ip_header(datagram.family()) + LEAST);
    packet
}

type Quote = fn(&Datagram) -> Vec<u8>;

/// What a client was sent, as it saw it.
fn seen_reply(family: Family, transport: Transport) -> Datagram {
    Datagram { from: world::service(family), hops: 60, ..Datagram::reply(family, transport) }
}

/// The same as the backend sent it.
fn sent_reply(family: Family, transport: Transport) -> Datagram {
    Datagram { hops: 60, ..Datagram::reply(family, transport) }
}

/// An error about what the client was sent, from itself or from a router on the way, reaches the backend that sent
/// it.
fn about_reply(
    speaker: Host,
    complaint: Complaint,
    family: Family,
    transport: Transport,
    quote: Quote,
) -> Row {
    let error = IcmpError {
        link: arriving(CLIENT, CLIENT_SIDE),
        from: speaker.ip(family),
        to: VIP.ip(family),
        hops: 64,
        complaint,
        quoted: quote(&seen_reply(family, transport)),
    };
    let translated = IcmpError {
        link: leaving(BACKEND_SIDE, WEB1),
        to: WEB1.ip(family),
        hops: 63,
        quoted: quote(&sent_reply(family, transport)),
        ..error.clone()
    };
    let from = if speaker == CLIENT { "the client" } else { "a router" };
    let name = called(from, &error, transport, "a reply");
    let verdict = Verdict::Redirect(BACKEND_SIDE.index);
    let traffic = (id(WEB1, family, transport.protocol()), Side::Destination);
    let image = Story::settled().image();
    Row::translates(name, image, CLIENT_SIDE.index, error.frame(), translated.frame(), verdict, traffic)
}

/// An error about a request, from the backend itself or from a router before it, reaches the client. The backend
/// speaks as the service, the router for itself.
fn about_request(
    speaker: Host,
    complaint: Complaint,
    family: Family,
    transport: Transport,
    quote: Quote,
) -> Row {
    let request = Datagram { hops: 60, ..Datagram::request(family, transport) };
    let received = Datagram { to: world::server(WEB1, family), ..request.clone() };
    let error = IcmpError {
        link: arriving(speaker, BACKEND_SIDE),
        from: speaker.ip(family),
        to: CLIENT.ip(family),
        hops: 64,
        complaint,
        quoted: quote(&received),
    };
    let translated = IcmpError {
        link: leaving(CLIENT_SIDE, CLIENT),
        from: if speaker == WEB1 { VIP } else { speaker }.ip(family),
        hops: 63,
        quoted: quote(&request),
        ..error.clone()
    };
    let from = if speaker == WEB1 { "the backend" } else { "a router" };
    let name = called(from, &error, transport, "a request");
    let verdict = Verdict::Redirect(CLIENT_SIDE.index);
    let traffic = (id(WEB1, family, transport.protocol()), Side::Source);
    let image = Story::settled().image();
    Row::translates(name, image, BACKEND_SIDE.index, error.frame(), translated.frame(), verdict, traffic)
}

fn called(from: &str, error: &IcmpError, transport: Transport, what: &str) -> String {
    let IcmpError { complaint, quoted, .. } = error;
    format!("{complaint:?} from {from} about {what} ({transport:?}, {} bytes quoted)", quoted.len())
}

/// An error to the VIP, or whoever else, that quotes what somebody else has sent.
fn forged(link: Link, to: Host, quoted: &Datagram) -> IcmpError {
    let family = quoted.family();
    let (hops, complaint) = (64, Complaint::PortUnreachable);
    IcmpError { link, from: FAR.ip(family), to: to.ip(family), hops, complaint, quoted: quoted.packet() }
}

fn stray(family: Family) -> Row {
    let quoted = sent_reply(family, Transport::Ack);
    let frame = forged(arriving(CLIENT, CLIENT_SIDE), VIP, &quoted).frame();
    let name = format!("an ICMP error to the VIP about another's packet ({family:?})");
    Row::drops(name, Story::settled().image(), CLIENT_SIDE.index, frame, Reason::NoService)
}

fn stray_to_client(family: Family) -> Row {
    let to = world::server(WEB1, family);
    let quoted =
        Datagram { from: world::client(FAR, family), to, ..Datagram::request(family, Transport::Ack) };
    let frame = forged(arriving(WEB2, BACKEND_SIDE), CLIENT, &quoted).frame();
    let name = format!("an ICMP error to a client about another's packet ({family:?})");
    Row::passes(name, Story::settled().image(), BACKEND_SIDE.index, frame, Reason::NotForService)
}

fn about_another_port(family: Family) -> Row {
    let mut quoted = seen_reply(family, Transport::Ack);
    quoted.from.set_port(81);
    let frame = forged(arriving(CLIENT, CLIENT_SIDE), VIP, &quoted).frame();
    let name = format!("an ICMP error about a packet of no service ({family:?})");
    Row::drops(name, Story::settled().image(), CLIENT_SIDE.index, frame, Reason::NoService)
}

fn at_its_end(family: Family) -> Row {
    let quoted = seen_reply(family, Transport::Ack);
    let error = IcmpError { hops: 1, ..forged(arriving(CLIENT, CLIENT_SIDE), VIP, &quoted) };
    let name = format!("an ICMP error with one hop left ({family:?})");
    Row::drops(name, Story::settled().image(), CLIENT_SIDE.index, error.frame(), Reason::HopLimit)
}

/// Nobody may complain about a complaint (RFC 1122, 3.2.2); it belongs to no flow.
fn about_an_error(family: Family) -> Row {
    let link = arriving(CLIENT, CLIENT_SIDE);
    let quoted =
        IcmpError { from: VIP.ip(family), ..forged(link, CLIENT, &seen_reply(family, Transport::Ack)) };
    let error = IcmpError {
        link,
        from: CLIENT.ip(family),
        to: VIP.ip(family),
        hops: 64,
        complaint: Complaint::PortUnreachable,
        quoted: quoted.packet(),
    };
    let name = format!("an ICMP error about an ICMP error ({family:?})");
    Row::drops(name, Story::settled().image(), CLIENT_SIDE.index, error.frame(), Reason::NoService)
}

/// It quotes a packet as well, but is no error: it is for the neighbour it was sent to.
fn redirect(family: Family) -> Row {
    let link = arriving(CLIENT, CLIENT_SIDE);
    let step = ip(link, CLIENT.ip(family), VIP.ip(family), 255);
    let quoted = seen_reply(family, Transport::Ack).packet();
    let mut frame = Vec::new();
    match family {
        Family::V4 => step.icmpv4_raw(5, 1, [10, 0, 0, 2]).write(&mut frame, &quoted),
        Family::V6 => step.icmpv6_raw(137, 0, [0; 4]).write(&mut frame, &quoted),
    }
    .expect("a vector takes all that is written");
    let name = format!("a redirect ({family:?})");
    Row::drops(name, Story::settled().image(), CLIENT_SIDE.index, frame, Reason::NoService)
}

fn about_later_fragment() -> Row {
    let datagram = seen_reply(Family::V4, Transport::Udp);
    let quoted = datagram.part(16..datagram.segment().len());
    let error = forged(arriving(CLIENT, CLIENT_SIDE), VIP, &datagram);
    let frame = IcmpError { quoted, ..error }.frame();
    let name = "an ICMP error about a later fragment";
    Row::drops(name, Story::settled().image(), CLIENT_SIDE.index, frame, Reason::NoService)
}
