//! A large download goes on, and arrives whole, while its server drains.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::support::balancer::{Balancer, Drain};
use crate::support::config::{Service, services};
use crate::support::conversation::Protocol;
use crate::support::digest::{Sha256, write_random_file};
use crate::support::http::Download;
use crate::support::network::{Arms, Family, Network, VIP, WEB1, WEB2};
use crate::support::nginx::Nginx;

const MEGABYTE: u64 = 1 << 20;
/// What is read between two looks at the balancer: little, so that much is left when the move is over.
const TRICKLE: u64 = 64 << 10;

#[test]
fn a_gigabyte_over_a_drain() -> Result<()> {
    check_drain(Family::V4, 1024)
}

#[test]
fn over_a_drain_by_ipv6() -> Result<()> {
    check_drain(Family::V6, 256)
}

fn check_drain(family: Family, megabytes: u64) -> Result<()> {
    let network = Network::new(&format!("download-{family:?}"), Arms::Two)?;
    let expected = write_random_file(&network.lab.directory().join("large"), megabytes)?;
    fs::write(network.lab.directory().join("small"), "small")?;
    let _web1 = Nginx::start(&network.web1, "web1", network.lab.directory())?;
    let _web2 = Nginx::start(&network.web2, "web2", network.lab.directory())?;
    let vip = VIP.port(family, 80);
    let www = Service::new("www", Protocol::Tcp, vip)
        .key("transition = \"1s\"")
        .backend("web1", WEB1.port(family, 80))
        .backend("web2", WEB2.port(family, 80));
    let balancer = Balancer::serve(&network, &services(&[www]))?;

    let mut download = Download::begin(&network.client, vip, "/large")?;
    let mut sum = Sha256::new()?;
    download.read_into(&mut sum, 4 * MEGABYTE)?;
    let draining = download.served_by.clone();
    balancer.backend(&["drain", "www", &draining])?.expect(0, &[&draining])?;
    while !is_counted(&find_drain(&balancer, &draining)?) {
        download.read_into(&mut sum, TRICKLE)?;
    }
    let seen = find_drain(&balancer, &draining)?.seen;
    ensure!(seen == Some(1), "one flow is with {draining}, and seen are {seen:?}");
    for _ in 0..20 {
        let small = Download::begin(&network.client, vip, "/small")?;
        ensure!(small.served_by != draining, "a new connection went to {draining}, which drains");
    }
    // No socket's buffers hold as much.
    ensure!(download.left > 64 * MEGABYTE, "it was over before the move was, which so proves nothing");
    download.read_into(&mut sum, u64::MAX)?;
    ensure!(sum.finish()? == expected, "another sha256 than the file's");
    Ok(())
}

/// Whether the move is over, and flows have been counted since it began.
fn is_counted(drain: &Drain) -> bool {
    drain.silent_for_seconds.is_none() && drain.seen.is_some()
}

fn find_drain(balancer: &Balancer, backend: &str) -> Result<Drain> {
    let status = balancer.status()?;
    status.drain("www", backend).cloned().with_context(|| format!("{backend} does not drain: {status:?}"))
}
