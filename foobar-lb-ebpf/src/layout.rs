//! Every map that the control plane and the data path share: name, key, value. Addresses and ports stand in
//! network order; an IPv4 address is written as the IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2), so that
//! there is one address type and one path. Deriving `IntoBytes` refuses a type with hidden padding.

mod flows;
mod known;
mod memory;
pub mod name;
mod quic;
mod routes;
mod vlan;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use self::{
    flows::{Ends, Entry, FlowKey, FragmentKey, Mapping, Remembered, Sources, entry_state},
    known::{KNOWN_WORDS, known_bit},
    memory::{Member, VERSION, daemon_word, member_health},
    quic::{Quic, ServerId},
    routes::{Route, Routes},
    vlan::{Tags, VLAN_DEVICE, VlanKey},
};

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
    /// Prefixes of VIPs.
    pub const PREFIXES: u32 = 4_096;
    /// Prefixes of ports of all VIPs together.
    pub const RANGES: u32 = 65_536;
    /// Prefixes of ports of all backends together.
    pub const REPLY_RANGES: u32 = 262_144;
    /// Prefixes of direct clients of all services together.
    pub const DIRECT: u32 = 16_384;
    /// Server ids of backends, twice as many as backends: while the ids of all change, there are old and new ones.
    pub const SERVER_IDS: u32 = 2 * BACKENDS;
    /// Attached interfaces and VLAN devices on them; a network card has at most 4094 VLANs, but for those within others.
    pub const INTERFACES: u32 = 8_192;
    /// Routes to clients, old and new: an element is written again after so many changes only, which are some 20 ms apart
    /// at least. A packet has long been on its way by then.
    pub const ROUTES: u32 = 16;
    /// Remembered flows that showed a SYN only.
    pub const HALF_OPEN: u32 = 65_536;
    /// Flows remembered from their SYN.
    pub const ESTABLISHED: u32 = 131_072;
    /// Flows first seen in mid-flow.
    pub const ADOPTED: u32 = 131_072;
    /// Datagrams whose fragments are on their way: for half a minute, as long as Linux waits for them, a thousand a
    /// second.
    pub const FRAGMENTS: u32 = 32_768;
    /// Mappings, two for each flow.
    pub const MAPPINGS: u32 = 524_288;
    /// All flows.
    pub const FLOWS: u32 = HALF_OPEN + ESTABLISHED + ADOPTED;
}

/// An IPv6 address, or an IPv4 address mapped into one. Aligned, because the verifier wants every access to the
/// stack aligned.
#[repr(C, align(8))]
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
pub struct Address(pub [u8; 16]);

impl Address {
    /// Whether it is no address at all.
    #[inline(always)]
    pub fn is_unspecified(&self) -> bool {
        // As a number, because LLVM compares arrays by loads that the verifier refuses on the stack.
        u128::from_ne_bytes(self.0) == 0
    }
}

/// The first 12 bytes of every IPv4 address here.
pub const MAPPED_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Maps an IPv4 address.
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> Address {
    // In words: LLVM moves every byte by itself otherwise.
    let lower = 0xffff << 32 | u32::from_be_bytes(v4) as u64;
    zerocopy::transmute!([0, lower.to_be()])
}

