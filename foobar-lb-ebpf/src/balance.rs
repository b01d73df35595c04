//! The way of a packet through the balancer, on one screen: [`balance`] and what it calls, top-down.

use crate::{
    announce,
    complain::complain,
    conntrack, echo,
    flow::{IP, Kind, Parsed, Sign, hash, reduce},
    forward::{Hop, Question, replace, rewrite, transmit},
    fragment,
    headers::Side,
    ip::{Family, Ip},
    layout::{
        Address, Backend, Endpoint, FlowKey, Mapping, NO_BACKEND, NextHop, Reply, SETTLED, Service, Tags,
        Tunnel, UDP, Vip, address_flag, mode,
    },
    mss, nat64,
    packet::{Frame, Packet},
    quic,
    reason::{Action, Reason, Verdict},
    snat,
    tables::Tables,
    tunnel::{Way, encapsulate},
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
    /// Its flow needs mappings to this backend, and then it is to be decided again.
    Open(u32),
    /// This, when it has been made a packet of the other IP; whether it is an ICMP error.
    Translate(Verdict, bool),
    /// Its sender is to be told why it does not go on, and how large an IP packet may be, bytes.
    Complain(Reason, u32),
}

/// [`balance`] but for the rare: complaining, making a packet one of the other IP, and opening a flow that needs mappings;
/// `is_open` after that.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T, is_open: bool) -> Decision {
    let mut parsed = Parsed::new();
    let reason = match try_balance(packet, tables, &mut parsed, is_open) {
        Ok(verdict) => return Decision::Verdict(verdict),
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
enum Halt {
    For(Reason),
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
    let readable = parsed.parse(packet);
    if readable.is_ok() {
        fragment::recall_ports(parsed, tables);
    }
    if parsed.kind == Kind::Opaque {
        return Ok(pass_or_answer(&mut packet.frame(), tables, ingress, readable, parsed)?);
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

/// What a packet is turned into.
struct Translation<'t> {
    means: Means<'t>,
    /// The largest TCP segment that it may ask for; 0: any.
    mss: u32,
    backend: u32,
    /// What the operator should know of it all the same.
    remark: Option<Reason>,
}

/// How it gets to where it is to go.
enum Means<'t> {
    /// One end of it is replaced.
    Rewrite(Side, &'t Endpoint),
    /// Both ends of it are replaced; the backend is this one of them.
    Replace(Side, &'t FlowKey),
    /// It gets outer headers.
    Encapsulate(Way<'t>),
    /// It stays as it is.
    Keep,
}

impl Means<'_> {
    /// Which end of it the backend is.
    #[inline(always)]
    fn side(&self) -> Side {
        match self {
            Self::Rewrite(side, _) | Self::Replace(side, _) => *side,
            Self::Encapsulate(_) | Self::Keep => Side::Destination,
        }
    }

    /// Bytes that the packet grows by.
    #[inline(always)]
    fn growth(&self, parsed: &Parsed) -> i32 {
        match self {
            Self::Encapsulate(way) => way.overhead() as i32,
            Self::Replace(_, to) => nat64::growth(parsed, Family::of(&to.destination.address)),
            Self::Rewrite(..) | Self::Keep => 0,
        }
    }
}

/// The service that a packet is for, or the mapping that it is a reply by. What is for no service by itself may be a
/// reply to one of the balancer's sources; else the VIP may have a service for a range of ports. What is known of its
/// destination is in `vip` then.
#[inline(always)]
fn find<'t, T: Tables>(
    parsed: &Parsed,
    tables: &'t T,
    vip: &mut Vip,
) -> (Option<&'t Service>, Option<&'t Mapping>) {
    let destination = &parsed.flow.destination;
    if let Some(service) = tables.service(destination) {
        return (Some(service), None);
    }
    *vip = tables.vip(&destination.address);
    if vip.flags & address_flag::SOURCE != 0
        && let Some(mapping) = snat::recall_reply(tables, &parsed.flow, parsed.kind)
    {
        return (None, Some(mapping));
    }
    (tables.range(vip.group, destination), None)
}

/// A client's packet, or an ICMP error about what the client was sent, goes to a backend.
#[inline(always)]
fn translate_request<'t, P: Packet, T: Tables>(
    packet: &mut P,
    parsed: &mut Parsed,
    service: &Service,
    is_open: bool,
    tables: &'t T,
    hop: &mut Hop,
) -> Result<Translation<'t>, Halt> {
    check_hops(parsed)?;
    if service.has_mappings()
        && let Some(mapping) = snat::recall(tables, &parsed.flow, parsed.kind, service.idle, is_open)
    {
        return Ok(translate_mapped(parsed, service, mapping, tables, hop)?);
    }
    let named = quic::find_backend(packet, parsed, service, tables);
    let (hash, id) = if service.has_affinity() {
        select_backend(&service.common(&parsed.flow), parsed.kind.of_source(), named, service, tables)?
    } else {
        select_backend(&parsed.flow, parsed.kind, named, service, tables)?
    };
    let backend = tables.backend(id).ok_or(Reason::NoBackend)?;
    let past = shares_subnet(&parsed.flow.source.address, backend);
    if service.mode == mode::SNAT || past && service.mode == mode::HAIRPIN {
        return Err(Halt::Open(id));
    }
    let means = match service.mode {
        mode::DSR => Means::Keep,
        mode::TUNNEL => {
            let known = |tunnel: &&Tunnel| !tunnel.source.is_unspecified();
            let tunnel = tables.tunnel(id).filter(known).ok_or(Reason::Unresolved)?;
            Means::Encapsulate(Way { tunnel, backend: &backend.endpoint.address, hash })
        }
        _ => Means::Rewrite(Side::Destination, &backend.endpoint),
    };
    *hop = find_next_hop(parsed, &backend.next_hop, &means)?;
    let remark = (past && matches!(means, Means::Rewrite(..))).then_some(Reason::ClientOnBackendSubnet);
    Ok(Translation { means, mss: service.mss, backend: id, remark })
}

