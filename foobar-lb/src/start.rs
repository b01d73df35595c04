//! Bringing the data path up on its interfaces, or refusing with the reason and leaving nothing behind; and
//! taking it down again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability};
use foobar_lb_ebpf::layout;
use ipnet::IpNet;
use thiserror::Error;
use tracing::{info, warn};

use crate::{
    bpf::{self, Attach, Bpf, Capacities, Frames, Link, Mode, Next, Pins, next::Which},
    config::{self, Config},
    model::{Pool, Unmatched},
    neighbour::{self, Interface},
    seed,
    sysctl::{self, Demands, Families, NoRedirects, Requirement, Sysctls},
};

/// The privileges to attach.
const NEEDED: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

/// What the operator asked of `attach`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file that the configuration was read from, and is read from again when it is to be reloaded.
    pub file: PathBuf,
    /// Names of the interfaces, at least one.
    pub interfaces: Vec<String>,
    /// Where the program is to run; native where possible if absent.
    pub mode: Option<Mode>,
    /// Set the kernel settings that are missing, and restore them at the end.
    pub set_sysctls: bool,
    /// The data path outlives the daemon, and the next one takes it over.
    pub pin: bool,
    /// The program that gets the packets that are passed.
    pub next: Option<Which>,
}

/// Why `attach` refused.
#[derive(Debug, Error)]
pub enum Error {
    /// Not enough rights.
    #[error(
        "not permitted: run as root, or give the process the capabilities {}",
        missing.iter().map(|lacking| format!("{lacking}, {}", purpose(*lacking))).collect::<Vec<_>>().join("; ")
    )]
    Privileges {
        /// What it lacks.
        missing: Vec<Capability>,
    },
    /// An interface is missing or cannot carry XDP.
    #[error(transparent)]
    Interface(#[from] neighbour::Error),
    /// An interface was named twice.
    #[error("{interface} is named twice")]
    Twice {
        /// The interface.
        interface: String,
    },
    /// Another XDP program is there.
    #[error(
        "{interface} already runs the XDP program {program}; take that off first \
         (`ip link set dev {interface} xdp off`, or stop whoever attached it; one that `foobar-lb attach --pin` left is \
         taken over by the same command, and taken off by `foobar-lb detach`), or have it run behind the balancer: pin it, \
         take it off, and name it with --next (docs/coexist.md)"
    )]
    Busy {
        /// The interface.
        interface: String,
        /// Name and id of the program.
        program: String,
    },
    /// The state directory cannot be used.
    #[error("cannot make the state directory {}", path.display())]
    StatePath {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No seed.
    #[error(transparent)]
    Seed(#[from] seed::Error),
    /// Another seed sends all flows elsewhere.
    #[error(
        "`seed` of [daemon] is not the one of the data path that is pinned: with it all flows would go elsewhere; undo \
         that change, or take the pinned data path off first, which breaks flows: foobar-lb detach"
    )]
    OtherSeed,
    /// Kernel settings could not be checked or set.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// Kernel settings are missing without which no client is served.
    #[error(
        "kernel settings are missing without which no client is served; pass --sysctl to have them set now and \
         restored at the end, or run:\n{}",
        missing.iter().map(|requirement| format!("    {requirement}")).collect::<Vec<_>>().join("\n")
    )]
    Settings {
        /// The settings.
        missing: Vec<Requirement>,
    },
    /// Sources of flows and sockets of this machine would share ports.
    #[error(
        "`snat_ports` of [daemon], {}, has ports that sockets of this machine get (net.ipv4.ip_local_port_range is {}): \
         what backends answer to one could be taken for what they answer to the other; set `snat_ports` to others, or \
         keep these from sockets: sysctl -w net.ipv4.ip_local_reserved_ports={}",
        range(ports),
        range(given),
        range(ports)
    )]
    Ports {
        /// Those of flows.
        ports: RangeInclusive<u16>,
        /// Those of sockets.
        given: RangeInclusive<u16>,
    },
    /// The kernel refused the data path.
    #[error(transparent)]
    Bpf(#[from] bpf::Error),
}

/// Refuses where this process lacks what it takes to attach with this configuration.
pub fn require_privileges_for(config: &Config) -> Result<(), Error> {
    let announces = config.services.iter().any(|service| service.announced().next().is_some());
    let to_announce = announces.then_some(Capability::CAP_NET_RAW);
    require_privileges(&NEEDED.into_iter().chain(to_announce).collect::<Vec<_>>())
}

