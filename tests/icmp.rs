//! ICMP errors about flows of a service reach the end they are meant for.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};

use crate::support::SOON;
use crate::support::balancer::Balancer;
use crate::support::config::{Service, all_kinds, services};
use crate::support::conversation::{Conversation, Protocol};
use crate::support::echo::Echo;
use crate::support::frames::check_checksums;
use crate::support::http::Download;
use crate::support::network::{Arms, BACKEND_PORT, CLIENT, Family, Network, VIP, VIP_PORT, WEB1, WEB2};
use crate::support::nginx::Nginx;
use crate::support::wire::Wire;

/// Between the least that IPv6 allows and what the backends send.
const NARROW_MTU: &str = "1400";

#[test]
fn port_unreachable_reaches_the_client_two_arm() -> Result<()> {
    check_unreachable("icmp-unreachable-two", Arms::Two)
}

#[test]
fn port_unreachable_reaches_the_client_one_arm() -> Result<()> {
    check_unreachable("icmp-unreachable-one", Arms::One)
}

#[test]
fn too_big_reaches_the_backend() -> Result<()> {
    let network = Network::new("icmp-too-big", Arms::One)?;
    let router = network.router.as_ref().context("a one-arm network has a router")?;
    router.ip(&format!("link set eth0 mtu {NARROW_MTU}"))?;
    let file = vec![0x5a; 4 << 20];
    fs::write(network.lab.directory().join("big"), &file)?;
    let _web1 = Nginx::start(&network.web1, "web1", network.lab.directory())?;
    let _web2 = Nginx::start(&network.web2, "web2", network.lab.directory())?;
    let www = Family::BOTH.map(|family| {
        Service::new(&format!("www-{family:?}"), Protocol::Tcp, VIP.port(family, 80))
            .backend("web1", WEB1.port(family, 80))
            .backend("web2", WEB2.port(family, 80))
    });
    let _balancer = Balancer::serve(&network, &services(&www))?;
    for family in Family::BOTH {
        let download = Download::begin(&network.client, VIP.port(family, 80), "/big")?;
        let (right, wrong) = match download.served_by.as_str() {
            "web1" => (&network.web1, &network.web2),
            _ => (&network.web2, &network.web1),
        };
        let wire = Wire::open(right, "eth0")?;
        ensure!(download.finish()? == file, "the download differs from the file");
        check_checksums(&wire.received()?)?;
        let learned = format!("mtu {NARROW_MTU}");
        let route = format!("route get {}", CLIENT.of(family));
        ensure!(right.ip(&route)?.contains(&learned), "{} does not know the MTU", right.name());
        ensure!(!wrong.ip(&route)?.contains(&learned), "{} got another's ICMP error", wrong.name());
    }
    Ok(())
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
