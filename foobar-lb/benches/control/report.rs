//! What was measured: every round of it as JSON, and tables for people.

use std::{fmt, path::Path, time::Duration};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde_json::{Value, json};

use crate::{machine::Machine, targets};

/// All figures.
pub struct Report {
    pub figures: Vec<Figure>,
    machine: Machine,
}

/// One kind of figure about one subject, round by round.
pub struct Figure {
    pub chapter: &'static str,
    pub subject: String,
    pub what: &'static str,
    pub unit: Unit,
    pub rounds: Vec<f64>,
}

/// What a figure counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Milliseconds,
    Mebibytes,
    Percent,
    Count,
}

impl Report {
    /// Nothing measured yet.
    pub fn new() -> Result<Self> {
        Ok(Self { figures: Vec::new(), machine: Machine::find()? })
    }

    /// Adds what was found in a round. Figures of a chapter stay together.
    pub fn add(&mut self, chapter: &'static str, subject: &str, what: &'static str, unit: Unit, value: f64) {
        let same = |figure: &&mut Figure| {
            figure.chapter == chapter && figure.subject == subject && figure.what == what
        };
        if let Some(figure) = self.figures.iter_mut().find(same) {
            figure.rounds.push(value);
            return;
        }
        let last = self.figures.iter().rposition(|figure| figure.chapter == chapter);
        let place = last.map_or(self.figures.len(), |last| last + 1);
        let subject = subject.to_owned();
        self.figures.insert(place, Figure { chapter, subject, what, unit, rounds: vec![value] });
    }

    /// Adds how long something took.
    pub fn add_time(&mut self, chapter: &'static str, subject: &str, what: &'static str, time: Duration) {
        self.add(chapter, subject, what, Unit::Milliseconds, time.as_secs_f64() * 1e3);
    }

    /// Adds how much memory something takes.
    pub fn add_bytes(&mut self, chapter: &'static str, subject: &str, what: &'static str, bytes: u64) {
        self.add(chapter, subject, what, Unit::Mebibytes, bytes as f64 / f64::from(1 << 20));
    }

    /// Writes all of it as JSON.
    pub fn write(&self, file: &Path) -> Result<()> {
        let results = json!({
            "figures": self.figures.iter().map(Figure::to_json).collect::<Vec<_>>(),
            "targets": targets::of(&self.figures),
        });
        self.machine.write("control", results, file)
    }
}

impl Figure {
    /// The one in the middle.
    fn median(&self) -> f64 {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    /// The least.
    pub fn min(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn max(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    fn to_json(&self) -> Value {
        let Self { chapter, subject, what, unit, rounds } = self;
        json!({
            "chapter": chapter,
            "subject": subject,
            "what": what,
            "unit": unit.name(),
            "median": self.median(),
            "min": self.min(),
            "rounds": rounds,
        })
    }

    fn row(&self) -> [String; 5] {
        let show = |value| format!("{} {}", digits(value), self.unit.name());
        let [min, median, max] = [self.min(), self.median(), self.max()].map(show);
        let (min, max) = if self.rounds.len() > 1 { (min, max) } else { (String::new(), String::new()) };
        [self.subject.clone(), self.what.to_owned(), min, median, max]
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::Percent => "%",
            Self::Count => "",
        }
    }
}

/// Three digits that count, or all of a whole number.
fn digits(value: f64) -> String {
    match value.abs() {
        size if size.fract() == 0.0 || size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        for of_chapter in self.figures.chunk_by(|one, other| one.chapter == other.chapter) {
            let mut table = Table::new();
            table.load_preset(NOTHING).set_header([of_chapter[0].chapter, "", "least", "median", "most"]);
            table.add_rows(of_chapter.iter().map(Figure::row));
            table
                .column_iter_mut()
                .skip(2)
                .for_each(|column| column.set_cell_alignment(CellAlignment::Right));
            writeln!(f, "\n{table}")?;
        }
        writeln!(f)?;
        targets::of(&self.figures).iter().try_for_each(|target| writeln!(f, "{}", targets::line(target)))
    }
}
