//! The way of a packet through the balancer, on one screen: [`balance`] and what it calls, top-down.

use crate::{
    announce,
    conntrack::{self, Conntrack},
    flow::{HashKey, IP, Kind, Parsed, Sign, hash, reduce},
    forward::{rewrite, transmit},
    headers::Side,
    layout::{
        Address, Backend, Endpoint, Interface, NO_BACKEND, NextHop, Reply, SETTLED, Service, Slot, UDP,
        address_flag,
    },
    packet::{Frame, Packet},
    reason::{Action, Reason, Verdict},
};

/// What the data path asks of its maps and of the kernel; `layout` says what each map holds.
pub trait Tables {
    /// Where it keeps remembered flows.
    type Conntrack: Conntrack;

    /// Remembered flows.
    fn conntrack(&self) -> &Self::Conntrack;
    /// The key of the flow hash.
    fn hash_key(&self) -> &HashKey;
    /// The service of clients' packets to this end.
    fn service(&self, destination: &Endpoint) -> Option<&Service>;
    /// What packets from this end are rewritten to.
    fn reply(&self, source: &Endpoint) -> Option<&Reply>;
    /// Bits of [`address_flag`]; 0 for an address of no interest.
    fn address_flags(&self, address: &Address) -> u32;
    /// Whether the client is in this list of direct clients.
    fn is_direct(&self, list: u32, client: &Address) -> bool;
    /// A slot of the arena.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// A backend.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// An attached interface.
    fn interface(&self, index: u32) -> Option<&Interface>;
    /// The kernel's way to a client. `Ok(None)`: the kernel has to resolve a neighbour first.
    fn route(&self, parsed: &Parsed, ingress: u32, source: &Address) -> Result<Option<NextHop>, Reason>;

    /// Nanoseconds of a clock that never goes back.
    fn now(&self) -> u64;

    /// Counts a frame of this many bytes under a reason.
    fn count(&self, reason: Reason, bytes: u64);
    /// Counts a frame of this many bytes towards (`Destination`) or from (`Source`) a backend.
    fn count_traffic(&self, backend: u32, side: Side, bytes: u64);
    /// Counts a remembered flow that leaves its backend, which does not serve any more.
    fn count_repicked(&self, backend: u32);
}

/// Decides what becomes of a packet, and rewrites it if it is to go on.
#[inline(always)]
pub fn balance<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let ingress = packet.ingress();
    let mut frame = packet.frame();
    let reason = match try_balance(&mut frame, tables, ingress) {
        Ok(verdict) => return verdict,
        Err(reason) => reason,
    };
    tables.count(reason, frame.len());
    match reason.action() {
        Action::Pass | Action::Forward => Verdict::Pass,
        Action::Drop => Verdict::Drop,
        Action::Answer => Verdict::Transmit,
    }
}

#[inline(always)]
fn try_balance<T: Tables>(frame: &mut Frame<'_>, tables: &T, ingress: u32) -> Result<Verdict, Reason> {
    let mut parsed = Parsed::new();
    let readable = parsed.parse(frame);
    if parsed.kind == Kind::Opaque {
        return pass_or_answer(frame, tables, ingress, readable, &parsed);
    }
    let Translation { side, to, backend, next_hop, remark } = match find_service(&parsed, tables) {
        Some(service) => translate_request(&parsed, service, tables)?,
        None => match tables.reply(&parsed.flow.source) {
            Some(reply) => translate_reply(&parsed, ingress, reply, tables)?,
            None => return Err(unmatched(&parsed, tables)),
        },
    };
    let bytes = frame.len();
    rewrite(frame, &parsed, side, to)?;
    tables.count_traffic(backend, side, bytes);
    if let Some(remark) = remark {
        tables.count(remark, bytes);
    }
    // The kernel takes its own hop from the TTL.
    let next_hop = next_hop.ok_or(Reason::HandedToKernel)?;
    parsed.family.decrement_hops(frame, IP)?;
    transmit(frame, &next_hop, ingress)
}

/// What a packet is turned into.
struct Translation<'t> {
    side: Side,
    to: &'t Endpoint,
    backend: u32,
    next_hop: Option<NextHop>,
    /// What the operator should know of it all the same.
    remark: Option<Reason>,
}

