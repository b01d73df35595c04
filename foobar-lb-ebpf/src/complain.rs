//! Telling the sender why its packet does not go on: an ICMP error (RFC 792, RFC 4443) in the packet's place, or a RST.
//! Whom errors are not sent to, and how many, is decided here too (RFC 1812, 4.3.2; RFC 4443, 2.4).

use crate::{
    flow::{IP, Kind, Parsed, Sign},
    headers::{Ethernet, ICMP_LENGTH, Icmp},
    ip::{Family, Fresh},
    layout::{Address, TCP, address_flag},
    packet::Packet,
    reason::{Reason, Verdict},
    reset,
    tables::Tables,
};

/// How often a CPU may complain: a credit that time fills and every complaint takes from.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Limit {
    /// Nanoseconds saved up.
    pub credit: u64,
    /// When it was last asked, nanoseconds of CLOCK_MONOTONIC.
    pub asked: u64,
}

impl Limit {
    /// Nanoseconds for each complaint: a thousand in a second, as the kernel's `icmp_msgs_per_sec` has it.
    const PRICE: u64 = 1_000_000;
    /// So many in a row, as `icmp_msgs_burst`.
    const BURST: u64 = 50;

    /// Whether there is credit for one more.
    #[inline(always)]
    pub fn admits(&mut self, now: u64) -> bool {
        let saved = self.credit.saturating_add(now.saturating_sub(self.asked)).min(Self::BURST * Self::PRICE);
        self.asked = now;
        let admitted = saved >= Self::PRICE;
        self.credit = if admitted { saved - Self::PRICE } else { saved };
        admitted
    }
}

/// Puts in the packet's place what tells its sender of the reason, and of how large an IP packet may be. Dropped where
/// nobody is to be told.
#[inline(always)]
pub fn complain<P: Packet, T: Tables>(packet: &mut P, tables: &T, reason: Reason, mtu: u32) -> Verdict {
    let parsed = &mut Parsed::new();
    if parsed.parse(packet).is_err() || !may_be_told(parsed) {
        return Verdict::Drop;
    }
    let told = match tables.may_complain() {
        false => Err(Reason::ErrorLimit),
        true if reason.is_refusal() && parsed.ip.protocol == TCP => reset::reset(packet, parsed),
        true => report(packet, tables, parsed, reason, mtu),
    };
    match told {
        Ok(()) => Verdict::Transmit,
        Err(reason) => {
            tables.count(reason, packet.length().into());
            Verdict::Drop
        }
    }
}

/// Not of errors or resets, not of fragments but the first, and not those who are not one host.
#[inline(always)]
fn may_be_told(parsed: &Parsed) -> bool {
    let source = &parsed.flow.source.address;
    let Address(bytes) = source;
    let one = match parsed.family {
        Family::V4 => !matches!(bytes[12], 0 | 127 | 224..),
        Family::V6 => bytes[0] != 0xff && !source.is_unspecified(),
    };
    let may_be_answered = match parsed.kind {
        Kind::Start => true,
        Kind::Ongoing(sign) => sign != Sign::Reset,
        Kind::Error { .. } | Kind::Opaque => false,
    };
    one && parsed.ip.first && may_be_answered
}

/// As much of the packet is quoted: its headers and the beginning of its data; a multiple of a word.
const MOST_QUOTED: u16 = 128;

#[inline(always)]
fn report<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    parsed: &Parsed,
    reason: Reason,
    mtu: u32,
) -> Result<(), Reason> {
    let family = parsed.family;
    let source = &speaker(tables, packet.ingress(), parsed, reason).ok_or(Reason::NoSpeaker)?;
    let quoted = parsed.ip.length.min(MOST_QUOTED) & !3;
    let headers = family.header_length() + ICMP_LENGTH;
    packet.cut(IP + u32::from(quoted))?;
    let macs = packet.frame().at::<Ethernet>(0)?.macs();
    packet.move_start(-(headers as i32))?;
    let mut frame = packet.frame();
    let ethernet = frame.at_mut::<Ethernet>(0)?;
    ethernet.set_macs(macs.turned_back());
    ethernet.ether_type = family.ether_type();
    let fresh = Fresh {
        source,
        destination: &parsed.flow.source.address,
        protocol: family.icmp(),
        length: headers as u16 + quoted,
        traffic_class: 0,
    };
    family.write(&mut frame, IP, &fresh)?;
    let icmp = IP + family.header_length();
    *frame.at_mut::<Icmp>(icmp)? = message(family, reason, mtu);
    let check = packet.sum(icmp, ICMP_LENGTH + u32::from(quoted))?.and(family.pseudo_header(&fresh));
    packet.frame().at_mut::<Icmp>(icmp)?.check = check.finish();
    Ok(())
}

/// Whose address the error comes from: the balancer's own on that interface, or the VIP's where the VIP refuses or the
/// balancer has none.
#[inline(always)]
fn speaker<T: Tables>(tables: &T, ingress: u32, parsed: &Parsed, reason: Reason) -> Option<Address> {
    let own = tables.interface(ingress).map(|interface| match parsed.family {
        Family::V4 => interface.address_v4,
        Family::V6 => interface.address_v6,
    });
    match own {
        Some(address) if !address.is_unspecified() && !reason.is_refusal() => Some(address),
        _ => {
            let vip = parsed.flow.destination.address;
            (tables.vip(&vip).flags & address_flag::VIP != 0).then_some(vip)
        }
    }
}

#[inline(always)]
fn message(family: Family, reason: Reason, mtu: u32) -> Icmp {
    let (type_, code) = match (family, reason) {
        (Family::V4, Reason::HopLimit) => (11, 0),
        (Family::V4, Reason::TooBig) => (3, 4),
        (Family::V4, _) => (3, 3),
        (Family::V6, Reason::HopLimit) => (3, 0),
        (Family::V6, Reason::TooBig) => (2, 0),
        (Family::V6, _) => (1, 4),
    };
    // In its last four bytes ICMPv6 has the MTU, and ICMP in the last two of them (RFC 1191, 4).
    let data = if reason == Reason::TooBig { mtu.to_be_bytes() } else { [0; 4] };
    Icmp { type_, code, check: [0; 2], data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_complaints_a_second_after_a_burst() {
        const SECOND: u64 = 1_000_000_000;
        let mut limit = Limit::default();
        let start = 1000 * SECOND;
        let burst = (0..1000).filter(|_| limit.admits(start)).count();
        assert_eq!(burst, 50);
        let steady = (0..100_000).filter(|step| limit.admits(start + step * SECOND / 100_000)).count();
        assert!((990..=1001).contains(&steady), "{steady}");
    }
}
