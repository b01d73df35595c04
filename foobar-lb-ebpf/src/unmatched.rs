//! What is not balanced: it may ask for something that the balancer answers by itself; else the kernel gets it, or nobody.

use crate::{
    announce, echo,
    flow::{Kind, Parsed},
    layout::address_flag,
    packet::{Frame, Packet},
    reason::{Action, Reason, Verdict},
    tables::Tables,
};

/// A packet without ports is never balanced: it may ask who has an announced VIP, else the kernel may have it.
#[inline(always)]
pub fn pass_or_answer<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let mut parsed = Parsed::new();
    let readable = parsed.parse(packet);
    let ingress = packet.ingress();
    let reason = match answer(&mut packet.frame(), tables, ingress, readable, &parsed) {
        Ok(()) => unmatched(&parsed, tables.vip(&parsed.flow.destination.address).flags),
        Err(reason) => reason,
    };
    tables.count(reason, parsed.frame_length(&packet.frame()));
    match reason.action() {
        Action::Answer => Verdict::Transmit,
        Action::Pass => Verdict::Pass,
        _ => Verdict::Drop,
    }
}

/// `Err` where it is clear what becomes of it.
#[inline(always)]
fn answer<T: Tables>(
    frame: &mut Frame<'_>,
    tables: &T,
    ingress: u32,
    readable: Result<(), Reason>,
    parsed: &Parsed,
) -> Result<(), Reason> {
    if matches!(readable, Ok(()) | Err(Reason::NotIp | Reason::NotForService)) {
        announce::answer(frame, tables, ingress)?;
    }
    readable?;
    echo::answer(frame, tables, parsed)
}

/// A packet to a VIP that no service wants must not be passed on unless the kernel has that address: the next
/// router would send it back. `flags` are those of its destination.
#[inline(always)]
pub fn unmatched(parsed: &Parsed, flags: u32) -> Reason {
    // Of what the kernel has opened from the VIP itself it gets the answers.
    let to_port = match parsed.kind {
        Kind::Start => true,
        Kind::Ongoing(_) => flags & address_flag::LOCAL == 0,
        Kind::Error { .. } | Kind::Opaque => false,
    };
    if flags & address_flag::VIP == 0 {
        Reason::NotForService
    } else if to_port && flags & address_flag::REJECT != 0 {
        Reason::Rejected
    } else if to_port && flags & address_flag::DROP != 0 {
        Reason::NoService
    } else if flags & address_flag::LOCAL != 0 {
        Reason::NotForService
    } else if parsed.ip.fragment {
        Reason::Fragment
    } else {
        Reason::NoService
    }
}
