//! The kernel's maps of remembered and of mapped flows: shows every flow in them, and forgets those that are not to be
//! kept. Which these are is left to others.

use std::{
    collections::HashSet,
    fs,
    hash::{BuildHasher, RandomState},
    io,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Ebpf,
    maps::{HashMap, IterableMap, Map, MapData, MapError},
};
use foobar_lb_ebpf::layout::{FlowKey, Remembered, name};
use zerocopy::transmute;

use super::{Capacities, Error, failed, mappings::Mappings, remove};
use crate::sweep::{MappedFlow, RememberedFlow, Store};

/// An object has some of these, and they are read in this order: a flow that is promoted is put among the established
/// ones before it is taken off the half-open ones, so it is seen at least once.
const MAPS: [&str; 4] = [name::HALF_OPEN, name::ESTABLISHED, name::ADOPTED, name::FLOWS];

/// How large each of the maps is made.
pub fn capacities(Capacities { flows, half_open, .. }: Capacities) -> [(&'static str, u32); 4] {
    [
        (name::HALF_OPEN, half_open),
        (name::ESTABLISHED, flows / 2),
        (name::ADOPTED, flows / 2),
        (name::FLOWS, flows + half_open),
    ]
}

/// The maps of flows.
pub struct FlowMaps {
    remembered: Vec<Flows>,
    mapped: Mappings,
}

impl FlowMaps {
    /// Takes those that the object has.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let taken = MAPS.into_iter().filter_map(|name| Some((name, ebpf.take_map(name)?)));
        let remembered = taken.map(|(name, map)| Flows::new(name, map)).collect::<Result<_, _>>()?;
        Ok(Self { remembered, mapped: Mappings::take(ebpf)? })
    }

    /// The same maps once more, for another thread.
    pub(super) fn share(&self) -> Result<Self, Error> {
        let again =
            |flows: &Flows| Ok(Flows { name: flows.name, entries: flows.share()?, removal: flows.share()? });
        let remembered = self.remembered.iter().map(again).collect::<Result<_, Error>>()?;
        Ok(Self { remembered, mapped: self.mapped.share()? })
    }

    /// Bytes of memory that the kernel has reserved for what is remembered.
    pub(super) fn memory(&self) -> Result<u64, Error> {
        self.remembered.iter().map(Flows::memory).sum()
    }
}

impl Store for FlowMaps {
    type Error = Error;

    fn retain(&mut self, mut keep: impl FnMut(&RememberedFlow) -> bool) -> Result<bool, Error> {
        let mut whole = true;
        // Where one is disturbed, as an LRU is by a flood, the others are looked through all the same.
        for flows in &mut self.remembered {
            whole &= flows.retain(&mut keep)?;
        }
        Ok(whole)
    }

    fn retain_mapped(&mut self, keep: impl FnMut(&MappedFlow) -> bool) -> Result<bool, Error> {
        self.mapped.retain(keep)
    }
}

/// A map of remembered flows.
struct Flows {
    name: &'static str,
    entries: Entries,
    /// The same map, to remove an entry while the iteration over `entries` goes on.
    removal: Entries,
}

type Entries = HashMap<MapData, Key, [u64; 2]>;
type Key = [u8; size_of::<FlowKey>()];

impl Flows {
    fn new(name: &'static str, map: Map) -> Result<Self, Error> {
        let entries = Entries::try_from(map).map_err(failed(name, "use"))?;
        Ok(Self { name, removal: share(name, &entries)?, entries })
    }

    fn share(&self) -> Result<Entries, Error> {
        share(self.name, &self.entries)
    }

    /// Shows every flow, and forgets at once those that are not to be kept: one that sent later would lose a new life.
    /// Stops and returns false if the kernel removed a flow under way so that others may have been missed.
    fn retain(&mut self, keep: &mut impl FnMut(&RememberedFlow) -> bool) -> Result<bool, Error> {
        // Hashes of the keys, which are many: that two are the same costs no more than another scan.
        let (hasher, mut shown) = (RandomState::new(), HashSet::new());
        let mut over = None;
        for key in self.entries.keys() {
            let key = key.map_err(failed(self.name, "read"))?;
            // One step behind, because an iteration that stands on a removed key begins anew.
            if let Some(over) = over.take() {
                remove(&mut self.removal, over, self.name)?;
            }
            if !shown.insert(hasher.hash_one(key)) {
                return Ok(false);
            }
            if let Some(flow) = self.read(&key)?
                && !keep(&flow)
            {
                over = Some(key);
            }
        }
        over.map_or(Ok(()), |over| remove(&mut self.removal, over, self.name))?;
        Ok(true)
    }

    fn read(&self, key: &Key) -> Result<Option<RememberedFlow>, Error> {
        match self.entries.get(key, 0) {
            Ok([word, seen]) => Ok(Some(RememberedFlow {
                map: self.name,
                flow: transmute!(*key),
                remembered: Remembered::from_word(word),
                seen,
            })),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(self.name, "read")(error)),
        }
    }

    /// Bytes of memory that the map takes, full or empty.
    fn memory(&self) -> Result<u64, Error> {
        let path = format!("/proc/self/fdinfo/{}", self.entries.map().fd().as_fd().as_raw_fd());
        let info = fs::read_to_string(path).map_err(|source| Error::Memory { map: self.name, source })?;
        let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
        bytes.ok_or_else(|| Error::Memory {
            map: self.name,
            source: io::Error::new(io::ErrorKind::InvalidData, "no number of bytes under `memlock`"),
        })
    }
}

/// The same map, by a handle of its own.
pub(super) fn share<K: aya::Pod, V: aya::Pod>(
    name: &'static str,
    entries: &HashMap<MapData, K, V>,
) -> Result<HashMap<MapData, K, V>, Error> {
    let again = entries.map().fd().as_fd().try_clone_to_owned();
    let again = again.map_err(MapError::IoError).and_then(MapData::from_fd);
    again.and_then(|map| HashMap::try_from(Map::HashMap(map))).map_err(failed(name, "use"))
}
