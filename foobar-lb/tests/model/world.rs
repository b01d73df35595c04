//! What a story happens to: the control plane, the data path that it feeds step by step, and a clock for both.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    time::{Duration, Instant},
};

use foobar_lb::{
    health::Target,
    image::Image,
    model::{self, Health, Remember},
    plan::{self, Step},
    state::{Origin, Room, Service, State},
    sweep::{Broom, Found, GRACE, RememberedFlow, Store},
    twin::Twin,
};
use foobar_lb_ebpf::{
    flow::{hash, hash_key, reduce},
    layout::{Interface, NO_BACKEND, SETTLED, Slot, TRACES},
    reason::Reason,
};

use super::{
    frames,
    site::{self, INTERFACE, SEED, SLOTS, number, server},
    story::{Backends, CLIENTS, Change, Packet, Setting, name},
};

/// Ids are scarce, so that they are given again soon.
const ROOM: Room = Room { slots: SLOTS, backends: 5 };
/// What there is room for where that is little: half-open flows, and others.
const CRAMPED: (u32, u32) = (3, 12);
/// The data path's clock at the start, longer after boot than any flow is silent.
const BOOT: Duration = Duration::from_secs(100_000);

pub struct World {
    pub state: State,
    /// Since the story began.
    pub elapsed: Duration,
    twin: Twin,
    broom: Option<Broom>,
    found: Option<Found>,
    /// What the maps hold.
    image: Image,
    start: Instant,
    cramped: bool,
    places: Vec<u32>,
    /// What each slot was before, and when it changed.
    before: BTreeMap<u32, (Slot, Duration)>,
    /// Since when each moving slot moves.
    moving: BTreeMap<u32, Duration>,
    /// Whose each id last was.
    ids: BTreeMap<u32, SocketAddr>,
}

/// What became of a packet, and what it met.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// The backend it went to.
    pub to: Option<u8>,
    /// Its place in the table.
    pub place: u32,
    /// Its slot, as it read it.
    pub slot: SlotState,
    /// When it read it: just now, unless it is `late`.
    pub read: Duration,
    pub late: bool,
    pub now: Duration,
    /// There was no room to remember its flow.
    pub refused: bool,
    /// Its flow was remembered before; known only where there is little room.
    pub known: Option<bool>,
}

/// A slot in terms of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState {
    pub owner: Option<u8>,
    pub past: Past,
}

/// What a slot says of its past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    Settled,
    Moving(u8),
    Traces,
}

/// Which backends may get which flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    pub eligible: Backends,
    pub serving: Backends,
    /// Unknown flows may stay on them.
    pub holding: Backends,
    /// Their drain time is over.
    pub over: Backends,
    /// Their health checks fail.
    pub down: Backends,
    /// Known of at all, lingering ones included.
    pub present: Backends,
}

impl World {
    /// All backends of the setting are up, and nothing has been sent yet.
    pub fn new(setting: &Setting) -> Self {
        let state = State::new(vec![site::configure(setting)], SEED);
        let (half_open, flows) = if setting.cramped { CRAMPED } else { (u32::MAX, u32::MAX) };
        let mut world = Self {
            state,
            elapsed: Duration::ZERO,
            twin: Twin::with_capacities(Image::default(), SEED, flows, half_open, 0),
            broom: None,
            found: None,
            image: Image::default(),
            start: Instant::now(),
            cramped: setting.cramped,
            places: (0..CLIENTS).map(|client| site::place(setting, client)).collect(),
            before: BTreeMap::new(),
            moving: BTreeMap::new(),
            ids: BTreeMap::new(),
        };
        world.state.attached.insert(INTERFACE, Interface::new(frames::BALANCER_MAC));
        world.state.observe_network(site::view());
        world.change(&Change::Health(setting.backends, Health::Up));
        for step in world.plan() {
            world.apply(&step);
        }
        world.before.clear();
        world.pass(Duration::ZERO);
        world
    }

    pub fn service(&self) -> &Service {
        &self.state.services[0]
    }

    pub fn now(&self) -> Instant {
        self.start + self.elapsed
    }

    pub fn standings(&self) -> Standings {
        let mut standings = Standings::default();
        for (backend, standing) in self.service().backends.iter().zip(self.service().standings()) {
            let this = Backends::from_iter([number(backend.config.address)]);
            let add = |set: &mut Backends, says: bool| {
                if says {
                    *set = set.with(this);
                }
            };
            add(&mut standings.eligible, standing.eligible);
            add(&mut standings.serving, standing.serves);
            add(&mut standings.holding, standing.holds);
            add(&mut standings.over, backend.drain.is_some_and(|drain| drain.over));
            add(&mut standings.down, matches!(backend.health(), Health::Down(_)));
            add(&mut standings.present, true);
        }
        standings
    }

