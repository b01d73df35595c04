//! Flows both of whose ends are replaced: in mode `snat` all of them, with hairpin those of the backends' own subnet.

use std::{net::SocketAddr, time::Duration};

use foobar_lb::{
    image::{Image, address},
    model::{Mode, Pool},
};
use foobar_lb_ebpf::{
    headers::Side,
    layout::entry_state,
    reason::{Reason, Verdict},
};

use super::{called, each};
use crate::packet::{
    Held, Row,
    frame::{
        ACKNOWLEDGEMENT, Complaint, Datagram, IcmpError, Numbers, SEQUENCE, Transport, arriving, leaving,
        refusal,
    },
    world::{
        self, BACKEND_SIDE, CLIENT, CLIENT_SIDE, COLLEAGUE, FAR, Family, Host, MAPPINGS, MTU, ROUTER, Story,
        TRANSITION, VIP, WEB1, WEB2, flow, id,
    },
};

pub const NOW: Duration = Duration::ZERO;
pub const SECOND: Duration = Duration::from_secs(1);
const FIRST_PORT: u16 = 40_100;

pub fn rows() -> Vec<Row> {
    let mut rows = each(goes_on);
    rows.extend(each(returns));
    rows.extend(each(returns_to_the_backends_side));
    rows.extend(each(too_big));
    rows.extend(each(in_fragments));
    rows.extend(each(refused_without_room));
    for mode in [Mode::Snat as Mapped, Mode::Hairpin] {
        rows.extend(each(|family, transport| from_backend_subnet(mode, family, transport)));
    }
    rows.extend(each(not_by_hairpin));
    rows.extend(each(to_the_balancer));
    for family in Family::BOTH {
        rows.extend(openings(family));
        rows.extend(endings(family));
        rows.extend(ports(family));
        rows.extend(without_a_backend(family));
        rows.extend(errors(family));
    }
    rows
}

/// Both ends are replaced, of all flows or of those of the backends' subnet.
pub type Mapped = fn(Pool) -> Mode;

/// The balancer talks to backends from one port of its address on their side.
pub fn mapped(story: Story, mode: Mapped) -> Story {
    let pool = || Pool { addresses: vec![], ports: FIRST_PORT..=FIRST_PORT };
    story.configured(|service| service.mode = mode(pool()))
}

/// The first backend has everything, and each of its flows the same source.
fn settled(mode: Mapped) -> Image {
    mapped(Story::settled(), mode).image()
}

/// The only source of flows to backends of this family.
pub fn own(family: Family) -> SocketAddr {
    SocketAddr::new(BACKEND_SIDE.balancer.ip(family), FIRST_PORT)
}

/// Both mappings of a flow of the first backend's: the state of the client's direction, that of the other, and how long
/// both were silent.
fn pair(request: &Datagram, forward: u32, back: u32, age: Duration) -> [Held; 2] {
    pair_on(WEB1, request, forward, back, age)
}

pub fn pair_on(backend: Host, request: &Datagram, forward: u32, back: u32, age: Duration) -> [Held; 2] {
    let (family, protocol) = (request.family(), request.transport.protocol());
    let (own, server) = (own(family), world::server(backend, family));
    let held = |from: (SocketAddr, SocketAddr), to: (SocketAddr, SocketAddr), back, state| Held {
        flow: flow(from.0, from.1, protocol),
        to: flow(to.0, to.1, protocol),
        back,
        backend: id(backend, family, protocol),
        state,
        age,
    };
    [
        held((request.from, request.to), (own, server), false, forward),
        held((server, own), (request.to, request.from), true, back),
    ]
}

/// The request as the first backend gets it.
fn reaching(request: &Datagram) -> Datagram {
    Datagram { from: own(request.family()), ..request.clone().reaching(WEB1) }
}

/// What the first backend answers to it.
fn reply(family: Family, transport: Transport) -> Datagram {
    Datagram { to: own(family), ..Datagram::reply(family, transport) }
}

/// The first backend gets the request.
fn reaches(what: &str, image: Image, request: &Datagram) -> Row {
    let traffic = (id(WEB1, request.family(), request.transport.protocol()), Side::Destination);
    let verdict = Verdict::Redirect(BACKEND_SIDE.index);
    let (name, out) = (called(what, request), reaching(request).frame());
    Row::translates(name, image, CLIENT_SIDE.index, request.frame(), out, verdict, traffic)
}

