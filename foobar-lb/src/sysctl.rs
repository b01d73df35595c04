//! The kernel settings the data path depends on: which are missing and why, setting them, and putting the
//! old values back, also after a crash. Everyone else leaves `/proc/sys` alone. Firewalls that would
//! drop what the kernel forwards are looked for in [`dropping_forward_chains`]; they are only reported.

mod backend;
mod demands;
mod forward_policy;
mod ports;
mod record;
mod redirects;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use self::record::{Change, Record};
pub use self::{
    demands::{Demands, Families},
    forward_policy::dropping_forward_chains,
    redirects::{
        NoRedirects, allow_again as allow_redirects_again, forbid_lastingly as forbid_redirects_lastingly,
    },
};

/// Writing this one overwrites the value of every interface.
const ALL_IPV6_FORWARDING: &str = "net/ipv6/conf/all/forwarding";

/// Whether programs are compiled.
const JIT: &str = "net/core/bpf_jit_enable";

const WHY_JIT: &str = "the kernel interprets programs, which takes several times as long";
const WHY_FORWARDING: &str = "without it the kernel neither tells the way to a client nor forwards";
const WHY_ALL_FORWARDING: &str = "without it the kernel forwards no IPv6; note that every interface then \
    forwards, and ignores router advertisements unless its accept_ra is 2";
const WHY_ACCEPT_RA: &str = "IPv6 forwarding makes this machine ignore router advertisements, and lose its \
    default route if that came by them, unless accept_ra is 2";
const WHY_RP_FILTER: &str = "strict reverse path filtering (1 here or for all) drops replies that the kernel \
    is to deliver, because they come from a backend's side with the VIP as source";
const WHY_ACCEPT_LOCAL: &str = "where a VIP is an address of this machine, the kernel drops replies from it \
    that come in from outside";
const WHY_REDIRECTS: &str = "ICMP redirects would teach backends a way to clients past the balancer";

/// A setting that is not as the data path needs it. Displayed as the command that would set it, with the
/// reason as a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Its file below `/proc/sys`.
    pub path: String,
    /// Its value now.
    pub current: u32,
    /// The value it should have.
    pub wanted: u32,
    /// What goes wrong without.
    pub why: &'static str,
    /// Without it no client is served; else only what is left to the kernel is lost.
    pub fatal: bool,
}

impl Requirement {
    /// The command that would set it.
    pub fn command(&self) -> String {
        // The dotted spelling swaps both characters, so that a dot in an interface's name stays apart.
        let name: String = self
            .path
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect();
        format!("sysctl -w {name}={}", self.wanted)
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  # is {}: {}", self.command(), self.current, self.why)
    }
}

/// Why the settings could not be checked, set or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither the file nor its directory tells the value.
    #[error("cannot read the kernel setting {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel told a value that is no number.
    #[error("the kernel setting {} is {text:?}, not a number", path.display())]
    NotANumber {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// The value could not be set.
    #[error("cannot set the kernel setting {} to {value}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The value.
        value: u32,
        /// What the system said.
        source: io::Error,
    },
    /// The file that keeps the old values failed.
    #[error("cannot use {}, which keeps the old values of kernel settings", path.display())]
    Saved {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file that keeps the old values is not as it was written.
    #[error(
        "{}:{line}: expected a kernel setting with its old and new value; \
         remove the file to leave the settings as they are", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first line that makes no sense, from 1.
        line: usize,
    },
    /// A firewall does not tell its rules.
    #[error("cannot tell whether a firewall drops forwarded packets: {command} says {message:?}")]
    Firewall {
        /// The command that was asked.
        command: &'static str,
        /// Its complaint, or the system's.
        message: String,
    },
}

/// The kernel settings of the calling thread's network namespace.
#[derive(Debug)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self::below("/proc/sys")
    }
}

impl Sysctls {
    /// Settings in the files below `root`.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The ICMP redirects that must be off whenever backends answer through this machine. Only IPv4 has such a setting;
    /// for IPv6 see [`NoRedirects`].
    ///
    /// # Errors
    /// When a setting cannot be read.
    pub fn redirects(&self, interfaces: &[String]) -> Result<Vec<Requirement>, Error> {
        // They are on where they are on for the interface or for all.
        let all = std::iter::once("all").chain(interfaces.iter().map(String::as_str));
        let found = all.map(|name| self.require(ipv4(name, "send_redirects"), 0, WHY_REDIRECTS, false));
        found.filter_map(Result::transpose).collect()
    }

