//! Questions for the MAC of a VIP.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::ArpOperation;
use foobar_lb::image::Image;
use foobar_lb_ebpf::reason::Reason;

use crate::packet::{
    Row,
    frame::{ArpEnd, Link, arp, arriving, ip, leaving, octets},
    world::{CLIENT, CLIENT_SIDE, Family, Host, Story, UNATTACHED, VIP},
};

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Solicited, and to override what was known.
const SOLICITED: [u8; 4] = [0x60, 0, 0, 0];
/// Options: the MAC of the source, or of the target, follows.
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;

const BROADCAST: [u8; 6] = [0xff; 6];
const UNKNOWN: [u8; 6] = [0; 6];
/// The solicited-node address of the VIP (RFC 4291, 2.7.1).
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x80);

pub fn rows() -> Vec<Row> {
    let own = (CLIENT.mac, octets(VIP));
    let another = (UNKNOWN, octets(CLIENT_SIDE.balancer));
    let usual = Solicitation::usual;
    let mut rows = vec![
        arp_answered("a request", asker()),
        arp_answered("a probe", (CLIENT.mac, [0; 4])),
        arp_ignored("for a VIP that is not announced", Story::settled().image(), request(asker(), wanted())),
        arp_ignored("for a local VIP", local(), request(asker(), wanted())),
        arp_ignored("for another address", announced(), request(asker(), another)),
        arp_ignored("for one's own address", announced(), request(own, wanted())),
        arp_ignored("that is a reply", announced(), arp(broadcast(), ArpOperation::REPLY, asker(), wanted())),
        arp_on_unattached_interface(),
        arp_cut_short(),
        answered("by multicast", usual()),
        answered("by unicast", Solicitation { to: VIP.ip(Family::V6), ..usual() }),
        ignored("from behind a router", Solicitation { hops: 254, ..usual() }),
        ignored("without the asker's MAC", Solicitation { option: None, ..usual() }),
        ignored("for another address", Solicitation { target: CLIENT, ..usual() }),
        ignored("that is an answer", Solicitation { kind: ADVERTISEMENT, ..usual() }),
    ];
    rows.extend(not_announced());
    rows
}

fn announced() -> Image {
    Story::settled().configured(|service| service.announce = true).image()
}

/// The kernel answers for its own addresses.
fn local() -> Image {
    Story::settled().configured(|service| service.announce = true).with_local_vip().image()
}

fn asker() -> ArpEnd {
    (CLIENT.mac, octets(CLIENT))
}

fn wanted() -> ArpEnd {
    (UNKNOWN, octets(VIP))
}

fn broadcast() -> Link {
    Link { from: CLIENT.mac, to: BROADCAST }
}

fn request(sender: ArpEnd, target: ArpEnd) -> Vec<u8> {
    arp(broadcast(), ArpOperation::REQUEST, sender, target)
}

fn arp_answered(what: &str, sender: ArpEnd) -> Row {
    let answer = (CLIENT_SIDE.balancer.mac, octets(VIP));
    let out = arp(leaving(CLIENT_SIDE, CLIENT), ArpOperation::REPLY, answer, sender);
    let frame = request(sender, wanted());
    Row::answers(
        format!("ARP: {what} for an announced VIP"),
        announced(),
        CLIENT_SIDE.index,
        frame,
        out,
        Reason::Announced,
    )
}

fn arp_ignored(what: &str, image: Image, frame: Vec<u8>) -> Row {
    Row::passes(format!("ARP {what}"), image, CLIENT_SIDE.index, frame, Reason::NotIp)
}

fn arp_on_unattached_interface() -> Row {
    let frame = request(asker(), wanted());
    Row::passes("ARP on an unknown interface", announced(), UNATTACHED.index, frame, Reason::NotIp)
}

fn arp_cut_short() -> Row {
    let frame = request(asker(), wanted())[..41].to_vec();
    Row::passes("ARP cut short", announced(), CLIENT_SIDE.index, frame, Reason::Malformed)
}

/// A neighbour solicitation, or an advertisement (RFC 4861, 4.3 and 4.4).
#[derive(Clone)]
struct Solicitation {
    link: Link,
    from: IpAddr,
    to: IpAddr,
    hops: u8,
    kind: u8,
    flags: [u8; 4],
    target: Host,
    option: Option<(u8, [u8; 6])>,
}

impl Solicitation {
    fn usual() -> Self {
        Self {
            link: Link { from: CLIENT.mac, to: [0x33, 0x33, 0xff, 0, 0, 0x80] },
            from: CLIENT.ip(Family::V6),
            to: GROUP.into(),
            hops: 255,
            kind: SOLICITATION,
            flags: [0; 4],
            target: VIP,
            option: Some((SOURCE_MAC, CLIENT.mac)),
        }
    }

    fn frame(&self) -> Vec<u8> {
        let IpAddr::V6(target) = self.target.ip(Family::V6) else {
            unreachable!("asked for an IPv6 address")
        };
        let mut payload = target.octets().to_vec();
        if let Some((kind, mac)) = self.option {
            payload.extend([kind, 1]);
            payload.extend(mac);
        }
        let mut frame = Vec::new();
        let step = ip(self.link, self.from, self.to, self.hops);
        step.icmpv6_raw(self.kind, 0, self.flags)
            .write(&mut frame, &payload)
            .expect("a vector takes all that is written");
        frame
    }
}

fn answered(how: &str, solicitation: Solicitation) -> Row {
    let answer = Solicitation {
        link: leaving(CLIENT_SIDE, CLIENT),
        from: VIP.ip(Family::V6),
        to: CLIENT.ip(Family::V6),
        kind: ADVERTISEMENT,
        flags: SOLICITED,
        option: Some((TARGET_MAC, CLIENT_SIDE.balancer.mac)),
        ..solicitation.clone()
    };
    let name = format!("a solicitation for an announced VIP, {how}");
    Row::answers(
        name,
        announced(),
        CLIENT_SIDE.index,
        solicitation.frame(),
        answer.frame(),
        Reason::Announced,
    )
}

fn ignored(which: &str, solicitation: Solicitation) -> Row {
    let (name, frame) = (format!("a solicitation {which}"), solicitation.frame());
    Row::passes(name, announced(), CLIENT_SIDE.index, frame, Reason::NotForService)
}

/// What is sent to the VIP itself is a packet to it like any other.
fn not_announced() -> [Row; 2] {
    let usual = Solicitation::usual();
    let unicast =
        Solicitation { link: arriving(CLIENT, CLIENT_SIDE), to: VIP.ip(Family::V6), ..usual.clone() };
    let (name, image) = ("a solicitation for a VIP that is not announced", Story::settled().image());
    let ingress = CLIENT_SIDE.index;
    [
        Row::passes(name, image.clone(), ingress, usual.frame(), Reason::NotForService),
        Row::drops(format!("{name}, by unicast"), image, ingress, unicast.frame(), Reason::NoService),
    ]
}