#[inline(always)]
fn find_service<'t, T: Tables>(parsed: &Parsed, tables: &'t T) -> Option<&'t Service> {
    tables.service(&parsed.flow.destination)
}

/// A client's packet, or an ICMP error about what the client was sent, goes to a backend.
#[inline(always)]
fn translate_request<'t, T: Tables>(
    parsed: &Parsed,
    service: &Service,
    tables: &'t T,
) -> Result<Translation<'t>, Reason> {
    check_forwardable(parsed)?;
    let id = select_backend(parsed, service, tables)?;
    let backend = tables.backend(id).ok_or(Reason::NoBackend)?;
    let next_hop = find_next_hop(parsed, &backend.next_hop)?;
    let past = shares_subnet(&parsed.flow.source.address, backend);
    let remark = past.then_some(Reason::ClientOnBackendSubnet);
    Ok(Translation { side: Side::Destination, to: &backend.endpoint, backend: id, next_hop, remark })
}

/// A backend's packet to a client of the service gets the service's address.
#[inline(always)]
fn translate_reply<'t, T: Tables>(
    parsed: &Parsed,
    ingress: u32,
    reply: &'t Reply,
    tables: &'t T,
) -> Result<Translation<'t>, Reason> {
    let client = &parsed.flow.destination;
    if tables.address_flags(&client.address) & address_flag::LOCAL != 0 {
        return Err(Reason::ToBalancer);
    }
    if parsed.kind == Kind::Start {
        return Err(Reason::OpenedByBackend);
    }
    if reply.direct != 0 && tables.is_direct(reply.direct, &client.address) {
        return Err(Reason::DirectClient);
    }
    check_forwardable(parsed)?;
    if parsed.kind == Kind::Ongoing(Sign::Reset) {
        conntrack::note_reset(tables, client, reply);
    }
    let to_own_port = client.protocol == UDP && client.port == parsed.flow.source.port;
    let remark = to_own_port.then_some(Reason::ReplyToOwnPort);
    let next_hop = tables.route(parsed, ingress, &reply.service.address)?;
    Ok(Translation { side: Side::Source, to: &reply.service, backend: reply.backend, next_hop, remark })
}

#[inline(always)]
fn check_forwardable(parsed: &Parsed) -> Result<(), Reason> {
    if parsed.ip.fragment {
        return Err(Reason::Fragment);
    }
    if parsed.ip.hops <= 1 {
        return Err(Reason::HopLimit);
    }
    Ok(())
}

/// Flow -> slot -> owner; remembered flows matter only where the slot says so.
#[inline(always)]
fn select_backend<T: Tables>(parsed: &Parsed, service: &Service, tables: &T) -> Result<u32, Reason> {
    let index = service.first_slot + reduce(hash(tables.hash_key(), &parsed.flow), service.slots);
    let slot = tables.slot(index).ok_or(Reason::NoBackend)?;
    let id = if slot.previous == SETTLED {
        slot.owner
    } else {
        conntrack::follow(tables, &parsed.flow, parsed.kind, slot, service)
    };
    if id == NO_BACKEND { Err(Reason::NoBackend) } else { Ok(id) }
}

/// The backend's next hop, if it is known and the packet fits; the kernel fragments what may be fragmented.
#[inline(always)]
fn find_next_hop(parsed: &Parsed, next_hop: &NextHop) -> Result<Option<NextHop>, Reason> {
    if next_hop.interface == 0 {
        return Ok(None);
    }
    match u32::from(parsed.ip.length) <= next_hop.mtu {
        true => Ok(Some(*next_hop)),
        false if parsed.ip.may_fragment => Ok(None),
        false => Err(Reason::TooBig),
    }
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
    if matches!(readable, Ok(()) | Err(Reason::NotIp)) {
        announce::answer(frame, tables, ingress)?;
    }
    readable?;
    Err(unmatched(parsed, tables))
}

/// A packet to a VIP that no service wants must not be passed on unless the kernel has that address: the next
/// router would send it back.
#[inline(always)]
fn unmatched<T: Tables>(parsed: &Parsed, tables: &T) -> Reason {
    let flags = tables.address_flags(&parsed.flow.destination.address);
    if flags & address_flag::VIP == 0 || flags & address_flag::LOCAL != 0 {
        Reason::NotForService
    } else if parsed.ip.fragment {
        Reason::Fragment
    } else {
        Reason::NoService
    }
}
