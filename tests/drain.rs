//! What the operator says of backends while they serve: drain, disable, enable, weight.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{wait_for, wait_until};

use crate::support::EVENTUALLY;
use crate::support::balancer::{Balancer, Ending, binary};
use crate::support::config::{all_kinds, service_name, tcp_before};
use crate::support::conversation::{Conversation, KINDS, Protocol, connect, expect_newcomers_at, open_with};
use crate::support::echo::{Echo, start_pair};
use crate::support::network::{Arms, BACKEND_PORT, Family, Network, VIP, VIP_PORT};

const TRANSITION: &str = "transition = \"1s\"";

#[test]
fn several_backends_drain_at_once() -> Result<()> {
    let network = Network::new("drain-several", Arms::Two)?;
    let web3 = network.add_backend(3)?;
    let _pair = start_pair(&network)?;
    let _web3 = Echo::start(&web3, "web3", BACKEND_PORT)?;
    let balancer = Balancer::serve(&network, &tcp_before(&[(1, 1), (2, 1), (3, 1)], &[TRANSITION]))?;
    for family in Family::BOTH {
        let service = service_name(family, Protocol::Tcp);
        let vip = VIP.port(family, VIP_PORT);
        let open = |backend| open_with(&network.client, Protocol::Tcp, vip, backend);
        let mut flows = [("web1", open("web1")?), ("web2", open("web2")?), ("web3", open("web3")?)];

        balancer
            .backend(&["drain", &service, "web1", "web2"])?
            .expect(0, &["web1, web2", &service, "draining"])?;
        balancer.status_text().and_then(|text| expect_words(&text, &["draining", "silent ones unknown"]))?;
        expect_newcomers_at(&network.client, Protocol::Tcp, vip, &["web3"])?;
        expect_answers(&mut flows)?;
        balancer.wait_until("the transition to be over", |status| {
            let mut drains = status.services.iter().flat_map(|service| &service.backends);
            drains.all(|backend| {
                backend.drain.as_ref().is_none_or(|drain| {
                    drain.seen == Some(1) && drain.silent_for_seconds.is_none() && !drain.over
                })
            })
        })?;
        balancer
            .status_text()
            .and_then(|text| expect_words(&text, &["1 flows seen, the quietest last at ", ", no others"]))?;
        expect_answers(&mut flows)?;

        drop(flows);
        balancer.wait_until("no flows to be left", |status| {
            let of_backends = ["web1", "web2"].into_iter().flat_map(|backend| status.backends(backend));
            of_backends.filter_map(|backend| backend.drain.as_ref()).all(|drain| drain.seen == Some(0))
        })?;
        balancer.backend(&["enable", &service, "web1", "web2"])?.expect(0, &["enabled"])?;
        expect_newcomers_at(&network.client, Protocol::Tcp, vip, &["web1", "web2", "web3"])?;
    }
    Ok(())
}

