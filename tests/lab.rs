//! Networks of namespaces, for the traffic tests and for `cargo xtask run`: namespaces, veth pairs, bridges,
//! addresses, routes, sysctls, and the processes that live in them.
//!
//! A lab expects the sandbox that xtask makes (private pids, mounts and `/run`), so that its plain names
//! meet no others and whatever a crash leaves behind goes away with the sandbox. What is built in a lab,
//! and what is then asked of it, is left to its users.

mod process;
mod xdp_pass;

pub use process::{Process, wait_for, wait_until};

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};

const NAMESPACES: &str = "/run/netns";
const DIRECTORIES: &str = "/run/lab";

/// What every namespace starts from, whatever the machine's own settings are: the kernel's defaults for
/// routers and hosts, no wait for duplicate addresses, and the one congestion control that every namespace may have.
const SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.conf.all.send_redirects", "1"),
    ("net.ipv4.conf.default.send_redirects", "1"),
    ("net.ipv4.conf.all.accept_redirects", "1"),
    ("net.ipv4.conf.default.accept_redirects", "1"),
    ("net.ipv4.conf.all.accept_local", "0"),
    ("net.ipv4.conf.default.accept_local", "0"),
    ("net.ipv4.ip_forward", "0"),
    ("net.ipv4.tcp_congestion_control", "reno"),
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_redirects", "1"),
    ("net.ipv6.conf.default.router_solicitations", "0"),
];

/// A set of namespaces with a directory for their files; dropping it removes both.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    directory: PathBuf,
    namespaces: Mutex<Vec<String>>,
    /// They keep XDP programs attached, each by its namespace and interface.
    links: Mutex<HashMap<(String, String), OwnedFd>>,
}

impl Lab {
    /// An empty lab. `prefix` begins the names of its namespaces; two labs that live at once need two.
    ///
    /// # Errors
    /// If the lab's directory cannot be made, or a lab of that prefix exists.
    pub fn new(prefix: &str) -> Result<Self> {
        let directory = Path::new(DIRECTORIES).join(prefix);
        fs::create_dir_all(DIRECTORIES).with_context(|| format!("cannot make {DIRECTORIES}"))?;
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self {
            prefix: prefix.to_owned(),
            directory,
            namespaces: Mutex::default(),
            links: Mutex::default(),
        })
    }

    /// Where this lab's logs, sockets and configuration files go.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes a network namespace called `PREFIX-NAME`, with its loopback up.
    ///
    /// # Errors
    /// If `ip` fails: usually a missing privilege, or a name that is taken.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        let full_name = format!("{}-{name}", self.prefix);
        run(Command::new("ip").args(["netns", "add", &full_name]))?;
        lock(&self.namespaces).push(full_name.clone());
        let namespace = Namespace { name: Some(full_name), directory: self.directory.clone() };
        for (key, value) in SYSCTLS {
            namespace.set_sysctl(key, value)?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The namespace this process itself is in; it is never removed.
    #[must_use]
    pub fn host(&self) -> Namespace {
        Namespace { name: None, directory: self.directory.clone() }
    }

    /// Has an interface run an XDP program that passes everything. The veth peers of a balancer need it: what
    /// a veth sends back by XDP_TX waits at the other end until something else wakes that up, unless an XDP
    /// program runs there; when 256 frames wait, nothing gets through any more.
    ///
    /// # Errors
    /// If the program cannot be loaded or attached.
    pub fn pass_xdp(&self, namespace: &Namespace, interface: &str) -> Result<()> {
        let link = namespace.enter(|| xdp_pass::attach(interface))?;
        let link = link.with_context(|| format!("no XDP program for {interface} of {}", namespace.name()))?;
        lock(&self.links).insert(link_key(namespace, interface), link);
        Ok(())
    }

    /// Takes that program off again, to make room for another.
    pub fn end_pass_xdp(&self, namespace: &Namespace, interface: &str) {
        lock(&self.links).remove(&link_key(namespace, interface));
    }

    fn remove(&self) -> Result<()> {
        for name in lock(&self.namespaces).drain(..) {
            run(Command::new("ip").args(["netns", "delete", &name]))?;
        }
        fs::remove_dir_all(&self.directory)
            .with_context(|| format!("cannot remove {}", self.directory.display()))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("lab {} is not fully removed: {error:#}", self.prefix);
        }
    }
}

/// One network namespace: a host, a router or a switch of the lab. Clones name the same one.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// None is the namespace of this process.
    name: Option<String>,
    directory: PathBuf,
}

