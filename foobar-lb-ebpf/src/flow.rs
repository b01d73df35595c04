//! From a frame to the flow it belongs to, and from a flow to a hash.

use network_types::{tcp::TcpHdr, udp::UdpHdr};

use crate::{
    headers::{Ethernet, Icmp, Ports, Side, UDP_LENGTH},
    ip::{Family, Ip},
    layout::{Address, Endpoint, FlowKey, TCP, UDP, mapped},
    packet::{Frame, Packet},
    reason::Reason,
    tables::Tables,
};

/// What a packet is to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP SYN: the flow begins.
    Start,
    /// A packet of a flow that may exist.
    Ongoing(Sign),
    /// An ICMP error about a packet of the flow, quoted at this offset.
    Error {
        /// Where the quoted IP header begins, bytes from the start of the frame.
        quoted: u32,
        /// Where its TCP or UDP header begins.
        transport: u32,
    },
    /// No ports to be seen: another protocol, or a fragment that is not the first.
    Opaque,
}

/// What a packet shows of the life of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It goes on: data, or a datagram.
    Data,
    /// Nothing by itself: an acknowledgement also follows the last FIN.
    Acknowledgement,
    /// The client has no more to send.
    Fin,
    /// It ends at once.
    Reset,
}

impl Kind {
    /// What the packet of a flow is to its source: neither its beginning nor its end is that of the source.
    #[inline(always)]
    pub const fn of_source(self) -> Self {
        match self {
            Self::Start | Self::Ongoing(_) => Self::Ongoing(Sign::Data),
            Self::Error { .. } | Self::Opaque => self,
        }
    }

    /// As a number. To remembered flows an error is as opaque as a packet without ports.
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        match self {
            Self::Start => 0,
            Self::Ongoing(sign) => 1 + sign as u32,
            Self::Error { .. } | Self::Opaque => 5,
        }
    }

    /// The kind of a number.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        match word {
            0 => Self::Start,
            1 => Self::Ongoing(Sign::Data),
            2 => Self::Ongoing(Sign::Acknowledgement),
            3 => Self::Ongoing(Sign::Fin),
            4 => Self::Ongoing(Sign::Reset),
            _ => Self::Opaque,
        }
    }
}

/// A packet, parsed.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// The flow, in the direction in which its own packets would travel: for an ICMP error the packet it
    /// quotes went the other way, so the quoted ends are swapped.
    pub flow: FlowKey,
    /// What the packet is to the flow.
    pub kind: Kind,
    /// Which IP.
    pub family: Family,
    /// The rest of the IP header.
    pub ip: Ip,
    /// Largest IP packet that would have fitted, in bytes; set where this one is too big.
    pub mtu: u32,
    /// Anything may be known of its destination.
    pub to_known: bool,
}

/// Offset of the IP header.
pub const IP: u32 = size_of::<Ethernet>() as u32;

/// Hop-by-hop options, those for the destination, the fragment and the authentication header (RFC 8200, 4.1).
pub const MOST_EXTENSIONS: u32 = 4;
/// Errors matter to those whose packets are too big, which are fragments.
const QUOTED_EXTENSIONS: u32 = 1;

impl Parsed {
    /// Nothing yet. The caller owns the place: a copy of this size would cost much of the kernel's 512 bytes
    /// of stack.
    #[inline(always)]
    pub fn new() -> Self {
        const NONE: Endpoint = Endpoint::new(Address([0; 16]), [0; 2], 0);
        Self {
            flow: FlowKey { source: NONE, destination: NONE },
            kind: Kind::Opaque,
            family: Family::V4,
            ip: Ip::default(),
            mtu: 0,
            to_known: false,
        }
    }

    /// Reads a packet as far as its flow. One that is cut short behind its IP header stays opaque.
    #[inline(always)]
    pub fn parse<P: Packet>(&mut self, packet: &mut P) -> Result<(), Reason> {
        self.parse_ip(packet)?;
        self.parse_flow(packet)
    }

