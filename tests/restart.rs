//! A data path that is pinned outlives its daemon, however that ends, and the next one goes on from it: no connection
//! breaks, none is refused, and what is right is not written again.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Process, wait_until};
use nix::sys::signal::Signal;
use rand::Rng;

use crate::support::balancer::{Balancer, Ending, Files, binary, foobar_lb, successor};
use crate::support::bpffs::Bpffs;
use crate::support::config::all_kinds;
use crate::support::conversation::{Conversation, KINDS, Protocol, ask, expect_newcomers_at};
use crate::support::echo::{Echo, start_pair};
use crate::support::load::{self, Load, Servers};
use crate::support::network::{Arms, BACKEND_PORT, Family, Network, VIP, VIP_PORT};
use crate::support::traces::Traces;
use crate::support::{EVENTUALLY, SOON};

const PINNED: [&str; 2] = ["--sysctl", "--pin"];
/// Moves end while the story goes on, and nobody is silent for as long.
const KEYS: [&str; 1] = ["transition = \"5s\""];
/// Backends by number and weight, one set after the other.
const SETS: [&[(u8, u16)]; 3] = [&[(1, 1), (2, 1), (3, 1)], &[(1, 5), (2, 1)], &[(2, 1), (3, 2)]];
const RESTARTS: usize = 20;
const KILLS: usize = 20;
/// One start in each of which the daemon dies after so many writes more, up to as many as one set of backends after the
/// other takes at least.
const WRITES: usize = 60;
const STRIDE: usize = 7;
/// A reload is over within this.
const LATEST_KILL: Duration = Duration::from_millis(60);

#[test]
fn no_restart_breaks_a_connection() -> Result<()> {
    let network = Network::new("restart-load", Arms::Two)?;
    let _bpffs = Bpffs::mount(&network.balancer)?;
    let servers = Servers::start(&network, 3)?;
    let balancer = attach(&network, &load::configuration(SETS[0], &KEYS))?;
    balancer.wait_until_serving()?;
    let load = Load::begin(&network.client, &servers)?;

    let balancer = restart(&network, balancer, &load)?;
    let balancer = kill_in_reloads(&network, balancer, &load)?;
    let balancer = die_between_writes(&network, balancer, &load)?;
    let balancer = upgrade_and_go_back(&network, balancer, &load)?;

    load.end()?;
    for reason in ["not_remembered", "no_backend"] {
        ensure!(balancer.counted(reason)? == 0, "{reason} is counted");
    }
    Ok(())
}

fn restart(network: &Network, mut balancer: Balancer, load: &Load) -> Result<Balancer> {
    for number in 1..=RESTARTS {
        load.chapter(&format!("restart {number} of {RESTARTS}"))?;
        balancer.stop(Signal::SIGTERM)?;
        balancer = attach(network, &load::configuration(SETS[0], &KEYS))?;
    }
    load.wait_for_answers()?;
    Ok(balancer)
}

fn kill_in_reloads(network: &Network, mut balancer: Balancer, load: &Load) -> Result<Balancer> {
    for number in 1..=KILLS {
        load.chapter(&format!("kill {number} of {KILLS}, in a reload"))?;
        let services = load::configuration(SETS[number % SETS.len()], &KEYS);
        balancer.write_services(&services)?;
        balancer.process.signal(Signal::SIGHUP)?;
        // The moment is what is random here; nothing is waited for.
        std::thread::sleep(LATEST_KILL.mul_f64(rand::rng().random()));
        balancer.process.kill()?;
        balancer = attach(network, &services)?;
    }
    Ok(balancer)
}

fn die_between_writes(network: &Network, mut balancer: Balancer, load: &Load) -> Result<Balancer> {
    for after in (0..WRITES).step_by(STRIDE) {
        load.chapter(&format!("death after {after} writes"))?;
        balancer.stop(Signal::SIGTERM)?;
        let services = load::configuration(SETS[after % SETS.len()], &KEYS);
        let mut dies = start_with_fault(network, &services, &format!("kill:{after}"))?;
        let exit = dies.wait(EVENTUALLY)?;
        ensure!(!exit.success(), "it lives on after {after} writes; it printed:\n{}", dies.output()?);
        balancer = attach(network, &services)?;
    }
    Ok(balancer)
}

