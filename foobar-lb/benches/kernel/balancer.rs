//! A balancer with maps filled: the data path in the kernel, and what the control plane writes for a setup. Everything is
//! one-arm and all neighbours are the same, so every packet is sent back.

use std::{sync::Arc, time::Instant};

use anyhow::Result;
use aya::{include_bytes_aligned, programs::ProgramInfo};
use foobar_lb::{
    bpf::{Bpf, Capacities},
    config,
    image::Image,
    neighbour::{Link, NextHop, View},
    plan,
    state::State,
    sweep::Store,
};
use foobar_lb_ebpf::{
    layout::{Interface, Slot, TRACES},
    reason::Reason,
};

use crate::{
    address::{NEIGHBOUR_MAC, OWN_MAC},
    interpreter::Interpreter,
    path::Kind,
    setup::{Setup, Slots},
};

/// Of the interface.
pub const MTU: u32 = 1500;
const SEED: u64 = 1;

/// A balancer under load.
pub struct Balancer {
    pub setup: Setup,
    bpf: Bpf,
    /// What the maps hold.
    image: Image,
}

impl Balancer {
    /// Loads it. Its packets come by `interface`.
    pub fn load(setup: Setup, interface: u32) -> Result<Self> {
        let config = config::parse(&setup.to_toml(), "bench.toml")?;
        let bpf = Bpf::load_object(object(setup), capacities(setup), SEED)?;
        let mut balancer = Self { setup, bpf, image: Image::default() };
        balancer.apply(render(setup, config, interface))?;
        Ok(balancer)
    }

    /// Ends the moves whose traces are to be measured, as their flows are remembered now.
    pub fn end_moves(&mut self) -> Result<()> {
        if self.setup.slots != Slots::Traces {
            return Ok(());
        }
        self.apply(self.settling())
    }

    /// What the maps hold when the moves have ended.
    pub fn settling(&self) -> Image {
        let mut image = self.image.clone();
        image.tables.values_mut().flat_map(Arc::make_mut).for_each(|slot| slot.previous = TRACES);
        image
    }

    /// The same program with the same maps, but for what was sent to it.
    pub fn interpreter(&self) -> Result<Interpreter> {
        let mut interpreter = Interpreter::load(object(self.setup), capacities(self.setup), SEED)?;
        interpreter.fill(&self.image)?;
        Ok(interpreter)
    }

    fn apply(&mut self, image: Image) -> Result<()> {
        for step in plan::diff(&self.image, &image) {
            self.bpf.apply(&step)?;
        }
        self.image = image;
        Ok(())
    }

    /// The program.
    pub fn program(&mut self) -> Result<ProgramInfo> {
        Ok(self.bpf.program().info()?)
    }

    /// How many packets of the kind the program has counted.
    pub fn counted(&self, kind: Kind) -> Result<u64> {
        let traffic = || (0..self.setup.all_backends()).map(|id| self.bpf.traffic(id));
        match kind {
            Kind::Forward => traffic().map(|traffic| Ok(traffic?.forward.packets)).sum(),
            Kind::Reply => traffic().map(|traffic| Ok(traffic?.reply.packets)).sum(),
            Kind::Pass => {
                let reasons = self.bpf.reasons()?;
                let passed = reasons.iter().find(|(reason, _)| *reason == Reason::NotForService);
                Ok(passed.map_or(0, |(_, count)| count.packets))
            }
        }
    }

    /// How many flows are remembered.
    pub fn remembered(&mut self) -> Result<u64> {
        let mut flows = 0;
        self.bpf.retain(|_| {
            flows += 1;
            true
        })?;
        Ok(flows)
    }
}

fn object(setup: Setup) -> &'static [u8] {
    match setup.slots {
        Slots::Tracked => include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-full-tracking")),
        Slots::Settled | Slots::Moving | Slots::Traces => {
            include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-xdp"))
        }
    }
}

fn capacities(setup: Setup) -> Capacities {
    Capacities {
        slots: setup.all_slots(),
        backends: setup.all_backends(),
        flows: 2 * setup.flows,
        half_open: 2 * setup.flows,
        mappings: 2 * setup.flows,
    }
}

fn render(setup: Setup, config: config::Config, interface: u32) -> Image {
    let family = setup.family;
    let next_hop = NextHop {
        interface,
        source: OWN_MAC,
        destination: NEIGHBOUR_MAC,
        mtu: MTU,
        on_link: true,
        local: None,
    };
    let backends =
        config.services.iter().flat_map(|service| &service.backends).map(|backend| backend.address.ip());
    let link = Link {
        mac: Some(OWN_MAC),
        up: true,
        mtu: MTU,
        forwards_v4: true,
        forwards_v6: true,
        ..Link::default()
    };
    let by_kernel = family.near().map(|prefix| (prefix, None));
    let view = View {
        routes: by_kernel.chain([(family.any(), Some(next_hop))]).collect(),
        links: [(interface, link)].into(),
        next_hops: backends.map(|backend| (backend, next_hop)).collect(),
        locals: [family.own()].into(),
        connected: vec![(family.network(), interface)],
    };
    let mut state = State::new(config.services, SEED);
    state.attached.insert(interface, Interface::new(OWN_MAC));
    state.observe_network(view);
    let mut image = state.render(Instant::now());
    give_past(setup, &mut image);
    image
}

/// Lets all slots have had another owner, the next of their service.
fn give_past(setup: Setup, image: &mut Image) {
    let backends = u32::from(setup.backends);
    let next = |id: u32| id / backends * backends + (id + 1) % backends;
    for slot in image.tables.values_mut().flat_map(Arc::make_mut) {
        let previous = match setup.slots {
            Slots::Settled => continue,
            Slots::Moving | Slots::Traces => next(slot.owner),
            Slots::Tracked => slot.owner,
        };
        *slot = Slot { previous, ..*slot };
    }
}
