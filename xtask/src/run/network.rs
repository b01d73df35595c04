//! The network of www.foobar.com on one machine: visitors in front, a subnet for each tier, and the balancer
//! with one interface in each of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lab::{Lab, Namespace, veth};

/// Where visitors find the site.
pub(super) const WWW: SocketAddr = SocketAddr::new(IpAddr::V4(VIP), 80);

const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);

/// This machine's interface on the front network. The kernel removes it with the namespace of its peer.
const HOST_INTERFACE: &str = "foobar-lb-run";
const FRONT: Subnet = Subnet { name: "front", prefix: "198.51.100" };
const TIERS: [Subnet; 3] = [
    Subnet { name: "web", prefix: "10.0.1" },
    Subnet { name: "app", prefix: "10.0.2" },
    Subnet { name: "db", prefix: "10.0.3" },
];
const SERVERS: [(&str, u8); 5] = [("web1", 11), ("web2", 12), ("app1", 11), ("app2", 12), ("db1", 11)];

/// The balancer's interfaces, one in each network.
pub(super) const INTERFACES: [&str; 4] = ["front", "web", "app", "db"];

/// A /24 with the balancer at .1, on a bridge of its own.
struct Subnet {
    name: &'static str,
    /// The first three bytes of its addresses, dotted.
    prefix: &'static str,
}

/// The namespaces of the site. Dropping it removes them.
pub(super) struct Network {
    /// Holds the files of all of them.
    pub(super) lab: Lab,
    /// A visitor.
    pub(super) client: Namespace,
    /// Where foobar-lb attaches to [`INTERFACES`].
    pub(super) balancer: Namespace,
    switch: Namespace,
}

impl Network {
    /// Makes the networks and the balancer's and the visitors' places in them, this machine among them.
    ///
    /// # Errors
    /// If another run is up, the addresses are in use, or a namespace cannot be made.
    pub(super) fn new() -> Result<Self> {
        refuse_conflicts()?;
        let lab = Lab::new("foobar")?;
        let [client, balancer, switch] =
            [lab.namespace("client")?, lab.namespace("lb")?, lab.namespace("switch")?];
        let network = Self { lab, client, balancer, switch };
        for subnet in [FRONT].iter().chain(&TIERS) {
            network.lay(subnet)?;
        }
        network.join(&network.client, "eth0", "client", &FRONT, 10)?;
        network.join(&network.lab.host(), HOST_INTERFACE, "host", &FRONT, 254)?;
        network.client.add_route("default", &FRONT.address(1))?;
        network.lab.host().add_route(&format!("{VIP}/32"), &FRONT.address(1))?;
        Ok(network)
    }

    /// Makes the namespace of a server, in the subnet of its tier and with its one route.
    ///
    /// # Errors
    /// If there is no such server in the plan, or its namespace cannot be made.
    pub(super) fn add_server(&self, name: &str) -> Result<Namespace> {
        let planned = SERVERS.iter().find(|(server, _)| *server == name);
        let tier = TIERS.iter().find(|tier| name.starts_with(tier.name));
        let (Some((_, host)), Some(tier)) = (planned, tier) else { bail!("no server {name} in the plan") };
        let server = self.lab.namespace(name)?;
        self.join(&server, "eth0", name, tier, *host)?;
        // What a backend needs: its route to clients goes through the balancer.
        server.add_route("default", &tier.address(1))?;
        Ok(server)
    }

    /// A bridge in the switch, and the balancer's interface on it.
    fn lay(&self, subnet: &Subnet) -> Result<()> {
        self.switch.add_bridge(&subnet.bridge(), &[])?;
        self.join(&self.balancer, subnet.name, &format!("lb-{}", subnet.name), subnet, 1)
    }

    /// Plugs a namespace into a subnet's bridge.
    fn join(&self, to: &Namespace, interface: &str, port: &str, subnet: &Subnet, host: u8) -> Result<()> {
        veth(to, interface, &self.switch, port)?;
        self.switch.ip(&format!("link set {port} master {}", subnet.bridge()))?;
        to.add_address(interface, &format!("{}/24", subnet.address(host)))
    }
}

impl Drop for Network {
    /// Takes this machine off the front network, and its routes with it. The kernel does so too when the
    /// namespaces are gone, but a little later, and the next run may already be waiting.
    fn drop(&mut self) {
        let host = self.lab.host();
        let is_there = host.ip(&format!("link show {HOST_INTERFACE}")).is_ok();
        if is_there && let Err(error) = host.ip(&format!("link delete {HOST_INTERFACE}")) {
            eprintln!("{HOST_INTERFACE} is not removed yet: {error:#}");
        }
    }
}

impl Subnet {
    fn address(&self, host: u8) -> String {
        format!("{}.{host}", self.prefix)
    }

    fn bridge(&self) -> String {
        format!("br-{}", self.name)
    }
}

/// This machine reaches the site over two routes of its own; they must not take anything from others.
///
/// # Errors
/// If another run is up, or one of the routes is taken.
pub(super) fn refuse_conflicts() -> Result<()> {
    let (is_up, _) = ask_ip(&["link", "show", HOST_INTERFACE])?;
    ensure!(!is_up, "another `cargo xtask run` is up on this machine: see http://{VIP}/, or end it first");
    for prefix in [format!("{VIP}/32"), format!("{}/24", FRONT.address(0))] {
        let (_, covering) = ask_ip(&["-4", "route", "show", "to", "match", &prefix])?;
        let (_, within) = ask_ip(&["-4", "route", "show", "to", "root", &prefix])?;
        let taken = covering.lines().chain(within.lines()).find(|route| !route.starts_with("default"));
        if let Some(route) = taken {
            bail!("the site needs {prefix}, but this machine has a route there already: {route}");
        }
    }
    Ok(())
}

fn ask_ip(arguments: &[&str]) -> Result<(bool, String)> {
    let output = Command::new("ip").args(arguments).output().context("cannot run ip")?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// What runs where, for whoever looks at a running site.
pub(super) const DRAWING: &str = "\
   this machine 198.51.100.254      client 198.51.100.10
                 └─────────┬──────────────┘
                         front
 ┌─────────────────────────┴───────────────────────────────────────────┐
 │ lb: foobar-lb, an XDP program on front, web, app and db             │
 │     203.0.113.80:80          203.0.113.81:8080    203.0.113.82:3306 │
 └─────────┬──────────────────────────┬────────────────────┬───────────┘
          web                        app                   db
     ┌─────┴─────┐             ┌──────┴──────┐             │
   web1        web2          app1          app2           db1
   10.0.1.11   10.0.1.12     10.0.2.11     10.0.2.12      10.0.3.11
   Nginx       Nginx         foobar-site   foobar-site    mysqld
     └─ asks 203.0.113.81 ─┘   └── asks 203.0.113.82 ──┘";