/// A client's packet goes to a backend from one of the balancer's sources.
#[inline(always)]
fn translate_mapped<'t, T: Tables>(
    parsed: &mut Parsed,
    service: &Service,
    mapping: &'t Mapping,
    tables: &'t T,
    hop: &mut Hop,
) -> Result<Translation<'t>, Reason> {
    let id = mapping.entry.load().backend;
    let backend = tables.backend(id).ok_or(Reason::NoBackend)?;
    let means = Means::Replace(Side::Destination, &mapping.to);
    *hop = find_next_hop(parsed, &backend.next_hop, &means)?;
    Ok(Translation { means, mss: service.mss, backend: id, remark: None })
}

/// What is for no service may be what a backend answers, to one of the balancer's sources or to a client; `flags` are
/// those of its destination.
#[inline(always)]
fn translate_answer<'t, T: Tables>(
    parsed: &mut Parsed,
    ingress: u32,
    mapping: Option<&'t Mapping>,
    flags: u32,
    tables: &'t T,
    hop: &mut Hop,
) -> Result<Translation<'t>, Reason> {
    if let Some(mapping) = mapping {
        check_hops(parsed)?;
        let FlowKey { source, destination } = &mapping.to;
        let means = Means::Replace(Side::Source, &mapping.to);
        let growth = means.growth(parsed);
        match find_way_to_client(parsed, growth, ingress, source, destination, tables, hop) {
            // The kernel would tell nobody: to it the packet is for the machine itself.
            Err(Reason::ReplyTooBig) => {
                parsed.mtu = hop.mtu.saturating_add_signed(-growth);
                return Err(Reason::TooBig);
            }
            found => found?,
        }
        return Ok(Translation {
            means,
            mss: mapping.mss,
            backend: mapping.entry.load().backend,
            remark: None,
        });
    }
    match tables.reply(&parsed.flow.source) {
        Some(reply) => translate_reply(parsed, ingress, reply, flags, tables, hop),
        None => Err(unmatched(parsed, flags)),
    }
}

/// A backend's packet to a client of the service gets the service's address; `flags` are those of the client's.
#[inline(always)]
fn translate_reply<'t, T: Tables>(
    parsed: &Parsed,
    ingress: u32,
    reply: &'t Reply,
    flags: u32,
    tables: &'t T,
    hop: &mut Hop,
) -> Result<Translation<'t>, Reason> {
    let client = &parsed.flow.destination;
    if flags & address_flag::LOCAL != 0 {
        return Err(Reason::ToBalancer);
    }
    if parsed.kind == Kind::Start {
        return Err(Reason::OpenedByBackend);
    }
    if reply.direct != 0 && tables.is_direct(reply.direct, &client.address) {
        return Err(Reason::DirectClient);
    }
    check_hops(parsed)?;
    if parsed.kind == Kind::Ongoing(Sign::Reset) {
        conntrack::note_reset(tables, &parsed.flow, reply);
    }
    let to_own_port = client.protocol == UDP && client.port == parsed.flow.source.port;
    let remark = to_own_port.then_some(Reason::ReplyToOwnPort);
    find_way_to_client(parsed, 0, ingress, &reply.service, client, tables, hop)?;
    let means = Means::Rewrite(Side::Source, &reply.service);
    Ok(Translation { means, mss: reply.mss, backend: reply.backend, remark })
}

