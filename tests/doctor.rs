//! What `foobar-lb doctor` finds: every fault is made in a lab, found, and undone; a healthy lab yields nothing.

mod daemon;
mod host;
mod owners;
mod tables;

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::support::balancer::{Balancer, Ending, Files, foobar_lb};
use crate::support::config::{tcp_before, tcp_before_with};
use crate::support::echo::start_pair;
use crate::support::network::{Arms, BACKEND_GATEWAY, Dual, Family, Network, ROUTER, VIP};
use crate::support::site::{Mode, Site};

/// What `--json` prints, as far as it is looked at.
#[derive(Debug, Deserialize)]
struct Report {
    findings: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
struct Finding {
    id: String,
    place: String,
    seen: String,
}

/// Somebody who asks the doctor again and again.
struct Visit<'n> {
    network: &'n Network,
    files: Files,
    words: Vec<String>,
}

impl<'n> Visit<'n> {
    /// About these services, and about these interfaces; if there are none, about a running balancer.
    fn new(network: &'n Network, services: &str, interfaces: &[&str]) -> Result<Self> {
        let files = Files::write(&network.balancer, services)?;
        let words = interfaces.iter().map(|&interface| interface.to_owned()).collect();
        Ok(Self { network, files, words })
    }

    /// How the doctor ends, asked with these words before its own.
    fn ask(&self, before: &[&str]) -> Result<(Option<i32>, Report)> {
        let doctor = foobar_lb(&self.network.balancer)?;
        let mut command = match before {
            [] => doctor,
            [program, words @ ..] => {
                let mut command = self.network.balancer.command(program);
                command.args(words).arg(crate::support::balancer::binary()?);
                command
            }
        };
        command.args(["doctor", "--json", "--config"]).arg(&self.files.config).args(&self.words);
        let output = command.output()?;
        let report = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("no report: {:?}", Ending::from(output.clone())))?;
        Ok((output.status.code(), report))
    }

    /// Nothing is found.
    fn expect_health(&self) -> Result<()> {
        let (code, report) = self.ask(&[])?;
        ensure!(code == Some(0) && report.findings.is_empty(), "something is found: {report:?}");
        Ok(())
    }

    /// Exactly one thing is found, and told with these words.
    fn expect_saying(&self, expected: (&str, &str), words: &str) -> Result<()> {
        self.expect(&[expected])?;
        let (_, Report { findings }) = self.ask(&[])?;
        ensure!(findings.iter().all(|finding| finding.seen.contains(words)), "no {words:?}: {findings:#?}");
        Ok(())
    }

    /// Exactly these are found, each by its id and a part of its place.
    fn expect(&self, expected: &[(&str, &str)]) -> Result<()> {
        self.expect_with(&[], expected)
    }

    fn expect_with(&self, before: &[&str], expected: &[(&str, &str)]) -> Result<()> {
        let (code, Report { findings }) = self.ask(before)?;
        let is =
            |finding: &Finding, (id, place): (&str, &str)| finding.id == id && finding.place.contains(place);
        let all = expected.iter().all(|&one| findings.iter().any(|finding| is(finding, one)));
        let others = findings.iter().filter(|finding| !expected.iter().any(|&one| is(finding, one))).count();
        ensure!(all && others == 0, "expected {expected:?}, found {findings:#?}");
        let is_note = expected.iter().all(|(id, _)| ["cannot-tell", "few-queues"].contains(id));
        let expected_code = if is_note { 0 } else { 1 };
        ensure!(code == Some(expected_code), "the exit code is {code:?}");
        Ok(())
    }

    /// A fault that commands make in the balancer's namespace, found and undone.
    fn expect_after(&self, fault: &str, remedy: &str, expected: &[(&str, &str)]) -> Result<()> {
        let run = |command: &str| self.network.balancer.run(["sh", "-c", command]);
        run(fault)?;
        self.expect(expected).with_context(|| fault.to_owned())?;
        run(remedy)?;
        Ok(())
    }
}

