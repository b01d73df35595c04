//! Which of the kernel's routes the data path is to know by itself. What it knows is in force in place of the kernel's, so
//! it is right for every address or says that the kernel is to be asked. Pure.

use std::{cmp::Reverse, collections::BTreeMap};

use foobar_lb_ebpf::layout::Routes;
use ipnet::IpNet;

use super::{routes::Route, tables::NeighbourKey};

/// A prefix and the gateway of its packets; none: the kernel is to be asked.
pub(super) type Mirrored = (IpNet, Option<NeighbourKey>);

/// All that is known of the routes of one family, in as many as the data path has room for, longer prefixes first. To
/// addresses that none of them is for there may be a route or not.
pub(super) fn mirror(routes: &[Route]) -> Vec<Mirrored> {
    let mut mirrored = without_repetition(unambiguous(routes));
    ask_beyond(&mut mirrored, Routes::MOST);
    loop {
        mirrored = without_repetition(mirrored);
        while mirrored.len() > Routes::MOST && merge(&mut mirrored) {}
        if mirrored.len() <= Routes::MOST {
            break;
        }
        let plain = plain(&mirrored).count();
        ask_beyond(&mut mirrored, plain - 1);
    }
    mirrored.sort_by_key(|(prefix, _)| (Reverse(prefix.prefix_len()), *prefix));
    mirrored
}

/// Each prefix once. Of several routes with the same prefix the kernel has to choose, and between tables the length of
/// prefixes does not count.
fn unambiguous(routes: &[Route]) -> Vec<Mirrored> {
    let mut known = BTreeMap::new();
    for Route { prefix, gateway, .. } in routes {
        known.entry(*prefix).and_modify(|known| *known = None).or_insert(*gateway);
    }
    let others = || routes.iter().filter(|route| !route.is_main).map(|route| &route.prefix);
    let known = known.into_iter();
    known
        .map(|(prefix, gateway)| (prefix, gateway.filter(|_| !others().any(|other| other.contains(&prefix)))))
        .collect()
}

/// Leaves out what says the same as the next shorter prefix. Where there is none, the kernel is asked.
fn without_repetition(mut routes: Vec<Mirrored>) -> Vec<Mirrored> {
    routes.sort_by_key(|(prefix, _)| (prefix.prefix_len(), *prefix));
    let mut kept: Vec<Mirrored> = Vec::new();
    for (prefix, gateway) in routes {
        let around = kept.iter().rev().find(|(around, _)| around.contains(&prefix));
        if around.and_then(|(_, gateway)| *gateway) != gateway {
            kept.push((prefix, gateway));
        }
    }
    kept
}

fn plain(routes: &[Mirrored]) -> impl Iterator<Item = &IpNet> {
    routes.iter().filter(|(_, gateway)| gateway.is_some()).map(|(prefix, _)| prefix)
}

/// Lets the kernel be asked for all but so many plain routes, the shortest.
fn ask_beyond(routes: &mut [Mirrored], most: usize) {
    routes.sort_by_key(|(prefix, _)| (prefix.prefix_len(), *prefix));
    let plain = routes.iter_mut().filter(|(_, gateway)| gateway.is_some());
    plain.skip(most).for_each(|(_, gateway)| *gateway = None);
}

/// Lets the kernel be asked for a prefix instead of two within it, the longest there is; false where there is none that
/// would not hide a plain route.
fn merge(routes: &mut Vec<Mirrored>) -> bool {
    let mut asked: Vec<IpNet> =
        routes.iter().filter(|(_, gateway)| gateway.is_none()).map(|(prefix, _)| *prefix).collect();
    asked.sort();
    let around = |prefix: &IpNet| {
        plain(routes).filter(|plain| plain.contains(prefix)).max_by_key(|plain| plain.prefix_len())
    };
    let common = |pair: &[IpNet]| {
        let common = common(pair[0], pair[1])?;
        let hides = around(&pair[0]) != around(&pair[1]) || plain(routes).any(|plain| common.contains(plain));
        (!hides).then_some(common)
    };
    let Some(common) = asked.windows(2).filter_map(common).max_by_key(IpNet::prefix_len) else {
        return false;
    };
    routes.retain(|(prefix, _)| !common.contains(prefix));
    routes.push((common, None));
    true
}

