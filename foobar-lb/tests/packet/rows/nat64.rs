//! Flows whose backend is of the other IP than the VIP: what the balancer makes of their packets (RFC 7915), requests and
//! replies, from either IP. ICMP errors about them are in `errors`.

mod errors;

use std::{ops::Range, time::Duration};

use foobar_lb::{image::Image, model::Mode};
use foobar_lb_ebpf::{
    headers::Side,
    layout::entry_state,
    reason::{Reason, Verdict},
};

use super::snat::{self, own};
use crate::packet::{
    Held, Row,
    frame::{Complaint, Datagram, Extension, Fragment, IcmpError, Transport, family_of, leaving, padded},
    world::{self, BACKEND_SIDE, CLIENT, CLIENT_SIDE, Family, MTU, Port, Story, WEB1, WEBS, flow, id},
};

use Extension::{Authentication, Destination, HopByHop};

const NOW: Duration = Duration::ZERO;
const SECOND: Duration = Duration::from_secs(1);
const ID: u16 = 0x4242;
/// The largest IPv4 packet that is within the least MTU of IPv6.
const FRAGMENTABLE: usize = 1260;
/// The least and the largest UDP datagrams without a checksum that get one, and one that is too large.
const SUMMED: [usize; 6] = [8, 9, 10, 11, 12, 219];
const NOT_SUMMED: usize = 228;
/// Three fragments.
const FIRST: Range<usize> = 0..1400;
const SECOND_PART: Range<usize> = 1400..2800;
const WHOLE: usize = 3000;

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in Family::BOTH {
        for way in [Way::To(family), Way::From(family)] {
            rows.extend(usual(way));
            rows.extend(sizes(way));
            rows.extend(fragments(way));
            rows.extend(match way.arrives() {
                Family::V4 => [options(way), without_checksum(way)].concat(),
                Family::V6 => extensions(way),
            });
            rows.extend(errors::rows(way));
        }
        rows.extend(openings(family));
    }
    rows.extend(too_big());
    rows
}

/// Requests to a service of this family, or replies of its backends, which are of the other.
#[derive(Clone, Copy, Debug)]
enum Way {
    To(Family),
    From(Family),
}

impl Way {
    fn service(self) -> Family {
        match self {
            Self::To(family) | Self::From(family) => family,
        }
    }

    /// The family of packets that arrive.
    fn arrives(self) -> Family {
        match self {
            Self::To(family) => family,
            Self::From(family) => family.other(),
        }
    }

    /// Where packets come in and where they go out.
    fn ports(self) -> [Port; 2] {
        match self {
            Self::To(_) => [CLIENT_SIDE, BACKEND_SIDE],
            Self::From(_) => [BACKEND_SIDE, CLIENT_SIDE],
        }
    }

    fn traffic(self, transport: Transport) -> (u32, Side) {
        let backend = id(WEB1, self.service(), transport.protocol());
        match self {
            Self::To(_) => (backend, Side::Destination),
            Self::From(_) => (backend, Side::Source),
        }
    }

    /// A packet as it arrives.
    fn packet(self, transport: Transport) -> Datagram {
        let family = self.arrives();
        match self {
            Self::To(_) => Datagram::request(family, transport),
            Self::From(_) => Datagram { to: own(family), ..Datagram::reply(family, transport) },
        }
    }

    /// The ends of a packet as it leaves, and its way.
    fn between(self, packet: &Datagram) -> Datagram {
        let family = self.arrives().other();
        let (link, from, to) = match self {
            Self::To(_) => (leaving(BACKEND_SIDE, WEB1), own(family), world::server(WEB1, family)),
            Self::From(_) => {
                (leaving(CLIENT_SIDE, CLIENT), world::service(family), world::client(CLIENT, family))
            }
        };
        Datagram { link, from, to, hops: packet.hops - 1, ..packet.clone() }
    }

    /// A packet as it leaves.
    fn translated(self, packet: &Datagram) -> Datagram {
        identified(Datagram { options: &[], extensions: vec![], ..self.between(packet) })
    }

    /// The packet goes on, as `frame` and then as `out`.
    fn carries(self, what: &str, packet: &Datagram, frame: Vec<u8>, out: Vec<u8>) -> Row {
        let [ingress, egress] = self.ports();
        let (name, verdict) = (self.called(what, packet.transport), Verdict::Redirect(egress.index));
        let traffic = self.traffic(packet.transport);
        Row::translates(name, settled(), ingress.index, frame, out, verdict, traffic)
            .mapped(pair(self.service(), packet.transport, 0, SECOND))
            .holding(self.touched(packet.transport))
    }

    /// All of the packet goes on.
    fn translates(self, what: &str, packet: &Datagram) -> Row {
        self.carries(what, packet, packet.frame(), self.translated(packet).frame())
    }