/// What is pinned, held for this process; nothing is changed yet.
pub fn hold_pins(config: &Config) -> Result<Pins, Error> {
    Ok(Pins::hold(&config.daemon.pin_path).map_err(bpf::Error::from)?)
}

/// The interfaces that were asked for, looked at; nothing is changed yet.
pub async fn inspect(names: &[String], pins: Option<&Pins>) -> Result<Vec<(String, Interface)>, Error> {
    require_privileges(&NEEDED)?;
    let interfaces = find_interfaces(names).await?;
    for (name, interface) in &interfaces {
        let Some(attachment) = interface.xdp else { continue };
        if !pins.is_some_and(|pins| pins.have_link(interface.index, attachment.program_id)) {
            let program = bpf::describe_program(attachment.program_id);
            return Err(Error::Busy { interface: name.clone(), program });
        }
    }
    Ok(interfaces)
}

/// The same where no program is to be attached.
pub async fn inspect_without_program(names: &[String]) -> Result<Vec<(String, Interface)>, Error> {
    require_privileges(&[Capability::CAP_NET_ADMIN])?;
    find_interfaces(names).await
}

async fn find_interfaces(names: &[String]) -> Result<Vec<(String, Interface)>, Error> {
    let mut interfaces: Vec<(String, Interface)> = Vec::new();
    for name in names {
        let interface = neighbour::interface(name).await?;
        if interfaces.iter().any(|(_, other)| other.index == interface.index) {
            return Err(Error::Twice { interface: name.clone() });
        }
        interfaces.push((name.clone(), interface));
    }
    Ok(interfaces)
}

/// What of its privileges this process lacks to attach.
pub fn missing_privileges() -> Vec<Capability> {
    missing(&NEEDED)
}

fn missing(needed: &[Capability]) -> Vec<Capability> {
    let lacks =
        |capability: &Capability| !caps::has_cap(None, CapSet::Effective, *capability).unwrap_or(true);
    needed.iter().copied().filter(lacks).collect()
}

fn purpose(capability: Capability) -> &'static str {
    match capability {
        Capability::CAP_BPF => "to load programs and make maps",
        Capability::CAP_NET_ADMIN => "to attach programs and to set kernel settings of the network",
        Capability::CAP_NET_RAW => "to announce VIPs",
        Capability::CAP_PERFMON => "to have the kernel take programs that compute with pointers",
        _ => "which is needed",
    }
}

fn require_privileges(needed: &[Capability]) -> Result<(), Error> {
    let missing = missing(needed);
    if missing.is_empty() { Ok(()) } else { Err(Error::Privileges { missing }) }
}

/// Makes the state directory and finds the seed; that of what is taken over, where something is.
pub fn prepare_state(config: &Config, pins: Option<&Pins>) -> Result<u64, Error> {
    let path = &config.daemon.state_path;
    fs::create_dir_all(path).map_err(|source| Error::StatePath { path: path.clone(), source })?;
    if let Some(seed) = pins.and_then(Pins::seed) {
        let other = config.daemon.seed.is_some_and(|wanted| wanted != seed);
        return if other { Err(Error::OtherSeed) } else { Ok(seed) };
    }
    match config.daemon.seed {
        Some(seed) => Ok(seed),
        None => Ok(seed::load_or_make(path)?),
    }
}

/// The kernel settings that this process has changed; restored when dropped, unless they are to stay.
pub struct Settings {
    saved: PathBuf,
    /// The data path outlives this process, and needs them.
    pinned: bool,
    stay: bool,
    /// The rule is in force as long as this is held.
    no_redirects: Option<NoRedirects>,
}

/// The file that keeps the old kernel settings.
pub fn saved_settings(state_path: &Path) -> PathBuf {
    state_path.join("sysctls")
}

impl Settings {
    /// As they are, but for what an earlier run left behind by a crash, which is restored, unless the data path that it
    /// left is taken over.
    pub fn new(config: &Config, pins: Option<&Pins>) -> Result<Self, Error> {
        let saved = saved_settings(&config.daemon.state_path);
        let stay = pins.is_some_and(Pins::are_whole);
        if !stay {
            Sysctls::default().restore(&saved)?;
        }
        Ok(Self { saved, pinned: pins.is_some(), stay, no_redirects: None })
    }

    /// From now on they stay when this process ends, or they do not.
    pub fn stay(&mut self, stay: bool) {
        self.stay = stay;
    }

