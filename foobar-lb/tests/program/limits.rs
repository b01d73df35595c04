//! What depends on the kernel's clock or on a driver, and so is no row of the table.

use std::time::Instant;

use anyhow::{Result, ensure};
use aya::util::nr_cpus;
use foobar_lb_ebpf::reason::{Reason, Verdict};

use crate::{
    CAPACITIES,
    kernel::Kernel,
    packet::{
        DataPath,
        frame::{Datagram, Transport},
        way::TUNNELS,
        world::{CLIENT_SIDE, Family, Story},
    },
};

/// Each CPU tells fifty in a row, and then one in a millisecond.
#[test]
fn so_many_are_told_and_no_more() -> Result<()> {
    const FLOOD: u64 = 5_000;
    let mut kernel = Kernel::new(CAPACITIES)?;
    kernel.load(&Story::settled().image());
    let request = Datagram { hops: 1, ..Datagram::request(Family::V4, Transport::Udp) }.frame();
    let start = Instant::now();
    let mut told = 0;
    for _ in 0..FLOOD {
        told += u64::from(kernel.run(&mut request.clone(), CLIENT_SIDE.index) == Verdict::Transmit);
    }
    let most = nr_cpus().map_err(|(_, error)| error)? as u64 * (50 + start.elapsed().as_millis() as u64 + 1);
    ensure!((50..=most).contains(&told), "{told} were told, of {most} at most");
    let silent = counted(&kernel, Reason::ErrorLimit);
    ensure!(told + silent == FLOOD && silent > 0, "{told} were told and {silent} not");
    Ok(())
}

/// What precedes the frame as metadata takes the room of outer headers.
#[test]
fn a_packet_that_finds_no_room_is_dropped() -> Result<()> {
    const METADATA: usize = 212;
    let mut kernel = Kernel::new(CAPACITIES)?;
    for (way, before) in TUNNELS.into_iter().zip(0..) {
        kernel.load(&way.story().image());
        let frame = Datagram::request(Family::V4, Transport::Udp).frame();
        let (verdict, _) = kernel.run_behind(METADATA, &frame, CLIENT_SIDE.index)?;
        ensure!(verdict == Verdict::Drop, "{way:?}: {verdict:?}");
        let no_room = counted(&kernel, Reason::NoRoom);
        ensure!(no_room == before + 1, "{way:?}: counted {no_room} times");
    }
    Ok(())
}

fn counted(kernel: &Kernel, reason: Reason) -> u64 {
    let reasons = kernel.reasons();
    reasons.iter().filter(|(known, _)| *known == reason).map(|(_, count)| count.packets).sum()
}
