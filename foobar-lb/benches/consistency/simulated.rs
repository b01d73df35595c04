//! Simulated time. The data path's clock is the kernel's and cannot be set, so what it wrote down is translated for the
//! sweep: to the simulated time at which it was written.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use foobar_lb::{
    bpf::{self, Bpf},
    sweep::{RememberedFlow, Store, monotonic},
};

/// Longer after boot than any flow is silent.
const BOOT: Duration = Duration::from_secs(1_000_000);

/// A clock that goes on when it is told to.
pub struct Time {
    start: Instant,
    elapsed: Duration,
    /// When it was told to go on, by the kernel's clock, and how much had elapsed then.
    leaps: BTreeMap<Duration, Duration>,
}

impl Time {
    pub fn new() -> Self {
        Self { start: Instant::now(), elapsed: Duration::ZERO, leaps: BTreeMap::new() }
    }

    /// For the control plane.
    pub fn now(&self) -> Instant {
        self.start + self.elapsed
    }

    /// For the sweep, in place of the data path's.
    pub fn clock(&self) -> Duration {
        BOOT + self.elapsed
    }

    pub fn pass(&mut self, time: Duration) {
        self.elapsed += time;
        self.leaps.insert(monotonic(), self.elapsed);
    }

    fn translate(&self, seen: Duration) -> Duration {
        let last = self.leaps.range(..=seen).next_back();
        BOOT + last.map_or(Duration::ZERO, |(_, elapsed)| *elapsed)
    }
}

/// The maps of remembered flows, as if they were written in simulated time. Counts what it shows.
pub struct Memory<'a> {
    pub bpf: &'a mut Bpf,
    pub time: &'a Time,
    /// Flows before the sweep, by map.
    pub shown: BTreeMap<&'static str, u64>,
    /// Flows after it, in all maps.
    pub kept: u64,
}

impl Store for Memory<'_> {
    type Error = bpf::Error;

    fn retain(&mut self, mut keep: impl FnMut(&RememberedFlow) -> bool) -> Result<bool, bpf::Error> {
        let Self { bpf, time, shown, kept } = self;
        bpf.retain(|flow| {
            let seen = time.translate(Duration::from_nanos(flow.seen)).as_nanos();
            let stays = keep(&RememberedFlow { seen: seen.try_into().expect("it is short"), ..*flow });
            *shown.entry(flow.map).or_default() += 1;
            *kept += u64::from(stays);
            stays
        })
    }
}