/// The client is told that its flow is refused.
fn refuses(what: &str, image: Image, request: &Datagram, why: Reason) -> Row {
    let out = match request.transport {
        Transport::Udp => {
            let vip = VIP.ip(request.family());
            IcmpError::about(request, &request.packet(), vip, Complaint::PortUnreachable).frame()
        }
        Transport::Syn => {
            let acknowledged = SEQUENCE + 1 + request.payload.len() as u32;
            refusal(request, Numbers { sequence: 0, acknowledged: Some(acknowledged) })
        }
        _ => refusal(request, Numbers { sequence: ACKNOWLEDGEMENT, acknowledged: None }),
    };
    Row::answers(called(what, request), image, CLIENT_SIDE.index, request.frame(), out, why)
}

fn goes_on(family: Family, transport: Transport) -> Row {
    let request = Datagram::request(family, transport);
    reaches("snat: a request of a mapped flow", settled(Mode::Snat), &request)
        .mapped(pair(&request, 0, 0, SECOND))
        .holding([Held { age: NOW, ..pair(&request, 0, 0, SECOND)[0] }, pair(&request, 0, 0, SECOND)[1]])
}

fn returns(family: Family, transport: Transport) -> Row {
    let (request, reply) = (Datagram::request(family, transport), reply(family, transport));
    let out = Datagram { to: request.from, ..reply.clone() }.returning(leaving(CLIENT_SIDE, CLIENT));
    comes_back("snat: a reply", &request, &reply, &out, Verdict::Redirect(CLIENT_SIDE.index))
}

/// One-arm: the client is behind a router on the backends' side.
fn returns_to_the_backends_side(family: Family, transport: Transport) -> Row {
    let from = world::client(FAR, family);
    let (request, reply) =
        (Datagram { from, ..Datagram::request(family, transport) }, reply(family, transport));
    let out = Datagram { to: from, ..reply.clone() }.returning(leaving(BACKEND_SIDE, ROUTER));
    comes_back("snat: a reply, one-arm", &request, &reply, &out, Verdict::Transmit)
}

fn comes_back(what: &str, request: &Datagram, reply: &Datagram, out: &Datagram, verdict: Verdict) -> Row {
    let [forward, back] = pair(request, 0, 0, SECOND);
    let traffic = (forward.backend, Side::Source);
    let (name, image) = (called(what, reply), settled(Mode::Snat));
    Row::translates(name, image, BACKEND_SIDE.index, reply.frame(), out.frame(), verdict, traffic)
        .mapped([forward, back])
        .holding([forward, Held { age: NOW, ..back }])
}

/// To the kernel such a reply is for the machine itself, so that it would not tell the backend.
fn too_big(family: Family, transport: Transport) -> Row {
    let (request, reply) = (Datagram::request(family, transport), reply(family, transport));
    let reply = reply.sized(MTU as usize + 1);
    let by = BACKEND_SIDE.balancer.ip(family);
    let error = IcmpError::about(&reply, &reply.packet(), by, Complaint::TooBig(MTU as u16)).frame();
    let [forward, back] = pair(&request, 0, 0, SECOND);
    let (name, image) = (called("snat: a reply that is too big", &reply), settled(Mode::Snat));
    Row::answers(name, image, BACKEND_SIDE.index, reply.frame(), error, Reason::TooBig)
        .mapped([forward, back])
        .holding([forward, Held { age: NOW, ..back }])
}

/// A later fragment goes by the ports of the first one.
fn in_fragments(family: Family, transport: Transport) -> Row {
    let request = Datagram { id: 77, may_fragment: true, ..Datagram::request(family, transport) };
    let parts = [0..24, 24..request.segment().len()];
    let [first, later] = parts.map(|bytes| {
        let packet = request.part(bytes.clone());
        let out = reaching(&request).part(bytes);
        (request.carrying(packet), reaching(&request).carrying(out))
    });
    let [forward, back] = pair(&request, 0, 0, SECOND);
    let row = reaches("snat: a later fragment", settled(Mode::Snat), &request);
    let held = [Held { age: NOW, ..forward }, back];
    Row { frame: later.0, out: later.1, ..row }.after(first.0).mapped([forward, back]).holding(held)
}

