//! What is kept of flows and of datagrams under way.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, Endpoint};
use crate::word::Word;

/// A fragmented datagram (RFC 791; RFC 8200, 4.5).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FragmentKey {
    /// Who sent it.
    pub source: Address,
    /// Who is to receive it.
    pub destination: Address,
    /// Its identification; that of IPv4 has 16 bits.
    pub id: u32,
    /// [`TCP`] or [`UDP`].
    pub protocol: u32,
}

/// The ports of a datagram, network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ends {
    /// Of its source.
    pub source: [u8; 2],
    /// Of its destination.
    pub destination: [u8; 2],
}

/// A flow as the key of a remembered one, in its forward direction.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FlowKey {
    /// The client.
    pub source: Endpoint,
    /// The service.
    pub destination: Endpoint,
}

/// A remembered flow.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Entry {
    /// [`Remembered`] as one word.
    pub word: Word,
    /// When the flow last sent, nanoseconds of CLOCK_MONOTONIC.
    pub seen: Word,
}

/// Bits of [`Remembered::state`].
pub mod entry_state {
    /// A FIN was seen, and nothing but acknowledgements since.
    pub const CLOSING: u32 = 1;
    /// The last packet had RST set, or the backend has sent a RST since.
    pub const RESET: u32 = 2;
    /// Only a SYN was seen so far.
    pub const OPENING: u32 = 4;
    /// The flow has shown its end.
    pub const ENDING: u32 = CLOSING | RESET;
}

/// The first word of an [`Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Backend id.
    pub backend: u32,
    /// Bits of [`entry_state`].
    pub state: u32,
}

impl Entry {
    /// An entry for a flow seen at `now`.
    #[inline(always)]
    pub const fn new(remembered: Remembered, now: u64) -> Self {
        Self { word: Word::new(remembered.to_word()), seen: Word::new(now) }
    }

    /// The backend and the state.
    #[inline(always)]
    pub fn load(&self) -> Remembered {
        Remembered::from_word(self.word.load())
    }

    /// When the flow last sent.
    #[inline(always)]
    pub fn seen(&self) -> u64 {
        self.seen.load()
    }

    /// Replaces backend, state and time in place: updating the key would take a free entry of the map first.
    #[inline(always)]
    pub fn store(&self, remembered: Remembered, now: u64) {
        self.word.store(remembered.to_word());
        self.seen.store(now);
    }
}

impl Remembered {
    /// The word of the map.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.state as u64) << 32 | self.backend as u64
    }

    /// The value of a word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { backend: word as u32, state: (word >> 32) as u32 }
    }
}
