//! What was measured, every round of it, and as JSON.

use std::path::Path;

use anyhow::Result;
use aya::programs::ProgramInfo;
use serde_json::{Value, json};

use crate::{
    clock::Rounds,
    contestant::Contestant,
    counters::EVENTS,
    generator::ENDLESS,
    machine::Machine,
    suite::{Case, Subject},
    targets::{self, Target},
};

/// All measurements.
pub struct Report {
    pub machine: Machine,
    pub measurements: Vec<Measurement>,
}

/// What one subject cost with so many flows, per packet and round by round.
pub struct Measurement {
    pub suite: &'static str,
    pub subject: Subject,
    pub flows: u64,
    pub program: Program,
    /// BPF instructions of a packet, as the compiler wrote them, where they are counted.
    pub executed: Option<u64>,
    /// Of the generator alone.
    pub generator: Rounds,
    /// Of the generator and the program behind it.
    pub both: Rounds,
}

/// A program, as the kernel knows it; what an old kernel does not tell is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub name: String,
    /// As the verifier left them.
    pub instructions: Option<u32>,
    /// How many of them the verifier went through, on all ways.
    pub verified: Option<u32>,
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
        let results = json!({
            "unit": "nanoseconds per packet",
            "measurements": self.measurements.iter().map(Measurement::to_json).collect::<Vec<_>>(),
            "targets": targets::of(&self.measurements).iter().map(Target::to_json).collect::<Vec<_>>(),
        });
        self.machine.write("kernel", results, file)
    }
}

impl Measurement {
    pub fn new(suite: &'static str, contestant: Contestant) -> Self {
        let Contestant { case: Case { subject, flows }, program, executed, alone, both, .. } = contestant;
        Self { suite, subject, flows, program: program.facts, executed, generator: alone, both }
    }

    /// The least of what the program costs by itself, nanoseconds.
    pub fn net_min(&self) -> f64 {
        min(&self.both.nanoseconds) - min(&self.generator.nanoseconds)
    }

    /// The median of what it costs, round by round, nanoseconds.
    pub fn net_median(&self) -> f64 {
        let rounds = self.both.nanoseconds.iter().zip(&self.generator.nanoseconds);
        median(&rounds.map(|(both, alone)| both - alone).collect::<Vec<_>>())
    }

    /// The median of how often an event of the CPU occurs in it; none where the CPU does not show that.
    pub fn net_event(&self, event: usize) -> Option<f64> {
        let rounds = self.both.events.iter().zip(&self.generator.events);
        let nets: Vec<f64> = rounds.map(|(both, alone)| both[event] - alone[event]).collect();
        (!nets.is_empty()).then(|| median(&nets))
    }

    fn to_json(&self) -> Value {
        let Self { suite, subject, flows, program, executed, generator, both } = self;
        let Program { name, instructions, verified, jited_bytes } = program;
        let events = (0..EVENTS.len()).map(|event| (EVENTS[event].to_owned(), self.net_event(event).into()));
        json!({
            "suite": suite,
            "name": subject.name(),
            "flows": if *flows == ENDLESS { Value::Null } else { (*flows).into() },
            "program": {
                "name": subject.program_name().unwrap_or(name),
                "instructions": instructions,
                "verified": verified,
                "jited_bytes": jited_bytes,
            },
            "executed": executed,
            "net_min": self.net_min(),
            "net_median": self.net_median(),
            "net_events": Value::Object(events.collect()),
            "generator_rounds": generator.nanoseconds,
            "both_rounds": both.nanoseconds,
            "generator_events": generator.events,
            "both_events": both.events,
        })
    }
}

impl Program {
    /// What the kernel tells of it.
    pub fn new(info: &ProgramInfo) -> Self {
        /// Bytes of an instruction (RFC 9669, 3).
        const INSTRUCTION: u32 = 8;
        Self {
            name: info.name_as_str().unwrap_or("?").to_owned(),
            instructions: info.size_translated().map(|bytes| bytes / INSTRUCTION),
            verified: info.verified_instruction_count(),
            jited_bytes: info.size_jitted(),
        }
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
