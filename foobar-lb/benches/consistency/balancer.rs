//! A balancer: the data path in the kernel and the control plane that feeds it, both as they are, but for what is
//! remembered.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use aya::{TestRun, TestRunOptions, include_bytes_aligned};
use foobar_lb::{
    bpf::{Bpf, Capacities, Frames},
    config,
    health::{Report, Target},
    image::Image,
    model::{self, Health, Remember},
    neighbour::{Link, NextHop, View},
    plan,
    state::{Origin, Room, State},
    sweep::Broom,
};
use foobar_lb_ebpf::{
    layout::{Interface, Slot},
    reason::Reason,
};

use crate::{
    frames::{self, BACKEND_MAC, BALANCER_MAC, Segment, VIP},
    history::{BACKENDS, Change, What, name},
    simulated::{Memory, Time},
};

/// The loopback: test runs arrive there, and backends are sent to by the same way.
const INTERFACE: u32 = 1;
const MTU: u32 = 1500;
const XDP_TX: u32 = 3;
const SERVICE: &str = "www";

/// What a balancer remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// What would break: foobar-lb as it is.
    Needed,
    /// Nothing: all slots are shown as settled.
    Nothing,
    /// Every flow, in one LRU. What is not in it goes where the table says.
    All,
}

impl Tracking {
    pub const ALL: [Self; 3] = [Self::Needed, Self::Nothing, Self::All];

    pub fn name(self) -> &'static str {
        match self {
            Self::Needed => "foobar-lb",
            Self::Nothing => "plain Maglev",
            Self::All => "full tracking",
        }
    }

    fn load(self, capacities: Capacities, seed: u64) -> Result<Bpf> {
        let every_flow = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-full-tracking"));
        Ok(match self {
            Self::Needed | Self::Nothing => Bpf::load(Frames::All, capacities, seed)?,
            Self::All => Bpf::load_object(every_flow, capacities, seed)?,
        })
    }

    /// Shows the data path what this balancer knows of a slot's past.
    fn adapt(self, image: &mut Image) {
        let adapt = |slot: &Slot| match self {
            Self::Needed => *slot,
            Self::Nothing => Slot::settled(slot.owner),
            Self::All => Slot { previous: slot.owner, ..*slot },
        };
        for table in image.tables.values_mut() {
            *table = table.iter().map(adapt).collect();
        }
    }
}

/// A balancer with one service.
pub struct Balancer {
    pub time: Time,
    tracking: Tracking,
    bpf: Bpf,
    state: State,
    /// What the maps hold.
    image: Image,
    room: Room,
}

/// What a sweep saw.
pub struct Swept {
    /// Entries that there were, by map.
    pub before: BTreeMap<&'static str, u64>,
    /// Entries that are left.
    pub after: u64,
}

impl Balancer {
    /// The first `backends` are up.
    pub fn new(tracking: Tracking, capacities: Capacities, seed: u64, backends: u8) -> Result<Self> {
        let mut state = State::new(vec![configure(tracking, backends)?], seed);
        state.attached.insert(INTERFACE, Interface::new(BALANCER_MAC));
        state.observe_network(view());
        let Capacities { slots, backends: ids, .. } = capacities;
        let mut balancer = Self {
            time: Time::new(),
            tracking,
            bpf: tracking.load(capacities, seed)?,
            state,
            image: Image::default(),
            room: Room { slots, backends: ids },
        };
        balancer.change(&Change { backends: (0..backends).collect(), what: What::Health(Health::Up) })?;
        Ok(balancer)
    }

    /// Sends a client's packet. Returns the backend that it went to.
    pub fn send(&mut self, client: u32, port: u16, segment: Segment) -> Result<u8> {
        let frame = frames::frame(client, port, segment);
        let mut sent = frame;
        let options =
            TestRunOptions { data_in: Some(&frame), data_out: Some(&mut sent), ..TestRunOptions::default() };
        let verdict = self.bpf.program().test_run(options)?.return_value;
        ensure!(verdict == XDP_TX, "the verdict on a packet is {verdict}, not {XDP_TX}");
        frames::destination(&sent)
    }

