//! The addresses that the balancer has to do with, as a set of bits: those of most other packets are not in it, so one
//! load tells that none of the maps has anything of them, which would have to be asked one after the other.
//! `cargo xtask bench kernel --only pass` tells what a packet between two of no interest costs.

use super::Address;

/// Words of the set. With a thousand addresses one in a thousand others seems to be in it; it costs what a look-up does.
pub const KNOWN_WORDS: u32 = 1 << WORD_BITS;
const WORD_BITS: u32 = 14;

/// Where the bit of an address is: the index of its word, and the bit by itself.
#[inline(always)]
pub const fn known_bit(address: &Address) -> (u32, u64) {
    let bits = u128::from_le_bytes(address.0);
    // Two odd numbers without a pattern; that of the upper half matters to IPv6 only.
    let upper = (bits as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let hash = upper.wrapping_add((bits >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((hash >> (u64::BITS - WORD_BITS)) as u32, 1 << ((hash >> (u64::BITS - WORD_BITS - 6)) & 63))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::mapped;

    #[test]
    fn neighbours_have_bits_of_their_own() {
        let addresses = (0..=u8::MAX).map(|host| mapped([10, 0, 0, host]));
        let bits: alloc::collections::BTreeSet<_> = addresses.map(|address| known_bit(&address)).collect();
        assert_eq!(bits.len(), 256);
    }
}
