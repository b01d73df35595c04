//! What the services of a configuration ask of the kernel. In modes `nat` and `snat` it tells the way of every reply, so
//! nothing works unless it forwards. What goes to backends of `dsr` and `tunnel` only the program sends.

use std::net::IpAddr;

use crate::model::Service;

/// Address families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// Some address is an IPv4 address.
    pub v4: bool,
    /// Some address is an IPv6 address.
    pub v6: bool,
}

impl FromIterator<IpAddr> for Families {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        addresses.into_iter().fold(Self::default(), |families, address| Self {
            v4: families.v4 || address.is_ipv4(),
            v6: families.v6 || address.is_ipv6(),
        })
    }
}

/// What is asked of the kernel, for all services together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// The families of the VIPs of `nat` and `snat` services: it tells the way of replies, and forwards what the program cannot send.
    pub replies: Families,
    /// One of their VIPs is, or may become, an IPv4 address of this machine.
    pub local_vip: bool,
}

impl Demands {
    /// Of `services` on a machine with the addresses `locals`. `may_move`: a VIP that the balancer does not announce
    /// may become an address of this machine, as those do that keepalived moves.
    pub fn new(services: &[Service], locals: &[IpAddr], may_move: bool) -> Self {
        let rewritten = || services.iter().filter(|service| !service.mode.keeps_destination());
        let vip = |service: &Service| service.key.address.vip.addr();
        let is_local = |service: &Service| {
            locals.iter().any(|local| service.key.address.vip.contains(local))
                || may_move && !service.announce
        };
        Self {
            replies: rewritten().map(vip).collect(),
            local_vip: rewritten().any(|service| vip(service).is_ipv4() && is_local(service)),
        }
    }
}
