//! Internet checksums (RFC 1071), changed incrementally (RFC 1624).
//!
//! The ones' complement sum does not care for byte order as long as all words are read and written the same
//! way (RFC 1071, 2.B), so nothing here is ever swapped: words are read as the machine reads them.

use crate::{
    headers::Word,
    layout::Address,
    packet::{FARTHEST, Frame},
    reason::Reason,
};

/// The sum of differences that a rewrite makes: old words subtracted, new words added.
#[derive(Clone, Copy, Default)]
pub struct Change(u64);

impl Change {
    /// No change.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// An address that stands at an even offset was replaced. For a mapped IPv4 address the 12 bytes of the
    /// prefix add the same as they subtract, so one function serves both families.
    #[inline(always)]
    pub fn address(mut self, old: &Address, new: &Address) -> Self {
        let (old, _) = old.0.as_chunks::<4>();
        let (new, _) = new.0.as_chunks::<4>();
        for (old, new) in old.iter().zip(new) {
            self = self.long(*old, *new);
        }
        self
    }

    /// One word was replaced.
    #[inline(always)]
    pub fn word(self, old: [u8; 2], new: [u8; 2]) -> Self {
        Self(self.0 + u64::from(!u16::from_ne_bytes(old)) + u64::from(u16::from_ne_bytes(new)))
    }

    /// Four bytes at an even offset were replaced.
    #[inline(always)]
    pub fn long(self, old: [u8; 4], new: [u8; 4]) -> Self {
        Self(self.0 + u64::from(!u32::from_ne_bytes(old)) + u64::from(u32::from_ne_bytes(new)))
    }

    /// Four bytes came in at an even offset.
    #[inline(always)]
    pub fn added(self, word: [u8; 4]) -> Self {
        Self(self.0 + u64::from(u32::from_ne_bytes(word)))
    }

    /// An address came in at an even offset. The prefix of a mapped one adds all ones, which is zero here.
    #[inline(always)]
    pub fn added_address(mut self, address: &Address) -> Self {
        let (words, _) = address.0.as_chunks::<4>();
        for word in words {
            self = self.added(*word);
        }
        self
    }

    /// Both changes.
    #[inline(always)]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + u64::from(fold(other.0)))
    }

    /// The change back.
    #[inline(always)]
    pub fn undone(self) -> Self {
        Self(u64::from(!fold(self.0)))
    }

    /// As one number of 16 bits.
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        fold(self.0) as u32
    }

    /// The change of a number.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word as u64)
    }

    /// The checksum of all that came in, and of nothing else.
    #[inline(always)]
    pub fn finish(self) -> [u8; 2] {
        (!fold(self.0)).to_ne_bytes()
    }

    /// The checksum after the change: HC' = ~(~HC + ~m + m'), RFC 1624 equation 3.
    #[inline(always)]
    pub fn apply(self, check: [u8; 2]) -> [u8; 2] {
        (!fold(self.0 + u64::from(!u16::from_ne_bytes(check)))).to_ne_bytes()
    }

    /// The same for UDP, where 0 says that there is no checksum (RFC 768): none stays none, none is ever made.
    #[inline(always)]
    pub fn apply_udp(self, check: [u8; 2]) -> [u8; 2] {
        if check == [0, 0] {
            return check;
        }
        match self.apply(check) {
            [0, 0] => [0xff, 0xff],
            check => check,
        }
    }
}

/// Adds the carries back in. The sum of a handful of words leaves the top half of 64 bits nearly empty.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// What so many bytes of a frame add, a multiple of four. Of more than can be read it says `Malformed`.
#[inline(always)]
pub fn sum(frame: &Frame<'_>, from: u32, bytes: u32) -> Result<Change, Reason> {
    const WORD: u32 = size_of::<Word>() as u32;
    let mut sum = Change::new();
    let mut at = from;
    for _ in 0..FARTHEST / WORD {
        if at >= from + bytes {
            return Ok(sum);
        }
        sum = sum.added(*frame.at::<Word>(at)?);
        // Of an offset that it can foretell, the compiler compares with the end of the packet less the offset, which the
        // verifier does not understand.
        at = core::hint::black_box(at + WORD);
    }
    Err(Reason::Malformed)
}

/// The checksum of `bytes` from scratch, an odd one at the end padded with zero.
pub fn full(bytes: &[u8]) -> [u8; 2] {
    let (words, rest) = bytes.as_chunks::<2>();
    let mut sum: u64 = words.iter().map(|word| u64::from(u16::from_ne_bytes(*word))).sum();
    if let [last] = rest {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    (!fold(sum)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 give 0x0000, where equation 2 would give 0xFFFF.
        let change = Change::new().word([0x55, 0x55], [0x32, 0x85]);
        assert_eq!(change.apply([0xdd, 0x2f]), [0x00, 0x00]);
        assert_eq!(change.apply_udp([0xdd, 0x2f]), [0xff, 0xff]);
    }

    #[test]
    fn no_udp_checksum_stays_none() {
        assert_eq!(Change::new().word([1, 2], [3, 4]).apply_udp([0, 0]), [0, 0]);
    }

    /// Two zeros of the ones' complement are one number.
    fn same(a: [u8; 2], b: [u8; 2]) -> bool {
        let zero = |check: [u8; 2]| check == [0, 0] || check == [0xff, 0xff];
        a == b || zero(a) && zero(b)
    }

    proptest! {
        #[test]
        fn incremental_is_full(mut bytes in prop::collection::vec(any::<u8>(), 40..200),
                               address: [u8; 16], port: [u8; 2]) {
            let before = full(&bytes);
            let old_address: [u8; 16] = bytes[8..24].try_into().unwrap();
            let old_port: [u8; 2] = bytes[30..32].try_into().unwrap();
            bytes[8..24].copy_from_slice(&address);
            bytes[30..32].copy_from_slice(&port);
            let change =
                Change::new().address(&Address(old_address), &Address(address)).word(old_port, port);
            prop_assert!(same(change.apply(before), full(&bytes)));
        }
    }
}