#[test]
fn faults_of_a_host_before_the_balancer_runs() -> Result<()> {
    let network = Network::new("doctor-host", Arms::Two)?;
    use_all_queues(&network)?;
    let visit = Visit::new(&network, &tcp_before(&[(1, 1), (2, 1)], &[]), network.interfaces)?;
    visit.expect_health()?;
    for (fault, remedy, expected) in [
        (
            "sysctl -qw net.ipv4.ip_forward=0",
            "sysctl -qw net.ipv4.ip_forward=1",
            &[("setting-fatal", "eth0/forwarding"), ("setting-fatal", "eth1/forwarding")][..],
        ),
        (
            "sysctl -qw net.ipv4.conf.eth1.rp_filter=1",
            "sysctl -qw net.ipv4.conf.eth1.rp_filter=0",
            &[("setting", "eth1/rp_filter")],
        ),
        (
            "nft 'add table ip t; add chain ip t f { type filter hook forward priority 0; policy drop; }'",
            "nft delete table ip t",
            &[("firewall-drops", "table ip t")],
        ),
        ("ethtool -L eth1 rx 1", "ethtool -L eth1 rx 2", &[("few-queues", "eth1")]),
    ] {
        visit.expect_after(fault, remedy, expected)?;
    }
    visit.expect_health()?;

    network.lab.pass_xdp(&network.balancer, "eth0")?;
    visit.expect(&[("other-program", "eth0")])?;
    network.lab.end_pass_xdp(&network.balancer, "eth0");

    network.unplug("web1")?;
    network.balancer.ip("neighbour flush dev eth1")?;
    visit.expect(&[("next-hop-unresolved", "tcp-v4/web1"), ("next-hop-unresolved", "tcp-v6/web1")])?;
    network.plug_in("web1")?;
    visit.expect_health()
}

#[test]
fn faults_of_a_configuration_on_this_host() -> Result<()> {
    let network = Network::new("doctor-config", Arms::Two)?;
    use_all_queues(&network)?;
    let before = |keys: &[&str]| tcp_before(&[(1, 1)], keys);
    let missing = Visit::new(&network, &before(&[]), &["eth0", "eth1", "eth7"])?;
    missing.expect(&[("no-interface", "eth7")])?;

    let snat = Visit::new(&network, &before(&["mode = \"snat\""]), network.interfaces)?;
    snat.expect_health()?;
    let (fault, remedy) = ("1024 60999", "32768 60999");
    let set = |ports: &str| format!("sysctl -qw net.ipv4.ip_local_port_range='{ports}'");
    snat.expect_after(&set(fault), &set(remedy), &[("ports-shared", "snat_ports")])?;

    let through = before(&["mode = \"tunnel\""]).replace(":8080", ":80");
    let tunnel = Visit::new(&network, &through, network.interfaces)?;
    let narrow = [("mtu-too-small", "tcp-v4/web1"), ("mtu-too-small", "tcp-v6/web1")];
    tunnel.expect(&narrow)?;
    for (namespace, interface) in [(&network.switch, "balancer"), (&network.balancer, "eth1")] {
        namespace.ip(&format!("link set {interface} mtu 1600"))?;
    }
    tunnel.expect_health()
}

#[test]
fn what_cannot_be_looked_at() -> Result<()> {
    let network = Network::new("doctor-blind", Arms::Two)?;
    use_all_queues(&network)?;
    let visit = Visit::new(&network, &tcp_before(&[(1, 1)], &[]), network.interfaces)?;
    let kept = "-all,+bpf,+net_admin";
    let without = [
        "setpriv".to_owned(),
        format!("--bounding-set={kept}"),
        format!("--inh-caps={kept}"),
        "--ambient-caps=-all".to_owned(),
    ];
    let without: Vec<&str> = without.iter().map(String::as_str).collect();
    visit.expect_with(
        &without,
        &[
            ("privileges", "this process"),
            ("program-refused", "this kernel"),
            ("cannot-tell", "addresses owned twice"),
        ],
    )?;

    let directory = network.lab.directory();
    let broken = directory.join("nft");
    fs::write(&broken, "#!/bin/sh\necho no >&2; exit 1\n")?;
    network.balancer.run(["chmod", "+x", &broken.display().to_string()])?;
    let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", directory.display());
    visit.expect_with(&["env", &path], &[("cannot-tell", "firewalls")])
}

