//! Frames that are right in themselves and put together by chance: fragments, extension headers, options, errors,
//! pings, of any length, with any number of hops left.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::{prelude::*, sample::select};

use crate::packet::{
    Arrival,
    frame::{Complaint, Datagram, Extension, Fragment, IcmpError, Ping, Transport},
    world::{BACKEND_SIDE, CLIENT, CLIENT_SIDE, COLLEAGUE, FAR, Family, Host, UNRESOLVED, VIP, WEB1, WEB2},
};

const TRANSPORTS: [Transport; 8] = [
    Transport::Syn,
    Transport::SynAck,
    Transport::Ack,
    Transport::BareAck,
    Transport::Fin,
    Transport::Rst,
    Transport::Udp,
    Transport::BareUdp,
];
const COMPLAINTS: [Complaint; 3] = [Complaint::PortUnreachable, Complaint::TooBig(1400), Complaint::HopLimit];
/// As long as headers of IPv4 may be.
const OPTIONS: [&[u8]; 3] = [&[], &[1; 4], &[1; 40]];
/// Bytes of what TCP options are made of.
const OPTION_BYTES: [u8; 9] = [0, 1, 2, 3, 4, 5, 8, 10, 255];

pub fn composed() -> impl Strategy<Value = Arrival> {
    prop_oneof![
        4 => datagrams().prop_map(|datagram| arrival(&datagram, datagram.frame())),
        2 => (datagrams(), any::<[u16; 2]>()).prop_map(in_parts),
        1 => (datagrams(), select(COMPLAINTS.to_vec()), 28usize..256).prop_map(about),
        1 => pings(),
    ]
}

fn arrival(datagram: &Datagram, frame: Vec<u8>) -> Arrival {
    let is_request = datagram.link.to == CLIENT_SIDE.balancer.mac;
    Arrival { ingress: if is_request { CLIENT_SIDE } else { BACKEND_SIDE }.index, frame }
}

fn datagrams() -> impl Strategy<Value = Datagram> {
    let begin = (select(Family::BOTH.to_vec()), select(TRANSPORTS.to_vec()), any::<bool>());
    let ends = (clients(), select(vec![80, 81, 8080]));
    let ip = (hops(), any::<u8>(), 0u16..3, any::<bool>(), select(OPTIONS.to_vec()));
    let extensions = prop::collection::vec(extension(), 0..6);
    let tcp_options = prop::collection::vec(select(OPTION_BYTES.to_vec()), 0..40);
    let payload = prop_oneof![0usize..64, 0usize..1600, 1400usize..1480];
    (begin, ends, ip, prop::option::weighted(0.3, extensions), tcp_options, payload).prop_map(
        |((family, transport, is_request), ends, ip, extensions, tcp_options, payload)| {
            let usual = if is_request { Datagram::request } else { Datagram::reply }(family, transport);
            let (hops, traffic_class, id, may_fragment, options) = ip;
            let extensions = extensions.filter(|_| family == Family::V6).unwrap_or_default();
            let datagram = Datagram { hops, traffic_class, id, may_fragment, options, ..usual };
            let datagram = Datagram { extensions, tcp_options, payload: vec![0x5a; payload], ..datagram };
            between(datagram, is_request, ends)
        },
    )
}

/// Gives a datagram another client, and the service another port.
fn between(mut datagram: Datagram, is_request: bool, (client, port): (Client, u16)) -> Datagram {
    let ip = client.ip(datagram.family());
    if is_request {
        datagram.from.set_ip(ip);
        datagram.to.set_port(port);
    } else {
        datagram.to.set_ip(ip);
        datagram.from.set_port(port);
    }
    datagram
}

#[derive(Clone, Copy, Debug)]
enum Client {
    Host(Host),
    Multicast,
}

impl Client {
    fn ip(self, family: Family) -> IpAddr {
        match (self, family) {
            (Self::Host(host), _) => host.ip(family),
            (Self::Multicast, Family::V4) => Ipv4Addr::new(224, 0, 0, 1).into(),
            (Self::Multicast, Family::V6) => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        }
    }
}

fn clients() -> impl Strategy<Value = Client> {
    let hosts = [CLIENT, CLIENT, FAR, COLLEAGUE, UNRESOLVED, WEB1, WEB2];
    prop_oneof![9 => select(hosts.to_vec()).prop_map(Client::Host), 1 => Just(Client::Multicast)]
}

fn hops() -> impl Strategy<Value = u8> {
    prop_oneof![1 => 0u8..3, 3 => Just(64), 1 => any::<u8>()]
}

fn extension() -> impl Strategy<Value = Extension> {
    let fragment =
        (0u16..3, any::<bool>(), 0u16..3).prop_map(|(offset, more, id)| Fragment { offset, more, id });
    prop_oneof![
        Just(Extension::HopByHop),
        (0usize..32).prop_map(Extension::Destination),
        Just(Extension::Routing),
        fragment.prop_map(Extension::Fragment),
        Just(Extension::Authentication),
    ]
}

/// A part of the datagram, from one end to the other; it begins and ends at multiples of eight bytes.
fn in_parts((datagram, ends): (Datagram, [u16; 2])) -> Arrival {
    let length = datagram.segment().len();
    let [start, end] = ends.map(|end| usize::from(end) % (length + 8) / 8 * 8);
    let end = if end <= start || end > length { length } else { end };
    let start = if start >= end { 0 } else { start };
    arrival(&datagram, datagram.carrying(datagram.part(start..end)))
}

/// An error to the sender of what the datagram answers.
fn about((datagram, complaint, quoted): (Datagram, Complaint, usize)) -> Arrival {
    let Datagram { link, from, to, hops, .. } = datagram.clone();
    let mut seen = Datagram { from: to, to: from, hops: 60, ..datagram.clone() }.packet();
    seen.truncate(quoted);
    let error = IcmpError { link, from: from.ip(), to: to.ip(), hops, complaint, quoted: seen };
    arrival(&datagram, error.frame())
}

fn pings() -> impl Strategy<Value = Arrival> {
    (datagrams(), any::<bool>()).prop_map(|(datagram, is_reply)| {
        let Datagram { link, from, hops, payload, .. } = datagram.clone();
        let to = VIP.ip(datagram.family());
        let ping = Ping { link, from: from.ip(), to, hops, is_reply, data: payload };
        arrival(&datagram, ping.frame())
    })
}
