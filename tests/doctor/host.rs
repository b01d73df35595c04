//! Faults of the machine that tests must not make on it, or cannot: the doctor sees them in a mount namespace of its own,
//! in which files of /proc are others. What reads and judges them is what does so anywhere.

use anyhow::Result;

use super::{Visit, use_all_queues};
use crate::support::config::tcp_before;
use crate::support::network::{Arms, Network};

/// Goes on as the doctor, its words as they are.
const DOCTOR: &str = "exec \"$0\" \"$@\"";
/// The network devices of the namespace that it runs in: /sys is otherwise that of the test itself.
const SYSFS: &str = "mount -t sysfs none /sys";

#[test]
fn a_kernel_that_interprets_programs() -> Result<()> {
    let network = Network::new("doctor-jit", Arms::Two)?;
    use_all_queues(&network)?;
    let visit = Visit::new(&network, &tcp_before(&[(1, 1)], &[]), network.interfaces)?;
    // The setting is of the whole machine, and only its first network namespace shows it.
    let set = |value: u8| {
        let directory = "/proc/sys/net/core";
        format!("mount -t tmpfs none {directory} && echo {value} >{directory}/bpf_jit_enable")
    };
    expect_behind(&visit, &[&set(1)], &[])?;
    expect_behind(&visit, &[&set(0)], &[("jit-off", "bpf_jit_enable")])
}

#[test]
fn a_port_of_a_bridge_that_merges_packets() -> Result<()> {
    let network = Network::new("doctor-merged", Arms::Two)?;
    use_all_queues(&network)?;
    network.balancer.ip("link add name port type veth peer name plug")?;
    network.balancer.add_bridge("bridge", &["port"])?;
    let visit = Visit::new(&network, &tcp_before(&[(1, 1)], &[]), &["eth0", "eth1", "bridge"])?;
    let merge = |word: &str| network.balancer.run(["ethtool", "-K", "port", "gro", word]);
    merge("off")?;
    expect_behind(&visit, &[SYSFS], &[])?;
    merge("on")?;
    expect_behind(&visit, &[SYSFS], &[("merged-packets", "port")])
}

#[test]
fn a_card_that_takes_tags_off_below_a_vlan_device() -> Result<()> {
    let network = Network::new("doctor-vlan", Arms::Two)?;
    use_all_queues(&network)?;
    // Few kernels of tests have VLAN devices. One of another kind is below /proc/net/vlan as such are.
    network.balancer.ip("link add link eth1 name stand-in type macvlan")?;
    let visit = Visit::new(&network, &tcp_before(&[(1, 1)], &[]), network.interfaces)?;
    let directory = "/proc/$$/net";
    let listed = format!(
        "mount -t tmpfs none {directory} && mkdir {directory}/vlan && touch {directory}/vlan/stand-in"
    );
    expect_behind(&visit, &[SYSFS, &listed], &[("vlan-offload", "eth1")])?;
    let off = ["ethtool", "-K", "eth1", "rxvlan", "off", "rx-vlan-stag-hw-parse", "off"];
    network.balancer.run(off)?;
    expect_behind(&visit, &[SYSFS, &listed], &[])
}

/// Exactly these are found where these commands have changed what the doctor, and nobody else, sees.
fn expect_behind(visit: &Visit, commands: &[&str], expected: &[(&str, &str)]) -> Result<()> {
    let script = [commands, &[DOCTOR]].concat().join(" && ");
    visit.expect_with(&["unshare", "--mount", "sh", "-c", &script], expected)
}
