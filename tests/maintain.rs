//! `foobar-lb maintain`: a backend is restarted under load without a failed request, and whatever goes wrong is said.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use lab::wait_until;
use nix::sys::signal::Signal;

use crate::support::balancer::Balancer;
use crate::support::config::tcp_before;
use crate::support::conversation::{Protocol, ask, expect_newcomers_at, open_with};
use crate::support::echo::{Echo, start_pair};
use crate::support::network::{Arms, BACKEND_PORT, Family, Network, VIP, VIP_PORT};
use crate::support::{EVENTUALLY, SOON};

/// Flows that have shown their end are not remembered for longer than idle ones.
const KEYS: [&str; 2] = ["transition = \"2s\"", "idle = \"2s\""];
const PAIR: [(u8, u16); 2] = [(1, 1), (2, 1)];

#[test]
fn a_backend_is_restarted_under_load_without_a_failed_request() -> Result<()> {
    let network = Network::new("maintain-load", Arms::Two)?;
    let [web1, _web2] = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &tcp_before(&PAIR, &KEYS))?;
    let [stop, started] = ["stop", "started"].map(|name| network.lab.directory().join(name));
    let script =
        format!("touch {}; while ! [ -e {} ]; do sleep 0.05; done", stop.display(), started.display());
    let (ends, served) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<()> {
            while !ends.load(Ordering::Relaxed) {
                ask(&network.client, Protocol::Tcp, VIP.port(Family::V4, VIP_PORT))?;
                served.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let maintained = (|| {
            let words = ["maintain", "tcp-v4", "web1", "--timeout", "20s", "--", "sh", "-c", &script];
            let mut maintaining = balancer.start("maintain", &words)?;
            wait_until(EVENTUALLY, "the command to be run", || stop.exists())
                .with_context(|| maintaining.output().unwrap_or_default())?;
            drop(web1);
            balancer.wait_until_down("web1")?;
            let web1 = Echo::start(&network.web1, "web1-again", BACKEND_PORT)?;
            fs::write(&started, "")?;
            let exit = maintaining.wait(EVENTUALLY)?;
            ensure!(exit.success(), "it ended with {exit}: {}", maintaining.output()?);
            ensure!(maintaining.output()?.contains("web1 of tcp-v4 is back"), "{}", maintaining.output()?);
            Ok(web1)
        })();
        ends.store(true, Ordering::Relaxed);
        load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("a request failed")?;
        let _web1 = maintained?;
        ensure!(served.load(Ordering::Relaxed) > 100, "only {served:?} requests were made");
        let vip = VIP.port(Family::V4, VIP_PORT);
        expect_newcomers_at(&network.client, Protocol::Tcp, vip, &["web1-again", "web2"])
    })
}

