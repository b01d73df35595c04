//! What was measured: tables for people, every turn as JSON, and what it was measured on.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde_json::{Value, json};

use super::contender::Contender;
use super::load::{Latency, Load, Sample};
use super::machine::Machine;
use super::statistics::{Ratio, median};
use super::target::{SUBJECT, TARGETS, Target};

/// What a contender did under a load in a round.
pub struct Turn {
    pub round: u32,
    pub contender: Contender,
    pub load: Load,
    pub sample: Sample,
}

/// All turns.
pub struct Report {
    /// How long a turn is.
    pub seconds: u64,
    pub turns: Vec<Turn>,
    machine: Machine,
}

impl Report {
    /// Nothing measured yet.
    pub fn new(seconds: u64) -> Result<Self> {
        Ok(Self { seconds, turns: Vec::new(), machine: Machine::find()? })
    }

    /// Whether more rounds would tell nothing new of the targets.
    pub fn is_resolved(&self) -> bool {
        self.unresolved().next().is_none()
    }

    /// Whether a target is about this and wants more rounds.
    pub fn lacks(&self, load: Load, contender: Contender) -> bool {
        self.unresolved().any(|target| target.load == load && [SUBJECT, target.other].contains(&contender))
    }

    fn unresolved(&self) -> impl Iterator<Item = &Target> {
        let ratio = |target: &&Target| self.ratio(target.load, SUBJECT, target.other);
        TARGETS.iter().filter(move |target| ratio(target).is_some_and(|ratio| !ratio.is_resolved()))
    }

    /// Writes all of it as JSON.
    pub fn write(&self, file: &Path) -> Result<()> {
        let results = json!({
            "seconds": self.seconds,
            "turns": self.turns.iter().map(Turn::to_json).collect::<Vec<_>>(),
            "ratios": self.ratios(),
            "targets": self.targets(),
        });
        self.machine.write("traffic", results, file)
    }

    /// Those of the tables.
    fn ratios(&self) -> Vec<Value> {
        let to_json = |load: Load, contender: Contender| {
            Units::of(load).others.map(|other| self.ratio_to_json(load, contender, other))
        };
        let of_load = |load| Contender::all().into_iter().flat_map(move |contender| to_json(load, contender));
        Load::ALL.into_iter().flat_map(of_load).filter(|ratio| !ratio["ratio"].is_null()).collect()
    }

    fn targets(&self) -> Vec<Value> {
        let to_json = |target: &Target| {
            let Target { load, other, least } = *target;
            let mut json = self.ratio_to_json(load, SUBJECT, other);
            json["least"] = least.into();
            json["verdict"] = target.verdict(self.ratio(load, SUBJECT, other)).into();
            json
        };
        TARGETS.iter().map(to_json).collect()
    }

    fn ratio_to_json(&self, load: Load, contender: Contender, other: Contender) -> Value {
        let ratio = self.ratio(load, contender, other);
        json!({
            "load": load.key(),
            "contender": contender.name(),
            "other": other.name(),
            "ratio": ratio.map(|ratio| ratio.median),
            "interval": ratio.and_then(|ratio| ratio.interval),
        })
    }

    /// What one contender does for what another does in the same round.
    fn ratio(&self, load: Load, one: Contender, other: Contender) -> Option<Ratio> {
        let rate = |turn: &Turn| turn.sample.rate();
        let pairs: Vec<_> = self
            .turns(load, one)
            .filter_map(|turn| {
                let same_round = self.turns(load, other).find(|paired| paired.round == turn.round);
                same_round.map(|paired| (rate(turn), rate(paired)))
            })
            .collect();
        Ratio::of_pairs(&pairs)
    }

    /// Round by round.
    fn turns(&self, load: Load, contender: Contender) -> impl Iterator<Item = &Turn> {
        self.turns.iter().filter(move |turn| turn.load == load && turn.contender == contender)
    }

    fn median(&self, load: Load, contender: Contender, figure: impl Fn(&Sample) -> f64) -> f64 {
        median(&self.turns(load, contender).map(|turn| figure(&turn.sample)).collect::<Vec<_>>())
    }

