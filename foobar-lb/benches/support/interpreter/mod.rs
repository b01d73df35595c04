//! The program in an interpreter, which counts what a packet takes: not every machine has a CPU that tells, and none tells
//! which instructions they were. The object is linked as for the kernel; its maps and the helpers are ordinary memory.
//!
//! No crate does that: `rbpf` counts no instructions, its helpers have no state, and it knows no `xdp_md`, whose
//! pointers have 32 bits; `solana-sbpf` counts, but runs a dialect.

mod helpers;
mod machine;
mod maps;
mod memory;
mod object;

use std::{collections::BTreeMap, convert::identity};

use anyhow::{Context, Result, bail};
use foobar_lb::{
    bpf::Capacities,
    image::{Image, Prefix},
    known::Known,
    twin::Route,
};
use foobar_lb_ebpf::{flow::hash_key, layout::name, reason::Verdict};
use zerocopy::{Immutable, IntoBytes};

use self::{helpers::World, machine::Machine, maps::Map, memory::Memory, object::Object};

/// What a packet has taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Instructions that were executed, as the compiler wrote them: before the verifier and the JIT.
    pub instructions: u64,
    /// Calls of the kernel's helpers, each of which is one of the instructions.
    pub calls: u32,
    /// Which maps something was looked up in, in their order; each is one of the calls.
    pub look_ups: Vec<String>,
}

/// The program, and its maps.
pub struct Interpreter {
    /// Nanoseconds of the clock.
    pub now: u64,
    /// The ways to clients.
    pub routes: Vec<Route>,
    object: Object,
    capacities: BTreeMap<&'static str, u32>,
    maps: Vec<Map>,
    cost: Cost,
}

impl Interpreter {
    /// The element of their map, as it is in maps just made.
    const ROUTES_IN_USE: u32 = 0;

    /// The program of an object, whose bytes begin at a multiple of eight, with empty maps.
    pub fn load(object: &[u8], capacities: Capacities, seed: u64) -> Result<Self> {
        let object = Object::read(object, name::PROGRAM, (name::HASH_KEY, hash_key(seed).as_bytes()))?;
        let capacities = capacities.of_maps().into_iter().collect();
        let (maps, cost) = (vec![], Cost::default());
        let mut interpreter = Self { now: 0, routes: vec![], object, capacities, maps, cost };
        interpreter.clear();
        Ok(interpreter)
    }

    /// The compiler that wrote the program.
    pub fn compiler(&self) -> &str {
        &self.object.compiler
    }

    /// Puts this in the maps that the control plane writes.
    pub fn fill(&mut self, image: &Image) -> Result<()> {
        let slots = image.tables.iter().flat_map(|(first, table)| (*first..).zip(table.iter()));
        self.put(name::INTERFACES, &image.interfaces)?;
        self.put(name::VLANS, &image.vlans)?;
        self.put(name::ROUTES, &BTreeMap::from([(Self::ROUTES_IN_USE, image.routes)]))?;
        self.put(name::BACKENDS, &image.backends)?;
        self.put(name::TUNNELS, &image.tunnels)?;
        self.put(name::SOURCES, &image.sources)?;
        self.put(name::SERVER_IDS, &image.server_ids)?;
        self.put_prefixes(name::DIRECT, &image.direct)?;
        self.put(name::REPLIES, &image.replies)?;
        self.put_prefixes(name::REPLY_RANGES, &image.reply_ranges)?;
        self.put(name::ADDRESSES, &image.addresses)?;
        self.put_prefixes(name::PREFIXES, &image.prefixes)?;
        self.put_words(name::SLOTS, slots.map(|(place, slot)| (place, slot.to_word())))?;
        self.put_words(name::KNOWN, Known::default().changes(&Known::of(image)))?;
        self.put(name::SERVICES, &image.services)?;
        self.put_prefixes(name::RANGES, &image.ranges)
    }

    fn put<K, V>(&mut self, name: &str, contents: &BTreeMap<K, V>) -> Result<()>
    where
        K: IntoBytes + Immutable,
        V: IntoBytes + Immutable,
    {
        let map = self.map_mut(name)?;
        let mut put = contents.iter().map(|(key, value)| map.update(key.as_bytes(), value.as_bytes(), 0));
        put.try_for_each(identity).with_context(|| format!("cannot fill {name}"))
    }

    fn put_words(&mut self, name: &str, words: impl Iterator<Item = (u32, u64)>) -> Result<()> {
        let map = self.map_mut(name)?;
        let mut put = words.map(|(place, word)| map.update(place.as_bytes(), word.as_bytes(), 0));
        put.try_for_each(identity).with_context(|| format!("cannot fill {name}"))
    }

    /// Keys begin with how many of their bits count.
    fn put_prefixes<K, V>(&mut self, name: &str, prefixes: &BTreeMap<Prefix<K>, V>) -> Result<()>
    where
        K: IntoBytes + Immutable,
        V: IntoBytes + Immutable,
    {
        let map = self.map_mut(name)?;
        let with_bits = |(key, bits): &Prefix<K>| [bits.as_bytes(), key.as_bytes()].concat();
        let mut put = prefixes.iter().map(|(key, value)| map.update(&with_bits(key), value.as_bytes(), 0));
        put.try_for_each(identity).with_context(|| format!("cannot fill {name}"))
    }

    /// Empties all maps.
    pub fn clear(&mut self) {
        let capacity = |name: &str| self.capacities.get(name).copied();
        let maps = self.object.maps.iter();
        self.maps = maps.map(|definition| Map::new(definition, capacity(&definition.name))).collect();
    }

    /// Hands it a frame that arrives on the interface with this index.
    pub fn run(&mut self, frame: &mut Vec<u8>, ingress: u32) -> Result<Verdict> {
        let mut memory = Memory::new(frame, ingress, &mut self.maps);
        let mut world = World { now: self.now, routes: &self.routes, redirected: 0 };
        let machine = Machine::new(&self.object.instructions, &mut memory, &mut world);
        let (returned, cost) = machine.run()?;
        self.cost = cost;
        *frame = memory.frame();
        Ok(match returned {
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 => Verdict::Transmit,
            4 => Verdict::Redirect(world.redirected),
            other => bail!("the program returned {other}"),
        })
    }

    /// What the last packet has taken.
    pub fn cost(&self) -> &Cost {
        &self.cost
    }

    /// A map of the program.
    pub fn map(&self, name: &str) -> Result<&Map> {
        self.maps.iter().find(|map| map.name == name).with_context(|| format!("no map {name}"))
    }

    /// The same, to write into.
    pub fn map_mut(&mut self, name: &str) -> Result<&mut Map> {
        self.maps.iter_mut().find(|map| map.name == name).with_context(|| format!("no map {name}"))
    }
}
