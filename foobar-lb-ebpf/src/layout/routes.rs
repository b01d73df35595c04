//! What the data path knows by itself of the kernel's routes to clients.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, NextHop};

/// A route to clients. One of zeros leads everybody to the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Route {
    /// The prefix; all bits outside `mask` are zero.
    pub prefix: Address,
    /// The bits of a destination that count.
    pub mask: Address,
    /// Where its packets go; not known: only the kernel can tell.
    pub next_hop: NextHop,
    /// Zero.
    pub pad: u32,
}

impl Route {
    /// Whether it is for this destination.
    #[inline(always)]
    pub fn covers(&self, destination: &Address) -> bool {
        let bits = |address: &Address| u128::from_ne_bytes(address.0);
        (bits(destination) ^ bits(&self.prefix)) & bits(&self.mask) == 0
    }
}

/// Routes to clients of each family, longer prefixes first; what is not needed is zeros. So few that a search of them all
/// costs less than one question to the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Routes {
    /// To IPv4 clients.
    pub v4: [Route; Self::MOST],
    /// To IPv6 clients.
    pub v6: [Route; Self::MOST],
}

impl Routes {
    /// Routes of a family.
    pub const MOST: usize = 8;
}
