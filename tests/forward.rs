//! Flows through the balancer arrive as they should: in each mode, IPv4 and IPv6, TCP and UDP, by one arm or two.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lab::wait_for;

use crate::support::SOON;
use crate::support::balancer::Balancer;
use crate::support::config::{all_kinds, service_name};
use crate::support::conversation::{Conversation, KINDS, Protocol};
use crate::support::echo::start_pair;
use crate::support::frames::{HOP_LIMIT, Macs, Seen, check_checksums, udp, without_udp_checksum};
use crate::support::network::{Arms, CLIENT, Family, Network, VIP, VIP_PORT, WEB1, WEB2};
use crate::support::site::{Mode, Site};
use crate::support::wire::Wire;

/// Enough that, with two backends, none is left out by chance.
const FLOWS: usize = 40;

#[test]
fn one_arm() -> Result<()> {
    check_flows("forward-one", Arms::One, Mode::Nat, "auto")
}

#[test]
fn two_arm() -> Result<()> {
    check_flows("forward-two", Arms::Two, Mode::Nat, "auto")
}

#[test]
fn one_arm_with_generic_xdp() -> Result<()> {
    check_flows("forward-one-generic", Arms::One, Mode::Nat, "generic")
}

#[test]
fn two_arm_with_generic_xdp() -> Result<()> {
    check_flows("forward-two-generic", Arms::Two, Mode::Nat, "generic")
}

#[test]
fn dsr_one_arm() -> Result<()> {
    check_flows("forward-dsr-one", Arms::One, Mode::Dsr, "auto")
}

#[test]
fn dsr_two_arm() -> Result<()> {
    check_flows("forward-dsr-two", Arms::Two, Mode::Dsr, "auto")
}

#[test]
fn ipip_over_ipv4_one_arm() -> Result<()> {
    check_flows("forward-ipip-v4-one", Arms::One, Mode::Ipip(Family::V4), "auto")
}

#[test]
fn ipip_over_ipv4_two_arm_with_generic_xdp() -> Result<()> {
    check_flows("forward-ipip-v4-two", Arms::Two, Mode::Ipip(Family::V4), "generic")
}

#[test]
fn ipip_over_ipv6_one_arm_with_generic_xdp() -> Result<()> {
    check_flows("forward-ipip-v6-one", Arms::One, Mode::Ipip(Family::V6), "generic")
}

#[test]
fn ipip_over_ipv6_two_arm() -> Result<()> {
    check_flows("forward-ipip-v6-two", Arms::Two, Mode::Ipip(Family::V6), "auto")
}

#[test]
fn gue_over_ipv4_one_arm() -> Result<()> {
    check_flows("forward-gue-v4-one", Arms::One, Mode::Gue(Family::V4), "auto")
}

#[test]
fn gue_over_ipv6_two_arm() -> Result<()> {
    check_flows("forward-gue-v6-two", Arms::Two, Mode::Gue(Family::V6), "auto")
}

#[test]
fn snat_one_arm() -> Result<()> {
    check_flows("forward-snat-one", Arms::One, Mode::Snat, "auto")
}

#[test]
fn snat_two_arm() -> Result<()> {
    check_flows("forward-snat-two", Arms::Two, Mode::Snat, "auto")
}

#[test]
fn snat_two_arm_with_generic_xdp() -> Result<()> {
    check_flows("forward-snat-two-generic", Arms::Two, Mode::Snat, "generic")
}

#[test]
fn nat64_one_arm() -> Result<()> {
    check_flows("forward-nat64-one", Arms::One, Mode::Nat64, "auto")
}

#[test]
fn nat64_two_arm_with_generic_xdp() -> Result<()> {
    check_flows("forward-nat64-two", Arms::Two, Mode::Nat64, "generic")
}