#[test]
fn a_port_that_is_used_again_gets_another_backend() -> Result<()> {
    let network = Network::new("drain-port", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    // The client may use a port a second after it closed a connection from it.
    network.client.set_sysctl("net.ipv4.tcp_tw_reuse", "1")?;
    let balancer = Balancer::serve(&network, &tcp_before(&[(1, 1), (2, 1)], &["transition = \"5s\""]))?;
    for family in Family::BOTH {
        let service = service_name(family, Protocol::Tcp);
        let vip = VIP.port(family, VIP_PORT);
        let open = || open_with(&network.client, Protocol::Tcp, vip, "web1");
        let mut flows = [open()?, open()?, open()?, open()?];
        balancer.backend(&["drain", &service, "web1"])?.expect(0, &[])?;
        flows.iter_mut().try_for_each(|flow| flow.expect_answer_from("web1"))?;

        let [closed, aborted, closed_later, aborted_later] = flows;
        use_port_again(&network, closed, vip, |flow| Ok(drop(flow)))?;
        use_port_again(&network, aborted, vip, Conversation::abort)?;
        balancer.wait_until("the transition to be over", |status| {
            status.drain(&service, "web1").is_some_and(|drain| drain.silent_for_seconds.is_none())
        })?;
        use_port_again(&network, closed_later, vip, |flow| Ok(drop(flow)))?;
        use_port_again(&network, aborted_later, vip, Conversation::abort)?;
    }
    Ok(())
}

#[test]
fn a_port_that_a_killed_server_reset_gets_another_backend() -> Result<()> {
    let network = Network::new("drain-killed", Arms::Two)?;
    let [web1, _web2] = start_pair(&network)?;
    let services = tcp_before(&[(1, 1), (2, 1)], &["transition = \"60s\""]);
    let balancer = Balancer::serve(&network, &services)?;
    let open = |family| open_with(&network.client, Protocol::Tcp, VIP.port(family, VIP_PORT), "web1");
    let mut flows = [open(Family::V4)?, open(Family::V6)?];
    for family in Family::BOTH {
        balancer.backend(&["drain", &service_name(family, Protocol::Tcp), "web1"])?.expect(0, &[])?;
    }
    flows.iter_mut().try_for_each(|flow| flow.expect_answer_from("web1"))?;
    drop(web1);
    for (family, mut flow) in Family::BOTH.into_iter().zip(flows) {
        let port = flow.local_address()?;
        // The server's end came first; its kernel answers what is sent after that with a reset.
        ensure!(flow.ask().is_err(), "a server that is gone answered");
        flow.wait_for_reset()?;
        drop(flow);
        begin_again(&network, port, VIP.port(family, VIP_PORT))?;
    }
    Ok(())
}

#[test]
fn draining_the_last_backend_must_be_forced() -> Result<()> {
    let network = Network::new("drain-last", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &tcp_before(&[(1, 1), (2, 1)], &[TRANSITION]))?;
    let vip = VIP.port(Family::V4, VIP_PORT);
    let open = |backend| open_with(&network.client, Protocol::Tcp, vip, backend);
    let mut flows = [("web1", open("web1")?), ("web2", open("web2")?)];

    balancer.backend(&["drain", "tcp-v4", "web1"])?.expect(0, &[])?;
    let refused = balancer.backend(&["drain", "tcp-v4", "web2"])?;
    refused.expect(1, &["leaves service `tcp-v4` without a backend", "new flows are dropped", "--force"])?;
    expect_newcomers_at(&network.client, Protocol::Tcp, vip, &["web2"])?;
    at_a_terminal(&network, &balancer, "n\n")?.expect(1, &["Go on? [y/N]"])?;
    expect_newcomers_at(&network.client, Protocol::Tcp, vip, &["web2"])?;
    at_a_terminal(&network, &balancer, "y\n")?.expect(0, &["Go on? [y/N]", "web2 of tcp-v4: draining"])?;
    balancer.backend(&["enable", "tcp-v4", "web2"])?.expect(0, &[])?;
    let warned = balancer.backend(&["drain", "tcp-v4", "web2", "--force"])?;
    warned.expect(0, &["warning: no backend of tcp-v4 is enabled", "new flows are dropped"])?;
    let before = balancer.counted("no_backend")?;
    let refused = connect(&network.client, vip, Duration::from_millis(500))?;
    ensure!(refused.is_err(), "somebody answered");
    ensure!(balancer.counted("no_backend")? > before, "the packet is not counted");
    expect_answers(&mut flows)?;

    balancer.backend(&["enable", "tcp-v4", "web2"])?.expect(0, &[])?;
    expect_newcomers_at(&network.client, Protocol::Tcp, vip, &["web2"])?;
    expect_answers(&mut flows)
}

#[test]
fn a_disabled_backend_loses_its_flows_at_once() -> Result<()> {
    let network = Network::new("drain-disable", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[TRANSITION]))?;
    for (family, protocol) in KINDS {
        let service = service_name(family, protocol);
        let vip = VIP.port(family, VIP_PORT);
        let open = |backend| open_with(&network.client, protocol, vip, backend);
        let (mut leaving, mut staying) = (open("web1")?, open("web2")?);

        balancer.backend(&["disable", &service, "web1"])?.expect(0, &["web1", "disabled"])?;
        match protocol {
            Protocol::Tcp => leaving.expect_reset()?,
            Protocol::Udp => leaving.expect_answer_from("web2")?,
        }
        staying.expect_answer_from("web2")?;
        expect_newcomers_at(&network.client, protocol, vip, &["web2"])?;

        balancer.backend(&["enable", &service, "web1"])?.expect(0, &["enabled"])?;
        staying.expect_answer_from("web2")?;
        // Where nothing shows that a flow is new, new ones follow only when the transition is over.
        wait_until(EVENTUALLY, &format!("{service} to use web1 again"), || open("web1").is_ok())?;
    }
    Ok(())
}

