//! What was measured, every round of it, and as JSON.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use aya::programs::ProgramInfo;
use serde_json::{Value, json};

use crate::{
    generator::ENDLESS,
    machine::Machine,
    suite::Subject,
    targets::{self, Target},
};

/// All measurements.
pub struct Report {
    pub machine: Machine,
    pub measurements: Vec<Measurement>,
}

/// Nanoseconds per packet of one subject with so many flows, round by round.
pub struct Measurement {
    pub suite: &'static str,
    pub subject: Subject,
    pub flows: u64,
    pub program: Program,
    /// Of the generator alone.
    pub generator: Vec<f64>,
    /// Of the generator and the program behind it.
    pub both: Vec<f64>,
}

/// A program, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub name: String,
    /// As the verifier left them.
    pub instructions: u32,
    /// How many of them the verifier went through, on all ways.
    pub verified: u32,
    /// Size of the machine code.
    pub jited_bytes: u32,
}

impl Report {
    /// Nothing measured yet.
    pub fn new() -> Result<Self> {
        Ok(Self { machine: Machine::find()?, measurements: Vec::new() })
    }

    /// Writes all of it as JSON.
    pub fn write(&self, file: &Path) -> Result<()> {
        let Machine { cpu, kernel, commit } = &self.machine;
        let value = json!({
            "bench": "kernel",
            "unit": "nanoseconds per packet",
            "commit": commit,
            "machine": { "cpu": cpu, "kernel": kernel },
            "measurements": self.measurements.iter().map(Measurement::to_json).collect::<Vec<_>>(),
            "targets": targets::of(&self.measurements).iter().map(Target::to_json).collect::<Vec<_>>(),
        });
        fs::write(file, format!("{value:#}\n")).with_context(|| format!("cannot write {}", file.display()))
    }
}

impl Measurement {
    /// The least of what the program costs by itself.
    pub fn net_min(&self) -> f64 {
        min(&self.both) - min(&self.generator)
    }

    /// The median of what it costs, round by round.
    pub fn net_median(&self) -> f64 {
        let nets: Vec<f64> =
            self.both.iter().zip(&self.generator).map(|(both, alone)| both - alone).collect();
        median(&nets)
    }

    fn to_json(&self) -> Value {
        let Self { suite, subject, flows, program, generator, both } = self;
        let Program { name, instructions, verified, jited_bytes } = program;
        json!({
            "suite": suite,
            "name": subject.name(),
            "flows": if *flows == ENDLESS { Value::Null } else { (*flows).into() },
            "program": {
                "name": name,
                "instructions": instructions,
                "verified": verified,
                "jited_bytes": jited_bytes,
            },
            "net_min": self.net_min(),
            "net_median": self.net_median(),
            "generator_rounds": generator,
            "both_rounds": both,
        })
    }
}

impl Program {
    /// What the kernel tells of it.
    pub fn new(info: &ProgramInfo) -> Result<Self> {
        /// Bytes of an instruction (RFC 9669, 3).
        const INSTRUCTION: u32 = 8;
        const TOO_OLD: &str = "the kernel does not tell the size of a program";
        Ok(Self {
            name: info.name_as_str().context("the kernel does not tell the name of a program")?.to_owned(),
            instructions: info.size_translated().context(TOO_OLD)? / INSTRUCTION,
            verified: info.verified_instruction_count().context(TOO_OLD)?,
            jited_bytes: info.size_jitted(),
        })
    }
}

/// The least of them.
pub fn min(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The one in their middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
