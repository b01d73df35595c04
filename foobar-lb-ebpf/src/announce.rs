//! Answering for announced VIPs: ARP requests (RFC 826) and neighbour solicitations (RFC 4861), in place.

use network_types::{arp::ArpHdr, ip::Ipv6Hdr};

use crate::{
    checksum::Change,
    flow::IP,
    headers::{Ethernet, Icmp, LinkOption, Target, ether_type},
    ip::ICMPV6,
    layout::{Address, Interface, address_flag, mapped},
    packet::Frame,
    reason::Reason,
    tables::Tables,
};

const ICMP_AT: u32 = IP + size_of::<Ipv6Hdr>() as u32;
const TARGET_AT: u32 = ICMP_AT + size_of::<Icmp>() as u32;
const OPTION_AT: u32 = TARGET_AT + size_of::<Target>() as u32;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Who has no address yet asks whether another has the one he wants.
const UNSPECIFIED: [u8; 16] = [0; 16];

const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;

/// Turns a question for an announced VIP into its answer; says so as `Announced`. Anything else is untouched.
#[inline(always)]
pub fn answer<T: Tables>(frame: &mut Frame<'_>, tables: &T, ingress: u32) -> Result<(), Reason> {
    match frame.at::<Ethernet>(0)?.ether_type {
        ether_type::ARP => answer_arp(frame, tables, ingress),
        ether_type::IPV6 => answer_solicitation(frame, tables, ingress),
        _ => Ok(()),
    }
}

#[inline(always)]
fn is_announced<T: Tables>(tables: &T, address: &Address) -> bool {
    tables.vip(address).flags & address_flag::ANNOUNCED != 0
}

#[inline(always)]
fn answer_arp<T: Tables>(frame: &mut Frame<'_>, tables: &T, ingress: u32) -> Result<(), Reason> {
    const REQUEST: [u8; 2] = [0, 1];
    const REPLY: [u8; 2] = [0, 2];
    let arp = frame.at_mut::<ArpHdr>(IP)?;
    let on_ethernet = arp.htype == [0, 1] && arp.ptype == ether_type::IPV4 && arp.hlen == 6 && arp.plen == 4;
    // Who asks for his own address announces it, and is not answered (RFC 5227).
    if !on_ethernet || arp.oper != REQUEST || arp.spa == arp.tpa || !is_announced(tables, &mapped(arp.tpa)) {
        return Ok(());
    }
    let Some(interface) = tables.interface(ingress) else { return Ok(()) };
    arp.oper = REPLY;
    arp.tha = arp.sha;
    arp.sha = interface.mac;
    core::mem::swap(&mut arp.spa, &mut arp.tpa);
    send_back(frame, interface)
}

#[inline(always)]
fn answer_solicitation<T: Tables>(frame: &mut Frame<'_>, tables: &T, ingress: u32) -> Result<(), Reason> {
    let Some(target) = solicited(frame) else { return Ok(()) };
    if !is_announced(tables, &target) {
        return Ok(());
    }
    let Some(interface) = tables.interface(ingress) else { return Ok(()) };
    advertise(frame, &target, interface)?;
    send_back(frame, interface)
}

/// The target of a solicitation whose only option is the asker's MAC, so that it can become an advertisement of
/// the same length. Any other (a duplicate address detection) is left to the kernel.
#[inline(always)]
fn solicited(frame: &Frame<'_>) -> Option<Address> {
    let ip = frame.at::<Ipv6Hdr>(IP).ok()?;
    let icmp = frame.at::<Icmp>(ICMP_AT).ok()?;
    let option = frame.at::<LinkOption>(OPTION_AT).ok()?;
    let target = frame.at::<Target>(TARGET_AT).ok()?;
    // A hop limit of 255 proves that no router has forwarded it (RFC 4861, 7.1.1).
    let asks = ip.next_hdr == ICMPV6
        && ip.hop_limit == 255
        && ip.src_addr != UNSPECIFIED
        && icmp.type_ == SOLICITATION;
    (asks && option.kind == SOURCE_MAC && option.length == 1).then_some(Address(target.0))
}

#[inline(always)]
fn advertise(frame: &mut Frame<'_>, target: &Address, interface: &Interface) -> Result<(), Reason> {
    const SOLICITED_AND_OVERRIDE: u8 = 0x60;
    let ip = frame.at_mut::<Ipv6Hdr>(IP)?;
    let mut change = Change::new().address(&Address(ip.dst_addr), target);
    ip.dst_addr = ip.src_addr;
    ip.src_addr = target.0;
    let option = frame.at_mut::<LinkOption>(OPTION_AT)?;
    change = change.word([SOURCE_MAC, 1], [TARGET_MAC, 1]);
    for byte in [0, 2, 4] {
        let mac = interface.mac;
        change = change.word([option.mac[byte], option.mac[byte + 1]], [mac[byte], mac[byte + 1]]);
    }
    option.kind = TARGET_MAC;
    option.mac = interface.mac;
    let icmp = frame.at_mut::<Icmp>(ICMP_AT)?;
    change = change
        .word([icmp.type_, icmp.code], [ADVERTISEMENT, icmp.code])
        .word([icmp.data[0], icmp.data[1]], [SOLICITED_AND_OVERRIDE, icmp.data[1]]);
    icmp.type_ = ADVERTISEMENT;
    icmp.data[0] = SOLICITED_AND_OVERRIDE;
    icmp.check = change.apply(icmp.check);
    Ok(())
}

#[inline(always)]
fn send_back(frame: &mut Frame<'_>, interface: &Interface) -> Result<(), Reason> {
    let ethernet = frame.at_mut::<Ethernet>(0)?;
    ethernet.turn_back();
    ethernet.source = interface.mac;
    Err(Reason::Announced)
}
