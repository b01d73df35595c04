//! Every checksum on the wire is right, in both directions and in each mode: in what is forwarded, what has outer headers,
//! what is fragmented, and in the answers, resets and ICMP errors of the balancer itself.

use std::io::Write;

use anyhow::{Result, bail, ensure};
use lab::{Namespace, wait_until};

use crate::support::config::vip_sections;
use crate::support::conversation::{Conversation, KINDS, Protocol, ask_at_length, ask_once, connect};
use crate::support::network::{Arms, Family, Network, VIP, VIP_PORT};
use crate::support::site::{Mode, Site};
use crate::support::tshark::Capture;
use crate::support::wire::Wire;
use crate::support::{EVENTUALLY, SOON};

const FLOWS: usize = 10;
const OTHER_PORT: u16 = 81;
/// Segments of full size.
const LONG: usize = 100_000;

#[test]
fn nat_two_arm() -> Result<()> {
    check_checksums("checksums-nat-two", Arms::Two, Mode::Nat)
}

#[test]
fn nat_one_arm() -> Result<()> {
    check_checksums("checksums-nat-one", Arms::One, Mode::Nat)
}

#[test]
fn dsr() -> Result<()> {
    check_checksums("checksums-dsr", Arms::Two, Mode::Dsr)
}

#[test]
fn ipip_over_ipv4() -> Result<()> {
    check_checksums("checksums-ipip-v4", Arms::One, Mode::Ipip(Family::V4))
}

#[test]
fn ipip_over_ipv6() -> Result<()> {
    check_checksums("checksums-ipip-v6", Arms::Two, Mode::Ipip(Family::V6))
}

#[test]
fn gue_over_ipv4() -> Result<()> {
    check_checksums("checksums-gue-v4", Arms::Two, Mode::Gue(Family::V4))
}

#[test]
fn gue_over_ipv6() -> Result<()> {
    check_checksums("checksums-gue-v6", Arms::One, Mode::Gue(Family::V6))
}

#[test]
fn snat_two_arm() -> Result<()> {
    check_checksums("checksums-snat-two", Arms::Two, Mode::Snat)
}

#[test]
fn snat_one_arm() -> Result<()> {
    check_checksums("checksums-snat-one", Arms::One, Mode::Snat)
}

#[test]
fn nat64_two_arm() -> Result<()> {
    check_checksums("checksums-nat64", Arms::Two, Mode::Nat64)
}

fn check_checksums(name: &str, arms: Arms, mode: Mode) -> Result<()> {
    let site = Site::new(name, arms, mode)?;
    let _echoes = site.start_echoes()?;
    let _balancer = site
        .serve(&(site.kinds(&["transition = \"1s\""]) + &vip_sections(VIP, &["unmatched = \"reject\""])))?;
    let Network { client, switch, web1, web2, lab, .. } = &site.network;
    let ends = [
        (client, site.reply_interface()),
        (client, "eth0"),
        (switch, "balancer"),
        (web1, "eth0"),
        (web2, "eth0"),
    ];
    let wires: Vec<_> =
        ends.iter().map(|(host, interface)| open_wire(host, interface)).collect::<Result<_>>()?;
    for family in Family::BOTH {
        talk(client, family)?;
    }
    let frames: Vec<_> = wires.iter().map(Wire::received).collect::<Result<Vec<_>>>()?.concat();
    Capture::write(lab.directory(), "all", &frames)?.check_checksums()
}

/// Sees frames as they come: merged ones have no checksums of their own.
fn open_wire(host: &Namespace, interface: &str) -> Result<Wire> {
    host.run(["ethtool", "-K", interface, "gro", "off"])?;
    Wire::open(host, interface)
}

/// A little of everything.
fn talk(client: &Namespace, family: Family) -> Result<()> {
    let server = VIP.port(family, VIP_PORT);
    for (_, protocol) in KINDS.iter().filter(|(of, _)| *of == family) {
        for _ in 0..FLOWS {
            ask_once(client, *protocol, server)?;
        }
    }
    let mut flow = Conversation::open(client, Protocol::Tcp, server)?;
    let Conversation::Tcp(stream) = &mut flow else { bail!("a TCP flow is none of TCP") };
    stream.get_mut().write_all(&vec![b'x'; LONG])?;
    flow.ask()?;
    wait_until(EVENTUALLY, "an answer to fragments that fit", || {
        ask_at_length(client, server, 8192).is_ok()
    })?;
    client.run(["ping", "-c", "3", "-i", "0.01", &VIP.of(family).to_string()])?;
    let other = VIP.port(family, OTHER_PORT);
    ensure!(connect(client, other, SOON)?.is_err(), "a port without a service answered");
    ensure!(
        Conversation::open(client, Protocol::Udp, other)?.ask().is_err(),
        "a port without a service answered"
    );
    Ok(())
}
