//! IPv6 extension headers before TCP and UDP.

use foobar_lb_ebpf::{
    headers::Side,
    reason::{Reason, Verdict},
};

use crate::packet::{
    Row,
    frame::{Datagram, Extension, Fragment, Transport, leaving},
    way::{WAYS, Way},
    world::{BACKEND_SIDE, CLIENT, CLIENT_SIDE, Family, Story, WEB1, id},
};

use Extension::{Authentication, Destination, HopByHop, Routing};

/// A fragment that is the whole datagram (RFC 6946).
const ATOMIC: Extension = Extension::Fragment(Fragment { offset: 0, more: false, id: 0x4242 });

pub fn rows() -> Vec<Row> {
    [Transport::Ack, Transport::Udp].into_iter().flat_map(of_transport).collect()
}

fn of_transport(transport: Transport) -> Vec<Row> {
    let mut rows = Vec::new();
    for extensions in stepped_over() {
        rows.extend(WAYS.map(|way| carried(way, transport, &extensions)));
        rows.push(returned(transport, &extensions));
    }
    rows.extend(not_balanced().iter().map(|extensions| dropped(transport, extensions)));
    rows
}

fn stepped_over() -> Vec<Vec<Extension>> {
    vec![
        vec![HopByHop],
        vec![Destination(0)],
        vec![Destination(5)],
        vec![Authentication],
        vec![ATOMIC],
        vec![HopByHop, Authentication],
        vec![HopByHop, Destination(1), ATOMIC, Authentication],
    ]
}

/// Too many, too long, or with a destination of their own.
fn not_balanced() -> Vec<Vec<Extension>> {
    vec![
        vec![HopByHop, Destination(0), ATOMIC, Authentication, Destination(0)],
        vec![Destination(30)],
        vec![Routing],
        vec![HopByHop, Routing],
    ]
}

fn request(transport: Transport, extensions: &[Extension]) -> Datagram {
    Datagram { extensions: extensions.to_vec(), ..Datagram::request(Family::V6, transport) }
}

fn carried(way: Way, transport: Transport, extensions: &[Extension]) -> Row {
    let request = request(transport, extensions);
    way.carries(&format!("a request behind {extensions:?}"), &request, &Datagram::packet)
}

fn returned(transport: Transport, extensions: &[Extension]) -> Row {
    let reply = Datagram { extensions: extensions.to_vec(), ..Datagram::reply(Family::V6, transport) };
    let out = reply.clone().returning(leaving(CLIENT_SIDE, CLIENT)).frame();
    let traffic = (id(WEB1, Family::V6, transport.protocol()), Side::Source);
    let (name, image) = (called("a reply", transport, extensions), Story::settled().image());
    let verdict = Verdict::Redirect(CLIENT_SIDE.index);
    Row::translates(name, image, BACKEND_SIDE.index, reply.frame(), out, verdict, traffic)
}

fn dropped(transport: Transport, extensions: &[Extension]) -> Row {
    let frame = request(transport, extensions).frame();
    let (name, image) = (called("a request", transport, extensions), Story::settled().image());
    Row::drops(name, image, CLIENT_SIDE.index, frame, Reason::NoService)
}

fn called(what: &str, transport: Transport, extensions: &[Extension]) -> String {
    format!("{what} behind {extensions:?} ({transport:?})")
}
