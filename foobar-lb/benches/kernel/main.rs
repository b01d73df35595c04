//! `cargo xtask bench kernel`: what a packet costs in the XDP program, path by path, in nanoseconds.
//!
//! Every packet is made by the generator (`foobar-lb-ebpf/src/generator.rs`), which then calls the program. Rounds of
//! the generator alone and of both alternate, so that a change in the machine's speed meets both; the difference is
//! the program's cost, the call included. A path is timed only after its first packet came out as expected, and
//! afterwards all of its packets must have been counted as such.

mod address;
mod balancer;
mod baseline;
mod clock;
mod contest;
mod contestant;
mod count;
mod counters;
mod frame;
#[path = "../support/generator.rs"]
mod generator;
mod given;
#[expect(dead_code, reason = "tests look into the maps, too")]
#[path = "../support/interpreter/mod.rs"]
mod interpreter;
#[path = "../support/machine.rs"]
mod machine;
mod path;
mod place;
mod report;
mod setup;
#[path = "../support/start.rs"]
mod start;
mod suite;
mod table;
mod targets;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;

use clock::Clock;
use given::Given;
use place::Place;
use report::Report;

/// Measures nanoseconds per packet of the XDP program in this machine's kernel, path by path.
#[derive(Parser)]
struct Arguments {
    /// Measures only what has all of these words in its name; may be given several times.
    #[arg(long, value_name = "WORDS")]
    only: Vec<String>,
    /// Measures all of the matrix.
    #[arg(long)]
    all: bool,
    /// How often each is measured.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[command(flatten)]
    given: Given,
    /// Writes the results, every round of them, to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Cargo says so to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start::start("kernel", || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut report = Report::new()?;
    println!("{}", report.machine);
    let (mut clock, error) = Clock::new();
    if let Some(error) = error {
        println!("no instructions and cache misses: this machine shows no CPU counters ({error})");
    }
    println!();
    if arguments.given.is_some() {
        report.measurements = arguments.given.measure(arguments.all, arguments.rounds, &mut clock)?;
        println!(
            "\n{}\n\n{}",
            table::of_suite("given", &report.measurements),
            table::of_programs(&report.measurements)
        );
    } else {
        measure_ours(arguments, &mut clock, &mut report)?;
    }
    arguments.json.as_deref().map_or(Ok(()), |file| report.write(file))
}

fn measure_ours(arguments: &Arguments, clock: &mut Clock, report: &mut Report) -> Result<()> {
    let suites = suite::select(arguments.all, &arguments.only)?;
    let mut place = Place::new()?;
    for suite in suites {
        let measurements = contest::measure(&suite, arguments.rounds, clock, &mut place)?;
        println!("{}\n", table::of_suite(suite.name, &measurements));
        report.measurements.extend(measurements);
    }
    println!("{}\n\n{}", table::of_programs(&report.measurements), targets::table(&report.measurements));
    Ok(())
}