    /// Something happens to backends.
    pub fn change(&mut self, Change { backends, what }: &Change) -> Result<()> {
        let mut service = self.state.services[0].config.clone();
        match what {
            What::Add => {
                service.backends.extend(backends.iter().map(|backend| configure_backend(*backend)));
                self.state.reconfigure(vec![service], self.room)?;
                self.observe_health(backends, Health::Up);
            }
            What::Remove => {
                service.backends.retain(|backend| !backends.iter().any(|gone| name(*gone) == backend.name));
                self.state.reconfigure(vec![service], self.room)?;
            }
            What::Say(word) => {
                let names: Vec<String> = backends.iter().map(|backend| name(*backend)).collect();
                self.state.say(SERVICE, &names, |said| word.on(said, &Origin::default()))?;
            }
            What::Health(health) => self.observe_health(backends, *health),
        }
        self.reconcile()
    }

    /// Brings the maps up to date.
    pub fn reconcile(&mut self) -> Result<()> {
        let mut wanted = self.state.render(self.time.now());
        self.tracking.adapt(&mut wanted);
        for step in plan::diff(&self.image, &wanted) {
            self.bpf.apply(&step)?;
        }
        self.image = wanted;
        Ok(())
    }

    /// Looks through what is remembered, as the daemon does.
    pub fn sweep(&mut self) -> Result<Swept> {
        let Self { bpf, time, state, .. } = self;
        let mut memory = Memory { bpf, time, shown: BTreeMap::new(), kept: 0 };
        let found = Broom::new(state, time.clock(), time.now()).sweep(&mut memory)?;
        state.settle(&found);
        let Memory { shown, kept, .. } = memory;
        self.reconcile()?;
        Ok(Swept { before: shown, after: kept })
    }

    /// How many slots are not settled.
    pub fn unsettled(&self) -> usize {
        self.state.services[0].table.unsettled()
    }

    /// How often there was no room to remember a flow.
    pub fn refused(&self) -> Result<u64> {
        let reasons = self.bpf.reasons()?;
        let refused = reasons.iter().find(|(reason, _)| *reason == Reason::NotRemembered);
        Ok(refused.context("the reason is not counted")?.1.packets)
    }

    /// Bytes that the kernel has reserved for remembered flows.
    pub fn memory(&self) -> Result<u64> {
        Ok(self.bpf.flows_memory()?)
    }

    fn observe_health(&mut self, backends: &[u8], health: Health) {
        let (service, since) = (self.state.services[0].config.key, self.time.now());
        for backend in backends {
            let target = Target { service, backend: frames::backend(*backend) };
            self.state.observe_health(Report {
                target,
                health,
                transition: None,
                since,
                transitions: 0,
                inconclusive: 0,
                reason: String::new(),
                latency: None,
            });
        }
    }
}

/// A service with all defaults, but that flows may stay on draining backends for as long as they last.
fn configure(tracking: Tracking, backends: u8) -> Result<model::Service> {
    let text = format!(
        "[[service]]\nname = \"{SERVICE}\"\naddress = \"{VIP}\"\ndrain_time = \"0s\"\nbackend = [\
         {{ name = \"{}\", address = \"{}\" }}]",
        name(0),
        frames::backend(0)
    );
    let mut service = config::parse(&text, "consistency.toml")?.services.remove(0);
    service.backends = (0..backends).map(configure_backend).collect();
    if tracking == Tracking::All {
        service.remember = Remember::All;
    }
    Ok(service)
}

fn configure_backend(number: u8) -> model::Backend {
    model::Backend { name: name(number), address: frames::backend(number), weight: 1, quic_id: None }
}

/// All backends that there may ever be are neighbours.
fn view() -> View {
    let next_hop = NextHop {
        interface: INTERFACE,
        source: BALANCER_MAC,
        destination: BACKEND_MAC,
        mtu: MTU,
        on_link: true,
        local: None,
    };
    let link = Link { name: "lo".to_owned(), mac: Some(BALANCER_MAC), up: true, mtu: MTU, ..Link::default() };
    View {
        next_hops: (0..BACKENDS).map(|number| (frames::backend(number).ip(), next_hop)).collect(),
        links: [(INTERFACE, link)].into(),
        ..View::default()
    }
}
