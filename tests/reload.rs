//! The configuration is read again while everything goes on: what is wrong changes nothing, what is right breaks
//! nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::balancer::{Balancer, Files};
use crate::support::config::{Service, service_name, services, tcp_before};
use crate::support::conversation::{Conversation, Protocol, ask, connect, expect_newcomers_at, open_with};
use crate::support::echo::{Echo, start_pair};
use crate::support::network::{
    Arms, BACKEND_PORT, Dual, Family, Network, VIP, VIP_PORT, WEB1, WEB2, dual, web,
};

const TEN_MEGABYTES: usize = 10_000_000;
const PAIR: [(u8, u16); 2] = [(1, 1), (2, 1)];
const OTHER_VIP: Dual = dual([203, 0, 113, 81], [0x2001, 0xdb8], 0x81);

#[test]
fn a_wrong_file_changes_nothing() -> Result<()> {
    let network = Network::new("reload-wrong", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let good = tcp_before(&PAIR, &[]);
    let balancer = Balancer::serve(&network, &good)?;
    let mut flows = open_flows(&network)?;

    // It stands below [daemon], which has five lines.
    let wrong = good.replacen("weight = 1", "weight = 1001", 1);
    let line = 7 + wrong.lines().position(|line| line == "weight = 1001").context("it is wrong")?;
    balancer.write_services(&wrong)?;
    balancer.reload()?.expect(2, &[&format!("foobar-lb.toml:{line}:10"), "1001"])?;
    let failure = balancer.status()?.reload_failure.unwrap_or_default();
    ensure!(failure.contains("1001"), "the status does not tell why: {failure:?}");
    ensure!(balancer.status_text()?.contains("NOT RELOADED"), "{}", balancer.status_text()?);
    expect_undisturbed(&network, &mut flows)?;

    fs::remove_file(Files::write(&network.balancer, &good)?.config)?;
    balancer.reload()?.expect(2, &["foobar-lb.toml"])?;
    expect_undisturbed(&network, &mut flows)?;

    balancer.reconfigure(&good)?;
    let failure = balancer.status()?.reload_failure;
    ensure!(failure.is_none(), "still said to have failed: {failure:?}");
    expect_undisturbed(&network, &mut flows)
}

#[test]
fn a_file_that_cannot_be_a_configuration_is_refused_by_what_it_is() -> Result<()> {
    let network = Network::new("reload-odd", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let good = tcp_before(&PAIR, &[]);
    let balancer = Balancer::serve(&network, &good)?;
    let mut flows = open_flows(&network)?;
    let file = balancer.config();
    let text = fs::read_to_string(file)?;

    fs::remove_file(file)?;
    mkfifo(file, Mode::S_IRUSR | Mode::S_IWUSR)?;
    balancer.reload()?.expect(2, &["foobar-lb.toml: error: not a regular file"])?;
    fs::remove_file(file)?;
    symlink("/dev/zero", file)?;
    balancer.reload()?.expect(2, &["not a regular file"])?;
    fs::remove_file(file)?;
    fs::create_dir(file)?;
    balancer.reload()?.expect(2, &["Is a directory"])?;
    fs::remove_dir(file)?;
    fs::File::create(file)?.set_len(1 << 40)?;
    balancer.reload()?.expect(2, &["larger than 16 MiB"])?;
    fs::write(file, b"# \xff\n")?;
    balancer.reload()?.expect(2, &["foobar-lb.toml:1:3: error: not UTF-8"])?;
    fs::write(file, "[[service]]\n".repeat(TEN_MEGABYTES / 12))?;
    balancer.reload()?.expect(2, &["this service has no `name`", " more"])?;
    expect_undisturbed(&network, &mut flows)?;

    // Comments are no services, so this is as good as ever.
    fs::write(file, text + &"# a comment\n".repeat(TEN_MEGABYTES / 12))?;
    balancer.reload()?.expect(0, &["in force: 0 writes"])?;
    expect_undisturbed(&network, &mut flows)
}

#[test]
fn what_cannot_change_is_refused() -> Result<()> {
    let network = Network::new("reload-refused", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &tcp_before(&PAIR, &["table_size = 1009"]))?;
    let mut flows = open_flows(&network)?;
    let refused = [
        (tcp_before(&PAIR, &["table_size = 2003"]), ["table_size", "1009", "2003"]),
        // What comes before the first service belongs to [daemon].
        (format!("flows = 4096\n{}", tcp_before(&PAIR, &["table_size = 1009"])), ["[daemon]", "restart", ""]),
        (tcp_before(&[(1, 1)], &["table_size = 2003"]), ["table_size", "1009", "2003"]),
    ];
    for (services, words) in refused {
        balancer.write_services(&services)?;
        balancer.reload()?.expect(1, &words)?;
        ensure!(balancer.status()?.reload_failure.is_some(), "the status does not tell");
        expect_undisturbed(&network, &mut flows)?;
    }
    Ok(())
}

#[test]
fn sighup_reloads() -> Result<()> {
    let network = Network::new("reload-sighup", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let _web3 = Echo::start(&network.add_backend(3)?, "web3", BACKEND_PORT)?;
    let balancer = Balancer::serve(&network, &tcp_before(&PAIR, &[]))?;
    let mut flows = open_flows(&network)?;

    balancer.write_services("[[service]]\n")?;
    balancer.process.signal(Signal::SIGHUP)?;
    balancer.wait_until("the failure to be shown", |status| status.reload_failure.is_some())?;
    let log = balancer.process.output()?;
    ensure!(log.contains("not reloaded"), "the log does not tell:\n{log}");
    expect_undisturbed(&network, &mut flows)?;

    balancer.write_services(&tcp_before(&[(1, 1), (2, 1), (3, 1)], &[]))?;
    balancer.process.signal(Signal::SIGHUP)?;
    balancer.wait_until("web3 to be there", |status| status.backends("web3").next().is_some())?;
    balancer.wait_until_up("web3")?;
    expect_answers(&mut flows)?;
    for family in Family::BOTH {
        let vip = VIP.port(family, VIP_PORT);
        expect_newcomers_at(&network.client, Protocol::Tcp, vip, &["web1", "web2", "web3"])?;
    }
    Ok(())
}

#[test]
fn services_come_and_go() -> Result<()> {
    let network = Network::new("reload-services", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    for family in Family::BOTH {
        let service = |name: &str, vip: Dual, port, backend: Dual, protocol| {
            let service = Service::new(name, protocol, vip.port(family, port));
            service.backend("web", backend.port(family, BACKEND_PORT))
        };
        let stays = service("stays", VIP, 81, WEB2, Protocol::Tcp);
        let goes = service("goes", VIP, VIP_PORT, WEB1, Protocol::Tcp);
        let comes = service("comes", OTHER_VIP, 443, WEB1, Protocol::Tcp);
        let comes_too = service("comes-too", OTHER_VIP, 53, WEB2, Protocol::Udp);
        let balancer = Balancer::serve(&network, &services(&[goes, stays.clone()]))?;
        let mut flow = Conversation::open(&network.client, Protocol::Tcp, VIP.port(family, 81))?;
        flow.expect_answer_from("web2")?;
        ask(&network.client, Protocol::Tcp, VIP.port(family, VIP_PORT))?;

        balancer.reconfigure(&services(&[comes, stays, comes_too]))?;
        balancer.wait_until_serving()?;
        let come = ask(&network.client, Protocol::Tcp, OTHER_VIP.port(family, 443))?;
        ensure!(come == "web1", "{come} answered");
        let come = ask(&network.client, Protocol::Udp, OTHER_VIP.port(family, 53))?;
        ensure!(come == "web2", "{come} answered");
        flow.expect_answer_from("web2")?;
        let before = balancer.counted("no_service")?;
        let gone = connect(&network.client, VIP.port(family, VIP_PORT), Duration::from_millis(500))?;
        ensure!(gone.is_err(), "the service that is gone answers");
        ensure!(balancer.counted("no_service")? > before, "the packet is not counted");
        balancer.stop(Signal::SIGTERM)?;
    }
    Ok(())
}

#[test]
fn names_and_order_mean_nothing_to_flows() -> Result<()> {
    let network = Network::new("reload-names", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &tcp_before(&PAIR, &[]))?;
    let mut flows = open_flows(&network)?;
    let reversed = tcp_before(&[(2, 1), (1, 1)], &[]);
    let renamed = reversed.replace("\"web1\"", "\"app1\"").replace("\"tcp-v4\"", "\"www\"");
    for services in [reversed, renamed] {
        balancer.reconfigure(&services)?;
        let moving: u32 = balancer.status()?.services.iter().map(|service| service.slots_unsettled).sum();
        ensure!(moving == 0, "{moving} slots move with\n{services}");
        expect_undisturbed(&network, &mut flows)?;
    }
    let status = balancer.status()?;
    let names: Vec<&str> =
        status.service("www")?.backends.iter().map(|backend| backend.name.as_str()).collect();
    ensure!(names == ["web2", "app1"], "the backends are called {names:?}");
    Ok(())
}

#[test]
fn a_backend_moves_to_another_service() -> Result<()> {
    let network = Network::new("reload-moves", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let family = Family::V4;
    let [from, to] = [VIP.port(family, VIP_PORT), OTHER_VIP.port(family, VIP_PORT)];
    let web = |service: Service, number: u8| {
        service.backend(&format!("web{number}"), web(number).port(family, BACKEND_PORT))
    };
    let _web3 = Echo::start(&network.add_backend(3)?, "web3", BACKEND_PORT)?;
    let [a, b] = [Service::new("a", Protocol::Tcp, from), Service::new("b", Protocol::Tcp, to)];
    let before = [web(web(a.clone(), 1), 2), web(b.clone(), 3)];
    let balancer = Balancer::serve(&network, &services(&before))?;
    let mut leaving = open_with(&network.client, Protocol::Tcp, from, "web1")?;
    let mut staying = open_with(&network.client, Protocol::Tcp, from, "web2")?;

    balancer.write_services(&services(&[web(a, 2), web(web(b, 3), 1)]))?;
    balancer.reload()?.expect(0, &["10.0.1.11:8080 was removed and is now in use elsewhere"])?;
    leaving.expect_reset().context("web1 answers for another service now")?;
    staying.expect_answer_from("web2")?;
    expect_newcomers_at(&network.client, Protocol::Tcp, from, &["web2"])?;
    balancer.wait_until_up("web1")?;
    expect_newcomers_at(&network.client, Protocol::Tcp, to, &["web1", "web3"])
}

#[test]
fn a_backend_that_comes_back_finds_its_flows() -> Result<()> {
    let network = Network::new("reload-back", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &tcp_before(&PAIR, &["transition = \"1s\""]))?;
    let mut flows = open_flows(&network)?;
    balancer.reconfigure(&tcp_before(&[(2, 1)], &["transition = \"1s\""]))?;
    expect_answers(&mut flows)?;
    balancer.wait_until("the transition to be over", |status| {
        status.backends("web1").all(|backend| {
            let drain = backend.drain.as_ref();
            backend.admin == "removed"
                && drain.is_some_and(|drain| drain.seen == Some(1) && drain.silent_for_seconds.is_none())
        })
    })?;
    expect_answers(&mut flows)?;
    for family in Family::BOTH {
        expect_newcomers_at(&network.client, Protocol::Tcp, VIP.port(family, VIP_PORT), &["web2"])?;
    }
    let warned = balancer.backend(&["enable", "tcp-v4", "web1"])?;
    warned.expect(0, &["warning: web1 gets no new flows: the configuration has it no more"])?;

    balancer.reconfigure(&tcp_before(&PAIR, &["transition = \"1s\""]))?;
    balancer.wait_until_up("web1")?;
    let status = balancer.status()?;
    let is_back =
        status.backends("web1").all(|backend| backend.admin == "enabled" && backend.drain.is_none());
    ensure!(is_back, "web1 is not what it was: {status:#?}");
    expect_undisturbed(&network, &mut flows)
}

#[test]
fn a_removed_backend_that_falls_silent_is_given_up() -> Result<()> {
    let network = Network::new("reload-silent", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &tcp_before(&PAIR, &["transition = \"1s\""]))?;
    let flows = open_flows(&network)?;
    balancer.reconfigure(&tcp_before(&[(2, 1)], &["transition = \"1s\""]))?;
    network.unplug("web1")?;
    for (backend, mut flow) in flows {
        match backend {
            "web1" => flow.expect_reset()?,
            _ => flow.expect_answer_from(backend)?,
        }
    }
    balancer.wait_until("web1 to be gone", |status| status.backends("web1").next().is_none())
}

#[test]
fn the_keys_of_a_service_change_while_it_serves() -> Result<()> {
    let network = Network::new("reload-keys", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &tcp_before(&PAIR, &[]))?;
    let mut flows = open_flows(&network)?;
    for service in Family::BOTH.map(|family| service_name(family, Protocol::Tcp)) {
        balancer.backend(&["drain", &service, "web1"])?.expect(0, &[])?;
    }
    expect_answers(&mut flows)?;
    let status = balancer.status()?;
    let silent = status.drain("tcp-v4", "web1").and_then(|drain| drain.silent_for_seconds);
    ensure!(silent.is_some_and(|seconds| seconds > 600), "the default transition is 15 minutes: {status:#?}");
    balancer.reconfigure(&tcp_before(&PAIR, &["transition = \"1s\""]))?;
    balancer.wait_until("the shorter transition to be over", |status| {
        status
            .backends("web1")
            .filter_map(|backend| backend.drain.as_ref())
            .all(|drain| drain.silent_for_seconds.is_none() && drain.seen == Some(1))
    })?;
    expect_answers(&mut flows)?;
    for service in Family::BOTH.map(|family| service_name(family, Protocol::Tcp)) {
        balancer.backend(&["enable", &service, "web1"])?.expect(0, &[])?;
    }
    expect_undisturbed(&network, &mut flows)?;

    balancer.reconfigure(&tcp_before(&PAIR, &["transition = \"1s\"", "remember = \"all\""]))?;
    expect_undisturbed(&network, &mut flows)?;
    balancer.reconfigure(&tcp_before(&PAIR, &["transition = \"1s\"", "idle = \"2s\""]))?;
    expect_undisturbed(&network, &mut flows)?;
    balancer.wait_until("all slots to settle", |status| {
        status.services.iter().all(|service| service.slots_unsettled == 0)
    })?;
    expect_undisturbed(&network, &mut flows)
}

#[test]
fn reloads_in_a_row_end_with_the_last() -> Result<()> {
    let network = Network::new("reload-row", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let _web3 = Echo::start(&network.add_backend(3)?, "web3", BACKEND_PORT)?;
    let balancer = Balancer::serve(&network, &tcp_before(&PAIR, &[]))?;
    let mut flows = open_flows(&network)?;
    let sets: [&[(u8, u16)]; 4] = [&[(3, 1)], &[(1, 1)], &[(2, 7), (3, 1)], &[(1, 1), (2, 1)]];
    for set in sets.iter().cycle().take(12) {
        balancer.reconfigure(&tcp_before(set, &[]))?;
        expect_answers(&mut flows).with_context(|| format!("after a reload with {set:?}"))?;
    }
    balancer.wait_until_up("web1")?;
    balancer.wait_until_up("web2")?;
    expect_undisturbed(&network, &mut flows)?;

    std::thread::scope(|scope| {
        let reloads: Vec<_> = (0..4).map(|_| scope.spawn(|| balancer.reload())).collect();
        reloads.into_iter().try_for_each(|reload| {
            reload.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?.expect(0, &[])
        })
    })?;
    expect_undisturbed(&network, &mut flows)
}

/// A connection with each backend of the pair, in each family.
fn open_flows(network: &Network) -> Result<Vec<(&'static str, Conversation)>> {
    let mut flows = Vec::new();
    for family in Family::BOTH {
        for backend in ["web1", "web2"] {
            let vip = VIP.port(family, VIP_PORT);
            flows.push((backend, open_with(&network.client, Protocol::Tcp, vip, backend)?));
        }
    }
    Ok(flows)
}

/// The flows go on, and new ones go to both backends of the pair.
fn expect_undisturbed(network: &Network, flows: &mut [(&str, Conversation)]) -> Result<()> {
    expect_answers(flows)?;
    for family in Family::BOTH {
        let vip = VIP.port(family, VIP_PORT);
        expect_newcomers_at(&network.client, Protocol::Tcp, vip, &["web1", "web2"])
            .with_context(|| service_name(family, Protocol::Tcp))?;
    }
    Ok(())
}

fn expect_answers(flows: &mut [(&str, Conversation)]) -> Result<()> {
    flows.iter_mut().try_for_each(|(backend, flow)| flow.expect_answer_from(backend))
}
