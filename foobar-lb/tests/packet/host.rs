//! The data path on the host.

use foobar_lb::{image::Image, sweep::RememberedFlow, twin::Twin};
use foobar_lb_ebpf::{
    layout::{Count, FlowKey, Mapping, Traffic},
    reason::{Reason, Verdict},
};

use super::{
    DataPath, list,
    world::{FLOWS, HALF_OPEN, MAPPINGS, SEED, routes},
};

/// An arbitrary time, longer after boot than any flow is silent.
const NOW: u64 = 1_000_000_000_000;

/// The twin in the network of the table.
pub struct Host(Twin);

impl Host {
    pub fn new(image: Image) -> Self {
        let mut twin = Twin::with_capacities(image, SEED, FLOWS, HALF_OPEN, MAPPINGS);
        twin.now = NOW;
        Self(twin)
    }
}

impl DataPath for Host {
    fn load(&mut self, image: &Image) {
        *self = Self::new(image.clone());
    }

    fn now(&self) -> u64 {
        self.0.now
    }

    fn remember(&mut self, flow: &RememberedFlow) -> bool {
        self.0.remember(flow)
    }

    fn map(&mut self, flow: &FlowKey, mapping: &Mapping) {
        assert!(self.0.map(flow, mapping), "{flow:?} is mapped, or there is no room");
    }

    fn mappings(&mut self) -> Vec<(FlowKey, Mapping)> {
        self.0.mappings()
    }

    fn run(&mut self, frame: &mut Vec<u8>, ingress: u32) -> Verdict {
        self.0.routes = routes(ingress);
        self.0.run(frame, ingress)
    }

    fn remembered(&mut self) -> Vec<RememberedFlow> {
        list(&mut self.0).expect("memory can be read").expect("nobody else changes it")
    }

    fn reasons(&self) -> Vec<(Reason, Count)> {
        self.0.reasons()
    }

    fn traffic(&self, backend: u32) -> Traffic {
        self.0.traffic(backend)
    }
}
