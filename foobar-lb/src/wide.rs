//! Services with more than one address or port: which of them has a port of a VIP. The more specific VIP wins, and on one
//! VIP the narrower range. Services with one address and one port are left to who looks for those first.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::model::{Ports, Protocol, ServiceKey};

/// Values by prefix.
#[derive(Clone, Debug)]
pub struct PrefixMap<V> {
    values: BTreeMap<IpNet, V>,
    lengths: BTreeSet<u8>,
}

impl<V> PrefixMap<V> {
    /// None yet.
    pub const fn new() -> Self {
        Self { values: BTreeMap::new(), lengths: BTreeSet::new() }
    }

    /// The value of a prefix, which gets one if it has none.
    pub fn entry(&mut self, prefix: IpNet) -> &mut V
    where
        V: Default,
    {
        self.lengths.insert(prefix.prefix_len());
        self.values.entry(prefix).or_default()
    }

    /// All prefixes and their values.
    pub fn iter(&self) -> impl Iterator<Item = (&IpNet, &V)> {
        self.values.iter()
    }

    /// The prefixes that have all of this one, the longest first.
    pub fn around(&self, prefix: IpNet) -> impl Iterator<Item = (&IpNet, &V)> {
        let shorter = self.lengths.range(..=prefix.prefix_len()).rev();
        shorter.filter_map(move |length| {
            let wider = IpNet::new(prefix.addr(), *length).expect("it is no longer than the prefix");
            self.values.get_key_value(&wider.trunc())
        })
    }
}

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self::new()
    }
}

/// Ports of a VIP, and whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch<T> {
    /// Of which protocol.
    pub protocol: Protocol,
    /// The ports.
    pub ports: Ports,
    /// The service.
    pub owner: T,
}

/// Who has which ports of which VIPs.
#[derive(Clone, Debug)]
pub struct Wide<T> {
    vips: PrefixMap<Vec<Stretch<T>>>,
}

impl<T: Copy> Wide<T> {
    /// Of those services that have more than one address or port.
    pub fn new(services: impl IntoIterator<Item = (ServiceKey, T)>) -> Self {
        let mut claims = PrefixMap::<Vec<Stretch<T>>>::new();
        for (ServiceKey { address, protocol }, owner) in services {
            if address.exact().is_none() {
                claims.entry(address.vip).push(Stretch { protocol, ports: address.ports, owner });
            }
        }
        let mut vips = PrefixMap::new();
        for (vip, _) in claims.iter() {
            let around = claims.around(*vip).flat_map(|(_, claims)| narrow_first(claims));
            *vips.entry(*vip) = flatten(around);
        }
        Self { vips }
    }

    /// The VIPs that have such services, each with its ports, which do not overlap. Those of wider VIPs around it are among
    /// them.
    pub fn iter(&self) -> impl Iterator<Item = (&IpNet, &Vec<Stretch<T>>)> {
        self.vips.iter()
    }

    /// The VIP whose ports are those of all addresses of this prefix.
    pub fn nearest(&self, prefix: IpNet) -> Option<&IpNet> {
        self.vips.around(prefix).next().map(|(vip, _)| vip)
    }

    /// The service that has this port.
    pub fn find(&self, address: IpAddr, protocol: Protocol, port: u16) -> Option<T> {
        let (_, stretches) = self.vips.around(address.into()).next()?;
        let has =
            |stretch: &&Stretch<T>| stretch.protocol == protocol && stretch.ports.contains(Ports::one(port));
        stretches.iter().find(has).map(|stretch| stretch.owner)
    }
}

fn narrow_first<T: Copy>(claims: &[Stretch<T>]) -> Vec<Stretch<T>> {
    let mut claims = claims.to_vec();
    claims.sort_by_key(|claim| claim.ports.last - claim.ports.first);
    claims
}

/// Whose each port is, of claims of which the earlier ones win.
fn flatten<T: Copy>(claims: impl Iterator<Item = Stretch<T>>) -> Vec<Stretch<T>> {
    let mut taken = BTreeMap::<(Protocol, u16), Stretch<T>>::new();
    for claim in claims {
        for ports in gaps(&taken, claim.protocol, claim.ports) {
            taken.insert((claim.protocol, ports.first), Stretch { ports, ..claim });
        }
    }
    taken.into_values().collect()
}

/// What of the ports nobody has taken yet.
fn gaps<T: Copy>(
    taken: &BTreeMap<(Protocol, u16), Stretch<T>>,
    protocol: Protocol,
    ports: Ports,
) -> Vec<Ports> {
    let below = taken.range((protocol, 0)..=(protocol, ports.last)).map(|(_, stretch)| stretch.ports);
    let mut gaps = Vec::new();
    // One more than the last port there is must find room.
    let mut next = u32::from(ports.first);
    for other in below.filter(|other| other.overlaps(ports)) {
        if next < u32::from(other.first) {
            gaps.push(Ports { first: next as u16, last: other.first - 1 });
        }
        next = u32::from(other.last) + 1;
    }
    if next <= u32::from(ports.last) {
        gaps.push(Ports { first: next as u16, last: ports.last });
    }
    gaps
}

