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
mod tables;
mod targets;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use clap::Parser;
use nix::unistd::geteuid;

use self::report::Report;

/// Measures what the control plane takes.
#[derive(Parser)]
struct Arguments {
    /// How often each is measured.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// How long health checks are watched.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Writes the results, every round of them, to this file too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Cargo says so to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(geteuid().is_root(), "only root may load XDP programs: use `cargo xtask bench control`");
    let mut report = Report::new()?;
    balance::measure(&mut report);
    tables::measure(&mut report, arguments.rounds)?;
    changes::measure(&mut report, arguments.rounds)?;
    daemon::measure(&mut report, arguments.rounds)?;
    checks::measure(&mut report, arguments.seconds)?;
    println!("{report}");
    arguments.json.as_deref().map_or(Ok(()), |file| report.write(file))
}
