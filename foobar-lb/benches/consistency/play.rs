//! A history is played on a balancer.

use std::time::Duration;

use anyhow::Result;
use foobar_lb::{bpf::Capacities, sweep::GRACE};
use foobar_lb_ebpf::layout::name;

use crate::{
    balancer::{Balancer, Swept, Tracking},
    clients::{Clients, Tally},
    history::History,
};

/// Simulated time from one round of traffic to the next.
pub const ROUND: Duration = Duration::from_secs(5 * 60);

/// Rounds after the last change until its moves are over; the default transition is a quarter of an hour.
const MOVING: u32 = 3;
/// Rounds until an hour has passed since.
const HOUR: u32 = 12;
/// At last, what was not ended by its client is to be forgotten: the default idle time is an hour, and slots settle a
/// sweep later.
const LONG_ROUND: Duration = Duration::from_secs(20 * 60);
const LONG_ROUNDS: u32 = 5;

/// What became of it.
pub struct Outcome {
    pub tracking: Tracking,
    pub capacities: Capacities,
    pub tally: Tally,
    /// The most entries that there ever were, before a sweep.
    pub peak: u64,
    /// How full the fullest of the maps was then or at any other time, as a share of one.
    pub fill: f64,
    /// Entries when the moves of the last change are over, with old flows still alive.
    pub moved: u64,
    /// Entries an hour after the last change.
    pub hour: u64,
    /// Entries when all flows from before the last change have ended, and been forgotten.
    pub settled: u64,
    /// Slots that are not settled then.
    pub unsettled: usize,
    /// How often there was no room.
    pub refused: u64,
    /// Bytes that the kernel has reserved for entries.
    pub memory: u64,
}

impl Outcome {
    /// Bytes per entry, and its part of the map's own.
    pub fn entry_bytes(&self) -> f64 {
        let Capacities { flows, half_open, .. } = self.capacities;
        self.memory as f64 / f64::from(flows + half_open)
    }
}

/// Plays it to its end, and then lets all come to rest.
pub fn play(history: &History, tracking: Tracking, capacities: Capacities, seed: u64) -> Result<Outcome> {
    let mut balancer = Balancer::new(tracking, capacities, seed, history.backends)?;
    let clients = Clients::connect(&mut balancer, seed)?;
    let mut play = Play { balancer, clients, tracking, capacities, peak: 0, fill: 0.0 };
    play.round(ROUND, None)?;
    for change in &history.changes {
        play.balancer.change(change)?;
        if change.kills() {
            play.clients.lose(&change.backends);
        }
        play.round(ROUND, None)?;
    }
    let last = play.clients.round() - 1;
    let moved = play.rounds(MOVING - 1, ROUND)?;
    let hour = play.rounds(HOUR - MOVING, ROUND)?;
    play.round(LONG_ROUND, Some(last))?;
    let settled = play.rounds(LONG_ROUNDS, LONG_ROUND)?;
    play.end(moved, hour, settled)
}

struct Play {
    balancer: Balancer,
    clients: Clients,
    tracking: Tracking,
    capacities: Capacities,
    peak: u64,
    fill: f64,
}

impl Play {
    /// Returns how many entries are left after the last of them.
    fn rounds(&mut self, count: u32, time: Duration) -> Result<u64> {
        let mut left = 0;
        for _ in 0..count {
            left = self.round(time, None)?;
        }
        Ok(left)
    }

    /// Traffic, and then the daemon's work in the time until the next. Returns how many entries are left.
    fn round(&mut self, time: Duration, old: Option<u32>) -> Result<u64> {
        self.clients.play_round(&mut self.balancer, old)?;
        self.balancer.time.pass(time);
        self.balancer.reconcile()?;
        self.balancer.time.pass(GRACE);
        let swept = self.balancer.sweep()?;
        self.note(&swept);
        Ok(swept.after)
    }

    fn note(&mut self, swept: &Swept) {
        let Capacities { flows, half_open, .. } = self.capacities;
        self.peak = self.peak.max(swept.before.values().sum());
        for (map, entries) in &swept.before {
            let room = match *map {
                name::HALF_OPEN => half_open,
                name::ESTABLISHED | name::ADOPTED => flows / 2,
                _ => flows + half_open,
            };
            self.fill = self.fill.max(*entries as f64 / f64::from(room));
        }
    }

    fn end(self, moved: u64, hour: u64, settled: u64) -> Result<Outcome> {
        let Self { balancer, clients, tracking, capacities, peak, fill } = self;
        let tally = clients.tally;
        Ok(Outcome {
            tracking,
            capacities,
            tally,
            peak,
            fill,
            moved,
            hour,
            settled,
            unsettled: balancer.unsettled(),
            refused: balancer.refused()?,
            memory: balancer.memory()?,
        })
    }
}
