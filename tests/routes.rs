//! Replies go where the balancer's kernel would send them, though it is not asked for each: a route, and a policy rule, that
//! change while a download runs are followed.

use std::fs::File;
use std::io;

use anyhow::{Context, Result};
use lab::{Namespace, veth, wait_until};
use serde::Deserialize;

use crate::support::EVENTUALLY;
use crate::support::balancer::Balancer;
use crate::support::config::{Service, services};
use crate::support::conversation::Protocol;
use crate::support::http::Download;
use crate::support::network::{Arms, CLIENT, Dual, FAR, Family, Network, VIP, WEB1, add_addresses, dual};
use crate::support::nginx::Nginx;

/// The far router, and the balancer, on a second link between them.
const OTHER_FAR: Dual = dual([10, 0, 3, 1], [0xfd00, 0xd], 1);
const OTHER_NEAR: Dual = dual([10, 0, 3, 2], [0xfd00, 0xd], 2);
const MTU: u16 = 1500;
/// More than is ever read of it.
const SIZE: u64 = 1 << 40;
/// What is read between two looks: more than the sockets have room for, so that as much comes by a link meanwhile.
const PIECE: u64 = 32 << 20;

#[test]
fn a_download_follows_routes_and_rules() -> Result<()> {
    check_changes(Family::V4)
}

#[test]
fn a_download_by_ipv6_follows_routes_and_rules() -> Result<()> {
    check_changes(Family::V6)
}

fn check_changes(family: Family) -> Result<()> {
    let mut network = Network::with_far_router(&format!("routes-{family:?}"), Arms::Two, MTU)?;
    network.interfaces = &["eth0", "eth2", "eth1"];
    let far = network.far.clone().context("it has one")?;
    add_second_link(&network, &far)?;
    File::create(network.lab.directory().join("endless"))?.set_len(SIZE)?;
    let _web1 = Nginx::start(&network.web1, "web1", network.lab.directory())?;
    let vip = VIP.port(family, 80);
    let www = Service::new("www", Protocol::Tcp, vip).backend("web1", WEB1.port(family, 80));
    let _balancer = Balancer::serve(&network, &services(&[www]))?;

    let balancer = |words: &str| network.balancer.ip(&format!("{} {words}", option(family)));
    let mut download = Download::begin(&network.client, vip, "/endless")?;
    let (client, vip) = (CLIENT.of(family), VIP.of(family));
    let ways = [(FAR.of(family), "eth1"), (OTHER_FAR.of(family), "eth2")];
    expect_at(&far, "eth1", &mut download)?;
    for (gateway, interface) in [ways[1], ways[0], ways[1]] {
        balancer(&format!("route replace {client} via {gateway}"))?;
        expect_at(&far, interface, &mut download).with_context(|| format!("via {gateway}"))?;
    }
    // The rule is for replies alone: as packets of the VIP they leave, and nothing else does.
    balancer(&format!("route add {client} via {} table 100", FAR.of(family)))?;
    balancer(&format!("rule add from {vip} lookup 100"))?;
    expect_at(&far, "eth1", &mut download).context("by a rule")?;
    balancer(&format!("rule del from {vip} lookup 100"))?;
    expect_at(&far, "eth2", &mut download).context("without the rule")
}

fn add_second_link(network: &Network, far: &Namespace) -> Result<()> {
    veth(far, "eth2", &network.balancer, "eth2")?;
    network.lab.pass_xdp(far, "eth2")?;
    add_addresses(far, "eth2", OTHER_FAR)?;
    add_addresses(&network.balancer, "eth2", OTHER_NEAR)
}

/// Soon all of the download comes by this interface.
fn expect_at(far: &Namespace, interface: &str, download: &mut Download) -> Result<()> {
    let mut failure = None;
    wait_until(EVENTUALLY, &format!("the download to come by {interface}"), || {
        match comes_by(far, interface, download) {
            Ok(comes) => comes,
            Err(error) => {
                failure = Some(error);
                true
            }
        }
    })?;
    failure.map_or(Ok(()), Err)
}

fn comes_by(far: &Namespace, interface: &str, download: &mut Download) -> Result<bool> {
    let other = if interface == "eth1" { "eth2" } else { "eth1" };
    let before = [received(far, interface)?, received(far, other)?];
    download.read_into(&mut io::sink(), PIECE)?;
    let came = [received(far, interface)? - before[0], received(far, other)? - before[1]];
    Ok(came[0] > PIECE / 2 && came[1] < PIECE / 1000)
}

/// Bytes.
fn received(far: &Namespace, interface: &str) -> Result<u64> {
    let links: Vec<Link> = serde_json::from_str(&far.ip(&format!("-s -j link show dev {interface}"))?)?;
    let link = links.first().context("no link")?;
    Ok(link.stats64.rx.bytes)
}

#[derive(Deserialize)]
struct Link {
    stats64: Statistics,
}

#[derive(Deserialize)]
struct Statistics {
    rx: Traffic,
}

#[derive(Deserialize)]
struct Traffic {
    bytes: u64,
}

fn option(family: Family) -> &'static str {
    if family == Family::V4 { "-4" } else { "-6" }
}
