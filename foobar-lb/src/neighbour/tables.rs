//! The kernel's tables as far as next hops need them, and the view that follows from them. Pure: filled by
//! `netlink`, kept current by `watch`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Link, NextHop, View, mirror::Mirrored};

/// A neighbour is an address on a link: the interface's index and the address.
pub(super) type NeighbourKey = (u32, IpAddr);

/// What was read from the kernel for one set of targets.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub links: BTreeMap<u32, Link>,
    pub locals: BTreeSet<IpAddr>,
    pub connected: BTreeSet<(IpNet, u32)>,
    /// Of each target that has one.
    pub routes: BTreeMap<IpAddr, Route>,
    pub neighbours: BTreeMap<NeighbourKey, Neighbour>,
    /// The routes to clients.
    pub mirrored: Vec<Mirrored>,
}

/// The way to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub interface: u32,
    /// The gateway, or the target itself where it is on the link.
    pub via: IpAddr,
    /// Where the route knows of a smaller MTU than the link's.
    pub mtu: Option<u32>,
    /// The address of this machine that the kernel prefers on it.
    pub local: Option<IpAddr>,
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Neighbour {
    /// The kernel vouches for the MAC address, or is just checking it.
    Fresh([u8; 6]),
    /// The MAC address was right once and is used until proven wrong.
    Stale([u8; 6]),
    /// No MAC address is known.
    Unresolved,
}

impl Tables {
    pub fn view(&self) -> View {
        let next_hops =
            self.routes.iter().filter_map(|(&target, route)| Some((target, self.next_hop(target, route)?)));
        let routes = self.mirrored.iter().map(|(prefix, gateway)| {
            (*prefix, gateway.and_then(|gateway| self.next_hop(prefix.addr(), &self.by(prefix, gateway))))
        });
        View {
            next_hops: next_hops.collect(),
            routes: routes.collect(),
            locals: self.locals.clone(),
            connected: self.connected.iter().copied().collect(),
            links: self.links.clone(),
        }
    }

    /// The neighbours in use that the kernel should be asked for; true for those that are resolved, if stale.
    pub fn unsettled(&self) -> BTreeMap<NeighbourKey, bool> {
        let by_gateway =
            self.mirrored.iter().filter_map(|(prefix, gateway)| Some(self.by(prefix, (*gateway)?)));
        let in_use = self.routes.values().copied().chain(by_gateway);
        in_use
            .filter(|route| self.source(route).is_some())
            .filter_map(|route| {
                let key = (route.interface, route.via);
                match self.neighbours.get(&key) {
                    Some(Neighbour::Fresh(_)) => None,
                    Some(Neighbour::Stale(_)) => Some((key, true)),
                    Some(Neighbour::Unresolved) | None => Some((key, false)),
                }
            })
            .collect()
    }

    /// The way to the clients of a prefix.
    fn by(&self, prefix: &IpNet, (interface, via): NeighbourKey) -> Route {
        let link = self.links.get(&interface).filter(|_| prefix.addr().is_ipv6());
        Route { interface, via, mtu: link.and_then(|link| link.mtu_v6), local: None }
    }

    fn next_hop(&self, target: IpAddr, route: &Route) -> Option<NextHop> {
        let (source, link_mtu) = self.source(route)?;
        let destination = match self.neighbours.get(&(route.interface, route.via))? {
            Neighbour::Fresh(mac) | Neighbour::Stale(mac) => *mac,
            Neighbour::Unresolved => return None,
        };
        let mtu = route.mtu.map_or(link_mtu, |mtu| mtu.min(link_mtu));
        let on_link = route.via == target;
        Some(NextHop { interface: route.interface, source, destination, mtu, on_link, local: route.local })
    }

