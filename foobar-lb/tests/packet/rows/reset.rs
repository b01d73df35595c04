//! Refused TCP segments: what the RST says follows from the segment (RFC 9293, 3.5.2).

use foobar_lb_ebpf::reason::Reason;

use super::refuse::{rejecting, to_another_port};
use crate::packet::{
    Row,
    frame::{ACKNOWLEDGEMENT, Datagram, Extension, Numbers, SEQUENCE, Transport, padded, refusal},
    world::{CLIENT_SIDE, Family, Story},
};

pub fn rows() -> Vec<Row> {
    Family::BOTH.into_iter().flat_map(of_family).collect()
}

fn of_family(family: Family) -> Vec<Row> {
    let segment = |transport| to_another_port(family, transport);
    let empty = |transport| Datagram { payload: vec![], ..segment(transport) };
    let length = segment(Transport::Syn).payload.len() as u32;
    let options = vec![2, 4, 5, 180, 1, 3, 3, 7];
    let unheard = |acknowledged| Numbers { sequence: 0, acknowledged: Some(acknowledged) };
    let expected = Numbers { sequence: ACKNOWLEDGEMENT, acknowledged: None };
    vec![
        answered("a SYN", empty(Transport::Syn), unheard(SEQUENCE + 1)),
        answered("a SYN with data", segment(Transport::Syn), unheard(SEQUENCE + 1 + length)),
        answered(
            "a SYN with options",
            Datagram { tcp_options: options, ..empty(Transport::Syn) },
            unheard(SEQUENCE + 1),
        ),
        answered("a SYN-ACK", empty(Transport::SynAck), expected),
        answered("an ACK", empty(Transport::BareAck), expected),
        answered("data", segment(Transport::Ack), expected),
        answered("much data", segment(Transport::Ack).sized(1500), expected),
        answered("data of 9000 bytes", segment(Transport::Ack).sized(9000), expected),
        answered("a FIN", empty(Transport::Fin), expected),
        answered("a segment behind other headers", behind_others(segment(Transport::Ack)), expected),
        with_padding(empty(Transport::Syn), unheard(SEQUENCE + 1)),
        unanswered(empty(Transport::Rst)),
    ]
}

fn behind_others(segment: Datagram) -> Datagram {
    match segment.family() {
        Family::V4 => Datagram { options: &[1; 8], ..segment },
        Family::V6 => Datagram { extensions: vec![Extension::HopByHop], ..segment },
    }
}

fn answered(what: &str, segment: Datagram, numbers: Numbers) -> Row {
    answered_as(what, &segment, segment.frame(), numbers)
}

/// Padding is no data.
fn with_padding(segment: Datagram, numbers: Numbers) -> Row {
    let mut frame = padded(segment.frame());
    frame.extend([0; 4]);
    answered_as("a SYN with padding", &segment, frame, numbers)
}

fn answered_as(what: &str, segment: &Datagram, frame: Vec<u8>, numbers: Numbers) -> Row {
    let (name, image) = (called(what, segment), rejecting(Story::settled()).image());
    Row::answers(name, image, CLIENT_SIDE.index, frame, refusal(segment, numbers), Reason::Rejected)
}

fn unanswered(segment: Datagram) -> Row {
    let (name, image) = (called("a RST", &segment), rejecting(Story::settled()).image());
    Row::drops(name, image, CLIENT_SIDE.index, segment.frame(), Reason::Rejected)
}

fn called(what: &str, segment: &Datagram) -> String {
    format!("reject {what} ({:?})", segment.family())
}
