//! Another XDP program on the balancer's interfaces: xdp-filter of xdp-tools gets what the balancer passes, and a program that
//! was there first is left alone.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lab::Namespace;
use serde_json::Value;

use crate::support::SOON;
use crate::support::balancer::{Balancer, Files};
use crate::support::bpffs::{self, Bpffs};
use crate::support::config::all_kinds;
use crate::support::conversation::{KINDS, Protocol, ask};
use crate::support::echo::{Echo, start_pair};
use crate::support::network::{Arms, CLIENT_GATEWAY, Family, Network, VIP, VIP_PORT};
use crate::support::traces::Traces;

/// Ports of the balancer itself: one that the filter lets nothing to, and one that it does not know of.
const CLOSED: u16 = 7001;
const OPEN: u16 = 7002;

#[test]
fn a_filter_gets_what_is_passed() -> Result<()> {
    let network = Network::new("coexist-next", Arms::Two)?;
    let _bpffs = Bpffs::mount(&network.balancer)?;
    let _echoes = start_pair(&network)?;
    let _own = [CLOSED, OPEN].map(|port| Echo::start_tcp_only(&network.balancer, "balancer", port));
    let filter = Filter::load(&network.balancer)?;
    let reaches = |port| ask(&network.client, Protocol::Tcp, CLIENT_GATEWAY.port(Family::V4, port)).is_ok();
    ensure!(reaches(CLOSED) && reaches(OPEN), "no way to the balancer itself");

    let pin = filter.pin.display().to_string();
    let behind = ["--sysctl", "--pin", "--next", &pin];
    let attach = |options: &[&str]| {
        Balancer::attach(&network.balancer, network.interfaces, &all_kinds(VIP, &[]), options)
    };
    let mut balancer = attach(&behind)?.quiet();
    balancer.wait_until_serving()?;
    balancer.process.wait_for_line("gets frames of one buffer only", SOON)?;
    ensure!(
        balancer.status()?.next_program.is_some_and(|next| next.contains("xdpfilt")),
        "not in the status"
    );
    ensure!(!reaches(CLOSED) && reaches(OPEN), "the filter does not get what the balancer passes");
    expect_services(&network)?;

    // It stays when the daemon dies, and the next one has it again, or has none.
    balancer.process.kill()?;
    ensure!(!reaches(CLOSED) && reaches(OPEN), "the filter is gone with the daemon");
    expect_services(&network)?;
    let mut balancer = attach(&behind)?.quiet();
    balancer.process.wait_for_line("the maps are up to date writes=0", SOON)?;
    ensure!(!reaches(CLOSED) && reaches(OPEN), "the filter is gone with the restart");
    balancer.process.kill()?;
    let balancer = attach(&behind[..2])?;
    ensure!(balancer.status()?.next_program.is_none(), "there is a next program in the status");
    ensure!(
        reaches(CLOSED) && reaches(OPEN),
        "there is a program behind the balancer that was not asked for"
    );
    expect_services(&network)?;
    Ok(())
}

#[test]
fn a_program_that_is_there_stays_there() -> Result<()> {
    let network = Network::new("coexist-first", Arms::Two)?;
    let _bpffs = Bpffs::mount(&network.balancer)?;
    let _echoes = start_pair(&network)?;
    let filter = Filter::load(&network.balancer)?;
    network.balancer.ip(&format!("link set eth0 xdp pinned {}", filter.pin.display()))?;
    let before = Traces::of(&network.balancer)?;
    let files = Files::write(&network.balancer, &all_kinds(VIP, &[]))?;
    let pin = filter.pin.display().to_string();
    for options in [&["--sysctl"][..], &["--sysctl", "--pin"], &["--sysctl", "--next", &pin]] {
        let refused = files.attach_in_vain_with(&network.balancer, network.interfaces, options)?;
        refused.expect(1, &["eth0", "xdpfilt", &filter.id.to_string(), "--next"])?;
    }
    before.expect_no_change(&network.balancer)
}

#[test]
fn what_is_no_program_to_run_behind_is_refused_in_words() -> Result<()> {
    let network = Network::new("coexist-refused", Arms::Two)?;
    let _bpffs = Bpffs::mount(&network.balancer)?;
    let _echoes = start_pair(&network)?;
    let filter = Filter::load(&network.balancer)?;
    let balancer =
        Balancer::attach(&network.balancer, &["eth1"], &all_kinds(VIP, &[]), &["--sysctl", "--pin"])?;
    let files = Files::write_as(&network.balancer, "second", &all_kinds(VIP, &[]))?;
    let before = Traces::of(&network.balancer)?;
    let pinned = |path: PathBuf| path.display().to_string();
    let cases = [
        ("filter".to_owned(), 2, "name a program by the path where it is pinned"),
        (
            pinned(filter.pin.with_file_name("nothing")),
            1,
            "there is no program to run behind the balancer at",
        ),
        (pinned(filter.pin.with_file_name("map")), 1, "map is no XDP program"),
        ("4294967295".to_owned(), 1, "there is no program with the id 4294967295"),
        (pinned(bpffs::path(&network.balancer).join("foobar-lb/v1/program")), 1, "is a foobar-lb itself"),
    ];
    for (next, code, words) in cases {
        let refused =
            files.attach_in_vain_with(&network.balancer, &["eth0"], &["--sysctl", "--next", &next])?;
        refused.expect(code, &[words])?;
    }
    before.expect_no_change(&network.balancer)?;
    balancer.wait_until_serving()
}

fn expect_services(network: &Network) -> Result<()> {
    KINDS.iter().try_for_each(|(family, protocol)| {
        ask(&network.client, *protocol, VIP.port(*family, VIP_PORT)).map(drop)
    })
}

/// xdp-filter on an interface that nothing comes by, which keeps its tables, with the program pinned: packets to [`CLOSED`] are
/// dropped.
struct Filter {
    pin: PathBuf,
    id: u64,
}

impl Filter {
    fn load(namespace: &Namespace) -> Result<Self> {
        namespace.ip("link add name spare0 type veth peer name spare1")?;
        let pins = bpffs::path(namespace);
        // The tools look for their pins where bpffs usually is, and one of them runs at a time on a machine.
        let script = format!(
            "mount --bind {} /sys/fs/bpf && mount -t tmpfs tmpfs /run && export LIBXDP_SKIP_DISPATCHER=1 && \
             xdp-filter load --policy allow spare0 && xdp-filter port {CLOSED} --mode dst --proto tcp && \
             bpftool map create /sys/fs/bpf/map type array key 4 value 8 entries 1 name map",
            pins.display()
        );
        namespace.run(["unshare", "--mount", "sh", "-c", &script])?;
        let shown: Value = serde_json::from_str(&namespace.ip("-json -details link show spare0")?)?;
        let id = shown[0]["xdp"]["prog"]["id"].as_u64().context("xdp-filter has loaded nothing")?;
        let pin = pins.join("filter");
        namespace.run(["bpftool", "prog", "pin", "id", &id.to_string(), &pin.display().to_string()])?;
        Ok(Self { pin, id })
    }
}
