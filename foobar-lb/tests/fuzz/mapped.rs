//! Flows both of whose ends are replaced: what has to be true of their mappings, and which of them a packet goes by.

use anyhow::{Context, Result, ensure};
use foobar_lb::image::{Image, address};
use foobar_lb_ebpf::{
    headers::Side,
    layout::{FlowKey, Mapping},
    snat::reversed,
};

use super::seen::Seen;

/// Each flow has a mapping for each direction, and each of them says what the other is for. The balancer's end is one
/// that it has for this backend.
pub fn check(image: &Image, mappings: &[(FlowKey, Mapping)]) -> Result<()> {
    for (flow, mapping) in mappings {
        let other = mappings.iter().find(|(other, _)| *other == reversed(&mapping.to));
        let (_, other) = other.with_context(|| format!("{flow:?}: no mapping of the other direction"))?;
        let backend = mapping.entry.load().backend;
        let agree = reversed(&other.to) == *flow && other.back != mapping.back;
        ensure!(agree && other.entry.load().backend == backend, "{flow:?}: the other direction differs");
        let own = if mapping.back == 0 { &mapping.to.source } else { &flow.destination };
        let sources = image.sources.get(&backend).with_context(|| format!("{flow:?}: no sources"))?;
        let port = u16::from_be_bytes(own.port).checked_sub(sources.first_port);
        let known = sources.addresses[..sources.count as usize].contains(&own.address);
        ensure!(known && port.is_some_and(|port| port < sources.ports), "{flow:?}: not from {own:?}");
    }
    Ok(())
}

/// What the ends of a packet to or from a backend may be replaced by: one pair, or none; of a fragment that does not show
/// its ports there may be more.
pub fn ends(
    mappings: &[(FlowKey, Mapping)],
    frame: &[u8],
    seen: &Seen,
    backend: u32,
    side: Side,
) -> Vec<FlowKey> {
    let mappings = mappings.iter().filter(|(flow, mapping)| {
        let back = if side == Side::Source { 1 } else { 0 };
        mapping.back == back && mapping.entry.load().backend == backend && is_of(flow, frame, seen)
    });
    mappings.map(|(_, mapping)| mapping.to).collect()
}

/// Whether the packet is one of the flow, or is about one that went the other way.
fn is_of(flow: &FlowKey, frame: &[u8], seen: &Seen) -> bool {
    let (packet, flow) = match seen.quoted(frame) {
        Some(quoted) => (quoted, reversed(flow)),
        None => (*seen, *flow),
    };
    let ends = [
        (&flow.source, packet.source, packet.next),
        (&flow.destination, packet.destination, packet.next + 2),
    ];
    ends.into_iter().all(|(end, ip, port)| {
        let has_port = !packet.is_first() || frame.get(port..port + 2) == Some(&end.port[..]);
        end.address == address(ip) && end.protocol == packet.protocol.0 && has_port
    })
}

/// One of these has to fit; what is wrong with the last is told.
pub fn check_any(ends: &[FlowKey], check: impl Fn(&FlowKey) -> Result<()>) -> Result<()> {
    let checks = || ends.iter().map(&check);
    if checks().any(|checked| checked.is_ok()) { Ok(()) } else { checks().last().unwrap_or(Ok(())) }
}
