//! What is none of the balancer's business, or cannot be read: it passes untouched.

use etherparse::EtherType;
use foobar_lb_ebpf::reason::Reason;

use super::{called, each};
use crate::packet::{
    Row,
    frame::{self, Complaint, Datagram, ETHERNET, IcmpError, Transport, arriving},
    world::{self, CLIENT, CLIENT_SIDE, FAR, Family, Story, VIP, WEB2},
};

pub fn rows() -> Vec<Row> {
    let mut rows = each(to_another_address);
    rows.extend(each(from_another_port));
    rows.extend(each(to_the_balancer));
    rows.extend(each(truncated_before_its_flow).map_rows(truncations));
    rows.extend(Family::BOTH.into_iter().flat_map(|family| truncations(truncated_error(family))));
    rows.extend([EtherType(0x88cc), EtherType::VLAN_TAGGED_FRAME, EtherType(60)].map(not_ip));
    rows.extend(Family::BOTH.map(of_another_version));
    rows.extend([short_header(), long_header()]);
    rows.extend([mapped_source(), mapped_destination()]);
    rows
}

fn passes(name: String, frame: Vec<u8>, why: Reason) -> Row {
    Row::passes(name, Story::settled().image(), CLIENT_SIDE.index, frame, why)
}
