//! The host twin of the data path: the same `balance`, over an image in ordinary memory instead of the kernel's maps.
//! What only the kernel knows, the clock and the routes to clients, is told to it. Nothing here touches the kernel.

mod flows;
mod mappings;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::Ipv6Addr,
};

use flows::Maps;
use foobar_lb_ebpf::{
    balance::balance,
    complain::Limit,
    flow::{HashKey, hash_key},
    forward::{Hop, Question},
    headers::Side,
    layout::{
        Address, Backend, Count, DirectKey, Endpoint, Ends, FlowKey, FragmentKey, Interface, Mapping,
        NextHop, PrefixKey, Reply, Routes, ServerId, Service, Slot, Sources, Traffic, Tunnel, Vip, VlanKey,
        capacity,
    },
    packet::Buffer,
    reason::{Reason, Verdict},
    snat::Added,
    tables::Tables,
};
use ipnet::IpNet;
use mappings::Mappings;
use zerocopy::{Immutable, IntoBytes};

use crate::{
    image::{Image, Prefix},
    known::Known,
    plan::Step,
    sweep::{MappedFlow, RememberedFlow, Store},
};

/// The kernel's way to the clients of a prefix, see [`Tables::route`]; interface 0: a neighbour is to be resolved.
pub type Route = (IpNet, Result<NextHop, Reason>);

/// The data path on the host.
pub struct Twin {
    /// Nanoseconds of the clock.
    pub now: u64,
    /// The ways to clients; the longest prefix counts, and without any there is no route.
    pub routes: Vec<Route>,
    /// What the sockets of the balancer's host take.
    pub host_flows: BTreeSet<FlowKey>,
    image: Image,
    known: Known,
    hash_key: HashKey,
    flows: Maps,
    mappings: Mappings,
    datagrams: RefCell<BTreeMap<FragmentKey, Ends>>,
    limit: Cell<Limit>,
    reasons: RefCell<Vec<Count>>,
    traffic: RefCell<BTreeMap<u32, Traffic>>,
}

impl Twin {
    /// A twin whose maps hold this image and no remembered flow. `seed` is that of the flow hash.
    pub fn new(image: Image, seed: u64) -> Self {
        let flows = capacity::ESTABLISHED + capacity::ADOPTED;
        Self::with_capacities(image, seed, flows, capacity::HALF_OPEN, capacity::MAPPINGS / 2)
    }

    /// A twin that remembers at most `half_open` flows that showed a SYN only, and of others at most half of `flows`
    /// from their SYN on and half from mid-flow on, and maps at most `mappings` flows.
    pub fn with_capacities(image: Image, seed: u64, flows: u32, half_open: u32, mappings: u32) -> Self {
        Self {
            now: 0,
            routes: Vec::new(),
            host_flows: BTreeSet::new(),
            known: Known::of(&image),
            image,
            hash_key: hash_key(seed),
            flows: Maps::new(flows, half_open),
            mappings: Mappings::new(2 * mappings),
            datagrams: RefCell::default(),
            limit: Cell::default(),
            reasons: RefCell::new(vec![Count::default(); Reason::ALL.len()]),
            traffic: RefCell::default(),
        }
    }

    /// Does one step of a plan; what is remembered stays.
    pub fn apply(&mut self, step: &Step) {
        if let Step::RemoveBackend(id) = step {
            self.traffic.get_mut().remove(id);
        }
        if let Step::StoreKnown(word, bits) = step {
            self.known.store(*word, *bits);
        }
        self.image.apply(step);
    }

    /// Decides what becomes of a frame that arrives on the interface with this index, and rewrites it.
    pub fn run(&self, frame: &mut Vec<u8>, ingress: u32) -> Verdict {
        let mut packet = Buffer { bytes: std::mem::take(frame), ingress };
        let verdict = balance(&mut packet, self);
        *frame = packet.bytes;
        verdict
    }

    /// How often each reason occurred.
    pub fn reasons(&self) -> Vec<(Reason, Count)> {
        Reason::ALL.iter().copied().zip(self.reasons.borrow().iter().copied()).collect()
    }

    /// What a backend was sent and sent back since it got its id.
    pub fn traffic(&self, id: u32) -> Traffic {
        self.traffic.borrow().get(&id).copied().unwrap_or_default()
    }

    /// Gives a flow a mapping as if its packets had been seen; false where it has one, or where there is no room.
    pub fn map(&self, flow: &FlowKey, mapping: &Mapping) -> bool {
        self.mappings.add(flow, mapping) == Added::Yes
    }

    /// Every flow that is mapped, and its mapping.
    pub fn mappings(&self) -> Vec<(FlowKey, Mapping)> {
        self.mappings.all()
    }

    /// Remembers a flow as if its packets had been seen; false where there is no room.
    pub fn remember(&self, flow: &RememberedFlow) -> bool {
        self.flows.remember(flow)
    }
}

impl Store for Twin {
    type Error = Infallible;

    fn retain(&mut self, keep: impl FnMut(&RememberedFlow) -> bool) -> Result<bool, Infallible> {
        self.flows.retain(keep);
        Ok(true)
    }

    fn retain_mapped(&mut self, keep: impl FnMut(&MappedFlow) -> bool) -> Result<bool, Infallible> {
        self.mappings.retain(keep);
        Ok(true)
    }
}

impl Tables for Twin {
    type Conntrack = Maps;

    fn conntrack(&self) -> &Maps {
        &self.flows
    }

    fn hash_key(&self) -> &HashKey {
        &self.hash_key
    }

    fn service(&self, destination: &Endpoint) -> Option<&Service> {
        self.image.services.get(destination)
    }

