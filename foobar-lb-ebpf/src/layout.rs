//! Every map that the control plane and the data path share: name, key, value. Addresses and ports stand in
//! network order; an IPv4 address is written as the IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2), so that
//! there is one address type and one path. Deriving `IntoBytes` refuses a type with hidden padding.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::word::Word;

/// Names of the maps and of the globals in the BPF object.
pub mod name {
    /// [`Endpoint`](super::Endpoint) of a service -> [`Service`](super::Service); hash.
    pub const SERVICES: &str = "SERVICES";
    /// [`Endpoint`](super::Endpoint) of a backend -> [`Reply`](super::Reply); hash.
    pub const REPLIES: &str = "REPLIES";
    /// [`Address`](super::Address) -> flags, see [`address_flag`](super::address_flag); hash.
    pub const ADDRESSES: &str = "ADDRESSES";
    /// [`DirectKey`](super::DirectKey) -> 1; longest prefix match.
    pub const DIRECT: &str = "DIRECT";
    /// Slot index -> [`Slot`](super::Slot) as one word; mmapable array, the arena of all Maglev tables.
    pub const SLOTS: &str = "SLOTS";
    /// Backend id -> [`Backend`](super::Backend); array.
    pub const BACKENDS: &str = "BACKENDS";
    /// Interface index -> [`Interface`](super::Interface); hash of the attached interfaces.
    pub const INTERFACES: &str = "INTERFACES";
    /// [`FlowKey`](super::FlowKey) -> [`Entry`](super::Entry); LRU of flows that showed a SYN only.
    pub const HALF_OPEN: &str = "HALF_OPEN";
    /// [`FlowKey`](super::FlowKey) -> [`Entry`](super::Entry); flows remembered from their SYN; hash, refuses
    /// when full.
    pub const ESTABLISHED: &str = "ESTABLISHED";
    /// [`FlowKey`](super::FlowKey) -> [`Entry`](super::Entry); flows first seen in mid-flow; hash, refuses when
    /// full. A map of its own, so that a flood of packets of flows that never were leaves room for newborn ones.
    pub const ADOPTED: &str = "ADOPTED";
    /// [`FlowKey`](super::FlowKey) -> [`Entry`](super::Entry); LRU of all flows, in the program that tracks them all
    /// and has it instead of the three.
    pub const FLOWS: &str = "FLOWS";
    /// Backend id -> [`Traffic`](super::Traffic); per-CPU array.
    pub const TRAFFIC: &str = "TRAFFIC";
    /// Reason -> [`Count`](super::Count); per-CPU array.
    pub const REASONS: &str = "REASONS";
    /// Global: the [`HashKey`](crate::flow::HashKey).
    pub const HASH_KEY: &str = "HASH_KEY";
    /// The XDP program.
    pub const PROGRAM: &str = "foobar_lb";
}

/// Capacities as compiled in; the control plane overrides those that follow the configuration.
pub mod capacity {
    /// Services.
    pub const SERVICES: u32 = 16_384;
    /// Slots of all Maglev tables together, 8 bytes each.
    pub const SLOTS: u32 = 1 << 20;
    /// Backends of all services together.
    pub const BACKENDS: u32 = 65_536;
    /// VIPs and the balancer's own addresses.
    pub const ADDRESSES: u32 = 32_768;
    /// Prefixes of direct clients of all services together.
    pub const DIRECT: u32 = 16_384;
    /// Attached interfaces.
    pub const INTERFACES: u32 = 256;
    /// Remembered flows that showed a SYN only.
    pub const HALF_OPEN: u32 = 65_536;
    /// Flows remembered from their SYN.
    pub const ESTABLISHED: u32 = 131_072;
    /// Flows first seen in mid-flow.
    pub const ADOPTED: u32 = 131_072;
    /// All flows.
    pub const FLOWS: u32 = HALF_OPEN + ESTABLISHED + ADOPTED;
}

/// An IPv6 address, or an IPv4 address mapped into one. Aligned, because the verifier wants every access to the
/// stack aligned.
#[repr(C, align(8))]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Address(pub [u8; 16]);

/// The first 12 bytes of every IPv4 address here.
pub const MAPPED_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Maps an IPv4 address.
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> Address {
    Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]])
}

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// One end of a flow, as the key of a service or of a backend.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Endpoint {
    /// IP address.
    pub address: Address,
    /// Port, network order.
    pub port: [u8; 2],
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 5],
}

