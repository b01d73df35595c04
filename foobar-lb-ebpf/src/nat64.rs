//! Translation of packets from IPv4 to IPv6 and back (RFC 7915), for flows whose backend is of the other family.

use crate::{flow::Parsed, ip::Family, layout::FlowKey, packet::Packet, reason::Reason};

/// Bytes that a packet without options or extension headers grows by as one of this family.
#[inline(always)]
pub fn growth(parsed: &Parsed, family: Family) -> i32 {
    family.header_length() as i32 - parsed.family.header_length() as i32
}

/// Makes a packet one of the flow `to`, of the other family.
#[inline(always)]
pub fn translate<P: Packet>(_packet: &mut P, _parsed: &Parsed, _to: &FlowKey) -> Result<(), Reason> {
    Err(Reason::Unmapped)
}
