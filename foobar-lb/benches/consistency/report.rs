//! What came of it: a table for each history, all of it as JSON, and whether foobar-lb keeps what it promises.

use std::{fmt, path::Path};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use foobar_lb::bpf::Capacities;
use serde_json::{Value, json};

use crate::{
    balancer::Tracking,
    clients::{CLIENTS, SILENT, TURNOVER},
    history::History,
    machine::Machine,
    play::{Outcome, ROUND},
};

/// Of full tracking's entries, what foobar-lb may need when an hour has passed since a change.
const ALLOWED: f64 = 0.1;
/// Maps may not be fuller than this, or it is their size that is measured.
const FULL: f64 = 0.8;

const CHANGES_PER_LINE: usize = 5;

/// All histories.
pub struct Report {
    pub chapters: Vec<Chapter>,
    seed: u64,
    capacities: Capacities,
    machine: Machine,
}

/// What came of one history.
pub struct Chapter {
    pub history: History,
    pub outcomes: Vec<Outcome>,
    /// Full tracking with room for half of what it needs.
    pub cramped: Option<Outcome>,
}

impl Report {
    /// Nothing played yet.
    pub fn new(seed: u64, capacities: Capacities) -> Result<Self> {
        Ok(Self { chapters: Vec::new(), seed, capacities, machine: Machine::find()? })
    }

    /// What foobar-lb did not keep, or why this proves nothing.
    pub fn failures(&self) -> Vec<String> {
        self.chapters.iter().flat_map(Chapter::failures).collect()
    }

    /// Writes all of it as JSON.
    pub fn write(&self, file: &Path) -> Result<()> {
        let Self { chapters, seed, capacities, machine } = self;
        let results = json!({
            "seed": seed,
            "clients": CLIENTS,
            "round_seconds": ROUND.as_secs(),
            "silent_per_round": SILENT,
            "turnover_per_round": TURNOVER,
            "capacity": { "flows": capacities.flows, "half_open": capacities.half_open },
            "histories": chapters.iter().map(Chapter::to_json).collect::<Vec<_>>(),
            "failures": self.failures(),
        });
        machine.write("consistency", results, file)
    }
}

/// The method.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, capacities: Capacities { flows, half_open, .. }, machine, .. } = self;
        let (minutes, percent) = (ROUND.as_secs() / 60, TURNOVER * 100.0);
        writeln!(f, "{machine}\n{CLIENTS} TCP connections at any time, seed {seed}\n")?;
        writeln!(
            f,
            "A change comes before a round. A round is {minutes} simulated minutes: a third of the connections are \
             silent, none in two\nrounds in a row; {percent} % end by FIN, RST or silence for good, and others begin."
        )?;
        writeln!(
            f,
            "Broken: a packet went to another backend than the SYN although that one was alive. Re-picked: that one died."
        )?;
        write!(
            f,
            "Entries: the most there ever were; when the last change's moves are over; an hour after that change; when \
             all from\nbefore it have ended and been forgotten. Room for {} entries in either program.",
            flows + half_open
        )
    }
}

impl Chapter {
    /// What came of it on one balancer.
    pub fn outcome(&self, tracking: Tracking) -> &Outcome {
        let of = |outcome: &&Outcome| outcome.tracking == tracking;
        self.outcomes.iter().find(of).expect("it was played on all balancers")
    }

    fn failures(&self) -> Vec<String> {
        let [ours, plain, all] = Tracking::ALL.map(|tracking| self.outcome(tracking));
        let checks = [
            (ours.tally.broken > 0, format!("foobar-lb broke {} connections", ours.tally.broken)),
            (ours.refused > 0, format!("foobar-lb had {} times no room to remember a flow", ours.refused)),
            (
                ours.settled > 0 || ours.unsettled > 0,
                format!(
                    "when all has come to rest foobar-lb keeps {} entries, and {} slots are not settled",
                    ours.settled, ours.unsettled
                ),
            ),
            (
                ours.hour as f64 > all.hour as f64 * ALLOWED,
                format!("an hour later foobar-lb has {} entries, full tracking {}", ours.hour, all.hour),
            ),
            (plain.tally.broken == 0, "nothing breaks without memory either: this proves nothing".to_owned()),
            (
                ours.fill.max(all.fill) > FULL,
                "a map is too full: make it larger, this measures its size".to_owned(),
            ),
        ];
        let failed = checks.into_iter().filter(|(failed, _)| *failed);
        failed.map(|(_, why)| format!("{}: {why}", self.history.name)).collect()
    }

    fn to_json(&self) -> Value {
        let Self { history, outcomes, cramped } = self;
        json!({
            "name": history.name,
            "backends": history.backends,
            "changes": history.changes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "outcomes": outcomes.iter().map(Outcome::to_json).collect::<Vec<_>>(),
            "full_tracking_with_room_for_half": cramped.as_ref().map(Outcome::to_json),
        })
    }

    fn table(&self) -> Table {
        let all = self.outcome(Tracking::All);
        let mut table = Table::new();
        table.load_preset(NOTHING);
        table.set_header([
            "",
            "broken",
            "re-picked",
            "at peak",
            "moves over",
            "an hour on",
            "settled",
            "fullest map",
            "in use",
            "reserved",
        ]);
        for outcome in &self.outcomes {
            table.add_row(row(outcome.tracking.name(), outcome, all));
        }
        if let Some(cramped) = &self.cramped {
            table.add_row(row("full tracking, half the room", cramped, all));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

impl fmt::Display for Chapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let History { name, changes, .. } = &self.history;
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let lines: Vec<String> = changes.chunks(CHANGES_PER_LINE).map(|changes| changes.join(", ")).collect();
        writeln!(f, "{name}: {}", lines.join(",\n    "))?;
        write!(f, "{}", self.table())
    }
}

impl Outcome {
    fn in_use(&self) -> f64 {
        self.peak as f64 * self.entry_bytes()
    }

    fn to_json(&self) -> Value {
        json!({
            "balancer": self.tracking.name(),
            "packets": self.tally.packets,
            "flows": self.tally.flows,
            "broken": self.tally.broken,
            "repicked": self.tally.repicked,
            "entries": {
                "peak": self.peak,
                "moves_over": self.moved,
                "an_hour_on": self.hour,
                "settled": self.settled,
            },
            "unsettled_slots": self.unsettled,
            "not_remembered": self.refused,
            "room": self.capacities.flows + self.capacities.half_open,
            "fullest_map": self.fill,
            "bytes_in_use_at_peak": self.in_use() as u64,
            "bytes_reserved": self.memory,
        })
    }
}

/// Entries with their share of full tracking's.
fn row(name: &str, outcome: &Outcome, all: &Outcome) -> Vec<String> {
    let Outcome { tracking, tally, peak, moved, hour, settled, fill, memory, .. } = outcome;
    let mut row = vec![name.to_owned(), tally.broken.to_string(), tally.repicked.to_string()];
    if *tracking == Tracking::Nothing {
        row.extend(["-"; 7].map(str::to_owned));
        return row;
    }
    let share = |entries: u64, of: u64| match *tracking {
        Tracking::Needed => format!("{entries} ({:.1} %)", 100.0 * entries as f64 / of as f64),
        _ => entries.to_string(),
    };
    let mib = |bytes: f64| format!("{:.1} MiB", bytes / f64::from(1 << 20));
    row.extend([
        share(*peak, all.peak),
        share(*moved, all.moved),
        share(*hour, all.hour),
        share(*settled, all.settled),
    ]);
    row.extend([format!("{:.0} %", 100.0 * fill), mib(outcome.in_use()), mib(*memory as f64)]);
    row
}
