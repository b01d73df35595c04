//! How a VIP gets to the balancer: routed to it, an address of its own interface, or announced by it.

use anyhow::{Context, Result, ensure};
use etherparse::{ArpOperation, NetSlice, SlicedPacket, TransportSlice};

use crate::support::balancer::Balancer;
use crate::support::config::all_kinds;
use crate::support::conversation::{Conversation, KINDS, ask, connect};
use crate::support::echo::start_pair;
use crate::support::network::{Arms, CLIENT_VIP, Dual, Family, Network, VIP, VIP_PORT};
use crate::support::wire::Wire;
use crate::support::{EVENTUALLY, SOON};

const OTHER_PORT: u16 = 81;

#[test]
fn routed() -> Result<()> {
    let network = Network::new("vip-routed", Arms::One)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    check_service(&network, VIP)?;

    // The balancer's default route leads back to the router: passed on, this packet would go in circles.
    let refused = connect(&network.client, VIP.port(Family::V4, OTHER_PORT), SOON / 5)?;
    ensure!(refused.is_err(), "a port without a service answered");
    ensure!(balancer.counted("no_service")? > 0, "a packet to no service is not counted");
    Ok(())
}

#[test]
fn an_address_of_the_interface_two_arm() -> Result<()> {
    check_local("vip-local-two", Arms::Two)
}

#[test]
fn an_address_of_the_interface_one_arm() -> Result<()> {
    check_local("vip-local-one", Arms::One)
}

#[test]
fn an_address_that_comes_and_goes() -> Result<()> {
    let network = Network::new("vip-moved", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    let mut flows = open_flows(&network)?;
    for _ in 0..2 {
        add_vip(&network, VIP)?;
        check_flows(&mut flows).context("the VIP has come")?;
        check_service(&network, VIP)?;
        for family in Family::BOTH {
            let vip = VIP.of(family);
            network.balancer.ip(&format!("address delete {vip} dev eth0"))?;
        }
        check_flows(&mut flows).context("the VIP has gone")?;
        check_service(&network, VIP)?;
    }
    balancer.status()?;
    Ok(())
}

#[test]
fn announced() -> Result<()> {
    let network = Network::new("vip-announced", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let wire = Wire::open(&network.client, "eth0")?;
    let balancer = Balancer::serve(&network, &all_kinds(CLIENT_VIP, &["announce = true"]))?;
    let mac = network.balancer.mac("eth0")?;
    let mut frames = Vec::new();
    lab::wait_until(EVENTUALLY, "gratuitous ARP and an unsolicited neighbour advertisement", || {
        frames.extend(wire.received().unwrap_or_default());
        frames.iter().any(|frame| announces_by_arp(frame, mac))
            && frames.iter().any(|frame| announces_by_nd(frame, mac))
    })?;
    check_service(&network, CLIENT_VIP)?;

    // Without what it learned at the start, the client has to ask.
    for family in ["-4", "-6"] {
        network.client.ip(&format!("{family} neighbour flush dev eth0"))?;
    }
    check_service(&network, CLIENT_VIP)?;
    ensure!(balancer.counted("announced")? >= 2, "the client asked, but no answer is counted");
    Ok(())
}

fn check_local(name: &str, arms: Arms) -> Result<()> {
    let network = Network::new(name, arms)?;
    let _echoes = start_pair(&network)?;
    add_vip(&network, VIP)?;
    let _balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    check_service(&network, VIP)?;
    for family in Family::BOTH {
        let refused = connect(&network.client, VIP.port(family, OTHER_PORT), SOON)?;
        let kind = refused.err().map(|error| error.kind());
        let expected = Some(std::io::ErrorKind::ConnectionRefused);
        ensure!(kind == expected, "a port without a service is the kernel's, but: {kind:?}");
    }
    Ok(())
}

fn check_service(network: &Network, vip: Dual) -> Result<()> {
    for (family, protocol) in KINDS {
        for _ in 0..5 {
            ask(&network.client, protocol, vip.port(family, VIP_PORT))?;
        }
    }
    Ok(())
}

fn open_flows(network: &Network) -> Result<Vec<Conversation>> {
    KINDS
        .iter()
        .map(|&(family, protocol)| Conversation::open(&network.client, protocol, VIP.port(family, VIP_PORT)))
        .collect()
}

fn check_flows(flows: &mut [Conversation]) -> Result<()> {
    flows.iter_mut().try_for_each(|flow| flow.ask().map(drop))
}

fn add_vip(network: &Network, vip: Dual) -> Result<()> {
    network.balancer.add_address("eth0", &format!("{}/32", vip.of(Family::V4)))?;
    network.balancer.add_address("eth0", &format!("{}/128", vip.of(Family::V6)))
}

/// A gratuitous ARP announcement: sender and target are the VIP (RFC 5227 section 3).
fn announces_by_arp(frame: &[u8], mac: [u8; 6]) -> bool {
    let Ok(SlicedPacket { net: Some(NetSlice::Arp(arp)), .. }) = SlicedPacket::from_ethernet(frame) else {
        return false;
    };
    let vip = CLIENT_VIP.v4().octets();
    let gratuitous = [ArpOperation::REQUEST, ArpOperation::REPLY].contains(&arp.operation());
    gratuitous
        && arp.sender_hw_addr() == mac
        && arp.sender_protocol_addr() == vip
        && arp.target_protocol_addr() == vip
}

/// An unsolicited neighbour advertisement of the VIP (RFC 4861 section 7.2.6).
fn announces_by_nd(frame: &[u8], mac: [u8; 6]) -> bool {
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    let Ok(SlicedPacket { transport: Some(TransportSlice::Icmpv6(icmp)), .. }) =
        SlicedPacket::from_ethernet(frame)
    else {
        return false;
    };
    let message = icmp.slice();
    message.first() == Some(&NEIGHBOUR_ADVERTISEMENT)
        && message.get(8..24) == Some(&CLIENT_VIP.v6().octets())
        && message.get(26..32) == Some(&mac)
}
