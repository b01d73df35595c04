//! Where the packets go: a network namespace with one interface, by which backends and clients are reached.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};

use crate::{
    address::{Family, NEIGHBOUR_MAC, OWN_MAC},
    baseline::Baseline,
};

const INTERFACE: &str = "bench0";

/// The namespace of this thread, and what balancers are compared with.
pub struct Place {
    /// Index of the interface.
    pub interface: u32,
    pub baseline: Baseline,
}

impl Place {
    /// Moves this thread into a network namespace of its own, which ends with the process, and furnishes it.
    pub fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        make_interface()?;
        let interface = if_nametoindex(INTERFACE).context("the interface is missing")?;
        let mut baseline = Baseline::load()?;
        baseline.attach(interface)?;
        Ok(Self { interface, baseline })
    }
}

/// Backends are neighbours, clients are behind one.
fn make_interface() -> Result<()> {
    let [own, neighbour] = [OWN_MAC, NEIGHBOUR_MAC].map(|mac| foobar_lb::image::Mac(mac).to_string());
    ip(&format!("link add {INTERFACE} address {own} type veth peer name peer"))?;
    ip("link set peer up")?;
    ip(&format!("link set {INTERFACE} up"))?;
    for family in Family::ALL {
        let (gateway, bits) = (family.gateway(), family.network().prefix_len());
        let option = if family == Family::V4 { "-4" } else { "-6" };
        ip(&format!("{option} address add {}/{bits} dev {INTERFACE}", family.own()))?;
        ip(&format!("{option} route add default via {gateway}"))?;
        ip(&format!("{option} neighbour add {gateway} lladdr {neighbour} dev {INTERFACE} nud permanent"))?;
    }
    for family in ["ipv4", "ipv6"] {
        let path = format!("/proc/sys/net/{family}/conf/{INTERFACE}/forwarding");
        fs::write(&path, "1").with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

fn ip(words: &str) -> Result<()> {
    let status = Command::new("ip").args(words.split(' ')).status().context("cannot run ip, of iproute2")?;
    ensure!(status.success(), "`ip {words}` failed");
    Ok(())
}
