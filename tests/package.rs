//! Debian's package on a clean machine with systemd: installed, started as its own user, upgraded and hung under load,
//! removed, purged. It needs root, the sandbox that `cargo xtask test package` makes, the package, and a root directory
//! made by debootstrap.

mod machine;
#[expect(dead_code, reason = "the stories of ring traffic use the rest")]
mod support;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::wait_until;

use machine::Machine;
use support::EVENTUALLY;
use support::load::{self, Load, Servers};
use support::network::{Arms, Network};

const BACKENDS: [(u8, u16); 3] = [(1, 1), (2, 1), (3, 1)];
/// Where the package is on the machine.
const PACKAGE: &str = "/root/foobar-lb.deb";
const CONFIG: &str = "/etc/foobar-lb/foobar-lb.toml";
/// The unit's WatchdogSec, and what a restart takes.
const HANG: Duration = Duration::from_secs(40);
/// What systemd-analyze calls the exposure of the service, in tenths, at most.
const EXPOSURE: &str = "21";

#[test]
fn it_is_installed_started_upgraded_and_removed() -> Result<()> {
    let network = Network::new("package", Arms::Two)?;
    let servers = Servers::start(&network, 3)?;
    let machine = Machine::boot(&network.balancer, &named_by("FOOBAR_LB_ROOT")?)?;
    fs::copy(named_by("FOOBAR_LB_DEB")?, machine.root().join(PACKAGE.trim_start_matches('/')))?;
    let before = machine.run(&["find", "/etc", "/usr", "/var/lib", "/lib/", "-name", "*foobar*"])?;
    ensure!(before.is_empty(), "the machine is not clean: {before}");

    install(&machine)?;
    start(&machine, &network)?;
    let load = Load::begin(&network.client, &servers)?;
    load.chapter("an upgrade")?;
    upgrade(&machine)?;
    load.wait_for_answers()?;
    load.chapter("reloads")?;
    reload(&machine)?;
    load.wait_for_answers()?;
    load.chapter("a daemon that hangs")?;
    hang(&machine)?;
    load.end()?;
    remove(&machine, &network)
}

/// Nothing starts, because the interfaces are not known.
fn install(machine: &Machine) -> Result<()> {
    machine.run(&["dpkg", "--install", PACKAGE])?;
    machine.ask(&["systemctl", "is-active", "foobar-lb"])?.expect(3, &["inactive"])?;
    machine.ask(&["systemctl", "is-enabled", "foobar-lb"])?.expect(1, &["disabled"])?;
    machine.run(&["getent", "passwd", "foobar-lb"])?;
    let owner = machine.run(&["stat", "--format=%a %U:%G", CONFIG])?;
    ensure!(owner == "640 root:foobar-lb", "the configuration is {owner}");
    machine.run(&["foobar-lb", "check", CONFIG])?;
    machine.run(&["systemd-analyze", "verify", "--man=no", "foobar-lb.service"])?;
    let exposure = format!("--threshold={EXPOSURE}");
    machine.run(&["systemd-analyze", "security", &exposure, "foobar-lb"])?;
    // Without an interface it does not even try twice.
    machine.ask(&["systemctl", "start", "foobar-lb"])?.expect(1, &["failed"])?;
    expect_in_journal(machine, "<IFACE>")?;
    let result = machine.run(&["systemctl", "show", "--property=Result,NRestarts", "foobar-lb"])?;
    ensure!(result.contains("exit-code") && result.contains("NRestarts=0"), "{result}");
    Ok(())
}

fn start(machine: &Machine, network: &Network) -> Result<()> {
    let write = |path: &str, text: &str| fs::write(machine.root().join(path), text);
    let interfaces = network.interfaces.join(" ");
    write("etc/default/foobar-lb", &format!("INTERFACES=\"{interfaces}\"\nOPTIONS=\"--sysctl\"\n"))?;
    write(CONFIG.trim_start_matches('/'), &load::configuration(&BACKENDS, &[]))?;
    leave_by_hand(machine, network)?;
    machine.run(&["systemctl", "enable", "--now", "foobar-lb"])?;
    expect_in_journal(machine, "taking over what is pinned")?;
    let process = main_process(machine)?;
    let user = machine.run(&["ps", "-o", "user:20=", "-p", &process])?;
    ensure!(user == "foobar-lb", "it runs as {user}");
    let status = || machine.run(&["systemctl", "show", "--property=StatusText", "foobar-lb"]);
    wait_until(EVENTUALLY, "all to be up", || {
        status().is_ok_and(|status| status.ends_with("3 of 3 services up, 9 of 9 backends up"))
    })
    .with_context(|| format!("{:?}\n{}", status(), journal(machine).unwrap_or_default()))?;
    let complaints = journal(machine)?;
    ensure!(!complaints.contains("WARN"), "{complaints}");
    Ok(())
}

