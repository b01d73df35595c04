//! The XDP program in this machine's kernel: loading it is the verifier's test, then it runs the packet table, is
//! compared with its twin on the host and stands floods. Needs root; it works in network namespaces of its own.

mod decap;
mod floods;
mod generated;
#[path = "../../benches/support/generator.rs"]
mod generator;
mod interpreted;
#[path = "../../benches/support/interpreter/mod.rs"]
mod interpreter;
mod kernel;
mod limits;
mod mapping;
#[path = "../packet/mod.rs"]
mod packet;
mod paths;
mod remembered;
mod routes;

use std::{cell::RefCell, time::Duration};

use anyhow::{Result, anyhow, ensure};
use foobar_lb::{bpf::Capacities, image::Image};
use kernel::Kernel;
use packet::{
    Arrival, DataPath, Held, Memory,
    frame::ETHERNET,
    hex,
    host::Host,
    increase, mappings, memories,
    noise::{arrivals, images},
    world::{FLOWS, HALF_OPEN, MAPPINGS},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};

const CAPACITIES: Capacities =
    Capacities { slots: 1024, backends: 64, flows: FLOWS, half_open: HALF_OPEN, mappings: MAPPINGS };
const COMPARISONS: u32 = 2_000;

#[test]
fn every_row_of_the_table_holds() -> Result<()> {
    let mut kernel = Kernel::new(CAPACITIES)?;
    let rows = packet::all();
    let wrong: Vec<String> = rows
        .iter()
        .filter(|row| row.frame.len() >= ETHERNET)
        .filter_map(|row| row.check(&mut kernel).err())
        .collect();
    ensure!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn kernel_and_host_agree_on_any_frames() -> Result<()> {
    let kernel = RefCell::new(Kernel::new(CAPACITIES)?);
    let config = Config {
        cases: COMPARISONS,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..Config::default()
    };
    // The kernel takes no frame that ends before its Ethernet header.
    let arrivals = arrivals(&packet::all(), ETHERNET);
    let compared = TestRunner::new(config).run(&(images(), arrivals), |(image, arrivals)| {
        let in_kernel = tell(&mut *kernel.borrow_mut(), &image, &arrivals);
        let on_host = tell(&mut Host::new(Image::default()), &image, &arrivals);
        prop_assert_eq!(in_kernel, on_host);
        Ok(())
    });
    compared.map_err(|error| anyhow!("{error}"))
}

/// What becomes of frames that arrive one after the other, in words.
fn tell(path: &mut impl DataPath, image: &Image, arrivals: &[Arrival]) -> Vec<String> {
    path.load(image);
    let mut told = Vec::new();
    for Arrival { ingress, frame } in arrivals {
        let reasons = path.reasons();
        let mut frame = frame.clone();
        let verdict = path.run(&mut frame, *ingress);
        told.push(format!("{verdict:?} {} {:?}", hex(&frame), increase(&reasons, &path.reasons())));
    }
    let now = path.now();
    let mut memories = memories(path, now);
    memories.sort_by_key(|memory| (memory.map, memory.flow));
    told.extend(memories.into_iter().map(|memory| format!("{:?}", Memory { age: Duration::ZERO, ..memory })));
    let mappings = mappings(path, now).into_iter();
    told.extend(mappings.map(|held| format!("{:?}", Held { age: Duration::ZERO, ..held })));
    told
}
