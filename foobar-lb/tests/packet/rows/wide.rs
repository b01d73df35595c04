//! Services of many ports and many addresses: which packets are theirs, and how those and their replies keep their ports.

use std::net::IpAddr;

use etherparse::ArpOperation;
use foobar_lb::model::{Destination, Ports, Unmatched};
use foobar_lb_ebpf::{
    headers::Side,
    layout::{entry_state, name},
    reason::{Reason, Verdict},
};
use ipnet::IpNet;

use super::{called, each};
use crate::packet::{
    Memory, Row,
    frame::{Complaint, Datagram, IcmpError, Link, Ping, Transport, arp, arriving, leaving},
    way::{Packet, WAYS, Way},
    world::{self, BACKEND_SIDE, CLIENT, CLIENT_SIDE, Family, Story, TRANSITION, VIP, WEB1, flow, id},
};

/// Neither end of it is the end of a prefix of ports.
const RANGE: Ports = Ports { first: 5001, last: 5101 };
/// Within the range.
const EXACT: u16 = 5050;
/// Fragments but the first begin here, and end here but for the last.
const HALF: usize = 1400;

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for way in WAYS {
        rows.extend(each(|family, transport| lowest(way, family, transport)));
        for (family, transport) in both() {
            rows.extend(of_range(way, family, transport));
            rows.extend(in_fragments(way, family, transport));
        }
        rows.extend(each(|family, transport| about_reply(way, family, transport)));
    }
    for way in WAYS.into_iter().filter(|way| *way != Way::Nat) {
        for (family, transport) in both() {
            rows.extend(of_prefix(way, family, transport));
        }
    }
    for (family, transport) in both() {
        rows.extend(of_replies(family, transport));
        rows.extend([about_request(family, transport), local_in_prefix(family, transport)]);
    }
    for family in Family::BOTH {
        rows.extend([reset_by_backend(family), refused(family), ping(family)]);
    }
    rows.push(announced());
    rows
}

fn both() -> impl Iterator<Item = (Family, Transport)> {
    let transports = [Transport::Ack, Transport::Udp];
    Family::BOTH.into_iter().flat_map(move |family| transports.map(|transport| (family, transport)))
}

/// All services have these ports of these VIPs; their backends get packets on the ports that they were sent to.
fn widened(way: Way, story: Story, vip: impl Fn(Family) -> IpNet, ports: Ports) -> Story {
    way.configure(story).configured(|service| {
        let family = if service.key.address.is_ipv6() { Family::V6 } else { Family::V4 };
        service.key.address = Destination { vip: vip(family), ports };
        service.backends.iter_mut().for_each(|backend| backend.address.set_port(0));
    })
}

fn on_vip(way: Way, ports: Ports) -> Story {
    widened(way, Story::settled(), |family| VIP.ip(family).into(), ports)
}

fn on_prefix(way: Way, ports: Ports) -> Story {
    widened(way, Story::settled(), prefix, ports)
}

/// Sixteen addresses, of which the VIP of other rows is the first.
pub fn prefix(family: Family) -> IpNet {
    let length = if family == Family::V4 { 28 } else { 124 };
    IpNet::new(VIP.ip(family), length).expect("a prefix of that family").trunc()
}

/// So many addresses behind the VIP, or before it.
fn near(family: Family, distance: i8) -> IpAddr {
    let distance = i128::from(distance);
    match VIP.ip(family) {
        IpAddr::V4(vip) => {
            IpAddr::V4((u32::from(vip) as i128 + distance).try_into().map(u32::into).expect("it fits"))
        }
        IpAddr::V6(vip) => IpAddr::V6((u128::from(vip).wrapping_add_signed(distance)).into()),
    }
}

fn request(family: Family, transport: Transport, to: IpAddr, port: u16) -> Datagram {
    Datagram { to: (to, port).into(), ..Datagram::request(family, transport) }
}

fn to_vip(family: Family, transport: Transport, port: u16) -> Datagram {
    request(family, transport, VIP.ip(family), port)
}

