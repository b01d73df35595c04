//! With one arm the kernel sees packets leave where they came in, and would tell backends of a shorter way:
//! one that goes past the balancer, on which replies keep the backend's address.

use anyhow::{Context, Result, ensure};
use lab::wait_until;

use crate::support::EVENTUALLY;
use crate::support::balancer::Balancer;
use crate::support::config::all_kinds;
use crate::support::conversation::{Protocol, ask};
use crate::support::echo::{Echo, start_pair};
use crate::support::frames::is_redirect;
use crate::support::network::{Arms, CLIENT, Family, Network, VIP, VIP_PORT};
use crate::support::wire::Wire;

const CLIENTS_PORT: u16 = 9000;
const BALANCER_LINK_LOCAL: &str = "fe80::1";
const ROUTER_LINK_LOCAL: &str = "fe80::254";

#[test]
fn no_redirect_teaches_backends_a_way_past_the_balancer() -> Result<()> {
    check_redirects("one-arm-redirects-v4", Family::V4)
}

#[test]
fn no_ipv6_redirect_teaches_backends_a_way_past_the_balancer() -> Result<()> {
    check_redirects("one-arm-redirects-v6", Family::V6)
}

fn check_redirects(name: &str, family: Family) -> Result<()> {
    check_that_a_bare_router_redirects(&one_arm(&format!("{name}-bare"), family)?, family)?;

    let network = one_arm(name, family)?;
    let _echoes = start_pair(&network)?;
    let _outside = Echo::start(&network.client, "outside", CLIENTS_PORT)?;
    let wire = Wire::open(&network.web1, "eth0")?;
    let _balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    for _ in 0..5 {
        call_outside(&network, family)?;
        ensure!(!wire.received()?.iter().any(|frame| is_redirect(frame)), "the balancer redirects a backend");
        check_service(&network, family).context("after a call from a backend")?;
    }
    Ok(())
}

/// Without the balancer it happens: else all this would prove nothing. In a network of its own, because Linux
/// sends few redirects.
fn check_that_a_bare_router_redirects(network: &Network, family: Family) -> Result<()> {
    network.balancer.enable_forwarding()?;
    let _outside = Echo::start(&network.client, "outside", CLIENTS_PORT)?;
    let wire = Wire::open(&network.web1, "eth0")?;
    wait_until(EVENTUALLY, "a redirect to the backend", || {
        call_outside(network, family).is_ok()
            && wire.received().is_ok_and(|frames| frames.iter().any(|frame| is_redirect(frame)))
    })
}

fn one_arm(name: &str, family: Family) -> Result<Network> {
    let network = Network::new(name, Arms::One)?;
    if family == Family::V6 {
        use_link_local_gateways(&network)?;
    }
    Ok(network)
}

/// A call of the backend's own, to where the clients are.
fn call_outside(network: &Network, family: Family) -> Result<()> {
    ask(&network.web1, Protocol::Tcp, CLIENT.port(family, CLIENTS_PORT)).map(drop)
}

fn check_service(network: &Network, family: Family) -> Result<()> {
    for protocol in Protocol::BOTH {
        for _ in 0..10 {
            ask(&network.client, protocol, VIP.port(family, VIP_PORT))?;
        }
    }
    Ok(())
}

/// IPv6 redirects go between routers and hosts that know each other by link-local addresses
/// (RFC 4861 section 8), as they do where routes come from router advertisements.
fn use_link_local_gateways(network: &Network) -> Result<()> {
    let router = network.router.as_ref().context("a one-arm network has a router")?;
    router.add_address("eth1", &format!("{ROUTER_LINK_LOCAL}/64"))?;
    // Redirects come from a router's first link-local address; hosts believe them only from their gateway.
    network.balancer.ip("-6 address flush dev eth0 scope link")?;
    network.balancer.add_address("eth0", &format!("{BALANCER_LINK_LOCAL}/64"))?;
    network.balancer.ip(&format!("-6 route replace default via {ROUTER_LINK_LOCAL} dev eth0"))?;
    for backend in [&network.web1, &network.web2] {
        backend.ip(&format!("-6 route replace default via {BALANCER_LINK_LOCAL} dev eth0"))?;
    }
    Ok(())
}