/// What begins a flow, and what cannot.
fn openings(family: Family) -> Vec<Row> {
    let (syn, udp) =
        [Transport::Syn, Transport::Udp].map(|transport| Datagram::request(family, transport)).into();
    let data = Datagram::request(family, Transport::Ack);
    let image = || settled(Mode::Snat);
    let opening = |syn| pair(syn, entry_state::OPENING, entry_state::OPENING, NOW);
    vec![
        reaches("snat: a SYN", image(), &syn).holding(opening(&syn)),
        reaches("snat: a first datagram", image(), &udp).holding(pair(&udp, 0, 0, NOW)),
        reaches("snat: a SYN once more", image(), &syn).after(syn.frame()).holding(opening(&syn)),
        reaches("snat: the answer to a SYN-ACK", image(), &data)
            .mapped(pair(&data, entry_state::OPENING, 0, SECOND))
            .holding([Held { age: NOW, ..pair(&data, 0, 0, SECOND)[0] }, pair(&data, 0, 0, SECOND)[1]]),
        refuses("snat: data of no flow", image(), &data, Reason::Unmapped),
        refuses("snat: data of a flow that is over", image(), &data, Reason::Unmapped).mapped(pair(
            &data,
            0,
            0,
            TRANSITION + SECOND,
        )),
    ]
}

/// What shows the end of a flow, and what comes after it.
fn endings(family: Family) -> Vec<Row> {
    let of = |transport| Datagram::request(family, transport);
    let (syn, data) = (of(Transport::Syn), of(Transport::Ack));
    let image = || settled(Mode::Snat);
    let ending = |transport, state| {
        let request = of(transport);
        let [forward, back] = pair(&request, 0, 0, SECOND);
        reaches(&format!("snat: a {transport:?}"), image(), &request)
            .mapped([forward, back])
            .holding([Held { age: NOW, state, ..forward }, back])
    };
    let again = |what, forward, back| {
        reaches(what, image(), &syn).mapped(pair(&syn, forward, back, SECOND)).holding(pair(
            &syn,
            entry_state::OPENING,
            entry_state::OPENING,
            NOW,
        ))
    };
    let brief = Duration::from_secs(61);
    vec![
        ending(Transport::Fin, entry_state::CLOSING),
        ending(Transport::Rst, entry_state::RESET),
        again("snat: a SYN after the client's FIN", entry_state::CLOSING, 0),
        again("snat: a SYN after the backend's RST", 0, entry_state::RESET),
        again("snat: a SYN after both FINs", entry_state::CLOSING, entry_state::CLOSING),
        // An attacker's SYN must not end a flow.
        reaches("snat: a SYN within a flow", image(), &syn)
            .mapped(pair(&syn, 0, 0, SECOND))
            .holding([Held { age: NOW, ..pair(&syn, 0, 0, SECOND)[0] }, pair(&syn, 0, 0, SECOND)[1]]),
        refuses("snat: data long after a FIN", image(), &data, Reason::Unmapped).mapped(pair(
            &data,
            entry_state::CLOSING,
            0,
            brief,
        )),
        reaches("snat: data of a client while the backend talks", image(), &data)
            .mapped([pair(&data, 0, 0, TRANSITION)[0], pair(&data, 0, 0, SECOND)[1]])
            .holding([pair(&data, 0, 0, NOW)[0], pair(&data, 0, 0, SECOND)[1]]),
    ]
}

