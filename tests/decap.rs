//! A backend by `foobar-lb decap`: what a `tunnel` or `dsr` service sends it is answered, nobody else learns that it has
//! the VIPs, and however it ends, nothing of it stays.

use anyhow::{Context, Result, ensure};
use lab::Namespace;
use nix::sys::signal::Signal;

use crate::support::SOON;
use crate::support::balancer::{Ending, binary};
use crate::support::conversation::KINDS;
use crate::support::decap::{Arrival, Decap, GUE_PORT, Stage, start_in_vain, vips, words};
use crate::support::network::{Family, VIP, dual};
use crate::support::traces::Traces;

#[test]
fn whatever_the_outer_headers_the_backend_answers() -> Result<()> {
    let stage = Stage::new("decap-answers")?;
    // Strict filtering must not be in the way.
    stage.backend().set_sysctl("net.ipv4.conf.all.rp_filter", "1")?;
    let port = GUE_PORT.to_string();
    let decap = Decap::start(&stage, &["--gue-port", &port])?;
    let servers = stage.serve()?;
    for arrival in Arrival::tunnelled() {
        for (family, protocol) in KINDS {
            stage.expect_answer(arrival, family, protocol)?;
        }
    }
    drop(servers);
    let output = decap.stop(Signal::SIGTERM)?;
    ensure!(counted(&output, "decapsulated")? > 24, "too little is counted: {output}");
    ensure!(counted(&output, "not_for_vip")? == 0, "nothing was for others: {output}");
    Ok(())
}

#[test]
fn in_generic_mode_too() -> Result<()> {
    let stage = Stage::new("decap-generic")?;
    let port = GUE_PORT.to_string();
    let decap = Decap::start(&stage, &["--gue-port", &port, "--xdp-mode", "generic"])?;
    let _servers = stage.serve()?;
    for arrival in Arrival::tunnelled() {
        for (family, protocol) in KINDS {
            stage.expect_answer(arrival, family, protocol)?;
        }
    }
    decap.stop(Signal::SIGINT).map(drop)
}

/// A driver takes only programs for frames of several buffers where its MTU is larger than a page.
#[test]
fn with_jumbo_frames_too() -> Result<()> {
    let stage = Stage::new("decap-jumbo")?;
    stage.network.switch.ip("link set web1 mtu 9000")?;
    stage.backend().ip("link set eth0 mtu 9000")?;
    let decap = Decap::start(&stage, &["--xdp-mode", "native"])?;
    let _servers = stage.serve()?;
    for (family, protocol) in KINDS {
        stage.expect_answer(Arrival::Ip(Family::V4), family, protocol)?;
    }
    decap.stop(Signal::SIGINT).map(drop)
}

#[test]
fn a_backend_of_dsr_answers_and_has_no_program() -> Result<()> {
    let stage = Stage::new("decap-dsr")?;
    let before = Before::of(&stage)?;
    let decap = Decap::start(&stage, &["--dsr"])?;
    ensure!(!Traces::of(stage.backend())?.has_xdp(), "a program is attached");
    let servers = stage.serve()?;
    for (family, protocol) in KINDS {
        stage.expect_answer(Arrival::Plain, family, protocol)?;
    }
    drop(servers);
    decap.stop(Signal::SIGTERM)?;
    before.expect_no_change(&stage)
}

#[test]
fn nobody_learns_that_the_vip_is_here() -> Result<()> {
    let stage = Stage::new("decap-quiet")?;
    let backend = stage.backend();
    put_vips(backend)?;
    let before = Before::of(&stage)?;
    ensure!(stage.tells_of_vip(Family::V4)?, "the test cannot see ARP replies");
    let decap = Decap::start(&stage, &["--dsr"])?;
    for family in Family::BOTH {
        ensure!(!stage.tells_of_vip(family)?, "{family:?}: the backend tells that it has the VIP");
    }
    let servers = stage.serve()?;
    backend.ip("neighbour flush dev eth0")?;
    stage.expect_answer(Arrival::Plain, Family::V4, KINDS[0].1)?;
    let from = stage.asked_from()?;
    ensure!(!from.is_empty(), "it did not ask for its gateway");
    ensure!(!from.contains(&VIP.of(Family::V4)), "its own ARP requests tell of the VIP");
    drop(servers);
    decap.stop(Signal::SIGTERM)?;
    // The VIPs were there before, and ARP told of them.
    ensure!(stage.tells_of_vip(Family::V4)?, "ARP is still quiet");
    before.expect_no_change(&stage)
}

