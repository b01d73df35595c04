//! What is particular to mode `snat`: its sources and their ports, whom they are shared with, and what becomes of flows
//! when their backend leaves. That it does what every mode does is told by the other stories.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use anyhow::{Context, Result, ensure};
use lab::wait_until;

use crate::support::balancer::{Balancer, Files};
use crate::support::config::{Service, service_name, services, tcp_before};
use crate::support::conversation::{Conversation, KINDS, Protocol, ask_once, connect, open_with};
use crate::support::network::{Arms, BACKEND_GATEWAY, BACKEND_PORT, Dual, Family, VIP, VIP_PORT, WEB1, dual};
use crate::support::site::{Mode, Site};
use crate::support::{EVENTUALLY, SOON};

const SNAT: &str = "mode = \"snat\"";
/// An address on the backends' side that no host has.
const NOBODY: Dual = dual([10, 0, 1, 2], [0xfd00, 0xb], 2);
/// Enough that, with two sources, none is left out by chance.
const FLOWS: usize = 40;
/// As many ports as a prime, so that all of them are used.
const PORTS: RangeInclusive<u16> = 30_000..=30_006;

#[test]
fn all_sources_are_used() -> Result<()> {
    let site = Site::new("snat-sources", Arms::Two, Mode::Snat)?;
    let _echoes = site.start_echoes()?;
    let sources: BTreeSet<_> =
        Family::BOTH.iter().flat_map(|&family| [BACKEND_GATEWAY.of(family), NOBODY.of(family)]).collect();
    let list: Vec<_> = sources.iter().map(IpAddr::to_string).collect();
    let _balancer = site.serve(&site.kinds(&[&format!("snat_source = {list:?}"), "announce = true"]))?;
    for (family, protocol) in KINDS {
        let seen = (0..FLOWS).map(|_| {
            let (answer, _) = ask_once(&site.network.client, protocol, VIP.port(family, VIP_PORT))?;
            Ok(answer.client.ip())
        });
        let seen: BTreeSet<_> = seen.collect::<Result<_>>()?;
        let expected: BTreeSet<_> =
            sources.iter().copied().filter(|source| source.is_ipv4() == (family == Family::V4)).collect();
        ensure!(seen == expected, "{protocol:?} over {family:?} comes from {seen:?}");
    }
    Ok(())
}

#[test]
fn when_ports_run_out_new_connections_are_refused() -> Result<()> {
    let site = Site::new("snat-ports", Arms::Two, Mode::Snat)?;
    let _echoes = site.start_echoes()?;
    let client = &site.network.client;
    let balancer = site.serve(&with_ports(PORTS, &tcp_before(&[(1, 1)], &[SNAT])))?;
    for family in Family::BOTH {
        let vip = VIP.port(family, VIP_PORT);
        let (mut flows, used) = use_ports(&site, Protocol::Tcp, vip, PORTS.count())?;
        ensure!(used == PORTS.collect(), "{family:?}: the ports that are used are {used:?}");

        let before = balancer.counted("no_port")?;
        let refusal = connect(client, vip, SOON)?.err().map(|error| error.kind());
        ensure!(refusal == Some(ErrorKind::ConnectionRefused), "{family:?}: not refused, but: {refusal:?}");
        ensure!(balancer.counted("no_port")? > before, "{family:?}: it is not counted");
        flows.iter_mut().try_for_each(|flow| flow.expect_answer_from("web1"))?;

        drop(flows);
        wait_until(EVENTUALLY, "a port to be free again", || {
            connect(client, vip, SOON).is_ok_and(|connected| connected.is_ok())
        })?;
    }
    Ok(())
}