impl Endpoint {
    /// An end from its parts.
    #[inline(always)]
    pub const fn new(address: Address, port: [u8; 2], protocol: u8) -> Self {
        Self { address, port, protocol, pad: [0; 5] }
    }
}

/// A service's region of the slot arena.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Service {
    /// Index of its first slot.
    pub first_slot: u32,
    /// Slots of its table, at least 1.
    pub slots: u32,
    /// Silence, in nanoseconds, after which a remembered flow is forgotten.
    pub idle: u64,
}

/// No backend: the owner of a slot nobody is eligible for.
pub const NO_BACKEND: u32 = u32::MAX;
/// As `previous`: the slot has not moved, no remembered flow belongs to it.
pub const SETTLED: u32 = u32::MAX;
/// As `previous`: the slot's move is over, remembered flows may still belong to it.
pub const TRACES: u32 = u32::MAX - 1;

/// A slot of a Maglev table: who gets its flows, and who got them before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Backend id, or [`NO_BACKEND`].
    pub owner: u32,
    /// Backend id of the owner before the move, [`TRACES`] or [`SETTLED`].
    pub previous: u32,
}

impl Slot {
    /// A slot without a past.
    #[inline(always)]
    pub const fn settled(owner: u32) -> Self {
        Self { owner, previous: SETTLED }
    }

    /// The word of the map: loaded and stored in one piece, so that no packet sees half a change.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.previous as u64) << 32 | self.owner as u64
    }

    /// The slot of a word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { owner: word as u32, previous: (word >> 32) as u32 }
    }
}

/// Where frames for an IP next hop go. `interface` 0: not known, the kernel is asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NextHop {
    /// Index of the interface to leave by.
    pub interface: u32,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// MAC of that interface.
    pub source: [u8; 6],
    /// MAC of the neighbour.
    pub destination: [u8; 6],
}

/// Bits of [`Backend::flags`].
pub mod backend_flag {
    /// Known flows may go to it.
    pub const SERVES: u32 = 1;
}

/// A backend, in one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Backend {
    /// Its address and port, and the protocol of its service.
    pub endpoint: Endpoint,
    /// Bits of [`backend_flag`].
    pub flags: u32,
    /// Its next hop.
    pub next_hop: NextHop,
    /// Mask of its subnet where it is on-link, else all ones: a client inside gets its reply past the balancer.
    pub subnet: Address,
}

/// What a backend's replies are rewritten to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Reply {
    /// The service's VIP and port.
    pub service: Endpoint,
    /// The backend's id.
    pub backend: u32,
    /// The list of the service's direct clients, the first part of a [`DirectKey`]; 0: none.
    pub direct: u32,
}

/// Bits of the value of `ADDRESSES`.
pub mod address_flag {
    /// Some service has this address.
    pub const VIP: u32 = 1;
    /// The balancer's own kernel has this address.
    pub const LOCAL: u32 = 2;
    /// The balancer answers ARP and neighbour solicitations for it.
    pub const ANNOUNCED: u32 = 4;
}

/// A prefix of direct clients, for longest prefix match.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DirectKey {
    /// The list, all of its bits; not 0.
    pub list: u32,
    /// The client's [`Address`].
    pub client: [u8; 16],
}

impl DirectKey {
    /// Bits of the list.
    pub const LIST_BITS: u32 = u32::BITS;
    /// Bits of a whole key.
    pub const BITS: u32 = size_of::<Self>() as u32 * 8;
}

/// An attached interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Interface {
    /// Its MAC.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
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

/// What a backend was sent and sent back, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Traffic {
    /// Packets and bytes of whole frames towards the backend.
    pub forward: Count,
    /// Packets and bytes of whole frames towards clients.
    pub reply: Count,
    /// Remembered flows that left it when it did not serve any more.
    pub repicked: u64,
}

/// Packets and bytes of whole frames.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Count {
    /// Frames.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
}

impl Count {
    /// Counts one frame.
    #[inline(always)]
    pub fn add(&mut self, bytes: u64) {
        self.packets += 1;
        self.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_parts() {
        let slot = Slot { owner: 7, previous: TRACES };
        assert_eq!(Slot::from_word(slot.to_word()), slot);
        let remembered = Remembered { backend: 9, state: entry_state::CLOSING };
        assert_eq!(Remembered::from_word(remembered.to_word()), remembered);
    }

    #[test]
    fn a_backend_fits_one_cache_line() {
        assert!(size_of::<Backend>() == 64);
        assert_eq!(size_of::<Service>(), 16);
    }
}
