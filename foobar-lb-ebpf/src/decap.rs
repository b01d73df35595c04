//! A backend's side of a tunnel: takes off the outer headers that [`tunnel`](crate::tunnel) puts on, where the packet
//! inside is for a VIP of the backend. The packet then goes to the backend's own kernel, as does all else, untouched.
//!
//! What the kernel would check of the outer headers and this does not: their checksums. The packet inside has its own,
//! which the kernel checks when it gets it.

use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

use crate::{
    checksum::Change,
    flow::IP,
    headers::{Ethernet, Side, UDP_LENGTH, Word, ether_type},
    ip::Family,
    layout::{Address, UDP},
    packet::{Frame, Packet},
    reason::{Reason, Verdict},
};

/// Names of the maps and of the global in the BPF object.
pub mod name {
    /// [`Address`](crate::layout::Address) of a VIP -> 1; hash.
    pub const VIPS: &str = "VIPS";
    /// [`Outcome`](super::Outcome) -> packets; per-CPU array.
    pub const OUTCOMES: &str = "OUTCOMES";
    /// Global: the UDP port of GUE, network order.
    pub const GUE_PORT: &str = "GUE_PORT";
    /// The XDP program.
    pub const PROGRAM: &str = "foobar_lb_decap";
}

/// What the kernel or the host lends.
pub trait Tables {
    /// Whether the backend has this VIP.
    fn is_vip(&self, address: &Address) -> bool;

    /// The UDP port that GUE comes to, network order.
    fn gue_port(&self) -> [u8; 2];

    /// Counts a packet.
    fn count(&self, outcome: Outcome);
}

macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What became of a packet, and the index of its counter.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Outcome {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Outcome {
            /// Every outcome, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in what is printed.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

outcomes! {
    /// The outer headers were taken off.
    Decapsulated = "decapsulated",
    /// A router on the way met congestion, and the packet inside cannot say so (RFC 6040, 4.2): dropped, because that is
    /// what its sender understands.
    EcnDropped = "ecn_dropped",
    /// No outer headers, or of another kind: passed, as are all below.
    NotTunnelled = "not_tunnelled",
    /// The packet inside is for none of the VIPs.
    NotForVip = "not_for_vip",
    /// A fragment of an outer packet: the balancer's MTU towards the backend is larger than that on the way.
    OuterFragment = "outer_fragment",
    /// The outer header has IPv4 options or IPv6 extension headers, which no balancer of ours sends.
    OuterOptions = "outer_options",
    /// GUE that is a control message, has optional fields, or carries something other than IP.
    UnknownGue = "unknown_gue",
    /// Broken, cut short, or longer inside than outside.
    Malformed = "malformed",
}

/// Headers are read from a frame, and a frame without them is malformed.
impl From<Reason> for Outcome {
    #[inline(always)]
    fn from(_: Reason) -> Self {
        Self::Malformed
    }
}

/// What becomes of a packet that has arrived.
#[inline(always)]
pub fn decapsulate<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let outcome = match take_off(packet, tables) {
        Ok(()) => Outcome::Decapsulated,
        Err(outcome) => outcome,
    };
    tables.count(outcome);
    match outcome {
        Outcome::EcnDropped => Verdict::Drop,
        _ => Verdict::Pass,
    }
}

#[inline(always)]
fn take_off<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<(), Outcome> {
    let frame = packet.frame();
    let Tunnelled { outer, inner, at } = find_tunnelled(&frame, tables)?;
    let traffic_class = combine_ecn(outer.traffic_class(&frame, IP)?, inner.traffic_class(&frame, at)?)?;
    let macs = frame.at::<Ethernet>(0)?.macs();
    packet.move_start((at - IP) as i32)?;
    let mut frame = packet.frame();
    let ethernet = frame.at_mut::<Ethernet>(0)?;
    ethernet.set_macs(macs);
    ethernet.ether_type = inner.ether_type();
    set_traffic_class(inner, &mut frame, traffic_class)
}

/// A packet in a packet.
struct Tunnelled {
    outer: Family,
    inner: Family,
    /// Where the inner one begins, bytes from the start of the frame.
    at: u32,
}

/// Looked behind to tell fragments and tunnels with options from what is no tunnel.
const OUTER_EXTENSIONS: u32 = 1;

/// The packet for a VIP that another one carries.
#[inline(always)]
fn find_tunnelled<T: Tables>(frame: &Frame<'_>, tables: &T) -> Result<Tunnelled, Outcome> {
    let outer = match frame.at::<Ethernet>(0)?.ether_type {
        ether_type::IPV4 => Family::V4,
        ether_type::IPV6 => Family::V6,
        _ => return Err(Outcome::NotTunnelled),
    };
    let ip = outer.read_through(frame, IP, OUTER_EXTENSIONS)?;
    let (inner, at) = match ip.protocol {
        UDP if ip.first => find_in_udp(frame, ip.next, tables)?,
        protocol => (carried(protocol).ok_or(Outcome::NotTunnelled)?, ip.next),
    };
    if ip.fragment {
        return Err(Outcome::OuterFragment);
    }
    if ip.next != IP + outer.header_length() {
        return Err(Outcome::OuterOptions);
    }
    let mut destination = Address([0; 16]);
    let length = inner.read(frame, at)?.length;
    inner.address(frame, at, Side::Destination, &mut destination)?;
    if at + u32::from(length) > IP + u32::from(ip.length) {
        return Err(Outcome::Malformed);
    }
    if !tables.is_vip(&destination) {
        return Err(Outcome::NotForVip);
    }
    Ok(Tunnelled { outer, inner, at })
}

/// Generic UDP encapsulation (draft-ietf-intarea-gue): variant 1 is an IP packet as it is, told by the version that it
/// begins with; variant 0 has a header of four bytes before it.
#[inline(always)]
fn find_in_udp<T: Tables>(frame: &Frame<'_>, at: u32, tables: &T) -> Result<(Family, u32), Outcome> {
    /// Variant 0, no control message, no optional fields; the flags that announce such are zero too.
    const PLAIN: u8 = 0;
    if frame.at::<UdpHdr>(at)?.dst != tables.gue_port() {
        return Err(Outcome::NotTunnelled);
    }
    let at = at + UDP_LENGTH;
    match *frame.at::<Word>(at)? {
        [first, ..] if first >> 4 == 4 => Ok((Family::V4, at)),
        [first, ..] if first >> 4 == 6 => Ok((Family::V6, at)),
        [PLAIN, protocol, 0, 0] => {
            let inner = carried(protocol).ok_or(Outcome::UnknownGue)?;
            Ok((inner, at + size_of::<Word>() as u32))
        }
        _ => Err(Outcome::UnknownGue),
    }
}

/// What a header with this protocol number carries, if that is IP.
#[inline(always)]
fn carried(protocol: u8) -> Option<Family> {
    match protocol {
        p if p == Family::V4.protocol() => Some(Family::V4),
        p if p == Family::V6.protocol() => Some(Family::V6),
        _ => None,
    }
}

/// The inner traffic class with what the outer one has to say of congestion (RFC 6040, figure 4). The inner DSCP stays.
#[inline(always)]
fn combine_ecn(outer: u8, inner: u8) -> Result<u8, Outcome> {
    const ECN: u8 = 0b11;
    const NOT_ECT: u8 = 0b00;
    const ECT_1: u8 = 0b01;
    const ECT_0: u8 = 0b10;
    const CE: u8 = 0b11;
    let ecn = match (outer & ECN, inner & ECN) {
        (CE, NOT_ECT) => return Err(Outcome::EcnDropped),
        (CE, _) => CE,
        (ECT_1, ECT_0) => ECT_1,
        (_, unchanged) => unchanged,
    };
    Ok(inner & !ECN | ecn)
}

#[inline(always)]
fn set_traffic_class(family: Family, frame: &mut Frame<'_>, traffic_class: u8) -> Result<(), Outcome> {
    match family {
        Family::V4 => {
            let header = frame.at_mut::<Ipv4Hdr>(IP)?;
            let change = Change::new().word([header.vihl, header.tos], [header.vihl, traffic_class]);
            header.tos = traffic_class;
            header.check = change.apply(header.check);
        }
        Family::V6 => {
            let header = frame.at_mut::<Ipv6Hdr>(IP)?;
            let [version, flow, ..] = &mut header.vcf;
            *version = *version & 0xf0 | traffic_class >> 4;
            *flow = traffic_class << 4 | *flow & 0x0f;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discriminants_are_the_indices_of_all() {
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index, "{outcome:?}");
        }
    }
}