    /// The MAC address and MTU of the route's link, if frames can be sent on it.
    fn source(&self, route: &Route) -> Option<([u8; 6], u32)> {
        let link = self.links.get(&route.interface).filter(|link| link.up)?;
        Some((link.mac?, link.mtu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// One target behind a gateway on one link.
    fn tables(neighbour: Option<Neighbour>) -> Tables {
        let gateway = address("10.0.0.1");
        let link = Link { name: "eth7".into(), mac: Some(LINK_MAC), up: true, mtu: 1500, ..Link::default() };
        let route = Route { interface: 7, via: gateway, mtu: None, local: None };
        Tables {
            links: [(7, link)].into(),
            routes: [(address("192.0.2.1"), route)].into(),
            neighbours: neighbour.map(|neighbour| ((7, gateway), neighbour)).into_iter().collect(),
            ..Tables::default()
        }
    }

    #[test]
    fn a_next_hop_is_the_gateways_mac_on_the_routes_link() {
        for neighbour in [Neighbour::Fresh(GATEWAY_MAC), Neighbour::Stale(GATEWAY_MAC)] {
            let expected = NextHop {
                interface: 7,
                source: LINK_MAC,
                destination: GATEWAY_MAC,
                mtu: 1500,
                on_link: false,
                local: None,
            };
            let view = tables(Some(neighbour)).view();
            assert_eq!(view.next_hops, [(address("192.0.2.1"), expected)].into(), "{neighbour:?}");
        }
    }

    #[test]
    fn without_a_mac_on_either_side_or_a_carrier_there_is_no_next_hop() {
        let mut down = tables(Some(Neighbour::Fresh(GATEWAY_MAC)));
        down.links.get_mut(&7).unwrap().up = false;
        let mut not_ethernet = tables(Some(Neighbour::Fresh(GATEWAY_MAC)));
        not_ethernet.links.get_mut(&7).unwrap().mac = None;
        for tables in [down, not_ethernet, tables(Some(Neighbour::Unresolved)), tables(None)] {
            assert_eq!(tables.view().next_hops, BTreeMap::new(), "{tables:?}");
        }
    }

    #[test]
    fn the_smaller_mtu_of_route_and_link_counts() {
        for (route_mtu, expected) in [(None, 1500), (Some(1400), 1400), (Some(9000), 1500)] {
            let mut tables = tables(Some(Neighbour::Fresh(GATEWAY_MAC)));
            tables.routes.values_mut().for_each(|route| route.mtu = route_mtu);
            assert_eq!(tables.view().next_hops[&address("192.0.2.1")].mtu, expected);
        }
    }

    #[test]
    fn what_is_asked_for_is_in_use_and_not_vouched_for() {
        let gateway = (7, address("10.0.0.1"));
        let cases = [
            (Some(Neighbour::Fresh(GATEWAY_MAC)), None),
            (Some(Neighbour::Stale(GATEWAY_MAC)), Some((gateway, true))),
            (Some(Neighbour::Unresolved), Some((gateway, false))),
            (None, Some((gateway, false))),
        ];
        for (neighbour, expected) in cases {
            let mut tables = tables(neighbour);
            tables.neighbours.insert((7, address("10.0.0.99")), Neighbour::Unresolved);
            assert_eq!(tables.unsettled(), expected.into_iter().collect(), "{neighbour:?}");
            tables.links.get_mut(&7).unwrap().up = false;
            assert_eq!(tables.unsettled(), BTreeMap::new(), "nobody answers on a link that is down");
        }
    }

    #[test]
    fn routes_lead_to_gateways_as_targets_do() {
        let gateway = (7, address("10.0.0.1"));
        let [v4, v6, near] =
            ["0.0.0.0/0", "::/0", "10.0.0.0/24"].map(|prefix| prefix.parse::<IpNet>().unwrap());
        let mut tables = tables(Some(Neighbour::Fresh(GATEWAY_MAC)));
        tables.routes.clear();
        tables.links.get_mut(&7).unwrap().mtu_v6 = Some(1280);
        tables.mirrored = vec![(near, None), (v4, Some(gateway)), (v6, Some(gateway))];
        let mtu = |prefix, way: Option<NextHop>| (prefix, way.map(|way| way.mtu));
        let mtus = |tables: &Tables| {
            tables.view().routes.into_iter().map(|(prefix, way)| mtu(prefix, way)).collect::<Vec<_>>()
        };
        assert_eq!(mtus(&tables), [(near, None), (v4, Some(1500)), (v6, Some(1280))]);
        assert_eq!(tables.unsettled(), BTreeMap::new());
        tables.neighbours.insert(gateway, Neighbour::Unresolved);
        assert_eq!(mtus(&tables), [(near, None), (v4, None), (v6, None)]);
        assert_eq!(tables.unsettled(), [(gateway, false)].into());
    }
}
