//! The table: packets that a backend gets, and what its program makes of them, on the host as in the kernel.

use std::net::IpAddr;

use etherparse::{EtherType, IpNumber};
use foobar_lb_ebpf::{decap::Outcome, reason::Verdict};
use proptest::prelude::*;

use super::packets::{
    CE, ECT_0, ECT_1, ENCAPSULATIONS, ETHERNET, Encapsulation, Family, GUE_PORT, NOT_ECT, OTHER, Tunnelled,
    UDP, VIP, add_options, ethernet, ethernet_of, fragment, packet,
};

/// RFC 6040, figure 4: for each of the inner codes, what becomes of it below each of the outer ones. None: dropped.
const OUTER_ECN: [u8; 4] = [NOT_ECT, ECT_0, ECT_1, CE];
const ECN: [(u8, [Option<u8>; 4]); 4] = [
    (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
    (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
    (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
    (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
];

/// What a program makes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub verdict: Verdict,
    pub frame: Vec<u8>,
    pub outcome: Outcome,
}

/// A frame that arrives, and what is to become of it.
pub struct Row {
    pub name: String,
    pub frame: Vec<u8>,
    pub expected: Told,
}

impl Row {
    /// What is wrong, in words.
    pub fn check(&self, run: &mut impl FnMut(&[u8]) -> Told) -> Result<(), String> {
        let told = run(&self.frame);
        if told == self.expected { Ok(()) } else { Err(format!("{}: {told:02x?}", self.name)) }
    }
}

/// All rows.
pub fn all() -> Vec<Row> {
    let groups = [taken_off, congestion, padding, for_others, outer_headers, gue, broken, no_tunnels];
    groups.into_iter().flat_map(|group| group()).collect()
}

/// The addresses of the VIPs.
pub fn vips() -> [IpAddr; 2] {
    Family::BOTH.map(|family| VIP.of(family))
}

/// Frames of the table with some bytes changed, cut or extended, and random ones. None is shorter than `shortest`.
pub fn noise(shortest: usize) -> impl Strategy<Value = Vec<u8>> {
    let frames = all().into_iter().map(|row| row.frame).filter(|frame| frame.len() >= shortest);
    let frames: Vec<Vec<u8>> = frames.collect();
    let changes = prop::collection::vec((0usize..96, any::<u8>()), 0..4);
    let length = prop::option::weighted(0.2, shortest..200);
    let changed = (prop::sample::select(frames), changes, length).prop_map(|(mut frame, changes, length)| {
        for (place, byte) in changes {
            frame.iter_mut().skip(place).take(1).for_each(|old| *old = byte);
        }
        frame.resize(length.unwrap_or(frame.len()), 0x5a);
        frame
    });
    prop_oneof![9 => changed, 1 => prop::collection::vec(any::<u8>(), shortest..200)]
}

/// What each of these combinations makes, under a name that tells them apart.
fn each(make: impl Fn(Family, Family) -> Vec<Row>) -> Vec<Row> {
    let pairs = Family::BOTH.into_iter().flat_map(|outer| Family::BOTH.map(|inner| (outer, inner)));
    pairs
        .flat_map(|(outer, inner)| {
            let rename = move |row: Row| Row { name: format!("{inner:?} in {outer:?}, {}", row.name), ..row };
            make(outer, inner).into_iter().map(rename)
        })
        .collect()
}

fn taken_off() -> Vec<Row> {
    each(|outer, inner| {
        let tunnelled = Tunnelled::new(outer, inner);
        let left = ethernet(inner, &tunnelled.packet);
        let row = |encapsulation| {
            decapsulated(format!("{encapsulation:?}"), tunnelled.frame(encapsulation), left.clone())
        };
        ENCAPSULATIONS.map(row).into()
    })
}

fn congestion() -> Vec<Row> {
    each(|outer, inner| {
        let row = |inner_code, outer_code, left| {
            let packet_inside = packet(inner, inner_code, &VIP);
            let frame = Tunnelled::with(outer, outer_code, inner, packet_inside).frame(Encapsulation::Ip);
            let name = format!("congestion {outer_code:02b} around {inner_code:02b}");
            match left {
                Some(code) => decapsulated(name, frame, ethernet(inner, &packet(inner, code, &VIP))),
                None => dropped(name, frame),
            }
        };
        let mut rows = Vec::new();
        for (inner_code, below) in ECN {
            rows.extend(
                OUTER_ECN.iter().zip(below).map(|(outer_code, left)| row(inner_code, *outer_code, left)),
            );
        }
        rows
    })
}

/// A network card fills short frames up.
fn padding() -> Vec<Row> {
    each(|outer, inner| {
        let tunnelled = Tunnelled::new(outer, inner);
        let padded = |frame: Vec<u8>| [frame, vec![0; 9]].concat();
        let left = padded(ethernet(inner, &tunnelled.packet));
        vec![decapsulated("padded".to_owned(), padded(tunnelled.frame(Encapsulation::Gue)), left)]
    })
}

fn for_others() -> Vec<Row> {
    each(|outer, inner| {
        let tunnelled = Tunnelled::with(outer, NOT_ECT, inner, packet(inner, CE, &OTHER));
        let row = |encapsulation| {
            let frame = tunnelled.frame(encapsulation);
            passed(format!("{encapsulation:?} for another address"), frame, Outcome::NotForVip)
        };
        ENCAPSULATIONS.map(row).into()
    })
}

fn outer_headers() -> Vec<Row> {
    each(|outer, inner| {
        let mut rows = Vec::new();
        for encapsulation in [Encapsulation::Ip, Encapsulation::Gue] {
            let mut row = |name: &str, change: &dyn Fn(&mut Tunnelled), outcome| {
                let mut tunnelled = Tunnelled::new(outer, inner);
                change(&mut tunnelled);
                let name = format!("{encapsulation:?}, outer {name}");
                rows.push(passed(name, tunnelled.frame(encapsulation), outcome));
            };
            let first = |tunnelled: &mut Tunnelled| fragment(&mut tunnelled.outer, 0, true);
            let last = |tunnelled: &mut Tunnelled| fragment(&mut tunnelled.outer, 64, false);
            row("options", &|tunnelled| add_options(&mut tunnelled.outer), Outcome::OuterOptions);
            row("first fragment", &first, Outcome::OuterFragment);
            match encapsulation {
                Encapsulation::Ip => row("last fragment", &last, Outcome::OuterFragment),
                // Where there is no port, nothing tells it from other UDP.
                _ => row("last fragment", &last, Outcome::NotTunnelled),
            }
        }
        rows
    })
}

fn gue() -> Vec<Row> {
    each(|outer, inner| {
        let tunnelled = Tunnelled::new(outer, inner);
        let number = inner.number().0;
        let headers = [
            ("control message", [0x20, number, 0, 0]),
            ("optional fields", [0x01, number, 0, 0]),
            ("first flags", [0, number, 0x80, 0]),
            ("last flags", [0, number, 0, 1]),
            ("variant 2", [0x80, number, 0, 0]),
            ("variant 3", [0xc0, number, 0, 0]),
            ("TCP without IP", [0, IpNumber::TCP.0, 0, 0]),
            ("version 5", [0x50, number, 0, 0]),
            ("version 7", [0x70, number, 0, 0]),
        ];
        let unknown = headers.map(|(name, header)| {
            passed(format!("GUE, {name}"), tunnelled.frame_of_gue(header), Outcome::UnknownGue)
        });
        let elsewhere = tunnelled.frame_of_udp_to(GUE_PORT - 1, &tunnelled.packet);
        let elsewhere = passed("UDP to another port".to_owned(), elsewhere, Outcome::NotTunnelled);
        unknown.into_iter().chain([elsewhere]).collect()
    })
}

fn broken() -> Vec<Row> {
    each(|outer, inner| {
        let tunnelled = Tunnelled::new(outer, inner);
        let malformed = |name: &str, frame| passed(name.to_owned(), frame, Outcome::Malformed);
        let other = if inner == Family::V4 { Family::V6 } else { Family::V4 };
        let frame = tunnelled.frame(Encapsulation::Gue);
        let into_udp = frame.len() - tunnelled.packet.len() - UDP + 7;
        let mut rows = vec![
            malformed("of another version", tunnelled.frame_of(other.number(), &tunnelled.packet)),
            malformed("cut in the outer header", frame[..ETHERNET + 12].to_vec()),
            malformed("cut in the UDP header", frame[..into_udp].to_vec()),
            malformed("cut behind the UDP header", frame[..into_udp + 4].to_vec()),
            malformed("cut in the inner header", frame[..into_udp + 18].to_vec()),
            malformed("longer inside", longer_inside(&tunnelled)),
        ];
        if inner == Family::V6 {
            let mut mapped = tunnelled.clone();
            // The destination ::ffff:203.0.113.80 is no IPv4 address.
            mapped.packet[24..40].copy_from_slice(&mapped_vip());
            rows.push(malformed("to an IPv4 address in IPv6", mapped.frame(Encapsulation::Ip)));
        }
        rows
    })
}

fn no_tunnels() -> Vec<Row> {
    let mut rows = vec![
        passed("nothing".to_owned(), vec![], Outcome::Malformed),
        passed("ARP".to_owned(), ethernet_of(EtherType::ARP, &[0; 28]), Outcome::NotTunnelled),
        passed("no IP packet".to_owned(), ethernet_of(EtherType::IPV4, &[0; 40]), Outcome::Malformed),
    ];
    for family in Family::BOTH {
        let plain = ethernet(family, &packet(family, CE, &VIP));
        rows.push(passed(format!("{family:?} to the VIP"), plain, Outcome::NotTunnelled));
        let gre = Tunnelled::new(family, family).frame_of(IpNumber::GRE, &[0; 60]);
        rows.push(passed(format!("GRE in {family:?}"), gre, Outcome::NotTunnelled));
    }
    rows
}

fn decapsulated(name: String, frame: Vec<u8>, left: Vec<u8>) -> Row {
    let expected = Told { verdict: Verdict::Pass, frame: left, outcome: Outcome::Decapsulated };
    Row { name, frame, expected }
}

fn dropped(name: String, frame: Vec<u8>) -> Row {
    let expected = Told { verdict: Verdict::Drop, frame: frame.clone(), outcome: Outcome::EcnDropped };
    Row { name, frame, expected }
}

fn passed(name: String, frame: Vec<u8>, outcome: Outcome) -> Row {
    let expected = Told { verdict: Verdict::Pass, frame: frame.clone(), outcome };
    Row { name, frame, expected }
}

/// The inner header tells of more bytes than the outer one has room for.
fn longer_inside(tunnelled: &Tunnelled) -> Vec<u8> {
    let mut tunnelled = tunnelled.clone();
    let length = match tunnelled.inner {
        Family::V4 => &mut tunnelled.packet[3],
        Family::V6 => &mut tunnelled.packet[5],
    };
    *length += 1;
    tunnelled.frame(Encapsulation::Ip)
}

fn mapped_vip() -> [u8; 16] {
    match VIP.of(Family::V4) {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(_) => unreachable!("asked for the IPv4 address"),
    }
}