    /// What is missing for `interfaces` to serve, in the order in which to set it.
    ///
    /// # Errors
    /// When a setting cannot be read.
    pub fn needed(&self, interfaces: &[String], demands: Demands) -> Result<Vec<Requirement>, Error> {
        let mut needed = Vec::new();
        for interface in interfaces {
            if demands.replies.v4 {
                self.need_ipv4(interface, demands.local_vip, &mut needed)?;
            }
        }
        if demands.replies.v6 {
            self.need_ipv6(interfaces, &mut needed)?;
        }
        Ok(needed)
    }

    /// What makes the kernel compile programs, if it interprets them. Network namespaces but the first do not show it.
    ///
    /// # Errors
    /// When the setting cannot be read.
    pub fn needed_by_programs(&self) -> Result<Option<Requirement>, Error> {
        match self.read_if_present(JIT)? {
            Some(0) => self.require(JIT.to_owned(), 1, WHY_JIT, false),
            _ => Ok(None),
        }
    }

    /// Sets what is required after noting the old values in the file `saved`. Old values that a run before
    /// left there (it crashed) stay, so what is restored in the end is what was found in the beginning.
    ///
    /// # Errors
    /// When the file cannot be written, then nothing was set, or when a setting cannot be, then those that
    /// were set are restored.
    pub fn set(&self, requirements: &[Requirement], saved: &Path) -> Result<(), Error> {
        if requirements.is_empty() {
            return Ok(());
        }
        let mut record = self.load(saved)?;
        let first = record.changes().next().is_none();
        for Requirement { path, current, wanted, .. } in requirements {
            record.note(path, Change { original: *current, set: *wanted });
            if path == ALL_IPV6_FORWARDING {
                self.note_overwritten(*wanted, &mut record)?;
            }
        }
        record.store(saved).map_err(|source| Error::Saved { path: saved.into(), source })?;
        for (done, Requirement { path, wanted, .. }) in requirements.iter().enumerate() {
            if let Err(error) = self.write(path, *wanted) {
                // What was set before this is in use.
                match first {
                    true => self.restore(saved)?,
                    false => self.undo(&requirements[..done])?,
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn undo(&self, done: &[Requirement]) -> Result<(), Error> {
        done.iter().rev().try_for_each(|Requirement { path, current, .. }| self.write(path, *current))
    }

    /// Puts back the values noted in the file `saved`, if it exists, and removes it. Settings that someone
    /// changed since, or whose interface is gone, are left alone.
    ///
    /// # Errors
    /// When a setting or the file cannot be read or written; the file is kept then.
    pub fn restore(&self, saved: &Path) -> Result<(), Error> {
        let record = self.load(saved)?;
        // All are read before the first is written, because the first overwrites others; for the same reason
        // those that someone changed are written as well.
        let mut values = Vec::new();
        for (path, change) in record.changes() {
            if let Some(current) = self.read_if_present(path)? {
                values.push((path, if current == change.set { change.original } else { current }));
            }
        }
        values.sort_by_key(|&(path, _)| path != ALL_IPV6_FORWARDING);
        for (path, value) in values {
            match self.write(path, value) {
                Err(Error::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        match fs::remove_file(saved) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Saved { path: saved.into(), source })
            }
            _ => Ok(()),
        }
    }

    fn need_ipv4(
        &self,
        interface: &str,
        local_vip: bool,
        needed: &mut Vec<Requirement>,
    ) -> Result<(), Error> {
        needed.extend(self.require(ipv4(interface, "forwarding"), 1, WHY_FORWARDING, true)?);
        needed.extend(self.require_loose_filter(interface, WHY_RP_FILTER)?);
        if local_vip {
            needed.extend(self.require_accept_local(interface, WHY_ACCEPT_LOCAL)?);
        }
        Ok(())
    }

    fn need_ipv6(&self, interfaces: &[String], needed: &mut Vec<Requirement>) -> Result<(), Error> {
        let mut forwarding =
            Vec::from_iter(self.require(ALL_IPV6_FORWARDING.into(), 1, WHY_ALL_FORWARDING, true)?);
        if forwarding.is_empty() {
            for interface in interfaces {
                forwarding.extend(self.require(ipv6(interface, "forwarding"), 1, WHY_FORWARDING, true)?);
            }
        }
        if !forwarding.is_empty() {
            // Before the first interface forwards: at that moment the kernel drops what it learned by
            // advertisements on any interface.
            for name in self.ipv6_interfaces()?.iter().filter(|name| *name != "lo") {
                let path = ipv6(name, "accept_ra");
                let current = self.read_if_present(&path)?;
                if current == Some(1) && self.read_if_present(&ipv6(name, "forwarding"))? == Some(0) {
                    needed.push(Requirement {
                        path,
                        current: 1,
                        wanted: 2,
                        why: WHY_ACCEPT_RA,
                        fatal: false,
                    });
                }
            }
        }
        needed.append(&mut forwarding);
        Ok(())
    }

    /// Notes the forwarding of every interface, which setting that of all changes too.
    fn note_overwritten(&self, set: u32, record: &mut Record) -> Result<(), Error> {
        for name in self.ipv6_interfaces()? {
            let path = ipv6(&name, "forwarding");
            if let Some(original) = self.read_if_present(&path)? {
                record.note(&path, Change { original, set });
            }
        }
        Ok(())
    }

    /// The interfaces with IPv6, and `default`, which is what later ones start with.
    fn ipv6_interfaces(&self) -> Result<Vec<String>, Error> {
        let path = self.root.join("net/ipv6/conf");
        let names = fs::read_dir(&path).and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        });
        let mut names: Vec<String> = names.map_err(|source| Error::Read { path, source })?;
        names.retain(|name| name != "all");
        names.sort();
        Ok(names)
    }

    fn require_loose_filter(&self, interface: &str, why: &'static str) -> Result<Option<Requirement>, Error> {
        let filter = ipv4(interface, "rp_filter");
        // The kernel takes the greater of the interface's value and that of all: 2 (loose) beats 1 (strict).
        match self.read(&filter)?.max(self.read(&ipv4("all", "rp_filter"))?) {
            1 => self.require(filter, 2, why, false),
            _ => Ok(None),
        }
    }

    fn require_accept_local(&self, interface: &str, why: &'static str) -> Result<Option<Requirement>, Error> {
        match self.read(&ipv4("all", "accept_local"))? {
            0 => self.require(ipv4(interface, "accept_local"), 1, why, false),
            _ => Ok(None),
        }
    }

    fn require(
        &self,
        path: String,
        wanted: u32,
        why: &'static str,
        fatal: bool,
    ) -> Result<Option<Requirement>, Error> {
        let current = self.read(&path)?;
        Ok((current != wanted).then_some(Requirement { path, current, wanted, why, fatal }))
    }

    fn load(&self, saved: &Path) -> Result<Record, Error> {
        let boot_id = self.root.join("kernel/random/boot_id");
        match fs::read_to_string(&boot_id) {
            Ok(boot) => Record::load(saved, boot.trim()),
            Err(source) => Err(Error::Read { path: boot_id, source }),
        }
    }

    fn read_if_present(&self, path: &str) -> Result<Option<u32>, Error> {
        match self.read(path) {
            Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        }
    }

    fn read(&self, path: &str) -> Result<u32, Error> {
        let path = self.root.join(path);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(Error::Read { path, source }),
        };
        text.trim().parse().map_err(|_| Error::NotANumber { path, text: text.trim().to_owned() })
    }

    fn write(&self, path: &str, value: u32) -> Result<(), Error> {
        let path = self.root.join(path);
        // Not `fs::write`: it would create a file where the interface is gone.
        let written = fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, value.to_string().as_bytes()));
        written.map_err(|source| Error::Write { path, value, source })
    }
}

fn ipv4(interface: &str, name: &str) -> String {
    format!("net/ipv4/conf/{interface}/{name}")
}

fn ipv6(interface: &str, name: &str) -> String {
    format!("net/ipv6/conf/{interface}/{name}")
}

#[cfg(test)]
mod tests;
