//! Backends' packets: replies to clients, and what only looks like one.

use foobar_lb_ebpf::{
    headers::Side,
    reason::{Reason, Verdict},
};

use super::{called, each};
use crate::packet::{
    Row,
    frame::{Datagram, Link, Transport, leaving},
    world::{
        self, BACKEND_SIDE, CLIENT, CLIENT_SIDE, CLOSED, ELSEWHERE, FAR, Family, Host, MONITOR, MTU, ROUTER,
        Story, UNRESOLVED, UNROUTED, WEB1, id,
    },
};

pub fn rows() -> Vec<Row> {
    let mut rows = each(two_arm);
    rows.extend(each(one_arm));
    rows.extend(each(|family, transport| {
        by_the_kernel("to an unresolved client", UNRESOLVED, family, transport)
    }));
    rows.extend(each(|family, transport| {
        by_the_kernel("by an interface without the program", ELSEWHERE, family, transport)
    }));
    rows.extend(each(to_the_same_port));
    rows.extend(each(to_the_balancer));
    rows.extend(each(to_direct_client));
    rows.extend(each(to_nowhere));
    rows.extend(each(where_nothing_is_forwarded));
    rows.extend(each(too_big));
    rows.extend(Family::BOTH.map(opened_by_the_backend));
    rows.extend(Family::BOTH.map(answered_handshake));
    rows.extend([without_checksum(), to_be_fragmented()]);
    rows
}

pub fn reaches(name: String, datagram: &Datagram, out: Vec<u8>, verdict: Verdict) -> Row {
    let backend = id(WEB1, datagram.family(), datagram.transport.protocol());
    let image = Story::settled().image();
    Row::translates(name, image, BACKEND_SIDE.index, datagram.frame(), out, verdict, (backend, Side::Source))
}

fn reaches_client(name: String, datagram: &Datagram) -> Row {
    let out = datagram.clone().returning(leaving(CLIENT_SIDE, CLIENT)).frame();
    reaches(name, datagram, out, Verdict::Redirect(CLIENT_SIDE.index))
}

/// The reply as the kernel gets it, to forward it.
fn rewritten(datagram: &Datagram) -> Vec<u8> {
    Datagram { from: world::service(datagram.family()), ..datagram.clone() }.frame()
}

pub fn passes(name: String, datagram: &Datagram, why: Reason) -> Row {
    Row::passes(name, Story::settled().image(), BACKEND_SIDE.index, datagram.frame(), why)
}

fn drops(name: String, datagram: &Datagram, why: Reason) -> Row {
    Row::drops(name, Story::settled().image(), BACKEND_SIDE.index, datagram.frame(), why)
}

pub fn reply_to(client: Host, family: Family, transport: Transport) -> Datagram {
    Datagram { to: world::client(client, family), ..Datagram::reply(family, transport) }
}

fn two_arm(family: Family, transport: Transport) -> Row {
    let datagram = Datagram::reply(family, transport);
    reaches_client(called("a reply", &datagram), &datagram)
}

fn one_arm(family: Family, transport: Transport) -> Row {
    let datagram = reply_to(FAR, family, transport);
    let link: Link = leaving(BACKEND_SIDE, ROUTER);
    let out = datagram.clone().returning(link).frame();
    reaches(called("a reply, one-arm", &datagram), &datagram, out, Verdict::Transmit)
}

fn by_the_kernel(way: &str, client: Host, family: Family, transport: Transport) -> Row {
    let datagram = reply_to(client, family, transport);
    let name = called(&format!("a reply {way}"), &datagram);
    reaches(name, &datagram, rewritten(&datagram), Verdict::Pass)
}

fn to_the_same_port(family: Family, transport: Transport) -> Row {
    let mut datagram = Datagram::reply(family, transport);
    datagram.to.set_port(datagram.from.port());
    let row = reaches_client(called("a reply to the same port", &datagram), &datagram);
    match transport {
        Transport::Udp => row.remarking(Reason::ReplyToOwnPort),
        _ => row,
    }
}

fn to_the_balancer(family: Family, transport: Transport) -> Row {
    let datagram = reply_to(BACKEND_SIDE.balancer, family, transport);
    passes(called("an answer to the balancer", &datagram), &datagram, Reason::ToBalancer)
}

fn to_direct_client(family: Family, transport: Transport) -> Row {
    let datagram = reply_to(MONITOR, family, transport);
    passes(called("an answer to a direct client", &datagram), &datagram, Reason::DirectClient)
}

fn to_nowhere(family: Family, transport: Transport) -> Row {
    let datagram = reply_to(UNROUTED, family, transport);
    drops(called("a reply without a route", &datagram), &datagram, Reason::NoRoute)
}

fn where_nothing_is_forwarded(family: Family, transport: Transport) -> Row {
    let datagram = Datagram::reply(family, transport);
    let name = called("a reply on an interface that does not forward", &datagram);
    let image = Story::settled().image();
    Row::drops(name, image, CLOSED.index, datagram.frame(), Reason::ForwardingOff)
}

fn too_big(family: Family, transport: Transport) -> Row {
    let datagram = Datagram::reply(family, transport).sized(MTU as usize + 1);
    passes(called("a reply that is too big", &datagram), &datagram, Reason::ReplyTooBig)
}

fn opened_by_the_backend(family: Family) -> Row {
    let datagram = Datagram::reply(family, Transport::Syn);
    passes(called("a connection of the backend's own", &datagram), &datagram, Reason::OpenedByBackend)
}

fn answered_handshake(family: Family) -> Row {
    let datagram = Datagram::reply(family, Transport::SynAck);
    reaches_client(called("the answer to a SYN", &datagram), &datagram)
}

fn without_checksum() -> Row {
    let datagram = Datagram::reply(Family::V4, Transport::BareUdp);
    reaches_client("a reply without a UDP checksum".into(), &datagram)
}

fn to_be_fragmented() -> Row {
    let datagram = Datagram { may_fragment: true, ..Datagram::reply(Family::V4, Transport::Udp) };
    let datagram = datagram.sized(MTU as usize + 1);
    reaches("a reply that is to be fragmented".into(), &datagram, rewritten(&datagram), Verdict::Pass)
}
