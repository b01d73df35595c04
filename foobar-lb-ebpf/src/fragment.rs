//! Fragments: only the first of a datagram carries its ports, so they are remembered for the others. With them the
//! others go the way of every packet of the flow.

use crate::{
    flow::{Kind, Parsed, Sign},
    layout::{Ends, FragmentKey, TCP, UDP},
    tables::Tables,
};

/// The first fragment of a datagram that is balanced: those after it will ask.
#[inline(always)]
pub fn remember_ports<T: Tables>(parsed: &Parsed, tables: &T) {
    if parsed.ip.fragment && parsed.ip.first {
        let key = key(parsed, parsed.ip.id);
        let ends = Ends { source: parsed.flow.source.port, destination: parsed.flow.destination.port };
        tables.remember_ports(&key, ends);
        tables.remember_ports(&FragmentKey { id: ANY, ..key }, ends);
    }
}

/// Gives a later fragment the ports of its datagram. Where that has not been seen yet, those of the last fragmented
/// datagram between the two hosts: a guess that does no harm, as nothing else can be made of the fragment.
#[inline(always)]
pub fn recall_ports<T: Tables>(parsed: &mut Parsed, tables: &T) {
    if parsed.ip.first || !matches!(parsed.ip.protocol, TCP | UDP) {
        return;
    }
    let key = key(parsed, parsed.ip.id);
    let known = tables.ports(&key).or_else(|| tables.ports(&FragmentKey { id: ANY, ..key }));
    if let Some(Ends { source, destination }) = known {
        parsed.kind = Kind::Ongoing(Sign::Data);
        parsed.set_ports(source, destination, parsed.ip.protocol);
    }
}

/// In place of an identification. One datagram of IPv6 in four billion has it itself, which costs nothing but a guess.
const ANY: u32 = u32::MAX;

#[inline(always)]
fn key(parsed: &Parsed, id: u32) -> FragmentKey {
    FragmentKey {
        source: parsed.flow.source.address,
        destination: parsed.flow.destination.address,
        id,
        protocol: u32::from(parsed.ip.protocol),
    }
}
