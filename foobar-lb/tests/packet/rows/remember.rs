//! The table of slot states: which backend a packet goes to while its slot moves and afterwards, and what is
//! remembered of its flow. Everything of the first backend moves to the second; the third is silent. How flows end is
//! in `ending`.

mod ending;

use std::time::Duration;

use foobar_lb::{
    image::Image,
    model::{Down, Health, Protocol, WhenEmpty},
};
use foobar_lb_ebpf::{
    conntrack::BRIEF_IDLE,
    flow::{hash, hash_key, reduce},
    headers::Side,
    layout::{FlowKey, SETTLED, TRACES, entry_state, name},
    reason::{Reason, Verdict},
};

use crate::packet::{
    Memory, Row,
    frame::{Complaint, Datagram, IcmpError, Transport, arriving, leaving},
    world::{
        BACKEND_SIDE, CLIENT, CLIENT_SIDE, Family, Host, SEED, Story, TRANSITION, VIP, WEB1, WEB2, WEB3,
        flow, id,
    },
};

const LIVE: Duration = Duration::from_secs(1);
/// More than what a flow may be silent.
const IDLE: Duration = TRANSITION.saturating_add(LIVE);
/// More than what a flow may be silent that showed FIN or RST, or a SYN only.
const LATE: Duration = Duration::from_nanos(BRIEF_IDLE).saturating_add(LIVE);
const NOW: Duration = Duration::ZERO;

pub fn rows() -> Vec<Row> {
    [
        settled(),
        moving_start(),
        moving_ongoing(),
        moving_errors(),
        traces_start(),
        traces_ongoing(),
        traces_errors(),
        ending::rows(),
    ]
    .concat()
    .into_iter()
    .chain([moving_to_nobody_start(), moving_to_nobody_ongoing()])
    .chain([promotion_without_room(), adoption_without_room()])
    .chain([udp_while_moving(), adoption_in_ipv6()])
    .collect()
}

use Transport::{Ack, BareAck, Fin, Rst, Syn};

