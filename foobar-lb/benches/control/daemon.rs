//! The daemon as a process, attached to an interface: how long it takes to start, to take in changes, and how much memory
//! it and its maps take.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use foobar_lb_ebpf::layout::name;
use lab::{Lab, Namespace, Process, veth, wait_until};

use crate::{
    configuration::{BACKENDS, Configuration},
    maps,
    report::Report,
};

/// The chapter on memory.
pub const MEMORY: &str = "memory";
/// Of all maps but those of remembered flows.
pub const MAPS: &str = "maps";
/// Of those.
pub const CONNTRACK: &str = "maps of remembered flows";

/// The chapter on the process.
pub const PROCESS: &str = "the daemon, 1,000 services x 100 backends";
/// A reload that changes all services.
pub const ALL_REPLACED: &str = "reload, a backend of every service replaced";
/// How long it takes.
pub const IN_FORCE: &str = "until in force";
const LARGE: Configuration = Configuration::unchecked(1_000, 100, 10_007);
const INTERFACE: &str = "lb0";
/// A start with 100,000 backends has that long.
const EVENTUALLY: Duration = Duration::from_secs(120);

/// Starts it with large configurations, and reloads one.
pub fn measure(report: &mut Report, rounds: u32) -> Result<()> {
    let network = Network::new("control")?;
    for (subject, configuration) in [
        ("100 services of 65,537 slots", Configuration::unchecked(100, 10, 65_537)),
        ("10,000 services of 1,021 slots", Configuration::unchecked(10_000, 6, 1_021)),
    ] {
        let daemon = Daemon::start(&network, configuration)?;
        daemon.tell_memory(report, subject)?;
    }
    let daemon = Daemon::start(&network, LARGE)?;
    report.add_time(PROCESS, "start", "until attached", daemon.attached);
    report.add_time(PROCESS, "start", "until settled", daemon.settled);
    daemon.tell_memory(report, "1,000 services of 10,007 slots, 100 backends each")?;
    for _ in 0..rounds {
        daemon.change(report)?;
    }
    daemon.tell_peak(report, "the same after reloads")
}

/// A balancer, and a host behind it that has the addresses of all backends.
pub struct Network {
    lab: Lab,
    pub balancer: Namespace,
    pub host: Namespace,
}

impl Network {
    pub fn new(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        let (balancer, host) = (lab.namespace("balancer")?, lab.namespace("host")?);
        veth(&balancer, INTERFACE, &host, "host0")?;
        balancer.enable_forwarding()?;
        balancer.add_address(INTERFACE, "10.0.0.1/24")?;
        host.add_address("host0", "10.0.0.2/24")?;
        host.ip(&format!("route add local {BACKENDS} dev lo"))?;
        balancer.add_route(BACKENDS, "10.0.0.2")?;
        lab.pass_xdp(&host, "host0")?;
        Ok(Self { lab, balancer, host })
    }
}

/// A running daemon.
pub struct Daemon<'n> {
    network: &'n Network,
    process: Process,
    attached: Duration,
    settled: Duration,
}

impl<'n> Daemon<'n> {
    /// Starts it, and waits until all backends take new flows.
    pub fn start(network: &'n Network, configuration: Configuration) -> Result<Self> {
        let directory = network.lab.directory().display().to_string();
        let file = format!("{directory}/foobar-lb.toml");
        fs::write(&file, configuration.to_toml(&directory))?;
        let words = [
            "env",
            "RUST_LOG=warn,foobar_lb::daemon=info",
            env!("CARGO_BIN_EXE_foobar-lb"),
            "attach",
            INTERFACE,
            "--sysctl",
            "--config",
            &file,
        ];
        let start = Instant::now();
        let mut process = network.balancer.start("foobar-lb", words)?;
        process.wait_for_line("balancing", EVENTUALLY)?;
        let attached = start.elapsed();
        let mut daemon = Self { network, process, attached, settled: Duration::ZERO };
        let all = configuration.services as usize * configuration.backends as usize;
        wait_until(EVENTUALLY, "all backends to be up", || {
            let up = daemon.process.output().map(|output| output.matches("backend is up").count());
            up.is_ok_and(|up| up >= all)
        })?;
        daemon.settled = start.elapsed();
        // Where they are checked, one may have been late and down meanwhile.
        wait_until(EVENTUALLY, "all backends to take new flows", || {
            daemon.eligible().is_ok_and(|them| them == all)
        })
        .with_context(|| format!("of {all} these: {:?}", daemon.eligible()))?;
        Ok(daemon)
    }

