//! The set of addresses that the balancer has to do with, see [`known_bit`]. It follows from the other maps.

use foobar_lb_ebpf::layout::{Address, KNOWN_WORDS, known_bit};

use crate::image::Image;

/// Its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known(Box<[u64]>);

impl Default for Known {
    fn default() -> Self {
        Self::filled_with(0)
    }
}

impl Known {
    /// The addresses that are in the maps by which packets are looked up. Of a prefix there may be too many, so with one
    /// all addresses are known.
    pub fn of(image: &Image) -> Self {
        if !image.prefixes.is_empty() {
            return Self::filled_with(u64::MAX);
        }
        let mut known = Self::default();
        let ends = image.services.keys().chain(image.replies.keys());
        let ranges = image.reply_ranges.keys().map(|(key, _)| Address(key.address));
        for address in ends.map(|end| end.address).chain(ranges).chain(image.addresses.keys().copied()) {
            known.add(&address);
        }
        known
    }

    fn filled_with(bits: u64) -> Self {
        Self(vec![bits; KNOWN_WORDS as usize].into())
    }

    fn add(&mut self, address: &Address) {
        let (word, bit) = known_bit(address);
        self.0[word as usize] |= bit;
    }

    /// Whether an address is in it, or shares its bit with one.
    pub fn has(&self, address: &Address) -> bool {
        let (word, bit) = known_bit(address);
        self.0[word as usize] & bit != 0
    }

    /// Replaces a word.
    pub fn store(&mut self, word: u32, bits: u64) {
        self.0[word as usize] = bits;
    }

    /// All of its words.
    pub fn words(&self) -> impl Iterator<Item = (u32, u64)> {
        (0u32..).zip(self.0.iter().copied())
    }

    /// What is in one of two.
    pub fn with(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(own, others)| own | others).collect())
    }

    /// The words that are different in another, and what they are there.
    pub fn changes(&self, other: &Self) -> impl Iterator<Item = (u32, u64)> {
        let words = (0u32..).zip(self.0.iter().zip(&other.0));
        words.filter(|(_, (old, new))| old != new).map(|(word, (_, new))| (word, *new))
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