/// The first backend gets the packet of the request on the same port.
fn reaches(what: &str, way: Way, story: &Story, request: &Datagram, packet: &Packet<'_>) -> Row {
    let out = match way {
        Way::Nat => {
            let to = (WEB1.ip(request.family()), request.to.port()).into();
            let (link, hops) = (leaving(BACKEND_SIDE, WEB1), request.hops - 1);
            let sent = Datagram { link, to, hops, ..request.clone() };
            sent.carrying(packet(&sent))
        }
        _ => way.carry(request, WEB1, packet),
    };
    let what = format!("{what}: port {} of {}", request.to.port(), request.to.ip());
    let row = way.translates(&what, request, request.carrying(packet(request)), out);
    Row { image: story.image(), ..row }
}

fn dropped(what: &str, way: Way, story: &Story, request: &Datagram) -> Row {
    let what = format!("{what}: port {} of {}", request.to.port(), request.to.ip());
    let (name, image) = (way.called(&what, request), story.image());
    Row::drops(name, image, CLIENT_SIDE.index, request.frame(), Reason::NoService)
}

fn lowest(way: Way, family: Family, transport: Transport) -> Row {
    let request = to_vip(family, transport, RANGE.first);
    reaches("the first of a range", way, &on_vip(way, RANGE), &request, &Datagram::packet)
}

fn of_range(way: Way, family: Family, transport: Transport) -> Vec<Row> {
    let (range, any) = (on_vip(way, RANGE), on_vip(way, Ports::ANY));
    let to = |port| to_vip(family, transport, port);
    let within = |port, what| reaches(what, way, &range, &to(port), &Datagram::packet);
    let of_any = |port| reaches("any port", way, &any, &to(port), &Datagram::packet);
    let outside = |port| dropped("outside of a range", way, &range, &to(port));
    let exact = range.clone().joined(|service| {
        service.key.address.ports = Ports::one(EXACT);
        let own = if way == Way::Nat { world::server(WEB1, family).port() } else { EXACT };
        service.backends.iter_mut().for_each(|backend| backend.address.set_port(own));
    });
    let narrow =
        range.clone().joined(|service| service.key.address.ports = Ports { first: 5040, last: 5060 });
    let joined = id(WEB1, family, transport.protocol()) + Story::SERVED;
    let narrower =
        |port| reaches("within a range within a range", way, &narrow, &to(port), &Datagram::packet);
    vec![
        within(RANGE.last, "the last of a range"),
        within(5064, "amid a range"),
        outside(RANGE.first - 1),
        outside(RANGE.last + 1),
        of_any(1),
        of_any(u16::MAX),
        to_exact(way, &exact, &to(EXACT)).by_backend(joined),
        narrower(5040).by_backend(joined),
        narrower(5060).by_backend(joined),
        narrower(5061),
    ]
}

/// Where there is a service for this port alone, it is that one's.
fn to_exact(way: Way, story: &Story, request: &Datagram) -> Row {
    let row = way.carries("a port of its own within a range", request, &Datagram::packet);
    Row { image: story.image(), ..row }
}

fn of_prefix(way: Way, family: Family, transport: Transport) -> Vec<Row> {
    let (one, any) = (on_prefix(way, Ports::one(80)), on_prefix(way, Ports::ANY));
    let to = |distance, port| request(family, transport, near(family, distance), port);
    let within = |distance, port, story: &Story| {
        reaches("a prefix", way, story, &to(distance, port), &Datagram::packet)
    };
    let outside = |distance| {
        let request = to(distance, 80);
        let name = way.called(&format!("outside of a prefix: {}", request.to.ip()), &request);
        Row::passes(name, one.image(), CLIENT_SIDE.index, request.frame(), Reason::NotForService)
    };
    let nearer = any.clone().joined(|service| {
        let host = near(if service.key.address.is_ipv6() { Family::V6 } else { Family::V4 }, 5);
        service.key.address = Destination { vip: host.into(), ports: RANGE };
    });
    let of_nearer =
        |port| reaches("a VIP with a range in a prefix", way, &nearer, &to(5, port), &Datagram::packet);
    let joined = id(WEB1, family, transport.protocol()) + Story::SERVED;
    vec![
        within(0, 80, &one),
        within(15, 80, &one),
        within(7, 4321, &any),
        outside(-1),
        outside(16),
        dropped("no port of a prefix", way, &one, &to(3, 81)),
        of_nearer(RANGE.first).by_backend(joined),
        of_nearer(RANGE.last + 1),
    ]
}

