//! Why a packet was not simply forwarded. One enum: its discriminant is the index of a counter, its action the
//! verdict, its name the metric. A new reason cannot be forgotten anywhere.

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To the kernel.
    Pass,
    /// Gone.
    Drop,
    /// Out of the interface it came in by.
    Transmit,
    /// Out of the interface with this index.
    Redirect(u32),
}

/// What a reason means for the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The kernel takes it.
    Pass,
    /// It is dropped.
    Drop,
    /// It is answered on the interface it came in by.
    Answer,
    /// Its sender is told why it does not go on: an ICMP error, or a RST, goes back in its place.
    Complain,
    /// It goes on; the reason is a remark for the operator.
    Forward,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal => $action:ident,)+) => {
        /// Why a packet was not simply forwarded.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in status and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What it means for the packet.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Self::$variant => Action::$action),+ }
            }

            /// Whether the sender is told that its flow is refused, rather than that a packet did not get through.
            #[inline(always)]
            pub const fn is_refusal(self) -> bool {
                matches!(self, Self::Rejected | Self::Unmapped | Self::NoPort | Self::NotMapped)
            }

            /// What it means and what to do about it, for the operator.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+)),+ }
            }
        }
    };
}

reasons! {
    /// Neither IPv4 nor IPv6 directly on Ethernet.
    NotIp = "not_ip" => Pass,
    /// In a VLAN that has no VLAN device on the interface it came in by, or below more than two tags.
    UnknownVlan = "unknown_vlan" => Pass,
    /// The frame ends before its IP header does, or that header is broken.
    Malformed = "malformed" => Pass,
    /// An IPv6 packet with an IPv4-mapped address (::ffff:0:0/96), which must not appear on the wire.
    MappedAddress = "mapped_address" => Pass,
    /// For no service and from no backend of one.
    NotForService = "not_for_service" => Pass,
    /// From a backend to an address of the balancer: the answer to a probe, or to a client on the balancer.
    ToBalancer = "to_balancer" => Pass,
    /// From a backend to a client listed in `direct`.
    DirectClient = "direct_client" => Pass,
    /// A SYN that a backend sends from its service port. The connection fails: what follows looks like replies.
    OpenedByBackend = "opened_by_backend" => Pass,
    /// A reply larger than the way to the client: the kernel tells the backend (RFC 1191, RFC 8201).
    ReplyTooBig = "reply_too_big" => Pass,
    /// Rewritten, but its next hop is not resolved or not on an attached interface: the kernel forwards it.
    HandedToKernel = "handed_to_kernel" => Pass,
    /// To a VIP, but to no service: passing it on would make a loop.
    NoService = "no_service" => Drop,
    /// No backend of the service may get it.
    NoBackend = "no_backend" => Drop,
    /// A fragment to a VIP whose datagram's first fragment, the one with the ports, has not been seen.
    Fragment = "fragment" => Drop,
    /// Its TTL or hop limit is used up: its sender is told, which makes `traceroute` work.
    HopLimit = "hop_limit" => Complain,
    /// Larger than the way to the backend, or of a mapped flow to the client, and not to be fragmented: its sender is told how large it may be.
    TooBig = "too_big" => Complain,
    /// To a VIP with `unmatched = "reject"`, but to no service: its sender is told.
    Rejected = "rejected" => Complain,
    /// In mid-flow, but its flow has no mapping (any more), which mode `snat` needs: its sender is told.
    Unmapped = "unmapped" => Complain,
    /// A flow begins that needs a source port, but all that were tried are taken: its sender is told. More `snat_source`
    /// addresses give room.
    NoPort = "no_port" => Complain,
    /// A flow begins that needs a mapping, but `mappings` are full: its sender is told.
    NotMapped = "not_mapped" => Complain,
    /// Its sender was to be told why it was dropped, but too many were told in this second.
    ErrorLimit = "error_limit" => Drop,
    /// Its sender was to be told why it was dropped, but the balancer has no address on that interface to say it from.
    NoSpeaker = "no_speaker" => Drop,
    /// The next hop of its backend is not resolved or not on an attached interface, and in mode `dsr` or `tunnel` the
    /// kernel cannot forward it.
    Unresolved = "unresolved" => Drop,
    /// Its size could not be changed: the driver leaves no room, or the frame ends before its IP packet does.
    NoRoom = "no_room" => Drop,
    /// The backend's IP is not the client's, and it cannot be said in the other: a source route, a fragment header among
    /// other headers, an ICMP error without a like, or in fragments.
    Untranslatable = "untranslatable" => Drop,
    /// A UDP datagram over IPv4 without a checksum, which IPv6 asks for; too long to be given one, or in fragments.
    NoChecksum = "no_checksum" => Drop,
    /// No route to the client.
    NoRoute = "no_route" => Drop,
    /// The interface that a reply came by does not forward: see `foobar-lb attach --sysctl`.
    ForwardingOff = "forwarding_off" => Drop,
    /// An ARP request or neighbour solicitation for an announced VIP, answered.
    Announced = "announced" => Answer,
    /// A ping of a VIP, answered.
    Echo = "echo" => Answer,
    /// The client is in the backend's subnet: the reply goes past the balancer and the client refuses it.
    ClientOnBackendSubnet = "client_on_backend_subnet" => Forward,
    /// A UDP packet from a backend to the same port as its own: rewritten, but perhaps the backend's own query.
    ReplyToOwnPort = "reply_to_own_port" => Forward,
    /// A flow could not be remembered: the map is full, or the part of it that mid-flow packets may fill.
    NotRemembered = "not_remembered" => Forward,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discriminants_are_the_indices_of_all() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{reason:?}");
        }
    }

    #[test]
    fn names_are_unique_metric_labels() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