    /// The slot of a client's flow as the maps have it.
    pub fn slot(&self, client: u8) -> (u32, SlotState) {
        let place = self.places[usize::from(client)];
        (place, self.slot_state(self.stored(place)))
    }

    /// When a slot last changed.
    pub fn changed(&self, place: u32) -> Option<Duration> {
        self.before.get(&place).map(|(_, when)| *when)
    }

    /// The owner of every slot.
    pub fn owners(&self) -> Vec<Option<u8>> {
        (0..SLOTS).map(|place| self.slot_state(self.stored(place)).owner).collect()
    }

    /// Tells the control plane of a change. What it refuses does not happen.
    pub fn change(&mut self, change: &Change) {
        match change {
            Change::Configure { add, remove } => self.configure(*add, *remove),
            Change::Remember(remember) => {
                let config = model::Service { remember: *remember, ..self.service().config.clone() };
                self.state.reconfigure(vec![config], ROOM).expect("it asks for no more room");
            }
            Change::Say(backends, word) => {
                let configured: Vec<&str> =
                    self.service().config.backends.iter().map(|backend| backend.name.as_str()).collect();
                let names: Vec<String> =
                    backends.iter().map(name).filter(|name| configured.contains(&name.as_str())).collect();
                self.state
                    .say("www", &names, |said| word.on(said, &Origin::default()))
                    .expect("they are configured");
            }
            Change::Health(backends, health) => {
                let key = self.service().config.key;
                for backend in backends.iter() {
                    let target = Target { service: key, backend: server(backend) };
                    self.state.observe_health(site::report(target, *health, self.now()));
                }
            }
        }
    }

    fn configure(&mut self, add: Backends, remove: Backends) {
        let mut config = self.service().config.clone();
        config.backends.retain(|backend| !remove.has(number(backend.address)));
        let present: Backends = config.backends.iter().map(|backend| number(backend.address)).collect();
        config.backends.extend(add.without(present).iter().map(site::backend));
        if !config.backends.is_empty() {
            // Refused where all ids are taken: then nothing changes.
            self.state.reconfigure(vec![config], ROOM).ok();
        }
    }

    /// What is to be written to the maps now.
    pub fn plan(&mut self) -> Vec<Step> {
        let wanted = self.state.render(self.now());
        plan::diff(&self.image, &wanted)
    }

    pub fn apply(&mut self, step: &Step) {
        if let Step::StoreSlots { place: first, slots, .. } = step {
            for place in (*first..).take(slots.len()) {
                self.before.insert(place, (self.stored(place), self.elapsed));
            }
        }
        self.twin.apply(step);
        self.image.apply(step);
        if let Step::StoreSlots { place: first, slots, .. } = step {
            for place in (*first..).take(slots.len()) {
                match self.slot_state(self.stored(place)) {
                    SlotState { owner, past: Past::Moving(from) } if owner != Some(from) => {
                        self.moving.entry(place).or_insert(self.elapsed);
                    }
                    _ => drop(self.moving.remove(&place)),
                }
            }
        }
    }

    /// Since when the slot moves that has done so for the longest time.
    pub fn moving_since(&self) -> Option<Duration> {
        self.moving.values().min().copied()
    }

    /// Lets time pass for both clocks.
    pub fn pass(&mut self, time: Duration) {
        self.elapsed += time;
        self.twin.now = u64::try_from((BOOT + self.elapsed).as_nanos()).expect("stories are short");
    }

    /// Sends a packet through the data path. A late one has read its slot before that changed.
    pub fn send(&mut self, packet: Packet, late: bool) -> Sight {
        let place = self.places[usize::from(packet.client)];
        let stored = self.stored(place);
        let (slot, read) = if late { self.before[&place] } else { (stored, self.elapsed) };
        let known = self.cramped.then(|| self.remembers(packet.client));
        let refused = self.cramped.then(|| self.refused());
        self.twin.apply(&store(place, slot));
        let mut frame =
            frames::frame(self.service().config.key.protocol, packet.client, packet.kind).to_vec();
        self.twin.run(&mut frame, INTERFACE);
        self.twin.apply(&store(place, stored));
        let refused = refused.is_some_and(|before| self.refused() > before);
        let (to, slot) = (frames::destination(&frame), self.slot_state(slot));
        Sight { to, place, slot, read, late, now: self.elapsed, refused, known }
    }

