//! What is particular to mode `tunnel`: the outer headers.

use std::net::IpAddr;

use foobar_lb::{image::Image, model::Mode};
use foobar_lb_ebpf::{
    flow::{hash, hash_key},
    layout::NextHop,
    reason::Reason,
};
use ipnet::IpNet;

use super::each;
use crate::packet::{
    Row,
    frame::{Datagram, Outer, Transport},
    way::{TUNNELS, Way},
    world::{CLIENT_SIDE, Family, SEED, WEB1, flow},
};

pub fn rows() -> Vec<Row> {
    TUNNELS.into_iter().flat_map(of_way).collect()
}

fn of_way(way: Way) -> Vec<Row> {
    let mut rows = each(|family, transport| unresolved(way, family, transport));
    rows.extend(each(|family, transport| without_source(way, family, transport)));
    for free in [1, 8, 32] {
        rows.extend(each(|family, transport| varied(way, free, family, transport)));
    }
    rows.extend([0, 0x1234].map(|id| may_be_fragmented(way, id)));
    rows
}

/// Which outer family a way has.
fn outer(way: Way) -> Family {
    way.outer().expect("it is a tunnel")
}

fn dropped(way: Way, what: &str, image: Image, family: Family, transport: Transport) -> Row {
    let request = Datagram::request(family, transport);
    Row::drops(way.called(what, &request), image, CLIENT_SIDE.index, request.frame(), Reason::Unresolved)
}

/// Slots name such a backend only until the tables are up to date, and the next one likewise.
fn unresolved(way: Way, family: Family, transport: Transport) -> Row {
    let mut image = way.story().image();
    image.backends.values_mut().for_each(|backend| backend.next_hop = NextHop::default());
    dropped(way, "a request to a backend without a next hop", image, family, transport)
}

/// The balancer has no address that the outer header could be from.
fn without_source(way: Way, family: Family, transport: Transport) -> Row {
    let mut image = way.story().image();
    image.tunnels.clear();
    dropped(way, "a request without an outer source", image, family, transport)
}

/// The outer source is one of a prefix that leaves so many bits free, by the flow.
fn varied(way: Way, free: u8, family: Family, transport: Transport) -> Row {
    let sources = Family::BOTH.map(|family| sources(family, free));
    let request = Datagram::request(family, transport);
    let headers = way.outer_headers(&request, WEB1, outer(way));
    let one_less = Datagram { hops: request.hops - 1, ..request.clone() };
    let from = vary(sources[usize::from(outer(way) == Family::V6)], free, &request);
    let out = Outer { from, ..headers }.around(&one_less.packet());
    let what = format!("a request with {free} bits of the outer source varied");
    let row = way.translates(&what, &request, request.frame(), out);
    let story = way.story().configured(|service| match &mut service.mode {
        Mode::Tunnel(tunnel) => tunnel.sources = sources.to_vec(),
        _ => unreachable!("it is a tunnel"),
    });
    Row { image: story.image(), ..row }
}

fn sources(family: Family, free: u8) -> IpNet {
    let (address, bits): (&str, u8) = match family {
        Family::V4 => ("100.64.0.0", 32),
        Family::V6 => ("2001:db8:64::", 128),
    };
    let address: IpAddr = address.parse().expect("an address");
    IpNet::new(address, bits - free).expect("a prefix of that family").trunc()
}

/// The hash of the flow fills the free bits.
fn vary(prefix: IpNet, free: u8, request: &Datagram) -> IpAddr {
    let flow = flow(request.from, request.to, request.transport.protocol());
    let free = 1u32.checked_shl(free.into()).map_or(u32::MAX, |bit| bit - 1);
    let spread = ((hash(&hash_key(SEED), &flow) >> 32) as u32).swap_bytes() & free;
    match prefix.network() {
        IpAddr::V4(network) => std::net::Ipv4Addr::from(u32::from(network) | spread).into(),
        IpAddr::V6(network) => std::net::Ipv6Addr::from(u128::from(network) | u128::from(spread)).into(),
    }
}

/// But not outside: to take it apart again a backend would have to wait for all of the fragments.
fn may_be_fragmented(way: Way, id: u16) -> Row {
    let request = Datagram { id, may_fragment: true, ..Datagram::request(Family::V4, Transport::Udp) };
    way.carries(&format!("a request that may be fragmented, {id:#x}"), &request, &Datagram::packet)
}
