//! A network whose backends are ready for a mode, for the stories that hold in every mode.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use anyhow::{Result, ensure};
use lab::Namespace;

use super::balancer::Balancer;
use super::config::{Service, service_name, services};
use super::conversation::{KINDS, Protocol};
use super::decap::{Decap, vips};
use super::echo::Echo;
use super::network::{
    Arms, BACKEND_GATEWAY, BACKEND_PORT, CLIENT, Dual, Family, Network, ROUTER, VIP, VIP_PORT, WEB1, WEB2,
};
use super::nginx::Nginx;

/// Room for any outer headers around a packet of 1500 bytes.
const WIDE_MTU: u16 = 1600;

/// The ports of flows whose source is replaced; a balancer's own connections have none of them.
const SNAT_PORTS: RangeInclusive<u16> = 1024..=32_767;

/// How packets reach the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nat,
    Dsr,
    /// By a tunnel to the backends' addresses of this family.
    Ipip(Family),
    Gue(Family),
    Snat,
    /// The same, to backends of the other IP.
    Nat64,
}

impl Mode {
    /// Whether replies go past the balancer.
    pub fn answers_directly(self) -> bool {
        !matches!(self, Self::Nat | Self::Snat | Self::Nat64)
    }

    /// The host that clients seem to be to backends.
    pub fn client(self) -> Dual {
        if self.replaces_source() { BACKEND_GATEWAY } else { CLIENT }
    }

    fn replaces_source(self) -> bool {
        matches!(self, Self::Snat | Self::Nat64)
    }

    /// Whether a backend that is asked by a client sees it at this address.
    pub fn is_client(self, seen: SocketAddr, family: Family) -> bool {
        let has_right_port = !self.replaces_source() || SNAT_PORTS.contains(&seen.port());
        let family = if self == Self::Nat64 { family.other() } else { family };
        seen.ip() == self.client().of(family) && has_right_port
    }

    /// What a backend saw of a client must be the client's own address, unless that is replaced.
    pub fn check_client(self, seen: SocketAddr, own: SocketAddr) -> Result<()> {
        let family = if own.is_ipv4() { Family::V4 } else { Family::V6 };
        let is_kept = self.replaces_source() || seen == own;
        ensure!(is_kept && self.is_client(seen, family), "the backend saw {seen}, but the client is {own}");
        Ok(())
    }

    /// The keys of a service.
    pub fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Nat => &["mode = \"nat\""],
            Self::Dsr => &["mode = \"dsr\""],
            Self::Ipip(_) => &["mode = \"tunnel\"", "encapsulation = \"ipip\""],
            Self::Gue(_) => &["mode = \"tunnel\"", "encapsulation = \"gue\""],
            Self::Snat | Self::Nat64 => &["mode = \"snat\""],
        }
    }

    /// The family of the backends' addresses in a service of this family.
    pub fn outer(self, family: Family) -> Family {
        match self {
            Self::Nat | Self::Dsr | Self::Snat => family,
            Self::Nat64 => family.other(),
            Self::Ipip(outer) | Self::Gue(outer) => outer,
        }
    }

    /// Bytes of the outer headers.
    pub fn overhead(self) -> u16 {
        let ip = |family| if family == Family::V4 { 20 } else { 40 };
        match self {
            Self::Nat | Self::Dsr | Self::Snat | Self::Nat64 => 0,
            Self::Ipip(outer) => ip(outer),
            Self::Gue(outer) => ip(outer) + 8,
        }
    }

    /// The port that packets to [`VIP_PORT`] reach a backend at.
    pub fn backend_port(self) -> u16 {
        if self.answers_directly() { VIP_PORT } else { BACKEND_PORT }
    }
}

/// The network, and what makes its hosts backends.
pub struct Site {
    pub mode: Mode,
    pub network: Network,
    /// What makes the backends ready, if anything does.
    pub decaps: Vec<Decap>,
}

impl Site {
    pub fn new(prefix: &str, arms: Arms, mode: Mode) -> Result<Self> {
        Self::of(Network::new(prefix, arms)?, mode)
    }