/// The longest prefix that has both.
fn common(a: IpNet, b: IpNet) -> Option<IpNet> {
    let mut prefix = a;
    while !prefix.contains(&b) {
        prefix = prefix.supernet()?;
    }
    Some(prefix)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use ipnet::Ipv4Net;
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn gateway(number: u8) -> NeighbourKey {
        (1, IpAddr::from([10, 0, 0, number]))
    }

    fn plain(prefix: &str, number: u8) -> Route {
        Route { prefix: net(prefix), is_main: true, gateway: Some(gateway(number)) }
    }

    /// What only the kernel can answer.
    fn other(prefix: &str, is_main: bool) -> Route {
        Route { prefix: net(prefix), is_main, gateway: None }
    }

    #[test]
    fn what_is_on_the_link_or_local_is_left_to_the_kernel() {
        let routes = [
            plain("0.0.0.0/0", 1),
            other("10.0.0.0/24", true),
            plain("192.0.2.0/24", 2),
            other("10.0.0.7/32", false),
            other("10.0.0.255/32", false),
            other("127.0.0.0/8", false),
            other("127.0.0.1/32", false),
        ];
        let expected = [
            (net("10.0.0.0/24"), None),
            (net("192.0.2.0/24"), Some(gateway(2))),
            (net("127.0.0.0/8"), None),
            (net("0.0.0.0/0"), Some(gateway(1))),
        ];
        assert_eq!(mirror(&routes), expected);
    }

    #[test]
    fn what_is_ambiguous_is_left_to_the_kernel() {
        let twice = [plain("0.0.0.0/0", 1), plain("0.0.0.0/0", 1)];
        let hidden = [plain("192.0.2.0/24", 1), other("192.0.2.0/23", false)];
        assert_eq!(mirror(&twice), []);
        assert_eq!(mirror(&hidden), []);
    }

    #[test]
    fn many_addresses_become_few_prefixes_and_the_default_stays() {
        let mut routes = vec![plain("0.0.0.0/0", 1), other("10.0.0.0/24", true)];
        routes.extend((0..100).map(|last| other(&format!("203.0.113.{last}/32"), false)));
        let mirrored = mirror(&routes);
        assert_eq!(mirrored.len(), Routes::MOST);
        assert_eq!(mirrored.last(), Some(&(net("0.0.0.0/0"), Some(gateway(1)))));
        assert!(mirrored.contains(&(net("10.0.0.0/24"), None)));
    }

    #[test]
    fn of_many_plain_routes_the_shortest_stay() {
        let mut routes = vec![plain("0.0.0.0/0", 1)];
        routes.extend((0..100).map(|third| plain(&format!("198.51.{third}.0/24"), 2 + third % 3)));
        let mirrored = mirror(&routes);
        assert!(mirrored.len() <= Routes::MOST);
        assert_eq!(mirrored.last(), Some(&(net("0.0.0.0/0"), Some(gateway(1)))));
    }

    fn routes() -> impl Strategy<Value = Vec<Route>> {
        let route = (any::<u8>(), 0u8..=8, prop::bool::weighted(0.95), prop::option::of(0u8..3));
        let route = route.prop_map(|(first, bits, is_main, number)| {
            let prefix = Ipv4Net::new(Ipv4Addr::new(first, 0, 0, 0), bits).unwrap().trunc();
            let gateway = number.map(gateway).filter(|_| is_main);
            Route { prefix: prefix.into(), is_main, gateway }
        });
        prop::collection::vec(route, 0..40)
    }

    /// Where its packets go for sure: by the longest prefix, if that is one route's and no other table has any.
    fn sure(routes: &[Route], address: IpAddr) -> Option<NeighbourKey> {
        let matching = || routes.iter().filter(|route| route.prefix.contains(&address));
        let longest = matching().max_by_key(|route| route.prefix.prefix_len())?;
        let alone = matching().filter(|route| route.prefix == longest.prefix).count() == 1;
        longest.gateway.filter(|_| alone && matching().all(|route| route.is_main))
    }

    proptest! {
        #[test]
        fn what_is_known_is_sure(routes in routes(), first in any::<u8>()) {
            let mirrored = mirror(&routes);
            let address = IpAddr::from([first, 0, 0, 0]);
            let known = mirrored.iter().find(|(prefix, _)| prefix.contains(&address));
            prop_assert!(mirrored.len() <= Routes::MOST);
            if let Some((_, Some(gateway))) = known {
                prop_assert_eq!(sure(&routes, address), Some(*gateway), "{:?}", mirrored);
            }
        }
    }
}
