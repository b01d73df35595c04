//! What is told of the run of one bench: plots and tables, for a page as well as for a document.

use anyhow::Result;
use serde_json::Value;

use super::figures::{digits, list, median, number, text};
use super::plot::{self, Plot};
use super::series;

/// What contenders of bench traffic are compared with: it forwards, and balances nothing.
const BASE: &str = "XDP router";

/// One run.
pub struct Chapter {
    /// The bench.
    pub name: String,
    pub title: &'static str,
    /// What the figures are.
    pub note: &'static str,
    /// What it was measured on.
    pub machine: String,
    /// Absent if there are none.
    pub targets: Option<Table>,
    pub plots: Vec<Plot>,
    pub tables: Vec<Table>,
}

/// Cells, row by row.
pub struct Table {
    pub caption: String,
    pub head: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

impl Chapter {
    /// Of a run, as the bench has written it. Of a bench that is not known here, only the machine and the targets are told.
    pub fn of(run: &Value) -> Result<Self> {
        let name = text(&run["bench"]);
        let (title, note, plots, tables) = match name.as_str() {
            "kernel" => (
                "The program in the kernel",
                "Nanoseconds a packet without those of the generator, the least of all rounds.",
                growth(run)?,
                vec![costs(run)],
            ),
            "traffic" => (
                "Traffic",
                "Medians of all rounds. Ratios are of what was done in the same round by an XDP program that forwards and \
                 balances nothing: in tables with their interval of 95 %, in plots with the least and the most of all \
                 rounds.",
                ratios(run)?,
                series::loads(run).iter().map(|load| loads(run, load)).collect(),
            ),
            "control" => ("The control plane", "Medians of all rounds.", vec![], figures(run)),
            "consistency" => (
                "Connections while backends change",
                "Of 100,000 connections, and what is remembered of them.",
                vec![],
                vec![histories(run)],
            ),
            _ => ("Another bench", "", vec![], vec![]),
        };
        Ok(Self { name, title, note, machine: machine(run), targets: targets(run), plots, tables })
    }
}

fn machine(run: &Value) -> String {
    let machine = &run["machine"];
    let mut facts = vec![text(&machine["cpu"])];
    facts.extend(machine["cores"].as_u64().map(|cores| format!("{cores} cores")));
    let kernel = if machine["kernel"].is_string() { &machine["kernel"] } else { &run["kernel"] };
    facts.push(format!("Linux {}", text(kernel)));
    facts.extend(run["commit"].as_str().map(|commit| format!("commit {commit}")));
    facts.retain(|fact| !fact.is_empty());
    facts.join(", ")
}

fn targets(run: &Value) -> Option<Table> {
    let rows: Vec<_> = list(&run["targets"]).iter().map(target).collect();
    let head = vec!["target", "limit", "measured", ""];
    (!rows.is_empty()).then(|| Table { caption: "Targets".to_owned(), head, rows })
}

/// Those of bench traffic are ratios with an interval.
fn target(target: &Value) -> Vec<String> {
    let bound = if target["most"].is_number() { "most" } else { "least" };
    let unit = if target["load"].is_string() { "x".to_owned() } else { text(&target["unit"]) };
    let limit = format!("at {bound} {} {unit}", number(&target[bound]));
    if !target["load"].is_string() {
        let verdict = if target["met"] == true { "met" } else { "not met" };
        let measured = format!("{} {unit}", number(&target["measured"]));
        return vec![text(&target["what"]), limit, measured, verdict.to_owned()];
    }
    let [contender, other, load] = ["contender", "other", "load"].map(|key| text(&target[key]));
    let measured = ratio(&target["ratio"], &target["interval"]);
    vec![format!("{contender} to {other}, {}", load_name(&load)), limit, measured, text(&target["verdict"])]
}

/// A ratio with its interval, if there are any.
fn ratio(ratio: &Value, interval: &Value) -> String {
    match list(interval) {
        _ if ratio.is_null() => String::new(),
        [low, high] => format!("{} ({} to {})", number(ratio), number(low), number(high)),
        _ => number(ratio),
    }
}

fn growth(run: &Value) -> Result<Vec<Plot>> {
    series::curves(run).iter().map(|(caption, curves)| plot::growth(caption, curves)).collect()
}

fn costs(run: &Value) -> Table {
    let row = |one: &Value| {
        let flows = if one["flows"].is_null() { "always new".to_owned() } else { number(&one["flows"]) };
        let program = &one["program"];
        let figures = [
            &one["net_min"],
            &one["net_median"],
            &one["executed"],
            &program["instructions"],
            &program["jited_bytes"],
        ];
        [text(&one["suite"]), text(&one["name"]), flows].into_iter().chain(figures.map(number)).collect()
    };
    Table {
        caption: "All measurements".to_owned(),
        head: vec![
            "suite",
            "",
            "flows",
            "least ns",
            "median ns",
            "instructions executed",
            "instructions of the program",
            "JITed bytes",
        ],
        rows: list(&run["measurements"]).iter().map(row).collect(),
    }
}

fn ratios(run: &Value) -> Result<Vec<Plot>> {
    let of = |load: &String| (load_name(load), series::spreads(run, load, BASE));
    let loads = series::loads(run);
    let spreads = loads.iter().map(of).filter(|(_, spreads)| !spreads.is_empty());
    spreads.map(|(load, spreads)| plot::ratios(&load, &spreads)).collect()
}

fn loads(run: &Value, load: &str) -> Table {
    let row = |contender: &String| {
        let turns: Vec<&Value> = list(&run["turns"])
            .iter()
            .filter(|turn| turn["load"] == load && turn["contender"] == contender.as_str())
            .collect();
        let figure = |figure: &dyn Fn(&Value) -> Option<f64>| {
            let all: Vec<f64> = turns.iter().filter_map(|turn| figure(turn)).collect();
            median(&all).map_or_else(String::new, digits)
        };
        let ratios = list(&run["ratios"]).iter().find(|one| {
            one["load"] == load && one["contender"] == contender.as_str() && one["other"] == BASE
        });
        vec![
            contender.clone(),
            figure(&|turn| Some(amount(turn)? / turn["seconds"].as_f64()?)),
            figure(&|turn| Some(turn["p50_microseconds"].as_f64()? / 1e3)),
            figure(&|turn| Some(turn["p99_microseconds"].as_f64()? / 1e3)),
            figure(&|turn| Some(turn["cpu_seconds"].as_f64()? / amount(turn)? * cost_of(load))),
            ratios.map_or_else(String::new, |one| ratio(&one["ratio"], &one["interval"])),
        ]
    };
    let (rate, cost) = match load {
        "downloads" => ("MB/s", "CPU s a GB"),
        _ => ("a second", "CPU s a million"),
    };
    Table {
        caption: load_name(load),
        head: vec!["", rate, "p50 ms", "p99 ms", cost, "to the XDP router"],
        rows: series::contenders(run, load).iter().map(row).collect(),
    }
}

/// What a load is about: megabytes of downloads, else operations.
fn amount(turn: &Value) -> Option<f64> {
    if turn["load"] == "downloads" {
        Some(turn["bytes"].as_f64()? / 1e6)
    } else {
        turn["operations"].as_f64()
    }
}

/// For how much of it CPU time is told.
fn cost_of(load: &str) -> f64 {
    if load == "downloads" { 1e3 } else { 1e6 }
}

fn load_name(load: &str) -> String {
    load.replace('_', " ")
}

fn figures(run: &Value) -> Vec<Table> {
    let row = |one: &Value| {
        let rounds: Vec<f64> = list(&one["rounds"]).iter().filter_map(Value::as_f64).collect();
        let most = rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let repeated = rounds.len() > 1;
        let spread =
            if repeated { format!("{} to {}", number(&one["min"]), digits(most)) } else { String::new() };
        let figure = format!("{} {}", number(&one["median"]), text(&one["unit"]));
        vec![text(&one["subject"]), text(&one["what"]), figure.trim_end().to_owned(), spread]
    };
    let chapters = list(&run["figures"]).chunk_by(|one, other| one["chapter"] == other["chapter"]);
    chapters
        .map(|chapter| Table {
            caption: text(&chapter[0]["chapter"]),
            head: vec!["", "", "median", "least to most"],
            rows: chapter.iter().map(row).collect(),
        })
        .collect()
}

fn histories(run: &Value) -> Table {
    let row = |history: &Value, outcome: &Value| {
        let entries = &outcome["entries"];
        let figures = [&outcome["broken"], &entries["peak"], &entries["an_hour_on"], &entries["settled"]];
        [text(&history["name"]), text(&outcome["balancer"])].into_iter().chain(figures.map(number)).collect()
    };
    let mut rows = Vec::new();
    for history in list(&run["histories"]) {
        rows.extend(list(&history["outcomes"]).iter().map(|outcome| row(history, outcome)));
    }
    Table {
        caption: "Histories".to_owned(),
        head: vec!["", "balancer", "broken", "entries at peak", "an hour on", "settled"],
        rows,
    }
}
