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

/// What becomes of the packets of a flow both of whose ends are replaced. There are two for each such flow, one for either
/// direction, each under the flow as its packets arrive (RFC 4787, 2: a NAT's mapping).
#[repr(C)]
#[derive(Debug)]
pub struct Mapping {
    /// The flow as its packets go on.
    pub to: FlowKey,
    /// Its backend, and what its packets have shown.
    pub entry: Entry,
    /// The largest segment, in bytes, that a SYN of this direction may ask for; 0: any.
    pub mss: u32,
    /// Whether it is the one from the backend to the client; 0 or 1.
    pub back: u32,
}

/// Where packets to a backend may come from when their source is replaced.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sources {
    /// Addresses of the backend's family, the first `count` of them.
    pub addresses: [Address; Self::MOST],
    /// How many there are, 1 to `MOST`; 0: none is known.
    pub count: u32,
    /// The first port, host order.
    pub first_port: u16,
    /// How many ports from there on: a prime, so that steps of any size come by all of them.
    pub ports: u16,
}

impl Sources {
    /// Addresses that one backend is reached from.
    pub const MOST: usize = 8;
}