/// No address.
pub const NO_ADDRESS: Address = Address([0; 16]);

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

    /// Replaces its port and protocol, as one word: who reads the whole of it next would wait for stores of its parts.
    #[inline(always)]
    pub fn set_port(&mut self, port: [u8; 2], protocol: u8) {
        let words: &mut [u64; 3] = zerocopy::transmute_mut!(self);
        words[2] = (u64::from(u16::from_be_bytes(port)) << 48 | u64::from(protocol) << 40).to_be();
    }

    /// As words: the upper and the lower half of its address, its port and protocol.
    #[inline(always)]
    pub const fn to_words(&self) -> [u64; 3] {
        zerocopy::transmute!(*self)
    }

    /// Whether it is another, word by word: LLVM copies arrays to the stack before it compares them.
    #[inline(always)]
    pub const fn is(&self, other: &Self) -> bool {
        let ([upper, lower, port], [others_upper, others_lower, others_port]) =
            (self.to_words(), other.to_words());
        (upper ^ others_upper) | (lower ^ others_lower) | (port ^ others_port) == 0
    }

    /// The end of such words.
    #[inline(always)]
    pub const fn from_words(words: [u64; 3]) -> Self {
        zerocopy::transmute!(words)
    }

    /// It as the key of a service of a range of ports.
    #[inline(always)]
    pub const fn range_key(&self, group: u32) -> RangeKey {
        RangeKey { protocol: self.protocol as u32, group, port: self.port, pad: [0; 2] }
    }

    /// It as the key of a backend's replies.
    #[inline(always)]
    pub const fn reply_key(&self) -> ReplyKey {
        ReplyKey { protocol: self.protocol as u32, address: self.address.0, port: self.port, pad: [0; 2] }
    }

    /// Its port, or where it has none the one that the packet came with.
    #[inline(always)]
    pub fn port_or(&self, came: [u8; 2]) -> [u8; 2] {
        if self.port == [0; 2] { came } else { self.port }
    }
}

/// Values of [`Service::mode`].
pub mod mode {
    /// The destination is rewritten, and the source of replies.
    pub const NAT: u32 = 0;
    /// The packet stays as it is; only its MAC addresses change.
    pub const DSR: u32 = 1;
    /// The packet gets outer headers, see [`Tunnel`](super::Tunnel).
    pub const TUNNEL: u32 = 2;
    /// Both ends are rewritten, so that the reply comes back to the balancer, see [`Sources`](super::Sources).
    pub const SNAT: u32 = 3;
    /// `SNAT` for clients in the backend's subnet, who would get their reply past the balancer; for all others `NAT`.
    pub const HAIRPIN: u32 = 4;
}

/// A service: its region of the slot arena, and how its packets reach its backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Service {
    /// Index of its first slot.
    pub first_slot: u32,
    /// Slots of its table, at least 1.
    pub slots: u32,
    /// Silence, in nanoseconds, after which a remembered flow is forgotten.
    pub idle: u64,
    /// One of [`mode`].
    pub mode: u32,
    /// The largest segment, in bytes, that a SYN may ask for; 0: any.
    pub mss: u32,
    /// Bits of a client's address that all of its flows, and those of its neighbours, have in common and share a
    /// backend by; none: every flow has its own.
    pub affinity: Address,
    /// How the connection ids of its QUIC packets name its backends.
    pub quic: Quic,
}

impl Service {
    /// Whether flows share a backend by their source.
    #[inline(always)]
    pub fn has_affinity(&self) -> bool {
        !self.affinity.is_unspecified()
    }

    /// Whether some or all of its flows have mappings.
    #[inline(always)]
    pub fn has_mappings(&self) -> bool {
        self.mode >= mode::SNAT
    }

    /// What the flows have in common that share a backend with this one, as a flow.
    #[inline(always)]
    pub fn common(&self, flow: &FlowKey) -> FlowKey {
        let bits = |address: &Address| u128::from_ne_bytes(address.0);
        let mut common = *flow;
        common.source.address = Address((bits(&flow.source.address) & bits(&self.affinity)).to_ne_bytes());
        common.source.port = [0; 2];
        common
    }
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
    /// Index of the interface to leave by, with [`VLAN_DEVICE`] where it is one.
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
    /// Its address and port, and the protocol of its service. Port 0: packets keep theirs.
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
    /// The service's VIP and port. Port 0: packets keep theirs.
    pub service: Endpoint,
    /// The backend's id.
    pub backend: u32,
    /// The list of the service's direct clients, the first part of a [`DirectKey`]; 0: none.
    pub direct: u32,
    /// The largest segment, in bytes, that a SYN-ACK may ask for; 0: any.
    pub mss: u32,
    /// Zero.
    pub pad: u32,
}

/// The outer headers of packets to a backend; their destination is the backend's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Tunnel {
    /// Outer source, of the family of the backend's address.
    pub source: Address,
    /// Bits of the last word of `source` that vary with the flow, so that the backend's network card spreads flows over
    /// its queues; network order.
    pub varying: [u8; 4],
    /// UDP port of GUE, network order; 0: no UDP, one IP directly in the other.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
}

