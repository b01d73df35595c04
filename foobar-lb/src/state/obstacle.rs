//! What keeps packets from a backend whose next hop is known. `dsr` and `tunnel` ask more of it than `nat`: what the
//! program does not send itself in these modes, the kernel cannot forward, as it is still for the VIP.

use std::{collections::BTreeMap, fmt};

use foobar_lb_ebpf::layout;
use ipnet::IpNet;

use super::{Backend, State};
use crate::{
    model::{Mode, Tunnel},
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
    NoSource,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => write!(f, "behind a gateway: dsr needs it on the same link"),
            Self::Unattached(interface) => {
                write!(f, "reached by {interface}, which is not attached: name that interface too")
            }
            Self::NoSource => {
                write!(f, "no address of this machine for outer packets to come from: set `outer_source`")
            }
        }
    }
}

impl State {
    /// Brings the obstacles up to date with the network, the attached interfaces and the configuration.
    pub(super) fn note_obstacles(&mut self) {
        let Self { services, attached, view, .. } = self;
        for service in services {
            let mode = &service.config.mode;
            for backend in &mut service.backends {
                backend.obstacle = backend.next_hop.and_then(|hop| find(mode, backend, hop, attached, view));
            }
        }
    }
}

fn find(
    mode: &Mode,
    backend: &Backend,
    hop: NextHop,
    attached: &BTreeMap<u32, layout::Interface>,
    view: &View,
) -> Option<Obstacle> {
    let lacks = match mode {
        Mode::Nat => return None,
        Mode::Dsr if !hop.on_link => Some(Obstacle::Gateway),
        Mode::Tunnel(tunnel) if outer_source(tunnel, backend).is_none() => Some(Obstacle::NoSource),
        Mode::Dsr | Mode::Tunnel(_) => None,
    };
    let unattached = || {
        let name = view.links.get(&hop.interface).map_or("an interface", |link| &link.name);
        Obstacle::Unattached(name.to_owned())
    };
    lacks.or_else(|| (!attached.contains_key(&hop.interface)).then(unattached))
}

/// The prefix that the outer source is from, if one is known.
pub(super) fn outer_source(tunnel: &Tunnel, backend: &Backend) -> Option<IpNet> {
    let is_ipv6 = backend.config.address.is_ipv6();
    let configured = tunnel.sources.iter().find(|source| source.addr().is_ipv6() == is_ipv6);
    configured.copied().or_else(|| backend.next_hop?.local.map(IpNet::from))
}