    /// Makes the backends of a network ready.
    pub fn of(network: Network, mode: Mode) -> Result<Self> {
        let mut decaps = Vec::new();
        // In mode `snat` replies come back although the backends' routes lead elsewhere.
        if mode != Mode::Nat {
            network.add_way_back()?;
        }
        if mode.answers_directly() {
            let options: &[&str] = if mode == Mode::Dsr { &["--dsr"] } else { &[] };
            for backend in [&network.web1, &network.web2] {
                decaps.push(Decap::start_on(backend, &vips(), options)?);
            }
        }
        Ok(Self { mode, network, decaps })
    }

    /// Gives the way from the balancer to the backends room for outer headers. What backends send stays as it is.
    pub fn widen(&self) -> Result<()> {
        if self.mode.overhead() == 0 {
            return Ok(());
        }
        let Network { balancer, switch, web1, web2, .. } = &self.network;
        let ends = [(balancer, self.network.backend_interface()), (web1, "eth0"), (web2, "eth0")];
        let ports = ["balancer", "web1", "web2"].map(|port| (switch, port));
        for (namespace, interface) in ends.into_iter().chain(ports) {
            namespace.ip(&format!("link set {interface} mtu {WIDE_MTU}"))?;
        }
        for backend in [web1, web2] {
            for family in Family::BOTH {
                backend.ip(&format!("route replace default via {} mtu 1500", ROUTER.of(family)))?;
            }
        }
        Ok(())
    }

    /// The client's interface that replies come in by.
    pub fn reply_interface(&self) -> &'static str {
        if self.mode.answers_directly() && self.network.router.is_none() { "eth1" } else { "eth0" }
    }

    /// The usual services, before echo servers, with these further keys.
    pub fn kinds(&self, keys: &[&str]) -> String {
        services(&KINDS.map(|(family, protocol)| {
            self.service(&service_name(family, protocol), family, protocol, self.mode.backend_port(), keys)
        }))
    }

    /// A web service of each family, before Nginx, with these further keys.
    pub fn www(&self, keys: &[&str]) -> String {
        services(
            &Family::BOTH
                .map(|family| self.service(&www_name(family), family, Protocol::Tcp, VIP_PORT, keys)),
        )
    }

    /// Attaches the balancer and waits until all backends are up.
    pub fn serve(&self, services: &str) -> Result<Balancer> {
        Balancer::serve(&self.network, services)
    }

    /// Echo servers on both backends.
    pub fn start_echoes(&self) -> Result<[Vec<Echo>; 2]> {
        let Network { web1, web2, .. } = &self.network;
        Ok([self.start_echo(web1, "web1")?, self.start_echo(web2, "web2")?])
    }

    /// An echo server on one of them. At the VIP it has sockets of its own, because a UDP server answers from the address
    /// that its socket is bound to; the others are for health checks.
    pub fn start_echo(&self, backend: &Namespace, name: &str) -> Result<Vec<Echo>> {
        if !self.mode.answers_directly() {
            return Ok(vec![Echo::start(backend, name, BACKEND_PORT)?]);
        }
        let own = if name == "web1" { WEB1 } else { WEB2 };
        let addresses = Family::BOTH.into_iter().flat_map(|family| [VIP.of(family), own.of(family)]);
        addresses.map(|address| Echo::start_at(backend, name, (address, VIP_PORT).into())).collect()
    }

    /// Nginx on both backends, which serve the lab's directory.
    pub fn start_nginx(&self) -> Result<[Nginx; 2]> {
        let Network { lab, web1, web2, .. } = &self.network;
        Ok([Nginx::start(web1, "web1", lab.directory())?, Nginx::start(web2, "web2", lab.directory())?])
    }

    fn service(&self, name: &str, family: Family, protocol: Protocol, port: u16, keys: &[&str]) -> Service {
        let outer = self.mode.outer(family);
        let service = Service::new(name, protocol, VIP.port(family, VIP_PORT))
            .backend("web1", WEB1.port(outer, port))
            .backend("web2", WEB2.port(outer, port));
        self.mode.keys().iter().chain(keys).fold(service, |service, key| service.key(key))
    }
}

/// The name of a web service, as in `www-v4`.
pub fn www_name(family: Family) -> String {
    format!("www-{family:?}").to_lowercase()
}
