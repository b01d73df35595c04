//! What only tunnels can do: reach backends behind routers, and show who is on the way that flows differ.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use lab::veth;

use crate::support::balancer::Balancer;
use crate::support::config::{Service, service_name, services};
use crate::support::conversation::{KINDS, Protocol, ask};
use crate::support::decap::{Decap, vips};
use crate::support::echo::Echo;
use crate::support::network::{
    Arms, BACKEND_GATEWAY, Dual, Family, Network, VIP, VIP_PORT, add_addresses, add_default_routes, dual,
};
use crate::support::site::{Mode, Site};
use crate::support::wire::Wire;

/// A backend in a network of its own, and the router there.
const REMOTE: Dual = dual([10, 0, 3, 2], [0xfd00, 0xd], 2);
const REMOTE_GATEWAY: Dual = dual([10, 0, 3, 1], [0xfd00, 0xd], 1);
/// Not the usual one.
const GUE_PORT: &str = "9999";
/// As many are with each backend that several of them differ in their outer headers.
const FLOWS: usize = 20;
/// The first of the ephemeral ports (RFC 6335, 6).
const EPHEMERAL: u16 = 0xc000;

#[test]
fn a_backend_behind_a_router() -> Result<()> {
    let network = Network::new("tunnel-remote", Arms::One)?;
    let router = network.router.as_ref().context("a one-arm network has a router")?;
    let remote = network.lab.namespace("remote")?;
    veth(&remote, "eth0", router, "eth2")?;
    add_addresses(&remote, "eth0", REMOTE)?;
    add_addresses(router, "eth2", REMOTE_GATEWAY)?;
    add_default_routes(&remote, REMOTE_GATEWAY)?;
    let _decap = Decap::start_on(&remote, &vips(), &["--gue-port", GUE_PORT])?;
    let addresses = Family::BOTH.into_iter().flat_map(|family| [VIP.of(family), REMOTE.of(family)]);
    let start = |address| Echo::start_at(&remote, "remote", (address, VIP_PORT).into());
    let _echoes = addresses.map(start).collect::<Result<Vec<_>>>()?;
    for outer in Family::BOTH {
        let _balancer = Balancer::serve(&network, &to_remote(outer))?;
        for (family, protocol) in KINDS {
            ask(&network.client, protocol, VIP.port(family, VIP_PORT))
                .with_context(|| format!("{protocol:?} over {family:?}, by {outer:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn outer_sources_differ_by_ipv4() -> Result<()> {
    check_sources(
        "tunnel-sources-v4",
        Family::V4,
        |source| matches!(source, IpAddr::V4(source) if source.octets().starts_with(&[172, 16])),
    )
}

#[test]
fn outer_sources_differ_by_ipv6() -> Result<()> {
    check_sources(
        "tunnel-sources-v6",
        Family::V6,
        |source| matches!(source, IpAddr::V6(source) if source.segments().starts_with(&[0xfd00, 5, 0, 0])),
    )
}

#[test]
fn outer_ports_differ_by_ipv4() -> Result<()> {
    check_ports("tunnel-ports-v4", Family::V4)
}

#[test]
fn outer_ports_differ_by_ipv6() -> Result<()> {
    check_ports("tunnel-ports-v6", Family::V6)
}

fn check_sources(name: &str, outer: Family, is_right: impl Fn(IpAddr) -> bool) -> Result<()> {
    let prefix = if outer == Family::V4 { "172.16.0.0/16" } else { "fd00:5::/64" };
    let key = format!("outer_source = [\"{prefix}\"]");
    for source in differing(name, Arms::One, Mode::Ipip(outer), &[&key])?.values() {
        ensure!(is_right(source.ip()), "{source} is not of {prefix}");
    }
    Ok(())
}

fn check_ports(name: &str, outer: Family) -> Result<()> {
    for source in differing(name, Arms::Two, Mode::Gue(outer), &[])?.values() {
        ensure!(source.ip() == BACKEND_GATEWAY.of(outer), "{source} is not the balancer's own address");
        ensure!(source.port() >= EPHEMERAL, "{source} is no ephemeral port");
    }
    Ok(())
}

/// The outer source of each flow, which must be the same for all of its packets and not for all flows.
fn differing(name: &str, arms: Arms, mode: Mode, keys: &[&str]) -> Result<BTreeMap<SocketAddr, SocketAddr>> {
    let site = Site::new(name, arms, mode)?;
    let _echoes = site.start_echoes()?;
    let _balancer = site.serve(&site.kinds(keys))?;
    let wire = Wire::open(&site.network.switch, "balancer")?;
    let mut sources = BTreeMap::new();
    for family in Family::BOTH {
        for _ in 0..FLOWS {
            ask(&site.network.client, Protocol::Tcp, VIP.port(family, VIP_PORT))?;
        }
        let mut differ = Vec::new();
        for (flow, source) in wire.received()?.iter().filter_map(|frame| read(frame)) {
            let first = *sources.entry(flow).or_insert(source);
            ensure!(first == source, "packets of one flow come from {first} and from {source}");
            differ.push(source);
        }
        differ.sort_unstable();
        differ.dedup();
        ensure!(
            differ.len() > FLOWS / 2,
            "{family:?}: {FLOWS} flows have only {} outer sources",
            differ.len()
        );
    }
    Ok(sources)
}

/// The client that a packet inside another is from, and where the other is from; its port is 0 where it has none.
fn read(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let outer = PacketHeaders::from_ethernet_slice(frame).ok()?;
    let inner = PacketHeaders::from_ip_slice(outer.payload.slice()).ok()?;
    Some((source(&inner)?, source(&outer)?))
}

fn source(headers: &PacketHeaders<'_>) -> Option<SocketAddr> {
    let address = match headers.net.as_ref()? {
        NetHeaders::Ipv4(ip, _) => IpAddr::from(ip.source),
        NetHeaders::Ipv6(ip, _) => IpAddr::from(ip.source),
        NetHeaders::Arp(_) => return None,
    };
    let port = match &headers.transport {
        Some(TransportHeader::Tcp(tcp)) => tcp.source_port,
        Some(TransportHeader::Udp(udp)) => udp.source_port,
        _ => 0,
    };
    Some(SocketAddr::new(address, port))
}

/// The usual services, with that backend only.
fn to_remote(outer: Family) -> String {
    let gue_port = format!("gue_port = {GUE_PORT}");
    services(&KINDS.map(|(family, protocol)| {
        let service = Service::new(&service_name(family, protocol), protocol, VIP.port(family, VIP_PORT));
        let keys = ["mode = \"tunnel\"", "encapsulation = \"gue\"", &gue_port];
        let service = keys.iter().fold(service, |service, key| service.key(key));
        service.backend("remote", REMOTE.port(outer, VIP_PORT))
    }))
}
