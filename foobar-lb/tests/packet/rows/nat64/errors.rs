//! ICMP errors about flows whose backend is of the other IP than the VIP: each of them that has a like, with what it
//! quotes, and some that have none (RFC 7915, 4.2 and 5.2).

use std::net::IpAddr;

use etherparse::IpHeaders;
use foobar_lb_ebpf::reason::Reason;

use super::{ID, SECOND, Way, pair};
use crate::packet::{
    Row,
    frame::{
        Datagram, ETHERNET, Fragment, Numbered, Transport, as_part, headers, ip_header, message,
        set_traffic_class,
    },
    world::{CLIENT, FAR, Family, Host, ROUTER, WEB1},
};

/// Bytes behind the IP header that every router quotes (RFC 792).
const LEAST: usize = 8;

/// Errors of IPv4, and what they are in IPv6.
const TO_V6: [(Numbered, Numbered); 25] = [
    ((3, 0, NONE), (1, 0, NONE)),
    ((3, 1, NONE), (1, 0, NONE)),
    ((3, 2, NONE), (4, 1, [0, 0, 0, 6])),
    ((3, 3, NONE), (1, 4, NONE)),
    ((3, 4, mtu(1400)), (2, 0, mtu(1420))),
    ((3, 4, mtu(576)), (2, 0, mtu(1280))),
    ((3, 4, mtu(0)), (2, 0, mtu(1280))),
    ((3, 5, NONE), (1, 0, NONE)),
    ((3, 6, NONE), (1, 0, NONE)),
    ((3, 7, NONE), (1, 0, NONE)),
    ((3, 8, NONE), (1, 0, NONE)),
    ((3, 9, NONE), (1, 1, NONE)),
    ((3, 10, NONE), (1, 1, NONE)),
    ((3, 11, NONE), (1, 0, NONE)),
    ((3, 12, NONE), (1, 0, NONE)),
    ((3, 13, NONE), (1, 1, NONE)),
    ((3, 15, NONE), (1, 1, NONE)),
    ((11, 0, NONE), (3, 0, NONE)),
    ((11, 1, NONE), (3, 1, NONE)),
    ((12, 0, [1, 0, 0, 0]), (4, 0, [0, 0, 0, 1])),
    ((12, 0, [2, 0, 0, 0]), (4, 0, [0, 0, 0, 4])),
    ((12, 0, [8, 0, 0, 0]), (4, 0, [0, 0, 0, 7])),
    ((12, 2, [9, 0, 0, 0]), (4, 0, [0, 0, 0, 6])),
    ((12, 0, [12, 0, 0, 0]), (4, 0, [0, 0, 0, 8])),
    ((12, 0, [19, 0, 0, 0]), (4, 0, [0, 0, 0, 24])),
];

/// Errors of IPv6, and what they are in IPv4.
const TO_V4: [(Numbered, Numbered); 15] = [
    ((1, 0, NONE), (3, 1, NONE)),
    ((1, 1, NONE), (3, 10, NONE)),
    ((1, 2, NONE), (3, 1, NONE)),
    ((1, 3, NONE), (3, 1, NONE)),
    ((1, 4, NONE), (3, 3, NONE)),
    ((2, 0, mtu(1420)), (3, 4, mtu(1400))),
    ((2, 0, [0, 1, 0, 20]), (3, 4, [0, 0, 0xff, 0xff])),
    ((3, 0, NONE), (11, 0, NONE)),
    ((3, 1, NONE), (11, 1, NONE)),
    ((4, 0, [0, 0, 0, 0]), (12, 0, [0, 0, 0, 0])),
    ((4, 0, [0, 0, 0, 5]), (12, 0, [2, 0, 0, 0])),
    ((4, 0, [0, 0, 0, 6]), (12, 0, [9, 0, 0, 0])),
    ((4, 0, [0, 0, 0, 8]), (12, 0, [12, 0, 0, 0])),
    ((4, 0, [0, 0, 0, 39]), (12, 0, [16, 0, 0, 0])),
    ((4, 1, [0, 0, 0, 40]), (3, 2, NONE)),
];

const ONLY_V4: [Numbered; 4] = [(3, 14, NONE), (3, 16, NONE), (12, 1, NONE), (12, 0, [5, 0, 0, 0])];
const ONLY_V6: [Numbered; 4] = [(1, 6, NONE), (4, 2, NONE), (4, 0, [0, 0, 0, 2]), (127, 0, NONE)];

const NONE: [u8; 4] = [0; 4];