#[test]
fn what_goes_wrong_is_said_with_the_state_it_is_left_in() -> Result<()> {
    let network = Network::new("maintain-wrong", Arms::Two)?;
    let [web1, web2] = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &tcp_before(&PAIR, &KEYS))?;
    let maintain = |words: &[&str]| {
        let words = [&["maintain", "tcp-v4", "web1"], words].concat();
        let mut maintaining = balancer.start("maintain", &words)?;
        let exit = maintaining.wait(EVENTUALLY)?;
        anyhow::Ok((exit.code(), maintaining.output()?))
    };
    let admin = || anyhow::Ok(balancer.status()?.service("tcp-v4")?.backend("web1")?.admin.clone());

    let (code, said) = maintain(&["--", "false"])?;
    ensure!(code == Some(1) && said.contains("web1 is left drained"), "{code:?}: {said}");
    ensure!(said.contains("foobar-lb backend enable tcp-v4 web1"), "{said}");
    ensure!(admin()? == "draining", "{}", admin()?);
    // As it is drained already, it stays so when nothing was done.
    let (code, said) = maintain(&["--", "/no/such/command"])?;
    ensure!(code == Some(1) && said.contains("stays out of service as it was before"), "{code:?}: {said}");
    balancer.backend(&["enable", "tcp-v4", "web1"])?.expect(0, &[])?;
    let (code, said) = maintain(&["--", "/no/such/command"])?;
    ensure!(code == Some(1) && said.contains("web1 is enabled again"), "{code:?}: {said}");
    ensure!(admin()? == "enabled", "{}", admin()?);
    ensure!(maintain(&[])?.0 == Some(2), "it takes no command for one");

    interrupt_the_wait(&network, &balancer)?;
    ensure!(admin()? == "enabled", "{}", admin()?);
    interrupt_the_command(&network, &balancer)?;
    ensure!(admin()? == "draining", "{}", admin()?);
    balancer.backend(&["enable", "tcp-v4", "web1"])?.expect(0, &[])?;
    drop(web1);
    interrupt_the_return(&balancer)?;
    ensure!(admin()? == "draining", "{}", admin()?);
    balancer.backend(&["enable", "tcp-v4", "web1"])?.expect(0, &[])?;
    let _web1 = Echo::start(&network.web1, "web1", BACKEND_PORT)?;
    balancer.wait_until_serving()?;

    let (code, said) = maintain(&["--min-up", "2", "--", "true"])?;
    ensure!(code == Some(1) && said.contains("1 other backends") && said.contains("2 are needed"), "{said}");
    drop(web2);
    balancer.wait_until_down("web2")?;
    let (code, said) = maintain(&["--", "true"])?;
    ensure!(code == Some(1) && said.contains("web1 stays as it is"), "{code:?}: {said}");
    ensure!(admin()? == "enabled", "{}", admin()?);
    Ok(())
}

/// Ctrl-C before anything was done.
fn interrupt_the_wait(network: &Network, balancer: &Balancer) -> Result<()> {
    let mut flow = open_with(&network.client, Protocol::Tcp, VIP.port(Family::V4, VIP_PORT), "web1")?;
    let mut maintaining = balancer.start("interrupted", &["maintain", "tcp-v4", "web1", "--", "true"])?;
    maintaining.wait_for_line("web1 is draining", SOON)?;
    flow.expect_answer_from("web1")?;
    maintaining.signal(Signal::SIGINT)?;
    let exit = maintaining.wait(SOON)?;
    let said = maintaining.output()?;
    ensure!(exit.code() == Some(1) && said.contains("interrupted; nothing was done"), "{exit}: {said}");
    ensure!(!said.contains("running true"), "{said}");
    flow.expect_answer_from("web1")
}

/// Ctrl-C while something is done.
fn interrupt_the_command(network: &Network, balancer: &Balancer) -> Result<()> {
    let [begun, may_end] = ["begun", "may-end"].map(|name| network.lab.directory().join(name));
    let script =
        format!("touch {}; while ! [ -e {} ]; do sleep 0.05; done", begun.display(), may_end.display());
    let words = ["maintain", "tcp-v4", "web1", "--", "sh", "-c", &script];
    let mut maintaining = balancer.start("interrupted-command", &words)?;
    wait_until(EVENTUALLY, "the command to be run", || begun.exists())?;
    maintaining.signal(Signal::SIGINT)?;
    fs::write(&may_end, "")?;
    let exit = maintaining.wait(SOON)?;
    let said = maintaining.output()?;
    ensure!(exit.code() == Some(1) && said.contains("interrupted while the command ran"), "{exit}: {said}");
    ensure!(said.contains("web1 is left drained"), "{said}");
    Ok(())
}

/// Ctrl-C when all is done and the backend does not come back.
fn interrupt_the_return(balancer: &Balancer) -> Result<()> {
    balancer.wait_until_down("web1")?;
    let mut maintaining =
        balancer.start("interrupted-return", &["maintain", "tcp-v4", "web1", "--", "true"])?;
    maintaining.wait_for_line("web1 is down", EVENTUALLY)?;
    maintaining.signal(Signal::SIGINT)?;
    let exit = maintaining.wait(SOON)?;
    let said = maintaining.output()?;
    ensure!(
        exit.code() == Some(1) && said.contains("interrupted before web1 was found to be up"),
        "{exit}: {said}"
    );
    ensure!(said.contains("web1 is left drained"), "{said}");
    Ok(())
}
