//! VLAN devices on attached interfaces. The program sees their frames, tags and all, on the interface that is attached, so
//! they are served as if they were attached too; they come and go with the kernel's.

use std::collections::BTreeMap;

use foobar_lb_ebpf::layout::{self, Tags, VlanKey};

use super::State;
use crate::neighbour::{Link, Vlan};

impl State {
    /// The interfaces that the data path serves, by index: those it is attached to and the VLAN devices on them.
    pub fn interfaces(&self) -> BTreeMap<u32, layout::Interface> {
        let devices = self.view.links.iter().filter_map(|(index, link)| Some((*index, self.device(link)?)));
        // One that is attached itself has its frames without the tags, from the kernel.
        devices.chain(self.attached.iter().map(|(index, interface)| (*index, *interface))).collect()
    }

    /// A VLAN device above an attached interface, with no more tags between them than the data path reads. One that is down
    /// has no frames.
    fn device(&self, link: &Link) -> Option<layout::Interface> {
        let mac = link.mac.filter(|_| link.up)?;
        let mut vlan = link.vlan?;
        let mut tags = Tags { outer: tag(vlan), inner: 0 };
        while !self.attached.contains_key(&vlan.parent) {
            vlan = self.view.links.get(&vlan.parent)?.vlan.filter(|_| tags.inner == 0)?;
            tags = Tags { outer: tag(vlan), inner: tags.outer };
        }
        Some(layout::Interface { physical: vlan.parent, tags, ..layout::Interface::new(mac) })
    }
}

fn tag(Vlan { protocol, id, .. }: Vlan) -> u32 {
    u32::from(protocol) << 16 | u32::from(id)
}

/// The VLANs that the VLAN devices among these are for.
pub(super) fn vlans(interfaces: &BTreeMap<u32, layout::Interface>) -> BTreeMap<VlanKey, u32> {
    let devices = interfaces.iter().filter(|(_, interface)| interface.physical != 0);
    let key = |interface: &layout::Interface| VlanKey { interface: interface.physical, tags: interface.tags };
    devices.map(|(index, interface)| (key(interface), *index)).collect()
}