    fn range(&self, group: u32, destination: &Endpoint) -> Option<&Service> {
        longest(&self.image.ranges, &destination.range_key(group))
    }

    fn reply(&self, source: &Endpoint) -> Option<&Reply> {
        let range = || longest(&self.image.reply_ranges, &source.reply_key());
        self.image.replies.get(source).or_else(range)
    }

    fn vip(&self, address: &Address) -> Vip {
        let vip = self.image.addresses.get(address);
        vip.or_else(|| longest(&self.image.prefixes, &PrefixKey { pad: 0, address: address.0 }))
            .copied()
            .unwrap_or_default()
    }

    fn knows(&self, address: &Address) -> bool {
        self.known.has(address)
    }

    fn is_direct(&self, list: u32, client: &Address) -> bool {
        longest(&self.image.direct, &DirectKey { list, client: client.0 }).is_some()
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        let (first, slots) = self.image.tables.range(..=index).next_back()?;
        slots.get((index - first) as usize).copied()
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.image.backends.get(&id)
    }

    fn named(&self, server: &ServerId) -> Option<u32> {
        self.image.server_ids.get(server).copied()
    }

    fn tunnel(&self, backend: u32) -> Option<&Tunnel> {
        self.image.tunnels.get(&backend)
    }

    fn sources(&self, backend: u32) -> Option<&Sources> {
        self.image.sources.get(&backend)
    }

    fn mapping(&self, flow: &FlowKey) -> Option<&Mapping> {
        self.mappings.get(flow)
    }

    fn add_mapping(&self, flow: &FlowKey, mapping: &Mapping) -> Added {
        self.mappings.add(flow, mapping)
    }

    fn remove_mapping(&self, flow: &FlowKey) -> bool {
        self.mappings.remove(flow)
    }

    fn host_has(&self, flow: &FlowKey) -> bool {
        self.host_flows.contains(flow)
    }

    fn ports(&self, datagram: &FragmentKey) -> Option<Ends> {
        self.datagrams.borrow().get(datagram).copied()
    }

    fn remember_ports(&self, datagram: &FragmentKey, ends: Ends) {
        self.datagrams.borrow_mut().insert(*datagram, ends);
    }

    fn vlan(&self, vlan: &VlanKey) -> Option<u32> {
        self.image.vlans.get(vlan).copied()
    }

    fn interface(&self, index: u32) -> Option<&Interface> {
        self.image.interfaces.get(&index)
    }

    fn routes(&self) -> Option<&Routes> {
        Some(&self.image.routes)
    }

    fn route(&self, question: &Question<'_>, hop: &mut Hop) -> Result<(), Reason> {
        let client = Ipv6Addr::from(question.destination.0).to_canonical();
        let known = self.routes.iter().filter(|(prefix, _)| prefix.contains(&client));
        let (_, route) = known.max_by_key(|(prefix, _)| prefix.prefix_len()).ok_or(Reason::NoRoute)?;
        let next_hop = (*route)?;
        match u32::from(question.length) <= next_hop.mtu {
            true => {
                *hop = Hop::to(&next_hop);
                if let Some(interface) = self.interface(hop.interface) {
                    hop.interface = interface.egress(hop.interface);
                }
            }
            false if !question.may_fragment => {
                hop.mtu = next_hop.mtu;
                return Err(Reason::ReplyTooBig);
            }
            false => {}
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn may_complain(&self) -> bool {
        let mut limit = self.limit.get();
        let admitted = limit.admits(self.now);
        self.limit.set(limit);
        admitted
    }

    fn count(&self, reason: Reason, bytes: u64) {
        self.reasons.borrow_mut()[reason as usize].add(bytes);
    }

    fn count_traffic(&self, backend: u32, side: Side, bytes: u64) {
        let mut traffic = self.traffic.borrow_mut();
        let traffic = traffic.entry(backend).or_default();
        match side {
            Side::Destination => traffic.forward.add(bytes),
            Side::Source => traffic.reply.add(bytes),
        }
    }

    fn count_repicked(&self, backend: u32) {
        self.traffic.borrow_mut().entry(backend).or_default().repicked += 1;
    }
}

/// The value of the longest prefix of the key.
fn longest<'m, K: IntoBytes + Immutable, V>(map: &'m BTreeMap<Prefix<K>, V>, key: &K) -> Option<&'m V> {
    let prefixes = map.iter().filter(|((prefix, bits), _)| common_bits(prefix, key) >= *bits);
    prefixes.max_by_key(|((_, bits), _)| *bits).map(|(_, value)| value)
}

/// How many bits are equal before the first that differs.
fn common_bits<K: IntoBytes + Immutable>(a: &K, b: &K) -> u32 {
    let mut bits = 0;
    for (a, b) in a.as_bytes().iter().zip(b.as_bytes()) {
        let equal = (a ^ b).leading_zeros();
        bits += equal;
        if equal < u8::BITS {
            break;
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use foobar_lb_ebpf::layout::mapped;

    use super::*;

    #[test]
    fn a_prefix_of_direct_clients_belongs_to_its_list() {
        let client = |address| mapped(address).0;
        let bits = DirectKey::LIST_BITS + 96 + 8;
        let mut image = Image::default();
        image.direct.insert((DirectKey { list: 1, client: client([10, 0, 0, 0]) }, bits), 1);
        let twin = Twin::new(image, 1);
        assert!(twin.is_direct(1, &mapped([10, 1, 2, 3])));
        assert!(!twin.is_direct(1, &mapped([11, 1, 2, 3])));
        assert!(!twin.is_direct(2, &mapped([10, 1, 2, 3])));
    }
}
