//! Mappings on the host, with the capacity of the kernel's map.

use std::{cell::RefCell, collections::BTreeMap};

use elsa::FrozenVec;
use foobar_lb_ebpf::{
    layout::{Entry, FlowKey, Mapping},
    snat::{Added, Life, reversed},
};

use crate::sweep::MappedFlow;

/// The map of mappings. The data path holds on to a mapping while it adds and removes others, so mappings stay where they
/// are and removing one only takes it off the index.
pub struct Mappings {
    capacity: usize,
    index: RefCell<BTreeMap<FlowKey, usize>>,
    mappings: FrozenVec<Box<Mapping>>,
}

impl Mappings {
    /// An empty map for so many.
    pub fn new(capacity: u32) -> Self {
        Self { capacity: capacity as usize, index: RefCell::default(), mappings: FrozenVec::new() }
    }

    /// That of a flow.
    pub fn get(&self, flow: &FlowKey) -> Option<&Mapping> {
        let place = self.index.borrow().get(flow).copied()?;
        self.mappings.get(place)
    }

    /// Adds one where there is none for its flow.
    pub fn add(&self, flow: &FlowKey, mapping: &Mapping) -> Added {
        let mut index = self.index.borrow_mut();
        if index.contains_key(flow) {
            return Added::Taken;
        }
        if index.len() >= self.capacity {
            return Added::NoRoom;
        }
        index.insert(*flow, self.mappings.len());
        self.mappings.push(Box::new(copy(mapping)));
        Added::Yes
    }

    /// Removes one; false where there is none.
    pub fn remove(&self, flow: &FlowKey) -> bool {
        self.index.borrow_mut().remove(flow).is_some()
    }

    /// Forgets all flows that are not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&MappedFlow) -> bool) {
        for (key, mapping) in self.all() {
            let other = self.get(&reversed(&mapping.to)).filter(|other| other.to == reversed(&key));
            let is_back = mapping.back != 0;
            // It was, or will be, shown by the mapping of its other direction.
            if is_back && other.is_some() {
                continue;
            }
            let flow = if is_back { reversed(&mapping.to) } else { key };
            let backend = mapping.entry.load().backend;
            if !keep(&MappedFlow { flow, backend, life: Life::of(&mapping, other) }) {
                self.remove(&key);
                self.remove(&reversed(&mapping.to));
            }
        }
    }

    /// Every flow and its mapping, in an order that does not depend on chance.
    pub fn all(&self) -> Vec<(FlowKey, Mapping)> {
        let index = self.index.borrow();
        index.iter().filter_map(|(flow, place)| Some((*flow, copy(self.mappings.get(*place)?)))).collect()
    }
}

/// A mapping is not `Copy`, because the data path shares its words.
fn copy(mapping: &Mapping) -> Mapping {
    let Mapping { to, entry, mss, back } = mapping;
    Mapping { to: *to, entry: Entry::new(entry.load(), entry.seen()), mss: *mss, back: *back }
}
