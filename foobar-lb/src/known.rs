//! The set of addresses that the balancer has to do with, see [`known_bit`]. It follows from the other maps.

use std::{collections::BTreeMap, ops::Range};

use foobar_lb_ebpf::layout::{Address, KNOWN_WORDS, known_bit};

use crate::image::Image;

/// The words that are not zero, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known(BTreeMap<u32, u64>);

impl Known {
    const WORDS: Range<u32> = 0..KNOWN_WORDS;

    /// The addresses that are in the maps by which packets are looked up. Of a prefix there may be too many, so with one
    /// all addresses are known.
    pub fn of(image: &Image) -> Self {
        if !image.prefixes.is_empty() {
            return Self(Self::WORDS.map(|word| (word, u64::MAX)).collect());
        }
        let mut known = Self::default();
        let ends = image.services.keys().chain(image.replies.keys());
        let ranges = image.reply_ranges.keys().map(|(key, _)| Address(key.address));
        for address in ends.map(|end| end.address).chain(ranges).chain(image.addresses.keys().copied()) {
            known.add(&address);
        }
        known
    }

    fn add(&mut self, address: &Address) {
        let (word, bit) = known_bit(address);
        *self.0.entry(word).or_default() |= bit;
    }

    /// Whether an address is in it, or shares its bit with one.
    pub fn has(&self, address: &Address) -> bool {
        let (word, bit) = known_bit(address);
        self.word(word) & bit != 0
    }

    fn word(&self, word: u32) -> u64 {
        self.0.get(&word).copied().unwrap_or_default()
    }

    /// Replaces a word.
    pub fn store(&mut self, word: u32, bits: u64) {
        match bits {
            0 => drop(self.0.remove(&word)),
            _ => drop(self.0.insert(word, bits)),
        }
    }

    /// What is in one of two.
    pub fn with(&self, other: &Self) -> Self {
        let mut both = self.clone();
        other.0.iter().for_each(|(word, bits)| *both.0.entry(*word).or_default() |= bits);
        both
    }

    /// The words that are different in another, and what they are there.
    pub fn changes(&self, other: &Self) -> impl Iterator<Item = (u32, u64)> {
        Self::WORDS
            .map(|word| (word, self.word(word), other.word(word)))
            .filter(|(_, old, new)| old != new)
            .map(|(word, _, new)| (word, new))
    }
}

#[cfg(test)]
mod tests {
    use foobar_lb_ebpf::layout::{PrefixKey, Vip, mapped};

    use super::*;

    #[test]
    fn only_what_is_in_the_maps_is_known_but_for_prefixes() {
        let (vip, other) = (mapped([203, 0, 113, 80]), mapped([192, 0, 2, 1]));
        let mut image = Image::default();
        image.addresses.insert(vip, Vip::default());
        let known = Known::of(&image);
        assert!(known.has(&vip) && !known.has(&other));
        image.prefixes.insert((PrefixKey { pad: 0, address: vip.0 }, 128), Vip::default());
        assert!(Known::of(&image).has(&other));
    }
}
