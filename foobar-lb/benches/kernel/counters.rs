//! What the CPU counts by itself while a program runs, where it shows that: most virtual ones do not.

use anyhow::Result;
use perf_event::{Builder, Counter, Group, events::Hardware};

/// What is counted, as it is called.
pub const EVENTS: [&str; 3] = ["instructions", "branch misses", "cache misses"];

/// How often each of [`EVENTS`] occurred.
pub type Counts = [u64; EVENTS.len()];

/// The counters of this thread.
pub struct Counters {
    group: Group,
    counters: [Counter; EVENTS.len()],
}

impl Counters {
    /// Fails where the CPU has none, or does not show them.
    pub fn open() -> Result<Self, std::io::Error> {
        let mut group = Group::new()?;
        // An XDP program runs in the kernel.
        let mut add = |event: Hardware| group.add(Builder::new(event).include_kernel());
        let counters =
            [add(Hardware::INSTRUCTIONS)?, add(Hardware::BRANCH_MISSES)?, add(Hardware::CACHE_MISSES)?];
        Ok(Self { group, counters })
    }

    /// Counts what occurs during some work.
    pub fn during<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<(T, Counts)> {
        self.group.reset()?;
        self.group.enable()?;
        let done = work();
        self.group.disable()?;
        let data = self.group.read()?;
        Ok((done?, self.counters.each_ref().map(|counter| data[counter])))
    }
}
