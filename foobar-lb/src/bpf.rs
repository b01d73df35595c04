//! The only module that names aya: loads the data path, attaches it, writes its maps step by step and reads its
//! counters. It decides nothing. Remembered flows are in `bpf/flows.rs`, the program of a backend in `bpf/decap.rs`.

mod attach;
mod decap;
mod flows;
mod inject;
mod mappings;
pub mod next;
mod object;
pub mod pins;
mod read;
mod running;
mod words;

use std::{io, path::PathBuf, time::Duration};

pub use attach::{Attach, Link, Mode, Size};
use aya::{
    Ebpf, EbpfError,
    maps::{
        Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{ProgramError, Xdp},
};
use aya_log::EbpfLogger;
use aya_obj::Object;
pub use decap::Decap;
pub use flows::FlowMaps;
use foobar_lb_ebpf::{
    layout::{
        Address, Backend, Count, DirectKey, Endpoint, Interface, KNOWN_WORDS, PrefixKey, RangeKey, Reply,
        ReplyKey, Routes, ServerId, Service, Sources, Traffic, Tunnel, Vip, VlanKey, capacity, daemon_word,
        name,
    },
    reason::Reason,
};
pub use next::Next;
pub use object::Frames;
use object::{load_maps, load_program, program};
pub use pins::Pins;
pub use running::{Fill, Running, count_flows, describe_program, is_ours, read_running};
use tokio::io::{Interest, unix::AsyncFd};
use words::Words;
use zerocopy::{FromBytes, Immutable, IntoBytes, transmute};

use crate::{
    known::Known,
    plan::Step,
    sweep::{MappedFlow, RememberedFlow, Store},
};

/// Why the data path does not run, or does not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the object or one of its maps.
    #[error("the kernel refused the data path's maps")]
    Load(#[source] Box<EbpfError>),
    /// The verifier refused the program.
    #[error("the kernel refused the program `{program}`")]
    Program {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// The kernel did not tell how large a program is.
    #[error("cannot read how large the program is")]
    Size(#[source] Box<ProgramError>),
    /// The kernel did not let the program treat a frame.
    #[error("the kernel refused to send a frame through the program")]
    Inject(#[source] Box<ProgramError>),
    /// The program could not be attached.
    #[error("cannot attach to {interface} in {mode} mode")]
    Attach {
        /// The interface.
        interface: String,
        /// How it was to be attached.
        mode: Mode,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// The program could not be taken off.
    #[error("cannot detach from {interface}")]
    Detach {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map could not be read or written.
    #[error("cannot {what} the map {map}")]
    Map {
        /// The map.
        map: &'static str,
        /// What was to be done to it.
        what: &'static str,
        /// What the kernel said.
        source: Box<MapError>,
    },
    /// A loaded program cannot be looked at.
    #[error("cannot look at {program}")]
    Look {
        /// Which.
        program: String,
        /// What the kernel said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What is pinned cannot be taken over, or nothing can be pinned.
    #[error(transparent)]
    Pins(#[from] pins::Error),
    /// No program can be put behind this one.
    #[error(transparent)]
    Next(#[from] next::Error),
    /// A map, the program or a link cannot be pinned.
    #[error("cannot pin {}", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A write that failed on purpose.
    #[error("cannot write to the maps")]
    Injected(#[source] io::Error),
    /// A map could not be mapped into memory.
    #[error("cannot map the map {map} into memory")]
    Mmap {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel did not tell how much memory a map takes.
    #[error("cannot read how much memory the map {map} takes")]
    Memory {
        /// The map.
        map: &'static str,
        /// What went wrong.
        source: io::Error,
    },
}

/// How large the maps are made.
#[derive(Clone, Copy, Debug)]
pub struct Capacities {
    /// Slots of all tables together.
    pub slots: u32,
    /// Backends of all services together.
    pub backends: u32,
    /// Remembered flows that showed more than a SYN: half of them from their SYN on, half from mid-flow on.
    pub flows: u32,
    /// Remembered flows that showed a SYN only.
    pub half_open: u32,
    /// Flows that are mapped, each in both directions.
    pub mappings: u32,
}

impl Capacities {
    /// The maps that are made as large as this asks for, and their entries; an object need not have all of them.
    pub fn of_maps(self) -> Vec<(&'static str, u32)> {
        let Self { slots, backends, mappings, .. } = self;
        let others = [
            (name::SLOTS, slots),
            (name::BACKENDS, backends),
            (name::MEMBERS, backends),
            (name::TUNNELS, backends),
            (name::SOURCES, backends),
            (name::MAPPINGS, 2 * mappings),
            (name::TRAFFIC, backends),
            (name::REPLIES, backends),
            (name::SERVER_IDS, 2 * backends),
        ];
        [&others[..], &flows::capacities(self)].concat()
    }
}

type Bytes<const K: usize, const V: usize> = HashMap<MapData, [u8; K], [u8; V]>;
type Tree<const K: usize, const V: usize> = LpmTrie<MapData, [u8; K], [u8; V]>;

const ENDPOINT: usize = size_of::<Endpoint>();

/// The loaded data path. Dropping it detaches it, unless it is pinned.
pub struct Bpf {
    ebpf: Ebpf,
    frames: Frames,
    /// The program that was there before, and is the same.
    taken_over: Option<Xdp>,
    /// Name and id of the program behind this one.
    next_program: Option<String>,
    slots: Words,
    known: Words,
    generation: Words,
    members: Words,
    daemon: Words,
    services: Bytes<ENDPOINT, { size_of::<Service>() }>,
    ranges: Tree<{ size_of::<RangeKey>() }, { size_of::<Service>() }>,
    replies: Bytes<ENDPOINT, { size_of::<Reply>() }>,
    reply_ranges: Tree<{ size_of::<ReplyKey>() }, { size_of::<Reply>() }>,
    addresses: Bytes<{ size_of::<Address>() }, { size_of::<Vip>() }>,
    prefixes: Tree<{ size_of::<PrefixKey>() }, { size_of::<Vip>() }>,
    interfaces: HashMap<MapData, u32, [u8; size_of::<Interface>()]>,
    server_ids: HashMap<MapData, [u8; size_of::<ServerId>()], u32>,
    vlans: HashMap<MapData, [u8; size_of::<VlanKey>()], u32>,
    direct: Tree<{ size_of::<DirectKey>() }, { size_of::<u32>() }>,
    routes: Array<MapData, [u8; size_of::<Routes>()]>,
    routes_in_use: Words,
    backends: Array<MapData, [u8; size_of::<Backend>()]>,
    tunnels: Array<MapData, [u8; size_of::<Tunnel>()]>,
    sources: Array<MapData, [u8; size_of::<Sources>()]>,
    traffic: PerCpuArray<MapData, [u8; size_of::<Traffic>()]>,
    reasons: PerCpuArray<MapData, [u8; size_of::<Count>()]>,
    flows: FlowMaps,
}

impl Bpf {
    /// Loads program and maps into the kernel, attached nowhere.
    pub fn load(frames: Frames, capacities: Capacities, seed: u64) -> Result<Self, Error> {
        Ok(Self { frames, ..Self::load_object(&frames.object(), capacities, seed)? })
    }

    /// Loads another object with the same program and maps, except that it remembers flows in some other of the maps
    /// of [`name`]. Its bytes begin at a multiple of eight, as `include_bytes_aligned` takes care of.
    pub fn load_object(object: &[u8], capacities: Capacities, seed: u64) -> Result<Self, Error> {
        let mut ebpf = load_maps(object, capacities, seed, &[])?;
        load_program(&mut ebpf, name::PROGRAM)?;
        Self::with_maps(ebpf, capacities)
    }

    /// Goes on with the maps that are pinned, if they are whole, and with the program if it is the same. New maps are
    /// pinned at once, a new program by [`Bpf::pin_program`].
    pub fn load_pinned(
        frames: Frames,
        capacities: Capacities,
        seed: u64,
        pins: &Pins,
    ) -> Result<Self, Error> {
        let object = frames.object();
        let parsed = Object::parse(&object).map_err(|error| Error::Load(Box::new(error.into())))?;
        let kept = pins.kept(&parsed, capacities)?;
        let taken_over = pins.take_program(frames, seed);
        // What runs behind a program is that program's, not the data path's.
        let with_program = taken_over.is_some().then_some(name::NEXT);
        let paths: Vec<_> =
            kept.iter().copied().chain(with_program).map(|map| (map, pins.map(map))).collect();
        let mut ebpf = load_maps(&object, capacities, seed, &paths)?;
        for map in name::KEPT.into_iter().filter(|map| !kept.contains(map)) {
            pins.pin(&pins.map(map), |path| ebpf.map(map).expect("the object has this map").pin(path))?;
        }
        if taken_over.is_none() {
            load_program(&mut ebpf, name::PROGRAM)?;
        }
        let bpf = Self { frames, taken_over, ..Self::with_maps(ebpf, capacities)? };
        bpf.daemon.store(daemon_word::SEED, [seed]);
        bpf.daemon.store(daemon_word::PROCESS, [std::process::id().into()]);
        Ok(bpf)
    }

    /// Pins the program in the place of the one before, if it is another.
    pub fn pin_program(&mut self, pins: &Pins, seed: u64) -> Result<(), Error> {
        if self.taken_over.is_none() {
            let next = self.ebpf.map(name::NEXT).expect("the object has this map");
            pins.pin(&pins.map(name::NEXT), |path| next.pin(path))?;
            let program = self.program();
            pins.pin(&pins.program(), |path| program.pin(path))?;
            self.daemon.store(daemon_word::OBJECT, [self.frames.made_of(seed)]);
        }
        Ok(())
    }

    /// Stores the words of the set of known addresses that are others: a daemon that was killed may have left bits of
    /// addresses behind that it was about to write.
    pub fn correct_known(&mut self, known: &Known) {
        for (word, bits) in known.words() {
            if self.known.load(word) != bits {
                self.known.store(word, [bits]);
            }
        }
    }

    /// Tells whoever looks that the daemon goes on.
    pub fn beat(&self, now: Duration) {
        let nanoseconds = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.daemon.store(daemon_word::HEARTBEAT, [nanoseconds]);
    }

    fn with_maps(mut ebpf: Ebpf, capacities: Capacities) -> Result<Self, Error> {
        Ok(Self {
            slots: Words::take(&mut ebpf, name::SLOTS, capacities.slots)?,
            known: Words::take(&mut ebpf, name::KNOWN, KNOWN_WORDS)?,
            generation: Words::take(&mut ebpf, name::GENERATION, 1)?,
            members: Words::take(&mut ebpf, name::MEMBERS, capacities.backends)?,
            daemon: Words::take(&mut ebpf, name::DAEMON, daemon_word::COUNT)?,
            services: take(&mut ebpf, name::SERVICES)?,
            ranges: take(&mut ebpf, name::RANGES)?,
            replies: take(&mut ebpf, name::REPLIES)?,
            reply_ranges: take(&mut ebpf, name::REPLY_RANGES)?,
            addresses: take(&mut ebpf, name::ADDRESSES)?,
            prefixes: take(&mut ebpf, name::PREFIXES)?,
            interfaces: take(&mut ebpf, name::INTERFACES)?,
            server_ids: take(&mut ebpf, name::SERVER_IDS)?,
            vlans: take(&mut ebpf, name::VLANS)?,
            direct: take(&mut ebpf, name::DIRECT)?,
            routes: take(&mut ebpf, name::ROUTES)?,
            routes_in_use: Words::take(&mut ebpf, name::ROUTES_IN_USE, 1)?,
            backends: take(&mut ebpf, name::BACKENDS)?,
            tunnels: take(&mut ebpf, name::TUNNELS)?,
            sources: take(&mut ebpf, name::SOURCES)?,
            traffic: take(&mut ebpf, name::TRAFFIC)?,
            reasons: take(&mut ebpf, name::REASONS)?,
            flows: FlowMaps::take(&mut ebpf)?,
            next_program: None,
            ebpf,
            frames: Frames::All,
            taken_over: None,
        })
    }

    /// The program.
    pub fn program(&mut self) -> &mut Xdp {
        self.taken_over.as_mut().unwrap_or_else(|| program(&mut self.ebpf, name::PROGRAM))
    }

    /// Name and id of the program that gets the packets that are passed, for people.
    pub fn next_program(&self) -> Option<&str> {
        self.next_program.as_deref()
    }

    /// The frames that the program gets.
    pub fn frames(&self) -> Frames {
        self.frames
    }

    /// Passes on what the data path logs, which it does in debug builds only.
    pub fn follow_log(&mut self) -> Option<impl Future<Output = ()> + use<>> {
        let logger = EbpfLogger::init(&mut self.ebpf).ok()?;
        // SAFETY: the logger owns its file descriptor and keeps the same one for as long as it lives.
        let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }.ok()?;
        Some(async move {
            while let Ok(mut records) = logger.readable_mut().await {
                records.get_inner_mut().flush();
                records.clear_ready();
            }
        })
    }

    /// Does one step of a plan.
    pub fn apply(&mut self, step: &Step) -> Result<(), Error> {
        let done = self.write(step);
        // From now on no packet uses a copy of what was there before.
        if step.is_copied() {
            self.generation.increment(0);
        }
        done
    }

    fn write(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::PutInterface(index, interface) => {
                put(&mut self.interfaces, *index, transmute!(*interface), name::INTERFACES)
            }
            Step::PutVlan(vlan, index) => put(&mut self.vlans, transmute!(*vlan), *index, name::VLANS),
            Step::SetRoutes(routes) => self.set_routes(transmute!(**routes)),
            Step::PutMember(id, member) => {
                self.members.store(*id, [member.to_word()]);
                Ok(())
            }
            Step::PutBackend(id, backend) => self.set_backend(*id, transmute!(*backend)),
            Step::PutTunnel(id, tunnel) => self.set_tunnel(*id, transmute!(*tunnel)),
            Step::PutSources(id, sources) => self.set_sources(*id, transmute!(*sources)),
            Step::PutServerId(server, id) => {
                put(&mut self.server_ids, transmute!(*server), *id, name::SERVER_IDS)
            }
            Step::PutDirect((key, bits), value) => put_prefix(
                &mut self.direct,
                Key::new(*bits, transmute!(*key)),
                transmute!(*value),
                name::DIRECT,
            ),
            Step::PutReply(end, reply) => {
                put(&mut self.replies, transmute!(*end), transmute!(*reply), name::REPLIES)
            }
            Step::PutReplyRange((key, bits), reply) => {
                let (key, reply) = (Key::new(*bits, transmute!(*key)), transmute!(*reply));
                put_prefix(&mut self.reply_ranges, key, reply, name::REPLY_RANGES)
            }
            Step::PutAddress(address, vip) => {
                put(&mut self.addresses, transmute!(*address), transmute!(*vip), name::ADDRESSES)
            }
            Step::PutPrefix((address, bits), vip) => {
                let (key, vip) = (Key::new(*bits, transmute!(*address)), transmute!(*vip));
                put_prefix(&mut self.prefixes, key, vip, name::PREFIXES)
            }
            Step::StoreSlots { table, place, slots } => {
                self.slots.store(table + place, slots.iter().map(|slot| slot.to_word()));
                Ok(())
            }
            Step::StoreKnown(word, bits) => {
                self.known.store(*word, [*bits]);
                Ok(())
            }
            Step::PutService(end, service) => {
                put(&mut self.services, transmute!(*end), transmute!(*service), name::SERVICES)
            }
            Step::PutRange((key, bits), service) => {
                let (key, service) = (Key::new(*bits, transmute!(*key)), transmute!(*service));
                put_prefix(&mut self.ranges, key, service, name::RANGES)
            }
            Step::RemoveService(end) => remove(&mut self.services, transmute!(*end), name::SERVICES),
            // Slots that no service points to are free memory.
            Step::RemoveTable(_) => Ok(()),
            Step::RemoveAddress(address) => {
                remove(&mut self.addresses, transmute!(*address), name::ADDRESSES)
            }
            Step::RemoveReply(end) => remove(&mut self.replies, transmute!(*end), name::REPLIES),
            Step::RemoveRange((key, bits)) => {
                remove_prefix(&mut self.ranges, Key::new(*bits, transmute!(*key)), name::RANGES)
            }
            Step::RemoveReplyRange((key, bits)) => {
                remove_prefix(&mut self.reply_ranges, Key::new(*bits, transmute!(*key)), name::REPLY_RANGES)
            }
            Step::RemovePrefix((address, bits)) => {
                remove_prefix(&mut self.prefixes, Key::new(*bits, transmute!(*address)), name::PREFIXES)
            }
            Step::RemoveDirect((key, bits)) => {
                remove_prefix(&mut self.direct, Key::new(*bits, transmute!(*key)), name::DIRECT)
            }
            Step::RemoveServerId(server) => {
                remove(&mut self.server_ids, transmute!(*server), name::SERVER_IDS)
            }
            Step::RemoveTunnel(id) => self.set_tunnel(*id, [0; size_of::<Tunnel>()]),
            Step::RemoveSources(id) => self.set_sources(*id, [0; size_of::<Sources>()]),
            Step::RemoveBackend(id) => self.clear_backend(*id),
            Step::RemoveMember(id) => {
                self.members.store(*id, [0]);
                Ok(())
            }
            Step::RemoveVlan(vlan) => remove(&mut self.vlans, transmute!(*vlan), name::VLANS),
            Step::RemoveInterface(index) => remove(&mut self.interfaces, *index, name::INTERFACES),
        }
    }

    fn set_backend(&mut self, id: u32, backend: [u8; size_of::<Backend>()]) -> Result<(), Error> {
        self.backends.set(id, backend, 0).map_err(failed(name::BACKENDS, "write"))
    }

    fn set_tunnel(&mut self, id: u32, tunnel: [u8; size_of::<Tunnel>()]) -> Result<(), Error> {
        self.tunnels.set(id, tunnel, 0).map_err(failed(name::TUNNELS, "write"))
    }

    fn set_sources(&mut self, id: u32, sources: [u8; size_of::<Sources>()]) -> Result<(), Error> {
        self.sources.set(id, sources, 0).map_err(failed(name::SOURCES, "write"))
    }

    /// Writes an element that no packet reads, and then has it read instead of the last.
    fn set_routes(&mut self, routes: [u8; size_of::<Routes>()]) -> Result<(), Error> {
        let next = (self.routes_in_use.load(0) as u32 + 1) % capacity::ROUTES;
        self.routes.set(next, routes, 0).map_err(failed(name::ROUTES, "write"))?;
        self.routes_in_use.store(0, [next.into()]);
        Ok(())
    }

    /// Its id is given again, and then its counters belong to another backend.
    fn clear_backend(&mut self, id: u32) -> Result<(), Error> {
        self.set_backend(id, [0; size_of::<Backend>()])?;
        let cpus = self.traffic.get(&id, 0).map_err(failed(name::TRAFFIC, "read"))?.len();
        let zeros = PerCpuValues::try_from(vec![[0; size_of::<Traffic>()]; cpus])
            .expect("there are as many CPUs as before");
        self.traffic.set(id, zeros, 0).map_err(failed(name::TRAFFIC, "write"))
    }

    /// What a backend was sent and sent back since it got its id.
    pub fn traffic(&self, id: u32) -> Result<Traffic, Error> {
        let values = self.traffic.get(&id, 0).map_err(failed(name::TRAFFIC, "read"))?;
        let mut total = Traffic::default();
        for traffic in values.iter().map(read::<Traffic>) {
            add(&mut total.forward, traffic.forward);
            add(&mut total.reply, traffic.reply);
            total.repicked += traffic.repicked;
        }
        Ok(total)
    }

    /// How often each reason occurred.
    pub fn reasons(&self) -> Result<Vec<(Reason, Count)>, Error> {
        let total = |reason: &Reason| {
            let values = self.reasons.get(&(*reason as u32), 0).map_err(failed(name::REASONS, "read"))?;
            let mut total = Count::default();
            values.iter().map(read::<Count>).for_each(|count| add(&mut total, count));
            Ok((*reason, total))
        };
        Reason::ALL.iter().map(total).collect()
    }

    /// Bytes of memory that the kernel has reserved for remembered flows.
    pub fn flows_memory(&self) -> Result<u64, Error> {
        self.flows.memory()
    }

    /// The maps of remembered flows, to be swept on another thread.
    pub fn flow_maps(&self) -> Result<FlowMaps, Error> {
        self.flows.share()
    }
}

impl Attach for Bpf {
    fn xdp(&mut self) -> &mut Xdp {
        self.program()
    }
}

impl Store for Bpf {
    type Error = Error;

    fn retain(&mut self, keep: impl FnMut(&RememberedFlow) -> bool) -> Result<bool, Error> {
        self.flows.retain(keep)
    }

    fn retain_mapped(&mut self, keep: impl FnMut(&MappedFlow) -> bool) -> Result<bool, Error> {
        self.flows.retain_mapped(keep)
    }
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, map: &'static str) -> Result<T, Error> {
    let taken = ebpf.take_map(map).expect("the object has this map");
    T::try_from(taken).map_err(failed(map, "use"))
}

fn failed(map: &'static str, what: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { map, what, source: Box::new(source) }
}

fn put<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: K,
    value: V,
    name: &'static str,
) -> Result<(), Error> {
    map.insert(key, value, 0).map_err(failed(name, "write"))
}

fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: K,
    name: &'static str,
) -> Result<(), Error> {
    unless_missing(map.remove(&key)).map_err(failed(name, "remove from"))
}

fn put_prefix<const K: usize, const V: usize>(
    map: &mut Tree<K, V>,
    key: Key<[u8; K]>,
    value: [u8; V],
    name: &'static str,
) -> Result<(), Error> {
    map.insert(&key, value, 0).map_err(failed(name, "write"))
}

fn remove_prefix<const K: usize, const V: usize>(
    map: &mut Tree<K, V>,
    key: Key<[u8; K]>,
    name: &'static str,
) -> Result<(), Error> {
    unless_missing(map.remove(&key)).map_err(failed(name, "remove from"))
}

/// What is to be removed may be gone already.
fn unless_missing(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read<T: FromBytes + IntoBytes + Immutable>(bytes: &(impl AsRef<[u8]> + ?Sized)) -> T {
    T::read_from_bytes(bytes.as_ref()).expect("the map's value has the size of its type")
}

fn add(total: &mut Count, count: Count) {
    total.packets += count.packets;
    total.bytes += count.bytes;
}
