//! The host twin of the data path: the same `balance`, over an image in ordinary memory instead of the kernel's maps.
//! What only the kernel knows, the clock and the routes to clients, is told to it. Nothing here touches the kernel.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    net::Ipv6Addr,
};

use elsa::FrozenVec;
use foobar_lb_ebpf::{
    balance::{Tables, balance},
    flow::{HashKey, Parsed, hash_key},
    headers::Side,
    layout::{
        Address, Backend, Count, DirectKey, Endpoint, Entry, FlowKey, Interface, NextHop, Reply, Service,
        Slot, Traffic, capacity, name,
    },
    packet::Buffer,
    reason::{Reason, Verdict},
};
use ipnet::IpNet;

use crate::{
    bpf::RememberedFlow,
    image::{DirectPrefix, Image},
};

/// The kernel's way to the clients of a prefix, see [`Tables::route`]; interface 0: a neighbour is to be resolved.
pub type Route = (IpNet, Result<NextHop, Reason>);

/// The data path on the host.
pub struct Twin {
    /// Nanoseconds of the clock.
    pub now: u64,
    /// The ways to clients; the longest prefix counts, and without any there is no route.
    pub routes: Vec<Route>,
    image: Image,
    hash_key: HashKey,
    half_open: Flows,
    established: Flows,
    adopted: Flows,
    reasons: RefCell<Vec<Count>>,
    traffic: RefCell<BTreeMap<u32, Traffic>>,
}

impl Twin {
    /// A twin whose maps hold this image and no remembered flow. `seed` is that of the flow hash.
    pub fn new(image: Image, seed: u64) -> Self {
        Self {
            now: 0,
            routes: Vec::new(),
            image,
            hash_key: hash_key(seed),
            half_open: Flows::new(name::HALF_OPEN, capacity::HALF_OPEN),
            established: Flows::new(name::ESTABLISHED, capacity::ESTABLISHED),
            adopted: Flows::new(name::ADOPTED, capacity::ADOPTED),
            reasons: RefCell::new(vec![Count::default(); Reason::ALL.len()]),
            traffic: RefCell::default(),
        }
    }

    /// Decides what becomes of a frame that arrives on the interface with this index, and rewrites it.
    pub fn run(&self, frame: &mut [u8], ingress: u32) -> Verdict {
        balance(&mut Buffer { bytes: frame, ingress }, self)
    }

    /// How often each reason occurred.
    pub fn reasons(&self) -> Vec<(Reason, Count)> {
        Reason::ALL.iter().copied().zip(self.reasons.borrow().iter().copied()).collect()
    }

    /// What a backend was sent and sent back.
    pub fn traffic(&self, id: u32) -> Traffic {
        self.traffic.borrow().get(&id).copied().unwrap_or_default()
    }

    /// All remembered flows.
    pub fn remembered(&self) -> Vec<RememberedFlow> {
        self.flows().into_iter().flat_map(Flows::list).collect()
    }

    /// Remembers a flow as if its packets had been seen; false where there is no room.
    pub fn remember(&self, flow: &RememberedFlow) -> bool {
        let flows = self.flows().into_iter().find(|flows| flows.map == flow.map);
        flows.is_some_and(|flows| flows.insert(&flow.flow, Entry::new(flow.remembered, flow.seen)))
    }

    fn flows(&self) -> [&Flows; 3] {
        [&self.half_open, &self.established, &self.adopted]
    }
}

impl Tables for Twin {
    fn hash_key(&self) -> &HashKey {
        &self.hash_key
    }

    fn service(&self, destination: &Endpoint) -> Option<&Service> {
        self.image.services.get(destination)
    }

    fn reply(&self, source: &Endpoint) -> Option<&Reply> {
        self.image.replies.get(source)
    }

    fn address_flags(&self, address: &Address) -> u32 {
        self.image.addresses.get(address).copied().unwrap_or(0)
    }

    fn is_direct(&self, list: u32, client: &Address) -> bool {
        let key = DirectKey { list, client: client.0 };
        self.image.direct.keys().any(|prefix| contains(prefix, &key))
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        let (first, slots) = self.image.tables.range(..=index).next_back()?;
        slots.get((index - first) as usize).copied()
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.image.backends.get(&id)
    }

    fn interface(&self, index: u32) -> Option<&Interface> {
        self.image.interfaces.get(&index)
    }

