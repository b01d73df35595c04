//! What is sent to a VIP but can reach no backend.

use etherparse::IpNumber;
use foobar_lb::model::{Down, Health, WhenEmpty};
use foobar_lb_ebpf::reason::Reason;

use super::{called, each};
use crate::packet::{
    Row,
    frame::{self, Datagram, Fragment, Transport, arriving},
    world::{CLIENT, CLIENT_SIDE, Family, MTU, Story, VIP, WEB1, WEB2, WEB3},
};

pub fn rows() -> Vec<Row> {
    let mut rows = each(no_hops_left(1));
    rows.extend(each(no_hops_left(0)));
    rows.extend(each(too_big));
    rows.extend(each(no_such_service));
    rows.extend(each(no_such_service_but_local));
    rows.extend(each(no_backend));
    for family in Family::BOTH {
        rows.extend([another_protocol(family), first_fragment(family), later_fragment(family)]);
        rows.extend([echo(family), later_fragment_to_local(family)]);
    }
    rows
}

fn drops(name: String, datagram: &Datagram, why: Reason) -> Row {
    Row::drops(name, Story::settled().image(), CLIENT_SIDE.index, datagram.frame(), why)
}

/// The VIP is an address of the balancer's.
fn local() -> Story {
    Story::settled().seen(|view| view.locals.extend(Family::BOTH.map(|family| VIP.ip(family))))
}

fn no_hops_left(hops: u8) -> impl Fn(Family, Transport) -> Row {
    move |family, transport| {
        let datagram = Datagram { hops, ..Datagram::request(family, transport) };
        drops(called(&format!("a request with {hops} hops left"), &datagram), &datagram, Reason::HopLimit)
    }
}

fn too_big(family: Family, transport: Transport) -> Row {
    let mut datagram = Datagram::request(family, transport);
    let headers = datagram.packet().len() - datagram.payload.len();
    datagram.payload = vec![0x5a; MTU as usize - headers + 1];
    drops(called("a request that is too big", &datagram), &datagram, Reason::TooBig)
}

fn to_another_port(family: Family, transport: Transport) -> Datagram {
    let mut datagram = Datagram::request(family, transport);
    datagram.to.set_port(81);
    datagram
}

fn no_such_service(family: Family, transport: Transport) -> Row {
    let datagram = to_another_port(family, transport);
    drops(called("a request to another port", &datagram), &datagram, Reason::NoService)
}

fn no_such_service_but_local(family: Family, transport: Transport) -> Row {
    let datagram = to_another_port(family, transport);
    let name = called("a request to another port of a local VIP", &datagram);
    Row::passes(name, local().image(), CLIENT_SIDE.index, datagram.frame(), Reason::NotForService)
}

fn no_backend(family: Family, transport: Transport) -> Row {
    let silent = Health::Down(Down::Silent);
    let story = Story::new().configured(|service| service.when_empty = WhenEmpty::Refuse);
    let story = story.health(WEB1, silent).health(WEB2, silent).health(WEB3, silent);
    let datagram = Datagram::request(family, transport);
    let name = called("a request when all backends are silent", &datagram);
    Row::drops(name, story.image(), CLIENT_SIDE.index, datagram.frame(), Reason::NoBackend)
}

fn another_protocol(family: Family) -> Row {
    let step = frame::ip(arriving(CLIENT, CLIENT_SIDE), CLIENT.ip(family), VIP.ip(family), 64);
    let mut frame = Vec::new();
    step.write(&mut frame, IpNumber::GRE, &[0; 40]).expect("a vector takes all that is written");
    let image = Story::settled().image();
    Row::drops(format!("GRE to a VIP ({family:?})"), image, CLIENT_SIDE.index, frame, Reason::NoService)
}

fn echo(family: Family) -> Row {
    let step = frame::ip(arriving(CLIENT, CLIENT_SIDE), CLIENT.ip(family), VIP.ip(family), 64);
    let mut frame = Vec::new();
    match family {
        Family::V4 => step.icmpv4_echo_request(1, 1).write(&mut frame, &[0; 56]),
        Family::V6 => step.icmpv6_echo_request(1, 1).write(&mut frame, &[0; 56]),
    }
    .expect("a vector takes all that is written");
    let image = Story::settled().image();
    Row::drops(format!("an echo request ({family:?})"), image, CLIENT_SIDE.index, frame, Reason::NoService)
}

fn fragment(family: Family, offset: u16, more: bool) -> Datagram {
    let fragment = Some(Fragment { offset, more });
    Datagram { fragment, ..Datagram::request(family, Transport::Ack) }
}

fn first_fragment(family: Family) -> Row {
    let datagram = fragment(family, 0, true);
    drops(called("the first fragment of a request", &datagram), &datagram, Reason::Fragment)
}

fn later_fragment(family: Family) -> Row {
    let datagram = fragment(family, 64, false);
    drops(called("a later fragment of a request", &datagram), &datagram, Reason::Fragment)
}

fn later_fragment_to_local(family: Family) -> Row {
    let datagram = fragment(family, 64, false);
    let name = called("a later fragment to a local VIP", &datagram);
    Row::passes(name, local().image(), CLIENT_SIDE.index, datagram.frame(), Reason::NotForService)
}
