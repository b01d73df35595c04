//! QUIC packets whose connection ids name their backends, and those that name nobody.

use foobar_lb::{
    image::Image,
    model::{Down, Health, Mode, Protocol, Quic, Remember},
};
use foobar_lb_ebpf::{headers::Side, layout::name, reason::Verdict};

use super::{
    called,
    snat::{self, NOW, SECOND, pair_on},
};
use crate::packet::{
    Held, Memory, Row,
    frame::{Datagram, Header, Transport},
    way::{WAYS, Way},
    world::{BACKEND_SIDE, CLIENT_SIDE, FAR, Family, Host, Story, WEB1, WEB2, WEB3, WEBS, client, flow, id},
};

/// Bits that show that they are looked at.
const ROTATION: u8 = 5;
/// Of most rows.
pub const LENGTH: u8 = 2;
/// What servers have behind their server id.
const NONCE: [u8; 4] = [0xa5; 4];

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (way, family) in WAYS.into_iter().flat_map(|way| Family::BOTH.map(|family| (way, family))) {
        for header in Header::BOTH {
            rows.extend(named(way, family, header));
            rows.extend(unroutable(way, family, header));
        }
        rows.extend([too_short_an_id, too_short_a_packet, in_fragments].map(|row| row(way, family)));
    }
    for family in Family::BOTH {
        rows.extend([1, 7, 8, 9, 15].map(|length| of_length(family, length)));
        let others = [without_quic, named_while_all_is_remembered, unnamed_while_all_is_remembered];
        rows.extend(others.map(|row| row(family)));
        rows.extend(in_snat(family));
    }
    rows
}

/// The first backend has all of the table, the second drains, the third is silent.
fn story(length: u8) -> Story {
    let story = Story::new().health(WEB1, Health::Up).health(WEB2, Health::Up);
    let story = story.health(WEB3, Health::Down(Down::Silent));
    name_backends(story, length).configured(|service| service.backends[1].weight = 0)
}

/// Lets connection ids of all services name their backends.
pub fn name_backends(story: Story, length: u8) -> Story {
    story.configured(|service| {
        service.quic = Some(Quic { server_id_length: length, config_rotation: ROTATION });
        for (backend, host) in service.backends.iter_mut().zip(WEBS) {
            backend.quic_id = Some(server_id(host, length));
        }
    })
}

fn image(way: Way, length: u8) -> Image {
    way.configure(story(length)).image()
}

/// They differ in their last byte.
fn server_id(backend: Host, length: u8) -> Vec<u8> {
    let mut id = vec![0xb0; length.into()];
    id[usize::from(length) - 1] = backend.mac[5];
    id
}

/// A connection id that names a backend.
pub fn connection_id(backend: Host, length: u8) -> Vec<u8> {
    [&[ROTATION << 5 | 3][..], &server_id(backend, length), &NONCE].concat()
}

fn request(family: Family, header: Header, id: &[u8]) -> Datagram {
    Datagram { payload: header.packet(id), ..Datagram::request(family, Transport::Udp) }
}

/// Whatever the hash says, and whoever drains; wherever the client is.
fn named(way: Way, family: Family, header: Header) -> [Row; 3] {
    let request = |backend| request(family, header, &connection_id(backend, LENGTH));
    let moved = Datagram { from: client(FAR, family), ..request(WEB2) };
    [
        reaches(way, &format!("{header:?} header that names a backend"), &request(WEB1), WEB1),
        reaches(way, &format!("{header:?} header that names a draining backend"), &request(WEB2), WEB2),
        reaches(way, &format!("{header:?} header from another address"), &moved, WEB2),
    ]
}

/// What the hash says then counts.
fn unroutable(way: Way, family: Family, header: Header) -> Vec<Row> {
    let right = connection_id(WEB2, LENGTH);
    let rotated = |bits: u8| [&[bits << 5], &right[1..]].concat();
    let rest = [0x77; 15];
    let ids = [
        ("that a client has made up", [&[ROTATION << 5], &rest[..]].concat()),
        ("of another rotation", rotated(ROTATION - 1)),
        ("of no rotation at all", rotated(7)),
        ("of a silent backend", connection_id(WEB3, LENGTH)),
    ];
    let row = |(what, id): (&str, Vec<u8>)| {
        reaches(way, &format!("{header:?} header with an id {what}"), &request(family, header, &id), WEB1)
    };
    ids.into_iter().map(row).collect()
}

