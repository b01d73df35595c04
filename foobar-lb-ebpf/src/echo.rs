//! Answering pings of a VIP (RFC 792; RFC 4443, 4), in place. Where the kernel has the address, it answers.

use crate::{
    checksum::Change,
    flow::{IP, Parsed},
    headers::{Ethernet, Icmp, Side},
    ip::Family,
    layout::address_flag,
    packet::Frame,
    reason::Reason,
    tables::Tables,
};

/// Turns an echo request to a VIP into its reply; says so as `Echo`. Anything else is untouched.
#[inline(always)]
pub fn answer<T: Tables>(frame: &mut Frame<'_>, tables: &T, parsed: &Parsed) -> Result<(), Reason> {
    let family = parsed.family;
    let plain = parsed.ip.next == IP + family.header_length() && !parsed.ip.fragment;
    if !plain || parsed.ip.protocol != family.icmp() {
        return Ok(());
    }
    let (request, reply) = types(family);
    let Ok(icmp) = frame.at_mut::<Icmp>(parsed.ip.next) else { return Ok(()) };
    let wanted = tables.vip(&parsed.flow.destination.address).flags & address_flag::ECHO != 0;
    if !wanted || icmp.type_ != request {
        return Ok(());
    }
    icmp.type_ = reply;
    icmp.check = Change::new().word([request, icmp.code], [reply, icmp.code]).apply(icmp.check);
    // Both ends are in the checksums, and which is which is not.
    family.set_address(frame, IP, Side::Source, &parsed.flow.destination.address)?;
    family.set_address(frame, IP, Side::Destination, &parsed.flow.source.address)?;
    family.renew_hops(frame, IP)?;
    frame.at_mut::<Ethernet>(0)?.turn_back();
    Err(Reason::Echo)
}

#[inline(always)]
const fn types(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (8, 0),
        Family::V6 => (128, 129),
    }
}
