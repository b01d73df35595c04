//! What is particular to requests in mode `nat`: the destination is rewritten, and the kernel may help.

use foobar_lb_ebpf::{
    headers::Side,
    reason::{Reason, Verdict},
};

use super::{called, each};
use crate::packet::{
    Row,
    frame::{Datagram, Transport, arriving},
    world::{
        self, BACKEND_SIDE, CLIENT_SIDE, COLLEAGUE, FAR, Family, MTU, ROUTER, Story, UNATTACHED, WEB1, by, id,
    },
};

pub fn rows() -> Vec<Row> {
    let mut rows = each(one_arm);
    rows.extend(each(by_the_kernel));
    rows.extend(each(from_backend_subnet));
    rows.extend(Family::BOTH.map(never_without_checksum));
    rows.push(without_checksum());
    rows.push(to_be_fragmented());
    rows
}

/// The first backend gets the packet in the usual network.
fn reaches(name: String, datagram: Datagram) -> Row {
    let out = datagram.clone().reaching(WEB1).frame();
    reaches_as(
        name,
        Story::settled(),
        &datagram,
        datagram.frame(),
        out,
        Verdict::Redirect(BACKEND_SIDE.index),
    )
}

fn reaches_as(
    name: String,
    story: Story,
    datagram: &Datagram,
    frame: Vec<u8>,
    out: Vec<u8>,
    verdict: Verdict,
) -> Row {
    let backend = id(WEB1, datagram.family(), datagram.transport.protocol());
    let ingress =
        if datagram.link.to == CLIENT_SIDE.balancer.mac { CLIENT_SIDE.index } else { BACKEND_SIDE.index };
    Row::translates(name, story.image(), ingress, frame, out, verdict, (backend, Side::Destination))
}

fn one_arm(family: Family, transport: Transport) -> Row {
    let from = world::client(FAR, family);
    let link = arriving(ROUTER, BACKEND_SIDE);
    let datagram = Datagram { link, from, ..Datagram::request(family, transport) };
    let (name, out) = (called("a request, one-arm", &datagram), datagram.clone().reaching(WEB1).frame());
    reaches_as(name, Story::settled(), &datagram, datagram.frame(), out, Verdict::Transmit)
}

/// Neither the TTL nor the MACs change: that is the kernel's part.
fn by_the_kernel(family: Family, transport: Transport) -> Row {
    let datagram = Datagram::request(family, transport);
    let story = Story::settled().seen(|view| {
        view.next_hops.insert(WEB1.ip(family), by(WEB1, UNATTACHED, family));
    });
    let name = called("a request by an interface without the program", &datagram);
    let out = Datagram { to: world::server(WEB1, family), ..datagram.clone() }.frame();
    reaches_as(name, story, &datagram, datagram.frame(), out, Verdict::Pass)
}

fn from_backend_subnet(family: Family, transport: Transport) -> Row {
    let from = world::client(COLLEAGUE, family);
    let link = arriving(COLLEAGUE, BACKEND_SIDE);
    let datagram = Datagram { link, from, ..Datagram::request(family, transport) };
    let name = called("a request from the backends' subnet", &datagram);
    let out = datagram.clone().reaching(WEB1).frame();
    reaches_as(name, Story::settled(), &datagram, datagram.frame(), out, Verdict::Transmit)
        .remarking(Reason::ClientOnBackendSubnet)
}

fn without_checksum() -> Row {
    let datagram = Datagram::request(Family::V4, Transport::BareUdp);
    reaches("a request without a UDP checksum".into(), datagram)
}

/// A checksum that comes out as 0 is sent as 0xffff, because 0 says that there is none.
fn never_without_checksum(family: Family) -> Row {
    let request = Datagram::request(family, Transport::Udp);
    let with = |word: u16| Datagram { payload: word.to_be_bytes().to_vec(), ..request.clone() };
    let comes_out_as_zero = |datagram: &Datagram| {
        let packet = datagram.clone().reaching(WEB1).packet();
        packet[packet.len() - 4..packet.len() - 2] == [0xff, 0xff]
    };
    let datagram = (0..=u16::MAX).map(with).find(comes_out_as_zero).expect("one of all checksums is 0");
    reaches(called("a request whose checksum comes out as 0", &datagram), datagram)
}

/// Too large, but the kernel may fragment it.
fn to_be_fragmented() -> Row {
    let request = Datagram { may_fragment: true, ..Datagram::request(Family::V4, Transport::Udp) };
    let datagram = request.sized(MTU as usize + 1);
    let out = Datagram { to: world::server(WEB1, Family::V4), ..datagram.clone() }.frame();
    let name = "a request that is to be fragmented".into();
    reaches_as(name, Story::settled(), &datagram, datagram.frame(), out, Verdict::Pass)
}
