//! The two networks most stories play in, IPv4 and IPv6 at once. Two-arm: the balancer stands between the
//! client and the backends' switch. One-arm: balancer, backends and the client's router share one switch.
//! In both the backends' default route goes to the balancer, and the VIP is routed to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use lab::{Lab, Namespace, veth};

/// An IPv4 address and the IPv6 address beside it.
#[derive(Clone, Copy, Debug)]
pub struct Dual(Ipv4Addr, Ipv6Addr);

impl Dual {
    pub fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.0.into(),
            Family::V6 => self.1.into(),
        }
    }

    pub fn v4(self) -> Ipv4Addr {
        self.0
    }

    pub fn v6(self) -> Ipv6Addr {
        self.1
    }

    pub fn port(self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.of(family), port)
    }
}

/// The port of the usual services.
pub const VIP_PORT: u16 = 80;
/// The port of their backends: another, so that ports are seen to be rewritten.
pub const BACKEND_PORT: u16 = 8080;

pub const VIP: Dual = dual([203, 0, 113, 80], [0x2001, 0xdb8], 0x80);
pub const CLIENT: Dual = dual([10, 0, 0, 2], CLIENT_SIDE, 2);
/// The gateway on the client's side: the balancer, or the router of a one-arm network.
pub const CLIENT_GATEWAY: Dual = dual([10, 0, 0, 1], CLIENT_SIDE, 1);
/// A VIP in the client's own subnet.
pub const CLIENT_VIP: Dual = dual([10, 0, 0, 80], CLIENT_SIDE, 0x80);
/// The balancer on the backends' side, their default gateway.
pub const BACKEND_GATEWAY: Dual = dual([10, 0, 1, 1], BACKEND_SIDE, 1);
pub const WEB1: Dual = web(1);
pub const WEB2: Dual = web(2);
/// The router of a one-arm network, on the backends' side.
pub const ROUTER: Dual = dual([10, 0, 1, 254], BACKEND_SIDE, 0x254);
/// The far router on the client's gateway's side, and that gateway on the far router's side.
pub const FAR: Dual = dual([10, 0, 2, 1], FAR_SIDE, 1);
const NEAR: Dual = dual([10, 0, 2, 2], FAR_SIDE, 2);

const CLIENT_SIDE: [u16; 2] = [0xfd00, 0xa];
const BACKEND_SIDE: [u16; 2] = [0xfd00, 0xb];
const FAR_SIDE: [u16; 2] = [0xfd00, 0xc];

/// The backend of that number, 1 to 9.
pub const fn web(number: u8) -> Dual {
    dual([10, 0, 1, 10 + number], BACKEND_SIDE, 0x10 + number as u16)
}

/// Both addresses of one host.
pub const fn dual(v4: [u8; 4], v6_prefix: [u16; 2], v6_host: u16) -> Dual {
    let [a, b, c, d] = v4;
    Dual(Ipv4Addr::new(a, b, c, d), Ipv6Addr::new(v6_prefix[0], v6_prefix[1], 0, 0, 0, 0, 0, v6_host))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arms {
    One,
    Two,
}

impl Arms {
    /// The balancer's interfaces.
    fn interfaces(self) -> &'static [&'static str] {
        match self {
            Self::One => &["eth0"],
            Self::Two => &["eth0", "eth1"],
        }
    }
}

/// Client, balancer, and two backends on a switch. Interfaces are `eth0`, the balancer's second one `eth1`;
/// the switch's ports are called after who is plugged in.
pub struct Network {
    pub client: Namespace,
    pub balancer: Namespace,
    /// The balancer's interfaces, to attach to.
    pub interfaces: &'static [&'static str],
    /// The router before the balancer, in a one-arm network.
    pub router: Option<Namespace>,
    /// A router between the client and its usual gateway, if there is one.
    pub far: Option<Namespace>,
    pub switch: Namespace,
    pub web1: Namespace,
    pub web2: Namespace,
    pub lab: Lab,
}

impl Network {
    pub fn new(prefix: &str, arms: Arms) -> Result<Self> {
        Self::build(prefix, arms, None)
    }

    /// The same with a far router, `eth0` of which is where the client's gateway else is, and a link of this MTU behind.
    pub fn with_far_router(prefix: &str, arms: Arms, mtu: u16) -> Result<Self> {
        Self::build(prefix, arms, Some(mtu))
    }

    fn build(prefix: &str, arms: Arms, far_mtu: Option<u16>) -> Result<Self> {
        let lab = Lab::new(prefix)?;
        let client = lab.namespace("client")?;
        let balancer = lab.namespace("balancer")?;
        let switch = lab.namespace("switch")?;
        let interfaces = arms.interfaces();
        veth(&balancer, interfaces[interfaces.len() - 1], &switch, "balancer")?;
        switch.add_bridge("br0", &["balancer"])?;
        let web1 = add_backend(&lab, &switch, 1)?;
        let web2 = add_backend(&lab, &switch, 2)?;
        let router = match arms {
            Arms::One => Some(lab.namespace("router")?),
            Arms::Two => None,
        };
        let far = far_mtu.map(|_| lab.namespace("far")).transpose()?;
        let network = Self { client, balancer, interfaces, router, far, switch, web1, web2, lab };
        network.connect(far_mtu)?;
        Ok(network)
    }

