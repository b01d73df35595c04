//! A change of a large configuration, part by part, from the text to the last write to a map: what the daemon does at a
//! reload and after an event, with the same code but without its process.

use std::{net::IpAddr, time::Instant};

use anyhow::{Result, ensure};
use foobar_lb::{
    bpf::{Bpf, Capacities, Frames},
    config,
    health::{Report as Probed, Target},
    image::Image,
    model::{Admin, Backend, Health},
    neighbour::{Link, NextHop, View},
    plan::{self, Step},
    state::{Origin, Room, Said, State, Word},
};
use foobar_lb_ebpf::layout::Interface;

use crate::{
    configuration::Configuration,
    maps::OwnSlots,
    report::{Report, Unit},
};

/// The chapter.
pub const CHANGES: &str = "1,000 services x 100 backends, by part";
/// The least change of a configuration.
pub const REPLACED: &str = "reload, a backend replaced";
/// What the data path has to bear of a change.
pub const WRITE: &str = "write";
const LARGE: Configuration = Configuration::unchecked(1_000, 100, 10_007);
/// The loopback.
const INTERFACE: u32 = 1;
const MTU: u32 = 1500;

/// Takes in a large configuration, and changes of it.
pub fn measure(report: &mut Report, rounds: u32) -> Result<()> {
    let mut control = Control::new(LARGE)?;
    control.reload(report, "start", LARGE)?;
    control.observe_health();
    control.reconcile(report, "all measured")?;
    for _ in 0..rounds {
        control.reload(report, "reload, nothing changed", LARGE)?;
        for (changed, replaced, measured, back) in [
            (1, REPLACED, "that backend measured", "reload, that backend back again"),
            (
                LARGE.services,
                "reload, a backend of every service replaced",
                "those backends measured",
                "reload, those backends back again",
            ),
        ] {
            control.reload(report, replaced, Configuration { changed, ..LARGE })?;
            control.observe_health();
            control.reconcile(report, measured)?;
            control.reload(report, back, LARGE)?;
        }
        for (subject, admin) in
            [("an operator disables a backend", Some(Admin::Disabled)), ("and enables it", None)]
        {
            let admin = admin.map(|what| Said { what, origin: Origin::default() });
            let word = |said: Word| Word { admin: admin.clone(), ..said };
            control.state.say(&Configuration::name(7), &["b0".to_owned()], word)?;
            control.reconcile(report, subject)?;
        }
    }
    Ok(())
}

/// State and maps.
struct Control {
    state: State,
    bpf: Bpf,
    kernel: OwnSlots,
    image: Image,
    room: Room,
}

impl Control {
    fn new(configuration: Configuration) -> Result<Self> {
        let daemon = config::parse(&configuration.to_toml("/run"), "bench.toml")?.daemon;
        let config::Daemon { slots, backends, flows, half_open, mappings, .. } = daemon;
        let bpf = Bpf::load(Frames::All, Capacities { slots, backends, flows, half_open, mappings }, 1)?;
        let mut state = State::new(Vec::new(), 1);
        state.attached.insert(INTERFACE, Interface::new([2; 6]));
        let kernel = OwnSlots::find()?;
        Ok(Self { state, bpf, kernel, image: Image::default(), room: Room { slots, backends } })
    }

    fn reload(&mut self, report: &mut Report, subject: &str, configuration: Configuration) -> Result<()> {
        let text = configuration.to_toml("/run");
        let start = Instant::now();
        let services = config::parse(&text, "bench.toml")?.services;
        report.add_time(CHANGES, subject, "parse and validate", start.elapsed());
        let view =
            view(services.iter().flat_map(|service| &service.backends).map(|backend| backend.address.ip()));
        let start = Instant::now();
        self.state.reconfigure(services, self.room)?;
        report.add_time(CHANGES, subject, "take in", start.elapsed());
        self.state.observe_network(view);
        self.reconcile(report, subject)
    }

    /// All backends are up.
    fn observe_health(&mut self) {
        let services = self.state.services.iter().map(|service| &service.config);
        let targets = services.flat_map(|service| {
            let of = |backend: &Backend| Target { service: service.key, backend: backend.address };
            service.backends.iter().map(of).collect::<Vec<_>>()
        });
        for target in targets.collect::<Vec<_>>() {
            self.state.observe_health(Probed {
                target,
                health: Health::Up,
                transition: None,
                since: Instant::now(),
                transitions: 0,
                inconclusive: 0,
                reason: String::new(),
                latency: None,
            });
        }
    }

    /// What the daemon does after an event.
    fn reconcile(&mut self, report: &mut Report, subject: &str) -> Result<()> {
        let start = Instant::now();
        let wanted = self.state.render(start);
        let rendered = start.elapsed();
        let steps = plan::diff(&self.image, &wanted);
        let planned = start.elapsed();
        steps.iter().try_for_each(|step| self.bpf.apply(step))?;
        let written = start.elapsed();
        report.add_time(CHANGES, subject, "render", rendered);
        report.add_time(CHANGES, subject, "plan", planned - rendered);
        report.add_time(CHANGES, subject, WRITE, written - planned);
        report.add_time(CHANGES, subject, "event to last write", written);
        let slots: usize = steps
            .iter()
            .map(|step| if let Step::StoreSlots { slots, .. } = step { slots.len() } else { 0 })
            .sum();
        let entries =
            steps.iter().filter(|step| !matches!(step, Step::StoreSlots { .. } | Step::RemoveTable(_)));
        report.add(CHANGES, subject, "slots written", Unit::Count, slots as f64);
        report.add(CHANGES, subject, "map entries written", Unit::Count, entries.count() as f64);
        self.image = wanted;
        self.check()
    }

    /// The first and the last table of the kernel are those of the image.
    fn check(&self) -> Result<()> {
        let tables = &self.image.tables;
        for (first, slots) in tables.iter().take(1).chain(tables.iter().next_back()) {
            let held = self.kernel.read(*first, u32::try_from(slots.len())?)?;
            ensure!(held[..] == slots[..], "the kernel has other slots than the image");
        }
        Ok(())
    }
}

/// All backends are behind one gateway.
fn view(backends: impl Iterator<Item = IpAddr>) -> View {
    let mac = [2; 6];
    let next_hop = NextHop {
        interface: INTERFACE,
        source: mac,
        destination: mac,
        mtu: MTU,
        on_link: false,
        local: None,
    };
    let link = Link { name: "lo".to_owned(), mac: Some(mac), up: true, mtu: MTU, ..Link::default() };
    View {
        next_hops: backends.map(|backend| (backend, next_hop)).collect(),
        links: [(INTERFACE, link)].into(),
        ..View::default()
    }
}
