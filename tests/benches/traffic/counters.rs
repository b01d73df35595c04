//! What the kernel counts: packets of a namespace, and how long CPUs were busy.

use std::fs;

use anyhow::{Context, Result};
use lab::Namespace;
use nix::unistd::{SysconfVar, sysconf};

/// IPv4 packets that the kernel of a namespace got to see, since it exists (RFC 1213).
#[derive(Clone, Copy, Debug)]
pub struct Counters {
    /// Sent on.
    pub forwarded: u64,
    /// Handed to its own TCP.
    pub delivered: u64,
}

impl Counters {
    pub fn read(namespace: &Namespace) -> Result<Self> {
        let text = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))?;
        let text = text.context("cannot read the kernel's counters of packets")?;
        let find = |protocol, name| {
            read_counter(&text, protocol, name).with_context(|| format!("the kernel counts no {name}"))
        };
        Ok(Self { forwarded: find("Ip:", "ForwDatagrams")?, delivered: find("Tcp:", "InSegs")? })
    }

    /// What was counted since.
    pub fn since(self, earlier: Self) -> Self {
        Self { forwarded: self.forwarded - earlier.forwarded, delivered: self.delivered - earlier.delivered }
    }
}

/// Seconds that all CPUs were busy, in interrupts too, since the machine runs.
pub fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let ticks = sysconf(SysconfVar::CLK_TCK)?.context("the kernel does not tell how long a tick is")?;
    let busy = read_busy_ticks(&stat).context("/proc/stat is not what it should be")?;
    Ok(busy as f64 / ticks as f64)
}

/// A protocol has two lines: the names of its counters, and their values.
fn read_counter(snmp: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter(|line| line.starts_with(protocol));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split(' ').position(|found| found == name)?;
    values.split(' ').nth(at)?.parse().ok()
}

/// The line of all CPUs: user, nice, system, idle, iowait, irq, softirq, and what others had (proc(5)).
fn read_busy_ticks(stat: &str) -> Option<u64> {
    let ticks: Option<Vec<u64>> =
        stat.lines().next()?.split_whitespace().skip(1).map(|ticks| ticks.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks?[..] else { return None };
    Some(user + nice + system + irq + softirq)
}
