//! What keeps packets from a backend whose next hop is known. `dsr`, `tunnel` and `snat` ask more of it than `nat`: what
//! the program does not send itself in these modes, the kernel cannot forward, as it is still for the VIP, or seems to
//! come from the machine itself.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use foobar_lb_ebpf::layout;
use ipnet::IpNet;

use super::{Backend, State};
use crate::{
    model::{Mode, Pool, Tunnel},
    neighbour::{NextHop, View},
};

/// Why no packet reaches a backend although its next hop is known; displayed with what would help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The gateway would send packets back, as they are for the VIP.
    Gateway,
    /// The program does not run on the interface of this name.
    Unattached(String),
    /// There is no address that outer packets could come from.
    NoSource {
        /// The key that would name one.
        key: &'static str,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => write!(f, "behind a gateway: dsr needs it on the same link"),
            Self::Unattached(interface) => {
                write!(f, "reached by {interface}, which is not attached: name that interface too")
            }
            Self::NoSource { key } => {
                write!(f, "no address of this machine for its packets to come from: set `{key}`")
            }
        }
    }
}

impl State {
    /// Brings the obstacles up to date with the network, the attached interfaces and the configuration.
    pub(super) fn note_obstacles(&mut self) {
        let interfaces = self.interfaces();
        let Self { services, view, .. } = self;
        for service in services {
            let mode = &service.config.mode;
            for backend in &mut service.backends {
                backend.obstacle =
                    backend.next_hop.and_then(|hop| find(mode, backend, hop, &interfaces, view));
            }
        }
    }
}

fn find(
    mode: &Mode,
    backend: &Backend,
    hop: NextHop,
    interfaces: &BTreeMap<u32, layout::Interface>,
    view: &View,
) -> Option<Obstacle> {
    let lacks = match mode {
        Mode::Nat | Mode::Hairpin(_) => return None,
        Mode::Dsr if !hop.on_link => Some(Obstacle::Gateway),
        Mode::Tunnel(tunnel) if outer_source(tunnel, backend).is_none() => {
            Some(Obstacle::NoSource { key: "outer_source" })
        }
        Mode::Snat(pool) if sources(pool, backend).is_empty() => {
            Some(Obstacle::NoSource { key: "snat_source" })
        }
        Mode::Dsr | Mode::Tunnel(_) | Mode::Snat(_) => None,
    };
    let unattached = || {
        let name = view.links.get(&hop.interface).map_or("an interface", |link| &link.name);
        Obstacle::Unattached(name.to_owned())
    };
    lacks.or_else(|| (!interfaces.contains_key(&hop.interface)).then(unattached))
}

/// The prefix that the outer source is from, if one is known.
pub(super) fn outer_source(tunnel: &Tunnel, backend: &Backend) -> Option<IpNet> {
    let is_ipv6 = backend.config.address.is_ipv6();
    let configured = tunnel.sources.iter().find(|source| source.addr().is_ipv6() == is_ipv6);
    configured.copied().or_else(|| backend.next_hop?.local.map(IpNet::from))
}

/// The addresses that packets to the backend come from, as far as they are known.
pub(super) fn sources(pool: &Pool, backend: &Backend) -> Vec<IpAddr> {
    let is_ipv6 = backend.config.address.is_ipv6();
    let configured = pool.addresses.iter().filter(|address| address.is_ipv6() == is_ipv6);
    let configured: Vec<_> = configured.copied().collect();
    match configured.is_empty() {
        true => backend.next_hop.and_then(|hop| hop.local).into_iter().collect(),
        false => configured,
    }
}
