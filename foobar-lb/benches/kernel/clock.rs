//! What packets cost: the time of this thread, and what its CPU counts.

use std::time::Duration;

use anyhow::Result;
use aya::programs::ProgramFd;
use nix::time::{ClockId, clock_gettime};

use crate::{
    counters::{Counters, EVENTS},
    generator::Generator,
};

/// Packets of a round: few long runs, because to start one costs microseconds.
pub const PACKETS: u32 = 1_000_000;

/// What was spent per packet, round by round.
#[derive(Default)]
pub struct Rounds {
    pub nanoseconds: Vec<f64>,
    /// How often each of [`EVENTS`] occurred; empty where the CPU does not show it.
    pub events: Vec<[f64; EVENTS.len()]>,
}

/// Measures rounds.
pub struct Clock {
    counters: Option<Counters>,
}

impl Clock {
    /// With the CPU's counters, if it shows them; else why not.
    pub fn new() -> (Self, Option<std::io::Error>) {
        match Counters::open() {
            Ok(counters) => (Self { counters: Some(counters) }, None),
            Err(error) => (Self { counters: None }, Some(error)),
        }
    }

    /// One more round, of generator and program, or of the generator alone. Returns the verdict on the last packet.
    pub fn add_round(
        &mut self,
        rounds: &mut Rounds,
        generator: &mut Generator,
        program: Option<&ProgramFd>,
    ) -> Result<u32> {
        // The kernel's own measurement is rounded to whole nanoseconds. This thread's clock stands while others run.
        let clock = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
        let mut send = || {
            let start = clock()?;
            let (verdict, _) = generator.send(PACKETS, program)?;
            Ok((verdict, Duration::from(clock()? - start)))
        };
        let ((verdict, took), counts) = match &mut self.counters {
            None => (send()?, None),
            Some(counters) => counters.during(send).map(|(done, counts)| (done, Some(counts)))?,
        };
        rounds.nanoseconds.push(took.as_nanos() as f64 / f64::from(PACKETS));
        rounds.events.extend(counts.map(|counts| counts.map(|count| count as f64 / f64::from(PACKETS))));
        Ok(verdict)
    }
}
