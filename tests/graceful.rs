//! A graceful stop of Nginx during a download: the download completes, new connections go elsewhere.

use std::fs;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::support::balancer::Balancer;
use crate::support::config::{Service, services};
use crate::support::conversation::Protocol;
use crate::support::http::Download;
use crate::support::network::{Arms, Family, Network, VIP, WEB1, WEB2};
use crate::support::nginx::Nginx;
use crate::support::{EVENTUALLY, SOON};

/// At the two megabytes a second of `/slow/`, three seconds: far longer than it takes to be found down.
const SIZE: usize = 6 << 20;

#[test]
fn a_download_survives_the_graceful_stop_of_its_server() -> Result<()> {
    for family in Family::BOTH {
        check_graceful_stop(family)?;
    }
    Ok(())
}

fn check_graceful_stop(family: Family) -> Result<()> {
    let network = Network::new(&format!("graceful-{family:?}"), Arms::Two)?;
    let file: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
    fs::write(network.lab.directory().join("big"), &file)?;
    fs::write(network.lab.directory().join("small"), "small")?;
    let mut web1 = Nginx::start(&network.web1, "web1", network.lab.directory())?;
    let mut web2 = Nginx::start(&network.web2, "web2", network.lab.directory())?;
    let vip = VIP.port(family, 80);
    let www = Service::new("www", Protocol::Tcp, vip)
        .health(&["kind = \"http\"", "path = \"/small\"", "interval = \"200ms\"", "timeout = \"200ms\""])
        .backend("web1", WEB1.port(family, 80))
        .backend("web2", WEB2.port(family, 80));
    let balancer = Balancer::serve(&network, &services(&[www]))?;

    let download = Download::begin(&network.client, vip, "/slow/big")?;
    let (stopped, name, other) = match download.served_by.as_str() {
        "web1" => (&mut web1, "web1", "web2"),
        _ => (&mut web2, "web2", "web1"),
    };
    stopped.process.signal(Signal::SIGQUIT)?;
    balancer.wait_until_down(name)?;
    ensure!(!stopped.process.has_ended()?, "{name} ended before its download, which so proves nothing");
    for _ in 0..20 {
        let small = Download::begin(&network.client, vip, "/small")?;
        ensure!(small.served_by == other, "a new connection went to the stopped {}", small.served_by);
    }
    ensure!(download.finish()? == file, "the download differs from the file");
    ensure!(stopped.process.wait(EVENTUALLY + SOON)?.success(), "{name} did not end well");
    Ok(())
}
