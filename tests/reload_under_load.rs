//! Reloads under load: a hundred in a row, one that adds a backend which is not up yet, and one that removes a backend
//! that is in use. Not one connection breaks, and none is refused.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::support::balancer::Balancer;
use crate::support::config::{Service, service_name};
use crate::support::conversation::{Protocol, expect_newcomers_at};
use crate::support::http::Download;
use crate::support::load::{self, Load, Servers};
use crate::support::network::{Arms, Dual, Family, Network, VIP, VIP_PORT, dual, web};

const RELOADS: usize = 100;
/// Everyone is heard once in so many reloads; the others come as fast as they are taken in.
const REST: usize = 5;
/// Moves end while the story goes on, and nobody is silent for as long.
const KEYS: [&str; 1] = ["transition = \"5s\""];
const ALL: [(u8, u16); 3] = [(1, 1), (2, 1), (3, 1)];
/// A service that comes and goes.
const GUEST: Dual = dual([203, 0, 113, 81], [0x2001, 0xdb8], 0x81);

/// Backends by number and weight, and those of the guest, if it is there.
type Configured = (&'static [(u8, u16)], &'static [(u8, u16)]);

/// Weights, backends and services that come and go, and all of them at once. Each follows the one before; the first the
/// last.
const ROUND: [Configured; 10] = [
    (&[(1, 5), (2, 1), (3, 1)], &[]),
    (&[(1, 5), (2, 1)], &[]),
    (&[(2, 1), (3, 2)], &[(1, 1)]),
    (&ALL, &[(1, 1), (2, 1)]),
    (&[(3, 1), (2, 0), (1, 9)], &[(2, 1)]),
    (&[(1, 1)], &[]),
    (&[(2, 1), (3, 1)], &[]),
    (&[(1, 1), (3, 7)], &[(1, 1), (3, 1)]),
    (&[(3, 1), (2, 1), (1, 1)], &[(3, 1)]),
    (&ALL, &[]),
];

#[test]
fn no_reload_breaks_a_connection() -> Result<()> {
    let network = Network::new("reload-load", Arms::Two)?;
    let mut servers = Servers::start(&network, 3)?;
    servers.add_host(&network, 4)?;
    fs::write(network.lab.directory().join("small"), "small")?;
    let balancer = Balancer::serve(&network, &load::configuration(&ALL, &KEYS))?;
    let load = Load::begin(&network.client, &servers)?;

    reload_again_and_again(&network, &balancer, &load)?;
    add_one_that_is_not_up(&network, &balancer, &load, &mut servers)?;
    remove_one_in_use(&network, &balancer, &load)?;

    load.end()?;
    for reason in ["not_remembered", "no_backend"] {
        ensure!(balancer.counted(reason)? == 0, "{reason} is counted");
    }
    Ok(())
}

fn reload_again_and_again(network: &Network, balancer: &Balancer, load: &Load) -> Result<()> {
    for (number, (backends, guest)) in (1..=RELOADS).zip(ROUND.iter().cycle()) {
        load.chapter(&format!("reload {number} of {RELOADS}"))?;
        balancer.reconfigure(&[load::configuration(backends, &KEYS), guest_before(guest)].concat())?;
        if number % REST == 0 {
            load.wait_for_answers()?;
        }
        if !guest.is_empty() {
            Download::begin(&network.client, GUEST.port(Family::V6, 80), "/small")?.finish()?;
        }
    }
    for number in 1..=3 {
        balancer.wait_until_up(&format!("web{number}"))?;
    }
    expect_newcomers(network, &["web1", "web2", "web3"])
}

fn add_one_that_is_not_up(
    network: &Network,
    balancer: &Balancer,
    load: &Load,
    servers: &mut Servers,
) -> Result<()> {
    load.chapter("a backend is added that is not up yet")?;
    balancer.reconfigure(&load::configuration(&[(1, 1), (2, 1), (3, 1), (4, 1)], &KEYS))?;
    balancer.wait_until("web4 to be found down", |status| {
        status.backends("web4").all(|backend| backend.health.starts_with("down"))
    })?;
    expect_newcomers(network, &["web1", "web2", "web3"])?;
    load.chapter("that backend comes up")?;
    servers.serve(4)?;
    balancer.wait_until_up("web4")?;
    expect_newcomers(network, &["web1", "web2", "web3", "web4"])?;
    load.wait_for_answers()
}

fn remove_one_in_use(network: &Network, balancer: &Balancer, load: &Load) -> Result<()> {
    load.chapter("a backend is removed that is in use")?;
    let vip = VIP.port(Family::V4, VIP_PORT);
    balancer.reconfigure(&load::configuration(&[(2, 1), (3, 1), (4, 1)], &KEYS))?;
    expect_newcomers(network, &["web2", "web3", "web4"])?;
    let service = service_name(Family::V4, Protocol::Tcp);
    // From here on nobody comes to it, but newcomers of before may still leave.
    let with_web1 = || load.crowd.count(vip, "web1");
    balancer
        .wait_until("the move from web1 to be over, and its flows to be seen", |status| {
            status
                .drain(&service, "web1")
                .is_some_and(|drain| drain.silent_for_seconds.is_none() && drain.seen == Some(with_web1()))
        })
        .with_context(|| format!("{} connections are with web1", with_web1()))?;
    ensure!(with_web1() > 0, "no connection is with web1");
    load.wait_for_answers()
}

fn guest_before(backends: &[(u8, u16)]) -> String {
    if backends.is_empty() {
        return String::new();
    }
    let service = Service::new("guest", Protocol::Tcp, GUEST.port(Family::V6, 80));
    let with_backends = backends.iter().fold(service, |service, &(number, weight)| {
        service.weighted_backend(&format!("web{number}"), web(number).port(Family::V6, 80), weight)
    });
    with_backends.to_string()
}

fn expect_newcomers(network: &Network, backends: &[&str]) -> Result<()> {
    Family::BOTH.into_iter().try_for_each(|family| {
        expect_newcomers_at(&network.client, Protocol::Tcp, VIP.port(family, VIP_PORT), backends)
    })
}