/// What is known of an address, or of all addresses of a prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vip {
    /// Bits of [`address_flag`].
    pub flags: u32,
    /// The first part of the [`RangeKey`]s of its ports; 0: it has no services but those in `SERVICES`.
    pub group: u32,
}

/// Bits of [`Vip::flags`].
pub mod address_flag {
    /// Some service has this address.
    pub const VIP: u32 = 1;
    /// The balancer's own kernel has this address.
    pub const LOCAL: u32 = 2;
    /// The balancer answers ARP and neighbour solicitations for it.
    pub const ANNOUNCED: u32 = 4;
    /// The balancer answers pings of it.
    pub const ECHO: u32 = 8;
    /// TCP and UDP to a port that no service has is dropped; of a local address, TCP connections that begin.
    pub const DROP: u32 = 16;
    /// The same is refused: with a RST, or an ICMP error.
    pub const REJECT: u32 = 32;
    /// Packets to backends come from this address, see [`Sources`](super::Sources), and so their replies go to it.
    pub const SOURCE: u32 = 64;
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
    pub const BITS: u32 = size_of::<Self>() as u32 * u8::BITS;
}

/// A prefix of VIPs, for longest prefix match. As in all such keys a word goes before an address: the kernel has the
/// length in a word before the key, and on the stack the verifier wants eight bytes aligned to eight.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PrefixKey {
    /// Zero, all of its bits.
    pub pad: u32,
    /// The [`Address`].
    pub address: [u8; 16],
}

impl PrefixKey {
    /// Bits before the address.
    pub const PAD_BITS: u32 = u32::BITS;
    /// Bits of a whole key.
    pub const BITS: u32 = size_of::<Self>() as u32 * u8::BITS;
}

/// Ports of the VIPs of a group, for longest prefix match.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RangeKey {
    /// [`TCP`] or [`UDP`].
    pub protocol: u32,
    /// The group, all of its bits; not 0.
    pub group: u32,
    /// Port, network order.
    pub port: [u8; 2],
    /// Zero; its bits never count. A key of eight bytes would be written at once, where the stack is not aligned to them.
    pub pad: [u8; 2],
}

impl RangeKey {
    /// Bits of a whole key.
    pub const BITS: u32 = (size_of::<Self>() as u32 - 2) * u8::BITS;
}

/// Ports of a backend, for longest prefix match.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ReplyKey {
    /// [`TCP`] or [`UDP`].
    pub protocol: u32,
    /// The backend's [`Address`].
    pub address: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
    /// Zero; its bits never count.
    pub pad: [u8; 2],
}

impl ReplyKey {
    /// Bits of a whole key.
    pub const BITS: u32 = (size_of::<Self>() as u32 - 2) * u8::BITS;
}

/// An attached interface, or a VLAN device on one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Interface {
    /// Its MAC.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
    /// Where ICMP errors of the balancer come from that leave by it; all zero: it has no such address.
    pub address_v4: Address,
    /// The same for ICMPv6.
    pub address_v6: Address,
    /// Index of the interface that the frames of a VLAN device really leave by; 0: it is no VLAN device.
    pub physical: u32,
    /// What they are tagged with there.
    pub tags: Tags,
    /// Zero.
    pub pad_end: u32,
}

impl Interface {
    /// An interface without addresses that is no VLAN device.
    pub const fn new(mac: [u8; 6]) -> Self {
        let (address_v4, address_v6) = (NO_ADDRESS, NO_ADDRESS);
        Self { mac, pad: [0; 2], address_v4, address_v6, physical: 0, tags: Tags::NONE, pad_end: 0 }
    }

    /// What a frame that leaves by it, by this index, is given as its interface.
    #[inline(always)]
    pub const fn egress(&self, index: u32) -> u32 {
        if self.physical == 0 { index } else { index | VLAN_DEVICE }
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

/// Packets and bytes of whole frames, but for VLAN tags.
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
        assert_eq!(size_of::<Service>(), 48);
    }
}