fn upgrade_and_go_back(network: &Network, mut balancer: Balancer, load: &Load) -> Result<Balancer> {
    for (binary, version) in [(successor()?, "99.0.0"), (binary()?, env!("CARGO_PKG_VERSION"))] {
        load.chapter(&format!("version {version}"))?;
        let before = (program(network)?, balancer.status()?.reasons.len());
        balancer.stop(Signal::SIGTERM)?;
        let files = Files::write(&network.balancer, &load::configuration(SETS[0], &KEYS))?;
        let mut words = files.attach_words(network.interfaces, &PINNED)?;
        words[0] = binary;
        let process = network.balancer.start("other-version", words)?;
        balancer = Balancer::started(process, &network.balancer, files).answering()?.quiet();
        let status = balancer.status()?;
        let after = (program(network)?, status.reasons.len());
        ensure!(status.version == version, "{} runs, not {version}", status.version);
        ensure!(before.0 != after.0 && before.1 != after.1, "program and counters are as before: {after:?}");
        load.wait_for_answers()?;
    }
    Ok(balancer)
}

#[test]
fn what_is_right_is_not_written_again() -> Result<()> {
    let network = Network::new("restart-same", Arms::Two)?;
    let _bpffs = Bpffs::mount(&network.balancer)?;
    let _echoes = start_pair(&network)?;
    let before = Traces::of(&network.balancer)?;
    let balancer = attach(&network, &all_kinds(VIP, &[]))?;
    balancer.wait_until_serving()?;
    let program_before = program(&network)?;
    let mut flows = open_flows(&network)?;
    balancer.stop(Signal::SIGINT)?;
    ask_again(&mut flows)?;
    let mut balancer = attach(&network, &all_kinds(VIP, &[]))?;
    balancer.process.wait_for_line("the maps are up to date writes=0", SOON)?;
    ensure!(program(&network)? == program_before, "the same program is loaded again");
    ask_again(&mut flows)?;

    balancer.process.kill()?;
    let said = balancer.status_in_vain()?;
    said.expect(
        1,
        &["nobody listens", "the data path that is pinned at", "goes on, on eth", "last heartbeat"],
    )?;
    ask_again(&mut flows)?;
    balancer.detach(&[])?.expect(0, &["what was pinned is taken off eth", "restored"])?;
    before.expect_no_change(&network.balancer)
}

#[test]
fn what_cannot_be_taken_over_is_left_alone() -> Result<()> {
    let network = Network::new("restart-other", Arms::Two)?;
    let bpffs = Bpffs::mount(&network.balancer)?;
    let _echoes = start_pair(&network)?;
    let before = Traces::of(&network.balancer)?;
    let balancer = attach(&network, &all_kinds(VIP, &[]))?;
    balancer.wait_until_serving()?;
    let mut flows = open_flows(&network)?;
    balancer.stop(Signal::SIGTERM)?;
    let runs = program(&network)?;

    let mut refuses = |files: &Files, words: &[&str]| {
        let refused = files.attach_in_vain_with(&network.balancer, network.interfaces, &PINNED)?;
        refused.expect(1, &[words, &["foobar-lb detach"]].concat())?;
        ensure!(program(&network)? == runs, "the program is another one");
        ask_again(&mut flows)
    };
    let files = Files::write(&network.balancer, &all_kinds(VIP, &[]))?;
    let right = fs::read_to_string(&files.config)?;
    let wrong = [
        ("[daemon]\n", "[daemon]\nflows = 4096\n", "the map ESTABLISHED that is pinned at"),
        ("[daemon]\n", "[daemon]\nbackends = 300\n", "that is pinned at"),
        ("0x0123456789abcdef", "0x0123456789abcdee", "is not the one of the data path that is pinned"),
    ];
    for (text, other, words) in wrong {
        fs::write(&files.config, right.replace(text, other))?;
        refuses(&files, &[words])?;
    }
    fs::write(&files.config, right)?;
    // As a version with another layout leaves it.
    fs::rename(bpffs.pins().join("v1"), bpffs.pins().join("v7"))?;
    refuses(&files, &["has layout 7", "run the version that it came from"])?;
    let mut detach = foobar_lb(&network.balancer)?;
    let detached = Ending::from(detach.arg("detach").arg("--config").arg(&files.config).output()?);
    detached.expect(0, &["what was pinned is taken off eth"])?;
    before.expect_no_change(&network.balancer)
}

#[test]
fn a_dead_backend_gets_no_new_flows_after_a_restart() -> Result<()> {
    let network = Network::new("restart-dead", Arms::Two)?;
    let _bpffs = Bpffs::mount(&network.balancer)?;
    let [web1, _web2] = start_pair(&network)?;
    let mut balancer = attach(&network, &all_kinds(VIP, &[]))?;
    balancer.wait_until_serving()?;
    drop(web1);
    balancer.wait_until_down("web1")?;
    balancer.process.kill()?;
    let _web1 = Echo::start_tcp_only(&network.web1, "web1", BACKEND_PORT + 1)?;
    let balancer = attach(&network, &all_kinds(VIP, &[]))?;
    let status = balancer.status()?;
    ensure!(status.backends("web1").all(|backend| backend.health.starts_with("down")), "{status:?}");
    for family in Family::BOTH {
        expect_newcomers_at(&network.client, Protocol::Tcp, VIP.port(family, VIP_PORT), &["web2"])?;
    }
    Ok(())
}

