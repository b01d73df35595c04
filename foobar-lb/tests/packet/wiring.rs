//! Interfaces of the table as VLAN devices: what a row is about is the same whether its frames have tags or not. Only how
//! its frames come in and go out differs.

use foobar_lb::image::Image;
use foobar_lb_ebpf::{
    layout::{Interface, Tags, VLAN_DEVICE, VlanKey},
    reason::Verdict,
};

use super::{
    Arrival, Row,
    world::{BACKEND_SIDE, CLIENT_SIDE, TRUNK},
};

/// Bytes of the MACs, which tags follow.
const MACS: usize = 12;
/// Expedited, and the first to be dropped.
const PRIORITY: u32 = 0xb000;

const fn dot1q(id: u32) -> u32 {
    0x8100 << 16 | id
}

const fn dot1ad(id: u32) -> u32 {
    0x88a8 << 16 | id
}

/// Which interfaces are VLAN devices.
#[derive(Clone, Copy, Debug)]
pub struct Wiring {
    name: &'static str,
    devices: &'static [Device],
}

/// An interface of the table that is a VLAN device, or gets frames with tags all the same.
#[derive(Clone, Copy, Debug)]
struct Device {
    index: u32,
    /// Index of the interface that its frames come in and leave by.
    physical: u32,
    /// What they leave with; none: it is no VLAN device.
    tags: Tags,
    /// What they come in with.
    arriving: Tags,
}

const fn device(index: u32, physical: u32, outer: u32, inner: u32) -> Device {
    let arriving = Tags { outer: outer | PRIORITY, inner: if inner == 0 { 0 } else { inner | PRIORITY } };
    Device { index, physical, tags: Tags { outer, inner }, arriving }
}

const CLIENTS: u32 = CLIENT_SIDE.index;
const BACKENDS: u32 = BACKEND_SIDE.index;

pub const WIRINGS: [Wiring; 8] = [
    Wiring { name: "clients in a VLAN", devices: &[device(CLIENTS, TRUNK.index, dot1q(10), 0)] },
    Wiring { name: "backends in a VLAN", devices: &[device(BACKENDS, TRUNK.index, dot1q(4094), 0)] },
    Wiring {
        name: "both in VLANs of one interface",
        devices: &[device(CLIENTS, TRUNK.index, dot1q(10), 0), device(BACKENDS, TRUNK.index, dot1q(20), 0)],
    },
    Wiring {
        name: "clients in a VLAN of the backends' interface",
        devices: &[device(CLIENTS, BACKENDS, dot1q(10), 0)],
    },
    Wiring {
        name: "clients in a VLAN in a service VLAN, backends in another of it",
        devices: &[
            device(CLIENTS, TRUNK.index, dot1ad(100), dot1q(10)),
            device(BACKENDS, TRUNK.index, dot1ad(100), dot1q(20)),
        ],
    },
    Wiring {
        name: "clients in a VLAN in a VLAN, backends in the outer one",
        devices: &[
            device(CLIENTS, TRUNK.index, dot1q(100), dot1q(10)),
            device(BACKENDS, TRUNK.index, dot1q(100), 0),
        ],
    },
    Wiring {
        name: "clients with a priority",
        devices: &[Device {
            index: CLIENTS,
            physical: CLIENTS,
            tags: Tags::NONE,
            arriving: Tags { outer: dot1q(0) | PRIORITY, inner: 0 },
        }],
    },
    Wiring {
        name: "clients in a VLAN behind a tag with a priority",
        devices: &[Device {
            index: CLIENTS,
            physical: TRUNK.index,
            tags: Tags { outer: dot1q(10), inner: 0 },
            arriving: Tags { outer: dot1q(0) | PRIORITY, inner: dot1q(10) },
        }],
    },
];

impl Wiring {
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The row where interfaces are wired like that; none where its frames are too short for tags.
    pub fn of(self, row: &Row) -> Option<Row> {
        let tagged = row.arrivals().iter().all(|arrival| arrival.frame.len() >= MACS + 2);
        let used = self.device(row.ingress).is_some() || matches!(row.verdict, Verdict::Redirect(_));
        (tagged && used).then(|| self.rewire(row))
    }

    fn rewire(self, row: &Row) -> Row {
        let ingress = self.device(row.ingress);
        let physical = |index| self.device(index).map_or(index, |device| device.physical);
        let came_by = physical(row.ingress);
        let back = ingress.map_or(Tags::NONE, |device| device.arriving);
        let (verdict, tags) = match row.verdict {
            Verdict::Pass | Verdict::Transmit => (row.verdict, back),
            Verdict::Drop => (Verdict::Drop, Tags::NONE),
            Verdict::Redirect(index) => {
                let tags = self.device(index).map_or(Tags::NONE, |device| device.tags);
                let egress = physical(index);
                (if egress == came_by { Verdict::Transmit } else { Verdict::Redirect(egress) }, tags)
            }
        };
        let Arrival { ingress, frame } =
            self.arrive(&Arrival { ingress: row.ingress, frame: row.frame.clone() });
        Row {
            name: format!("{}, {}", row.name, self.name),
            image: self.image(row.image.clone()),
            before: row.before.iter().map(|arrival| self.arrive(arrival)).collect(),
            ingress,
            frame,
            tags: back.length() as usize,
            verdict,
            out: tagged(&row.out, tags),
            ..row.clone()
        }
    }

    /// The image of a balancer that is wired like that.
    pub fn image(self, mut image: Image) -> Image {
        let devices = || self.devices.iter().filter(|device| !device.tags.is_none());
        for Device { index, physical, tags, .. } in devices().copied() {
            if let Some(interface) = image.interfaces.get_mut(&index) {
                *interface = Interface { physical, tags, ..*interface };
                image.vlans.insert(VlanKey { interface: physical, tags }, index);
            }
        }
        let routes = image.routes.v4.iter_mut().chain(&mut image.routes.v6).map(|route| &mut route.next_hop);
        for hop in image.backends.values_mut().map(|backend| &mut backend.next_hop).chain(routes) {
            if devices().any(|device| device.index == hop.interface) {
                hop.interface |= VLAN_DEVICE;
            }
        }
        image
    }

    /// What arrives by an interface, as it then does.
    pub fn arrive(self, arrival: &Arrival) -> Arrival {
        match self.device(arrival.ingress) {
            Some(Device { physical, arriving, .. }) if arrival.frame.len() >= MACS => {
                Arrival { ingress: physical, frame: tagged(&arrival.frame, arriving) }
            }
            _ => arrival.clone(),
        }
    }

    fn device(self, index: u32) -> Option<Device> {
        self.devices.iter().find(|device| device.index == index).copied()
    }
}

/// The frame with tags.
pub fn tagged(frame: &[u8], tags: Tags) -> Vec<u8> {
    let (macs, rest) = frame.split_at(MACS);
    let tags = [tags.outer, tags.inner].into_iter().filter(|tag| *tag != 0).flat_map(u32::to_be_bytes);
    [macs, &tags.collect::<Vec<_>>(), rest].concat()
}

/// The frame without its first bytes of tags.
pub fn untagged(frame: &[u8], tags: usize) -> Vec<u8> {
    match tags {
        0 => frame.to_vec(),
        _ => [&frame[..MACS], &frame[MACS + tags..]].concat(),
    }
}