/// It could not be told whose an answer is.
#[test]
fn a_port_that_the_balancer_talks_from_is_left_to_it() -> Result<()> {
    let site = Site::new("snat-host", Arms::Two, Mode::Snat)?;
    let _echoes = site.start_echoes()?;
    let before_web1 = services(&KINDS.map(|(family, protocol)| {
        Service::new(&service_name(family, protocol), protocol, VIP.port(family, VIP_PORT))
            .key(SNAT)
            .backend("web1", WEB1.port(family, BACKEND_PORT))
    }));
    let _balancer = site.serve(&with_ports(PORTS, &before_web1))?;
    let (own, others) = (*PORTS.start(), *PORTS.start() + 1..=*PORTS.end());
    for (family, protocol) in KINDS {
        let (from, web1) = (BACKEND_GATEWAY.port(family, own), WEB1.port(family, BACKEND_PORT));
        let mut own = Conversation::open_from(&site.network.balancer, from, protocol, web1)?;
        own.expect_answer_from("web1")?;
        let vip = VIP.port(family, VIP_PORT);
        let (_flows, used) = use_ports(&site, protocol, vip, others.clone().count())?;
        ensure!(used == others.clone().collect(), "{protocol:?} over {family:?} comes from {used:?}");
        own.expect_answer_from("web1").with_context(|| format!("{protocol:?} over {family:?}"))?;
    }
    Ok(())
}

#[test]
fn ports_that_sockets_get_are_refused() -> Result<()> {
    let site = Site::new("snat-shared", Arms::Two, Mode::Snat)?;
    let balancer = &site.network.balancer;
    let files = Files::write(balancer, &with_ports(40_000..=40_006, &site.kinds(&[])))?;
    let ending = files.attach_in_vain(balancer, site.network.interfaces)?;
    ending.expect(1, &["40000-40006", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports"])
}

#[test]
fn a_drain_tells_how_many_flows_are_left() -> Result<()> {
    let site = Site::new("snat-drain", Arms::One, Mode::Snat)?;
    let _echoes = site.start_echoes()?;
    let balancer = site.serve(&site.kinds(&["transition = \"1s\""]))?;
    for family in Family::BOTH {
        let service = service_name(family, Protocol::Tcp);
        let vip = VIP.port(family, VIP_PORT);
        let mut flow = open_with(&site.network.client, Protocol::Tcp, vip, "web1")?;
        balancer.backend(&["drain", &service, "web1"])?.expect(0, &["web1"])?;
        wait_for_flows(&balancer, &service, 1)?;
        flow.expect_answer_from("web1")?;
        drop(flow);
        wait_for_flows(&balancer, &service, 0)?;
    }
    Ok(())
}

/// No other backend knows them, so their clients are told at once.
#[test]
fn flows_of_a_disabled_backend_are_reset() -> Result<()> {
    let site = Site::new("snat-disable", Arms::Two, Mode::Snat)?;
    let _echoes = site.start_echoes()?;
    let balancer = site.serve(&site.kinds(&[]))?;
    for family in Family::BOTH {
        let vip = VIP.port(family, VIP_PORT);
        let mut flow = open_with(&site.network.client, Protocol::Tcp, vip, "web1")?;
        let before = balancer.counted("unmapped")?;
        balancer.backend(&["disable", &service_name(family, Protocol::Tcp), "web1"])?.expect(0, &["web1"])?;
        flow.expect_reset().with_context(|| format!("{family:?}"))?;
        ensure!(balancer.counted("unmapped")? > before, "{family:?}: it is not counted");
    }
    Ok(())
}

/// These services, with these ports for their sources.
fn with_ports(ports: RangeInclusive<u16>, services: &str) -> String {
    // What is written first still belongs to `[daemon]`.
    format!("snat_ports = \"{}-{}\"\n{services}", ports.start(), ports.end())
}

/// Opens so many flows, and tells the ports that they come from.
fn use_ports(
    site: &Site,
    protocol: Protocol,
    server: SocketAddr,
    count: usize,
) -> Result<(Vec<Conversation>, BTreeSet<u16>)> {
    let mut flows = Vec::new();
    let mut used = BTreeSet::new();
    for number in 0..count {
        let mut flow = Conversation::open(&site.network.client, protocol, server)?;
        let answer = flow.ask().with_context(|| format!("{protocol:?} to {server}, flow {number}"))?;
        used.insert(answer.client.port());
        flows.push(flow);
    }
    Ok((flows, used))
}

fn wait_for_flows(balancer: &Balancer, service: &str, count: u64) -> Result<()> {
    balancer.wait_until(&format!("{count} flows of web1 to be seen"), |status| {
        status.drain(service, "web1").is_some_and(|drain| drain.seen == Some(count))
    })
}
