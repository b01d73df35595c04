//! `cargo xtask bench`: builds a bench, and runs it as root in a sandbox. What it measures and how is its own.

use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::cargo;
use crate::sandbox::{self, Network};

/// What to measure.
#[derive(Subcommand)]
pub enum Subject {
    /// Nanoseconds per packet of the XDP program in this machine's kernel, path by path.
    Kernel {
        /// Writes the results to this file too, as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Connections that break when backends come and go, and the memory that keeps them, of foobar-lb and others.
    ///
    /// Fails if foobar-lb breaks one, keeps anything for ever, or remembers more than a tenth of what others do.
    Consistency {
        /// Writes the results to this file too, as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

/// Runs one bench.
pub fn bench(subject: &Subject) -> Result<ExitCode> {
    match subject {
        Subject::Kernel { json } => run_bench("foobar-lb", "kernel", json.as_deref()),
        Subject::Consistency { json } => run_bench("foobar-lb", "consistency", json.as_deref()),
    }
}

fn run_bench(package: &str, target: &str, json: Option<&Path>) -> Result<ExitCode> {
    let built = cargo::build(&["bench", "--package", package, "--bench", target, "--no-run"])?;
    let mut command = sandbox::command(built.executable(target)?, Network::Private)?;
    if let Some(path) = json {
        command.arg("--json").arg(absolute(path)?);
    }
    let status = sandbox::wait(&mut command)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