/// A case of the table: what is known before, what the packet is, who gets it and what is remembered.
struct Case(&'static str, Option<Known>, Transport, Host, Option<Known>);

/// What is remembered of the flow.
#[derive(Clone, Copy)]
struct Known {
    map: &'static str,
    backend: Host,
    state: u32,
    age: Duration,
}

const fn half_open(backend: Host, age: Duration) -> Option<Known> {
    Some(Known { map: name::HALF_OPEN, backend, state: entry_state::OPENING, age })
}

/// A SYN took the place of what was remembered there.
const fn begun(map: &'static str, backend: Host) -> Option<Known> {
    Some(Known { map, backend, state: entry_state::OPENING, age: NOW })
}

/// It goes on among the half-open ones.
const fn not_promoted(backend: Host, age: Duration) -> Option<Known> {
    Some(Known { map: name::HALF_OPEN, backend, state: 0, age })
}

const fn established(backend: Host, age: Duration) -> Option<Known> {
    Some(Known { map: name::ESTABLISHED, backend, state: 0, age })
}

const fn closing(backend: Host, age: Duration) -> Option<Known> {
    Some(Known { map: name::ESTABLISHED, backend, state: entry_state::CLOSING, age })
}

const fn reset(backend: Host, age: Duration) -> Option<Known> {
    Some(Known { map: name::ESTABLISHED, backend, state: entry_state::RESET, age })
}

const fn adopted(backend: Host, age: Duration) -> Option<Known> {
    Some(Known { map: name::ADOPTED, backend, state: 0, age })
}

/// The packet changes nothing that is remembered.
const fn kept(what: &'static str, known: Option<Known>, transport: Transport, backend: Host) -> Case {
    Case(what, known, transport, backend, known)
}

fn settled() -> Vec<Row> {
    play(
        "settled",
        &Story::settled().image(),
        vec![
            kept("a SYN of a flow that is remembered elsewhere", established(WEB2, LIVE), Syn, WEB1),
            kept("a packet of a flow that is remembered elsewhere", established(WEB2, LIVE), Ack, WEB1),
            kept("a packet of a half-open flow", half_open(WEB2, LIVE), Ack, WEB1),
            kept("a FIN", None, Fin, WEB1),
        ],
    )
}

fn moving_start() -> Vec<Row> {
    play(
        "moving",
        &Story::moving().image(),
        vec![
            Case("a new SYN", None, Syn, WEB2, half_open(WEB2, NOW)),
            kept("a SYN again", half_open(WEB1, LIVE), Syn, WEB1),
            kept("a SYN of an established flow", established(WEB1, LIVE), Syn, WEB1),
            kept("a SYN of an adopted flow", adopted(WEB1, LIVE), Syn, WEB1),
            Case("a SYN of a closing flow", closing(WEB1, LIVE), Syn, WEB2, begun(name::ESTABLISHED, WEB2)),
            Case("a SYN of an idle flow", established(WEB1, IDLE), Syn, WEB2, begun(name::ESTABLISHED, WEB2)),
            Case("a SYN of an idle adopted flow", adopted(WEB1, IDLE), Syn, WEB2, begun(name::ADOPTED, WEB2)),
            Case("a SYN of a late half-open flow", half_open(WEB1, LATE), Syn, WEB2, half_open(WEB2, NOW)),
            Case(
                "a SYN of a silent backend's flow",
                established(WEB3, LIVE),
                Syn,
                WEB2,
                begun(name::ESTABLISHED, WEB2),
            ),
        ],
    )
}

fn moving_ongoing() -> Vec<Row> {
    play(
        "moving",
        &Story::moving().image(),
        vec![
            Case("a packet out of the blue", None, Ack, WEB1, adopted(WEB1, NOW)),
            Case("a packet of a half-open flow", half_open(WEB2, LIVE), Ack, WEB2, established(WEB2, NOW)),
            Case("the ACK of a half-open flow", half_open(WEB2, LIVE), BareAck, WEB2, established(WEB2, NOW)),
            Case(
                "a packet of a flow that found no room for a while",
                not_promoted(WEB2, LATE),
                Ack,
                WEB2,
                established(WEB2, NOW),
            ),
            Case(
                "a packet of an established flow",
                established(WEB2, LIVE),
                Ack,
                WEB2,
                established(WEB2, NOW),
            ),
            Case(
                "a packet of an established flow that was silent for a while",
                established(WEB2, LATE),
                Ack,
                WEB2,
                established(WEB2, NOW),
            ),
            Case("a packet of an adopted flow", adopted(WEB2, LIVE), Ack, WEB2, adopted(WEB2, NOW)),
            Case("an ACK out of the blue", None, BareAck, WEB1, adopted(WEB1, NOW)),
            Case(
                "a packet of a late half-open flow",
                half_open(WEB2, LATE),
                Ack,
                WEB1,
                not_promoted(WEB1, NOW),
            ),
            Case("a packet of an idle flow", established(WEB2, IDLE), Ack, WEB1, established(WEB1, NOW)),
            Case(
                "a packet of a silent backend's flow",
                established(WEB3, LIVE),
                Ack,
                WEB1,
                established(WEB1, NOW),
            ),
        ],
    )
}

fn traces_start() -> Vec<Row> {
    play(
        "traces",
        &Story::traces().image(),
        vec![
            Case("a new SYN", None, Syn, WEB2, None),
            kept("a SYN again", half_open(WEB1, LIVE), Syn, WEB1),
            kept("a SYN of an established flow", established(WEB1, LIVE), Syn, WEB1),
            Case("a SYN of a closing flow", closing(WEB1, LIVE), Syn, WEB2, None),
            Case("a SYN of an idle flow", established(WEB1, IDLE), Syn, WEB2, None),
            Case("a SYN of an idle adopted flow", adopted(WEB1, IDLE), Syn, WEB2, None),
            Case("a SYN of a late half-open flow", half_open(WEB1, LATE), Syn, WEB2, None),
            Case("a SYN of a silent backend's flow", established(WEB3, LIVE), Syn, WEB2, None),
        ],
    )
}

fn traces_ongoing() -> Vec<Row> {
    play(
        "traces",
        &Story::traces().image(),
        vec![
            Case("a packet out of the blue", None, Ack, WEB2, None),
            Case("a packet of a half-open flow", half_open(WEB1, LIVE), Ack, WEB1, established(WEB1, NOW)),
            Case(
                "a packet of an established flow",
                established(WEB1, LIVE),
                Ack,
                WEB1,
                established(WEB1, NOW),
            ),
            Case("a packet of an adopted flow", adopted(WEB1, LIVE), Ack, WEB1, adopted(WEB1, NOW)),
            Case("a FIN of an established flow", established(WEB1, LIVE), Fin, WEB1, closing(WEB1, NOW)),
            Case("a packet of a closing flow", closing(WEB1, LIVE), Ack, WEB1, established(WEB1, NOW)),
            Case("a packet of a late half-open flow", half_open(WEB1, LATE), Ack, WEB2, None),
            Case("a packet of a closed flow", closing(WEB1, LATE), Ack, WEB2, None),
            Case("a packet of an idle flow", established(WEB1, IDLE), Ack, WEB2, None),
            Case("a packet of a silent backend's flow", established(WEB3, LIVE), Ack, WEB2, None),
        ],
    )
}

fn play(slot: &str, image: &Image, cases: Vec<Case>) -> Vec<Row> {
    let row = |Case(what, before, transport, backend, after): Case| {
        let request = Datagram::request(Family::V4, transport);
        let row = reaches(format!("{slot}: {what}"), image, &request, backend);
        let memory = |known: Known| remembered(known, &request);
        let row = before.map(memory).into_iter().fold(row, Row::knowing);
        // The third is silent.
        let leaves = before.is_some_and(|known| known.backend == WEB3) && transport != Syn;
        let row = if leaves { row.repicking(id(WEB3, Family::V4, transport.protocol())) } else { row };
        after.map(memory).into_iter().fold(row, Row::remembering)
    };
    cases.into_iter().map(row).collect()
}

fn remembered(Known { map, backend, state, age }: Known, request: &Datagram) -> Memory {
    let protocol = request.transport.protocol();
    let backend = id(backend, request.family(), protocol);
    Memory { map, flow: flow(request.from, request.to, protocol), backend, state, age }
}

fn reaches(name: String, image: &Image, request: &Datagram, backend: Host) -> Row {
    let out = request.clone().reaching(backend).frame();
    let traffic = (id(backend, request.family(), request.transport.protocol()), Side::Destination);
    let verdict = Verdict::Redirect(BACKEND_SIDE.index);
    Row::translates(name, image.clone(), CLIENT_SIDE.index, request.frame(), out, verdict, traffic)
}

fn moving_errors() -> Vec<Row> {
    let image = Story::moving().image();
    vec![
        error("moving: an ICMP error about a remembered flow", &image, established(WEB2, LIVE), WEB2),
        error("moving: an ICMP error about an idle flow", &image, established(WEB2, IDLE), WEB1),
        error("moving: an ICMP error out of the blue", &image, None, WEB1),
    ]
}

fn traces_errors() -> Vec<Row> {
    let image = Story::traces().image();
    vec![
        error("traces: an ICMP error about a remembered flow", &image, established(WEB1, LIVE), WEB1),
        error("traces: an ICMP error out of the blue", &image, None, WEB2),
    ]
}

/// What others say of a flow neither renews nor creates what is remembered of it.
fn error(name: &str, image: &Image, known: Option<Known>, backend: Host) -> Row {
    let request = Datagram::request(Family::V4, Ack);
    let seen = Datagram { from: request.to, to: request.from, ..request.clone() };
    let sent = Datagram { from: request.clone().reaching(backend).to, ..seen.clone() };
    let error = IcmpError {
        link: arriving(CLIENT, CLIENT_SIDE),
        from: CLIENT.ip(Family::V4),
        to: VIP.ip(Family::V4),
        hops: 64,
        complaint: Complaint::TooBig(1400),
        quoted: seen.packet(),
    };
    let translated = IcmpError {
        link: leaving(BACKEND_SIDE, backend),
        to: backend.ip(Family::V4),
        hops: 63,
        quoted: sent.packet(),
        ..error.clone()
    };
    let verdict = Verdict::Redirect(BACKEND_SIDE.index);
    let traffic = (id(backend, Family::V4, Protocol::Tcp), Side::Destination);
    let (frame, out) = (error.frame(), translated.frame());
    let row = Row::translates(name, image.clone(), CLIENT_SIDE.index, frame, out, verdict, traffic);
    match known.map(|known| remembered(known, &request)) {
        Some(memory) => row.knowing(memory).remembering(memory),
        None => row,
    }
}

/// The service refuses rather than fail open, and its only backend ends gracefully.
fn moving_to_nobody() -> Image {
    let story = Story::settled().configured(|service| service.when_empty = WhenEmpty::Refuse);
    let silent = Health::Down(Down::Silent);
    let story = story.health(WEB2, silent).health(WEB3, silent);
    story.health(WEB1, Health::Down(Down::Answers)).image()
}

fn moving_to_nobody_start() -> Row {
    let frame = Datagram::request(Family::V4, Syn).frame();
    let name = "moving to nobody: a new SYN";
    Row::drops(name, moving_to_nobody(), CLIENT_SIDE.index, frame, Reason::NoBackend)
}

fn moving_to_nobody_ongoing() -> Row {
    let request = Datagram::request(Family::V4, Ack);
    let name = "moving to nobody: a packet out of the blue".to_owned();
    let known = Known { map: name::ADOPTED, backend: WEB1, state: 0, age: NOW };
    reaches(name, &moving_to_nobody(), &request, WEB1).remembering(remembered(known, &request))
}

/// The flow stays among the half-open ones, but lives as long as an established one.
fn promotion_without_room() -> Row {
    let request = Datagram::request(Family::V4, Ack);
    let memory = |known: Option<Known>| remembered(known.expect("it is known"), &request);
    let name = "moving: a packet of a half-open flow, no room for established ones".to_owned();
    reaches(name, &Story::moving().image(), &request, WEB2)
        .knowing(memory(half_open(WEB2, LIVE)))
        .full(name::ESTABLISHED)
        .remarking(Reason::NotRemembered)
        .remembering(memory(not_promoted(WEB2, NOW)))
}

fn adoption_without_room() -> Row {
    let request = Datagram::request(Family::V4, Ack);
    let name = "moving: a packet out of the blue, no room for adopted flows".to_owned();
    reaches(name, &Story::moving().image(), &request, WEB1)
        .full(name::ADOPTED)
        .remarking(Reason::NotRemembered)
}

fn adoption_in_ipv6() -> Row {
    let request = Datagram::request(Family::V6, Ack);
    let known = Known { map: name::ADOPTED, backend: WEB1, state: 0, age: NOW };
    let name = "moving: a packet out of the blue, IPv6".to_owned();
    reaches(name, &Story::moving().image(), &request, WEB1).remembering(remembered(known, &request))
}

/// A second backend comes up beside the first and gets some of its slots.
fn udp_while_moving() -> Row {
    let image = Story::settled().health(WEB2, Health::Up).image();
    let with_port = |port| {
        let mut request = Datagram::request(Family::V4, Transport::Udp);
        request.from.set_port(port);
        request
    };
    let request =
        (1..).map(with_port).find(|request| moves(&image, &flow(request.from, request.to, Protocol::Udp)));
    let request = request.expect("some slot moves");
    let known = Known { map: name::ADOPTED, backend: WEB1, state: 0, age: NOW };
    let name = "moving: a UDP packet out of the blue".to_owned();
    reaches(name, &image, &request, WEB1).remembering(remembered(known, &request))
}

/// Whether the slot of a flow moves.
pub fn moves(image: &Image, flow: &FlowKey) -> bool {
    let service = image.services[&flow.destination];
    let slot = image.tables[&service.first_slot][reduce(hash(&hash_key(SEED), flow), service.slots) as usize];
    slot.previous != SETTLED && slot.previous != TRACES
}