    /// Reads its IP header.
    #[inline(always)]
    pub fn parse_ip<P: Packet>(&mut self, packet: &mut P) -> Result<(), Reason> {
        let frame = packet.frame();
        let ethernet = frame.at::<Ethernet>(0)?;
        let to_many = ethernet.is_to_many();
        self.family = Family::of_ether_type(ethernet.ether_type).ok_or(Reason::NotIp)?;
        self.ip = self.family.read(&frame, IP)?;
        self.family.address(&frame, IP, Side::Source, &mut self.flow.source.address)?;
        self.family.address(&frame, IP, Side::Destination, &mut self.flow.destination.address)?;
        if self.family.has_extension(&self.ip) {
            packet.beyond(self.ip.next, self.ip.protocol, MOST_EXTENSIONS).apply(&mut self.ip);
        }
        // What was sent to many is neither forwarded nor complained of (RFC 1812, 5.3.4 and 4.3.2.7).
        if to_many { Err(Reason::NotForService) } else { Ok(()) }
    }

    /// Whether anything may be known of its ends. With ICMP, those of others may be meant.
    #[inline(always)]
    pub fn concerns<T: Tables>(&mut self, tables: &T) -> bool {
        let FlowKey { source, destination } = &self.flow;
        self.to_known = self.ip.protocol == self.family.icmp() || tables.knows(&destination.address);
        self.to_known || tables.knows(&source.address)
    }

    /// Reads what is behind its IP header.
    #[inline(always)]
    pub fn parse_flow<P: Packet>(&mut self, packet: &mut P) -> Result<(), Reason> {
        if !self.ip.first {
            // No header behind it is read, so nothing else tells whether its own ends within the packet and the frame.
            let is_whole = u64::from(self.ip.next) <= packet.frame().len().min(self.end().into());
            return if is_whole { Ok(()) } else { Err(Reason::Malformed) };
        }
        match self.ip.protocol {
            TCP | UDP => self.parse_transport(&packet.frame()),
            protocol if protocol == self.family.icmp() => self.parse_icmp(packet),
            _ => Ok(()),
        }
    }

    /// Where its IP packet ends, bytes from the start of the frame.
    #[inline(always)]
    pub fn end(&self) -> u32 {
        IP + u32::from(self.ip.length)
    }

    /// Bytes of its frame, which may need several buffers; asking the kernel would cost as much as a look-up.
    #[inline(always)]
    pub fn frame_length(&self, frame: &Frame<'_>) -> u64 {
        frame.len().max(self.end().into())
    }

    /// The whole transport header must be there: one that is cut short is not rewritten. What lies behind the IP packet,
    /// as padding does, is none of it.
    #[inline(always)]
    fn parse_transport(&mut self, frame: &Frame<'_>) -> Result<(), Reason> {
        let at = self.ip.next;
        let length = if self.ip.protocol == TCP { TcpHdr::LEN as u32 } else { UDP_LENGTH };
        if at + length > self.end() {
            return Ok(());
        }
        if self.ip.protocol == TCP {
            let Ok(tcp) = frame.at::<TcpHdr>(at) else { return Ok(()) };
            self.kind = self.tcp_kind(tcp);
            self.set_ports(tcp.source, tcp.dest, TCP);
        } else {
            let Ok(udp) = frame.at::<UdpHdr>(at) else { return Ok(()) };
            self.kind = Kind::Ongoing(Sign::Data);
            self.set_ports(udp.src, udp.dst, UDP);
        }
        Ok(())
    }

    /// The ports of its flow, and what they are of.
    #[inline(always)]
    pub fn set_ports(&mut self, source: [u8; 2], destination: [u8; 2], protocol: u8) {
        self.flow.source.set_port(source, protocol);
        self.flow.destination.set_port(destination, protocol);
    }