/// Fragments go where the first goes.
fn in_fragments(way: Way, family: Family, transport: Transport) -> [Row; 2] {
    let request = Datagram {
        id: 7,
        may_fragment: true,
        payload: vec![0x5a; 2000],
        ..to_vip(family, transport, RANGE.last)
    };
    let story = on_vip(way, RANGE);
    let first = |datagram: &Datagram| datagram.part(0..HALF);
    let last = |datagram: &Datagram| datagram.part(HALF..datagram.segment().len());
    let before = request.carrying(first(&request));
    [
        reaches("the first fragment", way, &story, &request, &first),
        reaches("the last fragment", way, &story, &request, &last).after(before),
    ]
}

/// An error about what the client was sent.
fn about_reply(way: Way, family: Family, transport: Transport) -> Row {
    let request = to_vip(family, transport, RANGE.last);
    let error = |sent: &Datagram| {
        let seen = Datagram { from: sent.to, to: sent.from, hops: 60, ..sent.clone() };
        let (link, from, to) = (sent.link, CLIENT.ip(family), sent.to.ip());
        let complaint = Complaint::TooBig(1400);
        IcmpError { link, from, to, hops: sent.hops, complaint, quoted: seen.packet() }.packet()
    };
    reaches("an error about a reply", way, &on_vip(way, RANGE), &request, &error)
}

/// A backend's packet from a port, and the same as the client gets it.
fn reply(family: Family, transport: Transport, port: u16) -> (Datagram, Datagram) {
    let sent = Datagram { from: (WEB1.ip(family), port).into(), ..Datagram::reply(family, transport) };
    let link = leaving(CLIENT_SIDE, CLIENT);
    let from = (VIP.ip(family), port).into();
    (sent.clone(), Datagram { link, from, hops: sent.hops - 1, ..sent })
}

fn returns(what: &str, story: &Story, (sent, seen): &(Datagram, Datagram)) -> Row {
    let what = format!("{what}: port {}", sent.from.port());
    let (name, image) = (called(&what, sent), story.image());
    let traffic = (id(WEB1, sent.family(), sent.transport.protocol()), Side::Source);
    let verdict = Verdict::Redirect(CLIENT_SIDE.index);
    Row::translates(name, image, BACKEND_SIDE.index, sent.frame(), seen.frame(), verdict, traffic)
}

/// They come from the VIP, and keep their ports.
fn of_replies(family: Family, transport: Transport) -> Vec<Row> {
    let (range, any) = (on_vip(Way::Nat, RANGE), on_vip(Way::Nat, Ports::ANY));
    let other =
        range.clone().joined(|service| service.key.address.ports = Ports { first: 6000, last: 6000 + 99 });
    let from = |port| reply(family, transport, port);
    let joined = id(WEB1, family, transport.protocol()) + Story::SERVED;
    let (outside, _) = from(RANGE.last + 1);
    let name = called("a reply from a port outside of a range", &outside);
    vec![
        returns("a reply from the first port of a range", &range, &from(RANGE.first)),
        returns("a reply from the last port of a range", &range, &from(RANGE.last)),
        returns("a reply from any port", &any, &from(4321)),
        returns("a reply from another service's range", &other, &from(6050)).by_backend(joined),
        Row::passes(name, range.image(), BACKEND_SIDE.index, outside.frame(), Reason::NotForService),
    ]
}

