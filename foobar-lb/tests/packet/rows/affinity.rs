//! Flows that share a backend by their source: what is remembered is the source, for all of its flows.

use std::net::SocketAddr;

use foobar_lb::{
    image::Image,
    model::{Affinity, Health, Service},
};
use foobar_lb_ebpf::layout::{FlowKey, name};

use super::remember::moves;
use crate::packet::{
    Memory, Row,
    frame::{Datagram, Transport, family_of},
    way::Way,
    world::{CLIENT_SIDE, Family, Host, Story, WEB1, WEB2, flow, id, subnet},
};

pub fn rows() -> Vec<Row> {
    let transports = [Transport::Syn, Transport::Ack, Transport::Fin, Transport::Rst];
    let mut rows = Vec::new();
    for family in Family::BOTH {
        rows.extend(transports.into_iter().flat_map(|transport| of_client(family, transport)));
        rows.extend(datagrams(family));
    }
    rows
}

/// By the client's subnet.
fn by_source(story: Story) -> Image {
    let prefix =
        |service: &Service| subnet(CLIENT_SIDE, family_of(service.key.address.vip.addr())).prefix_len();
    story.configured(|service| service.affinity = Affinity::Source(prefix(service))).image()
}

/// Neither a SYN nor a FIN is the beginning or the end of a source.
fn of_client(family: Family, transport: Transport) -> [Row; 4] {
    let request = Datagram::request(family, transport);
    let known = |backend| remembered(&request, backend);
    let settled = reaches("settled: a source", by_source(Story::settled()), &request, WEB1);
    let unknown = reaches("moving: a source out of the blue", by_source(Story::moving()), &request, WEB1);
    let moved = reaches("moving: a source that is remembered", by_source(Story::moving()), &request, WEB2);
    let left = reaches("traces: a source that is remembered", by_source(Story::traces()), &request, WEB1);
    [
        settled,
        unknown.remembering(known(WEB1)),
        moved.knowing(known(WEB2)).remembering(known(WEB2)),
        left.knowing(known(WEB1)).remembering(known(WEB1)),
    ]
}

/// They go to the previous owner as long as it takes new flows, all of a source.
fn datagrams(family: Family) -> [Row; 2] {
    let image = by_source(Story::settled().health(WEB2, Health::Up));
    let of_port = |port| {
        let mut request = Datagram::request(family, Transport::Udp);
        request.from.set_port(port);
        request
    };
    assert!(moves(&image, &common(&of_port(1))), "choose another seed");
    [1, 2].map(|port| {
        let request = of_port(port);
        let row = reaches(&format!("moving: a datagram from port {port}"), image.clone(), &request, WEB1);
        row.remembering(remembered(&request, WEB1))
    })
}

/// The source and all of its neighbours, whatever their ports.
fn remembered(request: &Datagram, backend: Host) -> Memory {
    let (flow, protocol) = (common(request), request.transport.protocol());
    let backend = id(backend, request.family(), protocol);
    Memory { map: name::ADOPTED, flow, backend, state: 0, age: Default::default() }
}

fn common(request: &Datagram) -> FlowKey {
    let network = subnet(CLIENT_SIDE, request.family()).network();
    flow(SocketAddr::new(network, 0), request.to, request.transport.protocol())
}

fn reaches(what: &str, image: Image, request: &Datagram, backend: Host) -> Row {
    let out = Way::Nat.carry(request, backend, &Datagram::packet);
    let row = Way::Nat.translates(&format!("affinity, {what}"), request, request.frame(), out);
    let backend = id(backend, request.family(), request.transport.protocol());
    Row { image, ..row }.by_backend(backend)
}
