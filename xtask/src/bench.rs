//! `cargo xtask bench`: builds a bench, and runs it as root in a sandbox. What it measures and how is its own.

use std::path::{Path, PathBuf, absolute};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Subcommand, value_parser};

use crate::build;
use crate::cargo;
use crate::report;
use crate::sandbox::{self, Network};

/// What to measure.
#[derive(Subcommand)]
pub enum Subject {
    /// Nanoseconds per packet of the XDP program in this machine's kernel, path by path.
    ///
    /// They are printed without what it costs to make a packet; ratios and whether targets are met are told beside. No
    /// figure makes it fail, but a packet that becomes another than it should does.
    Kernel {
        /// Measures only what has all of these words in its name, as in "nat IPv4 SYN"; may be given several times.
        #[arg(long, value_name = "WORDS")]
        only: Vec<String>,
        /// Measures also what is left out else: SYNs in other modes than nat, moves, floods and full tracking in IPv6, moves
        /// in other modes than nat, and 1,024 and 262,144 flows.
        #[arg(long)]
        all: bool,
        /// How often each is measured.
        #[arg(long, default_value_t = 9, value_parser = value_parser!(u32).range(1..))]
        rounds: u32,
        /// Measures this XDP program instead of ours, by its id or where it is pinned, in the network namespace of the
        /// caller. It takes the packets for real ones: it counts and remembers them.
        #[arg(long, value_name = "ID|PIN", requires = "vip", conflicts_with = "only")]
        program: Option<String>,
        /// Where that program's packets are sent to.
        #[arg(long, value_name = "ADDRESS:PORT[/tcp|udp]", requires = "program")]
        vip: Option<String>,
        /// The interface that they come by, to which the program is attached; without one it is the loopback.
        #[arg(long, value_name = "NAME", requires = "program")]
        interface: Option<String>,
        /// Writes the results to this file too, as JSON.
        #[arg(long, value_name = "FILE", value_parser = parse_results_file)]
        json: Option<PathBuf>,
    },
    /// What clients and servers get through foobar-lb, and through others, on this machine.
    ///
    /// Ratios are of rounds in which each had its turn. No figure makes it fail, but a contender that does not work does.
    Traffic {
        /// Rounds at most; there are fewer if that resolves all ratios of the targets.
        #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..))]
        rounds: u32,
        /// No round begins after so many minutes.
        #[arg(long, default_value_t = 15)]
        minutes: u64,
        /// How long each contender bears a load in a round.
        #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..))]
        seconds: u64,
        /// Only contenders with this in their names; may be given several times.
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// Only loads with this in their names, as in "small"; may be given several times.
        #[arg(long, value_name = "NAME")]
        load: Vec<String>,
        /// Writes the results, every turn of them, to this file too, as JSON.
        #[arg(long, value_name = "FILE", value_parser = parse_results_file)]
        json: Option<PathBuf>,
    },
    /// What the control plane takes: time, CPU and memory.
    ///
    /// Tables built and written, large configurations taken in and changed, health checks by the thousand. No figure makes it
    /// fail, but a map that holds another thing than it should does.
    Control {
        /// How often each is measured.
        #[arg(long, default_value_t = 7, value_parser = value_parser!(u32).range(1..))]
        rounds: u32,
        /// For how many seconds health checks are watched.
        #[arg(long, default_value_t = 10, value_parser = value_parser!(u64).range(1..))]
        seconds: u64,
        /// Writes the results, every round of them, to this file too, as JSON.
        #[arg(long, value_name = "FILE", value_parser = parse_results_file)]
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
        #[arg(long, value_name = "FILE", value_parser = parse_results_file)]
        json: Option<PathBuf>,
    },
    /// One JSON file and one page of what benches have written by `--json`; and figures in documents.
    Report {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The directory that gets `report.json` and `report.html`.
        #[arg(long, value_name = "DIR", default_value = "target/bench")]
        out: PathBuf,
        /// A document whose figures, between `<!-- bench NAME -->` and `<!-- /bench -->`, are replaced; may be given several
        /// times.
        #[arg(long, value_name = "FILE")]
        update: Vec<PathBuf>,
    },
}