/// The header ends the id before the server's does.
fn too_short_an_id(way: Way, family: Family) -> Row {
    let mut request = request(family, Header::Long, &connection_id(WEB2, LENGTH));
    request.payload[5] = LENGTH;
    reaches(way, "an id that is too short", &request, WEB1)
}

/// Padding is not part of the packet, whatever it looks like.
fn too_short_a_packet(way: Way, family: Family) -> Row {
    let id = connection_id(WEB2, LENGTH);
    let payload = Header::Short.packet(&id)[..1 + id.len()].to_vec();
    let request = Datagram { payload, ..Datagram::request(family, Transport::Udp) };
    let padded = |frame: Vec<u8>| [frame, vec![0x5a; 40]].concat();
    let out = way.carry(&request, WEB1, &Datagram::packet);
    let row = way.translates("QUIC, too short a packet", &request, padded(request.frame()), padded(out));
    Row { image: image(way, LENGTH), ..row }
}

/// The others would not show the id.
fn in_fragments(way: Way, family: Family) -> Row {
    let id = connection_id(WEB2, LENGTH);
    let request = Datagram { may_fragment: true, ..request(family, Header::Long, &id) };
    let part = |datagram: &Datagram| datagram.part(0..512);
    let out = way.carry(&request, WEB1, &part);
    let row = way.translates("QUIC, a first fragment", &request, request.carrying(part(&request)), out);
    Row { image: image(way, LENGTH), ..row }
}

fn of_length(family: Family, length: u8) -> Row {
    let request = request(family, Header::Short, &connection_id(WEB2, length));
    let row = reaches(Way::Nat, &format!("a server id of {length} bytes"), &request, WEB2);
    Row { image: image(Way::Nat, length), ..row }
}

fn without_quic(family: Family) -> Row {
    let request = request(family, Header::Short, &connection_id(WEB2, LENGTH));
    let row = reaches(Way::Nat, "an id in a service without quic", &request, WEB1);
    Row { image: story(LENGTH).configured(|service| service.quic = None).image(), ..row }
}

/// What names its backend needs no memory, and does not go by what is remembered.
fn named_while_all_is_remembered(family: Family) -> Row {
    let request = request(family, Header::Short, &connection_id(WEB2, LENGTH));
    let known = memory(&request, WEB1);
    let row = reaches(Way::Nat, "an id of a flow that is remembered elsewhere", &request, WEB2);
    Row { image: remembering_all(), ..row }.knowing(known).remembering(known)
}

fn unnamed_while_all_is_remembered(family: Family) -> Row {
    let request = request(family, Header::Long, &[0x77; 16]);
    let row = reaches(Way::Nat, "an unknown id while all is remembered", &request, WEB1);
    Row { image: remembering_all(), ..row }.remembering(memory(&request, WEB1))
}

fn remembering_all() -> Image {
    story(LENGTH).configured(|service| service.remember = Remember::All).image()
}

/// What the flow is mapped to counts first; a client that moves has another flow.
fn in_snat(family: Family) -> [Row; 2] {
    let request = request(family, Header::Short, &connection_id(WEB2, LENGTH));
    let image = || snat::mapped(story(LENGTH), Mode::Snat).image();
    let row = |what, backend| {
        let from = snat::own(family);
        let out = Datagram { from, ..request.clone().reaching(backend) }.frame();
        let traffic = (id(backend, family, Protocol::Udp), Side::Destination);
        let name = called(&format!("QUIC in snat, {what}"), &request);
        let verdict = Verdict::Redirect(BACKEND_SIDE.index);
        Row::translates(name, image(), CLIENT_SIDE.index, request.frame(), out, verdict, traffic)
    };
    let [forward, back] = pair_on(WEB1, &request, 0, 0, SECOND);
    [
        row("a new flow", WEB2).holding(pair_on(WEB2, &request, 0, 0, NOW)),
        row("a mapped flow", WEB1).mapped([forward, back]).holding([Held { age: NOW, ..forward }, back]),
    ]
}

fn memory(request: &Datagram, backend: Host) -> Memory {
    let protocol = request.transport.protocol();
    let flow = flow(request.from, request.to, protocol);
    let backend = id(backend, request.family(), protocol);
    Memory { map: name::ADOPTED, flow, backend, state: 0, age: Default::default() }
}

fn reaches(way: Way, what: &str, request: &Datagram, backend: Host) -> Row {
    let out = way.carry(request, backend, &Datagram::packet);
    let row = way.translates(&format!("QUIC, {what}"), request, request.frame(), out);
    let backend = id(backend, request.family(), request.transport.protocol());
    Row { image: image(way, LENGTH), ..row }.by_backend(backend)
}
