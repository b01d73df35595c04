//! The kernel's map of mapped flows. There are two mappings for each, which are shown as one flow and go together.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use foobar_lb_ebpf::{
    layout::{Entry, FlowKey, Mapping, Remembered, name},
    snat::{Life, reversed},
};
use zerocopy::{FromBytes, Immutable, KnownLayout, transmute};

use super::{Error, failed, flows::share, remove, take};
use crate::sweep::MappedFlow;

/// The map.
pub struct Mappings(Entries);

type Entries = HashMap<MapData, Key, [u8; size_of::<Mapping>()]>;
type Key = [u8; size_of::<FlowKey>()];

/// A [`Mapping`] as it lies in the map.
#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout)]
struct Raw {
    to: FlowKey,
    remembered: u64,
    seen: u64,
    mss: u32,
    back: u32,
}

impl Mappings {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        take(ebpf, name::MAPPINGS).map(Self)
    }

    /// The same map once more, for another thread.
    pub(super) fn share(&self) -> Result<Self, Error> {
        share(name::MAPPINGS, &self.0).map(Self)
    }

    /// Shows every flow, and then forgets those that are not to be kept and have not sent since. Stops and returns false
    /// if the kernel removed mappings under way so that others may have been missed.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&MappedFlow) -> bool) -> Result<bool, Error> {
        // Hashes of the keys, which are many: that two are the same costs no more than another scan.
        let (hasher, mut shown) = (RandomState::new(), HashSet::new());
        let (mut over, mut whole) = (Vec::new(), true);
        for key in self.0.keys() {
            let key = key.map_err(failed(name::MAPPINGS, "read"))?;
            whole = shown.insert(hasher.hash_one(key));
            if !whole {
                break;
            }
            if let Some(flow) = self.read_flow(&transmute!(key))?
                && !keep(&flow)
            {
                over.push((key, flow.life.seen()));
            }
        }
        // Not on the way: an iteration that stands on a removed key begins anew.
        for (key, seen) in over {
            self.forget(key, seen)?;
        }
        Ok(whole)
    }

    /// The flow of a mapping; none if it is gone, or if it will be, or was, shown by the mapping of its other direction.
    fn read_flow(&self, key: &FlowKey) -> Result<Option<MappedFlow>, Error> {
        let Some(mapping) = self.read(key)? else { return Ok(None) };
        let other = self.read(&reversed(&mapping.to))?.filter(|other| other.to == reversed(key));
        let is_back = mapping.back != 0;
        if is_back && other.is_some() {
            return Ok(None);
        }
        let flow = if is_back { reversed(&mapping.to) } else { *key };
        let life = Life::of(&mapping, other.as_ref());
        Ok(Some(MappedFlow { flow, backend: mapping.entry.load().backend, life }))
    }

    /// What is gone first is what would lead packets to a backend that no longer knows them.
    fn forget(&mut self, key: Key, seen: u64) -> Result<(), Error> {
        let flow: FlowKey = transmute!(key);
        let (Some(mapping), Some(now)) = (self.read(&flow)?, self.read_flow(&flow)?) else { return Ok(()) };
        if now.life.seen() != seen {
            return Ok(());
        }
        remove(&mut self.0, key, name::MAPPINGS)?;
        let other = reversed(&mapping.to);
        let is_pair = self.read(&other)?.is_some_and(|other| other.to == reversed(&flow));
        if is_pair { remove(&mut self.0, transmute!(other), name::MAPPINGS) } else { Ok(()) }
    }

    fn read(&self, flow: &FlowKey) -> Result<Option<Mapping>, Error> {
        let key: Key = transmute!(*flow);
        match self.0.get(&key, 0) {
            Ok(bytes) => {
                let Raw { to, remembered, seen, mss, back } = transmute!(bytes);
                let entry = Entry::new(Remembered::from_word(remembered), seen);
                Ok(Some(Mapping { to, entry, mss, back }))
            }
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(name::MAPPINGS, "read")(error)),
        }
    }
}
