//! Two balancers, active and standby, with keepalived moving the VIP and the backends' gateway: as the
//! reply is stateless and both hash alike, a connection outlives its balancer.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::{Lab, Namespace, Process, veth, wait_until};
use nix::sys::signal::Signal;

use crate::support::EVENTUALLY;
use crate::support::balancer::Balancer;
use crate::support::config::all_kinds_with;
use crate::support::conversation::{Conversation, KINDS, ask};
use crate::support::echo::{Echo, start_pair_in};
use crate::support::network::{
    BACKEND_GATEWAY, CLIENT, CLIENT_VIP, Dual, Family, VIP_PORT, WEB1, WEB2, add_addresses,
    add_default_routes, dual,
};

const FRONTS: [Dual; 2] = [dual([10, 0, 0, 3], [0xfd00, 0xa], 3), dual([10, 0, 0, 4], [0xfd00, 0xa], 4)];
const BACKS: [Dual; 2] = [dual([10, 0, 1, 3], [0xfd00, 0xb], 3), dual([10, 0, 1, 4], [0xfd00, 0xb], 4)];

/// A health check that takes four seconds of silence for a death.
const PATIENT: &[&str] =
    &["kind = \"tcp\"", "interval = \"200ms\"", "timeout = \"200ms\"", "rise = 2", "fall = 20"];

#[test]
fn connections_outlive_the_active_balancer() -> Result<()> {
    let pair = Pair::new("keepalived")?;
    let _echoes = pair.start_echoes()?;
    let [active, standby] = &pair.balancers;
    // Probes go unanswered for a moment while the backends learn where the gateway's address has gone, and a
    // handshake does not survive that its backend is declared dead in the middle of it.
    let services = all_kinds_with(CLIENT_VIP, |_, service| service.health(PATIENT));
    let attach = |balancer| Balancer::attach(balancer, &["eth0", "eth1"], &services, &["--sysctl"]);
    let (first, second) = (attach(active)?, attach(standby)?);

    let keepaliveds = [start_keepalived(active, 200)?, start_keepalived(standby, 100)?];
    wait_until(EVENTUALLY, "the active balancer to own the VIP", || owns_vip(active))?;
    ensure!(!owns_vip(standby), "both balancers own the VIP");
    first.wait_until_serving()?;
    second.wait_until_serving()?;
    expect_same_fingerprints(&first, &second)?;
    let mut flows = KINDS
        .iter()
        .map(|&(family, protocol)| {
            Conversation::open(&pair.client, protocol, CLIENT_VIP.port(family, VIP_PORT))
        })
        .collect::<Result<Vec<_>>>()?;
    let answers = flows.iter_mut().map(Conversation::ask).collect::<Result<Vec<_>>>()?;

    keepaliveds[0].signal(Signal::SIGTERM)?;
    wait_until(EVENTUALLY, "the standby to own the VIP", || owns_vip(standby) && !owns_vip(active))?;
    for (flow, answer) in flows.iter_mut().zip(answers) {
        let again = flow.ask().with_context(|| format!("a flow from before the failover, {answer:?}"))?;
        ensure!(again == answer, "a flow moved from {answer:?} to {again:?}");
    }
    for (family, protocol) in KINDS {
        ask(&pair.client, protocol, CLIENT_VIP.port(family, VIP_PORT))
            .context("a flow after the failover")?;
    }
    let served = second.status()?;
    let packets: u64 = served.services.iter().map(|service| service.packets).sum();
    ensure!(packets > 0, "the standby took over, but counted nothing");
    Ok(())
}

/// Flows go the same way through both.
fn expect_same_fingerprints(first: &Balancer, second: &Balancer) -> Result<()> {
    let fingerprints = |balancer: &Balancer| {
        let services = balancer.status()?.services.into_iter();
        Ok::<Vec<_>, anyhow::Error>(services.map(|service| (service.name, service.fingerprint)).collect())
    };
    let (first, second) = (fingerprints(first)?, fingerprints(second)?);
    ensure!(first == second, "they differ: {first:?}, {second:?}");
    ensure!(first.iter().all(|(_, fingerprint)| fingerprint.is_some()), "there is none: {first:?}");
    Ok(())
}

