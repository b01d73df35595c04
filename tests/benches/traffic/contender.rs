//! Who is compared: ways to two web servers, each in a network of its own between the same client and the same servers.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lab::{Namespace, Process};

use super::counters::Counters;
use super::flood::flood;
use super::load::{Load, Sample};
use super::peer;
use super::program::Router;
use super::support::balancer::Balancer;
use super::support::config::{Service, services};
use super::support::conversation::Protocol;
use super::support::http::Download;
use super::support::network::{Arms, Family, VIP, VIP_PORT, WEB1, WEB2};
use super::support::nginx::Nginx;
use super::support::site::{Mode, Site};

/// A way to the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// The kernel routes; clients ask the servers themselves, half of the connections each.
    KernelRoute,
    /// The same by the least XDP program that can.
    XdpRouter,
    FoobarLb(Mode),
    Haproxy,
    NginxStream,
    NftablesDnat,
}

/// By whom packets are sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// An XDP program: the kernel behind it sees none of them.
    Xdp,
    /// The kernel's own forwarding.
    Forwarded,
    /// A proxy's sockets.
    Delivered,
}

impl Contender {
    /// All of them, in the order of the report.
    pub fn all() -> Vec<Self> {
        let modes = [Mode::Nat, Mode::Dsr, Mode::Ipip(Family::V4), Mode::Gue(Family::V4), Mode::Snat];
        let others = [Self::Haproxy, Self::NginxStream, Self::NftablesDnat];
        let bounds = [Self::KernelRoute, Self::XdpRouter];
        bounds.into_iter().chain(modes.map(Self::FoobarLb)).chain(others).collect()
    }

    /// What the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KernelRoute => "kernel route",
            Self::XdpRouter => "XDP router",
            Self::FoobarLb(Mode::Nat) => "foobar-lb nat",
            Self::FoobarLb(Mode::Dsr) => "foobar-lb dsr",
            Self::FoobarLb(Mode::Ipip(_)) => "foobar-lb ipip",
            Self::FoobarLb(Mode::Gue(_)) => "foobar-lb gue",
            Self::FoobarLb(Mode::Snat) => "foobar-lb snat",
            Self::FoobarLb(Mode::Nat64) => "foobar-lb nat64",
            Self::Haproxy => "HAProxy",
            Self::NginxStream => "Nginx stream",
            Self::NftablesDnat => "nftables DNAT",
        }
    }

    fn path(self) -> Path {
        match self {
            Self::XdpRouter | Self::FoobarLb(_) => Path::Xdp,
            Self::KernelRoute | Self::NftablesDnat => Path::Forwarded,
            Self::Haproxy | Self::NginxStream => Path::Delivered,
        }
    }

    /// Whether it can be put under this load: a proxy of TCP has nothing to do with packets.
    pub fn can_bear(self, load: Load) -> bool {
        load != Load::SmallPackets || self.path() != Path::Delivered
    }

    /// Whom clients ask, the first half of their connections and the second.
    fn asked(self) -> [SocketAddr; 2] {
        match self {
            Self::KernelRoute | Self::XdpRouter => [WEB1, WEB2].map(|web| web.port(Family::V4, VIP_PORT)),
            _ => [VIP.port(Family::V4, VIP_PORT); 2],
        }
    }
}

/// A contender in its place, with servers behind it.
pub struct Stand {
    pub contender: Contender,
    _between: Between,
    _servers: [Nginx; 2],
    site: Site,
}

/// What runs on the machine in the middle.
enum Between {
    Nothing,
    Router { _router: Router },
    FoobarLb { _balancer: Balancer },
    Peer { _process: Process },
}