#[test]
fn faults_of_a_running_balancer() -> Result<()> {
    let network = Network::new("doctor-running", Arms::Two)?;
    use_all_queues(&network)?;
    let [web1, _web2] = start_pair(&network)?;
    let services = tcp_before(&[(1, 1), (2, 1)], &[]);
    let visit = Visit::new(&network, &services, &[])?;
    visit.expect(&[("daemon-not-running", "foobar-lb.sock")])?;
    let balancer = Balancer::serve(&network, &services)?;
    visit.expect_health()?;

    let process = balancer.process.id();
    balancer.process.signal(Signal::SIGSTOP)?;
    visit.expect(&[("daemon-hung", "foobar-lb.sock")])?;
    balancer.process.signal(Signal::SIGCONT)?;

    network.balancer.run(["prlimit", "--pid", &process.to_string(), "--nofile=60:4096"])?;
    visit.expect(&[("few-open-files", &process.to_string())])?;
    network.balancer.run(["prlimit", "--pid", &process.to_string(), "--nofile=4096:4096"])?;

    balancer.write_services("[[service]]\n")?;
    ensure!(balancer.reload()?.code == Some(2), "a wrong configuration is taken in");
    balancer.write_services(&services)?;
    visit.expect(&[("reload-refused", "the daemon")])?;
    balancer.reload()?.expect(0, &[])?;
    visit.expect_health()?;

    drop(web1);
    balancer.wait_until_down("web1")?;
    visit.expect(&[("backend-down", "tcp-v4/web1"), ("backend-down", "tcp-v6/web1")])?;
    Ok(())
}

#[test]
fn a_backend_whose_replies_pass_the_balancer_by() -> Result<()> {
    let site = healthy("doctor-nat", Mode::Nat)?;
    let _echoes = site.start_echoes()?;
    let services = site.kinds(&[]);
    let visit = Visit::new(&site.network, &services, &[])?;
    let _balancer = site.serve(&services)?;
    visit.expect_health()?;
    let way = |gateway: Dual| site.network.web1.ip(&format!("route replace default via {}", gateway.v4()));
    way(ROUTER)?;
    visit.expect(&[("reply-past-balancer", "tcp-v4/web1")])?;
    way(BACKEND_GATEWAY)?;
    visit.expect_health()
}

