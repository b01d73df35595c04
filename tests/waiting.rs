//! `backend drain --wait` ends when the flows have ended, and not before those that are silent could be known.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::wait_until;
use nix::sys::signal::Signal;

use crate::support::balancer::Balancer;
use crate::support::config::tcp_before;
use crate::support::conversation::{Protocol, open_with};
use crate::support::echo::start_pair;
use crate::support::network::{Arms, Family, Network, VIP, VIP_PORT};
use crate::support::{EVENTUALLY, SOON};

const TRANSITION: Duration = Duration::from_secs(3);
/// A flow that has shown its end is not remembered for longer than one that is idle.
const KEYS: [&str; 2] = ["transition = \"3s\"", "idle = \"4s\""];

#[test]
fn it_ends_with_the_last_flow_and_not_before_the_transition() -> Result<()> {
    let network = Network::new("waiting-last", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &tcp_before(&[(1, 1), (2, 1)], &KEYS))?;
    let vip = VIP.port(Family::V4, VIP_PORT);

    let began = Instant::now();
    let mut waiting = balancer.start("nobody", &["backend", "drain", "tcp-v6", "web1", "--wait"])?;
    let exit = waiting.wait(EVENTUALLY)?;
    ensure!(exit.success(), "it ended with {exit}: {}", waiting.output()?);
    ensure!(began.elapsed() >= TRANSITION, "it did not wait for silent flows: {:?}", began.elapsed());

    let mut flow = open_with(&network.client, Protocol::Tcp, vip, "web1")?;
    let mut waiting = balancer.start("one", &["backend", "drain", "tcp-v4", "web1", "--wait"])?;
    waiting.wait_for_line("web1 of tcp-v4: draining", SOON)?;
    wait_until(EVENTUALLY, "the transition to be over", || {
        flow.expect_answer_from("web1").is_ok()
            && waiting.output().is_ok_and(|output| output.contains("1 flows seen, the quietest last at "))
    })?;
    flow.expect_answer_from("web1")?;
    ensure!(!waiting.has_ended()?, "it ended before the flow: {}", waiting.output()?);
    drop(flow);
    let exit = waiting.wait(EVENTUALLY)?;
    ensure!(exit.success(), "it ended with {exit}: {}", waiting.output()?);
    ensure!(waiting.output()?.contains("no flows to wait for are left"), "{}", waiting.output()?);
    Ok(())
}

#[test]
fn a_daemon_that_is_restarted_meanwhile_is_waited_for() -> Result<()> {
    let network = Network::new("waiting-restart", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let services = tcp_before(&[(1, 1), (2, 1)], &KEYS);
    let mut balancer = Balancer::serve(&network, &services)?;
    let mut waiting = balancer.start("wait", &["backend", "drain", "tcp-v4", "web1", "--wait"])?;
    waiting.wait_for_line("web1 of tcp-v4: draining", SOON)?;
    balancer.process.kill()?;
    waiting.wait_for_line("the daemon does not answer; waiting for it", SOON)?;
    let balancer = Balancer::attach(&network.balancer, network.interfaces, &services, &["--sysctl"])?;
    let exit = waiting.wait(EVENTUALLY)?;
    ensure!(exit.success(), "it ended with {exit}: {}", waiting.output()?);
    let admin = balancer.status()?.service("tcp-v4")?.backend("web1")?.admin.clone();
    ensure!(admin == "draining", "{admin}");
    Ok(())
}

#[test]
fn whatever_ends_it_early_does_not_end_the_drain() -> Result<()> {
    let network = Network::new("waiting-early", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &tcp_before(&[(1, 1), (2, 1)], &[]))?;
    let drain = |service| ["backend", "drain", service, "web1", "--wait", "--timeout"];
    let late = balancer.command(&[&drain("tcp-v4")[..], &["1s"]].concat())?;
    late.expect(1, &["1s are over", "the drain goes on", "foobar-lb backend enable tcp-v4 web1"])?;

    let words = [&drain("tcp-v6")[..], &["100000000000y"]].concat();
    let mut waiting = balancer.start("interrupted", &words)?;
    waiting.wait_for_line("silent ones unknown until", SOON)?;
    waiting.signal(Signal::SIGINT)?;
    let exit = waiting.wait(SOON)?;
    ensure!(exit.code() == Some(1), "it ended with {exit}");
    ensure!(waiting.output()?.contains("the drain goes on"), "{}", waiting.output()?);
    let drains = balancer.status()?.backends("web1").all(|backend| backend.admin == "draining");
    ensure!(drains, "a drain ended with the wait");
    balancer.backend(&["drain", "tcp-v4", "web2", "--timeout", "1s"])?.expect(2, &["--wait"])
}