/// An error about a request, from the backend itself, reaches the client.
fn about_request(family: Family, transport: Transport) -> Row {
    let request = Datagram { hops: 60, ..to_vip(family, transport, RANGE.first) };
    let received = Datagram { to: (WEB1.ip(family), RANGE.first).into(), ..request.clone() };
    let error = IcmpError {
        link: arriving(WEB1, BACKEND_SIDE),
        from: WEB1.ip(family),
        to: CLIENT.ip(family),
        hops: 64,
        complaint: Complaint::PortUnreachable,
        quoted: received.packet(),
    };
    let (link, from) = (leaving(CLIENT_SIDE, CLIENT), VIP.ip(family));
    let translated = IcmpError { link, from, hops: 63, quoted: request.packet(), ..error.clone() };
    let (name, image) =
        (called("an error about a request of a range", &request), on_vip(Way::Nat, RANGE).image());
    let traffic = (id(WEB1, family, transport.protocol()), Side::Source);
    let verdict = Verdict::Redirect(CLIENT_SIDE.index);
    Row::translates(name, image, BACKEND_SIDE.index, error.frame(), translated.frame(), verdict, traffic)
}

/// What is remembered of a flow is found by the port that the client knows.
fn reset_by_backend(family: Family) -> Row {
    let (sent, seen) = reply(family, Transport::Rst, RANGE.last);
    let story = widened(Way::Nat, Story::moving(), |family| VIP.ip(family).into(), RANGE);
    let traffic = (id(WEB1, family, sent.transport.protocol()), Side::Source);
    let (name, verdict) = (called("a backend's RST in a range", &sent), Verdict::Redirect(CLIENT_SIDE.index));
    let flow = flow(seen.to, seen.from, sent.transport.protocol());
    let memory = Memory { map: name::ESTABLISHED, flow, backend: traffic.0, state: 0, age: TRANSITION / 2 };
    Row::translates(name, story.image(), BACKEND_SIDE.index, sent.frame(), seen.frame(), verdict, traffic)
        .knowing(memory)
        .remembering(Memory { state: entry_state::RESET, ..memory })
}

/// An address of the balancer's own that is one of the VIPs is so for the services, and else the kernel's.
fn local_in_prefix(family: Family, transport: Transport) -> Row {
    let story = on_prefix(Way::Dsr, Ports::one(80)).seen(|view| {
        view.locals.extend(Family::BOTH.map(|family| near(family, 2)));
    });
    let request = request(family, transport, near(family, 2), 80);
    reaches("a local address in a prefix", Way::Dsr, &story, &request, &Datagram::packet)
}

fn refused(family: Family) -> Row {
    let story =
        on_prefix(Way::Dsr, Ports::one(80)).configured(|service| service.vip.unmatched = Unmatched::Reject);
    let request = request(family, Transport::Udp, near(family, 9), 81);
    let error = IcmpError::about(&request, &request.packet(), request.to.ip(), Complaint::PortUnreachable);
    let name = called("reject a request to an address of a prefix", &request);
    Row::answers(name, story.image(), CLIENT_SIDE.index, request.frame(), error.frame(), Reason::Rejected)
}

fn ping(family: Family) -> Row {
    let story = on_prefix(Way::Dsr, Ports::one(80)).configured(|service| service.vip.ping = true);
    let (link, from, to) = (arriving(CLIENT, CLIENT_SIDE), CLIENT.ip(family), near(family, 15));
    let ping = Ping { link, from, to, hops: 64, is_reply: false, data: vec![0x5a; 56] };
    let name = format!("a ping of an address of a prefix ({family:?})");
    Row::answers(name, story.image(), CLIENT_SIDE.index, ping.frame(), ping.answer().frame(), Reason::Echo)
}

fn announced() -> Row {
    let story = on_prefix(Way::Dsr, Ports::ANY).configured(|service| service.announce = true);
    let IpAddr::V4(target) = near(Family::V4, 6) else { unreachable!("asked for an IPv4 address") };
    let IpAddr::V4(client) = CLIENT.ip(Family::V4) else { unreachable!("asked for an IPv4 address") };
    let (asker, target) = ((CLIENT.mac, client.octets()), target.octets());
    let link = Link { from: CLIENT.mac, to: [0xff; 6] };
    let frame = arp(link, ArpOperation::REQUEST, asker, ([0; 6], target));
    let answer = (CLIENT_SIDE.balancer.mac, target);
    let out = arp(leaving(CLIENT_SIDE, CLIENT), ArpOperation::REPLY, answer, asker);
    let name = "ARP: a request for an address of an announced prefix";
    Row::answers(name, story.image(), CLIENT_SIDE.index, frame, out, Reason::Announced)
}
