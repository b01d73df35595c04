//! Netlink that fails: the daemon says so, looks again, and loses nothing.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::support::EVENTUALLY;
use crate::support::balancer::Balancer;
use crate::support::config::all_kinds;
use crate::support::conversation::{Conversation, KINDS, Protocol, expect_newcomers_at};
use crate::support::echo::start_pair;
use crate::support::network::{Arms, Family, Network, VIP, VIP_PORT};

/// Of what the daemon receives, nearly all by netlink, one in so many fails; enough for the start and for a new look in between.
const WHEN: &str = "when=300+150";
const FAILURES: usize = 3;

#[test]
fn announcements_that_are_lost() -> Result<()> {
    expect_nothing_lost("netlink-full", "ENOBUFS", "netlink socket buffer full")
}

#[test]
fn a_connection_that_is_lost() -> Result<()> {
    expect_nothing_lost("netlink-lost", "EIO", "the network is not followed")
}

/// Has netlink fail with this error, of which the daemon says this, while the network changes.
fn expect_nothing_lost(prefix: &str, error: &str, words: &str) -> Result<()> {
    let network = Network::new(prefix, Arms::Two)?;
    let _echoes = start_pair(&network)?;
    // The daemon itself is the process that is started; what traces it is its grandchild.
    let failure = format!("inject=recvfrom:error={error}:{WHEN}");
    let traced = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=recvfrom", "-e", &failure];
    let interfaces = network.interfaces;
    let balancer =
        Balancer::launch(&traced, &network.balancer, interfaces, &all_kinds(VIP, &[]), &["--sysctl"])?
            .answering()?;
    balancer.wait_until_serving()?;
    let open = |(family, protocol): &(Family, Protocol)| {
        Conversation::open(&network.client, *protocol, VIP.port(*family, VIP_PORT))
    };
    let mut flows = KINDS.iter().map(open).collect::<Result<Vec<_>>>()?;

    let end = Instant::now() + EVENTUALLY;
    while balancer.process.output()?.matches(words).count() < FAILURES {
        ensure!(Instant::now() < end, "netlink did not fail");
        network.balancer.ip("address add 198.51.100.1/32 dev eth1")?;
        network.balancer.ip("address del 198.51.100.1/32 dev eth1")?;
        flows.iter_mut().try_for_each(|flow| flow.ask().map(drop))?;
    }

    // What has changed meanwhile is seen.
    network.web1.ip("link set eth0 address 02:00:00:00:77:01")?;
    network.balancer.ip("neighbour flush dev eth1")?;
    let seen = |hop: &Option<String>| hop.as_ref().is_some_and(|hop| hop.starts_with("02:00:00:00:77:01"));
    balancer.wait_until("the new MAC of web1", |status| {
        status.backends("web1").all(|backend| seen(&backend.next_hop))
    })?;
    for family in Family::BOTH {
        expect_newcomers_at(&network.client, Protocol::Tcp, VIP.port(family, VIP_PORT), &["web1", "web2"])?;
    }
    flows.iter_mut().try_for_each(|flow| flow.ask().map(drop)).context("a flow from before")
}
