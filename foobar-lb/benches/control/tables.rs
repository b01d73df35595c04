//! Building tables and writing them into the maps of a loaded program.

use std::{
    hint::black_box,
    net::{Ipv4Addr, SocketAddr},
    time::Instant,
};

use anyhow::{Result, ensure};
use foobar_lb::{
    bpf::{Bpf, Capacities, Frames},
    maglev::{self, Member},
    plan::Step,
};
use foobar_lb_ebpf::layout::Slot;

use crate::{maps::OwnSlots, report::Report};

/// The chapter.
pub const TABLES: &str = "tables";
/// Building and writing together.
pub const BOTH: &str = "build and write";

const CAPACITIES: Capacities =
    Capacities { slots: 1 << 17, backends: 16_384, flows: 1_024, half_open: 1_024, mappings: 1_024 };

/// Builds and writes tables of all sizes that occur.
pub fn measure(report: &mut Report, rounds: u32) -> Result<()> {
    let mut bpf = Bpf::load(Frames::All, CAPACITIES, 1)?;
    let kernel = OwnSlots::find()?;
    for (size, backends) in
        [(1_021, 4), (1_021, 10), (1_021, 1_000), (65_537, 10), (65_537, 1_000), (65_537, 10_000)]
    {
        for round in 0..rounds {
            build_and_write(report, &mut bpf, &kernel, size, backends, round.into())?;
        }
    }
    Ok(())
}

/// How a table is called.
pub fn subject(size: u32, backends: u32) -> String {
    format!("{size} slots, {backends} backends")
}

/// Members like those of a large network.
pub fn members(count: u32) -> Vec<Member> {
    let address = |number: u32| SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + number), 80));
    (0..count).map(|number| Member { address: address(number), weight: 1 }).collect()
}

/// Another seed each time, so that nearly all slots change.
fn build_and_write(
    report: &mut Report,
    bpf: &mut Bpf,
    kernel: &OwnSlots,
    size: u32,
    backends: u32,
    seed: u64,
) -> Result<()> {
    let members = members(backends);
    let start = Instant::now();
    let owners = maglev::table(&members, size, seed);
    let built = start.elapsed();
    let slots: Vec<Slot> = black_box(owners).into_iter().map(Slot::settled).collect();
    let step = Step::StoreSlots { table: 0, place: 0, slots };
    let rendered = start.elapsed();
    bpf.apply(&step)?;
    let written = start.elapsed();
    let Step::StoreSlots { slots, .. } = step else { unreachable!("it is made above") };
    ensure!(kernel.read(0, size)? == slots, "the kernel has other slots than were written");
    let subject = subject(size, backends);
    report.add_time(TABLES, &subject, "build", built);
    report.add_time(TABLES, &subject, "write", written - rendered);
    report.add_time(TABLES, &subject, BOTH, written);
    Ok(())
}
