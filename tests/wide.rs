//! Services of a range of ports, of all ports and of a prefix of VIPs: real connections to several of each, and one that
//! lives on while the range becomes another.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::balancer::Balancer;
use crate::support::config::{Service, service_name, services};
use crate::support::conversation::{Conversation, KINDS, Protocol, ask, connect};
use crate::support::decap::{Decap, vips};
use crate::support::echo::Echo;
use crate::support::network::{Arms, Family, Network, VIP, WEB1, WEB2};

/// Where health checks are answered.
const CHECKED: u16 = 7000;
const RANGE: &str = "5000-5010";
const WITHIN: [u16; 3] = [5000, 5005, 5010];
const WIDER: &str = "5000-5100";
const WITHIN_WIDER: u16 = 5050;
const OUTSIDE: u16 = 5011;
/// The addresses of the prefix that are asked for: the first, one amid and the last.
const ASKED: [u8; 3] = [0x50, 0x57, 0x5f];

#[test]
fn a_range_of_ports_in_mode_nat() -> Result<()> {
    let network = Network::new("wide-nat", Arms::Two)?;
    let _echoes = listen_anywhere(&network, &WITHIN)?;
    let balancer = Balancer::serve(&network, &wide("nat", RANGE, &vip))?;
    expect_answers(&network, &WITHIN)?;
    expect_nobody_outside(&network, &balancer)
}

#[test]
fn any_port_in_mode_nat() -> Result<()> {
    let network = Network::new("wide-any", Arms::One)?;
    let ports = [80, 5005, 60_000];
    let _echoes = listen_anywhere(&network, &ports)?;
    let _balancer = Balancer::serve(&network, &wide("nat", "*", &vip))?;
    expect_answers(&network, &ports)
}

#[test]
fn a_range_of_ports_in_mode_dsr() -> Result<()> {
    let network = Network::new("wide-dsr", Arms::Two)?;
    let _backends = Backends::with(&network, &vips(), &WITHIN, &["--dsr"])?;
    let balancer = Balancer::serve(&network, &wide("dsr", RANGE, &vip))?;
    expect_answers(&network, &WITHIN)?;
    expect_nobody_outside(&network, &balancer)
}

#[test]
fn any_port_in_mode_dsr() -> Result<()> {
    let network = Network::new("wide-any-dsr", Arms::Two)?;
    let ports = [80, 5005, 60_000];
    let _backends = Backends::with(&network, &vips(), &ports, &["--dsr"])?;
    let _balancer = Balancer::serve(&network, &wide("dsr", "*", &vip))?;
    expect_answers(&network, &ports)
}

#[test]
fn a_prefix_of_vips_in_mode_dsr() -> Result<()> {
    check_prefix("wide-prefix", "dsr", &["--dsr"])
}

#[test]
fn a_prefix_of_vips_in_mode_tunnel() -> Result<()> {
    check_prefix("wide-tunnel", "tunnel", &[])
}

/// The service keeps its table and its backends, so a flow that lives goes on, and the ports that are new are served.
#[test]
fn a_range_becomes_another_while_a_connection_lives() -> Result<()> {
    let network = Network::new("wide-reload", Arms::Two)?;
    let ports = [&WITHIN[..], &[WITHIN_WIDER]].concat();
    let _echoes = listen_anywhere(&network, &ports)?;
    let balancer = Balancer::serve(&network, &wide("nat", RANGE, &vip))?;
    let mut living = Vec::new();
    for (family, protocol) in KINDS {
        let mut conversation = Conversation::open(&network.client, protocol, VIP.port(family, WITHIN[1]))?;
        let backend = conversation.ask()?.backend;
        living.push((conversation, backend));
    }
    for ports in [WIDER, "*", RANGE] {
        balancer.reconfigure(&wide("nat", ports, &vip))?;
        for (conversation, backend) in &mut living {
            conversation.expect_answer_from(backend)?;
        }
        if ports != RANGE {
            expect_answers(&network, &[WITHIN_WIDER])?;
        }
    }
    expect_nobody_outside(&network, &balancer)
}

