//! `cargo xtask bench kernel`: what a packet costs in the XDP program, path by path, in nanoseconds.
//!
//! Every packet is made by the generator (`foobar-lb-ebpf/src/generator.rs`), which then calls the program. Rounds of
//! the generator alone and of both alternate, so that a change in the machine's speed meets both; the difference is
//! the program's cost, the call included. A path is timed only after its first packet came out as expected, and
//! afterwards all of its packets must have been counted as such.

#[path = "../support/generator.rs"]
mod generator;
mod path;
mod place;
mod report;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, include_bytes_aligned,
    programs::{ProgramFd, Xdp},
};
use clap::Parser;
use nix::{
    time::{ClockId, clock_gettime},
    unistd::geteuid,
};

use generator::Generator;
use path::{Kind, Path};
use place::Place;
use report::{Measurement, Report};

/// Packets of a round: few long runs, because to start one costs microseconds.
const PACKETS: u32 = 1_000_000;
const ROUNDS: usize = 9;
/// How many flows the packets belong to: what is in the caches with one may not be with more.
const FLOWS: [u32; 3] = [1, 1 << 14, 1 << 20];

/// Measures nanoseconds per packet of the XDP program in this machine's kernel, path by path.
#[derive(Parser)]
struct Arguments {
    /// Writes the results, every round of them, to this file too.
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
            eprintln!("bench kernel: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(geteuid().is_root(), "only root may load XDP programs: use `cargo xtask bench kernel`");
    let mut place = Place::new()?;
    let mut report = Report::new(&place.bpf.program().info()?)?;
    for path in path::all() {
        for flows in FLOWS {
            report.measurements.push(measure(&path, flows, &mut place)?);
        }
    }
    println!("{report}");
    arguments.json.as_deref().map_or(Ok(()), |file| report.write(file))
}

fn measure(path: &Path, flows: u32, place: &mut Place) -> Result<Measurement> {
    let mut generator = Generator::load(&path.template, flows, place.interface)?;
    let program = match path.kind {
        Kind::Bare => load_transmit()?,
        _ => place.bpf.program().fd()?.try_clone()?,
    };
    let (verdict, frame) = generator.send(1, Some(&program))?;
    path.check(verdict, &frame)?;
    let before = path.kind.counted(&place.bpf)?;
    let mut measurement = Measurement { path: path.name, flows, generator: vec![], both: vec![] };
    for _ in 0..ROUNDS {
        measurement.generator.push(time(&mut generator, None)?);
        measurement.both.push(time(&mut generator, Some(&program))?);
    }
    let counted = path.kind.counted(&place.bpf)? - before;
    let sent = u64::from(PACKETS) * ROUNDS as u64;
    ensure!(
        path.kind == Kind::Bare || counted == sent,
        "{}: {counted} of {sent} packets took this path",
        path.name
    );
    Ok(measurement)
}

/// Nanoseconds per packet of generator and program, or of the generator alone.
fn time(generator: &mut Generator, program: Option<&ProgramFd>) -> Result<f64> {
    // The kernel's own measurement is rounded to whole nanoseconds. This thread's clock stands while others run.
    let clock = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    let start = clock()?;
    generator.send(PACKETS, program)?;
    let took = Duration::from(clock()? - start);
    Ok(took.as_nanos() as f64 / f64::from(PACKETS))
}

/// A program that sends every packet back and does nothing else.
fn load_transmit() -> Result<ProgramFd> {
    let mut ebpf = Ebpf::load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-generator")))?;
    let transmit: &mut Xdp = ebpf
        .program_mut("transmit")
        .context("the generator's object has no program `transmit`")?
        .try_into()?;
    transmit.load()?;
    Ok(transmit.fd()?.try_clone()?)
}
