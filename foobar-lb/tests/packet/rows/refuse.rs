//! What is sent to a VIP but can reach no backend.

use etherparse::IpNumber;
use foobar_lb::model::{Down, Health, Unmatched, WhenEmpty};
use foobar_lb_ebpf::reason::Reason;

use super::{called, each};
use crate::packet::{
    Row,
    frame::{self, Complaint, Datagram, IcmpError, Transport, arriving},
    world::{CLIENT, CLIENT_SIDE, Family, Story, VIP, WEB1, WEB2, WEB3},
};

pub fn rows() -> Vec<Row> {
    let mut rows = each(no_backend);
    for unmatched in [Unmatched::Pass, Unmatched::Drop] {
        rows.extend(each(|family, transport| not_local(unmatched, family, transport)));
    }
    for family in Family::BOTH {
        rows.push(unreachable_port(family));
        rows.push(local_start(family));
    }
    for unmatched in [Unmatched::Pass, Unmatched::Drop, Unmatched::Reject] {
        rows.extend(Family::BOTH.map(|family| another_protocol(unmatched, family)));
        rows.extend(each(|family, transport| local(unmatched, family, transport)));
    }
    rows
}

fn unmatched(unmatched: Unmatched, story: Story) -> Story {
    story.configured(|service| service.vip.unmatched = unmatched)
}

/// All services' VIP refuses what is for no service.
pub fn rejecting(story: Story) -> Story {
    unmatched(Unmatched::Reject, story)
}

/// A packet to a port that no service has.
pub fn to_another_port(family: Family, transport: Transport) -> Datagram {
    let mut datagram = Datagram::request(family, transport);
    datagram.to.set_port(81);
    datagram
}

fn not_local(policy: Unmatched, family: Family, transport: Transport) -> Row {
    let datagram = to_another_port(family, transport);
    let name = called(&format!("{policy:?} a request to another port"), &datagram);
    let image = unmatched(policy, Story::settled()).image();
    Row::drops(name, image, CLIENT_SIDE.index, datagram.frame(), Reason::NoService)
}

/// It may be the answer to what the kernel has sent from the VIP; only what begins is none.
fn local(policy: Unmatched, family: Family, transport: Transport) -> Row {
    let datagram = to_another_port(family, transport);
    let name = called(&format!("{policy:?} a request to another port of a local VIP"), &datagram);
    let image = unmatched(policy, Story::settled().with_local_vip()).image();
    let frame = datagram.frame();
    Row::passes(name, image, CLIENT_SIDE.index, frame, Reason::NotForService)
}

fn local_start(family: Family) -> Row {
    let datagram = to_another_port(family, Transport::Syn);
    let name = called("drop the SYN to another port of a local VIP", &datagram);
    let image = unmatched(Unmatched::Drop, Story::settled().with_local_vip()).image();
    Row::drops(name, image, CLIENT_SIDE.index, datagram.frame(), Reason::NoService)
}

/// It is the VIP that speaks: it is the address that the client knows.
fn unreachable_port(family: Family) -> Row {
    let datagram = to_another_port(family, Transport::Udp);
    let (name, image) = (called("reject a request", &datagram), rejecting(Story::settled()).image());
    let from = VIP.ip(family);
    let error = IcmpError::about(&datagram, &datagram.packet(), from, Complaint::PortUnreachable);
    Row::answers(name, image, CLIENT_SIDE.index, datagram.frame(), error.frame(), Reason::Rejected)
}

fn no_backend(family: Family, transport: Transport) -> Row {
    let silent = Health::Down(Down::Silent);
    let story = Story::new().configured(|service| service.when_empty = WhenEmpty::Refuse);
    let story = story.health(WEB1, silent).health(WEB2, silent).health(WEB3, silent);
    let datagram = Datagram::request(family, transport);
    let name = called("a request when all backends are silent", &datagram);
    Row::drops(name, story.image(), CLIENT_SIDE.index, datagram.frame(), Reason::NoBackend)
}

/// It has no ports that could be refused.
fn another_protocol(policy: Unmatched, family: Family) -> Row {
    let step = frame::ip(arriving(CLIENT, CLIENT_SIDE), CLIENT.ip(family), VIP.ip(family), 64);
    let mut frame = Vec::new();
    step.write(&mut frame, IpNumber::GRE, &[0; 40]).expect("a vector takes all that is written");
    let image = unmatched(policy, Story::settled()).image();
    let name = format!("{policy:?} GRE to a VIP ({family:?})");
    Row::drops(name, image, CLIENT_SIDE.index, frame, Reason::NoService)
}