impl Stand {
    /// Builds it. The prefix begins the names of its namespaces.
    pub fn new(prefix: &str, contender: Contender) -> Result<Self> {
        // The backends' routes of mode `nat` are what all others need too that send packets through the balancer.
        let mode = if let Contender::FoobarLb(mode) = contender { mode } else { Mode::Nat };
        let site = Site::new(prefix, Arms::Two, mode)?;
        site.widen()?;
        // Otherwise whoever opens many connections is held up by those that are over. The balancer's host leaves ports to
        // mode `snat`.
        for (namespace, ports) in
            [(&site.network.client, "1024 65535"), (&site.network.balancer, "32768 65535")]
        {
            namespace.set_sysctl("net.ipv4.ip_local_port_range", ports)?;
        }
        Load::write_files(site.network.lab.directory())?;
        let servers = site.start_nginx()?;
        let between = Between::start(contender, &site)?;
        Ok(Self { contender, _between: between, _servers: servers, site })
    }

    /// Both servers have to answer through it, neither much more often than the other.
    pub fn check(&self) -> Result<()> {
        const ASKED: usize = 200;
        const LEAST: usize = 60;
        let mut answers = [0; 2];
        let before = self.counters()?;
        for number in 0..ASKED {
            let asked = self.contender.asked()[number % 2];
            let answer = Download::begin(self.client(), asked, Load::KeepAlive.path())?;
            answers[usize::from(answer.served_by != "web1")] += 1;
            answer.finish()?;
        }
        ensure!(
            answers.iter().all(|&answers| answers >= LEAST),
            "of {ASKED} answers the two servers gave {answers:?}"
        );
        self.check_path(before, ASKED as u64)
    }

    /// Puts a load on it for so many seconds.
    pub fn bear(&self, load: Load, seconds: u64) -> Result<Sample> {
        let before = self.counters()?;
        let asked = self.contender.asked();
        let sample = match load {
            Load::SmallPackets => flood(&self.site.network, asked[0], seconds)?,
            _ => load.ask(self.client(), asked, seconds)?,
        };
        self.check_path(before, sample.operations)?;
        Ok(sample)
    }

    /// What was done has to be seen where this contender's packets go, and nowhere else: every operation takes a packet at
    /// least.
    fn check_path(&self, before: Counters, operations: u64) -> Result<()> {
        let Counters { forwarded, delivered } = self.counters()?.since(before);
        let few = 50 + operations / 100;
        let took_its_way = match self.contender.path() {
            Path::Xdp => forwarded < few && delivered < few,
            Path::Forwarded => forwarded >= operations && delivered < few,
            Path::Delivered => forwarded < few && delivered >= operations,
        };
        ensure!(
            took_its_way,
            "packets went another way: {operations} operations, while the kernel forwarded {forwarded} packets and took \
             {delivered} for itself"
        );
        Ok(())
    }

    fn counters(&self) -> Result<Counters> {
        Counters::read(&self.site.network.balancer)
    }

    fn client(&self) -> &Namespace {
        &self.site.network.client
    }
}

impl Between {
    fn start(contender: Contender, site: &Site) -> Result<Self> {
        let balancer = &site.network.balancer;
        Ok(match contender {
            Contender::KernelRoute => Self::Nothing,
            Contender::XdpRouter => {
                Self::Router { _router: Router::attach(balancer, site.network.interfaces)? }
            }
            Contender::FoobarLb(mode) => {
                Self::FoobarLb { _balancer: site.serve(&both_services(mode))?.quiet() }
            }
            Contender::Haproxy => Self::Peer { _process: peer::start_haproxy(balancer)? },
            Contender::NginxStream => Self::Peer { _process: peer::start_nginx_stream(balancer)? },
            Contender::NftablesDnat => {
                peer::load_nftables(balancer)?;
                Self::Nothing
            }
        })
    }
}

/// The services before both servers, of which that for UDP is for small packets. Health checks are as seldom as they are by
/// default.
fn both_services(mode: Mode) -> String {
    services(&Protocol::BOTH.map(|protocol| {
        let service = Service::new(protocol.name(), protocol, VIP.port(Family::V4, VIP_PORT))
            .health(&["kind = \"tcp\"", "interval = \"2s\"", "rise = 1"])
            .backend("web1", WEB1.port(Family::V4, VIP_PORT))
            .backend("web2", WEB2.port(Family::V4, VIP_PORT));
        mode.keys().iter().fold(service, |service, key| service.key(key))
    }))
}