#[test]
fn a_backend_without_the_vip() -> Result<()> {
    for (name, mode) in [
        ("doctor-dsr", Mode::Dsr),
        ("doctor-ipip", Mode::Ipip(Family::V4)),
        ("doctor-gue", Mode::Gue(Family::V6)),
    ] {
        let site = healthy(name, mode)?;
        let _echoes = site.start_echoes()?;
        let services = site.kinds(&[]);
        let visit = Visit::new(&site.network, &services, &[])?;
        let _balancer = site.serve(&services)?;
        visit.expect_health().with_context(|| format!("{mode:?}"))?;
        site.network.web1.ip(&format!("address delete {}/32 dev lo", VIP.v4()))?;
        let lacks = if mode == Mode::Dsr { "lacks the VIP, or" } else { "lacks the VIP or" };
        visit
            .expect_saying(("probe-unanswered", "tcp-v4/web1"), lacks)
            .with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}

#[test]
fn a_backend_that_does_not_take_outer_headers_off() -> Result<()> {
    for (name, mode) in [("doctor-no-ipip", Mode::Ipip(Family::V4)), ("doctor-no-gue", Mode::Gue(Family::V4))]
    {
        let mut site = healthy(name, mode)?;
        let _echoes = site.start_echoes()?;
        let services = tunnelled(&site);
        let visit = Visit::new(&site.network, &services, &[])?;
        let _balancer = site.serve(&services)?;
        visit.expect_health().with_context(|| format!("{mode:?}"))?;
        site.decaps.remove(0).stop(Signal::SIGTERM)?;
        visit
            .expect_saying(("probe-unanswered", "tcp-v4/web1"), "it lacks what takes them off")
            .with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}

#[test]
fn a_backend_where_nobody_listens_at_the_vip() -> Result<()> {
    let site = healthy("doctor-refused", Mode::Dsr)?;
    let mut echoes = site.start_echoes()?;
    let services = tunnelled(&site);
    let visit = Visit::new(&site.network, &services, &[])?;
    let _balancer = site.serve(&services)?;
    visit.expect_health()?;
    // The first of its servers is the one at the IPv4 VIP.
    drop(echoes[0].remove(0));
    visit.expect_saying(("probe-unanswered", "tcp-v4/web1"), "nobody listens there")
}

#[test]
fn a_backend_that_is_not_checked() -> Result<()> {
    let network = Network::new("doctor-unchecked", Arms::Two)?;
    use_all_queues(&network)?;
    let _echoes = start_pair(&network)?;
    let services = tcp_before_with(&[(1, 1), (2, 1)], |service| service.health(&["kind = \"none\""]));
    let visit = Visit::new(&network, &services, &[])?;
    let _balancer = Balancer::serve(&network, &services)?;
    visit.expect_health()?;
    // Nobody has said that it listens, so that nobody is to blame if it does not.
    let rule = "add table inet t; add chain inet t i { type filter hook input priority 0; }; \
                add rule inet t i tcp dport 8080 drop";
    network.web2.run(["nft", rule])?;
    visit.expect(&[("cannot-tell", "tcp-v4/web2"), ("cannot-tell", "tcp-v6/web2")])
}

#[test]
fn a_backend_that_drops_what_comes_from_the_source_of_flows() -> Result<()> {
    let site = healthy("doctor-snat", Mode::Snat)?;
    let _echoes = site.start_echoes()?;
    let services = site.kinds(&[]);
    let visit = Visit::new(&site.network, &services, &[])?;
    let _balancer = site.serve(&services)?;
    visit.expect_health()?;
    // Health checks come from other ports.
    let rule = "add table ip t; add chain ip t i { type filter hook input priority 0; }; \
                add rule ip t i tcp sport 1024-32767 drop";
    site.network.web1.run(["nft", rule])?;
    visit.expect(&[("probe-unanswered", "tcp-v4/web1")])
}

#[test]
fn a_program_in_the_network_stack() -> Result<()> {
    let network = Network::new("doctor-generic", Arms::Two)?;
    use_all_queues(&network)?;
    let _echoes = start_pair(&network)?;
    let services = tcp_before(&[(1, 1)], &[]);
    let options = ["--sysctl", "--xdp-mode", "generic"];
    let balancer = Balancer::attach(&network.balancer, network.interfaces, &services, &options)?;
    balancer.wait_until_serving()?;
    let visit = Visit::new(&network, &services, &[])?;
    visit.expect(&[("generic-mode", "eth0"), ("generic-mode", "eth1")])
}

/// Its IPv4 TCP service alone.
fn tunnelled(site: &Site) -> String {
    let kinds = site.kinds(&[]);
    let wanted = kinds.split("[[service]]\n").find(|service| service.contains("\"tcp-v4\""));
    format!("[[service]]\n{}", wanted.unwrap_or_default())
}

/// A network in which nothing is wrong.
fn healthy(name: &str, mode: Mode) -> Result<Site> {
    let site = Site::new(name, Arms::Two, mode)?;
    site.widen()?;
    use_all_queues(&site.network)?;
    Ok(site)
}

/// As a healthy host does.
fn use_all_queues(network: &Network) -> Result<()> {
    for interface in network.interfaces {
        network.balancer.run(["sh", "-c", &format!("ethtool -L {interface} rx $(nproc)")])?;
    }
    Ok(())
}