    /// Turns ICMP redirects off, and sets what else is missing if the operator allowed it; otherwise says so,
    /// or refuses where nothing would work.
    pub fn ensure(
        &mut self,
        config: &Config,
        interfaces: &[String],
        set_sysctls: bool,
        locals: &[IpAddr],
    ) -> Result<(), Error> {
        let sysctls = Sysctls::default();
        // A VIP that others move, as keepalived does, may become an address of this machine at any time.
        let demands = Demands::new(&config.services, locals, set_sysctls);
        let rewrites = demands.replies != Families::default();
        let mut wanted = if rewrites { sysctls.redirects(interfaces)? } else { Vec::new() };
        check_settings(config, interfaces, set_sysctls, locals)?;
        let missing = sysctls.needed(interfaces, demands)?;
        if set_sysctls {
            wanted.extend(missing);
        } else {
            missing.iter().for_each(|requirement| warn!("missing kernel setting: {requirement}"));
        }
        sysctls.set(&wanted, &self.saved)?;
        if demands.replies.v6 && self.no_redirects.is_none() {
            self.no_redirects = forbid_ipv6_redirects(self.pinned);
        }
        for chain in sysctl::dropping_forward_chains(demands.replies)? {
            warn!("{chain}; packets that are handed to the kernel will not get through");
        }
        warn_of_closed_addresses(config, locals);
        Ok(())
    }
}

/// Refuses where nothing would work: kernel settings are missing that may not be set, or ports are shared.
pub fn check_settings(
    config: &Config,
    interfaces: &[String],
    set_sysctls: bool,
    locals: &[IpAddr],
) -> Result<(), Error> {
    let sysctls = Sysctls::default();
    let missing = sysctls.needed(interfaces, Demands::new(&config.services, locals, set_sysctls))?;
    if !set_sysctls && missing.iter().any(|requirement| requirement.fatal) {
        return Err(Error::Settings { missing });
    }
    check_ports(&sysctls, config, locals)
}

/// Refuses where flows and sockets of this machine would have the same ports of one address.
pub fn check_ports(sysctls: &Sysctls, config: &Config, locals: &[IpAddr]) -> Result<(), Error> {
    let pools = config.services.iter().filter_map(|service| service.mode.pool());
    let is_local = |pool: &Pool| {
        pool.addresses.is_empty() || pool.addresses.iter().any(|address| locals.contains(address))
    };
    for Pool { ports, .. } in pools.filter(|pool| is_local(pool)) {
        if let Some(given) = sysctls.shared_ports(ports)? {
            return Err(Error::Ports { ports: ports.clone(), given });
        }
    }
    Ok(())
}

fn range(ports: &RangeInclusive<u16>) -> String {
    format!("{}-{}", ports.start(), ports.end())
}

/// Whoever closes an address of this machine to all but the services may lock himself out.
fn warn_of_closed_addresses(config: &Config, locals: &[IpAddr]) {
    let closed = config.services.iter().filter(|service| service.vip.unmatched != Unmatched::Pass);
    let vips: BTreeSet<IpNet> = closed.map(|service| service.key.address.vip).collect();
    for vip in locals.iter().filter(|local| vips.iter().any(|vip| vip.contains(*local))) {
        warn!(
            "{vip} is an address of this machine: with its `unmatched`, TCP connections to it that are for no \
             service are refused on attached interfaces, ssh among them"
        );
    }
}

fn forbid_ipv6_redirects(lastingly: bool) -> Option<NoRedirects> {
    let forbidden = match lastingly {
        true => sysctl::forbid_redirects_lastingly().map(|()| None),
        false => NoRedirects::enforce().map(Some),
    };
    forbidden
        .inspect_err(|error| {
            warn!(
                "IPv6 redirects are not kept from backends: {}; where backends and clients share an interface, \
                 set net.ipv6.conf.all.accept_redirects=0 on the backends",
                chain(error)
            );
        })
        .ok()
        .flatten()
}

impl Drop for Settings {
    fn drop(&mut self) {
        if self.stay {
            return;
        }
        if let Err(error) = restore_settings(&self.saved, self.pinned) {
            warn!("kernel settings are not restored: {error}; `foobar-lb detach` tries again");
        }
    }
}

/// Puts back what was noted in the file, and what was done for a data path that was pinned.
pub fn restore_settings(saved: &Path, pinned: bool) -> Result<(), Error> {
    if pinned && let Err(error) = sysctl::allow_redirects_again() {
        warn!("the rule against IPv6 redirects may still be there: {}", chain(&error));
    }
    Ok(Sysctls::default().restore(saved)?)
}

/// The program that was asked for to run behind the balancer's.
pub fn find_next(which: Option<&Which>) -> Result<Option<Next>, Error> {
    Ok(which.map(Next::find).transpose().map_err(bpf::Error::from)?)
}

