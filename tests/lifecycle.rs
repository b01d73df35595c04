//! However the balancer ends, and however often, the next start finds a clean machine.

use anyhow::{Context, Result, ensure};
use lab::wait_until;
use nix::sys::signal::Signal;

use crate::support::SOON;
use crate::support::balancer::{Balancer, Files};
use crate::support::config::all_kinds;
use crate::support::conversation::{Conversation, KINDS, ask};
use crate::support::echo::start_pair;
use crate::support::network::{Arms, Network, VIP, VIP_PORT};
use crate::support::traces::Traces;

#[test]
fn it_ends_cleanly_as_often_as_it_starts() -> Result<()> {
    let network = Network::new("lifecycle-often", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let before = Traces::of(&network.balancer)?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
        check_services(&network)?;
        balancer.stop(signal)?;
        before.expect_no_change(&network.balancer)?;
    }
    Ok(())
}

#[test]
fn detach_takes_it_off_one_interface_and_then_ends_it() -> Result<()> {
    let network = Network::new("lifecycle-detach", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let before = Traces::of(&network.balancer)?;
    let mut balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    balancer.detach(&["eth0"])?.expect(0, &["detached from eth0\n"])?;
    let left = balancer.status()?.interfaces;
    ensure!(left.iter().map(|interface| &interface.name).eq(["eth1"]), "still attached to {left:?}");
    balancer.detach(&["eth0"])?.expect(1, &["not attached to eth0"])?;
    balancer.detach(&[])?.expect(0, &["detached from eth1; the daemon ends"])?;
    let exit = balancer.process.wait(SOON)?;
    ensure!(exit.success(), "foobar-lb ended with {exit}");
    before.expect_no_change(&network.balancer)?;
    balancer.detach(&[])?.expect(0, &["nothing is attached"])
}

#[test]
fn ctrl_c_twice_ends_it_cleanly() -> Result<()> {
    let network = Network::new("lifecycle-twice", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let before = Traces::of(&network.balancer)?;
    let mut balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    balancer.process.signal(Signal::SIGINT)?;
    balancer.process.signal(Signal::SIGINT)?;
    balancer.process.wait(SOON)?;
    before.expect_no_change(&network.balancer)
}

#[test]
fn ctrl_c_while_it_starts_leaves_nothing() -> Result<()> {
    let network = Network::new("lifecycle-early", Arms::Two)?;
    let files = Files::write(&network.balancer, &all_kinds(VIP, &[]))?;
    let before = Traces::of(&network.balancer)?;
    let words = files.attach_words(network.interfaces, &["--sysctl"])?;
    let mut process = network.balancer.start("early", &words)?;
    // The first thing that can be seen of it from outside, whichever that is.
    wait_until(SOON, "a first trace", || Traces::of(&network.balancer).is_ok_and(|now| now != before))?;
    process.signal(Signal::SIGINT)?;
    process.wait(SOON)?;
    before.expect_no_change(&network.balancer)?;
    ensure!(!files.socket.exists(), "its socket is left");
    Ok(())
}

#[test]
fn flows_survive_a_crash_and_a_new_start() -> Result<()> {
    let network = Network::new("lifecycle-crash", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let before = Traces::of(&network.balancer)?;
    let mut crashed = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    let mut flows = KINDS
        .iter()
        .map(|&(family, protocol)| Conversation::open(&network.client, protocol, VIP.port(family, VIP_PORT)))
        .collect::<Result<Vec<_>>>()?;
    let answers = flows.iter_mut().map(Conversation::ask).collect::<Result<Vec<_>>>()?;
    crashed.process.kill()?;

    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[])).context("after kill -9")?;
    for (flow, answer) in flows.iter_mut().zip(answers) {
        let again = flow.ask().context("a flow from before the crash")?;
        ensure!(again == answer, "a flow moved from {answer:?} to {again:?}");
    }
    check_services(&network)?;
    // The sysctls that the crash left changed are restored by the one that came after it.
    balancer.stop(Signal::SIGTERM)?;
    before.expect_no_change(&network.balancer)
}

fn check_services(network: &Network) -> Result<()> {
    for (family, protocol) in KINDS {
        ask(&network.client, protocol, VIP.port(family, VIP_PORT))?;
    }
    Ok(())
}