    /// The packet, or what `part` makes of it, is dropped when all but the translation is done.
    fn drops(self, what: &str, packet: &Datagram, why: Reason, part: &dyn Fn(&Datagram) -> Vec<u8>) -> Row {
        let Datagram { link, hops, .. } = self.between(packet);
        let out = Datagram { link, hops, ..packet.clone() };
        let row = self.carries(what, packet, packet.carrying(part(packet)), out.carrying(part(&out)));
        Row { verdict: Verdict::Drop, reasons: vec![why], ..row }
    }

    fn called(self, what: &str, transport: Transport) -> String {
        format!("nat64, {self:?}: {what} ({transport:?})")
    }

    /// Both mappings after a packet.
    fn touched(self, transport: Transport) -> [Held; 2] {
        let mut held = pair(self.service(), transport, 0, SECOND);
        held[usize::from(matches!(self, Self::From(_)))].age = NOW;
        held
    }
}

/// The first backend has everything.
fn settled() -> Image {
    mixed(Story::settled()).image()
}

/// Backends are of the other family than their service, and each is reached from one source.
pub fn mixed(story: Story) -> Story {
    snat::mapped(with_backends(story, Family::other), Mode::Snat)
}

/// Backends are of the family of their service.
pub fn unmixed(story: Story) -> Story {
    with_backends(story, |family| family)
}

fn with_backends(story: Story, of: fn(Family) -> Family) -> Story {
    story.configured(|service| {
        let family = of(family_of(service.key.address.vip.addr()));
        for (backend, host) in service.backends.iter_mut().zip(WEBS) {
            backend.address = world::server(host, family);
        }
    })
}

/// Both mappings of a flow to the service of this family.
fn pair(service: Family, transport: Transport, state: u32, age: Duration) -> [Held; 2] {
    let (protocol, other) = (transport.protocol(), service.other());
    let end = |from, to| flow(from, to, protocol);
    let client = (world::client(CLIENT, service), world::service(service));
    let backend = (own(other), world::server(WEB1, other));
    let held = |flow, to, back| Held { flow, to, back, backend: id(WEB1, service, protocol), state, age };
    [
        held(end(client.0, client.1), end(backend.0, backend.1), false),
        held(end(backend.1, backend.0), end(client.1, client.0), true),
    ]
}

/// With what IPv4 says of fragments: routers may make some of a packet that no sender would make smaller, by the
/// checksum in it.
fn identified(packet: Datagram) -> Datagram {
    if packet.family() == Family::V6 {
        return packet;
    }
    let may_fragment = packet.packet().len() <= FRAGMENTABLE;
    let segment = packet.segment();
    let check = if packet.transport.protocol() == Transport::Udp.protocol() { 6..8 } else { 16..18 };
    let id = u16::from_be_bytes(segment[check].try_into().expect("it has two bytes"));
    Datagram { may_fragment, id: if may_fragment { id } else { 0 }, ..packet }
}

fn usual(way: Way) -> Vec<Row> {
    let mut rows = Vec::new();
    for transport in [Transport::Ack, Transport::BareAck, Transport::SynAck, Transport::Udp] {
        let packet = way.packet(transport);
        rows.push(way.translates("a packet", &packet));
        let marked = Datagram { traffic_class: 0xb9, ..packet.clone() };
        rows.push(way.translates("a packet of a traffic class", &marked));
        let short = Datagram { payload: vec![], ..packet };
        let padding = vec![0; padded(short.frame()).len() - short.frame().len()];
        let out = [way.translated(&short).frame(), padding].concat();
        rows.push(way.carries("a padded frame", &short, padded(short.frame()), out));
    }
    if way.arrives() == Family::V6 {
        let bare = way.packet(Transport::BareUdp);
        let out = Datagram { id: 0, ..way.translated(&bare) };
        rows.push(way.carries("a datagram without a checksum", &bare, bare.frame(), out.frame()));
    }
    rows
}

/// What begins a flow.
fn openings(family: Family) -> [Row; 2] {
    [(Transport::Syn, entry_state::OPENING), (Transport::Udp, 0)].map(|(transport, state)| {
        let way = Way::To(family);
        let row = way.translates("the first packet", &way.packet(transport));
        Row { mapped: vec![], held: pair(family, transport, state, NOW).to_vec(), ..row }
    })
}

/// About the sizes from which on routers may not make fragments.
fn sizes(way: Way) -> Vec<Row> {
    let mut rows = Vec::new();
    for size in [FRAGMENTABLE, FRAGMENTABLE + 1, MTU as usize - 20] {
        for transport in [Transport::Ack, Transport::Udp] {
            let length = match way.arrives() {
                Family::V4 => size,
                Family::V6 => size + 20,
            };
            let packet = way.packet(transport).sized(length);
            rows.push(way.translates(&format!("a packet of {length} bytes"), &packet));
        }
    }
    rows
}

