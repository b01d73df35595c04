//! The kernel's maps in ordinary memory. What is removed stays readable where it was, as in the kernel while a program
//! runs.

use std::{collections::BTreeMap, ops::Range};

use aya_obj::generated::bpf_map_type::{
    BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LPM_TRIE, BPF_MAP_TYPE_LRU_HASH,
    BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_PROG_ARRAY,
};

use super::object::Definition;

/// Update only what is not there (linux/bpf.h).
const BPF_NOEXIST: u64 = 1;
/// The kernel rounds values up to as many bytes.
const ALIGNMENT: usize = 8;

/// A map.
pub struct Map {
    pub name: String,
    /// Bytes of a key.
    pub key: usize,
    /// Bytes of a value.
    pub value: usize,
    kind: Kind,
    capacity: usize,
    /// Where in `values` those of keys are; an array needs none.
    places: BTreeMap<Vec<u8>, usize>,
    /// One after the other, aligned.
    pub values: Vec<u8>,
}

/// How keys are found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Array,
    Hash,
    /// It makes room by itself.
    Lru,
    /// The longest prefix counts, after four bytes with its length in bits.
    Prefixes,
}

/// Why an update is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the key is there")]
    Exists,
    #[error("the map is full")]
    Full,
    #[error("no such element")]
    Missing,
}

impl Map {
    /// An empty map.
    pub fn new(definition: &Definition, capacity: Option<u32>) -> Self {
        let Definition { name, kind, key, value, contents, .. } = definition;
        let capacity = capacity.unwrap_or(definition.capacity) as usize;
        let kind = kind_of(*kind);
        let mut values = vec![0; if kind == Kind::Array { capacity * aligned(*value) } else { 0 }];
        values[..contents.len()].copy_from_slice(contents);
        Self { name: name.clone(), key: *key, value: *value, kind, capacity, places: BTreeMap::new(), values }
    }

    /// Where in `values` that of a key begins.
    pub fn look_up(&self, key: &[u8]) -> Option<usize> {
        match self.kind {
            Kind::Array => {
                let index = u32::from_ne_bytes(key.try_into().ok()?) as usize;
                (index < self.capacity).then(|| index * aligned(self.value))
            }
            Kind::Hash | Kind::Lru => self.places.get(key).copied(),
            Kind::Prefixes => {
                let matching = self.places.iter().filter(|(prefix, _)| is_prefix(prefix, key));
                matching.max_by_key(|(prefix, _)| bits(prefix)).map(|(_, place)| *place)
            }
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.look_up(key).map(|place| &self.values[self.value_at(place)])
    }

    /// Puts a value in, by the kernel's flags.
    pub fn update(&mut self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Refusal> {
        let known = if self.kind == Kind::Array { self.look_up(key) } else { self.places.get(key).copied() };
        let place = match known {
            Some(_) if flags & BPF_NOEXIST != 0 => return Err(Refusal::Exists),
            // An array changes in place. A hash map puts a new element in the place of the old one.
            Some(place) if self.kind == Kind::Array => place,
            None if self.kind == Kind::Array => return Err(Refusal::Missing),
            known => self.add(key, known.is_some())?,
        };
        let range = self.value_at(place);
        self.values[range].copy_from_slice(value);
        Ok(())
    }

    fn add(&mut self, key: &[u8], replaces: bool) -> Result<usize, Refusal> {
        if !replaces && self.places.len() >= self.capacity {
            let oldest = self.places.iter().min_by_key(|(_, place)| **place).map(|(key, _)| key.clone());
            match oldest.filter(|_| self.kind == Kind::Lru) {
                Some(oldest) => self.places.remove(&oldest),
                None => return Err(Refusal::Full),
            };
        }
        let place = self.values.len();
        self.values.resize(place + aligned(self.value), 0);
        self.places.insert(key.to_vec(), place);
        Ok(place)
    }

    /// Removes an element; false where there is none, and in an array.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        self.places.remove(key).is_some()
    }

    /// All keys and values of one that is no array.
    pub fn elements(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.places.iter().map(|(key, place)| (key.as_slice(), &self.values[self.value_at(*place)]))
    }

    fn value_at(&self, place: usize) -> Range<usize> {
        place..place + self.value
    }
}

fn kind_of(kind: u32) -> Kind {
    let kinds = [
        (BPF_MAP_TYPE_ARRAY, Kind::Array),
        // There is one CPU.
        (BPF_MAP_TYPE_PERCPU_ARRAY, Kind::Array),
        (BPF_MAP_TYPE_HASH, Kind::Hash),
        (BPF_MAP_TYPE_LRU_HASH, Kind::Lru),
        (BPF_MAP_TYPE_LPM_TRIE, Kind::Prefixes),
        // It stays empty.
        (BPF_MAP_TYPE_PROG_ARRAY, Kind::Hash),
    ];
    let known = kinds.iter().find(|(number, _)| *number as u32 == kind);
    known.unwrap_or_else(|| panic!("maps of type {kind} are to be written")).1
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

fn bits(prefix: &[u8]) -> u32 {
    let (bits, _) = prefix.split_first_chunk().expect("it begins with its length");
    u32::from_ne_bytes(*bits)
}

/// Whether the bits of the prefix that count are those of the key, after the length of each.
fn is_prefix(prefix: &[u8], key: &[u8]) -> bool {
    let bits = bits(prefix) as usize;
    let (whole, rest) = (4 + bits / 8, bits % 8);
    prefix[4..whole] == key[4..whole] && (rest == 0 || (prefix[whole] ^ key[whole]) >> (8 - rest) == 0)
}
