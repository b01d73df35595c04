//! `cargo xtask fuzz`: looks for frames that the data path does not treat as it has to, and leaves a small corpus. What
//! is tried and what has to be true of it is in `foobar-lb/tests/fuzz`.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::toolchain::NIGHTLY;
use crate::workspace;

const TARGET: &str = "balance";
/// Bytes of a scene at most: enough for eight messages.
const LONGEST: &str = "-max_len=600";
/// Each place in the code once, however often it is passed: that keeps the corpus small.
const PLACES_ONLY: &str = "-use_counters=0";

/// Fuzzes for so many minutes, from the corpus on, and minimises what the corpus has become.
pub fn fuzz(minutes: u64) -> Result<ExitCode> {
    provide_cargo_fuzz()?;
    let time = format!("-max_total_time={}", minutes * 60);
    if !run(&["run", TARGET, "--", &time, LONGEST])? {
        println!(
            "fuzz: a scene went wrong; above is what, the frame, and how to run it again.\n\
             fuzz: mend it, and keep the frame in a test of foobar-lb/tests/corpus.rs"
        );
        return Ok(ExitCode::FAILURE);
    }
    let minimised = run(&["cmin", TARGET, "--", LONGEST, PLACES_ONLY])?;
    Ok(if minimised { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// cargo-fuzz, and the compiler it needs: the sanitizer is not to be had with a stable one.
fn provide_cargo_fuzz() -> Result<()> {
    if NIGHTLY.ask("rustc", &["--version"]).is_none() {
        bail!("there is no nightly compiler: run `rustup toolchain install nightly --profile=minimal`");
    }
    if NIGHTLY.ask("cargo", &["fuzz", "--version"]).is_some() {
        return Ok(());
    }
    let words = ["install", "--locked", "cargo-fuzz"];
    println!("fuzz: cargo-fuzz is missing\nfuzz: $ cargo {}", words.join(" "));
    let mut command = Command::new(env!("CARGO"));
    let status = command.args(words).status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("cargo-fuzz could not be installed: {status}");
    }
    Ok(())
}

/// Runs `cargo fuzz WORDS` with the nightly compiler, and tells whether it succeeded.
fn run(words: &[&str]) -> Result<bool> {
    println!("fuzz: $ cargo +nightly fuzz {}", words.join(" "));
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo", "fuzz"]).args(words).current_dir(workspace());
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    Ok(status.success())
}