    #[inline(always)]
    fn tcp_kind(&self, tcp: &TcpHdr) -> Kind {
        const WORD: u32 = size_of::<u32>() as u32;
        let headers = self.ip.next - IP + u32::from(tcp.doff()) * WORD;
        if tcp.rst() != 0 {
            Kind::Ongoing(Sign::Reset)
        } else if tcp.fin() != 0 {
            Kind::Ongoing(Sign::Fin)
        } else if tcp.syn() != 0 && tcp.ack() == 0 {
            Kind::Start
        } else if u32::from(self.ip.length) > headers {
            Kind::Ongoing(Sign::Data)
        } else {
            Kind::Ongoing(Sign::Acknowledgement)
        }
    }

    /// An ICMP error belongs to the flow of the packet it quotes. One that was not sent to
    /// that packet's source is forged, and stays opaque.
    #[inline(always)]
    fn parse_icmp<P: Packet>(&mut self, packet: &mut P) -> Result<(), Reason> {
        let frame = packet.frame();
        let quoted = self.ip.next + size_of::<Icmp>() as u32;
        match frame.at::<Icmp>(self.ip.next) {
            Ok(icmp) if self.family.quotes(icmp.type_) => {}
            _ => return Ok(()),
        }
        let Ok(mut inner) = self.family.read(&frame, quoted) else { return Ok(()) };
        if self.family.has_extension(&inner) {
            packet.beyond(inner.next, inner.protocol, QUOTED_EXTENSIONS).apply(&mut inner);
        }
        let frame = packet.frame();
        let Ok(ports) = frame.at::<Ports>(inner.next) else { return Ok(()) };
        let to_sender =
            self.family.has_address(&frame, quoted, Side::Source, &self.flow.destination.address)?;
        let is_whole = inner.next + size_of::<Ports>() as u32 <= self.end();
        if !inner.first || !matches!(inner.protocol, TCP | UDP) || !to_sender || !is_whole {
            return Ok(());
        }
        self.family.address(&frame, quoted, Side::Destination, &mut self.flow.source.address)?;
        self.kind = Kind::Error { quoted, transport: inner.next };
        self.set_ports(ports.destination, ports.source, inner.protocol);
        Ok(())
    }
}

impl Default for Parsed {
    fn default() -> Self {
        Self::new()
    }
}

/// The key of the flow hash: one word for each word of a flow, and, its lower half first, what the prefix of mapped
/// addresses adds to the sum of every IPv4 flow.
pub type HashKey = [u32; WORDS + 2];

/// Words of a flow.
const WORDS: usize = 10;

/// Expands a seed (splitmix64) into a hash key.
pub fn hash_key(seed: u64) -> HashKey {
    let mut state = seed;
    let mut key: HashKey = core::array::from_fn(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 32) as u32
    });
    let prefix = sum_prefix(&key, &mapped([0; 4]), &mapped([0; 4]));
    (key[WORDS], key[WORDS + 1]) = (prefix as u32, (prefix >> 32) as u32);
    key
}

