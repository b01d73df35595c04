//! `cargo xtask bench control`: what the control plane takes, in time, CPU and memory.
//!
//! Tables are built and written into real maps of this kernel; large configurations are taken in by the library, part by
//! part, and by the daemon itself, as a process attached to an interface. What was written is read back from the kernel
//! before a time counts.

mod balance;
mod changes;
mod checks;
mod configuration;
mod daemon;
#[path = "../support/machine.rs"]
mod machine;
mod maps;
mod report;
#[path = "../support/start.rs"]
mod start;
mod tables;
mod targets;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, value_parser};

use self::report::Report;

/// Measures what the control plane takes.
#[derive(Parser)]
struct Arguments {
    /// How often each is measured.
    #[arg(long, default_value_t = 7, value_parser = value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long health checks are watched.
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u64).range(1..))]
    seconds: u64,
    /// Writes the results, every round of them, to this file too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Cargo says so to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start::start("control", || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut report = Report::new()?;
    balance::measure(&mut report);
    tables::measure(&mut report, arguments.rounds)?;
    changes::measure(&mut report, arguments.rounds)?;
    daemon::measure(&mut report, arguments.rounds)?;
    checks::measure(&mut report, arguments.seconds)?;
    println!("{report}");
    arguments.json.as_deref().map_or(Ok(()), |file| report.write(file))
}