#[test]
fn weights_shift_shares() -> Result<()> {
    let network = Network::new("drain-weight", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let services = |weight| tcp_before(&[(1, weight), (2, 1)], &[TRANSITION]);
    let balancer = Balancer::serve(&network, &services(1))?;
    let vip = VIP.port(Family::V4, VIP_PORT);
    let open = |backend| open_with(&network.client, Protocol::Tcp, vip, backend);
    let mut flows = [("web1", open("web1")?), ("web2", open("web2")?)];
    let expect_share = |wanted: f64| {
        let share = balancer.status()?.service("tcp-v4")?.share("web1")?;
        ensure!((share - wanted).abs() < 0.01, "web1 has {share} of the slots, not {wanted}");
        Ok(())
    };

    balancer.backend(&["weight", "tcp-v4", "web1", "3"])?.expect(0, &["web1", "weight 3"])?;
    expect_share(0.75)?;
    balancer.backend(&["weight", "tcp-v4", "web1", "1001"])?.expect(2, &["1001", "0..=1000"])?;
    expect_share(0.75)?;
    balancer.backend(&["weight", "tcp-v4", "web1", "0"])?.expect(0, &["warning: web1 gets no new flows"])?;
    expect_share(0.0)?;
    expect_newcomers_at(&network.client, Protocol::Tcp, vip, &["web2"])?;
    expect_answers(&mut flows)?;
    balancer.backend(&["enable", "tcp-v4", "web1"])?.expect(0, &[])?;
    expect_share(0.5)?;

    balancer.backend(&["weight", "tcp-v4", "web1", "3"])?.expect(0, &[])?;
    balancer.reconfigure(&services(1))?;
    expect_share(0.75).context("a reload that leaves the weight as it was in the file")?;
    balancer.reconfigure(&services(9))?;
    expect_share(0.9).context("a reload that changes the weight")?;
    expect_answers(&mut flows)
}

#[test]
fn names_that_do_not_exist_are_refused() -> Result<()> {
    let network = Network::new("drain-names", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &tcp_before(&[(1, 1), (2, 1)], &[]))?;
    let refused = balancer.backend(&["drain", "tcp-v5", "web1"])?;
    refused.expect(1, &["no service `tcp-v5`", "did you mean `tcp-v4`?"])?;
    let refused = balancer.backend(&["disable", "tcp-v4", "web1", "wbe2"])?;
    refused.expect(1, &["service `tcp-v4` has no backend `wbe2`", "did you mean `web2`?"])?;
    balancer.backend(&["enable", "tcp-v4"])?.expect(2, &["BACKEND"])?;
    balancer.backend(&["weight", "tcp-v4", "nobody", "1"])?.expect(1, &["use `web1` or `web2`"])?;
    let status = balancer.status()?;
    let untouched = status.backends("web1").all(|backend| backend.admin == "enabled");
    ensure!(untouched, "a refused command changed something: {status:#?}");
    Ok(())
}

#[test]
fn when_the_drain_time_is_over_flows_are_picked_again() -> Result<()> {
    let network = Network::new("drain-time", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let keys = [TRANSITION, "drain_time = \"3s\""];
    let balancer = Balancer::serve(&network, &tcp_before(&[(1, 1), (2, 1)], &keys))?;
    for family in Family::BOTH {
        let service = service_name(family, Protocol::Tcp);
        let vip = VIP.port(family, VIP_PORT);
        let mut flow = open_with(&network.client, Protocol::Tcp, vip, "web1")?;
        balancer.backend(&["drain", &service, "web1"])?.expect(0, &[])?;
        flow.expect_answer_from("web1")?;
        balancer.status_text().and_then(|text| expect_words(&text, &["those left are re-picked at"]))?;
        balancer.wait_until("the drain to be over", |status| {
            status
                .drain(&service, "web1")
                .is_some_and(|drain| drain.over && drain.remaining_seconds.is_none())
        })?;
        flow.expect_reset()?;
        balancer.wait_until("the flow to be counted", |status| {
            let backend = status.service(&service).and_then(|service| service.backend("web1"));
            backend.is_ok_and(|backend| backend.repicked == 1)
        })?;
        balancer.status_text().and_then(|text| expect_words(&text, &["its drain time is over"]))?;
    }
    Ok(())
}

#[test]
fn udp_flows_stay_where_their_backend_drains() -> Result<()> {
    let network = Network::new("drain-udp-keep", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[TRANSITION, "udp_drain = \"keep\""]))?;
    for family in Family::BOTH {
        let service = service_name(family, Protocol::Udp);
        let vip = VIP.port(family, VIP_PORT);
        let mut flow = open_with(&network.client, Protocol::Udp, vip, "web1")?;
        balancer.backend(&["drain", &service, "web1"])?.expect(0, &[])?;
        flow.expect_answer_from("web1").context("during the transition")?;
        balancer.wait_until("the transition to be over", |status| {
            status.drain(&service, "web1").is_some_and(|drain| drain.silent_for_seconds.is_none())
        })?;
        flow.expect_answer_from("web1").context("after the transition")?;
        expect_newcomers_at(&network.client, Protocol::Udp, vip, &["web2"])?;
    }
    Ok(())
}

#[test]
fn udp_flows_switch_at_once_where_that_is_wanted() -> Result<()> {
    let network = Network::new("drain-udp-switch", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &["udp_drain = \"switch\""]))?;
    let mut flow = drain_udp(&network, &balancer)?;
    flow.expect_answer_from("web2")
}