/// Loads the data path, or goes on with the one that is pinned. It is for the same frames as the program behind it.
pub fn load(config: &Config, seed: u64, pins: Option<&Pins>, next: Option<&Next>) -> Result<Bpf, Error> {
    let config::Daemon { slots, backends, flows, half_open, mappings, .. } = config.daemon;
    let capacities = Capacities { slots, backends, flows, half_open, mappings };
    let load = |frames| match pins {
        None => Bpf::load(frames, capacities, seed),
        Some(pins) => Bpf::load_pinned(frames, capacities, seed, pins),
    };
    let Some(next) = next else { return Ok(load(Frames::All)?) };
    let first = pins.and_then(|pins| pins.frames(seed)).unwrap_or(Frames::All);
    let mut bpf = load(first)?;
    if bpf.try_next(next).is_err() {
        drop(bpf);
        bpf = load(first.other())?;
        bpf.try_next(next)?;
    }
    if bpf.frames() == Frames::OneBuffer {
        info!("{} gets frames of one buffer only, and so does the balancer: no jumbo frames", next.program);
    }
    Ok(bpf)
}

/// Goes on with the links that are pinned, attaches to the other interfaces and pins that, and leaves those that are not
/// named any more.
pub fn attach_pinned(
    bpf: &mut Bpf,
    interfaces: &[(String, Interface)],
    mode: Option<Mode>,
    pins: &Pins,
) -> Result<BTreeMap<u32, Link>, Error> {
    let (there, new): (Vec<_>, Vec<_>) =
        interfaces.iter().cloned().partition(|(_, interface)| interface.xdp.is_some());
    let mut links = BTreeMap::new();
    for (name, Interface { index, xdp, .. }) in there {
        let runs = if xdp.is_some_and(|xdp| xdp.mode == neighbour::XdpMode::Generic) {
            Mode::Generic
        } else {
            Mode::Native
        };
        if mode.is_some_and(|mode| mode != runs) {
            warn!(interface = %name, "it stays in {runs} mode, which cannot change while flows pass: `foobar-lb detach` first");
        }
        links.insert(index, bpf.take_over(&name, index, runs, pins)?);
        info!(interface = %name, mode = %runs, "taken over");
    }
    let mode = links.values().next().map(|link: &Link| link.mode).or(mode);
    for (index, link) in attach(bpf, &new, mode)? {
        links.insert(index, bpf.pin(link, index, pins)?);
    }
    let gone =
        pins.linked().map_err(bpf::Error::from)?.into_iter().filter(|index| !links.contains_key(index));
    for index in gone.collect::<Vec<_>>() {
        info!("the interface with index {index} is not named any more, or is gone: detached");
        pins.forget(index).map_err(bpf::Error::from)?;
    }
    Ok(links)
}

/// Attaches to all interfaces or to none. Without a chosen mode all are native or all generic, because what one
/// interface receives in the driver cannot be sent by the driver of one that has no XDP.
pub fn attach(
    bpf: &mut impl Attach,
    interfaces: &[(String, Interface)],
    mode: Option<Mode>,
) -> Result<BTreeMap<u32, Link>, Error> {
    let links = match mode {
        Some(mode) => attach_all(bpf, interfaces, mode)?,
        None => attach_all(bpf, interfaces, Mode::Native).or_else(|error| {
            let links = attach_all(bpf, interfaces, Mode::Generic)?;
            warn!("attached in generic mode, which is slower: {}", chain(&error));
            Ok::<_, bpf::Error>(links)
        })?,
    };
    for link in links.values() {
        info!(interface = %link.interface, mode = %link.mode, "attached");
    }
    Ok(links)
}

fn attach_all(
    bpf: &mut impl Attach,
    interfaces: &[(String, Interface)],
    mode: Mode,
) -> Result<BTreeMap<u32, Link>, bpf::Error> {
    let mut links = BTreeMap::new();
    for (name, interface) in interfaces {
        match bpf.attach(name, interface.index, mode) {
            Ok(link) => drop(links.insert(interface.index, link)),
            Err(error) => {
                links.into_values().try_for_each(|link| bpf.detach(link))?;
                return Err(error);
            }
        }
    }
    Ok(links)
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The interfaces in the form of the maps.
pub fn render(interfaces: &[(String, Interface)]) -> BTreeMap<u32, layout::Interface> {
    interfaces
        .iter()
        .map(|(_, Interface { index, mac, .. })| (*index, layout::Interface::new(*mac)))
        .collect()
}