/// Runs one bench.
pub fn bench(subject: &Subject) -> Result<ExitCode> {
    match subject {
        Subject::Kernel { only, all, rounds, program, vip, interface, json } => {
            let mut arguments = vec![format!("--rounds={rounds}")];
            arguments.extend(only.iter().map(|words| format!("--only={words}")));
            arguments.extend(all.then(|| "--all".to_owned()));
            for (option, value) in [("--program", program), ("--vip", vip), ("--interface", interface)] {
                arguments.extend(value.iter().map(|value| format!("{option}={value}")));
            }
            // Somebody else's program is pinned outside, and has its routes there.
            let place = if program.is_some() { Place::Outside } else { Place::Sandbox };
            run_bench("kernel", place, &arguments, json.as_deref())
        }
        Subject::Report { files, out, update } => {
            report::report(files, out, update).map(|()| ExitCode::SUCCESS)
        }
        Subject::Control { rounds, seconds, json } => {
            let arguments = [format!("--rounds={rounds}"), format!("--seconds={seconds}")];
            run_bench("control", Place::Sandbox, &arguments, json.as_deref())
        }
        Subject::Consistency { seed, json } => {
            run_bench("consistency", Place::Sandbox, &[format!("--seed={seed}")], json.as_deref())
        }
        Subject::Traffic { rounds, minutes, seconds, only, load, json } => {
            let mut arguments = vec![
                format!("--rounds={rounds}"),
                format!("--minutes={minutes}"),
                format!("--seconds={seconds}"),
            ];
            arguments.extend(only.iter().map(|name| format!("--only={name}")));
            arguments.extend(load.iter().map(|name| format!("--load={name}")));
            bench_traffic(&arguments, json.as_deref())
        }
    }
}

/// Where a bench runs, as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In a sandbox with a network of its own.
    Sandbox,
    /// Where the caller is.
    Outside,
}

/// Beside the bench there is the daemon, and what is loaded into the kernel to compare it with.
fn bench_traffic(arguments: &[String], json: Option<&Path>) -> Result<ExitCode> {
    let programs = build::release()?;
    let built = cargo::build(&["bench", "--package", "lab", "--bench", "traffic", "--no-run"])?;
    let mut command = sandbox::command(built.executable("traffic")?, Network::Private)?;
    command.args(arguments);
    command.env("FOOBAR_LB_BIN", programs.executable("foobar-lb")?);
    command.env("FOOBAR_LB_OBJECTS", programs.out_dir("foobar-lb")?);
    finish(command, json)
}

fn run_bench(target: &str, place: Place, arguments: &[String], json: Option<&Path>) -> Result<ExitCode> {
    let built = cargo::build(&["bench", "--package", "foobar-lb", "--bench", target, "--no-run"])?;
    let program = built.executable(target)?;
    let mut command = match place {
        Place::Sandbox => sandbox::command(program, Network::Private)?,
        Place::Outside => sandbox::root_command(program),
    };
    command.args(arguments);
    finish(command, json)
}

fn finish(mut command: Command, json: Option<&Path>) -> Result<ExitCode> {
    if let Some(path) = json {
        command.arg("--json").arg(path);
    }
    let status = sandbox::wait(&mut command)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A file that can be written when the bench is over, which may be long after. The bench may run elsewhere.
fn parse_results_file(text: &str) -> Result<PathBuf> {
    let file = absolute(text)?;
    let directory = file.parent().context("it is no file")?;
    ensure!(directory.is_dir(), "there is no directory {}", directory.display());
    ensure!(!file.is_dir(), "it is a directory");
    Ok(file)
}
