//! Questions for the MAC of a VIP.

use etherparse::ArpOperation;
use foobar_lb::image::Image;
use foobar_lb_ebpf::reason::Reason;

use crate::packet::{
    Row,
    frame::{ArpEnd, ETHERNET, Link, arp, ip, leaving, octets},
    world::{CLIENT, CLIENT_SIDE, Family, Host, Story, UNATTACHED, VIP},
};

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Solicited, and to override what was known.
const SOLICITED: [u8; 4] = [0x60, 0, 0, 0];
/// The MAC of the source, or of the target, follows.
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;

const BROADCAST: [u8; 6] = [0xff; 6];
const UNKNOWN: [u8; 6] = [0; 6];
const ASKER: ([u8; 6], Host) = (CLIENT.mac, CLIENT);

pub fn rows() -> Vec<Row> {
    vec![
        arp_answered(),
        arp_probe_answered(),
        arp_ignored("a VIP that is not announced", Story::settled().image(), request(asker(), wanted())),
        arp_ignored("a local VIP", local(), request(asker(), wanted())),
        arp_ignored("another address", announced(), request(asker(), (UNKNOWN, octets(CLIENT_SIDE.balancer)))),
        arp_ignored("one's own address", announced(), request((CLIENT.mac, octets(VIP)), wanted())),
        arp_ignored("nothing, but a reply", announced(), reply()),
        arp_on_unattached_interface(),
        arp_cut_short(),
        solicitation_answered(BROADCAST_GROUP, "by multicast"),
        solicitation_answered(VIP, "by unicast"),
        solicitation_not_announced(),
        solicitation_ignored("from behind a router", Question { hops: 254, ..Question::usual() }),
        solicitation_ignored("without the asker's MAC", Question { option: None, ..Question::usual() }),
        solicitation_ignored("for another", Question { target: CLIENT, ..Question::usual() }),
        solicitation_ignored("that is an answer", Question { kind: ADVERTISEMENT, ..Question::usual() }),
    ]
}
