//! What a packet is turned into: the service or the backend it belongs to, the backend that gets it, and what a mode means.

use crate::{
    balance::Halt,
    conntrack,
    flow::{Kind, Parsed, Sign, hash, reduce},
    forward::{self, Hop, Question},
    headers::Side,
    ip::{Family, Ip},
    layout::{
        Address, Backend, Endpoint, FlowKey, Mapping, NO_BACKEND, NextHop, Reply, SETTLED, Service, Tunnel,
        UDP, Vip, address_flag, mode,
    },
    nat64,
    packet::Packet,
    quic,
    reason::Reason,
    snat,
    tables::Tables,
    tunnel::Way,
    unmatched::unmatched,
};

/// What a packet is turned into.
pub struct Translation<'t> {
    /// How.
    pub means: Means<'t>,
    /// The largest TCP segment that it may ask for; 0: any.
    pub mss: u32,
    /// The id of the backend that it is for, or from.
    pub backend: u32,
    /// What the operator should know of it all the same.
    pub remark: Option<Reason>,
}

/// How it gets to where it is to go.
pub enum Means<'t> {
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
    pub fn side(&self) -> Side {
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
pub fn find<'t, T: Tables>(
    parsed: &Parsed,
    tables: &'t T,
    vip: &mut Vip,
) -> (Option<&'t Service>, Option<&'t Mapping>) {
    if !parsed.to_known {
        return (None, None);
    }
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
pub fn translate_request<'t, P: Packet, T: Tables>(
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
pub fn translate_answer<'t, T: Tables>(
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
    let question = Question { ingress, protocol, length, may_fragment, source, destination };
    forward::find_way(tables, &question, hop)
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
pub fn keeps_family(parsed: &Parsed, to: &FlowKey) -> bool {
    Family::of(&to.destination.address) == parsed.family
}

/// Whether the reply would reach the client without passing the balancer.
#[inline(always)]
fn shares_subnet(client: &Address, backend: &Backend) -> bool {
    let bits = |address: &Address| u128::from_ne_bytes(address.0);
    (bits(client) ^ bits(&backend.endpoint.address)) & bits(&backend.subnet) == 0
}