/// Larger than what fits when it has grown: to the service from a client, who is told, and from a backend.
fn too_big() -> Vec<Row> {
    let way = Way::To(Family::V4);
    let mut rows = Vec::new();
    for may_fragment in [true, false] {
        let packet = Datagram { may_fragment, ..way.packet(Transport::Udp) }.sized(MTU as usize - 19);
        let complaint = Complaint::TooBig(MTU as u16 - 20);
        let from = CLIENT_SIDE.balancer.ip(Family::V4);
        let error = IcmpError::about(&packet, &packet.packet(), from, complaint).frame();
        let name = way.called(&format!("too big, to be fragmented: {may_fragment}"), packet.transport);
        let row = Row::answers(name, settled(), CLIENT_SIDE.index, packet.frame(), error, Reason::TooBig);
        let held = way.touched(packet.transport);
        rows.push(row.mapped(pair(Family::V4, packet.transport, 0, SECOND)).holding(held));
    }
    rows
}

fn fragments(way: Way) -> Vec<Row> {
    let mut rows = Vec::new();
    for transport in [Transport::Ack, Transport::Udp] {
        let packet =
            Datagram { id: ID, may_fragment: true, payload: vec![0x5a; WHOLE], ..way.packet(transport) };
        let out = way.between(&packet);
        let end = packet.segment().len();
        let frame = |packet: &Datagram, part: Range<usize>| packet.carrying(packet.part(part));
        let first = frame(&packet, FIRST);
        for (what, part) in [("first", FIRST), ("second", SECOND_PART), ("last", SECOND_PART.end..end)] {
            let what = format!("the {what} fragment");
            let row = way.carries(&what, &packet, frame(&packet, part.clone()), frame(&out, part.clone()));
            rows.push(if part == FIRST { row } else { row.after(first.clone()) });
        }
    }
    rows
}

/// IPv4 options are not kept; a source route must have come to its end.
fn options(way: Way) -> Vec<Row> {
    let with = |options| Datagram { options, ..way.packet(Transport::Ack) };
    const ENDED: &[u8] = &[131, 7, 8, 192, 0, 2, 7, 0];
    const LOOSE: &[u8] = &[131, 7, 4, 192, 0, 2, 7, 0];
    const STRICT: &[u8] = &[1, 137, 7, 4, 192, 0, 2, 7];
    const RECORDED: &[u8] = &[7, 7, 4, 0, 0, 0, 0, 131, 7, 4, 192, 0, 2, 7, 0, 0];
    let kept: [(&str, &[u8]); 4] = [
        ("four options", &[1; 4]),
        ("all options", &[1; 40]),
        ("a source route that has ended", ENDED),
        ("options after their end", &[0, 131, 7, 4]),
    ];
    let dropped = [("a loose source route", LOOSE), ("a strict one", STRICT), ("another route", RECORDED)];
    let mut rows: Vec<Row> =
        kept.iter().map(|(what, options)| way.translates(what, &with(*options))).collect();
    rows.extend(
        dropped.map(|(what, options)| {
            way.drops(what, &with(options), Reason::Untranslatable, &Datagram::packet)
        }),
    );
    rows
}

/// UDP may do without a checksum in IPv4, but not in IPv6.
fn without_checksum(way: Way) -> Vec<Row> {
    let bare = |length| Datagram { payload: vec![0x5a; length - 8], ..way.packet(Transport::BareUdp) };
    let summed = |length| {
        let packet = bare(length);
        let out = Datagram { transport: Transport::Udp, ..way.translated(&packet) };
        let what = format!("{length} bytes without a checksum");
        way.carries(&what, &packet, packet.frame(), out.frame())
    };
    let mut rows: Vec<Row> = SUMMED.map(summed).into();
    let (long, why) = (bare(NOT_SUMMED), Reason::NoChecksum);
    rows.push(way.drops("too long without a checksum", &long, why, &Datagram::packet));
    let part = |packet: &Datagram| packet.part(0..16);
    rows.push(way.drops("a fragment without a checksum", &bare(100), why, &part));
    rows
}

/// Extension headers are not kept. That of a fragment is, where it is the only one.
fn extensions(way: Way) -> Vec<Row> {
    const ATOMIC: Extension = Extension::Fragment(Fragment { offset: 0, more: false, id: ID });
    const PART: Extension = Extension::Fragment(Fragment { offset: 0, more: true, id: ID });
    let with = |transport, extensions: &[Extension]| Datagram {
        extensions: extensions.to_vec(),
        ..way.packet(transport)
    };
    let kept: [&[Extension]; 5] =
        [&[HopByHop], &[Destination(5)], &[Authentication], &[ATOMIC], &[HopByHop, Destination(1), ATOMIC]];
    let dropped: [&[Extension]; 2] = [&[HopByHop, PART], &[PART, Destination(0)]];
    let mut rows = Vec::new();
    for transport in [Transport::Ack, Transport::Udp] {
        for extensions in kept {
            rows.push(way.translates(&format!("behind {extensions:?}"), &with(transport, extensions)));
        }
        for extensions in dropped {
            let packet = with(transport, extensions);
            let what = format!("behind {extensions:?}");
            rows.push(way.drops(&what, &packet, Reason::Untranslatable, &Datagram::packet));
        }
    }
    rows
}
