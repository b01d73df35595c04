//! Reading and forgetting what the kernel's maps remember.

use anyhow::{Result, ensure};
use foobar_lb::{
    bpf::Capacities,
    image::Image,
    model::Protocol,
    sweep::{RememberedFlow, Store},
};
use foobar_lb_ebpf::layout::{Endpoint, FlowKey, Remembered, TCP, Traffic, mapped, name};

use crate::{
    CAPACITIES,
    kernel::Kernel,
    packet::{
        DataPath,
        frame::{Datagram, Transport},
        list,
        world::{CLIENT_SIDE, Family, Story, WEB1, id},
    },
};

const MAPS: [&str; 3] = [name::HALF_OPEN, name::ESTABLISHED, name::ADOPTED];
const EACH: u32 = 500;

/// So many flows in each map; their numbers tell them apart.
fn fill(kernel: &mut Kernel) {
    let flows = MAPS.into_iter().flat_map(|map| (0..EACH).map(move |number| numbered(map, number)));
    for flow in flows {
        assert!(kernel.flows.remember(&flow), "no room for {flow:?}");
    }
}

fn numbered(map: &'static str, number: u32) -> RememberedFlow {
    let end = |address| Endpoint::new(mapped(address), [0, 80], TCP);
    let flow = FlowKey { source: end(number.to_be_bytes()), destination: end([203, 0, 113, 80]) };
    RememberedFlow { map, flow, remembered: Remembered { backend: 0, state: 0 }, seen: number.into() }
}

#[test]
fn what_is_not_to_be_kept_is_forgotten() -> Result<()> {
    let mut kernel = Kernel::new(CAPACITIES)?;
    fill(&mut kernel);
    ensure!(kernel.bpf.retain(|flow| flow.seen % 3 == 0)?, "nobody disturbs");
    let mut left: Vec<_> = kernel.remembered().iter().map(|flow| (flow.map, flow.seen)).collect();
    left.sort_unstable();
    let mut expected: Vec<_> =
        MAPS.into_iter().flat_map(|map| (0..EACH.into()).step_by(3).map(move |seen| (map, seen))).collect();
    expected.sort_unstable();
    ensure!(left == expected, "{left:?} are left");
    Ok(())
}

/// A flow is put among the established ones before it is taken off the half-open ones.
#[test]
fn half_open_flows_are_read_first() -> Result<()> {
    let mut kernel = Kernel::new(CAPACITIES)?;
    fill(&mut kernel);
    let mut maps: Vec<_> = kernel.remembered().iter().map(|flow| flow.map).collect();
    maps.dedup();
    ensure!(maps == MAPS, "{maps:?}");
    Ok(())
}

/// When the flow that the iteration stands on is gone, the kernel begins anew. The other maps are read all the same.
#[test]
fn a_scan_that_was_disturbed_says_so() -> Result<()> {
    let mut kernel = Kernel::new(CAPACITIES)?;
    fill(&mut kernel);
    let Kernel { bpf, flows, .. } = &mut kernel;
    let mut shown = 0;
    let whole = bpf.retain(|flow| {
        shown += 1;
        if shown == EACH / 2 {
            flows.forget(flow);
        }
        true
    })?;
    let others = 2 * EACH;
    ensure!(!whole && shown == EACH / 2 + others, "whole: {whole}, after {shown} flows");
    let left = list(bpf)?.map(|flows| flows.len());
    ensure!(left == Some(3 * EACH as usize - 1), "{left:?} flows are left");
    Ok(())
}

#[test]
fn an_id_that_is_given_again_counts_from_zero() -> Result<()> {
    let mut kernel = Kernel::new(CAPACITIES)?;
    let backend = id(WEB1, Family::V4, Protocol::Tcp);
    kernel.load(&Story::settled().image());
    kernel.run(&mut Datagram::request(Family::V4, Transport::Ack).frame(), CLIENT_SIDE.index);
    ensure!(kernel.traffic(backend).forward.packets == 1, "{:?}", kernel.traffic(backend));
    kernel.load(&Image::default());
    kernel.load(&Story::settled().image());
    ensure!(kernel.traffic(backend) == Traffic::default(), "{:?}", kernel.traffic(backend));
    Ok(())
}

#[test]
fn memory_follows_the_capacities() -> Result<()> {
    let memory = |capacities| -> Result<u64> { Ok(Kernel::new(capacities)?.bpf.flows_memory()?) };
    let Capacities { flows, half_open, .. } = CAPACITIES;
    let entry = size_of::<FlowKey>() as u64 + 16;
    let small = memory(CAPACITIES)?;
    let large = memory(Capacities { flows: 4 * flows, half_open: 4 * half_open, ..CAPACITIES })?;
    ensure!(small >= u64::from(flows + half_open) * entry, "{small} bytes");
    ensure!(large >= small + 3 * u64::from(flows + half_open) * entry, "{small} and {large} bytes");
    Ok(())
}