#[test]
fn remembered_udp_flows_stay_where_all_others_switch() -> Result<()> {
    let network = Network::new("drain-udp-all", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let keys = ["udp_drain = \"switch\"", "remember = \"all\""];
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &keys))?;
    let mut flow = drain_udp(&network, &balancer)?;
    flow.expect_answer_from("web1")
}

/// Drains `web2` with somebody at a terminal who types this.
fn at_a_terminal(network: &Network, balancer: &Balancer, typed: &str) -> Result<Ending> {
    let drain = format!("{} backend drain tcp-v4 web2 --socket {}", binary()?, balancer.socket().display());
    let mut script = network.balancer.command("script");
    script.args(["--quiet", "--return", "--command", &drain, "/dev/null"]);
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    script.stdin.take().context("it has an input")?.write_all(typed.as_bytes())?;
    Ok(script.wait_with_output()?.into())
}

/// The flow is with `web1`, which drains; when it has ended, a new one from its port must be with `web2`.
fn use_port_again(
    network: &Network,
    mut flow: Conversation,
    vip: SocketAddr,
    end: impl FnOnce(Conversation) -> Result<()>,
) -> Result<()> {
    flow.expect_answer_from("web1")?;
    let port = flow.local_address()?;
    end(flow)?;
    begin_again(network, port, vip)
}

/// A new flow from the port must be with `web2`.
fn begin_again(network: &Network, port: SocketAddr, vip: SocketAddr) -> Result<()> {
    let mut flow = wait_for(EVENTUALLY, "the port to be free", || {
        Conversation::open_from(&network.client, port, Protocol::Tcp, vip).ok()
    })?;
    flow.expect_answer_from("web2")
}

/// Drains `web1` of a flow that it has; new flows must go elsewhere at once. Returns that flow.
fn drain_udp(network: &Network, balancer: &Balancer) -> Result<Conversation> {
    let vip = VIP.port(Family::V4, VIP_PORT);
    let flow = open_with(&network.client, Protocol::Udp, vip, "web1")?;
    balancer.backend(&["drain", "udp-v4", "web1"])?.expect(0, &[])?;
    expect_newcomers_at(&network.client, Protocol::Udp, vip, &["web2"])?;
    Ok(flow)
}

fn expect_answers(flows: &mut [(&str, Conversation)]) -> Result<()> {
    flows.iter_mut().try_for_each(|(backend, flow)| flow.expect_answer_from(backend))
}

fn expect_words(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "the status does not say {word:?}:\n{text}");
    }
    Ok(())
}