/// The prefixes that the ports consist of: the first port of each, and how many of its bits count.
pub fn port_prefixes(ports: Ports) -> Vec<(u16, u32)> {
    let mut prefixes = Vec::new();
    let (mut first, end) = (u32::from(ports.first), u32::from(ports.last) + 1);
    while first < end {
        let aligned = first.trailing_zeros().min(u16::BITS);
        let fits = (end - first).ilog2();
        let free = aligned.min(fits);
        prefixes.push((first as u16, u16::BITS - free));
        first += 1 << free;
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Destination;

    fn key(vip: &str, first: u16, last: u16) -> ServiceKey {
        let vip = vip.parse().expect("a prefix");
        ServiceKey { address: Destination { vip, ports: Ports { first, last } }, protocol: Protocol::Tcp }
    }

    fn ports() -> impl Strategy<Value = Ports> {
        let port = prop_oneof![3 => 0u16..40, 1 => 65_500u16..=u16::MAX, 1 => any::<u16>()];
        (port.clone(), port).prop_map(|(a, b)| Ports { first: a.min(b), last: a.max(b) })
    }

    proptest! {
        #[test]
        fn every_port_belongs_to_the_narrowest_range_of_the_nearest_vip(
            claims in prop::collection::vec((0u8..4, ports()), 0..8),
            probes in prop::collection::vec((any::<u8>(), ports()), 8),
        ) {
            let lengths = [0u8, 4, 6, 8];
            let vip = |length: usize| IpNet::new([10, 0, 0, 0].into(), 24 + lengths[length]).expect("a prefix");
            let keys = claims.iter().map(|(length, ports)| ServiceKey {
                address: Destination { vip: vip(usize::from(*length)), ports: *ports },
                protocol: Protocol::Tcp,
            });
            let keys: Vec<_> = keys.collect();
            let wide = Wide::new(keys.iter().copied().zip(0usize..));
            for (host, Ports { first: port, .. }) in probes {
                let address = IpAddr::from([10, 0, 0, host % 32]);
                let has = |key: &&ServiceKey| {
                    let Destination { vip, ports } = key.address;
                    key.address.exact().is_none() && vip.contains(&address) && ports.contains(Ports::one(port))
                };
                let rank = |key: &ServiceKey| {
                    let Destination { vip, ports } = key.address;
                    (u8::MAX - vip.prefix_len(), ports.last - ports.first)
                };
                let expected = keys.iter().filter(has).map(rank).min();
                let found = wide.find(address, Protocol::Tcp, port);
                prop_assert_eq!(found.map(|owner| rank(&keys[owner])), expected);
                prop_assert_eq!(wide.find(address, Protocol::Udp, port), None);
            }
        }

        #[test]
        fn prefixes_are_the_ports_each_once(ports in ports()) {
            let mut next = u32::from(ports.first);
            for (first, bits) in port_prefixes(ports) {
                prop_assert_eq!(u32::from(first), next);
                let size = 1u32 << (u16::BITS - bits);
                prop_assert_eq!(u32::from(first) % size, 0);
                next += size;
            }
            prop_assert_eq!(next, u32::from(ports.last) + 1);
        }
    }

    #[test]
    fn all_ports_are_one_prefix() {
        assert_eq!(port_prefixes(Ports::ANY), [(0, 0)]);
        assert_eq!(port_prefixes(Ports { first: 5000, last: 5007 }), [(5000, 13)]);
    }

    #[test]
    fn a_vip_has_what_wider_ones_leave() {
        let services = [key("203.0.113.0/28", 80, 90), key("203.0.113.5/32", 85, 100)];
        let wide = Wide::new(services.into_iter().zip(0..));
        let vip = "203.0.113.5/32".parse().expect("a prefix");
        let (_, stretches) = wide.iter().find(|(other, _)| **other == vip).expect("it has services");
        let owned: Vec<_> =
            stretches.iter().map(|stretch| (stretch.ports.to_string(), stretch.owner)).collect();
        assert_eq!(owned, [("80-84".to_owned(), 0), ("85-100".to_owned(), 1)]);
        assert_eq!(wide.nearest("203.0.113.6/32".parse().expect("a prefix")), Some(&services[0].address.vip));
        assert_eq!(wide.nearest("203.0.113.16/32".parse().expect("a prefix")), None);
    }
}
