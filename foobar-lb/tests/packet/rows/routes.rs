//! Replies by routes that the data path knows by itself.

use foobar_lb::image::{Image, address_prefix};
use foobar_lb_ebpf::{
    layout::{Address, NextHop, Route, Routes},
    reason::{Reason, Verdict},
};
use ipnet::IpNet;

use super::{
    called, each, nat64,
    reply::{self, passes, reaches, reply_to},
    snat,
};
use crate::packet::{
    Row,
    frame::{Transport, leaving},
    world::{
        BACKEND_SIDE, CLIENT, CLIENT_SIDE, CLOSED, FAR, Family, Host, MTU, PORTS, Port, ROUTER, UNROUTED,
        far_network, hop, subnet,
    },
};

pub fn rows() -> Vec<Row> {
    // Where the kernel does not forward, nothing is known.
    let replies = [reply::rows(), snat::rows(), nat64::rows()].concat().into_iter();
    let replies = replies.filter(|row| row.ingress != CLOSED.index);
    let mut rows: Vec<Row> =
        replies.map(|row| knowing(&as_the_kernel(), "as the kernel does", row)).collect();
    rows.extend(each(another_way));
    rows.extend(each(by_default));
    rows.extend(each(the_longest));
    rows.extend(each(left_to_the_kernel));
    rows.extend(each(too_big));
    rows
}

/// The row where these routes are known, longer prefixes first.
fn knowing(routes: &[(IpNet, NextHop)], how: &str, row: Row) -> Row {
    let mut known = Routes::default();
    for (room, is_ipv4) in [(&mut known.v4, true), (&mut known.v6, false)] {
        let of_family = routes.iter().filter(|(prefix, _)| prefix.addr().is_ipv4() == is_ipv4);
        for (route, (prefix, next_hop)) in room.iter_mut().zip(of_family) {
            let (prefix, bits) = address_prefix(prefix);
            let mask = u128::MAX.checked_shl(u128::BITS - bits).unwrap_or(0);
            *route = Route { prefix, mask: Address(mask.to_be_bytes()), next_hop: *next_hop, pad: 0 };
        }
    }
    let image = Image { routes: known, ..row.image.clone() };
    Row { name: format!("{}, by routes known {how}", row.name), image, ..row }
}

/// What follows from the kernel's routes: clients in a subnet are neighbours, of which the kernel knows.
fn as_the_kernel() -> Vec<(IpNet, NextHop)> {
    let of_family = |family| {
        let subnets = PORTS.map(|port| (subnet(port, family), NextHop::default()));
        subnets.into_iter().chain([(far_network(family), hop(ROUTER, BACKEND_SIDE))])
    };
    Family::BOTH.into_iter().flat_map(of_family).collect()
}

/// All addresses.
fn any(family: Family) -> IpNet {
    let any = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
    any.parse().expect("a prefix")
}

/// A reply to this client as it goes by a neighbour, which is not the kernel's way.
fn goes(
    how: &str,
    client: Host,
    by: (Host, Port),
    family: Family,
    transport: Transport,
    routes: &[(IpNet, NextHop)],
) -> Row {
    let (neighbour, port) = by;
    let datagram = reply_to(client, family, transport).sized(MTU as usize);
    let out = datagram.clone().returning(leaving(port, neighbour)).frame();
    let back = port.index == BACKEND_SIDE.index;
    let verdict = if back { Verdict::Transmit } else { Verdict::Redirect(port.index) };
    let row = reaches(called("a reply as large as may be", &datagram), &datagram, out, verdict);
    knowing(routes, how, row)
}

fn another_way(family: Family, transport: Transport) -> Row {
    let way = (CLIENT, CLIENT_SIDE);
    goes("as another way", FAR, way, family, transport, &[(far_network(family), hop(CLIENT, CLIENT_SIDE))])
}

fn by_default(family: Family, transport: Transport) -> Row {
    let routes = [(far_network(family), NextHop::default()), (any(family), hop(ROUTER, BACKEND_SIDE))];
    goes("by default", UNROUTED, (ROUTER, BACKEND_SIDE), family, transport, &routes)
}

fn the_longest(family: Family, transport: Transport) -> Row {
    let longer = (FAR.ip(family).into(), hop(CLIENT, CLIENT_SIDE));
    let shorter = (far_network(family), hop(ROUTER, BACKEND_SIDE));
    goes(
        "by the longest prefix",
        FAR,
        (CLIENT, CLIENT_SIDE),
        family,
        transport,
        &[longer, shorter, (any(family), NextHop::default())],
    )
}

fn left_to_the_kernel(family: Family, transport: Transport) -> Row {
    let routes =
        [(subnet(CLIENT_SIDE, family), NextHop::default()), (any(family), hop(ROUTER, BACKEND_SIDE))];
    goes("but left to the kernel", CLIENT, (CLIENT, CLIENT_SIDE), family, transport, &routes)
}

/// The kernel says what becomes of it.
fn too_big(family: Family, transport: Transport) -> Row {
    let datagram = reply_to(FAR, family, transport).sized(MTU as usize + 1);
    let row = passes(called("a reply that is too big", &datagram), &datagram, Reason::ReplyTooBig);
    knowing(&[(far_network(family), hop(CLIENT, CLIENT_SIDE))], "otherwise", row)
}
