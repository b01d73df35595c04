//! Datagrams in fragments: all of one reach the same backend.

use std::ops::Range;

use foobar_lb_ebpf::{
    headers::Side,
    reason::{Reason, Verdict},
};

use super::called;
use crate::packet::{
    Row,
    frame::{Complaint, Datagram, IcmpError, Transport, leaving},
    way::{WAYS, Way},
    world::{BACKEND_SIDE, CLIENT, CLIENT_SIDE, FAR, Family, Story, WEB1, id},
};

/// Three fragments, that fit however they travel.
const FIRST: Range<usize> = 0..1400;
const SECOND: Range<usize> = 1400..2800;
const PAYLOAD: usize = 3000;
const ID: u16 = 0x4242;

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in Family::BOTH {
        for transport in [Transport::Ack, Transport::Udp] {
            let request = fragmented(Datagram::request(family, transport));
            for way in WAYS {
                rows.extend(of_request(way, &request));
            }
            rows.extend(of_reply(&fragmented(Datagram::reply(family, transport))));
            rows.extend(unknown(&request));
            rows.extend(at_their_end(&request));
            rows.push(by_broadcast(&request));
        }
        rows.extend(tiny(family));
    }
    rows
}

fn fragmented(datagram: Datagram) -> Datagram {
    Datagram { id: ID, may_fragment: true, payload: vec![0x5a; PAYLOAD], ..datagram }
}

fn part(bytes: Range<usize>) -> impl Fn(&Datagram) -> Vec<u8> {
    move |datagram| datagram.part(bytes.clone())
}

fn last(datagram: &Datagram) -> Vec<u8> {
    datagram.part(SECOND.end..datagram.segment().len())
}

fn frame(datagram: &Datagram, bytes: Range<usize>) -> Vec<u8> {
    datagram.carrying(datagram.part(bytes))
}

fn of_request(way: Way, request: &Datagram) -> Vec<Row> {
    let first = frame(request, FIRST);
    let earlier = Datagram { id: ID - 1, ..request.clone() };
    vec![
        way.carries("the first fragment", request, &part(FIRST)),
        way.carries("the second fragment", request, &part(SECOND)).after(first.clone()),
        way.carries("the last fragment", request, &last).after(first),
        way.carries("a fragment before the first, by an earlier datagram", request, &last)
            .after(frame(&earlier, FIRST)),
    ]
}

fn of_reply(reply: &Datagram) -> Vec<Row> {
    let first = frame(reply, FIRST);
    vec![
        returns("the first fragment of a reply", reply, &part(FIRST)),
        returns("the second fragment of a reply", reply, &part(SECOND)).after(first.clone()),
        returns("the last fragment of a reply", reply, &last).after(first),
        Row::passes(
            called("a fragment of a reply whose first has not been seen", reply),
            Story::settled().image(),
            BACKEND_SIDE.index,
            frame(reply, SECOND),
            // Nothing in it says that it is one.
            Reason::NotForService,
        ),
    ]
}

fn returns(what: &str, reply: &Datagram, packet: &dyn Fn(&Datagram) -> Vec<u8>) -> Row {
    let sent = reply.clone().returning(leaving(CLIENT_SIDE, CLIENT));
    let (frame, out) = (reply.carrying(packet(reply)), sent.carrying(packet(&sent)));
    let traffic = (id(WEB1, reply.family(), reply.transport.protocol()), Side::Source);
    let (name, image) = (called(what, reply), Story::settled().image());
    let verdict = Verdict::Redirect(CLIENT_SIDE.index);
    Row::translates(name, image, BACKEND_SIDE.index, frame, out, verdict, traffic)
}

/// What is known of others does not count.
fn unknown(request: &Datagram) -> Vec<Row> {
    let family = request.family();
    let of_another_client = {
        let mut other = request.clone();
        other.from.set_ip(FAR.ip(family));
        other
    };
    let of_another_protocol = {
        let other = if request.transport == Transport::Udp { Transport::Ack } else { Transport::Udp };
        fragmented(Datagram::request(family, other))
    };
    let to_another_port = {
        let mut other = request.clone();
        other.to.set_port(81);
        other
    };
    let dropped = |what: &str| {
        let (name, image) = (called(what, request), Story::settled().image());
        Row::drops(name, image, CLIENT_SIDE.index, frame(request, SECOND), Reason::Fragment)
    };
    let local = Story::settled().with_local_vip().image();
    let name = called("a fragment to a local VIP whose first has not been seen", request);
    vec![
        dropped("a fragment whose first has not been seen"),
        dropped("a fragment after the first of another client").after(frame(&of_another_client, FIRST)),
        dropped("a fragment after the first of another protocol").after(frame(&of_another_protocol, FIRST)),
        dropped("a fragment after the first to no service").after(frame(&to_another_port, FIRST)),
        Row::passes(name, local, CLIENT_SIDE.index, frame(request, SECOND), Reason::NotForService),
    ]
}

/// Of a fragment only the first is complained of (RFC 1812, 4.3.2.7).
fn at_their_end(request: &Datagram) -> [Row; 2] {
    let late = Datagram { hops: 1, ..request.clone() };
    let from = CLIENT_SIDE.balancer.ip(request.family());
    let error = IcmpError::about(&late, &late.part(FIRST), from, Complaint::HopLimit).frame();
    let (image, ingress) = (Story::settled().image(), CLIENT_SIDE.index);
    let (name, first) = (called("the first fragment with one hop left", request), frame(&late, FIRST));
    let told = Row::answers(name, image.clone(), ingress, first, error, Reason::HopLimit);
    let (name, second) = (called("the second fragment with one hop left", request), frame(&late, SECOND));
    let dropped = Row::drops(name, image, ingress, second, Reason::HopLimit);
    [told, dropped.after(frame(request, FIRST))]
}

/// Whatever is known of it.
fn by_broadcast(request: &Datagram) -> Row {
    let mut to_all = request.clone();
    to_all.link.to = [0xff; 6];
    let (name, image) = (called("a fragment by broadcast", request), Story::settled().image());
    Row::passes(name, image, CLIENT_SIDE.index, frame(&to_all, SECOND), Reason::NotForService)
        .after(frame(request, FIRST))
}

/// First fragments of eight bytes: enough for UDP, but a TCP header that is cut short is not rewritten.
fn tiny(family: Family) -> Vec<Row> {
    let udp = fragmented(Datagram::request(family, Transport::Udp));
    let tcp = fragmented(Datagram::request(family, Transport::Ack));
    let (name, image) = (called("a tiny first fragment", &tcp), Story::settled().image());
    let mut rows = vec![Row::drops(name, image, CLIENT_SIDE.index, frame(&tcp, 0..8), Reason::Fragment)];
    for way in WAYS {
        rows.push(way.carries("a tiny first fragment", &udp, &part(0..8)));
        rows.push(way.carries("what follows a tiny fragment", &udp, &part(8..16)).after(frame(&udp, 0..8)));
    }
    rows
}
