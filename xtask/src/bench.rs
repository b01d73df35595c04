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
    /// Fails if foobar-lb breaks one, has not forgotten all in the end, or remembers more than a tenth of what full
    /// tracking does an hour after a change.
    Consistency {
        /// Draws other clients and changes.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Writes the results to this file too, as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

/// Runs one bench.
pub fn bench(subject: &Subject) -> Result<ExitCode> {
    match subject {
        Subject::Kernel { json } => run_bench("kernel", &[], json.as_deref()),
        Subject::Consistency { seed, json } => {
            run_bench("consistency", &["--seed", &seed.to_string()], json.as_deref())
        }
    }
}

fn run_bench(target: &str, arguments: &[&str], json: Option<&Path>) -> Result<ExitCode> {
    let built = cargo::build(&["bench", "--package", "foobar-lb", "--bench", target, "--no-run"])?;
    let mut command = sandbox::command(built.executable(target)?, Network::Private)?;
    command.args(arguments);
    if let Some(path) = json {
        command.arg("--json").arg(absolute(path)?);
    }
    let status = sandbox::wait(&mut command)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