#[test]
fn a_udp_packet_without_checksum_stays_without() -> Result<()> {
    let network = Network::new("forward-no-checksum", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let _balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    let client = Wire::open(&network.client, "eth0")?;
    let backends = [Wire::open(&network.web1, "eth0")?, Wire::open(&network.web2, "eth0")?];

    let from = CLIENT.port(Family::V4, 40_000);
    let macs = Macs::between(&network.client, &network.balancer, "eth0")?;
    let frame = udp(macs, from, VIP.port(Family::V4, VIP_PORT), b"no checksum")?;
    client.send(&without_udp_checksum(frame))?;

    let arrived = wait_for(SOON, "the packet at a backend", || {
        let mut frames = backends.iter().filter_map(|wire| wire.received().ok()).flatten();
        frames.find(|frame| Seen::read(frame).is_some_and(|seen| seen.from == from))
    })?;
    ensure!(arrived == without_udp_checksum(arrived.clone()), "it got a checksum: {arrived:02x?}");
    ensure!(arrived.ends_with(b"no checksum"), "its payload changed: {arrived:02x?}");
    Ok(())
}

fn check_flows(name: &str, arms: Arms, mode: Mode, xdp_mode: &str) -> Result<()> {
    let site = Site::new(name, arms, mode)?;
    let _echoes = site.start_echoes()?;
    let options = ["--sysctl", "--xdp-mode", xdp_mode];
    let network = &site.network;
    let balancer = Balancer::attach(&network.balancer, network.interfaces, &site.kinds(&[]), &options)?;
    balancer.wait_until_serving()?;
    check_xdp_mode(&balancer, xdp_mode)?;
    for (family, protocol) in KINDS {
        check_flows_of(&site, family, protocol).with_context(|| format!("{protocol:?} over {family:?}"))?;
        check_counters(&balancer, &service_name(family, protocol), mode)?;
    }
    Ok(())
}

fn check_flows_of(site: &Site, family: Family, protocol: Protocol) -> Result<()> {
    let Site { network, mode, .. } = site;
    let client = Wire::open(&network.client, site.reply_interface())?;
    let backends = [Wire::open(&network.web1, "eth0")?, Wire::open(&network.web2, "eth0")?];
    let mut served = BTreeSet::new();
    for _ in 0..FLOWS {
        served.insert(check_flow(site, family, protocol)?);
    }
    ensure!(served.len() == 2, "{FLOWS} flows, and all went to {served:?}");

    let hops = if network.router.is_some() { 2 } else { 1 };
    let replies = client.received()?;
    check_checksums(&replies)?;
    check_packets(
        &replies,
        // The balancer would be one more hop.
        if mode.answers_directly() { hops - 1 } else { hops },
        |seen| seen.protocol == protocol && seen.to.ip() == CLIENT.of(family),
        |seen| seen.from == VIP.port(family, VIP_PORT),
    )?;
    for (wire, address) in backends.iter().zip([WEB1, WEB2]) {
        let requests = wire.received()?;
        check_checksums(&requests)?;
        let server = match mode.answers_directly() {
            true => VIP.port(family, mode.backend_port()),
            false => address.port(mode.outer(family), mode.backend_port()),
        };
        let of_clients = |seen: &Seen| seen.protocol == protocol && mode.is_client(seen.from, family);
        check_packets(&requests, hops, of_clients, |seen| seen.to == server)?;
    }
    Ok(())
}

/// Talks over one flow: always with the same backend.
fn check_flow(site: &Site, family: Family, protocol: Protocol) -> Result<String> {
    let server = VIP.port(family, VIP_PORT);
    let mut flow = Conversation::open(&site.network.client, protocol, server)?;
    let first = flow.ask()?;
    site.mode.check_client(first.client, flow.local_address()?)?;
    for _ in 0..3 {
        let again = flow.ask()?;
        ensure!(again == first, "one flow was answered by {first:?} and by {again:?}");
    }
    Ok(first.backend)
}

fn check_packets(
    frames: &[Vec<u8>],
    hops: u8,
    concerned: impl Fn(&Seen) -> bool,
    right: impl Fn(&Seen) -> bool,
) -> Result<()> {
    let packets: Vec<_> = frames.iter().filter_map(|frame| Seen::read(frame)).filter(concerned).collect();
    ensure!(packets.len() >= FLOWS / 4, "only {} packets arrived", packets.len());
    for packet in packets {
        ensure!(right(&packet), "a packet with wrong addresses: {packet:?}");
        ensure!(packet.hop_limit == HOP_LIMIT - hops, "a hop limit not lowered by {hops}: {packet:?}");
    }
    Ok(())
}

fn check_xdp_mode(balancer: &Balancer, asked: &str) -> Result<()> {
    // A veth has native XDP, so that is what `auto` must find.
    let expected = if asked == "auto" { "native" } else { asked };
    for interface in balancer.status()?.interfaces {
        ensure!(interface.mode == expected, "{} runs {} XDP, not {expected}", interface.name, interface.mode);
    }
    Ok(())
}

fn check_counters(balancer: &Balancer, service: &str, mode: Mode) -> Result<()> {
    let status = balancer.status()?;
    let service = status.service(service)?;
    let packets: u64 = service.backends.iter().map(|backend| backend.packets).sum();
    ensure!(service.packets == packets, "the backends' packets are {packets} in sum: {service:?}");
    for backend in &service.backends {
        ensure!(backend.packets > 0 && backend.bytes > backend.packets, "not counted: {backend:?}");
        let (replies, bytes) = (backend.reply_packets, backend.reply_bytes);
        if mode.answers_directly() {
            ensure!(replies == 0 && bytes == 0, "replies come by the balancer: {backend:?}");
        } else {
            ensure!(replies > 0 && bytes > replies, "replies are not counted: {backend:?}");
        }
    }
    Ok(())
}