/// What root has begun without the service, and has not ended well, is the service's from its start on.
fn leave_by_hand(machine: &Machine, network: &Network) -> Result<()> {
    let attach = ["systemd-run", "--unit=by-hand", "foobar-lb", "attach", "--sysctl", "--pin"];
    machine.run(&[&attach[..], network.interfaces].concat())?;
    wait_until(EVENTUALLY, "root's daemon", || machine.run(&["foobar-lb", "status"]).is_ok())?;
    machine.run(&["systemctl", "kill", "--signal=KILL", "by-hand"]).map(drop)
}

/// The same package again is an upgrade to dpkg. The daemon is another one, and has nothing to write.
fn upgrade(machine: &Machine) -> Result<()> {
    let before = main_process(machine)?;
    machine.run(&["dpkg", "--install", PACKAGE])?;
    ensure!(main_process(machine)? != before, "the old daemon goes on");
    expect_in_journal(machine, "taking over what is pinned")?;
    expect_in_journal(machine, "writes=0")?;
    let config = fs::read_to_string(machine.root().join(CONFIG.trim_start_matches('/')))?;
    ensure!(config == load::configuration(&BACKENDS, &[]), "the configuration is lost");
    Ok(())
}

fn reload(machine: &Machine) -> Result<()> {
    let path = machine.root().join(CONFIG.trim_start_matches('/'));
    fs::write(&path, load::configuration(&BACKENDS[..2], &[]))?;
    machine.run(&["systemctl", "reload", "foobar-lb"])?;
    fs::write(&path, "[[service]]\n")?;
    machine.ask(&["systemctl", "reload", "foobar-lb"])?.expect(1, &["failed"])?;
    expect_in_journal(machine, "this service has no `name`")?;
    let status = machine.run(&["systemctl", "show", "--property=StatusText", "foobar-lb"])?;
    ensure!(status.contains("not reloaded: /etc/foobar-lb/foobar-lb.toml:1:1"), "{status}");
    fs::write(&path, load::configuration(&BACKENDS, &[]))?;
    machine.run(&["systemctl", "reload", "foobar-lb"]).map(drop)
}

/// systemd misses the daemon's word, ends it, and starts another.
fn hang(machine: &Machine) -> Result<()> {
    let hung = main_process(machine)?;
    machine.run(&["kill", "-STOP", &hung])?;
    wait_until(HANG, "another daemon", || {
        let is_active = machine.run(&["systemctl", "is-active", "foobar-lb"]).is_ok();
        is_active && main_process(machine).is_ok_and(|process| process != hung)
    })?;
    expect_in_journal(machine, "Watchdog timeout")
}

fn remove(machine: &Machine, network: &Network) -> Result<()> {
    let forwarding = || network.balancer.sysctl("net.ipv4.conf.all.send_redirects");
    ensure!(forwarding()? == "0", "it has set nothing");
    machine.run(&["dpkg", "--remove", "foobar-lb"])?;
    for interface in network.interfaces {
        let link = network.balancer.ip(&format!("link show {interface}"))?;
        ensure!(!link.contains("xdp"), "the data path is left: {link}");
    }
    ensure!(forwarding()? == "1", "kernel settings are left");
    let rules = machine.run(&["nft", "list", "ruleset"])?;
    ensure!(!rules.contains("foobar"), "a rule is left: {rules}");
    machine.run(&["stat", CONFIG, "/etc/default/foobar-lb", "/var/lib/foobar-lb/seed"])?;

    machine.run(&["dpkg", "--purge", "foobar-lb"])?;
    let left = machine.run(&[
        "find",
        "/etc",
        "/usr",
        "/var/lib",
        "/lib/",
        "/run",
        "/sys/fs/bpf",
        "-name",
        "*foobar*",
    ])?;
    ensure!(left.is_empty(), "this is left: {left}");
    Ok(())
}

fn main_process(machine: &Machine) -> Result<String> {
    machine.run(&["systemctl", "show", "--property=MainPID", "--value", "foobar-lb"])
}

fn journal(machine: &Machine) -> Result<String> {
    machine.run(&["journalctl", "--no-pager", "--unit=foobar-lb"])
}

/// What is said gets into the journal a moment later.
fn expect_in_journal(machine: &Machine, words: &str) -> Result<()> {
    wait_until(EVENTUALLY, words, || journal(machine).is_ok_and(|journal| journal.contains(words)))
        .with_context(|| journal(machine).unwrap_or_default())
}

fn named_by(variable: &str) -> Result<PathBuf> {
    let path = env::var_os(variable);
    path.map(PathBuf::from).with_context(|| format!("{variable} is not set: run `cargo xtask test package`"))
}
