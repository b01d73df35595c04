//! Golden images: what the maps hold after a story. `tests/golden` has pairs of a configuration, `NAME.toml`, and a
//! story, `NAME.txt`: its lines that begin with `>` are events, those with `#` remarks, and the rest is the image that
//! the event `image` shows. `UPDATE=1` rewrites the images.
//!
//! Of the network, seen at once with the next event that is none of these: `link INDEX MAC [attached]`,
//! `link INDEX MAC PROTOCOL ID on INDEX`, a VLAN device, `down INDEX`, `detach INDEX`,
//! `local ADDRESS [on INDEX]`, `subnet PREFIX on INDEX`, `neighbour ADDRESS on INDEX MAC [by-gateway | mtu BYTES]`,
//! which is reached from the first local address on that link, `lost ADDRESS`; `forwards INDEX IPv4|IPv6`;
//! `routes PREFIX|PREFIX=NEIGHBOUR...`, in place of those before. Of the backends:
//! `health SERVICE BACKEND up|unknown|answers|silent`, and `why SERVICE BACKEND`, which shows what status says of it.
//! Of the operator: `drain|disable|enable SERVICE BACKEND...`, `weight SERVICE BACKEND WEIGHT`, and `reload FILE`, a
//! configuration in `tests/golden/reload`; what they answer is shown. Of time: `wait DURATION`, `sweep`, which finds no
//! remembered flow, and `settle`, after which all moves are over and swept.

