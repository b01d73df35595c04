//! What is particular to mode `dsr`: the packet stays as it is but for its TTL.

use foobar_lb::image::Image;
use foobar_lb_ebpf::{
    layout::NextHop,
    reason::{Reason, Verdict},
};

use super::{called, each};
use crate::packet::{
    Row,
    frame::{Datagram, Transport, arriving},
    way::Way,
    world::{self, BACKEND_SIDE, CLIENT_SIDE, FAR, Family, ROUTER, UNATTACHED, WEBS, by},
};

pub fn rows() -> Vec<Row> {
    let mut rows = each(one_arm);
    rows.extend(each(unresolved));
    rows.extend(each(unattached));
    rows.extend(each(behind_a_gateway));
    rows.extend(each(from_the_vip));
    rows
}

fn one_arm(family: Family, transport: Transport) -> Row {
    let request = Datagram {
        link: arriving(ROUTER, BACKEND_SIDE),
        from: world::client(FAR, family),
        ..Datagram::request(family, transport)
    };
    let row = Way::Dsr.carries("a request, one-arm", &request, &Datagram::packet);
    Row { ingress: BACKEND_SIDE.index, ..row }.ending_in(Verdict::Transmit)
}

/// The kernel does not know where it is to go. Slots name such a backend only until the tables are up to date.
fn unresolved(family: Family, transport: Transport) -> Row {
    let mut image = Way::Dsr.story().image();
    image.backends.values_mut().for_each(|backend| backend.next_hop = NextHop::default());
    dropped("a request to a backend without a next hop", image, Reason::Unresolved, family, transport)
}

/// The program cannot send by that interface, so no slot names them.
fn unattached(family: Family, transport: Transport) -> Row {
    let story = Way::Dsr.story().seen(|view| {
        let hops = WEBS.map(|web| (web.ip(family), by(web, UNATTACHED, family)));
        view.next_hops.extend(hops);
    });
    let what = "a request to backends at an interface without the program";
    dropped(what, story.image(), Reason::NoBackend, family, transport)
}

/// The gateway would send it back: it is for the VIP.
fn behind_a_gateway(family: Family, transport: Transport) -> Row {
    let story = Way::Dsr.story().seen(|view| {
        view.next_hops.values_mut().for_each(|hop| hop.on_link = false);
    });
    dropped("a request to backends behind a gateway", story.image(), Reason::NoBackend, family, transport)
}

fn dropped(what: &str, image: Image, reason: Reason, family: Family, transport: Transport) -> Row {
    let request = Datagram::request(family, transport);
    let name = Way::Dsr.called(what, &request);
    Row::drops(name, image, CLIENT_SIDE.index, request.frame(), reason)
}

/// A backend's packets to clients are no matter of the balancer, whatever port they are from.
fn from_the_vip(family: Family, transport: Transport) -> Row {
    let reply = Datagram::reply(family, transport);
    let name = called("Dsr: a backend's own packet", &reply);
    Row::passes(name, Way::Dsr.story().image(), BACKEND_SIDE.index, reply.frame(), Reason::NotForService)
}
