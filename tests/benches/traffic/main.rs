//! `cargo xtask bench traffic`: what real clients and servers get through the balancer, beside other ways to the same
//! servers, in networks of namespaces on one machine.
//!
//! Every contender has a network of its own, and all of them stand from the beginning to the end. A round gives each a
//! turn of each load, in a random order, so that a change in the machine's speed meets all alike; ratios are of turns of
//! the same round. A contender is timed only after both servers were found to answer through it, and after every turn the
//! kernel's counters have to tell that packets took its way. No figure makes the bench fail.

mod contender;
mod counters;
mod flood;
mod load;
#[path = "../../../foobar-lb/benches/support/machine.rs"]
mod machine;
mod peer;
mod program;
mod report;
#[path = "../../../foobar-lb/benches/support/start.rs"]
mod start;
mod statistics;
#[path = "../../support/mod.rs"]
#[expect(dead_code, reason = "the stories of the traffic tests need more of it")]
mod support;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rand::seq::SliceRandom;

use contender::{Contender, Stand};
use load::Load;
use report::{Report, Turn};

/// Ratios of fewer rounds have no interval of 95 %. What is measured further is only what targets need.
const LEAST_ROUNDS: u32 = 6;

/// Measures what gets through foobar-lb and through others, side by side. `xtask/src/bench.rs` has the defaults.
#[derive(Parser)]
struct Arguments {
    /// Rounds at most; there are fewer if that resolves all ratios of the targets.
    #[arg(long)]
    rounds: u32,
    /// No round begins after so many minutes.
    #[arg(long)]
    minutes: u64,
    /// How long a turn is.
    #[arg(long)]
    seconds: u64,
    /// Only contenders with this in their names; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Only loads with this in their names, as in "small"; may be given several times.
    #[arg(long, value_name = "NAME")]
    load: Vec<String>,
    /// Writes the results, every turn of them, to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Cargo says so to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start::start("traffic", || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    let loads = choose("load", Load::ALL.into(), Load::name, &arguments.load)?;
    let contenders = choose("contender", Contender::all(), Contender::name, &arguments.only)?;
    let stands = stand_up(contenders)?;
    let mut report = Report::new(arguments.seconds)?;
    let limit = Duration::from_secs(arguments.minutes.saturating_mul(60));
    for round in 1..=arguments.rounds {
        eprintln!("round {round}, after {} s", start.elapsed().as_secs());
        play(round, &stands, &loads, &mut report)?;
        let is_over = round >= LEAST_ROUNDS && report.is_resolved();
        if is_over || start.elapsed() > limit {
            break;
        }
    }
    println!("{report}");
    arguments.json.as_deref().map_or(Ok(()), |file| report.write(file))
}

/// All, or those that have one of the parts in their names. A part that none has is a mistake.
fn choose<T: Copy>(kind: &str, all: Vec<T>, name: fn(T) -> &'static str, parts: &[String]) -> Result<Vec<T>> {
    let has = |&one: &T, part: &String| name(one).contains(part.as_str());
    for part in parts {
        let names: Vec<_> = all.iter().copied().map(name).collect();
        ensure!(
            all.iter().any(|one| has(one, part)),
            "no {kind} has \"{part}\" in its name: there are {}",
            names.join(", ")
        );
    }
    let is_wanted = |one: &T| parts.is_empty() || parts.iter().any(|part| has(one, part));
    Ok(all.into_iter().filter(is_wanted).collect())
}

/// Contenders in their places, each found to work.
fn stand_up(contenders: Vec<Contender>) -> Result<Vec<Stand>> {
    let stand_up = |(number, contender): (usize, Contender)| {
        let stand = Stand::new(&format!("bench-{number}"), contender);
        stand.and_then(|stand| stand.check().map(|()| stand)).with_context(|| contender.name())
    };
    contenders.into_iter().enumerate().map(stand_up).collect()
}

/// A turn of every contender under every load. Those of one load follow each other, since they are compared.
fn play(round: u32, stands: &[Stand], loads: &[Load], report: &mut Report) -> Result<()> {
    let mut order: Vec<_> = stands.iter().collect();
    for &load in loads {
        order.shuffle(&mut rand::rng());
        for stand in &order {
            let contender = stand.contender;
            let is_due = round <= LEAST_ROUNDS || report.lacks(load, contender);
            if !is_due || !contender.can_bear(load) {
                continue;
            }
            let sample = stand
                .bear(load, report.seconds)
                .with_context(|| format!("{}, {}", contender.name(), load.name()))?;
            report.turns.push(Turn { round, contender, load, sample });
        }
    }
    Ok(())
}