    /// The balancer's interface towards the backends.
    pub fn backend_interface(&self) -> &'static str {
        self.interfaces[self.interfaces.len() - 1]
    }

    /// One more backend at the switch: `web3` of the number 3.
    pub fn add_backend(&self, number: u8) -> Result<Namespace> {
        add_backend(&self.lab, &self.switch, number)
    }

    /// Pulls a host's plug: it is silent, and sees nothing of that.
    pub fn unplug(&self, port: &str) -> Result<()> {
        self.switch.ip(&format!("link set {port} nomaster")).map(drop)
    }

    pub fn plug_in(&self, port: &str) -> Result<()> {
        self.switch.ip(&format!("link set {port} master br0")).map(drop)
    }

    /// Gives backends a way to clients that does not pass the balancer. With two arms it ends at the client itself.
    pub fn add_way_back(&self) -> Result<()> {
        if self.router.is_none() {
            veth(&self.client, "eth1", &self.switch, "client")?;
            self.plug_in("client")?;
            add_addresses(&self.client, "eth1", ROUTER)?;
        }
        for backend in [&self.web1, &self.web2] {
            for family in Family::BOTH {
                backend.ip(&format!("route replace default via {}", ROUTER.of(family)))?;
            }
        }
        Ok(())
    }

    fn connect(&self, far_mtu: Option<u16>) -> Result<()> {
        self.lab.pass_xdp(&self.switch, "balancer")?;
        add_addresses(&self.balancer, self.backend_interface(), BACKEND_GATEWAY)?;
        self.balancer.enable_forwarding()?;
        let gateway = match &self.router {
            Some(router) => self.connect_router(router)?,
            None => &self.balancer,
        };
        let gateway = match (&self.far, far_mtu) {
            (Some(far), Some(mtu)) => self.connect_far(far, gateway, mtu)?,
            _ => gateway,
        };
        self.connect_client_to(gateway)
    }

    /// Connects the client to the balancer, once more in a network of two arms whose balancer has lost its `eth0`.
    pub fn connect_client(&self) -> Result<()> {
        self.connect_client_to(&self.balancer)
    }

    fn connect_client_to(&self, gateway: &Namespace) -> Result<()> {
        veth(&self.client, "eth0", gateway, "eth0")?;
        self.lab.pass_xdp(&self.client, "eth0")?;
        add_addresses(&self.client, "eth0", CLIENT)?;
        add_addresses(gateway, "eth0", CLIENT_GATEWAY)?;
        add_default_routes(&self.client, CLIENT_GATEWAY)
    }

    fn connect_router<'a>(&self, router: &'a Namespace) -> Result<&'a Namespace> {
        veth(router, "eth1", &self.switch, "router")?;
        self.plug_in("router")?;
        add_addresses(router, "eth1", ROUTER)?;
        router.enable_forwarding()?;
        for family in Family::BOTH {
            router.add_route(&VIP.of(family).to_string(), &BACKEND_GATEWAY.of(family).to_string())?;
        }
        add_default_routes(&self.balancer, ROUTER)?;
        Ok(router)
    }

    fn connect_far<'a>(&self, far: &'a Namespace, near: &Namespace, mtu: u16) -> Result<&'a Namespace> {
        veth(far, "eth1", near, "eth0")?;
        self.lab.pass_xdp(far, "eth1")?;
        for (namespace, interface, address) in [(far, "eth1", FAR), (near, "eth0", NEAR)] {
            namespace.ip(&format!("link set {interface} mtu {mtu}"))?;
            add_addresses(namespace, interface, address)?;
        }
        far.enable_forwarding()?;
        add_default_routes(far, NEAR)?;
        for family in Family::BOTH {
            near.add_route(&CLIENT.of(family).to_string(), &FAR.of(family).to_string())?;
        }
        Ok(far)
    }
}

fn add_backend(lab: &Lab, switch: &Namespace, number: u8) -> Result<Namespace> {
    let name = format!("web{number}");
    let backend = lab.namespace(&name)?;
    veth(&backend, "eth0", switch, &name)?;
    switch.ip(&format!("link set {name} master br0"))?;
    add_addresses(&backend, "eth0", web(number))?;
    add_default_routes(&backend, BACKEND_GATEWAY)?;
    Ok(backend)
}

/// Adds both addresses of a host to its interface, as /24 and /64.
pub fn add_addresses(namespace: &Namespace, interface: &str, address: Dual) -> Result<()> {
    namespace.add_address(interface, &format!("{}/24", address.0))?;
    namespace.add_address(interface, &format!("{}/64", address.1))
}

/// Routes all of both families to one gateway.
pub fn add_default_routes(namespace: &Namespace, gateway: Dual) -> Result<()> {
    namespace.add_route("default", &gateway.0.to_string())?;
    namespace.add_route("default", &gateway.1.to_string())
}
