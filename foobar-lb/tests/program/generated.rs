//! The flow generator itself, which floods and benches rely on: which flows come, in which order, and before what programs.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use aya::{Ebpf, include_bytes_aligned, programs::Xdp};

use crate::generator::{Ends, Flows, Frame, Generator, Template};

const XDP_PASS: u32 = 2;
/// Where the test's frames have a client's last bytes, its port, and the server's last bytes.
const PLACES: [usize; 3] = [28, 34, 32];
const TEMPLATE: Template = Template {
    server_at: PLACES[2] as u32,
    servers: 10,
    ..Template::new([0; size_of::<Frame>()], PLACES[0] as u32, PLACES[1] as u32)
};

#[test]
fn every_flow_comes_once_and_then_again_in_another_order() -> Result<()> {
    const FLOWS: usize = 1 << 12;
    let mut generator = Generator::load(&TEMPLATE, Flows::Numbered(FLOWS as u64), 0)?;
    let first = generate(&mut generator, FLOWS)?;
    let again = generate(&mut generator, FLOWS)?;
    ensure!(first[0] == [0; 3] && again[0] == [0; 3], "the first packet is not as the template");
    let flows: BTreeSet<Ends> = first.iter().copied().collect();
    ensure!(flows.len() == FLOWS && flows == again.iter().copied().collect(), "some come twice");
    let servers: BTreeSet<u16> = flows.iter().map(|[_, _, server]| *server).collect();
    ensure!(servers == (0..10).collect(), "they are for the servers {servers:?}");

    // What was seen in a row first may be in a row in memory, and so may neighbours by number.
    let seen = |flow: &Ends| first.iter().position(|other| other == flow).expect("both have all flows");
    let numbers = |[client, port, _]: &Ends| usize::from(*client) << 4 | usize::from(*port);
    for place in [&seen as &dyn Fn(&Ends) -> usize, &numbers] {
        let neighbours =
            again.windows(2).filter(|pair| place(&pair[0]).abs_diff(place(&pair[1])) == 1).count();
        ensure!(neighbours == 0, "{neighbours} pairs in a row were neighbours before");
    }
    Ok(())
}

#[test]
fn listed_flows_are_as_listed() -> Result<()> {
    let list: Vec<Ends> = (0..8).map(|number| [number, 100 + number, 200 + number]).collect();
    let mut generator = Generator::load(&TEMPLATE, Flows::Listed(&list), 0)?;
    let flows: BTreeSet<Ends> = generate(&mut generator, list.len())?.into_iter().collect();
    ensure!(flows == list.iter().copied().collect(), "{flows:?} came");
    Ok(())
}

#[test]
fn it_runs_before_programs_that_take_frames_in_one_buffer_only() -> Result<()> {
    let mut object = Ebpf::load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-generator")))?;
    let linear: &mut Xdp = object.program_mut("generate_linear").expect("the object has it").try_into()?;
    linear.load()?;
    let mut generator = Generator::load_for(linear.fd()?, &TEMPLATE, Flows::Numbered(1), 0)?;
    let (verdict, _) = generator.send(1, Some(linear.fd()?))?;
    ensure!(verdict == XDP_PASS, "the verdict is {verdict}");
    Ok(())
}

/// What the next packets differ in from the template.
fn generate(generator: &mut Generator, packets: usize) -> Result<Vec<Ends>> {
    let read = |frame: Vec<u8>| PLACES.map(|at| u16::from_be_bytes([frame[at], frame[at + 1]]));
    (0..packets).map(|_| Ok(read(generator.send(1, None)?.1))).collect()
}
