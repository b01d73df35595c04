//! The worst case for a stateless reply: the VIP is the balancer's own address, rp_filter is strict, and
//! nobody knows the client's MAC yet, so that the kernel must finish what XDP began.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Namespace, wait_until};
use nix::sys::signal::Signal;

use crate::support::SOON;
use crate::support::balancer::Balancer;
use crate::support::config::all_kinds;
use crate::support::conversation::{KINDS, Protocol, ask, connect};
use crate::support::echo::start_pair;
use crate::support::network::{Arms, CLIENT, CLIENT_GATEWAY, Dual, Family, Network, VIP, VIP_PORT};
use crate::support::traces::Traces;

/// Less than the time after which a lost SYN-ACK is sent again.
const AT_ONCE: Duration = Duration::from_millis(900);

#[test]
fn reaches_a_client_nobody_knows() -> Result<()> {
    let network = strict_network("first-reply")?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    know_gateway(&network.client, CLIENT_GATEWAY, network.balancer.mac("eth0")?)?;
    for (family, protocol) in KINDS {
        forget_client(&network, family)?;
        let server = VIP.port(family, VIP_PORT);
        let first = match protocol {
            Protocol::Tcp => connect(&network.client, server, AT_ONCE)?.map(drop).map_err(Into::into),
            Protocol::Udp => ask(&network.client, protocol, server).map(drop),
        };
        first.with_context(|| format!("{protocol:?} over {family:?}"))?;
    }
    let handed = balancer.counted("handed_to_kernel")?;
    ensure!(handed >= 4, "four first replies needed the kernel, {handed} are counted");
    Ok(())
}

#[test]
fn sysctls_are_restored_after_ctrl_c() -> Result<()> {
    check_restored("sysctls-sigint", Signal::SIGINT)
}

#[test]
fn sysctls_are_restored_after_sigterm() -> Result<()> {
    check_restored("sysctls-sigterm", Signal::SIGTERM)
}

fn check_restored(name: &str, signal: Signal) -> Result<()> {
    let network = strict_network(name)?;
    let _echoes = start_pair(&network)?;
    let before = Traces::of(&network.balancer)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    // The kernel takes the larger of an interface's value and that of all; 2 is loose.
    let rp_filter = network.balancer.sysctl("net.ipv4.conf.eth1.rp_filter")?;
    ensure!(rp_filter == "2", "--sysctl left rp_filter strict: {rp_filter}");
    balancer.stop(signal)?;
    before.expect_no_change(&network.balancer)
}

/// A two-arm network whose balancer owns the VIP and filters strictly, as hardened systems do.
fn strict_network(name: &str) -> Result<Network> {
    let network = Network::new(name, Arms::Two)?;
    for interface in ["all", "default", "eth0", "eth1"] {
        network.balancer.set_sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "1")?;
    }
    network.balancer.add_address("eth0", &format!("{}/32", VIP.v4()))?;
    network.balancer.add_address("eth0", &format!("{}/128", VIP.v6()))?;
    Ok(network)
}

/// With its gateway's MAC set by hand the client never asks for it, and the balancer learns nothing.
fn know_gateway(client: &Namespace, gateway: Dual, mac: [u8; 6]) -> Result<()> {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    for family in Family::BOTH {
        let gateway = gateway.of(family);
        client.ip(&format!("neighbour replace {gateway} lladdr {mac} nud permanent dev eth0"))?;
    }
    Ok(())
}

fn forget_client(network: &Network, family: Family) -> Result<()> {
    let neighbour = format!("to {} dev eth0", CLIENT.of(family));
    // The last packets of an earlier flow may still make it known again.
    wait_until(SOON, "the balancer not to know the client", || {
        let flushed = network.balancer.ip(&format!("neighbour flush {neighbour}"));
        let known = flushed.and_then(|_| network.balancer.ip(&format!("neighbour show {neighbour}")));
        known.is_ok_and(|known| !known.contains("lladdr"))
    })
}