/// Two balancers between a switch with the client and a switch with the backends.
struct Pair {
    client: Namespace,
    balancers: [Namespace; 2],
    web1: Namespace,
    web2: Namespace,
    _lab: Lab,
}

impl Pair {
    fn new(prefix: &str) -> Result<Self> {
        let lab = Lab::new(prefix)?;
        let (front, back) = (lab.namespace("front")?, lab.namespace("back")?);
        let client = lab.namespace("client")?;
        let balancers = [lab.namespace("lb1")?, lab.namespace("lb2")?];
        let (web1, web2) = (lab.namespace("web1")?, lab.namespace("web2")?);
        veth(&client, "eth0", &front, "client")?;
        add_addresses(&client, "eth0", CLIENT)?;
        for (balancer, port, (ahead, behind)) in
            [(&balancers[0], "lb1", (FRONTS[0], BACKS[0])), (&balancers[1], "lb2", (FRONTS[1], BACKS[1]))]
        {
            veth(balancer, "eth0", &front, port)?;
            veth(balancer, "eth1", &back, port)?;
            lab.pass_xdp(&front, port)?;
            lab.pass_xdp(&back, port)?;
            add_addresses(balancer, "eth0", ahead)?;
            add_addresses(balancer, "eth1", behind)?;
            balancer.enable_forwarding()?;
        }
        for (backend, port, address) in [(&web1, "web1", WEB1), (&web2, "web2", WEB2)] {
            veth(backend, "eth0", &back, port)?;
            add_addresses(backend, "eth0", address)?;
            add_default_routes(backend, BACKEND_GATEWAY)?;
        }
        front.add_bridge("br0", &["client", "lb1", "lb2"])?;
        back.add_bridge("br0", &["web1", "web2", "lb1", "lb2"])?;
        Ok(Self { client, balancers, web1, web2, _lab: lab })
    }

    fn start_echoes(&self) -> Result<[Echo; 2]> {
        start_pair_in(&self.web1, &self.web2)
    }
}

fn owns_vip(balancer: &Namespace) -> bool {
    let owned = [("eth0", CLIENT_VIP), ("eth1", BACKEND_GATEWAY)];
    owned.iter().all(|(interface, address)| {
        let addresses = balancer.ip(&format!("address show dev {interface}")).unwrap_or_default();
        Family::BOTH.iter().all(|&family| addresses.contains(&format!(" {}/", address.of(family))))
    })
}

/// VRRP (RFC 5798) with advertisements often enough for a test; both families move together.
fn start_keepalived(balancer: &Namespace, priority: u8) -> Result<Process> {
    let directory = balancer.directory().join(format!("{}-keepalived", balancer.name()));
    fs::create_dir_all(&directory)?;
    let instance = |name: &str, id: u8, family: Family| {
        let length = if family == Family::V4 { 24 } else { 64 };
        format!(
            "vrrp_instance {name} {{
                 state BACKUP
                 interface eth0
                 virtual_router_id {id}
                 priority {priority}
                 version 3
                 advert_int 0.2
                 virtual_ipaddress {{
                     {link_local}
                     {}/{length} dev eth0
                     {}/{length} dev eth1
                 }}
             }}\n",
            CLIENT_VIP.of(family),
            BACKEND_GATEWAY.of(family),
            link_local = if family == Family::V6 { "fe80::80/64 dev eth0" } else { "" },
        )
    };
    let group = "vrrp_sync_group both { group { v4 v6 } }\n";
    let config = directory.join("keepalived.conf");
    fs::write(&config, instance("v4", 51, Family::V4) + &instance("v6", 52, Family::V6) + group)?;
    let file = |name: &str| directory.join(name).display().to_string();
    let words =
        ["keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", &file("keepalived.conf")];
    let pids = [format!("--pid={}", file("pid")), format!("--vrrp_pid={}", file("vrrp-pid"))];
    balancer
        .start(&format!("{}-keepalived", balancer.name()), words.into_iter().map(str::to_owned).chain(pids))
}
