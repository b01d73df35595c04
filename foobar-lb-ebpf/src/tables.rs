//! What the data path asks of the world outside a packet.

use crate::{
    conntrack::{self, Conntrack},
    flow::{HashKey, Kind},
    forward::{self, Hop, Question},
    headers::Side,
    layout::{
        Address, Backend, Endpoint, Ends, FlowKey, FragmentKey, Interface, Mapping, Quic, Reply, Routes,
        ServerId, Service, Slot, Sources, Tunnel, Vip, VlanKey,
    },
    packet::Packet,
    quic,
    reason::Reason,
    snat::{self, Added, Claim},
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
    /// The service of clients' packets to this end, whose address is a VIP of the group; none has group 0.
    fn range(&self, group: u32, destination: &Endpoint) -> Option<&Service>;
    /// What packets from this end are rewritten to, whether the end is known by itself or in a range of ports.
    fn reply(&self, source: &Endpoint) -> Option<&Reply>;
    /// What is known of an address, by itself or as one of a prefix; nothing of one of no interest.
    fn vip(&self, address: &Address) -> Vip;
    /// Whether anything may be known of an address: where not, no other table has it.
    fn knows(&self, address: &Address) -> bool;
    /// Whether the client is in this list of direct clients.
    fn is_direct(&self, list: u32, client: &Address) -> bool;
    /// A slot of the arena.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// A backend.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// The backend with this server id.
    fn named(&self, server: &ServerId) -> Option<u32>;
    /// The outer headers of packets to a backend.
    fn tunnel(&self, backend: u32) -> Option<&Tunnel>;
    /// Where packets to a backend may come from when their source is replaced.
    fn sources(&self, backend: u32) -> Option<&Sources>;
    /// What becomes of the packets of a flow.
    fn mapping(&self, flow: &FlowKey) -> Option<&Mapping>;
    /// Adds a mapping where there is none for its flow.
    fn add_mapping(&self, flow: &FlowKey, mapping: &Mapping) -> Added;
    /// Removes a mapping; false where there is none (any more).
    fn remove_mapping(&self, flow: &FlowKey) -> bool;
    /// Whether a socket of the balancer's host takes packets of this flow.
    fn host_has(&self, flow: &FlowKey) -> bool;
    /// The ports of a fragmented datagram.
    fn ports(&self, datagram: &FragmentKey) -> Option<Ends>;
    /// Remembers the ports of a fragmented datagram.
    fn remember_ports(&self, datagram: &FragmentKey, ends: Ends);
    /// Index of the VLAN device that a VLAN is for.
    fn vlan(&self, vlan: &VlanKey) -> Option<u32>;
    /// An attached interface, or a VLAN device on one.
    fn interface(&self, index: u32) -> Option<&Interface>;
    /// The routes to clients that are known without asking the kernel.
    fn routes(&self) -> Option<&Routes>;
    /// Asks the kernel for the way of a packet to a client, which stays unknown where a neighbour has to be resolved
    /// first.
    fn route(&self, question: &Question<'_>, hop: &mut Hop) -> Result<(), Reason>;

    /// Nanoseconds of a clock that never goes back.
    fn now(&self) -> u64;
    /// Whether one more sender may be told why its packet does not go on, see [`Limit`](crate::complain::Limit).
    fn may_complain(&self) -> bool;

    /// Counts a frame of this many bytes under a reason.
    fn count(&self, reason: Reason, bytes: u64);
    /// Counts a frame of this many bytes towards (`Destination`) or from (`Source`) a backend.
    fn count_traffic(&self, backend: u32, side: Side, bytes: u64);
    /// Counts a remembered flow that leaves its backend, which does not serve any more.
    fn count_repicked(&self, backend: u32);

    /// The service of clients' packets to this end, by itself or in a range of ports.
    #[inline(always)]
    fn service_of(&self, destination: &Endpoint) -> Option<&Service> {
        let service = self.service(destination);
        service.or_else(|| self.range(self.vip(&destination.address).group, destination))
    }

    /// [`quic::named_backend`]. The kernel has this, and the next, as a function of its own.
    #[inline(always)]
    fn named_backend<P: Packet>(&self, packet: &mut P, udp: u32, quic: Quic) -> u32
    where
        Self: Sized,
    {
        quic::named_backend(&packet.frame(), self, udp, quic)
    }

    /// [`forward::find_known_way`]. The kernel has this, and the next, as a function of its own.
    #[inline(always)]
    fn find_known_way(&self, destination: &Address, length: u16, hop: &mut Hop) -> bool
    where
        Self: Sized,
    {
        forward::find_known_way(self, destination, length, hop)
    }

    /// The backend of a packet whose slot is not settled.
    #[inline(always)]
    fn follow(&self, flow: &FlowKey, kind: Kind, slot: Slot, idle: u64) -> u32
    where
        Self: Sized,
    {
        conntrack::follow(self, flow, kind, slot, idle)
    }

    /// [`snat::renew`]. The kernel has this, and the next two, as functions of their own.
    #[inline(always)]
    fn renew(&self, flow: &FlowKey, kind: Kind, idle: u64) -> bool
    where
        Self: Sized,
    {
        snat::renew(self, flow, kind, idle)
    }

    /// [`snat::take`].
    #[inline(always)]
    fn take(&self, flow: &FlowKey, claim: Claim) -> Added
    where
        Self: Sized,
    {
        snat::take(self, flow, claim)
    }

    /// [`snat::is_free`].
    #[inline(always)]
    fn is_free(&self, flow: &FlowKey, claim: Claim) -> bool
    where
        Self: Sized,
    {
        snat::is_free(self, flow, claim)
    }
}