/// Who has the only source.
fn ports(family: Family) -> Vec<Row> {
    let from = SocketAddr::new(FAR.ip(family), 1);
    let holder = Datagram { from, ..Datagram::request(family, Transport::Syn) };
    let (syn, udp) = (Datagram::request(family, Transport::Syn), Datagram::request(family, Transport::Udp));
    let other_udp = Datagram { from, ..udp.clone() };
    let opened = || pair(&syn, entry_state::OPENING, entry_state::OPENING, NOW);
    let image = || settled(Mode::Snat);
    let taken = |what, request: &Datagram, held: [Held; 2]| {
        refuses(what, image(), request, Reason::NoPort).mapped(held).holding(held)
    };
    let evicted = |what, held: [Held; 2]| reaches(what, image(), &syn).mapped(held).holding(opened());
    let closing = entry_state::CLOSING;
    vec![
        taken("snat: a SYN without a port", &syn, pair(&holder, 0, 0, SECOND)),
        taken("snat: a datagram without a port", &udp, pair(&other_udp, 0, 0, SECOND)),
        taken("snat: a SYN, the port half-closed", &syn, pair(&holder, closing, 0, 10 * SECOND)),
        taken("snat: a SYN, the port just closed", &syn, pair(&holder, closing, closing, NOW)),
        taken("snat: a SYN, the port just opened", &syn, pair(&holder, entry_state::OPENING, 0, SECOND)),
        evicted("snat: a SYN, the port closed", pair(&holder, closing, closing, 2 * SECOND)),
        evicted("snat: a SYN, the port reset", pair(&holder, 0, entry_state::RESET, 2 * SECOND)),
        evicted("snat: a SYN, the port long half-open", pair(&holder, entry_state::OPENING, 0, 5 * SECOND)),
        evicted("snat: a SYN, half a mapping", pair(&holder, 0, 0, 2 * SECOND)).lacking(0),
    ]
}

fn refused_without_room(family: Family, transport: Transport) -> Row {
    let transport = if transport == Transport::Ack { Transport::Syn } else { transport };
    let request = Datagram::request(family, transport);
    let others = (0..MAPPINGS as u16).flat_map(|port| {
        let from = SocketAddr::new(FAR.ip(family), port);
        let other = Datagram { from, ..request.clone() };
        let [forward, back] = pair(&other, 0, 0, SECOND);
        let mut to_other_port = back.flow;
        to_other_port.destination.port = port.to_be_bytes();
        [forward, Held { flow: to_other_port, ..back }]
    });
    let others: Vec<_> = others.collect();
    refuses("snat: a flow without room", settled(Mode::Snat), &request, Reason::NotMapped)
        .mapped(others.clone())
        .holding(others)
}

/// The backend does not serve any more.
fn without_a_backend(family: Family) -> Vec<Row> {
    let image = || mapped(Story::moving(), Mode::Snat).image();
    let dead = || {
        let mut image = image();
        image.backends.values_mut().for_each(|backend| {
            if backend.endpoint.address == address(WEB1.ip(family)) {
                backend.flags = 0;
            }
        });
        image
    };
    let (data, udp) = (Datagram::request(family, Transport::Ack), Datagram::request(family, Transport::Udp));
    let to_second =
        |request: &Datagram| Datagram { from: own(family), ..request.clone().reaching(WEB2) }.frame();
    let second = |request: &Datagram| id(WEB2, family, request.transport.protocol());
    let first = |request: &Datagram| id(WEB1, family, request.transport.protocol());
    let elsewhere = |what, request: &Datagram, image| {
        let row = reaches(what, image, request).by_backend(second(request));
        Row { out: to_second(request), ..row }
    };
    let syn = Datagram::request(family, Transport::Syn);
    let opening = entry_state::OPENING;
    vec![
        refuses("snat: data to a dead backend", dead(), &data, Reason::Unmapped)
            .mapped(pair(&data, 0, 0, SECOND))
            .repicking(first(&data)),
        elsewhere("snat: a datagram to a dead backend", &udp, dead())
            .mapped(pair(&udp, 0, 0, SECOND))
            .repicking(first(&udp))
            .holding(pair_on(WEB2, &udp, 0, 0, NOW)),
        // While slots move, what is mapped stays and what begins goes to the new owner; nothing is remembered.
        reaches("snat: data while its slot moves", image(), &data)
            .mapped(pair(&data, 0, 0, NOW))
            .holding(pair(&data, 0, 0, NOW)),
        elsewhere("snat: a SYN while its slot moves", &syn, image())
            .holding(pair_on(WEB2, &syn, opening, opening, NOW)),
    ]
}

