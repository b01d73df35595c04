//! Whether the way to every backend is known, and wide enough.

use std::{net::IpAddr, time::Duration};

use foobar_lb_ebpf::{headers::UDP_LENGTH, ip::Family};
use tokio::{sync::mpsc, time::timeout};

use super::{Finding, Kind};
use crate::{
    model::{Backend, Encapsulation, Mode, Service},
    neighbour::{self, View},
};

/// Bytes of the largest IP packet on Ethernet, but for jumbo frames.
const ETHERNET: u32 = 1500;

/// The network as it is when every backend has a next hop, or patience ends.
///
/// # Errors
/// When netlink cannot be used.
pub async fn look(services: &[Service], patience: Duration) -> Result<View, neighbour::Error> {
    let targets: Vec<IpAddr> = backends(services).map(|(_, backend)| backend.address.ip()).collect();
    let (sender, mut views) = mpsc::channel::<View>(1);
    let mut last = View::default();
    let waiting = async {
        while let Some(view) = views.recv().await {
            let is_whole = targets.iter().all(|target| view.next_hops.contains_key(target));
            last = view;
            if is_whole {
                return;
            }
        }
    };
    tokio::select! {
        watched = neighbour::watch(targets.clone(), sender) => watched?,
        _ = timeout(patience, waiting) => {}
    }
    Ok(last)
}

/// What is wrong with the ways to the backends.
pub fn examine(services: &[Service], interfaces: &[String], view: &View) -> Vec<Finding> {
    let judge = |(service, backend): (&Service, &Backend)| match view.next_hops.get(&backend.address.ip()) {
        None => Some(unresolved(service, backend)),
        Some(hop) => narrow(service, backend, hop, widest(interfaces, hop, view), view),
    };
    backends(services).filter_map(judge).collect()
}

fn backends(services: &[Service]) -> impl Iterator<Item = (&Service, &Backend)> {
    services.iter().flat_map(|service| service.backends.iter().map(move |backend| (service, backend)))
}

/// A backend, as findings name it.
pub fn place(service: &str, backend: &str) -> String {
    format!("backend {service}/{backend}")
}

fn unresolved(service: &Service, backend: &Backend) -> Finding {
    let address = backend.address.ip();
    let seen =
        format!("{address} cannot be reached: there is no route, its link is down, or no neighbour answers");
    Finding::new(Kind::NextHopUnresolved, place(&service.name, &backend.name), seen)
        .remedy(format!("ip route get {address}; ip neighbour show"))
}

fn narrow(
    service: &Service,
    backend: &Backend,
    hop: &neighbour::NextHop,
    widest: u32,
    view: &View,
) -> Option<Finding> {
    let Mode::Tunnel(tunnel) = &service.mode else { return None };
    let outer = overhead(tunnel.encapsulation, backend.address.ip());
    let needed = widest + outer;
    let seen = format!(
        "packets of clients, up to {widest} bytes, get {outer} bytes of outer headers, and the way takes {}: larger ones \
         are refused, and their clients told to send smaller ones",
        hop.mtu
    );
    let finding = Finding::new(Kind::MtuTooSmall, place(&service.name, &backend.name), seen);
    let interface = view.links.get(&hop.interface).map_or("IFACE", |link| &link.name);
    (hop.mtu < needed).then(|| {
        finding.remedy(format!(
            "ip link set dev {interface} mtu {needed}, and the same all the way to the backend"
        ))
    })
}

/// Bytes of the largest packet that clients send, as far as the interfaces tell: where they come in by the one that leads
/// to the backend, that may well be wider than what is behind it.
fn widest(interfaces: &[String], hop: &neighbour::NextHop, view: &View) -> u32 {
    let others = view.links.iter().filter(|(index, _)| **index != hop.interface);
    let mtus = others.filter(|(_, link)| interfaces.contains(&link.name)).map(|(_, link)| link.mtu);
    mtus.max().unwrap_or(ETHERNET)
}

/// Bytes of the outer headers.
fn overhead(encapsulation: Encapsulation, backend: IpAddr) -> u32 {
    let ip = if backend.is_ipv4() { Family::V4 } else { Family::V6 };
    let udp = if encapsulation == Encapsulation::Ipip { 0 } else { UDP_LENGTH };
    ip.header_length() + udp
}
