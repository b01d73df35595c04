//! The kernel settings of a backend that has a VIP on `lo`: nobody else must learn of it. IPv6 needs none: a neighbour
//! solicitation is answered only for addresses of the interface it came in by.

use super::{Error, Requirement, Sysctls, ipv4};

const WHY_ARP_IGNORE: &str = "else it answers ARP requests for the VIPs, and clients come past the balancer";
const WHY_ARP_ANNOUNCE: &str = "else its own ARP requests tell neighbours that the VIPs are here";
const WHY_RP_FILTER: &str = "strict reverse path filtering (1 here or for all) drops packets of clients that are \
    answered by another interface";

impl Sysctls {
    /// What is missing for a backend to have IPv4 VIPs whose packets come in by `interfaces`, in the order in which to
    /// set it.
    ///
    /// # Errors
    /// When a setting cannot be read.
    pub fn needed_by_backend(&self, interfaces: &[String]) -> Result<Vec<Requirement>, Error> {
        let mut needed = Vec::new();
        // The kernel takes the greater of an interface's value and that of all, and a VIP concerns all interfaces.
        for (name, least, why) in [("arp_ignore", 1, WHY_ARP_IGNORE), ("arp_announce", 2, WHY_ARP_ANNOUNCE)] {
            let path = ipv4("all", name);
            if self.read(&path)? < least {
                needed.extend(self.require(path, least, why, true)?);
            }
        }
        for interface in interfaces {
            needed.extend(self.require_loose_filter(interface, WHY_RP_FILTER)?);
        }
        Ok(needed)
    }
}
