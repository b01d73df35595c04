//! Names of the maps and of the globals in the BPF object.

/// [`Endpoint`](super::Endpoint) of a service -> [`Service`](super::Service); hash.
pub const SERVICES: &str = "SERVICES";
/// [`RangeKey`](super::RangeKey) -> [`Service`](super::Service); longest prefix match, of services with more than
/// one address or port.
pub const RANGES: &str = "RANGES";
/// [`Endpoint`](super::Endpoint) of a backend -> [`Reply`](super::Reply); hash.
pub const REPLIES: &str = "REPLIES";
/// [`ReplyKey`](super::ReplyKey) -> [`Reply`](super::Reply); longest prefix match, of backends that have a range of
/// ports.
pub const REPLY_RANGES: &str = "REPLY_RANGES";
/// [`Address`](super::Address) -> [`Vip`](super::Vip); hash.
pub const ADDRESSES: &str = "ADDRESSES";
/// [`PrefixKey`](super::PrefixKey) -> [`Vip`](super::Vip); longest prefix match, asked where `ADDRESSES` has nothing.
pub const PREFIXES: &str = "PREFIXES";
/// Index of a word -> 64 bits of the addresses of `SERVICES`, `REPLIES`, `ADDRESSES` and of all prefixes, see
/// [`known_bit`](super::known_bit); mmapable array.
pub const KNOWN: &str = "KNOWN";
/// 0 -> how often `SERVICES`, `REPLIES` and `REPLY_RANGES` have changed, as one word: CPUs keep copies of what is in
/// them; mmapable array.
pub const GENERATION: &str = "GENERATION";
/// [`DirectKey`](super::DirectKey) -> 1; longest prefix match.
pub const DIRECT: &str = "DIRECT";
/// Slot index -> [`Slot`](super::Slot) as one word; mmapable array, the arena of all Maglev tables.
pub const SLOTS: &str = "SLOTS";
/// Backend id -> [`Backend`](super::Backend); array.
pub const BACKENDS: &str = "BACKENDS";
/// Interface index -> [`Interface`](super::Interface); hash of the attached interfaces and the VLAN devices on them.
pub const INTERFACES: &str = "INTERFACES";
/// [`VlanKey`](super::VlanKey) -> index of its VLAN device; hash.
pub const VLANS: &str = "VLANS";
/// Any index -> [`Routes`](super::Routes); array, of which one element is in use.
pub const ROUTES: &str = "ROUTES";
/// 0 -> index of the element of `ROUTES` that is in use, as one word; mmapable array.
pub const ROUTES_IN_USE: &str = "ROUTES_IN_USE";
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
/// Backend id -> [`Tunnel`](super::Tunnel); array, of use for backends of services in mode `tunnel`.
pub const TUNNELS: &str = "TUNNELS";
/// Backend id -> [`Sources`](super::Sources); array, of use for backends of services in modes `snat` and `hairpin`.
pub const SOURCES: &str = "SOURCES";
/// [`FlowKey`](super::FlowKey) -> [`Mapping`](super::Mapping); hash, refuses when full.
pub const MAPPINGS: &str = "MAPPINGS";
/// [`ServerId`](super::ServerId) -> backend id; hash.
pub const SERVER_IDS: &str = "SERVER_IDS";
/// [`FragmentKey`](super::FragmentKey) -> [`Ends`](super::Ends); LRU of datagrams whose first fragment was seen.
pub const FRAGMENTS: &str = "FRAGMENTS";
/// 0 -> [`Limit`](crate::complain::Limit); per-CPU array.
pub const LIMIT: &str = "LIMIT";
/// Backend id -> [`Traffic`](super::Traffic); per-CPU array.
pub const TRAFFIC: &str = "TRAFFIC";
/// Reason -> [`Count`](super::Count); per-CPU array.
pub const REASONS: &str = "REASONS";
/// Backend id -> [`Member`](super::Member) as one word; mmapable array, for the daemon that takes over.
pub const MEMBERS: &str = "MEMBERS";
/// Index of a [`daemon_word`](super::daemon_word) -> that word; mmapable array, for the daemon that takes over.
pub const DAEMON: &str = "DAEMON";
/// 0 -> a program that gets the packets that this one passes; program array, of the program that it was loaded with.
pub const NEXT: &str = "NEXT";
/// The maps whose contents a daemon that takes over goes on from. The rest of them forgets within a second.
pub const KEPT: [&str; 27] = [
    SERVICES,
    RANGES,
    REPLIES,
    REPLY_RANGES,
    ADDRESSES,
    PREFIXES,
    KNOWN,
    GENERATION,
    DIRECT,
    SLOTS,
    BACKENDS,
    INTERFACES,
    VLANS,
    ROUTES,
    ROUTES_IN_USE,
    HALF_OPEN,
    ESTABLISHED,
    ADOPTED,
    TUNNELS,
    SOURCES,
    MAPPINGS,
    SERVER_IDS,
    FRAGMENTS,
    TRAFFIC,
    REASONS,
    MEMBERS,
    DAEMON,
];
/// Global: the [`HashKey`](crate::flow::HashKey).
pub const HASH_KEY: &str = "HASH_KEY";
/// The XDP program.
pub const PROGRAM: &str = "foobar_lb";
