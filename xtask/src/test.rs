//! `cargo xtask test`: the rings of tests from the inside out. The rings that need root are built as the user
//! and run in a [`sandbox`](crate::sandbox).

mod tally;

use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::cargo::{self, Artifacts, cargo};
use crate::sandbox::{self, Network};
use crate::toolchain::Toolchain;
use crate::{build, package, setup, successor, tidy, workspace};
use tally::Tally;

/// How many traffic tests run at once: each has a balancer and servers of its own, and measures times.
const TRAFFIC_THREADS: &str = "--test-threads=2";

/// What the names of the control groups of `tests/machine.rs` begin with.
const MACHINES: &str = "foobar-lb-test-";

/// One layer of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ring {
    /// Format, lints, house rules, and all tests that need neither root nor a network.
    Host,
    /// The XDP program in this machine's kernel, fed with single packets. Needs root.
    Program,
    /// The daemon between real clients and servers, in network namespaces. Needs root.
    Traffic,
    /// Debian's package on a clean machine with systemd. Needs root, and a mirror of Debian for the first time, so it is
    /// run only by its name.
    Package,
}

/// What is run where no ring is named.
const USUAL: [Ring; 3] = [Ring::Host, Ring::Program, Ring::Traffic];

/// What came of a ring.
struct Outcome {
    ring: Ring,
    tally: Tally,
    took: Duration,
}

/// Runs one ring or all of them, up to the first that fails, and prints a summary.
pub fn test(ring: Option<Ring>) -> Result<ExitCode> {
    let rings = ring.as_ref().map_or(&USUAL[..], std::slice::from_ref);
    let may_skip = env::var("CI").as_deref() != Ok("true");
    let mut outcomes = Vec::new();
    for &ring in rings {
        let start = Instant::now();
        let tally = ring.run()?;
        outcomes.push(Outcome { ring, tally, took: start.elapsed() });
        if !tally.is_good(may_skip) {
            break;
        }
    }
    let mut total = Tally::default();
    outcomes.iter().for_each(|outcome| total += outcome.tally);
    print_summary(rings, &outcomes, may_skip);
    println!("{total}");
    Ok(if total.is_good(may_skip) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Ring {
    fn run(self) -> Result<Tally> {
        println!("== {self} ==");
        match self {
            Self::Host => test_host(),
            Self::Program => test_program(),
            Self::Traffic => test_traffic(),
            Self::Package => test_package(),
        }
    }
}

impl std::fmt::Display for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.to_possible_value().expect("no ring is hidden").get_name())
    }
}

fn test_host() -> Result<Tally> {
    const LINTS: [&str; 3] = ["--", "-D", "warnings"];
    let mut clippy_for_bpf =
        Toolchain::find().context("no BPF toolchain; run `cargo xtask setup`")?.cargo("clippy");
    clippy_for_bpf.current_dir(workspace()).args(LINTS);
    let mut tally = Tally::default();
    for command in [
        &mut cargo(&["fmt", "--all", "--check"]),
        cargo(&["clippy", "--workspace", "--all-targets"]).args(LINTS),
        &mut clippy_for_bpf,
    ] {
        tally += Tally::of(command)?;
    }
    tally += Tally::of_check(tidy::tidy()? == ExitCode::SUCCESS);
    // Tests that need root say `test = false` in their manifest, so they run only where they are named.
    tally += Tally::of(&mut cargo(&["test", "--workspace", "--no-fail-fast"]))?;
    Ok(tally)
}

fn test_program() -> Result<Tally> {
    let built = build_test("foobar-lb", "program")?;
    test_in_sandbox(built.executable("program")?, "foobar-lb", &[], &[])
}

fn test_traffic() -> Result<Tally> {
    let successor = successor::make()?;
    let programs = build::release()?;
    let built = build_test("lab", "traffic")?;
    let environment = [
        ("FOOBAR_LB_BIN", programs.executable("foobar-lb")?.as_os_str()),
        ("FOOBAR_LB_SUCCESSOR_BIN", successor.as_os_str()),
        ("FOOBAR_SITE_BIN", programs.executable("foobar-site")?.as_os_str()),
    ];
    test_in_sandbox(built.executable("traffic")?, "tests", &[TRAFFIC_THREADS], &environment)
}

fn test_package() -> Result<Tally> {
    let root = setup::clean_root()?;
    let package = package::build()?;
    let built = build_test("lab", "package")?;
    let environment = [("FOOBAR_LB_DEB", package.as_os_str()), ("FOOBAR_LB_ROOT", root.as_os_str())];
    let mut command = command_in_sandbox(built.executable("package")?, "tests", &[], &environment)?;
    sandbox::uninterrupted(|| {
        let tally = Tally::of(&mut command);
        // All that a sandbox has ends with it, but for these.
        sandbox::remove_control_groups(MACHINES)?;
        tally
    })?
}

/// The optimised build, because that is the object under test.
fn build_test(package: &str, test: &str) -> Result<Artifacts> {
    cargo::build(&["test", "--release", "--package", package, "--test", test, "--no-run"])
}

fn test_in_sandbox(
    executable: &Path,
    directory: &str,
    arguments: &[&str],
    environment: &[(&str, &OsStr)],
) -> Result<Tally> {
    let mut command = command_in_sandbox(executable, directory, arguments, environment)?;
    sandbox::uninterrupted(|| Tally::of(&mut command))?
}

fn command_in_sandbox(
    executable: &Path,
    directory: &str,
    arguments: &[&str],
    environment: &[(&str, &OsStr)],
) -> Result<Command> {
    let mut command: Command = sandbox::command(executable, Network::Private)?;
    command.args(arguments).envs(environment.iter().copied());
    command.current_dir(workspace().join(directory));
    Ok(command)
}

fn print_summary(rings: &[Ring], outcomes: &[Outcome], may_skip: bool) {
    println!("\n{:8} {:>7} {:>7} {:>7} {:>7}", "ring", "passed", "failed", "skipped", "seconds");
    for Outcome { ring, tally, took } in outcomes {
        let Tally { passed, failed, skipped } = tally;
        println!("{ring:8} {passed:>7} {failed:>7} {skipped:>7} {:>7.1}", took.as_secs_f32());
    }
    for ring in &rings[outcomes.len()..] {
        println!("{ring:8} not run");
    }
    if !may_skip && outcomes.iter().any(|outcome| outcome.tally.skipped > 0) {
        println!("Skipped tests fail this run, because CI=true.");
    }
}