    fn route(&self, parsed: &Parsed, _: u32, _: &Address) -> Result<Option<NextHop>, Reason> {
        let client = Ipv6Addr::from(parsed.flow.destination.address.0).to_canonical();
        let known = self.routes.iter().filter(|(prefix, _)| prefix.contains(&client));
        let (_, route) = known.max_by_key(|(prefix, _)| prefix.prefix_len()).ok_or(Reason::NoRoute)?;
        let hop = (*route)?;
        match u32::from(parsed.ip.length) <= hop.mtu {
            true if hop.interface != 0 => Ok(Some(hop)),
            false if !parsed.ip.may_fragment => Err(Reason::ReplyTooBig),
            _ => Ok(None),
        }
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn half_open(&self, flow: &FlowKey) -> Option<&Entry> {
        self.half_open.get(flow)
    }

    fn remembered(&self, flow: &FlowKey) -> Option<&Entry> {
        self.established.get(flow).or_else(|| self.adopted.get(flow))
    }

    /// The map of half-open flows makes room by itself.
    fn insert_half_open(&self, flow: &FlowKey, entry: Entry) -> bool {
        if self.half_open.is_full() {
            self.half_open.forget_oldest();
        }
        self.half_open.insert(flow, entry)
    }

    fn insert_established(&self, flow: &FlowKey, entry: Entry) -> bool {
        self.established.insert(flow, entry)
    }

    fn insert_adopted(&self, flow: &FlowKey, entry: Entry) -> bool {
        self.adopted.insert(flow, entry)
    }

    fn forget_half_open(&self, flow: &FlowKey) {
        self.half_open.forget(flow);
    }

    fn forget(&self, flow: &FlowKey) {
        for flows in self.flows() {
            flows.forget(flow);
        }
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
}

/// Whether the key is in the prefix, by longest-prefix-match's rule: the first `bits` of both are equal.
fn contains((prefix, bits): &DirectPrefix, key: &DirectKey) -> bool {
    let client_bits = bits - DirectKey::LIST_BITS;
    let difference = u128::from_be_bytes(prefix.client) ^ u128::from_be_bytes(key.client);
    prefix.list == key.list && difference.leading_zeros() >= client_bits
}

/// A map of remembered flows. The data path holds on to an entry while it adds and forgets others, so entries stay
/// where they are and forgetting one only takes it off the index.
struct Flows {
    map: &'static str,
    capacity: usize,
    index: RefCell<HashMap<FlowKey, usize>>,
    entries: FrozenVec<Box<Entry>>,
}

impl Flows {
    fn new(map: &'static str, capacity: u32) -> Self {
        Self { map, capacity: capacity as usize, index: RefCell::default(), entries: FrozenVec::new() }
    }

    fn get(&self, flow: &FlowKey) -> Option<&Entry> {
        let place = self.index.borrow().get(flow).copied()?;
        self.entries.get(place)
    }

    fn is_full(&self) -> bool {
        self.index.borrow().len() == self.capacity
    }

    fn insert(&self, flow: &FlowKey, entry: Entry) -> bool {
        if let Some(known) = self.get(flow) {
            known.store(entry.load(), entry.seen());
            return true;
        }
        if self.is_full() {
            return false;
        }
        self.index.borrow_mut().insert(*flow, self.entries.len());
        self.entries.push(Box::new(entry));
        true
    }

    fn forget(&self, flow: &FlowKey) {
        self.index.borrow_mut().remove(flow);
    }

    fn forget_oldest(&self) {
        if let Some(oldest) = self.list().into_iter().min_by_key(|flow| flow.seen) {
            self.forget(&oldest.flow);
        }
    }

    fn list(&self) -> Vec<RememberedFlow> {
        let remembered = |(flow, place): (&FlowKey, &usize)| {
            let entry = &self.entries[*place];
            RememberedFlow { map: self.map, flow: *flow, remembered: entry.load(), seen: entry.seen() }
        };
        self.index.borrow().iter().map(remembered).collect()
    }
}

#[cfg(test)]
mod tests {
    use foobar_lb_ebpf::layout::{Remembered, TCP, mapped};

    use super::*;

    fn flow(number: u32) -> FlowKey {
        let end = |address| Endpoint::new(mapped(address), [0, 80], TCP);
        FlowKey { source: end(number.to_be_bytes()), destination: end([203, 0, 113, 80]) }
    }

    fn entry(seen: u64) -> Entry {
        Entry::new(Remembered { backend: 0, state: 0 }, seen)
    }

    #[test]
    fn a_full_map_refuses_others_and_takes_what_it_holds() {
        let flows = Flows::new(name::ADOPTED, 2);
        assert!(flows.insert(&flow(1), entry(1)) && flows.insert(&flow(2), entry(2)));
        assert!(!flows.insert(&flow(3), entry(3)));
        assert!(flows.insert(&flow(1), entry(4)));
        flows.forget(&flow(2));
        assert!(flows.insert(&flow(3), entry(3)));
        assert_eq!(flows.get(&flow(1)).map(Entry::seen), Some(4));
        assert!(flows.get(&flow(2)).is_none());
    }

    #[test]
    fn an_entry_outlives_its_place_in_the_map() {
        let flows = Flows::new(name::ADOPTED, 1);
        flows.insert(&flow(1), entry(1));
        let held = flows.get(&flow(1)).unwrap();
        flows.forget(&flow(1));
        flows.insert(&flow(2), entry(2));
        assert_eq!(held.seen(), 1);
    }

    #[test]
    fn half_open_flows_make_room_for_new_ones() {
        let twin = Twin::new(Image::default(), 1);
        let flows = u64::from(capacity::HALF_OPEN);
        assert!((0..=flows).all(|number| twin.insert_half_open(&flow(number as u32), entry(number))));
        assert!(twin.half_open(&flow(0)).is_none());
        assert!(twin.half_open(&flow(1)).is_some());
        assert_eq!(twin.remembered().len() as u64, flows);
    }

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
