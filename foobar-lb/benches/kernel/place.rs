//! Where the packets go: a network namespace with one interface, by which backends and clients are reached.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, include_bytes_aligned,
    programs::{ProgramInfo, Xdp, XdpMode},
};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};

use crate::address::{Family, NEIGHBOUR_MAC, OWN_MAC};

const INTERFACE: &str = "bench0";

/// The namespace of this thread, and what balancers are compared with.
pub struct Place {
    /// Index of the interface.
    pub interface: u32,
    baseline: Ebpf,
}

impl Place {
    /// Moves this thread into a network namespace of its own, which ends with the process, and furnishes it.
    pub fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        make_interface()?;
        let interface = if_nametoindex(INTERFACE).context("the interface is missing")?;
        let baseline = Ebpf::load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-baseline")))
            .context("the kernel refused the object to compare with")?;
        let mut place = Self { interface, baseline };
        place.program("parse")?.load().context("the verifier refused `parse`")?;
        let transmit = place.program("transmit")?;
        transmit.load().context("the verifier refused `transmit`")?;
        // A queue of an interface takes part in XDP only while a program is attached to it.
        transmit.attach_to_if_index(interface, XdpMode::Driver).context("cannot attach `transmit`")?;
        Ok(place)
    }

    /// A program that every packet is sent back by.
    pub fn baseline(&mut self, name: &str) -> Result<ProgramInfo> {
        Ok(self.program(name)?.info()?)
    }

    fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self.baseline.program_mut(name);
        Ok(program.with_context(|| format!("the object has no program `{name}`"))?.try_into()?)
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
