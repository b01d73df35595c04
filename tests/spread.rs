//! New flows spread over the backends as their weights say.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};

use crate::support::SOON;
use crate::support::balancer::{Backend, Balancer};
use crate::support::config::{Service, services};
use crate::support::conversation::Protocol;
use crate::support::echo::Echo;
use crate::support::network::{Arms, CLIENT, Family, Network, VIP, WEB1, WEB2};

const FLOWS: u16 = 20_000;
const FIRST_PORT: u16 = 20_000;
/// Flows that are open at once: no more answers than a socket's buffers hold.
const BATCH: usize = 100;

#[test]
fn flows_follow_the_slots() -> Result<()> {
    let network = Network::new("spread-flows", Arms::Two)?;
    let backends = [
        ("web1", &network.web1, WEB1, 1),
        ("web2", &network.web2, WEB2, 2),
        ("more", &network.web1, WEB1, 3),
    ];
    let vip = VIP.port(Family::V4, 80);
    let mut service = Service::new("www", Protocol::Udp, vip).key("table_size = 65537");
    let mut echoes = Vec::new();
    for (port, (name, namespace, address, weight)) in (8080..).zip(backends) {
        echoes.push(Echo::start(namespace, name, port)?);
        service = service.weighted_backend(name, address.port(Family::V4, port), weight);
    }
    let balancer = Balancer::serve(&network, &services(&[service]))?;

    let flows = network.client.enter(|| count_flows(CLIENT.port(Family::V4, FIRST_PORT), vip))??;

    let status = balancer.status()?;
    let backends = &status.service("www")?.backends;
    for backend in backends {
        let share = f64::from(flows.get(&backend.name).copied().unwrap_or(0)) / f64::from(FLOWS);
        check_share(share, slot_share(backend, backends), 0.05, &format!("flows of {}", backend.name))?;
    }
    Ok(())
}

#[test]
fn slots_follow_the_weights() -> Result<()> {
    for weights in [&[1, 1, 2, 3, 10, 83][..], &[1, 1000, 1000, 1000], &[7, 7, 7]] {
        let network = Network::new("spread-slots", Arms::Two)?;
        let mut service = Service::new("www", Protocol::Tcp, VIP.port(Family::V4, 80))
            .key("table_size = 65537")
            .health(&["kind = \"none\""]);
        for (port, weight) in (8000..).zip(weights) {
            service = service.weighted_backend(&format!("web{port}"), WEB1.port(Family::V4, port), *weight);
        }
        let services = services(&[service]);
        let balancer = Balancer::attach(&network.balancer, network.interfaces, &services, &[])?;
        balancer.wait_until_serving()?;

        let status = balancer.status()?;
        let backends = &status.service("www")?.backends;
        let weight: u32 = backends.iter().map(|backend| backend.weight).sum();
        for backend in backends {
            let wanted = f64::from(backend.weight) / f64::from(weight);
            ensure!(backend.slots > 0, "a backend without a slot: {backend:?}");
            // One slot is the finest a table can do.
            let tolerance = f64::max(0.01, 1.0 / (wanted * 65_537.0));
            check_share(slot_share(backend, backends), wanted, tolerance, &format!("slots of {backend:?}"))?;
        }
    }
    Ok(())
}

/// Opens one flow from each of [`FLOWS`] ports and counts who answers.
fn count_flows(first: SocketAddr, server: SocketAddr) -> Result<BTreeMap<String, u32>> {
    let mut flows = BTreeMap::new();
    let ports: Vec<u16> = (first.port()..first.port() + FLOWS).collect();
    for batch in ports.chunks(BATCH) {
        let sockets = batch.iter().map(|port| send_from(SocketAddr::new(first.ip(), *port), server));
        for socket in sockets.collect::<Result<Vec<_>>>()? {
            let mut answer = [0; 64];
            let length = socket.recv(&mut answer).with_context(|| format!("no answer to {socket:?}"))?;
            let name = str::from_utf8(&answer[..length])?.split(' ').next().unwrap_or_default();
            *flows.entry(name.to_owned()).or_default() += 1;
        }
    }
    Ok(flows)
}

fn send_from(source: SocketAddr, server: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(source).with_context(|| format!("cannot bind {source}"))?;
    socket.set_read_timeout(Some(SOON))?;
    socket.connect(server)?;
    socket.send(b"who are you")?;
    Ok(socket)
}

fn slots(backends: &[Backend]) -> u32 {
    backends.iter().map(|backend| backend.slots).sum()
}

fn slot_share(backend: &Backend, all: &[Backend]) -> f64 {
    f64::from(backend.slots) / f64::from(slots(all))
}

fn check_share(share: f64, wanted: f64, tolerance: f64, what: &str) -> Result<()> {
    let off = (share - wanted).abs() / wanted;
    ensure!(off <= tolerance, "{what}: {share:.5} of all, not {wanted:.5}: {:.2} % off", off * 100.0);
    Ok(())
}