impl Namespace {
    /// The name `ip netns` knows it by, or "host".
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("host")
    }

    /// The directory of the lab it belongs to.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command that will run in this namespace; nothing but the network differs from this process.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(path) = self.path() else { return Command::new(program) };
        // Unlike `ip netns exec`, nsenter keeps /sys, and with it the BPF file system.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", path.display())).arg("--").arg(program);
        command
    }

    /// Runs a command to its end and returns what it printed.
    ///
    /// # Errors
    /// If it cannot start or does not exit with 0; the error shows the command and what it complained of.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        let mut words = words.into_iter();
        let program = words.next().context("an empty command")?;
        run(self.command(program).args(words)).with_context(|| format!("in namespace {}", self.name()))
    }

    /// Runs `ip` with arguments split at spaces.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn ip(&self, arguments: &str) -> Result<String> {
        self.run(["ip"].into_iter().chain(arguments.split_whitespace()))
    }

    /// Starts a command in the background; its output goes to `NAME.log` in the lab's directory.
    ///
    /// # Errors
    /// If it cannot start.
    pub fn start<S: AsRef<OsStr>>(&self, name: &str, words: impl IntoIterator<Item = S>) -> Result<Process> {
        let mut words = words.into_iter();
        let program = words.next().context("an empty command")?;
        let mut command = self.command(program);
        command.args(words);
        Process::start(name, command, &self.directory)
    }

    /// Calls `work` on a thread in this namespace: sockets it opens, and threads it starts, belong there.
    ///
    /// # Errors
    /// If the namespace cannot be entered. A panic of `work` goes on in the caller.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let Some(path) = self.path() else { return Ok(work()) };
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let enter_and_work = || {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        };
        thread::scope(|scope| scope.spawn(enter_and_work).join().unwrap_or_else(|panic| resume_unwind(panic)))
            .map_err(|error: nix::Error| error)
            .with_context(|| format!("cannot enter {}", path.display()))
    }

    /// Adds an address with its prefix length, as in `10.0.0.1/24` or `fd00::1/64`; it is usable at once.
    ///
    /// # Errors
    /// If `ip` refuses it.
    pub fn add_address(&self, interface: &str, address: &str) -> Result<()> {
        let unchecked = if address.contains(':') { "nodad" } else { "" };
        self.ip(&format!("address add {address} dev {interface} {unchecked}")).map(drop)
    }

    /// Adds a route to `destination`, a prefix or "default", by the gateway `via`.
    ///
    /// # Errors
    /// If `ip` refuses it.
    pub fn add_route(&self, destination: &str, via: &str) -> Result<()> {
        self.ip(&format!("route add {destination} via {via}")).map(drop)
    }

    /// The value of a sysctl under `net.`, in dotted form.
    ///
    /// # Errors
    /// If this kernel has no such sysctl.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = sysctl_path(key);
        let value = self.enter(|| fs::read_to_string(&path))?;
        Ok(value.with_context(|| format!("cannot read {key}"))?.trim().to_owned())
    }

    /// Sets a sysctl under `net.`, in dotted form.
    ///
    /// # Errors
    /// If this kernel has no such sysctl or refuses the value.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = sysctl_path(key);
        self.enter(|| fs::write(&path, value))?.with_context(|| format!("cannot set {key} to {value}"))
    }

    /// Lets this namespace route between its interfaces, IPv4 and IPv6.
    ///
    /// # Errors
    /// If the sysctls cannot be set.
    pub fn enable_forwarding(&self) -> Result<()> {
        self.set_sysctl("net.ipv4.ip_forward", "1")?;
        self.set_sysctl("net.ipv6.conf.all.forwarding", "1")
    }

    /// The MAC address of an interface.
    ///
    /// # Errors
    /// If there is no such interface, or it has none.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let find = || {
            let mut entries = getifaddrs()?.filter(|entry| entry.interface_name == interface);
            Ok(entries.find_map(|entry| entry.address?.as_link_addr()?.addr()))
        };
        self.enter(find)?
            .map_err(|error: nix::Error| error)
            .context("cannot list interfaces")?
            .with_context(|| format!("no MAC address at {interface} in namespace {}", self.name()))
    }

    /// Makes a bridge of interfaces that are here already, and sets it up.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn add_bridge(&self, bridge: &str, ports: &[&str]) -> Result<()> {
        self.ip(&format!("link add {bridge} type bridge"))?;
        for port in ports {
            self.ip(&format!("link set {port} master {bridge}"))?;
        }
        self.ip(&format!("link set {bridge} up")).map(drop)
    }

    fn path(&self) -> Option<PathBuf> {
        self.name.as_ref().map(|name| Path::new(NAMESPACES).join(name))
    }
}

/// Joins two namespaces by a veth pair, both ends up, fit for XDP at either end.
///
/// # Errors
/// If `ip` or `ethtool` fails.
pub fn veth(a: &Namespace, a_interface: &str, b: &Namespace, b_interface: &str) -> Result<()> {
    let Some(b_name) = &b.name else {
        ensure!(a.name.is_some(), "a veth pair needs a namespace at one end at least");
        return veth(b, b_interface, a, a_interface);
    };
    a.ip(&format!("link add {a_interface} type veth peer name {b_interface} netns {b_name}"))?;
    let ends = [(a, a_interface), (b, b_interface)];
    for (namespace, interface) in ends {
        fit_for_xdp(namespace, interface)?;
    }
    for (namespace, interface) in ends {
        namespace.ip(&format!("link set {interface} up"))?;
    }
    Ok(())
}

/// A local socket hands veth unfinished checksums and oversize segments, which no wire carries and XDP
/// cannot mend; and a frame that XDP sends to a veth arrives only if NAPI runs there, which GRO turns on
/// when the interface goes up.
fn fit_for_xdp(namespace: &Namespace, interface: &str) -> Result<()> {
    let features = ["tx", "off", "tso", "off", "gso", "off", "gro", "on"];
    namespace.run(["ethtool", "-K", interface].into_iter().chain(features)).map(drop)
}

/// Lists are whole at any moment, also where their last user panicked.
fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

fn link_key(namespace: &Namespace, interface: &str) -> (String, String) {
    (namespace.name().to_owned(), interface.to_owned())
}

fn sysctl_path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key.replace('.', "/"))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed with {}: {}{}", output.status, stdout.trim(), stderr.trim());
    }
    Ok(stdout.into_owned())
}
