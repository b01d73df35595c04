//! What QUIC connection ids say of backends: which of them they name.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What connection ids look like that name a backend (draft-ietf-quic-load-balancers, without a key).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Quic {
    /// The list of the service's server ids, the first part of a [`ServerId`]; 0: it has none.
    pub list: u32,
    /// Bytes of a server id, 1 to 15.
    pub length: u16,
    /// Its config rotation bits, 0 to 6.
    pub rotation: u16,
}

impl Quic {
    /// Connection ids say nothing.
    pub const NONE: Self = Self { list: 0, length: 0, rotation: 0 };

    /// As one number.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.list as u64) << 32 | (self.length as u64) << 16 | self.rotation as u64
    }

    /// What the number says.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { list: (word >> 32) as u32, length: (word >> 16) as u16, rotation: word as u16 }
    }
}

/// A server id, by which QUIC packets name a backend. Aligned, because it stands on the stack.
#[repr(C, align(8))]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ServerId {
    /// The list; not 0.
    pub list: u32,
    /// Bytes of the id, so that those of one length are never taken for those of another while a list changes.
    pub length: u32,
    /// The id, and zeros behind it.
    pub id: [u8; 16],
}