/// Hashes a flow by NH, the universal hash of UMAC (RFC 4418, 5.2.2): a sum of products of keyed words. Whoever
/// does not know the key finds two flows that collide with a probability of 2^-32, so nobody outside can aim at
/// one backend; five multiplications. Being universal is not being uniform, so the sum is mixed at the end.
#[inline(always)]
pub fn hash(key: &HashKey, flow: &FlowKey) -> u64 {
    const LAST: usize = 3;
    let FlowKey { source, destination } = flow;
    let [source_port, port] = [source.port, destination.port].map(u16::from_be_bytes).map(u32::from);
    let sum = product(key[8], source_port << 16 | port, key[9], u32::from(source.protocol))
        .wrapping_add(product_at(key, LAST, &source.address, &destination.address));
    let is_v4 = [source, destination].map(|end| Family::of(&end.address)) == [Family::V4; 2];
    let sum = sum.wrapping_add(match is_v4 {
        true => u64::from(key[WORDS + 1]) << 32 | u64::from(key[WORDS]),
        false => sum_prefix(key, &source.address, &destination.address),
    });
    let mixed = (sum ^ (sum >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

/// What all words but the last of two addresses add to the sum.
#[inline(always)]
fn sum_prefix(key: &HashKey, source: &Address, destination: &Address) -> u64 {
    let product = |word| product_at(key, word, source, destination);
    product(0).wrapping_add(product(1)).wrapping_add(product(2))
}

#[inline(always)]
fn product_at(key: &HashKey, word: usize, source: &Address, destination: &Address) -> u64 {
    let at = |address: &Address| u32::from_be_bytes(address.0.as_chunks::<4>().0[word]);
    product(key[word], at(source), key[4 + word], at(destination))
}

#[inline(always)]
fn product(key_a: u32, a: u32, key_b: u32, b: u32) -> u64 {
    u64::from(key_a.wrapping_add(a)).wrapping_mul(u64::from(key_b.wrapping_add(b)))
}

/// Maps a hash to 0..size in proportion, without a division (Lemire, 2019).
#[inline(always)]
pub fn reduce(hash: u64, size: u32) -> u32 {
    ((u64::from(hash as u32) * u64::from(size)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{headers::ether_type, packet::Buffer};

    fn flow(client: u32, port: u16) -> FlowKey {
        FlowKey {
            source: Endpoint::new(mapped(client.to_be_bytes()), port.to_be_bytes(), TCP),
            destination: Endpoint::new(mapped([203, 0, 113, 80]), 80u16.to_be_bytes(), TCP),
        }
    }

    #[test]
    fn hashes_are_what_they_were() {
        // A fleet during an upgrade must agree on every flow.
        assert_eq!(hash(&hash_key(1), &flow(0x0a00_0001, 4242)), 16_083_190_362_984_681_219);
        assert_eq!(hash(&hash_key(2), &flow(0x0a00_0001, 4242)), 10_982_696_804_123_746_041);
    }

    #[test]
    fn neighbouring_flows_spread() {
        const SLOTS: u32 = 97;
        let key = hash_key(7);
        for vary_address in [true, false] {
            let mut counts = [0u32; SLOTS as usize];
            for i in 0..SLOTS * 1000 {
                let flow = if vary_address { flow(i, 80) } else { flow(i >> 16, i as u16) };
                counts[reduce(hash(&key, &flow), SLOTS) as usize] += 1;
            }
            // Five standard deviations of a binomial with mean 1,000.
            assert!(counts.iter().all(|count| (840..=1160).contains(count)), "{counts:?}");
        }
    }

    #[test]
    fn flipping_top_bits_does_not_collide() {
        let key = hash_key(3);
        let collisions = (0..100_000u32)
            .filter(|i| {
                let other = flow(i ^ 0x8000_0000, (*i as u16) ^ 0x8000);
                hash(&key, &flow(*i, *i as u16)) == hash(&key, &other)
            })
            .count();
        assert_eq!(collisions, 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200),
                                                v6: bool, icmp: bool) {
            // Random bytes rarely look like IP: half a header helps to get further in.
            if bytes.len() > 34 {
                bytes[12..14].copy_from_slice(&if v6 { ether_type::IPV6 } else { ether_type::IPV4 });
                bytes[14] = if v6 { 0x60 } else { 0x40 | (bytes[14] & 0xf) };
                if icmp {
                    bytes[if v6 { 20 } else { 23 }] = if v6 { 58 } else { 1 };
                }
            }
            let mut parsed = Parsed::new();
            let length = bytes.len() as u32;
            let parses = parsed.parse(&mut Buffer { bytes, ingress: 1 }).is_ok();
            prop_assert!(!parses || length >= IP + 20);
            if let Kind::Error { quoted, transport } = parsed.kind {
                prop_assert!(quoted < transport && transport < length);
            }
        }
    }
}
