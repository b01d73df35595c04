//! What shows that a flow ends, and what shows that it goes on after all.

use super::*;

pub fn rows() -> Vec<Row> {
    let rows = play(
        "moving",
        &Story::moving().image(),
        vec![
            Case("a FIN out of the blue", None, Fin, WEB1, adopted(WEB1, NOW).map(end)),
            Case("a RST of a half-open flow", half_open(WEB2, LIVE), Rst, WEB2, reset(WEB2, NOW)),
            Case("a FIN of an established flow", established(WEB2, LIVE), Fin, WEB2, closing(WEB2, NOW)),
            Case("a RST of an established flow", established(WEB2, LIVE), Rst, WEB2, reset(WEB2, NOW)),
            Case("the last ACK of a closing flow", closing(WEB2, LIVE), BareAck, WEB2, closing(WEB2, NOW)),
            Case("an ACK after a forged RST", reset(WEB2, LIVE), BareAck, WEB2, established(WEB2, NOW)),
            Case("data after a forged RST", reset(WEB2, LIVE), Ack, WEB2, established(WEB2, NOW)),
            Case("a SYN after a RST", reset(WEB1, LIVE), Syn, WEB2, begun(name::ESTABLISHED, WEB2)),
            Case("a packet of a closing flow", closing(WEB2, LIVE), Ack, WEB2, established(WEB2, NOW)),
            Case("a FIN of a closing flow", closing(WEB2, LIVE), Fin, WEB2, closing(WEB2, NOW)),
            Case("a packet of a closed flow", closing(WEB2, LATE), Ack, WEB1, established(WEB1, NOW)),
        ],
    );
    rows.into_iter()
        .chain([last_ack_in_ipv6(), last_ack_with_ip_options()])
        .chain(Family::BOTH.into_iter().flat_map(resets_of_backends))
        .collect()
}

fn end(known: Known) -> Known {
    Known { state: entry_state::CLOSING, ..known }
}

fn last_ack_in_ipv6() -> Row {
    last_ack("moving: the last ACK of a closing flow, IPv6", Datagram::request(Family::V6, BareAck))
}

fn last_ack_with_ip_options() -> Row {
    let request = Datagram { options: &[1, 1, 1, 1], ..Datagram::request(Family::V4, BareAck) };
    last_ack("moving: the last ACK of a closing flow, IPv4 options", request)
}

/// It has no payload, whatever headers there are.
fn last_ack(name: &str, request: Datagram) -> Row {
    let known = |age| Known { map: name::ESTABLISHED, backend: WEB2, state: entry_state::CLOSING, age };
    reaches(name.to_owned(), &Story::moving().image(), &request, WEB2)
        .knowing(remembered(known(LIVE), &request))
        .remembering(remembered(known(NOW), &request))
}

fn resets_of_backends(family: Family) -> [Row; 5] {
    let ended = |map| Some(Known { map, backend: WEB1, state: entry_state::RESET, age: LIVE });
    [
        reset_by_backend("a flow that is not remembered", family, None, None),
        reset_by_backend("a half-open flow", family, half_open(WEB1, LIVE), ended(name::HALF_OPEN)),
        reset_by_backend("an established flow", family, established(WEB1, LIVE), ended(name::ESTABLISHED)),
        reset_by_backend("an adopted flow", family, adopted(WEB1, LIVE), ended(name::ADOPTED)),
        reset_by_backend("another's flow", family, established(WEB2, LIVE), established(WEB2, LIVE)),
    ]
}

/// The first backend resets a flow: its client may say nothing more, and begin another from the same port.
fn reset_by_backend(what: &str, family: Family, known: Option<Known>, after: Option<Known>) -> Row {
    let request = Datagram::request(family, Ack);
    let reply = Datagram::reply(family, Rst);
    let out = reply.clone().returning(leaving(CLIENT_SIDE, CLIENT)).frame();
    let traffic = (id(WEB1, family, Protocol::Tcp), Side::Source);
    let verdict = Verdict::Redirect(CLIENT_SIDE.index);
    let (name, image) = (format!("moving: the backend's RST of {what}, {family:?}"), Story::moving().image());
    let mut row = Row::translates(name, image, BACKEND_SIDE.index, reply.frame(), out, verdict, traffic);
    row.known.extend(known.map(|known| remembered(known, &request)));
    row.remembered.extend(after.map(|after| remembered(after, &request)));
    row
}