/// The way of a packet that grows by so many bytes.
#[inline(always)]
fn find_way_to_client<T: Tables>(
    parsed: &Parsed,
    growth: i32,
    ingress: u32,
    source: &Endpoint,
    client: &Endpoint,
    tables: &T,
    hop: &mut Hop,
) -> Result<(), Reason> {
    let Ip { protocol, length, may_fragment, .. } = parsed.ip;
    let length = length.saturating_add_signed(growth as i16);
    // As a packet of the other IP it is nobody's to fragment on the way.
    let may_fragment = may_fragment && growth == 0;
    let (source, destination) = (&source.address, &client.address);
    tables.route(&Question { ingress, protocol, length, may_fragment, source, destination }, hop)
}

#[inline(always)]
fn check_hops(parsed: &Parsed) -> Result<(), Reason> {
    if parsed.ip.hops <= 1 { Err(Reason::HopLimit) } else { Ok(()) }
}

/// Flow -> slot -> owner; remembered flows matter only where the slot says so, and nothing of this where the packet has
/// named its backend. The flow's hash, and the backend.
#[inline(always)]
fn select_backend<T: Tables>(
    flow: &FlowKey,
    kind: Kind,
    named: u32,
    service: &Service,
    tables: &T,
) -> Result<(u64, u32), Reason> {
    let hash = hash(tables.hash_key(), flow);
    if named != NO_BACKEND {
        return Ok((hash, named));
    }
    let index = service.first_slot + reduce(hash, service.slots);
    let slot = tables.slot(index).ok_or(Reason::NoBackend)?;
    let is_settled = slot.previous == SETTLED || service.mode == mode::SNAT;
    let id = if is_settled { slot.owner } else { tables.follow(flow, kind, slot, service.idle) };
    if id == NO_BACKEND { Err(Reason::NoBackend) } else { Ok((hash, id)) }
}

/// The backend's next hop, if it is known and the packet fits; the kernel fragments what may be fragmented. Of a packet
/// that keeps the VIP as its destination the kernel does not know where it is to go.
#[inline(always)]
fn find_next_hop(parsed: &mut Parsed, next_hop: &NextHop, means: &Means<'_>) -> Result<Hop, Reason> {
    let hop = Hop::to(next_hop);
    if !hop.is_known() {
        return if matches!(means, Means::Rewrite(..)) { Ok(hop) } else { Err(Reason::Unresolved) };
    }
    parsed.mtu = next_hop.mtu.saturating_add_signed(-means.growth(parsed));
    match u32::from(parsed.ip.length) <= parsed.mtu {
        true => Ok(hop),
        false if parsed.ip.may_fragment && matches!(means, Means::Rewrite(..)) => Ok(Hop::default()),
        false => Err(Reason::TooBig),
    }
}

/// Whether a packet is of the same IP on both of its ways.
#[inline(always)]
fn keeps_family(parsed: &Parsed, to: &FlowKey) -> bool {
    Family::of(&to.destination.address) == parsed.family
}

/// Whether the reply would reach the client without passing the balancer.
#[inline(always)]
fn shares_subnet(client: &Address, backend: &Backend) -> bool {
    let bits = |address: &Address| u128::from_ne_bytes(address.0);
    (bits(client) ^ bits(&backend.endpoint.address)) & bits(&backend.subnet) == 0
}

/// A packet without ports is never balanced: it may ask who has an announced VIP, else the kernel may have it.
#[inline(always)]
fn pass_or_answer<T: Tables>(
    frame: &mut Frame<'_>,
    tables: &T,
    ingress: u32,
    readable: Result<(), Reason>,
    parsed: &Parsed,
) -> Result<Verdict, Reason> {
    if matches!(readable, Ok(()) | Err(Reason::NotIp | Reason::NotForService)) {
        announce::answer(frame, tables, ingress)?;
    }
    readable?;
    echo::answer(frame, tables, parsed)?;
    Err(unmatched(parsed, tables.vip(&parsed.flow.destination.address).flags))
}

/// A packet to a VIP that no service wants must not be passed on unless the kernel has that address: the next
/// router would send it back. `flags` are those of its destination.
#[inline(always)]
fn unmatched(parsed: &Parsed, flags: u32) -> Reason {
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
