//! `cargo xtask`: every task of the project, in the words that continuous integration uses too. One file per
//! task; the command line is here.

mod bench;
mod build;
mod cargo;
mod fuzz;
mod musl;
mod package;
mod report;
mod run;
mod sandbox;
mod setup;
mod successor;
mod test;
mod tidy;
mod toolchain;

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The tasks of foobar-lb: set-up, build, demonstration, tests, benches, house rules.
///
/// `run`, `test`, `bench` and `build` install what they miss, as `setup` does, and say so first.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what is needed to build, run and test, where it is missing.
    ///
    /// Says what it will run before it does, and uses sudo for what needs root. On other systems than Debian
    /// and its kin it names the packages and exits with 2.
    Setup,
    /// Builds the daemon, the XDP program and the site for release, and prints the size of the program.
    Build,
    /// Builds Debian's package of the daemon, and prints where it is.
    ///
    /// Installs cargo-deb if it is missing.
    Package {
        /// Builds the daemon alone, as a file that needs no library, for systems that are not Debian's.
        #[arg(long = "static")]
        is_static: bool,
    },
    /// Brings www.foobar.com up behind the balancer, on this machine, until Ctrl-C.
    ///
    /// Nginx, the application and MySQL run for real, each in a network namespace of its own. Nothing of them
    /// is left behind. Needs root, or sudo.
    Run {
        /// Proves that it works, prints what was proved, and exits with 0 only if all of it held.
        #[arg(long)]
        once: bool,
    },
    /// Runs the tests: all rings but that of the package, from the inside out, up to the first that fails.
    ///
    /// With CI=true in the environment a skipped test counts as a failure.
    Test {
        /// Runs this ring alone.
        ring: Option<test::Ring>,
    },
    /// Measures how fast it is.
    Bench {
        #[command(subcommand)]
        subject: bench::Subject,
    },
    /// Looks for frames that the data path does not treat as it has to, and adds to the corpus of such that it does.
    ///
    /// Installs cargo-fuzz if it is missing, and needs rustup's nightly compiler. Ends with the first frame that goes
    /// wrong; else the corpus, `fuzz/corpus/balance`, is minimised.
    Fuzz {
        /// For so long, building not counted.
        #[arg(long, default_value_t = 10, value_name = "N")]
        minutes: u64,
    },
    /// Checks the house rules: who imports whom, how long things are, where `unsafe` may be.
    Tidy,
    /// The inside of `run`: the site itself.
    #[command(hide = true)]
    RunInside(run::Inside),
    /// The inside of the sandbox: its first process.
    #[command(hide = true)]
    Sandboxed {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    perform(Arguments::parse().task).unwrap_or_else(|error| {
        // Not returned from main, which would add a backtrace wherever RUST_BACKTRACE is set.
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => setup::set_up(setup::Manner::Talkative),
        Task::Build => prepared(build::build),
        Task::Package { is_static } => prepared(|| package::package(is_static)),
        Task::Run { once } => prepared(|| run::run(once)),
        Task::Test { ring } => prepared(|| test::test(ring)),
        Task::Bench { subject } => prepared(|| bench::bench(&subject)),
        Task::Fuzz { minutes } => prepared(|| fuzz::fuzz(minutes)),
        Task::Tidy => tidy::tidy(),
        Task::RunInside(inside) => run::run_inside(&inside),
        Task::Sandboxed { command } => sandbox::run_inside(&command),
    }
}

/// Runs a task on a machine that has what it needs.
fn prepared(task: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    match setup::set_up(setup::Manner::Quiet)? {
        ExitCode::SUCCESS => task(),
        failure => Ok(failure),
    }
}

/// The directory of the workspace.
fn workspace() -> PathBuf {
    // As `cargo run` tells it: two checkouts that share a target directory share this executable too.
    let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let package = PathBuf::from(package);
    package.parent().expect("the package is a directory of the workspace").to_owned()
}