#[test]
fn it_ends_cleanly_as_often_as_it_starts() -> Result<()> {
    let stage = Stage::new("decap-often")?;
    stage.backend().set_sysctl("net.ipv4.conf.eth0.rp_filter", "1")?;
    let before = Before::of(&stage)?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let decap = Decap::start(&stage, &[])?;
        ensure!(Traces::of(stage.backend())?.has_xdp(), "no program is attached");
        for vip in vips() {
            ensure!(addresses(stage.backend())?.contains(&vip.to_string()), "{vip} is not on lo");
        }
        ensure!(stage.backend().sysctl("net.ipv4.conf.eth0.rp_filter")? == "2", "filtering is strict");
        decap.stop(signal)?;
        before.expect_no_change(&stage)?;
    }
    Ok(())
}

#[test]
fn a_new_start_cleans_up_after_a_crash() -> Result<()> {
    let stage = Stage::new("decap-crash")?;
    let backend = stage.backend();
    backend.set_sysctl("net.ipv4.conf.eth0.rp_filter", "1")?;
    let before = Before::of(&stage)?;
    let mut crashed = Decap::start(&stage, &[])?;
    crashed.process.kill()?;
    ensure!(addresses(backend)?.contains("203.0.113.80/32"), "there is nothing to clean up");
    for family in Family::BOTH {
        ensure!(!stage.tells_of_vip(family)?, "{family:?}: after a crash it tells that it has the VIP");
    }
    let other = dual([203, 0, 113, 81], [0x2001, 0xdb8], 0x81).of(Family::V4);
    let decap = Decap::start_for(&stage, &[VIP.of(Family::V6), other], &[])?;
    let now = addresses(backend)?;
    ensure!(now.contains("203.0.113.81/32") && now.contains("2001:db8::80/128"), "VIPs are missing: {now}");
    ensure!(!now.contains("203.0.113.80/32"), "a VIP that nobody asked for any more is still there: {now}");
    decap.stop(Signal::SIGTERM)?;
    before.expect_no_change(&stage)
}

#[test]
fn what_it_refuses_it_names() -> Result<()> {
    let stage = Stage::new("decap-refused")?;
    let backend = stage.backend();
    let before = Before::of(&stage)?;
    start_in_vain(backend, &["eth0", "eth7"], &vips(), &[])?.expect(1, &["eth7", "eth0"])?;
    start_in_vain(backend, &["eth0", "eth0"], &vips(), &[])?.expect(1, &["eth0 is named twice"])?;
    start_in_vain(backend, &["eth7"], &vips(), &["--dsr"])?.expect(1, &["eth7"])?;
    for (vip, words) in [
        ("203.0.113.80:80", "without port or prefix"),
        ("203.0.113.0/24", "without port or prefix"),
        ("eth1", "without port or prefix"),
        ("127.0.0.1", "no client can ask"),
        ("ff02::1", "no client can ask"),
        ("::ffff:203.0.113.80", "no client can ask"),
    ] {
        let ending = Ending::from(backend.command(binary()?).args(["decap", "eth0", "--vip", vip]).output()?);
        ending.expect(2, &[vip, words])?;
    }
    before.expect_no_change(&stage)
}

