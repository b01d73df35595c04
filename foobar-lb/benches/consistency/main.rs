//! `cargo xtask bench consistency`: which connections break when backends come and go, and what it costs to keep them.
//!
//! Simulated clients talk to the XDP program in this machine's kernel, packet by packet, while a script changes the set
//! of backends through the control plane as it is. The same clients and scripts meet three balancers: foobar-lb, the
//! same without any memory of flows, and the same with a memory of every flow. Time is simulated where it counts: for
//! the control plane and for the sweep. The bench fails where foobar-lb breaks a connection, keeps anything when all
//! has come to rest, or remembers more than it may: it is a check as well.

mod balancer;
mod clients;
mod frames;
mod history;
#[path = "../support/machine.rs"]
mod machine;
mod play;
mod report;
mod simulated;
#[path = "../support/start.rs"]
mod start;

use std::{path::PathBuf, process::ExitCode, thread};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use foobar_lb::bpf::Capacities;

use self::{
    balancer::Tracking,
    history::History,
    play::play,
    report::{Chapter, Report},
};

/// Room for flows as it is by default, in foobar-lb's three maps and in the one of full tracking alike.
const CAPACITIES: Capacities =
    Capacities { slots: 1 << 17, backends: 32, flows: 262_144, half_open: 65_536, mappings: 1 };

/// Counts the connections that break when backends come and go, and the entries that keep them.
#[derive(Parser)]
struct Arguments {
    /// Writes the results to this file too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws other dice for clients, changes and hashes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cargo says so to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start::start("consistency", || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut report = Report::new(arguments.seed, CAPACITIES)?;
    println!("{report}");
    for history in history::all(arguments.seed) {
        let chapter = tell(history, arguments.seed)?;
        println!("\n{chapter}");
        report.chapters.push(chapter);
    }
    if let Some(file) = &arguments.json {
        report.write(file)?;
    }
    let failures = report.failures();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Plays a history on all balancers, each on a thread of its own; then, where full tracking needs the most, with room
/// for half of that.
fn tell(history: History, seed: u64) -> Result<Chapter> {
    let outcomes = thread::scope(|scope| {
        let threads = Tracking::ALL.map(|tracking| {
            let history = &history;
            scope.spawn(move || play(history, tracking, CAPACITIES, seed))
        });
        let joined = threads.into_iter().map(|thread| thread.join().expect("no thread panics"));
        joined.collect::<Result<Vec<_>>>()
    })
    .with_context(|| format!("history `{}`", history.name))?;
    let mut chapter = Chapter { history, outcomes, cramped: None };
    if chapter.history.overlaps {
        let half = u32::try_from(chapter.outcome(Tracking::All).peak / 2)?;
        let capacities = Capacities { flows: half, half_open: 0, ..CAPACITIES };
        chapter.cramped = Some(play(&chapter.history, Tracking::All, capacities, seed)?);
    }
    Ok(chapter)
}
