//! Where the packets go: a network namespace with one interface, and the balancer's maps for two services on it.
//! Everything is one-arm and all neighbours are the same, so every packet is sent back.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use foobar_lb::{
    bpf::{Attach, Bpf, Capacities, Link, Mode},
    config,
    image::Image,
    neighbour::{NextHop, View},
    plan,
    state::State,
};
use foobar_lb_ebpf::layout::Interface;
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};

pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const NEIGHBOUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const VIP_V4: SocketAddr = v4([203, 0, 113, 80], 80);
pub const VIP_V6: SocketAddr = v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x80], 80);
/// The first client of RFC 2544's benchmark network, with as many zeros at the end as the generator fills in.
pub const CLIENT_V4: SocketAddr = v4([198, 18, 0, 0], 40_000);
pub const CLIENT_V6: SocketAddr = v6([0x2001, 0x2, 0, 0, 0, 0, 0, 0], 40_000);
/// No service.
pub const STRANGER_V4: SocketAddr = v4([192, 0, 2, 1], 80);
/// Backends of both services together; their ids are 0 and up.
pub const BACKENDS: u32 = 8;

const INTERFACE: &str = "bench0";
const MTU: u32 = 1500;
const SEED: u64 = 1;

const CONFIG: &str = r#"
[[service]]
name = "v4"
address = "203.0.113.80:80"
health = { kind = "none" }
backend = [
    { name = "b1", address = "10.0.1.11:8080" },
    { name = "b2", address = "10.0.1.12:8080" },
    { name = "b3", address = "10.0.1.13:8080" },
    { name = "b4", address = "10.0.1.14:8080" },
]
[[service]]
name = "v6"
address = "[2001:db8::80]:80"
health = { kind = "none" }
backend = [
    { name = "b1", address = "[2001:db8:1::11]:8080" },
    { name = "b2", address = "[2001:db8:1::12]:8080" },
    { name = "b3", address = "[2001:db8:1::13]:8080" },
    { name = "b4", address = "[2001:db8:1::14]:8080" },
]
"#;

/// A balancer under load.
pub struct Place {
    /// The data path, with its maps filled.
    pub bpf: Bpf,
    /// Index of the interface.
    pub interface: u32,
    /// A queue of an interface takes part in XDP only while a program is attached to it.
    _link: Link,
}

impl Place {
    /// Moves this thread into a network namespace of its own, which ends with the process, and furnishes it.
    pub fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        make_interface()?;
        let interface = if_nametoindex(INTERFACE).context("the interface is missing")?;
        let config = config::parse(CONFIG, "bench.toml")?;
        let slots = config.services.iter().map(|service| service.table_size).sum();
        let [flows, half_open] = [config.daemon.flows, config.daemon.half_open];
        let mut bpf =
            Bpf::load(Capacities { slots, backends: BACKENDS, flows, half_open, mappings: 1 }, SEED)?;
        let image = render(config, interface);
        for step in plan::diff(&Image::default(), &image) {
            bpf.apply(&step)?;
        }
        let link = bpf.attach(INTERFACE, interface, Mode::Native)?;
        Ok(Self { bpf, interface, _link: link })
    }
}

/// The backends of a service.
pub fn backends_of(vip: SocketAddr) -> impl Iterator<Item = SocketAddr> {
    (0..4).map(move |host| match vip {
        SocketAddr::V4(_) => v4([10, 0, 1, 11 + host], 8080),
        SocketAddr::V6(_) => v6([0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11 + u16::from(host)], 8080),
    })
}

/// Backends are neighbours, clients are behind one.
fn make_interface() -> Result<()> {
    let [own, neighbour] = [OWN_MAC, NEIGHBOUR_MAC].map(|mac| foobar_lb::image::Mac(mac).to_string());
    ip(&format!("link add {INTERFACE} address {own} type veth peer name peer"))?;
    ip("link set peer up")?;
    ip(&format!("link set {INTERFACE} up"))?;
    for (family, net, gateway) in
        [("-4", "10.0.1.1/24", "10.0.1.254"), ("-6", "2001:db8:1::1/64", "2001:db8:1::fe")]
    {
        ip(&format!("{family} address add {net} dev {INTERFACE}"))?;
        ip(&format!("{family} route add default via {gateway}"))?;
        ip(&format!("{family} neighbour add {gateway} lladdr {neighbour} dev {INTERFACE} nud permanent"))?;
    }
    for family in ["ipv4", "ipv6"] {
        let path = format!("/proc/sys/net/{family}/conf/{INTERFACE}/forwarding");
        fs::write(&path, "1").with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

fn ip(words: &str) -> Result<()> {
    let status = Command::new("ip").args(words.split(' ')).status().context("cannot run ip, of iproute2")?;
    ensure!(status.success(), "`ip {words}` failed");
    Ok(())
}

fn render(config: config::Config, interface: u32) -> Image {
    let next_hop = NextHop {
        interface,
        source: OWN_MAC,
        destination: NEIGHBOUR_MAC,
        mtu: MTU,
        on_link: true,
        local: None,
    };
    let addresses =
        config.services.iter().flat_map(|service| &service.backends).map(|backend| backend.address.ip());
    let subnets = ["10.0.1.0/24", "2001:db8:1::/64"].map(|net| net.parse().expect("this is a prefix"));
    let view = View {
        next_hops: addresses.map(|address| (address, next_hop)).collect(),
        locals: ["10.0.1.1", "2001:db8:1::1"].map(|ip| ip.parse().expect("this is an address")).into(),
        connected: subnets.map(|net| (net, interface)).into(),
        ..View::default()
    };
    let mut state = State::new(config.services, SEED);
    state.attached.insert(interface, Interface::new(OWN_MAC));
    state.observe_network(view);
    state.render(Instant::now())
}

const fn v4([a, b, c, d]: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), port)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), port)
}
