//! ICMP errors about flows of a service reach the end they are meant for.

use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};

use crate::support::SOON;
use crate::support::balancer::Balancer;
use crate::support::config::all_kinds;
use crate::support::conversation::{Conversation, Protocol};
use crate::support::echo::Echo;
use crate::support::frames::check_checksums;
use crate::support::network::{Arms, BACKEND_PORT, Family, Network, VIP, VIP_PORT};
use crate::support::wire::Wire;

#[test]
fn port_unreachable_reaches_the_client_two_arm() -> Result<()> {
    check_unreachable("icmp-unreachable-two", Arms::Two)
}

#[test]
fn port_unreachable_reaches_the_client_one_arm() -> Result<()> {
    check_unreachable("icmp-unreachable-one", Arms::One)
}

fn check_unreachable(name: &str, arms: Arms) -> Result<()> {
    let network = Network::new(name, arms)?;
    let _web1 = Echo::start_tcp_only(&network.web1, "web1", BACKEND_PORT)?;
    let _web2 = Echo::start_tcp_only(&network.web2, "web2", BACKEND_PORT)?;
    let _balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    let wire = Wire::open(&network.client, "eth0")?;
    for family in Family::BOTH {
        let server = VIP.port(family, VIP_PORT);
        let mut flow = Conversation::open(&network.client, Protocol::Udp, server)?;
        let error = flow.ask().err().context("a backend without the service answered")?;
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{family:?}: {error:#}, and no ICMP error");
    }
    let frames = wire.received()?;
    ensure!(!frames.is_empty(), "nothing arrived within {SOON:?}");
    check_checksums(&frames)
}
