//! Remembered flows on the host, with the capacities of the kernel's maps and their ways to be full.

use std::{cell::RefCell, collections::BTreeMap};

use elsa::FrozenVec;
use foobar_lb_ebpf::{
    conntrack::Conntrack,
    layout::{Entry, FlowKey, name},
};

use crate::sweep::RememberedFlow;

/// The maps of remembered flows.
pub struct Maps {
    half_open: Flows,
    established: Flows,
    adopted: Flows,
}

impl Maps {
    /// Empty maps; for the capacities see [`Twin::with_capacities`](super::Twin::with_capacities).
    pub fn new(flows: u32, half_open: u32) -> Self {
        Self {
            half_open: Flows::new(name::HALF_OPEN, half_open),
            established: Flows::new(name::ESTABLISHED, flows / 2),
            adopted: Flows::new(name::ADOPTED, flows / 2),
        }
    }

    /// Remembers a flow in the map it names; false where there is no room.
    pub fn remember(&self, flow: &RememberedFlow) -> bool {
        let entry = Entry::new(flow.remembered, flow.seen);
        match flow.map {
            name::HALF_OPEN => self.insert_half_open(&flow.flow, entry),
            name::ESTABLISHED => self.insert_established(&flow.flow, entry),
            name::ADOPTED => self.insert_adopted(&flow.flow, entry),
            other => unreachable!("no flow is remembered in {other}"),
        }
    }

    /// Forgets all flows that are not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&RememberedFlow) -> bool) {
        for flows in [&mut self.half_open, &mut self.established, &mut self.adopted] {
            flows.retain(&mut keep);
        }
    }
}

impl Conntrack for Maps {
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
        for flows in [&self.half_open, &self.established, &self.adopted] {
            flows.forget(flow);
        }
    }
}

/// A map of remembered flows. The data path holds on to an entry while it adds and forgets others, so entries stay
/// where they are and forgetting one only takes it off the index.
struct Flows {
    map: &'static str,
    capacity: usize,
    /// In an order that does not depend on chance, so that a test that fails does so again.
    index: RefCell<BTreeMap<FlowKey, usize>>,
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
        self.index.borrow().len() >= self.capacity
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
        let mut index = self.index.borrow_mut();
        let oldest = index.iter().min_by_key(|(_, place)| self.entries[**place].seen());
        if let Some(flow) = oldest.map(|(flow, _)| *flow) {
            index.remove(&flow);
        }
    }

    fn retain(&mut self, keep: &mut impl FnMut(&RememberedFlow) -> bool) {
        let Self { map, index, entries, .. } = self;
        index.get_mut().retain(|flow, place| {
            let entry = &entries[*place];
            keep(&RememberedFlow { map, flow: *flow, remembered: entry.load(), seen: entry.seen() })
        });
    }
}

#[cfg(test)]
mod tests {
    use foobar_lb_ebpf::layout::{Endpoint, Remembered, TCP, mapped};

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
        let mut maps = Maps::new(0, 1_000);
        assert!((0..=1_000).all(|number| maps.insert_half_open(&flow(number), entry(number.into()))));
        assert!(maps.half_open(&flow(0)).is_none());
        assert!(maps.half_open(&flow(1)).is_some());
        let mut flows = 0;
        maps.retain(|flow| {
            flows += 1;
            flow.seen > 500
        });
        assert_eq!(flows, 1_000);
        assert!(maps.half_open(&flow(500)).is_none());
        assert!(maps.half_open(&flow(501)).is_some());
    }
}