#[test]
fn it_refuses_to_run_twice_or_beside_another_program() -> Result<()> {
    let stage = Stage::new("decap-twice")?;
    let backend = stage.backend();
    let decap = Decap::start(&stage, &[])?;
    let running = Before::of(&stage)?;
    start_in_vain(backend, &["eth0"], &vips(), &[])?.expect(1, &["eth0 already runs", "foobar_lb_decap"])?;
    start_in_vain(backend, &["eth0"], &vips(), &["--dsr"])?.expect(1, &["another `foobar-lb decap`"])?;
    running.expect_no_change(&stage)?;
    decap.stop(Signal::SIGTERM).map(drop)
}

#[test]
fn missing_privileges() -> Result<()> {
    let stage = Stage::new("decap-privileges")?;
    let before = Before::of(&stage)?;
    let unprivileged = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"];
    let mut command = unprivileged.map(str::to_owned).to_vec();
    command.extend(words(stage.backend(), &["eth0"], &vips(), &[])?);
    let mut process = stage.backend().start("unprivileged", &command)?;
    let exit = process.wait(SOON)?;
    Ending { code: exit.code(), output: process.output()? }.expect(1, &["CAP_BPF", "CAP_NET_ADMIN"])?;
    before.expect_no_change(&stage)
}

#[test]
fn a_start_that_fails_half_way_is_undone() -> Result<()> {
    let stage = Stage::new("decap-half-way")?;
    // The VIP of IPv4 is put on lo first, then that of IPv6 is refused.
    stage.backend().set_sysctl("net.ipv6.conf.lo.disable_ipv6", "1")?;
    let before = Before::of(&stage)?;
    let refusal = start_in_vain(stage.backend(), &["eth0"], &vips(), &[])?;
    refusal.expect(1, &[&format!("cannot put the VIP {} on lo", VIP.of(Family::V6))])?;
    before.expect_no_change(&stage)
}

/// The part of a recipe that this kernel has no devices for is read by people only.
#[test]
fn the_recipe_makes_a_backend_and_undoes_it() -> Result<()> {
    let stage = Stage::new("decap-recipe")?;
    let backend = stage.backend();
    backend.set_sysctl("net.ipv4.conf.eth0.rp_filter", "1")?;
    let before = Before::of(&stage)?;
    let recipe = backend.run(words(backend, &["eth0"], &vips(), &["--dsr", "--print-recipe"])?)?;
    before.expect_no_change(&stage).context("printing changed something")?;
    let (to_do, to_undo) = recipe.split_once("# To undo it:").context("it does not tell how to undo it")?;
    backend.run(["sh", "-e", "-c", to_do])?;
    let servers = stage.serve()?;
    for (family, protocol) in KINDS {
        ensure!(!stage.tells_of_vip(family)?, "{family:?}: the backend tells that it has the VIP");
        stage.expect_answer(Arrival::Plain, family, protocol)?;
    }
    drop(servers);
    backend.run(["sh", "-e", "-c", to_undo])?;
    before.expect_no_change(&stage)
}

/// How things are on the backend: what attaching may change, and the addresses of lo.
struct Before {
    traces: Traces,
    addresses: String,
}

impl Before {
    fn of(stage: &Stage) -> Result<Self> {
        let backend = stage.backend();
        Ok(Self { traces: Traces::of(backend)?, addresses: addresses(backend)? })
    }

    /// Everything must be as it was then.
    fn expect_no_change(&self, stage: &Stage) -> Result<()> {
        self.traces.expect_no_change(stage.backend())?;
        let now = addresses(stage.backend())?;
        ensure!(now == self.addresses, "the addresses of lo are not as before: {now}");
        Ok(())
    }
}

fn put_vips(backend: &Namespace) -> Result<()> {
    backend.add_address("lo", &format!("{}/32", VIP.v4()))?;
    backend.add_address("lo", &format!("{}/128", VIP.v6()))
}

fn addresses(namespace: &Namespace) -> Result<String> {
    namespace.ip("address show dev lo")
}

/// Packets counted under a name in what was printed at the end.
fn counted(output: &str, outcome: &str) -> Result<u64> {
    let line = output.lines().find_map(|line| line.strip_prefix(outcome));
    Ok(line.with_context(|| format!("no {outcome} in {output}"))?.trim().parse()?)
}