    /// A sweep begins, unless one is under way. Whether it does.
    pub fn begin_sweep(&mut self) -> bool {
        let begins = self.broom.is_none() && self.found.is_none();
        if begins {
            self.broom = Some(Broom::new(&self.state, BOOT + self.elapsed, self.now()));
        }
        begins
    }

    /// By client, who owns its slot for good: nothing need be remembered on that backend.
    pub fn homes(&self) -> Vec<Option<u8>> {
        let traced: BTreeMap<u32, u32> = match self.service().config.remember {
            Remember::Needed => self.service().table.traced(GRACE, self.now()).collect(),
            Remember::All => BTreeMap::new(),
        };
        let owner = |place: &u32| self.slot_state(Slot::settled(*traced.get(place)?)).owner;
        self.places.iter().map(owner).collect()
    }

    /// The scan of a sweep that has begun; one that is disturbed misses everything and says that it may have. Whether
    /// there is any.
    pub fn scan(&mut self, disturbed: bool) -> bool {
        let Some(broom) = self.broom.take() else { return false };
        let found = match disturbed {
            true => broom.sweep(&mut Disturbed),
            false => broom.sweep(&mut self.twin),
        };
        self.found = Some(found.expect("nothing can go wrong"));
        true
    }

    /// What was found is taken in.
    pub fn end_sweep(&mut self) {
        if let Some(found) = self.found.take() {
            self.state.settle(&found);
        }
    }

    /// All remembered flows, and the slots that they belong to.
    pub fn remembered(&mut self) -> Vec<(RememberedFlow, SlotState)> {
        let mut flows = Vec::new();
        self.twin
            .retain(|flow| {
                flows.push(*flow);
                true
            })
            .expect("nothing can go wrong");
        let with_slot = |flow: RememberedFlow| {
            let place = reduce(hash(&hash_key(SEED), &flow.flow), SLOTS);
            (flow, self.slot_state(self.stored(place)))
        };
        flows.into_iter().map(with_slot).collect()
    }

    /// Whether no id was given to another backend while a slot or a remembered flow names it.
    pub fn check_ids(&mut self) -> Result<(), String> {
        let given: BTreeMap<u32, SocketAddr> =
            self.service().backends.iter().map(|backend| (backend.id, backend.config.address)).collect();
        for (id, address) in given {
            let last = self.ids.insert(id, address).unwrap_or(address);
            if last == address {
                continue;
            }
            if (0..SLOTS).map(|place| self.stored(place)).any(|slot| slot.owner == id || slot.previous == id)
            {
                return Err(format!("{address} was given the id of {last}, which a slot names"));
            }
            if self.remembered().iter().any(|(flow, _)| flow.remembered.backend == id) {
                return Err(format!("{address} was given the id of {last}, which a remembered flow names"));
            }
        }
        Ok(())
    }

    fn remembers(&mut self, client: u8) -> bool {
        let port = frames::client_port(client).to_be_bytes();
        self.remembered().iter().any(|(flow, _)| flow.flow.source.port == port)
    }

    fn refused(&self) -> u64 {
        let (_, count) = self.twin.reasons()[Reason::NotRemembered as usize];
        count.packets
    }

    fn stored(&self, place: u32) -> Slot {
        let nobody = Slot::settled(NO_BACKEND);
        self.image.tables.get(&0).map_or(nobody, |table| table[place as usize])
    }

    fn slot_state(&self, slot: Slot) -> SlotState {
        let backend = |id: u32| {
            let address = self.ids.get(&id).copied();
            address.or_else(|| {
                self.service().backends.iter().find(|one| one.id == id).map(|one| one.config.address)
            })
        };
        let past = match slot.previous {
            SETTLED => Past::Settled,
            TRACES => Past::Traces,
            id => Past::Moving(number(backend(id).expect("slots name backends that there are"))),
        };
        SlotState { owner: backend(slot.owner).map(number), past }
    }
}

/// A scan that was disturbed from the first flow on.
struct Disturbed;

impl Store for Disturbed {
    type Error = Infallible;

    fn retain(&mut self, _: impl FnMut(&RememberedFlow) -> bool) -> Result<bool, Infallible> {
        Ok(false)
    }
}

fn store(place: u32, slot: Slot) -> Step {
    Step::StoreSlots { table: 0, place, slots: vec![slot] }
}