    /// How often a backend has gone down since the start.
    pub fn failures(&self) -> Result<usize> {
        Ok(self.process.output()?.matches("backend is down").count())
    }

    /// CPU time that it has used.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
        let ticks: Vec<u64> =
            fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        /// `USER_HZ`, which is 100 on all architectures that have XDP.
        const TICKS: f64 = 100.0;
        Ok(Duration::from_secs_f64(ticks.iter().sum::<u64>() as f64 / TICKS))
    }

    /// Reloads, each time with other backends, and words of the operator.
    fn change(&self, report: &mut Report) -> Result<()> {
        for (what, changed) in [
            ("reload, nothing changed", 0),
            ("reload, a backend replaced", 1),
            ("reload, the backend back again", 0),
            (ALL_REPLACED, LARGE.services),
            ("reload, those backends back again", 0),
        ] {
            let directory = self.network.lab.directory().display().to_string();
            let text = Configuration { changed, ..LARGE }.to_toml(&directory);
            fs::write(format!("{directory}/foobar-lb.toml"), text)?;
            let planned = self.command(&["plan", &format!("{directory}/foobar-lb.toml")])?;
            report.add_time(PROCESS, what, "until planned", planned);
            let cpu = self.cpu()?;
            let took = self.command(&["reload"])?;
            report.add_time(PROCESS, what, IN_FORCE, took);
            report.add_time(PROCESS, what, "CPU", self.cpu()? - cpu);
        }
        for word in ["disable", "enable"] {
            let took = self.command(&["backend", word, &Configuration::name(7), "b0"])?;
            report.add_time(PROCESS, word, IN_FORCE, took);
        }
        Ok(())
    }

    /// Runs a command of the operator. Returns how long it took to be answered.
    fn command(&self, words: &[&str]) -> Result<Duration> {
        let start = Instant::now();
        self.ask(words)?;
        Ok(start.elapsed())
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let socket = self.network.lab.directory().join("foobar-lb.sock").display().to_string();
        let command = [&[env!("CARGO_BIN_EXE_foobar-lb")], words, &["--socket", &socket]].concat();
        self.network.balancer.run(command)
    }

    /// How many backends take new flows.
    fn eligible(&self) -> Result<usize> {
        let status: serde_json::Value = serde_json::from_str(&self.ask(&["status", "--json"])?)?;
        let services = status["services"].as_array().context("no services in the status")?;
        let backends = services.iter().filter_map(|service| service["backends"].as_array()).flatten();
        Ok(backends.filter(|backend| backend["eligible"] == true).count())
    }

    /// Tells of its memory and that of its maps.
    pub fn tell_memory(&self, report: &mut Report, subject: &str) -> Result<()> {
        let remembered = [name::HALF_OPEN, name::ESTABLISHED, name::ADOPTED, name::MAPPINGS, name::FRAGMENTS];
        let (flows, others): (Vec<_>, Vec<_>) = maps::of_process(self.process.id().as_raw() as u32)?
            .into_iter()
            .partition(|map| remembered.contains(&map.name.as_str()));
        let slots = others.iter().filter(|map| map.name == name::SLOTS).map(|map| map.bytes).sum();
        report.add_bytes(MEMORY, subject, "map of slots", slots);
        report.add_bytes(MEMORY, subject, MAPS, others.iter().map(|map| map.bytes).sum());
        report.add_bytes(MEMORY, subject, CONNTRACK, flows.iter().map(|map| map.bytes).sum());
        report.add_bytes(MEMORY, subject, "daemon, without maps", self.resident("RssAnon:")?);
        self.tell_peak(report, subject)
    }

    /// Tells of the most memory that it ever had, the slots that it has mapped included.
    pub fn tell_peak(&self, report: &mut Report, subject: &str) -> Result<()> {
        report.add_bytes(MEMORY, subject, "daemon at peak, mapped slots included", self.resident("VmHWM:")?);
        Ok(())
    }

    fn resident(&self, key: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix(key)).context("no such line in status")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }
}
