//! What the balancer is configured for and lives through, and the image that its state then renders.

use std::time::{Duration, Instant};

use foobar_lb::{
    health::{self, Report, Target},
    image::Image,
    model::{
        self, Affinity, Down, Health, Mode, Protocol, Remember, ServiceKey, UdpDrain, Unmatched, Vip,
        WhenEmpty,
    },
    neighbour::{Link, NextHop, View},
    state::State,
};
use foobar_lb_ebpf::layout::Interface;

use super::{
    BACKEND_SIDE, Family, Host, MTU, PORTS, Port, SEED, SERVICES, TRANSITION, VIP, WEB1, WEB2, WEB3, WEBS,
    place, server, service, subnet,
};

const TABLE_SIZE: u32 = 13;

/// What the balancer lives through, and the image that follows.
#[derive(Clone)]
pub struct Story {
    services: Vec<model::Service>,
    view: View,
    chapters: Vec<Chapter>,
}

#[derive(Clone)]
enum Chapter {
    Health(Host, Health),
    Render,
    Wait(Duration),
}

impl Story {
    /// A service on the VIP for each family and protocol, with three backends that nothing is known of.
    pub fn new() -> Self {
        Self { services: SERVICES.map(configure).to_vec(), view: view(), chapters: Vec::new() }
    }

    /// The first backend is up, the others are not, and so it owns everything.
    pub fn settled() -> Self {
        let down = Health::Down(Down::Answers);
        Self::new().health(WEB1, Health::Up).health(WEB2, down).health(WEB3, down).render()
    }

    /// The first backend ends gracefully: its slots move to the second. The third is silent.
    pub fn moving() -> Self {
        let silent = Health::Down(Down::Silent);
        let story = Self::settled().health(WEB1, Health::Down(Down::Answers));
        story.health(WEB2, Health::Up).health(WEB3, silent).render()
    }

    /// The move is over.
    pub fn traces() -> Self {
        Self::moving().wait(TRANSITION).render()
    }

    /// Backends of all services, before others join them.
    pub const SERVED: u32 = (SERVICES.len() * WEBS.len()) as u32;

    /// Each service is joined by another, which differs in this. Their backends have the ids from [`Self::SERVED`] on.
    pub fn joined(mut self, change: impl FnMut(&mut model::Service)) -> Self {
        let mut others = self.services.clone();
        others.iter_mut().for_each(change);
        self.services.extend(others);
        self
    }

    /// Configures all services differently.
    pub fn configured(mut self, change: impl FnMut(&mut model::Service)) -> Self {
        self.services.iter_mut().for_each(change);
        self
    }

    /// Lets the network look different.
    pub fn seen(mut self, change: impl FnOnce(&mut View)) -> Self {
        change(&mut self.view);
        self
    }

    /// The VIP is an address of the balancer's.
    pub fn with_local_vip(self) -> Self {
        self.seen(|view| view.locals.extend(Family::BOTH.map(|family| VIP.ip(family))))
    }

    /// So large are the packets that fit on the way to the first backend.
    pub fn with_mtu(self, mtu: u32) -> Self {
        self.seen(|view| {
            for family in Family::BOTH {
                view.next_hops.insert(WEB1.ip(family), NextHop { mtu, ..by(WEB1, BACKEND_SIDE, family) });
            }
        })
    }

    /// The health checks of all services say this of the backend.
    pub fn health(self, backend: Host, health: Health) -> Self {
        self.then(Chapter::Health(backend, health))
    }

    /// Tables are brought up to date, as the daemon does after its events.
    pub fn render(self) -> Self {
        self.then(Chapter::Render)
    }

    /// Time passes.
    pub fn wait(self, duration: Duration) -> Self {
        self.then(Chapter::Wait(duration))
    }

    fn then(mut self, chapter: Chapter) -> Self {
        self.chapters.push(chapter);
        self
    }

    /// What the maps hold in the end.
    pub fn image(&self) -> Image {
        let mut state = State::new(self.services.clone(), SEED);
        let mut now = Instant::now();
        for Port { index, balancer, .. } in PORTS.into_iter().filter(|port| port.attached) {
            state.attached.insert(index, Interface::new(balancer.mac));
        }
        state.observe_network(self.view.clone());
        for chapter in &self.chapters {
            match chapter {
                Chapter::Health(backend, health) => {
                    for service in &self.services {
                        report(&mut state, service, *backend, *health, now);
                    }
                }
                Chapter::Render => drop(state.render(now)),
                Chapter::Wait(duration) => now += *duration,
            }
        }
        state.render(now)
    }
}

fn configure((family, protocol): (Family, Protocol)) -> model::Service {
    let backend = |host| {
        let name = format!("web{}", place(host) + 1);
        model::Backend { name, address: server(host, family), weight: 1, quic_id: None }
    };
    model::Service {
        name: format!("{protocol} {family:?}"),
        key: ServiceKey { address: service(family).into(), protocol },
        mode: Mode::Nat,
        table_size: TABLE_SIZE,
        transition: TRANSITION,
        idle: TRANSITION,
        drain_time: None,
        udp_drain: UdpDrain::Keep,
        remember: Remember::Needed,
        direct: ["10.0.0.64/28", "fd00:a::40/124"].map(|prefix| prefix.parse().expect("a prefix")).to_vec(),
        affinity: Affinity::Flow,
        quic: None,
        mss: None,
        vip: Vip { unmatched: Unmatched::Pass, ping: false },
        announce: false,
        when_empty: WhenEmpty::FailOpen,
        max_moved: None,
        health: health::Settings {
            port: None,
            kind: health::Kind::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 1,
        },
        backends: WEBS.map(backend).to_vec(),
    }
}

fn view() -> View {
    let mut view = View::default();
    for port in PORTS {
        let name = format!("eth{}", port.index);
        let addresses = Family::BOTH.map(|family| port.balancer.ip(family)).to_vec();
        let mac = Some(port.balancer.mac);
        let (forwards_v4, forwards_v6) = (port.forwards, port.forwards);
        let link =
            Link { name, mac, up: true, mtu: MTU, addresses, forwards_v4, forwards_v6, ..Link::default() };
        view.links.insert(port.index, link);
        for family in Family::BOTH {
            view.locals.insert(port.balancer.ip(family));
            view.connected.push((subnet(port, family), port.index));
        }
    }
    for backend in WEBS {
        for family in Family::BOTH {
            view.next_hops.insert(backend.ip(family), by(backend, BACKEND_SIDE, family));
        }
    }
    view
}

/// The way to a neighbour by an interface.
pub fn by(neighbour: Host, port: Port, family: Family) -> NextHop {
    NextHop {
        interface: port.index,
        source: port.balancer.mac,
        destination: neighbour.mac,
        mtu: MTU,
        on_link: true,
        local: Some(port.balancer.ip(family)),
    }
}

fn report(state: &mut State, service: &model::Service, backend: Host, health: Health, now: Instant) {
    let report = Report {
        target: Target { service: service.key, backend: service.backends[place(backend)].address },
        health,
        transition: None,
        since: now,
        transitions: 0,
        inconclusive: 0,
        reason: String::new(),
        latency: None,
    };
    state.observe_health(report).expect("the backend is configured");
}