const fn mtu(bytes: u16) -> [u8; 4] {
    let [high, low] = bytes.to_be_bytes();
    [0, 0, high, low]
}

pub fn rows(way: Way) -> Vec<Row> {
    let (known, unknown): (&[_], _) = match way.arrives() {
        Family::V4 => (&TO_V6, ONLY_V4),
        Family::V6 => (&TO_V4, ONLY_V6),
    };
    let mut rows = Vec::new();
    for transport in [Transport::Ack, Transport::Udp] {
        for (said, translated) in known {
            rows.push(Error::new(way, transport, *said).is(*translated));
        }
        let (said, translated) = known[3];
        for quote in [Quote::Least, Quote::Fragment] {
            rows.push(Error { quote, ..Error::new(way, transport, said) }.is(translated));
        }
        let router = match way {
            Way::To(_) => FAR,
            Way::From(_) => ROUTER,
        };
        rows.push(Error { speaker: router, ..Error::new(way, transport, said) }.is(translated));
        rows.push(Error { traffic_class: 0xc0, ..Error::new(way, transport, said) }.is(translated));
        rows.extend(unknown.map(|said| Error::new(way, transport, said).is_dropped()));
        rows.push(Error { in_part: true, ..Error::new(way, transport, said) }.is_dropped());
    }
    rows
}

/// How much is quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quote {
    Whole,
    Least,
    /// The first fragment of a datagram.
    Fragment,
}

/// An error that arrives about what went the other way.
#[derive(Clone, Copy, Debug)]
struct Error {
    way: Way,
    transport: Transport,
    said: Numbered,
    speaker: Host,
    quote: Quote,
    traffic_class: u8,
    in_part: bool,
}

impl Error {
    fn new(way: Way, transport: Transport, said: Numbered) -> Self {
        let speaker = match way {
            Way::To(_) => CLIENT,
            Way::From(_) => WEB1,
        };
        Self { way, transport, said, speaker, quote: Quote::Whole, traffic_class: 0, in_part: false }
    }

    /// It goes on and says this.
    fn is(&self, translated: Numbered) -> Row {
        let [packet, out] =
            [self.way.packet(self.transport), self.way.between(&self.way.packet(self.transport))];
        let frame = packet.carrying(self.packet(&packet, self.said, self.speaker.ip(packet.family()), None));
        // What is fragmented on its way is told apart by the checksum that it came with.
        let check = ETHERNET + ip_header(packet.family()) + 2;
        let id = u16::from_be_bytes([frame[check], frame[check + 1]]);
        let out = out.carrying(self.packet(&out, translated, out.from.ip(), Some(id)));
        let row = self.way.carries(&format!("{self:?}"), &packet, frame, out);
        Row { held: pair(self.way.service(), self.transport, 0, SECOND).to_vec(), ..row }
    }

    /// It cannot be said in the other IP.
    fn is_dropped(&self) -> Row {
        let packet = self.way.packet(self.transport);
        let part = |datagram: &Datagram| {
            self.packet(
                &Datagram { to: packet.to, ..datagram.clone() },
                self.said,
                self.speaker.ip(packet.family()),
                None,
            )
        };
        let row = self.way.drops(&format!("{self:?}"), &packet, Reason::Untranslatable, &part);
        Row { held: pair(self.way.service(), self.transport, 0, SECOND).to_vec(), ..row }
    }

    /// An IP packet with what is said of a packet that went against the datagram.
    fn packet(&self, datagram: &Datagram, said: Numbered, from: IpAddr, id: Option<u16>) -> Vec<u8> {
        let mut header = headers(from, datagram.to.ip(), datagram.hops);
        set_traffic_class(&mut header, self.traffic_class);
        if let (IpHeaders::Ipv4(header, _), Some(id)) = (&mut header, id) {
            (header.identification, header.dont_fragment) = (id, false);
        }
        let packet = message(said, header, &self.quoted(datagram));
        match self.in_part {
            true => as_part(&packet, Fragment { offset: 0, more: true, id: ID }),
            false => packet,
        }
    }

    fn quoted(&self, datagram: &Datagram) -> Vec<u8> {
        let Datagram { from, to, .. } = *datagram;
        let quoted = Datagram { from: to, to: from, hops: 60, may_fragment: true, ..datagram.clone() };
        let mut packet = quoted.packet();
        match self.quote {
            Quote::Whole => {}
            Quote::Least => packet.truncate(ip_header(quoted.family()) + LEAST),
            Quote::Fragment => return Datagram { id: ID, payload: vec![1; 100], ..quoted }.part(0..64),
        }
        packet
    }
}
