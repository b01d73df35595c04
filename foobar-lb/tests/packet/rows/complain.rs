//! What the balancer tells senders whose packets it does not forward, and whom it tells nothing.

use std::net::IpAddr;

use foobar_lb_ebpf::{layout::Interface, reason::Reason};

use super::{called, each};
use crate::packet::{
    Row,
    frame::{Complaint, Datagram, Extension, IcmpError, Transport},
    way::{WAYS, Way},
    world::{BACKEND_SIDE, CLIENT_SIDE, Family, MTU, Port, Story, VIP},
};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for hops in [0, 1] {
        rows.extend(each(|family, transport| request_at_its_end(hops, family, transport)));
        rows.extend(each(|family, transport| reply_at_its_end(hops, family, transport)));
    }
    for way in WAYS {
        rows.extend(each(|family, transport| at_its_end(way, family, transport)));
        rows.extend(each(|family, transport| too_big(way, family, transport)));
        rows.extend(Family::BOTH.map(|family| too_big_error(way, family)));
    }
    rows.extend(WAYS.into_iter().filter(|way| *way != Way::Nat).map(too_big_to_be_fragmented));
    rows.push(much_too_big());
    rows.extend([0, 1, 2, 3, 60, 99, 100, 101, 9000].into_iter().flat_map(quoted));
    rows.extend(Family::BOTH.map(behind_others));
    rows.extend(Family::BOTH.map(as_vip));
    rows.extend(Family::BOTH.map(as_nobody));
    rows.extend(nobody().map(|source| to_nobody(source.parse().expect("an address"))));
    for family in Family::BOTH {
        rows.extend([64, 1].map(|hops| by_broadcast(hops, family)));
    }
    rows
}

/// A packet arrives and the balancer complains.
fn told(name: String, story: Story, datagram: &Datagram, by: Port, complaint: Complaint) -> Row {
    let from = by.balancer.ip(datagram.family());
    let error = IcmpError::about(datagram, &datagram.packet(), from, complaint);
    told_as(name, story, datagram, by, &error)
}

fn told_as(name: String, story: Story, datagram: &Datagram, by: Port, error: &IcmpError) -> Row {
    let why = match error.complaint {
        Complaint::PortUnreachable => Reason::Rejected,
        Complaint::TooBig(_) => Reason::TooBig,
        Complaint::HopLimit => Reason::HopLimit,
    };
    Row::answers(name, story.image(), by.index, datagram.frame(), error.frame(), why)
}

fn request_at_its_end(hops: u8, family: Family, transport: Transport) -> Row {
    let datagram = Datagram { hops, ..Datagram::request(family, transport) };
    let name = called(&format!("a request with {hops} hops left"), &datagram);
    told(name, Story::settled(), &datagram, CLIENT_SIDE, Complaint::HopLimit)
}

fn reply_at_its_end(hops: u8, family: Family, transport: Transport) -> Row {
    let datagram = Datagram { hops, ..Datagram::reply(family, transport) };
    let name = called(&format!("a reply with {hops} hops left"), &datagram);
    told(name, Story::settled(), &datagram, BACKEND_SIDE, Complaint::HopLimit)
}

fn at_its_end(way: Way, family: Family, transport: Transport) -> Row {
    let datagram = Datagram { hops: 1, ..Datagram::request(family, transport) };
    let name = way.called("a request with one hop left", &datagram);
    told(name, way.story(), &datagram, CLIENT_SIDE, Complaint::HopLimit)
}

/// By one byte. What fits is in `forward` and `tunnel`.
fn too_big(way: Way, family: Family, transport: Transport) -> Row {
    let mtu = MTU as usize - way.overhead();
    let datagram = Datagram::request(family, transport).sized(mtu + 1);
    let name = way.called("a request that is too big", &datagram);
    told(name, way.story(), &datagram, CLIENT_SIDE, Complaint::TooBig(mtu as u16))
}

/// It may be fragmented, but who should do it: the kernel cannot send it on, nor may the outer packet be fragmented.
fn too_big_to_be_fragmented(way: Way) -> Row {
    let mtu = MTU as usize - way.overhead();
    let datagram = Datagram { may_fragment: true, ..Datagram::request(Family::V4, Transport::Udp) };
    let datagram = datagram.sized(mtu + 1);
    let name = way.called("a request that is to be fragmented", &datagram);
    told(name, way.story(), &datagram, CLIENT_SIDE, Complaint::TooBig(mtu as u16))
}