fn check_prefix(name: &str, mode: &str, options: &[&str]) -> Result<()> {
    let network = Network::new(name, Arms::Two)?;
    let asked: Vec<IpAddr> =
        Family::BOTH.into_iter().flat_map(|family| ASKED.map(|last| near(family, last))).collect();
    let _backends = Backends::with(&network, &asked, &[80], options)?;
    let balancer = Balancer::serve(&network, &wide(mode, "80", &prefix))?;
    for address in asked {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let backend = ask(&network.client, protocol, (address, 80).into())?;
            ensure!(["web1", "web2"].contains(&backend.as_str()), "{backend} answered for {address}");
        }
    }
    ensure!(balancer.counted("no_service")? == 0, "an address of the prefix is for no service");
    Ok(())
}

fn vip(family: Family) -> String {
    written(family, &VIP.of(family).to_string())
}

/// It has the VIP in it.
fn prefix(family: Family) -> String {
    let length = if family == Family::V4 { 28 } else { 124 };
    written(family, &format!("{}/{length}", near(family, ASKED[0])))
}

fn written(family: Family, vip: &str) -> String {
    if family == Family::V4 { vip.to_owned() } else { format!("[{vip}]") }
}

/// The VIP with another last byte.
fn near(family: Family, last: u8) -> IpAddr {
    match VIP.of(family) {
        IpAddr::V4(vip) => {
            let [a, b, c, _] = vip.octets();
            [a, b, c, last].into()
        }
        IpAddr::V6(vip) => {
            let mut octets = vip.octets();
            octets[15] = last;
            octets.into()
        }
    }
}

/// A service of every family and protocol at these ports of the VIPs, in a mode.
fn wide(mode: &str, ports: &str, vip: &dyn Fn(Family) -> String) -> String {
    let all = KINDS.map(|(family, protocol)| {
        let address = format!("{}:{ports}", vip(family));
        Service::new(&service_name(family, protocol), protocol, address)
            .key(&format!("mode = \"{mode}\""))
            .health(&["kind = \"tcp\"", &format!("port = {CHECKED}"), "interval = \"200ms\""])
            .backend("web1", WEB1.of(family))
            .backend("web2", WEB2.of(family))
    });
    services(&all)
}

/// Echo servers at these ports of all of the backends' addresses, and at the one that is checked.
fn listen_anywhere(network: &Network, ports: &[u16]) -> Result<Vec<Echo>> {
    let backends = [(&network.web1, "web1"), (&network.web2, "web2")];
    let all = backends.into_iter().flat_map(|backend| {
        ports.iter().chain([&CHECKED]).map(move |port| Echo::start(backend.0, backend.1, *port))
    });
    all.collect()
}

/// Backends that have the VIPs themselves, and answer past the balancer.
struct Backends {
    _echoes: Vec<Echo>,
    _decaps: Vec<Decap>,
}

impl Backends {
    /// With these VIPs, and echo servers at these ports of each.
    fn with(network: &Network, vips: &[IpAddr], ports: &[u16], options: &[&str]) -> Result<Self> {
        network.add_way_back()?;
        let mut decaps = Vec::new();
        let mut echoes = Vec::new();
        for (backend, name) in [(&network.web1, "web1"), (&network.web2, "web2")] {
            decaps.push(Decap::start_on(backend, vips, options)?);
            echoes.push(Echo::start_tcp_only(backend, name, CHECKED)?);
            for (vip, port) in vips.iter().flat_map(|vip| ports.iter().map(move |port| (*vip, *port))) {
                echoes.push(Echo::start_at(backend, name, (vip, port).into())?);
            }
        }
        Ok(Self { _echoes: echoes, _decaps: decaps })
    }
}

fn expect_answers(network: &Network, ports: &[u16]) -> Result<()> {
    for (family, protocol) in KINDS {
        for port in ports {
            let backend = ask(&network.client, protocol, VIP.port(family, *port))?;
            ensure!(["web1", "web2"].contains(&backend.as_str()), "{backend} answered at port {port}");
        }
    }
    Ok(())
}

/// What is for a port behind the range is for nobody.
fn expect_nobody_outside(network: &Network, balancer: &Balancer) -> Result<()> {
    for family in Family::BOTH {
        let answered = connect(&network.client, VIP.port(family, OUTSIDE), Duration::from_millis(300))?;
        ensure!(answered.is_err(), "somebody answers at port {OUTSIDE}");
    }
    ensure!(balancer.counted("no_service")? > 0, "what is for no service is not counted");
    Ok(())
}
