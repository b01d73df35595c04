//! What was measured: a table for people, every round of it as JSON, and what it was measured on.

use std::{fmt, fs, process::Command};

use anyhow::{Context, Result};
use aya::programs::ProgramInfo;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde_json::{Value, json};

/// Nanoseconds per packet on one path with so many flows, round by round.
pub struct Measurement {
    pub path: &'static str,
    pub flows: u32,
    /// Of the generator alone.
    pub generator: Vec<f64>,
    /// Of the generator and the program behind it.
    pub both: Vec<f64>,
}

/// All measurements.
pub struct Report {
    pub measurements: Vec<Measurement>,
    program: Program,
    machine: Machine,
}

/// The program that was measured.
struct Program {
    /// As the verifier left them.
    instructions: u32,
    /// How many of them the verifier went through, on all ways.
    verified: u32,
    /// Size of the machine code.
    jited_bytes: u32,
}

/// What it was measured on.
struct Machine {
    cpu: String,
    kernel: String,
    commit: String,
}

impl Report {
    /// Nothing measured yet.
    pub fn new(info: &ProgramInfo) -> Result<Self> {
        const TOO_OLD: &str = "the kernel does not tell the size of a program";
        let program = Program {
            instructions: info.size_translated().context(TOO_OLD)? / 8,
            verified: info.verified_instruction_count().context(TOO_OLD)?,
            jited_bytes: info.size_jitted(),
        };
        Ok(Self { measurements: Vec::new(), program, machine: Machine::find()? })
    }

    /// Writes all of it as JSON.
    pub fn write(&self, file: &std::path::Path) -> Result<()> {
        let Machine { cpu, kernel, commit } = &self.machine;
        let Program { instructions, verified, jited_bytes } = self.program;
        let value = json!({
            "bench": "kernel",
            "unit": "nanoseconds per packet",
            "commit": commit,
            "machine": { "cpu": cpu, "kernel": kernel },
            "program": { "instructions": instructions, "verified": verified, "jited_bytes": jited_bytes },
            "measurements": self.measurements.iter().map(Measurement::to_json).collect::<Vec<_>>(),
        });
        fs::write(file, format!("{value:#}\n")).with_context(|| format!("cannot write {}", file.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, kernel, commit } = &self.machine;
        let Program { instructions, verified, jited_bytes } = self.program;
        writeln!(f, "{cpu}, Linux {kernel}, commit {commit}")?;
        writeln!(
            f,
            "program: {instructions} instructions, {jited_bytes} bytes JITed, {verified} instructions verified"
        )?;
        writeln!(
            f,
            "nanoseconds per packet, least and median of the rounds; net is without the generator\n"
        )?;
        let mut table = Table::new();
        table.load_preset(NOTHING);
        table.set_header(["path", "flows", "net min", "net median", "generator min", "generator median"]);
        for measurement in &self.measurements {
            let Measurement { path, flows, generator, .. } = measurement;
            let [net_min, net_median] = measurement.net();
            let mut row = vec![(*path).to_owned(), flows.to_string()];
            row.extend(
                [net_min, net_median, min(generator), median(generator)].map(|value| format!("{value:.1}")),
            );
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write!(f, "{table}")
    }
}

impl Measurement {
    /// What the program costs by itself: least and median.
    fn net(&self) -> [f64; 2] {
        [min(&self.both) - min(&self.generator), median(&self.both) - median(&self.generator)]
    }

    fn to_json(&self) -> Value {
        let Self { path, flows, generator, both } = self;
        let [net_min, net_median] = self.net();
        json!({
            "path": path,
            "flows": flows,
            "net_min": net_min,
            "net_median": net_median,
            "generator_rounds": generator,
            "both_rounds": both,
        })
    }
}

impl Machine {
    fn find() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let kernel =
            fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
        Ok(Self {
            cpu: model.map_or("unknown CPU", |(_, name)| name.trim()).to_owned(),
            kernel: kernel.trim().to_owned(),
            commit: describe_commit().unwrap_or_else(|| "unknown".to_owned()),
        })
    }
}

/// The commit, and whether the files differ from it; none without git.
fn describe_commit() -> Option<String> {
    let mut git = Command::new("git");
    // As root in another's checkout git wants to be told that this is meant.
    git.args(["-c", "safe.directory=*", "describe", "--always", "--dirty", "--abbrev=12"]);
    let output = git.current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn min(rounds: &[f64]) -> f64 {
    rounds.iter().copied().fold(f64::INFINITY, f64::min)
}

fn median(rounds: &[f64]) -> f64 {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