fn much_too_big() -> Row {
    let datagram = Datagram::request(Family::V4, Transport::Udp).sized(3000);
    let story = Story::settled().with_mtu(1280);
    let name = called("a request that is much too big", &datagram);
    told(name, story, &datagram, CLIENT_SIDE, Complaint::TooBig(1280))
}

/// Nobody complains about a complaint (RFC 1122, 3.2.2; RFC 4443, 2.4).
fn too_big_error(way: Way, family: Family) -> Row {
    let request = Datagram::request(family, Transport::Udp);
    let seen = Datagram { from: request.to, to: request.from, ..request.clone() }.sized(MTU as usize);
    let from = request.from.ip();
    let complaint = Complaint::PortUnreachable;
    let quoted = seen.packet();
    let error = IcmpError { link: request.link, from, to: VIP.ip(family), hops: 64, complaint, quoted };
    let name = way.called("an ICMP error that is too big", &request);
    Row::drops(name, way.story().image(), CLIENT_SIDE.index, error.frame(), Reason::TooBig)
}

/// Of long packets only the beginning is quoted, of others whole words.
fn quoted(length: usize) -> Vec<Row> {
    each(|family, transport| {
        let payload = vec![0x5a; length];
        let datagram = Datagram { hops: 1, payload, ..Datagram::request(family, transport) };
        let name = called(&format!("a request of {length} bytes with one hop left"), &datagram);
        told(name, Story::settled(), &datagram, CLIENT_SIDE, Complaint::HopLimit)
    })
}

fn behind_others(family: Family) -> Row {
    let datagram = Datagram { hops: 1, ..Datagram::request(family, Transport::Udp) };
    let datagram = match family {
        Family::V4 => Datagram { options: &[1; 12], ..datagram },
        Family::V6 => {
            Datagram { extensions: vec![Extension::HopByHop, Extension::Destination(2)], ..datagram }
        }
    };
    let name = called("a request behind other headers with one hop left", &datagram);
    told(name, Story::settled(), &datagram, CLIENT_SIDE, Complaint::HopLimit)
}

/// Nobody but the balancer can say it, and it has no address there.
fn as_nobody(family: Family) -> Row {
    let mut image = Story::settled().image();
    let index = BACKEND_SIDE.index;
    let mac = image.interfaces[&index].mac;
    image.interfaces.insert(index, Interface::new(mac));
    let datagram = Datagram { hops: 1, ..Datagram::reply(family, Transport::Ack) };
    let name = called("a reply with one hop left, by an interface without addresses", &datagram);
    Row::drops(name, image, index, datagram.frame(), Reason::HopLimit).remarking(Reason::NoSpeaker)
}

/// An interface without addresses: the balancer has no other name that the client knows.
fn as_vip(family: Family) -> Row {
    let story = Story::settled().seen(|view| {
        view.links.get_mut(&CLIENT_SIDE.index).expect("it is there").addresses.clear();
    });
    let datagram = Datagram { hops: 1, ..Datagram::request(family, Transport::Udp) };
    let packet = datagram.packet();
    let error = IcmpError::about(&datagram, &packet, VIP.ip(family), Complaint::HopLimit);
    let name = called("a request with one hop left, on an interface without addresses", &datagram);
    told_as(name, story, &datagram, CLIENT_SIDE, &error)
}

/// Sources that are not one host (RFC 1812, 4.3.2.7; RFC 4443, 2.4).
fn nobody() -> [&'static str; 8] {
    ["0.0.0.0", "127.0.0.1", "224.0.0.1", "239.1.2.3", "255.255.255.255", "::", "ff02::1", "ff0e::1234"]
}

fn to_nobody(source: IpAddr) -> Row {
    let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
    let mut datagram = Datagram { hops: 1, ..Datagram::request(family, Transport::Udp) };
    datagram.from.set_ip(source);
    let name = format!("a request from {source} with one hop left");
    Row::drops(name, Story::settled().image(), CLIENT_SIDE.index, datagram.frame(), Reason::HopLimit)
}

/// What all on the wire have got is neither answered nor forwarded (RFC 1812, 4.3.2.7 and 5.3.4).
fn by_broadcast(hops: u8, family: Family) -> Row {
    let mut datagram = Datagram { hops, ..Datagram::request(family, Transport::Udp) };
    datagram.link.to = [0xff; 6];
    let name = called(&format!("a request by broadcast with {hops} hops left"), &datagram);
    Row::passes(name, Story::settled().image(), CLIENT_SIDE.index, datagram.frame(), Reason::NotForService)
}