/// The client would get the reply past the balancer.
fn from_backend_subnet(mode: Mapped, family: Family, transport: Transport) -> Row {
    let link = arriving(COLLEAGUE, BACKEND_SIDE);
    let from = world::client(COLLEAGUE, family);
    let request = Datagram { link, from, ..Datagram::request(family, transport) };
    let [forward, back] = pair(&request, 0, 0, SECOND);
    let row = reaches("snat: from the backends' subnet", settled(mode), &request);
    let name = format!("{} in mode {}", row.name, mode(Pool { addresses: vec![], ports: 1..=1 }).name());
    Row { name, ingress: BACKEND_SIDE.index, ..row }
        .ending_in(Verdict::Transmit)
        .mapped([forward, back])
        .holding([Held { age: NOW, ..forward }, back])
}

/// All others keep their source.
fn not_by_hairpin(family: Family, transport: Transport) -> Row {
    let request = Datagram::request(family, transport);
    let row = reaches("hairpin: from another subnet", settled(Mode::Hairpin), &request);
    Row { out: request.reaching(WEB1).frame(), ..row }
}

/// An answer to the balancer itself, as of a health check.
fn to_the_balancer(family: Family, transport: Transport) -> Row {
    let answer = reply(family, transport);
    let name = called("hairpin: an answer to the balancer", &answer);
    let image = settled(Mode::Hairpin);
    Row::passes(name, image, BACKEND_SIDE.index, answer.frame(), Reason::ToBalancer)
}

/// Errors about what was sent, from whomever, seem to come from the other end.
fn errors(family: Family) -> Vec<Row> {
    let mut rows = Vec::new();
    for transport in [Transport::Ack, Transport::Udp] {
        let (request, reply) = (Datagram::request(family, transport), reply(family, transport));
        let [forward, back] = pair(&request, 0, 0, SECOND);
        for speaker in [CLIENT, FAR] {
            rows.push(
                about_reply(speaker, &request, &reply).mapped([forward, back]).holding([forward, back]),
            );
        }
        for speaker in [WEB1, ROUTER] {
            let row = about_request(speaker, &request);
            rows.push(row.mapped([forward, back]).holding([forward, back]));
        }
    }
    rows
}

fn about_reply(speaker: Host, request: &Datagram, reply: &Datagram) -> Row {
    let family = request.family();
    let seen = Datagram { from: request.to, to: request.from, ..reply.clone() };
    let error = IcmpError {
        link: request.link,
        from: speaker.ip(family),
        to: VIP.ip(family),
        hops: 64,
        complaint: Complaint::TooBig(MTU as u16 - 100),
        quoted: seen.packet(),
    };
    let out = IcmpError {
        link: leaving(BACKEND_SIDE, WEB1),
        from: own(family).ip(),
        to: WEB1.ip(family),
        hops: 63,
        quoted: reply.packet(),
        ..error.clone()
    };
    let traffic = (id(WEB1, family, request.transport.protocol()), Side::Destination);
    let name = format!("{} of {speaker:?}", called("snat: an error about a reply", request));
    let (image, verdict) = (settled(Mode::Snat), Verdict::Redirect(BACKEND_SIDE.index));
    Row::translates(name, image, CLIENT_SIDE.index, error.frame(), out.frame(), verdict, traffic)
}

fn about_request(speaker: Host, request: &Datagram) -> Row {
    let family = request.family();
    let sent = Datagram { hops: 60, ..reaching(request) };
    let error = IcmpError {
        link: arriving(speaker, BACKEND_SIDE),
        from: speaker.ip(family),
        to: own(family).ip(),
        hops: 64,
        complaint: Complaint::PortUnreachable,
        quoted: sent.packet(),
    };
    let out = IcmpError {
        link: leaving(CLIENT_SIDE, CLIENT),
        from: VIP.ip(family),
        to: CLIENT.ip(family),
        hops: 63,
        quoted: Datagram { from: request.from, to: request.to, ..sent }.packet(),
        ..error.clone()
    };
    let traffic = (id(WEB1, family, request.transport.protocol()), Side::Source);
    let name = format!("{} of {speaker:?}", called("snat: an error about a request", request));
    let (image, verdict) = (settled(Mode::Snat), Verdict::Redirect(CLIENT_SIDE.index));
    Row::translates(name, image, BACKEND_SIDE.index, error.frame(), out.frame(), verdict, traffic)
}
