//! What the two ends of a TCP connection may ask of each other as the largest segment.

use foobar_lb::{image::Image, model::Mss};
use foobar_lb_ebpf::{headers::Side, reason::Verdict};

use crate::packet::{
    Row,
    frame::{Datagram, Transport, ip_header, leaving},
    way::{WAYS, Way},
    world::{BACKEND_SIDE, CLIENT, CLIENT_SIDE, Family, MTU, Story, WEB1, id},
};

const MOST: u16 = 1200;
const MORE: u16 = 1460;

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in Family::BOTH {
        for (what, before) in placed() {
            rows.push(clamped(what, family, &before));
            rows.push(clamped_reply(what, family, &before));
        }
        for (what, options) in left() {
            rows.push(kept(&format!("a SYN with {what}"), family, Transport::Syn, options.clone()));
            rows.push(kept_reply(&format!("a SYN-ACK with {what}"), family, options));
        }
        for transport in [Transport::Ack, Transport::Fin, Transport::Rst] {
            rows.push(kept("options of a SYN", family, transport, size(MORE)));
        }
        rows.extend(WAYS.map(|way| clamped_by_mtu(way, family)));
    }
    rows
}

/// The option itself (RFC 9293, 3.1).
fn size(most: u16) -> Vec<u8> {
    let [high, low] = most.to_be_bytes();
    vec![2, 4, high, low]
}

/// What may come before the option: it begins at even and odd places.
fn placed() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", vec![]),
        ("a no-operation", vec![1]),
        ("two no-operations", vec![1, 1]),
        ("three no-operations", vec![1, 1, 1]),
        ("a window scale", vec![3, 3, 7]),
        ("a timestamp and leave to acknowledge selectively", [&[8, 10][..], &[0x5a; 8], &[4, 2]].concat()),
    ]
}

/// Options that stay as they are.
fn left() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("no options", vec![]),
        ("other options only", vec![1, 3, 3, 7]),
        ("a smaller size", size(536)),
        ("the same size", size(MOST)),
        ("a size behind the end", [&[0, 0, 0, 0][..], &size(MORE)].concat()),
        ("a size behind an option of no length", [&[8, 0][..], &size(MORE), &[1, 1]].concat()),
        ("a size behind an option that is too short", [&[8, 1][..], &size(MORE), &[1, 1]].concat()),
        ("a size behind an option that is too long", [&[8, 40][..], &size(MORE), &[1, 1]].concat()),
        ("a size that is cut short", vec![1, 2, 4, 5]),
        ("a size of another length", vec![2, 6, 5, 180, 5, 180, 1, 1]),
        ("a size behind very many options", [&[1; 8][..], &size(MORE)].concat()),
    ]
}

fn image(mss: Mss, story: Story) -> Image {
    story.configured(|service| service.mss = Some(mss)).image()
}

fn with_options(datagram: Datagram, tcp_options: Vec<u8>) -> Datagram {
    Datagram { tcp_options, ..datagram }
}

fn clamped(what: &str, family: Family, before: &[u8]) -> Row {
    let syn = Datagram::request(family, Transport::Syn);
    let asking = |most| with_options(syn.clone(), [before, &size(most)].concat());
    translated(format!("clamp a SYN behind {what} ({family:?})"), &asking(MORE), &asking(MOST))
}

fn kept(what: &str, family: Family, transport: Transport, options: Vec<u8>) -> Row {
    let request = with_options(Datagram::request(family, transport), options);
    translated(format!("do not clamp {what} ({transport:?} {family:?})"), &request, &request)
}

fn translated(name: String, request: &Datagram, sent: &Datagram) -> Row {
    let out = Way::Nat.carry(sent, WEB1, &Datagram::packet);
    let row = Way::Nat.translates(&name, request, request.frame(), out);
    Row { image: image(Mss::Bytes(MOST), Story::settled()), ..row }
}

fn clamped_reply(what: &str, family: Family, before: &[u8]) -> Row {
    let reply = Datagram::reply(family, Transport::SynAck);
    let asking = |most| with_options(reply.clone(), [before, &size(most)].concat());
    returned(format!("clamp a SYN-ACK behind {what} ({family:?})"), &asking(MORE), asking(MOST))
}

fn kept_reply(what: &str, family: Family, options: Vec<u8>) -> Row {
    let reply = with_options(Datagram::reply(family, Transport::SynAck), options);
    returned(format!("do not clamp {what} ({family:?})"), &reply, reply.clone())
}

fn returned(name: String, reply: &Datagram, sent: Datagram) -> Row {
    let out = sent.returning(leaving(CLIENT_SIDE, CLIENT)).frame();
    let traffic = (id(WEB1, reply.family(), reply.transport.protocol()), Side::Source);
    let image = image(Mss::Bytes(MOST), Story::settled());
    let verdict = Verdict::Redirect(CLIENT_SIDE.index);
    Row::translates(name, image, BACKEND_SIDE.index, reply.frame(), out, verdict, traffic)
}

/// What fits on the way to the backends, behind all headers.
fn clamped_by_mtu(way: Way, family: Family) -> Row {
    const TCP_HEADER: usize = 20;
    let fits = MTU as usize - way.overhead() - ip_header(family) - TCP_HEADER;
    let asking = |most| with_options(Datagram::request(family, Transport::Syn), size(most));
    let (request, sent) = (asking(MORE + 40), asking(fits as u16));
    let out = way.carry(&sent, WEB1, &Datagram::packet);
    let row = way.translates("clamp a SYN to what fits", &request, request.frame(), out);
    Row { image: image(Mss::Auto, way.story()), ..row }
}
