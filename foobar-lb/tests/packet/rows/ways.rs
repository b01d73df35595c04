//! Clients' packets that reach a backend, whatever the mode.

use foobar_lb_ebpf::layout::{entry_state, name};

use super::each;
use crate::packet::{
    Memory, Row,
    frame::{Complaint, Datagram, IcmpError, Transport},
    way::{WAYS, Way},
    world::{CLIENT, CLIENT_SIDE, Family, MTU, Story, WEB1, WEB2, flow, id},
};

/// Of frames that are longer than memory pages.
const JUMBO: u32 = 9000;

pub fn rows() -> Vec<Row> {
    WAYS.into_iter().flat_map(of_way).collect()
}

fn of_way(way: Way) -> Vec<Row> {
    let mut rows = each(|family, transport| plain(way, family, transport));
    rows.extend(each(|family, transport| largest(way, family, transport)));
    rows.extend(each(|family, transport| with_padding(way, family, transport)));
    for complaint in [Complaint::PortUnreachable, Complaint::TooBig(1400), Complaint::HopLimit] {
        rows.extend(each(|family, transport| about_reply(way, complaint, family, transport)));
    }
    for family in Family::BOTH {
        rows.extend([start_while_moving(way, family), fast_open(way, family), jumbo(way, family)]);
        rows.extend((0..4).map(|ecn| traffic_class(way, family, ecn)));
    }
    rows.push(with_options(way));
    rows
}

fn plain(way: Way, family: Family, transport: Transport) -> Row {
    way.carries("a request", &Datagram::request(family, transport), &Datagram::packet)
}

fn largest(way: Way, family: Family, transport: Transport) -> Row {
    let request = Datagram::request(family, transport).sized(MTU as usize - way.overhead());
    way.carries("a request as large as may be", &request, &Datagram::packet)
}

/// Padding is not part of the packet, and stays behind it.
fn with_padding(way: Way, family: Family, transport: Transport) -> Row {
    let request = Datagram { payload: vec![0x5a; 5], ..Datagram::request(family, transport) };
    let padded = |frame: Vec<u8>| [frame, vec![0; 7]].concat();
    let out = way.carry(&request, WEB1, &Datagram::packet);
    way.translates("a request with padding", &request, padded(request.frame()), padded(out))
}

/// An error about what the client was sent reaches the backend that has sent it: as it came where the backend has the
/// VIP itself.
fn about_reply(way: Way, complaint: Complaint, family: Family, transport: Transport) -> Row {
    let request = Datagram::request(family, transport);
    let error = |sent: &Datagram| {
        let seen = Datagram { from: sent.to, to: sent.from, hops: 60, ..sent.clone() };
        let (link, from, to) = (sent.link, CLIENT.ip(family), sent.to.ip());
        IcmpError { link, from, to, hops: sent.hops, complaint, quoted: seen.packet() }.packet()
    };
    way.carries(&format!("{complaint:?} about a reply"), &request, &error)
}

/// What begins now belongs to the new owner, and is remembered.
fn start_while_moving(way: Way, family: Family) -> Row {
    let request = Datagram::request(family, Transport::Syn);
    let protocol = request.transport.protocol();
    let backend = id(WEB2, family, protocol);
    let out = way.carry(&request, WEB2, &Datagram::packet);
    let image = way.configure(Story::moving()).image();
    let flow = flow(request.from, request.to, protocol);
    let state = entry_state::OPENING;
    let row = way.translates("a SYN while its slot moves", &request, request.frame(), out);
    Row { image, ingress: CLIENT_SIDE.index, ..row }.by_backend(backend).remembering(Memory {
        map: name::HALF_OPEN,
        flow,
        backend,
        state,
        age: Default::default(),
    })
}

/// A SYN with a cookie and data (RFC 7413).
fn fast_open(way: Way, family: Family) -> Row {
    let cookie = [34, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    let tcp_options = [&[2, 4, 5, 180][..], &cookie, &[1, 1]].concat();
    let request = Datagram { tcp_options, ..Datagram::request(family, Transport::Syn) };
    way.carries("a SYN with data", &request, &Datagram::packet)
}

fn jumbo(way: Way, family: Family) -> Row {
    let request = Datagram::request(family, Transport::Udp).sized(JUMBO as usize - way.overhead());
    let row = way.carries("a jumbo frame", &request, &Datagram::packet);
    Row { image: way.story().with_mtu(JUMBO).image(), ..row }
}

/// Expedited, with each of the codes for congestion (RFC 3168, 5): they stay, and go outside too (RFC 6040, 4.1).
fn traffic_class(way: Way, family: Family, ecn: u8) -> Row {
    const EXPEDITED: u8 = 46;
    let traffic_class = EXPEDITED << 2 | ecn;
    let request = Datagram { traffic_class, ..Datagram::request(family, Transport::Ack) };
    way.carries(&format!("a request with ECN {ecn:02b}"), &request, &Datagram::packet)
}

fn with_options(way: Way) -> Row {
    // Record route, with room for three addresses.
    let options = &[7, 15, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let request = Datagram { options, ..Datagram::request(Family::V4, Transport::Ack) };
    way.carries("a request with IPv4 options", &request, &Datagram::packet)
}