#[test]
fn an_interface_that_is_back_is_attached_again() -> Result<()> {
    let network = Network::new("restart-interface", Arms::Two)?;
    let _bpffs = Bpffs::mount(&network.balancer)?;
    let _echoes = start_pair(&network)?;
    let balancer = attach(&network, &all_kinds(VIP, &[]))?;
    balancer.wait_until_serving()?;
    let attached = |names: &[&str]| {
        let wanted = names.to_vec();
        balancer.wait_until(&format!("{names:?} to be attached"), move |status| {
            let mut found: Vec<_> = status.interfaces.iter().map(|link| link.name.as_str()).collect();
            found.sort_unstable();
            found == wanted
        })
    };
    network.balancer.ip("link delete eth0")?;
    attached(&["eth1"])?;
    network.connect_client()?;
    attached(&["eth0", "eth1"])?;
    wait_until(EVENTUALLY, "an answer by the new interface", || {
        ask(&network.client, Protocol::Tcp, VIP.port(Family::V4, VIP_PORT)).is_ok()
    })?;
    network.balancer.ip("link set eth0 down")?;
    network.balancer.ip("link set eth0 name outside")?;
    network.balancer.ip("link set outside up")?;
    attached(&["eth1", "outside"])
}

#[test]
fn a_write_that_fails_is_tried_again() -> Result<()> {
    let network = Network::new("restart-fault", Arms::Two)?;
    let _bpffs = Bpffs::mount(&network.balancer)?;
    let _echoes = start_pair(&network)?;
    let mut balancer = attach(&network, &all_kinds(VIP, &[]))?;
    balancer.wait_until_serving()?;
    let mut flows = open_flows(&network)?;
    balancer.stop(Signal::SIGTERM)?;
    // At the start a failure ends it, with the reason, and what is pinned goes on.
    let mut refused = start_with_fault(&network, &all_kinds(VIP, &["idle = \"20m\""]), "fail:1")?;
    ensure!(!refused.wait(EVENTUALLY)?.success(), "{}", refused.output()?);
    ensure!(refused.output()?.contains("a failure on purpose"), "{}", refused.output()?);
    ask_again(&mut flows)?;
    balancer = attach(&network, &all_kinds(VIP, &["idle = \"20m\""]))?;
    ask_again(&mut flows)?;
    balancer.wait_until_serving()
}

#[test]
fn a_second_daemon_says_who_has_the_pins() -> Result<()> {
    let network = Network::new("restart-two", Arms::Two)?;
    let _bpffs = Bpffs::mount(&network.balancer)?;
    let _echoes = start_pair(&network)?;
    let balancer = attach(&network, &all_kinds(VIP, &[]))?;
    let files = Files::write(&network.balancer, &all_kinds(VIP, &[]))?;
    let refused = files.attach_in_vain_with(&network.balancer, network.interfaces, &PINNED)?;
    refused.expect(1, &[&format!("process {} (foobar-lb)", balancer.process.id()), "has what is pinned at"])
}

fn attach(network: &Network, services: &str) -> Result<Balancer> {
    Ok(Balancer::attach(&network.balancer, network.interfaces, services, &PINNED)?.quiet())
}

/// Starts a daemon that fails on purpose.
fn start_with_fault(network: &Network, services: &str, fault: &str) -> Result<Process> {
    let words = Files::write(&network.balancer, services)?.attach_words(network.interfaces, &PINNED)?;
    let fault = format!("FOOBAR_LB_TEST_FAULT={fault}");
    network.balancer.start("faulty", &[vec!["env".to_owned(), fault], words].concat())
}

fn open_flows(network: &Network) -> Result<Vec<(Conversation, String)>> {
    let open = |(family, protocol): &(Family, Protocol)| {
        let mut flow = Conversation::open(&network.client, *protocol, VIP.port(*family, VIP_PORT))?;
        let backend = flow.ask()?.backend;
        Ok((flow, backend))
    };
    KINDS.iter().map(open).collect()
}

fn ask_again(flows: &mut [(Conversation, String)]) -> Result<()> {
    flows.iter_mut().try_for_each(|(flow, backend)| flow.expect_answer_from(backend))
}

/// The XDP program of the first interface.
fn program(network: &Network) -> Result<String> {
    let shown = network.balancer.ip("-details link show eth0")?;
    let line = shown.lines().find(|line| line.contains("prog/xdp")).context("no XDP program")?;
    Ok(line.trim().to_owned())
}
