//! The way of a packet through the balancer, on one screen: [`balance`] and what it calls, top-down. What a packet is
//! turned into is said in `translate`.

use crate::{
    complain::complain,
    flow::{IP, Kind, Parsed},
    forward::{Hop, replace, rewrite, transmit},
    fragment,
    layout::{Tags, Vip},
    mss, nat64,
    packet::Packet,
    reason::{Action, Reason, Verdict},
    snat,
    tables::Tables,
    translate::{Means, Translation, find, keeps_family, translate_answer, translate_request},
    tunnel::encapsulate,
    unmatched::pass_or_answer,
    vlan,
};

/// Decides what becomes of a packet, and makes it what it is to be when it goes on.
#[inline(always)]
pub fn balance<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let physical = packet.ingress();
    let mut tags = Tags::NONE;
    if vlan::is_tagged(&packet.frame()) {
        match enter(packet, tables) {
            Ok((read, ingress)) => {
                tags = read;
                packet.set_ingress(ingress);
            }
            Err(reason) => {
                tables.count(reason, packet.length().into());
                return Verdict::Pass;
            }
        }
    }
    let verdict = balance_untagged(packet, tables);
    vlan::leave(packet, tables, physical, tags, verdict)
}

#[inline(always)]
fn balance_untagged<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let mut decision = decide(packet, tables, false);
    if let Decision::Open(backend) = decision {
        decision = match open(packet, tables, backend) {
            None => decide(packet, tables, true),
            Some(refusal) => refusal,
        };
    }
    match decision {
        Decision::Verdict(verdict) => verdict,
        Decision::Look => pass_or_answer(packet, tables),
        Decision::Complain(reason, mtu) => complain(packet, tables, reason, mtu),
        Decision::Translate(verdict, is_error) if nat64::translate(packet, tables, is_error) => verdict,
        // Its mappings have gone again meanwhile.
        Decision::Open(_) | Decision::Translate(..) => Verdict::Drop,
    }
}

/// The tags of a frame that has some, which are taken off it, and its ingress.
#[inline(always)]
fn enter<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<(Tags, u32), Reason> {
    let tags = vlan::read(&packet.frame())?;
    Ok((tags, vlan::enter(packet, tables, tags)?))
}

/// What becomes of a packet.
pub enum Decision {
    /// This, and it is ready for it.
    Verdict(Verdict),
    /// What [`pass_or_answer`] says.
    Look,
    /// Its flow needs mappings to this backend, and then it is to be decided again.
    Open(u32),
    /// This, when it has been made a packet of the other IP; whether it is an ICMP error.
    Translate(Verdict, bool),
    /// Its sender is to be told why it does not go on, and how large an IP packet may be, bytes.
    Complain(Reason, u32),
}

/// [`balance`] but for the rare: packets without ports, complaining, making a packet one of the other IP, and opening a
/// flow that needs mappings; `is_open` after that.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T, is_open: bool) -> Decision {
    let mut parsed = Parsed::new();
    let reason = match try_balance(packet, tables, &mut parsed, is_open) {
        Ok(verdict) => return Decision::Verdict(verdict),
        Err(Halt::Look) => return Decision::Look,
        Err(Halt::Open(backend)) => return Decision::Open(backend),
        Err(Halt::Translate(verdict)) => {
            return Decision::Translate(verdict, matches!(parsed.kind, Kind::Error { .. }));
        }
        Err(Halt::For(reason)) => reason,
    };
    tables.count(reason, parsed.frame_length(&packet.frame()));
    Decision::of(reason, parsed.mtu)
}

/// Gives a packet's flow mappings to this backend; where that is refused, what becomes of the packet.
#[inline(always)]
pub fn open<P: Packet, T: Tables>(packet: &mut P, tables: &T, backend: u32) -> Option<Decision> {
    let refused = snat::open(packet, tables, backend).err()?;
    tables.count(refused, packet.length().into());
    Some(Decision::of(refused, 0))
}

impl Decision {
    #[inline(always)]
    fn of(reason: Reason, mtu: u32) -> Self {
        Self::Verdict(match reason.action() {
            Action::Pass | Action::Forward => Verdict::Pass,
            Action::Drop => Verdict::Drop,
            Action::Answer => Verdict::Transmit,
            Action::Complain => return Self::Complain(reason, mtu),
        })
    }
}

/// Why a packet does not simply go on.
pub enum Halt {
    /// For this.
    For(Reason),
    /// [`Decision::Look`].
    Look,
    /// [`Decision::Open`].
    Open(u32),
    /// [`Decision::Translate`].
    Translate(Verdict),
}

impl From<Reason> for Halt {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::For(reason)
    }
}

#[inline(always)]
fn try_balance<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    parsed: &mut Parsed,
    is_open: bool,
) -> Result<Verdict, Halt> {
    let ingress = packet.ingress();
    if parsed.parse_ip(packet).is_ok() {
        if !parsed.concerns(tables) {
            return Err(Reason::NotForService.into());
        }
        if parsed.parse_flow(packet).is_ok() {
            fragment::recall_ports(parsed, tables);
        }
    }
    if parsed.kind == Kind::Opaque {
        return Err(Halt::Look);
    }
    let mut hop = Hop::default();
    let mut vip = Vip::default();
    let (service, mapping) = find(parsed, tables, &mut vip);
    let Translation { means, mss, backend, remark } = match service {
        Some(service) => translate_request(packet, parsed, service, is_open, tables, &mut hop)?,
        None => translate_answer(parsed, ingress, mapping, vip.flags, tables, &mut hop)?,
    };
    fragment::remember_ports(parsed, tables);
    let frame = packet.frame();
    let bytes = parsed.frame_length(&frame);
    tables.count_traffic(backend, means.side(), bytes);
    if let Some(remark) = remark {
        tables.count(remark, bytes);
    }
    if mss != 0 && mss::concerns(&frame, parsed) {
        packet.clamp_mss(parsed.ip.next, mss as u16);
    }
    let mut frame = packet.frame();
    // The kernel takes its own hop from the TTL that it finds.
    if hop.is_known() || matches!(means, Means::Encapsulate(_)) {
        parsed.family.decrement_hops(&mut frame, IP)?;
    }
    let mut changes_family = false;
    match means {
        Means::Rewrite(side, to) => rewrite(&mut frame, parsed, side, to)?,
        Means::Replace(_, to) if keeps_family(parsed, to) => replace(&mut frame, parsed, to)?,
        Means::Replace(..) => changes_family = true,
        Means::Encapsulate(way) => encapsulate(packet, parsed, &way)?,
        Means::Keep => {}
    }
    let verdict = if hop.is_known() {
        transmit(&mut packet.frame(), &hop, ingress)?
    } else {
        tables.count(Reason::HandedToKernel, bytes);
        Verdict::Pass
    };
    if changes_family { Err(Halt::Translate(verdict)) } else { Ok(verdict) }
}
