//! What is kept of VLANs.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The VLAN tags of a frame. Each is its four bytes as a number: a protocol, 802.1Q (0x8100) or 802.1ad (0x88a8), and below
/// it a priority and the VLAN's id; 0: none.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct Tags {
    /// The one that comes first.
    pub outer: u32,
    /// The second of two.
    pub inner: u32,
}

impl Tags {
    /// No tag.
    pub const NONE: Self = Self { outer: 0, inner: 0 };
    /// The bits of a tag that are the id of its VLAN.
    const ID: u32 = 0xfff;
    /// The bits of a tag that name its VLAN.
    const NAME: u32 = 0xffff_0000 | Self::ID;

    /// As one number; 0: no tag.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.inner as u64) << 32 | self.outer as u64
    }

    /// The tags of a number.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { outer: word as u32, inner: (word >> 32) as u32 }
    }

    /// Whether there is none.
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.outer == 0
    }

    /// How many bytes they are.
    #[inline(always)]
    pub const fn length(&self) -> i32 {
        match (self.outer, self.inner) {
            (0, _) => 0,
            (_, 0) => 4,
            _ => 8,
        }
    }

    /// What of them names a VLAN: neither priorities, nor tags that have nothing else (VLAN 0).
    #[inline(always)]
    pub const fn names(&self) -> Self {
        match (Self::name(self.outer), Self::name(self.inner)) {
            (0, inner) => Self { outer: inner, inner: 0 },
            (outer, inner) => Self { outer, inner },
        }
    }

    #[inline(always)]
    const fn name(tag: u32) -> u32 {
        if tag & Self::ID == 0 { 0 } else { tag & Self::NAME }
    }
}

/// A VLAN on an interface.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct VlanKey {
    /// Index of the interface that its frames come in by, tagged.
    pub interface: u32,
    /// What [`Tags::names`] leaves of their tags.
    pub tags: Tags,
}

/// Beside the index of an interface that frames leave by: it is a VLAN device, and its [`Interface`](super::Interface) says
/// which interface they really leave by and with which tags. What is no VLAN device pays no look-up for that.
pub const VLAN_DEVICE: u32 = 1 << 31;