    fn table(&self, load: Load) -> Table {
        let Units { rate, cost, others, .. } = Units::of(load);
        let ratios = others.map(|other| format!("x {}", other.name()));
        let mut table = table(&[load.name(), rate, "p50 ms", "p99 ms", cost, &ratios[0], &ratios[1]]);
        for contender in Contender::all() {
            if self.turns(load, contender).next().is_some() {
                table.add_row(self.row(load, contender));
            }
        }
        table
    }

    fn table_of_targets(&self) -> Table {
        let mut table = table(&["target", "at least", "ratio", "verdict"]);
        for target in TARGETS {
            let ratio = self.ratio(target.load, SUBJECT, target.other);
            table.add_row([
                format!("{} of {}, {}", SUBJECT.name(), target.other.name(), target.load.name()),
                target.least.to_string(),
                show(ratio),
                target.verdict(ratio).to_owned(),
            ]);
        }
        table
    }

    fn row(&self, load: Load, contender: Contender) -> Vec<String> {
        let Units { amount, per, others, .. } = Units::of(load);
        let figure = |figure: &dyn Fn(&Sample) -> f64| self.median(load, contender, figure);
        let milliseconds = |latency: fn(Latency) -> f64| {
            let median = figure(&|sample| sample.latency.map_or(f64::NAN, latency));
            if median.is_nan() { "-".to_owned() } else { format!("{:.2}", median / 1e3) }
        };
        let mut row = vec![
            contender.name().to_owned(),
            format!("{:.0}", figure(&|sample| amount(sample) / sample.seconds)),
            milliseconds(|latency| latency.p50),
            milliseconds(|latency| latency.p99),
            format!("{:.2}", figure(&|sample| sample.cpu_seconds / amount(sample) * per)),
        ];
        row.extend(others.map(|other| show(self.ratio(load, contender, other))));
        row
    }
}

/// In what a load is told.
struct Units {
    rate: &'static str,
    cost: &'static str,
    /// Of the rate.
    amount: fn(&Sample) -> f64,
    /// How many of that a cost is for.
    per: f64,
    /// Whom all are compared with.
    others: [Contender; 2],
}

impl Units {
    fn of(load: Load) -> Self {
        let operations = |sample: &Sample| sample.operations as f64;
        let megabytes = |sample: &Sample| sample.bytes as f64 / 1e6;
        let (rate, cost, amount, per): (_, _, fn(&Sample) -> f64, _) = match load {
            Load::KeepAlive => ("per second", "CPU s / M requests", operations, 1e6),
            Load::NewConnections => ("per second", "CPU s / M connections", operations, 1e6),
            Load::Downloads => ("MB/s", "CPU s / GB", megabytes, 1e3),
            Load::SmallPackets => ("per second", "CPU s / M packets", operations, 1e6),
        };
        let proxy_or_kernel =
            if load == Load::SmallPackets { Contender::NftablesDnat } else { Contender::Haproxy };
        Self { rate, cost, amount, per, others: [Contender::XdpRouter, proxy_or_kernel] }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.turns.last().map_or(0, |turn| turn.round);
        writeln!(f, "{}", self.machine)?;
        writeln!(
            f,
            "up to {rounds} rounds of {} s each; medians, and ratios of the same round with their interval of 95 %",
            self.seconds
        )?;
        writeln!(
            f,
            "all interfaces: veth, checksums and segments by software, GRO on; CPU seconds are the machine's"
        )?;
        for load in Load::ALL {
            if self.turns.iter().any(|turn| turn.load == load) {
                writeln!(f, "\n{}", self.table(load))?;
            }
        }
        write!(f, "\n{}", self.table_of_targets())
    }
}

impl Turn {
    fn to_json(&self) -> Value {
        let Sample { operations, seconds, bytes, latency, cpu_seconds } = self.sample;
        json!({
            "round": self.round,
            "contender": self.contender.name(),
            "load": self.load.key(),
            "operations": operations,
            "seconds": seconds,
            "bytes": bytes,
            "p50_microseconds": latency.map(|latency| latency.p50),
            "p99_microseconds": latency.map(|latency| latency.p99),
            "cpu_seconds": cpu_seconds,
        })
    }
}

/// One whose columns of numbers are aligned.
fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn show(ratio: Option<Ratio>) -> String {
    match ratio {
        None => "-".to_owned(),
        Some(Ratio { median, interval: None }) => format!("{median:.2}"),
        Some(Ratio { median, interval: Some((low, high)) }) => format!("{median:.2} [{low:.2}, {high:.2}]"),
    }
}
