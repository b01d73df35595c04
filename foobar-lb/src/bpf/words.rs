//! Array maps of words that are mapped into memory: a store costs nothing, and packets see each word whole.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Ebpf,
    maps::{Array, IterableMap, MapData},
};
use memmap2::{MmapOptions, MmapRaw};

use super::{Error, take};

/// The words of a map.
pub(super) struct Words(MmapRaw);

impl Words {
    /// Those of a map that has so many.
    pub fn take(ebpf: &mut Ebpf, map: &'static str, count: u32) -> Result<Self, Error> {
        Self::of(&take(ebpf, map)?, map, count)
    }

    /// The same where the map is at hand.
    pub fn of(array: &Array<MapData, u64>, map: &'static str, count: u32) -> Result<Self, Error> {
        let mapped = MmapOptions::new()
            .len(count as usize * size_of::<u64>())
            .map_raw(&array.map().fd().as_fd())
            .map_err(|source| Error::Mmap { map, source })?;
        Ok(Self(mapped))
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        (self.0.len() / size_of::<u64>()) as u32
    }

    /// A word as it is now.
    pub fn load(&self, index: u32) -> u64 {
        self.word(index).load(Ordering::Relaxed)
    }

    /// Replaces words, from the one with this index on.
    pub fn store(&self, first: u32, words: impl IntoIterator<Item = u64>) {
        for (index, value) in (first..).zip(words) {
            self.word(index).store(value, Ordering::Release);
        }
    }

    /// Adds one to a word.
    pub fn increment(&self, index: u32) {
        self.word(index).fetch_add(1, Ordering::Release);
    }

    fn word(&self, index: u32) -> &AtomicU64 {
        let index = index as usize;
        assert!((index + 1) * size_of::<u64>() <= self.0.len(), "the plan stays within the map");
        // SAFETY: within the mapping, as asserted; a page is aligned more than a word, and the kernel's
        // side too only loads whole words.
        unsafe { AtomicU64::from_ptr(self.0.as_mut_ptr().cast::<u64>().add(index)) }
    }
}
