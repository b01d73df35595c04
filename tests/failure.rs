//! Backends that die, move and return, and services without any.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::wait_for;

use crate::support::EVENTUALLY;
use crate::support::balancer::Balancer;
use crate::support::config::all_kinds;
use crate::support::conversation::{KINDS, Protocol, ask, connect};
use crate::support::echo::{Echo, start_pair};
use crate::support::network::{Arms, BACKEND_PORT, Family, Network, VIP, VIP_PORT};

/// Enough that, with two backends, none is left out by chance.
const FLOWS: usize = 20;
/// The shortest there is.
const TRANSITION: &str = "transition = \"1s\"";

#[test]
fn a_silent_host_is_left_out_until_it_returns() -> Result<()> {
    let network = Network::new("failure-silent", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[TRANSITION]))?;
    expect_backends(&network, &["web1", "web2"])?;
    network.unplug("web1")?;
    balancer.wait_until_down("web1")?;
    expect_backends(&network, &["web2"])?;
    network.plug_in("web1")?;
    balancer.wait_until_up("web1")?;
    expect_backends(&network, &["web1", "web2"])
}

#[test]
fn a_killed_server_is_left_out_until_it_returns() -> Result<()> {
    let network = Network::new("failure-killed", Arms::One)?;
    let [web1, _web2] = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[TRANSITION]))?;
    expect_backends(&network, &["web1", "web2"])?;
    drop(web1);
    balancer.wait_until_down("web1")?;
    expect_backends(&network, &["web2"])?;
    let _web1 = Echo::start(&network.web1, "web1", BACKEND_PORT)?;
    balancer.wait_until_up("web1")?;
    expect_backends(&network, &["web1", "web2"])
}

#[test]
fn a_killed_udp_server_gets_no_new_flows() -> Result<()> {
    let network = Network::new("failure-killed-udp", Arms::Two)?;
    let [web1, _web2] = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    drop(web1);
    balancer.wait_until_down("web1")?;
    for family in Family::BOTH {
        let served = serve_flows(&network, family, Protocol::Udp).context("during the transition")?;
        ensure!(served.iter().eq(["web2"]), "{family:?}: new flows went to {served:?}");
    }
    Ok(())
}

#[test]
fn a_changed_mac_is_followed() -> Result<()> {
    let network = Network::new("failure-mac", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    // A host that replaces another says so at once.
    network.web1.set_sysctl("net.ipv4.conf.eth0.arp_notify", "1")?;
    network.web1.set_sysctl("net.ipv6.conf.eth0.ndisc_notify", "1")?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[TRANSITION]))?;
    let new = "02:00:00:00:be:ef";
    network.web1.ip(&format!("link set eth0 address {new}"))?;
    balancer.wait_until("the new MAC to be the next hop", |status| {
        let mut backends = status.services.iter().flat_map(|service| &service.backends);
        backends.all(|backend| {
            let next_hop = backend.next_hop.as_deref().unwrap_or_default();
            backend.name != "web1" || next_hop.contains(new)
        })
    })?;
    balancer.wait_until_serving()?;
    expect_backends(&network, &["web1", "web2"])
}

#[test]
fn with_all_down_a_service_fails_open() -> Result<()> {
    let network = Network::new("failure-open", Arms::Two)?;
    let echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[TRANSITION, "when_empty = \"fail-open\""]))?;
    drop(echoes);
    balancer.wait_until("every backend to be measured down", |status| {
        status
            .services
            .iter()
            .flat_map(|service| &service.backends)
            .all(|backend| backend.health.starts_with("down"))
    })?;
    for family in Family::BOTH {
        let refused = connect(&network.client, VIP.port(family, VIP_PORT), Duration::from_secs(2))?;
        let kind = refused.err().map(|error| error.kind());
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{family:?}: no backend refused, but: {kind:?}");
    }
    let _echoes = start_pair(&network)?;
    balancer.wait_until_serving()?;
    expect_backends(&network, &["web1", "web2"])
}

#[test]
fn with_all_down_a_service_refuses_if_told_to() -> Result<()> {
    let network = Network::new("failure-refuse", Arms::Two)?;
    let echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[TRANSITION, "when_empty = \"refuse\""]))?;
    drop(echoes);
    for backend in ["web1", "web2"] {
        balancer.wait_until_down(backend)?;
    }
    for family in Family::BOTH {
        let before = balancer.counted("no_backend")?;
        let refused = connect(&network.client, VIP.port(family, VIP_PORT), Duration::from_millis(500))?;
        ensure!(refused.is_err(), "{family:?}: somebody answered");
        ensure!(balancer.counted("no_backend")? > before, "{family:?}: the packet is not counted");
    }
    let _echoes = start_pair(&network)?;
    balancer.wait_until_serving()?;
    expect_backends(&network, &["web1", "web2"])
}

/// New flows of every kind must be answered, all of them, by exactly these backends. As nothing shows where a
/// UDP flow begins, those follow to a backend that returned only when the transition is over.
fn expect_backends(network: &Network, expected: &[&str]) -> Result<()> {
    for (family, protocol) in KINDS {
        let serve = || serve_flows(network, family, protocol);
        let mut served = serve().with_context(|| format!("expecting {expected:?}"))?;
        if protocol == Protocol::Udp && served.len() < expected.len() {
            served = wait_for(EVENTUALLY, "UDP flows to all backends", || {
                serve().ok().filter(|served| served.len() == expected.len())
            })?;
        }
        ensure!(
            served.iter().eq(expected),
            "{protocol:?} over {family:?} went to {served:?}, not {expected:?}"
        );
    }
    Ok(())
}

fn serve_flows(network: &Network, family: Family, protocol: Protocol) -> Result<BTreeSet<String>> {
    (0..FLOWS).map(|_| ask(&network.client, protocol, VIP.port(family, VIP_PORT))).collect()
}
