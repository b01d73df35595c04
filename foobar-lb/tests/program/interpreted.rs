//! The data path in the interpreter, in the network of the packet table.

use anyhow::Result;
use aya::include_bytes_aligned;
use foobar_lb::{image::Image, sweep::RememberedFlow};
use foobar_lb_ebpf::{
    layout::{Count, FlowKey, Mapping, Remembered, Traffic, name},
    reason::{Reason, Verdict},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    CAPACITIES,
    interpreter::{Cost, Interpreter},
    mapping::{to_bytes, to_mapping},
    packet::{
        DataPath,
        world::{SEED, routes},
    },
};

/// An arbitrary time, longer after boot than any flow is silent.
const NOW: u64 = 1_000_000_000_000;
/// Where flows are remembered.
const FLOW_MAPS: [&str; 3] = [name::HALF_OPEN, name::ESTABLISHED, name::ADOPTED];

/// The program with the capacities of the kernel's.
pub struct Interpreted(Interpreter);

impl Interpreted {
    pub fn new() -> Result<Self> {
        let object = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-xdp"));
        let mut interpreter = Interpreter::load(object, CAPACITIES, SEED)?;
        interpreter.now = NOW;
        Ok(Self(interpreter))
    }

    pub fn compiler(&self) -> &str {
        self.0.compiler()
    }

    /// What the last packet has taken.
    pub fn cost(&self) -> &Cost {
        self.0.cost()
    }

    fn value<T: FromBytes>(&self, map: &str, key: u32) -> T {
        let map = self.0.map(map).expect("the program has this map");
        let value = map.get(key.as_bytes()).expect("the array is as long");
        T::read_from_bytes(value).expect("the value has the size of its type")
    }
}

impl DataPath for Interpreted {
    fn load(&mut self, image: &Image) {
        self.0.clear();
        self.0.fill(image).expect("the image fits into the maps");
    }

    fn now(&self) -> u64 {
        self.0.now
    }

    fn remember(&mut self, flow: &RememberedFlow) -> bool {
        let map = self.0.map_mut(flow.map).expect("the program has this map");
        let entry = [flow.remembered.to_word(), flow.seen];
        map.update(flow.flow.as_bytes(), entry.as_bytes(), 0).is_ok()
    }

    fn map(&mut self, flow: &FlowKey, mapping: &Mapping) {
        let map = self.0.map_mut(name::MAPPINGS).expect("the program has this map");
        map.update(flow.as_bytes(), &to_bytes(mapping), 0).expect("there is room");
    }

    fn mappings(&mut self) -> Vec<(FlowKey, Mapping)> {
        let map = self.0.map(name::MAPPINGS).expect("the program has this map");
        let read = |(key, value): (&[u8], &[u8])| {
            (read_flow(key), to_mapping(value.try_into().expect("the value has the size of its type")))
        };
        map.elements().map(read).collect()
    }

    fn run(&mut self, frame: &mut Vec<u8>, ingress: u32) -> Verdict {
        self.0.routes = routes(ingress);
        self.0.run(frame, ingress).expect("the verifier lets no program pass that fails")
    }

    fn remembered(&mut self) -> Vec<RememberedFlow> {
        let of_map = |map: &'static str| {
            let elements = self.0.map(map).expect("the program has this map").elements();
            elements.map(move |(key, value)| {
                let [word, seen] = <[u64; 2]>::read_from_bytes(value).expect("two words");
                RememberedFlow { map, flow: read_flow(key), remembered: Remembered::from_word(word), seen }
            })
        };
        FLOW_MAPS.into_iter().flat_map(of_map).collect()
    }

    fn reasons(&self) -> Vec<(Reason, Count)> {
        Reason::ALL.iter().map(|reason| (*reason, self.value(name::REASONS, *reason as u32))).collect()
    }

    fn traffic(&self, backend: u32) -> Traffic {
        self.value(name::TRAFFIC, backend)
    }
}

fn read_flow(key: &[u8]) -> FlowKey {
    FlowKey::read_from_bytes(key).expect("the key has the size of its type")
}