use std::{
    env, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use foobar_lb::{
    api::{self, Weight},
    config,
    health::{Report, Target},
    image::Image,
    model::{self, Down, Health},
    neighbour::{Link, NextHop, View, Vlan},
    plan::diff,
    state::{Backend, Origin, Recalled, Room, Service, State, Word},
    sweep::{Found, GRACE},
};
use foobar_lb_ebpf::layout::Interface;
use ipnet::IpNet;

const SEED: u64 = 1;
const MTU: u32 = 1500;
const ROOM: Room = Room { slots: 300, backends: 6 };
const LONGEST_TRANSITION: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn images_are_as_expected() {
    let update = env::var_os("UPDATE").is_some();
    let configs = configs();
    assert!(configs.len() > 10, "the stories are there");
    let mut wrong = Vec::new();
    for config in configs {
        let path = config.with_extension("txt");
        let expected =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let actual = tell(&config, &expected);
        if update {
            fs::write(&path, &actual).expect("the story can be rewritten");
        } else if expected != actual {
            wrong.push(format!("{}:\n{actual}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "not as expected; UPDATE=1 accepts:\n\n{}", wrong.join("\n"));
}

fn configs() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut configs: Vec<PathBuf> = fs::read_dir(directory)
        .expect("the directory is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    configs.sort();
    configs
}

/// The story told anew: its events and remarks as they are, its images as they come out.
fn tell(config: &Path, story: &str) -> String {
    let mut teller = Teller::new(config);
    let mut told = String::new();
    for line in story.lines().filter(|line| line.starts_with(['>', '#'])) {
        told += &format!("{line}\n");
        if let Some(event) = line.strip_prefix('>') {
            let shown = teller.observe(event).unwrap_or_else(|| panic!("{}: {line}", config.display()));
            told += &shown;
        }
    }
    told
}

struct Teller {
    state: State,
    /// As the configuration in force has them.
    services: Vec<model::Service>,
    view: View,
    now: Instant,
}

impl Teller {
    fn new(config: &Path) -> Self {
        let config = config::load(config).unwrap_or_else(|error| panic!("{error}"));
        let state = State::new(config.services.clone(), SEED);
        Self { state, services: config.services, view: View::default(), now: Instant::now() }
    }

    /// A daemon that goes on from the image, with the same configuration and the same words, has nothing to write. But
    /// the time of drains begins anew.
    fn expect_restart_to_change_nothing(&self, image: &Image) {
        if self.state.backends().any(|backend| backend.drain.is_some_and(|drain| drain.over)) {
            return;
        }
        let room = Room { slots: u32::MAX, backends: u32::MAX };
        let taken = State::take_over(self.services.clone(), SEED, image, room, self.now);
        let Recalled { mut state, begun_anew } = taken.expect("there is room");
        assert_eq!(begun_anew, Vec::<String>::new());
        state.attached.clone_from(&self.state.attached);
        for (service, before) in state.services.iter_mut().zip(&self.state.services) {
            for backend in &mut service.backends {
                let same = |before: &&Backend| before.config.address == backend.config.address;
                backend.word = before
                    .backends
                    .iter()
                    .find(same)
                    .map_or_else(Word::default, |before| before.word.clone());
            }
        }
        state.observe_network(self.view.clone());
        let after = state.render(self.now);
        assert_eq!(diff(image, &after), [], "from\n{image}to\n{after}");
    }

    /// Takes in an event and returns what it shows; none if it cannot be read.
    fn observe(&mut self, event: &str) -> Option<String> {
        match event.split_whitespace().collect::<Vec<_>>()[..] {
            ["health", service, backend, health] => self.observe_health(service, backend, health)?,
            ["why", service, backend] => return self.explain(service, backend),
            ["wait", duration] => self.now += humantime::parse_duration(duration).ok()?,
            ["sweep"] => self.sweep(),
            ["settle"] => self.settle(),
            ["image"] => {
                let image = self.render();
                self.expect_restart_to_change_nothing(&image);
                return Some(image.to_string());
            }
            ["reload", file] => return Some(self.reload(file)),
            ["drain", service, ref backends @ ..] => {
                return Some(self.say(api::Word::Drain, service, backends));
            }
            ["disable", service, ref backends @ ..] => {
                return Some(self.say(api::Word::Disable, service, backends));
            }
            ["enable", service, ref backends @ ..] => {
                return Some(self.say(api::Word::Enable, service, backends));
            }
            ["weight", service, backend, weight] => {
                return Some(self.say(api::Word::Weight(Weight(weight.parse().ok()?)), service, &[backend]));
            }
            ref network => return self.observe_network(network).map(|()| String::new()),
        }
        self.render();
        Some(String::new())
    }

    /// The daemon too renders after every event.
    fn render(&mut self) -> Image {
        self.state.observe_network(self.view.clone());
        self.state.render(self.now)
    }

    fn say(&mut self, word: api::Word, service: &str, backends: &[&str]) -> String {
        self.render();
        let backends: Vec<String> = backends.iter().map(|&backend| backend.to_owned()).collect();
        let answer = match self.state.say(service, &backends, |said| word.on(said, &Origin::default())) {
            Ok(warnings) => warnings.into_iter().map(|warning| format!("warning: {warning}\n")).collect(),
            Err(error) => format!("error: {error}\n"),
        };
        self.render();
        answer
    }

    fn reload(&mut self, file: &str) -> String {
        self.render();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/reload").join(file);
        let config = config::load(&path).unwrap_or_else(|error| panic!("{error}"));
        let answer = match self.state.reconfigure(config.services.clone(), ROOM) {
            Ok(displaced) => {
                self.services = config.services;
                displaced.iter().map(|address| format!("displaced: {address}\n")).collect()
            }
            Err(refusal) => format!("error: {refusal}\n"),
        };
        self.render();
        answer
    }

    fn observe_network(&mut self, event: &[&str]) -> Option<()> {
        match *event {
            ["link", index, mac, ref way @ ..] => self.observe_link(index, mac, way)?,
            ["down", index] => self.view.links.get_mut(&index.parse().ok()?)?.up = false,
            ["detach", index] => drop(self.state.attached.remove(&index.parse().ok()?)?),
            ["local", address] => drop(self.view.locals.insert(address.parse().ok()?)),
            ["local", address, "on", index] => {
                let address = address.parse().ok()?;
                self.view.locals.insert(address);
                self.view.links.get_mut(&index.parse().ok()?)?.addresses.push(address);
            }
            ["subnet", prefix, "on", index] => {
                self.view.connected.push((prefix.parse().ok()?, index.parse().ok()?));
            }
            ["neighbour", address, "on", index, mac, ref way @ ..] => {
                self.observe_neighbour(address, index, mac, way)?;
            }
            ["forwards", index, ip] => {
                let link = self.view.links.get_mut(&index.parse().ok()?)?;
                *if ip == "IPv4" { &mut link.forwards_v4 } else { &mut link.forwards_v6 } = true;
            }
            ["routes", ref routes @ ..] => {
                self.view.routes =
                    routes.iter().map(|route| self.parse_route(route)).collect::<Option<_>>()?;
            }
            ["lost", address] => drop(self.view.next_hops.remove(&address.parse::<IpAddr>().ok()?)?),
            _ => return None,
        }
        Some(())
    }

    fn sweep(&mut self) {
        self.state.settle(&Found { whole: true, began: Some(self.now), ..Found::default() });
    }

    fn settle(&mut self) {
        self.now += LONGEST_TRANSITION;
        self.render();
        self.now += GRACE;
        self.sweep();
    }

    fn observe_link(&mut self, index: &str, mac: &str, way: &[&str]) -> Option<()> {
        let (index, mac) = (index.parse().ok()?, parse_mac(mac)?);
        let name = format!("eth{index}");
        let mut link = Link { name, mac: Some(mac), up: true, mtu: MTU, ..Link::default() };
        match *way {
            [] => {}
            ["attached"] => drop(self.state.attached.insert(index, Interface::new(mac))),
            [protocol, id, "on", parent] => {
                let protocol = match protocol {
                    "802.1Q" => 0x8100,
                    "802.1ad" => 0x88a8,
                    _ => return None,
                };
                link.vlan = Some(Vlan { parent: parent.parse().ok()?, protocol, id: id.parse().ok()? });
            }
            _ => return None,
        }
        self.view.links.insert(index, link);
        Some(())
    }

    /// `PREFIX`, or `PREFIX=GATEWAY` where the gateway has been a neighbour.
    fn parse_route(&self, route: &str) -> Option<(IpNet, Option<NextHop>)> {
        match route.split_once('=') {
            None => Some((route.parse().ok()?, None)),
            Some((prefix, gateway)) => {
                let hop = self.view.next_hops.get(&gateway.parse::<IpAddr>().ok()?)?;
                Some((prefix.parse().ok()?, Some(*hop)))
            }
        }
    }

    fn observe_neighbour(&mut self, address: &str, index: &str, mac: &str, way: &[&str]) -> Option<()> {
        let address: IpAddr = address.parse().ok()?;
        let interface = index.parse().ok()?;
        let link = self.view.links.get(&interface)?;
        let (source, destination) = (link.mac?, parse_mac(mac)?);
        let local = link.addresses.iter().find(|own| own.is_ipv6() == address.is_ipv6()).copied();
        let (on_link, mtu) = match way {
            [] => (true, MTU),
            ["by-gateway"] => (false, MTU),
            ["mtu", bytes] => (true, bytes.parse().ok()?),
            _ => return None,
        };
        let next_hop = NextHop { interface, source, destination, mtu, on_link, local };
        self.view.next_hops.insert(address, next_hop);
        Some(())
    }

    fn explain(&mut self, service: &str, backend: &str) -> Option<String> {
        self.render();
        let (_, backend) = self.find(service, backend)?;
        Some(format!("{}: {}\n", backend.health(), backend.reason()))
    }

    fn find(&self, service: &str, backend: &str) -> Option<(&Service, &Backend)> {
        let service = self.state.services.iter().find(|known| known.config.name == service)?;
        Some((service, service.backends.iter().find(|known| known.config.name == backend)?))
    }

    fn observe_health(&mut self, service: &str, backend: &str, health: &str) -> Option<()> {
        let (service, backend) = self.find(service, backend)?;
        let target = Target { service: service.config.key, backend: backend.config.address };
        let health = match health {
            "up" => Health::Up,
            "unknown" => Health::Unknown,
            "answers" => Health::Down(Down::Answers),
            "silent" => Health::Down(Down::Silent),
            _ => return None,
        };
        let report = Report {
            target,
            health,
            transition: None,
            since: self.now,
            transitions: 0,
            inconclusive: 0,
            reason: String::new(),
            latency: None,
        };
        self.render();
        self.state.observe_health(report).map(|_| ())
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}
