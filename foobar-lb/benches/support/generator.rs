//! Runs the flow generator (`foobar-lb-ebpf/src/generator.rs`) in the kernel: many packets of as many flows, each handed
//! to the program behind it. Benches and tests share it; what they send and what has to come of it is their own.

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions, include_bytes_aligned,
    maps::{MapData, ProgramArray},
    programs::{ProgramFd, Xdp},
};
use zerocopy::IntoBytes;

/// All frames are of this length.
pub type Frame = [u8; 80];

/// The packet of the first flow, and where in it those of others differ.
#[derive(Clone, Copy)]
pub struct Template {
    pub frame: Frame,
    /// Where the last two bytes of the client's address begin; there is a client for every 16 flows.
    pub address_at: u32,
    /// Where the client's port begins.
    pub port_at: u32,
}

/// The generator for one template.
pub struct Generator {
    ebpf: Ebpf,
    next: ProgramArray<MapData>,
    /// `struct xdp_md` (linux/bpf.h): data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    context: [u32; 6],
    frame: Frame,
}

impl Generator {
    /// Loads it. Its packets arrive by the interface `ingress` and belong to `flows` flows, which follow each other in
    /// an order that is always the same: a power of two, and at most 2^20.
    pub fn load(template: &Template, flows: u32, ingress: u32) -> Result<Self> {
        ensure!(flows.is_power_of_two() && flows <= 1 << 20, "there cannot be {flows} flows");
        let mut ebpf = EbpfLoader::new()
            .override_global("TEMPLATE", &template.frame, true)
            .override_global("FLOWS", &flows, true)
            .override_global("ADDRESS_AT", &template.address_at, true)
            .override_global("PORT_AT", &template.port_at, true)
            .load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-generator")))
            .context("the kernel refused the generator")?;
        let next = ebpf.take_map("NEXT").context("the generator has no map NEXT")?;
        program(&mut ebpf)?.load().context("the verifier refused the generator")?;
        let context = [0, size_of::<Frame>() as u32, 0, ingress, 0, 0];
        Ok(Self { ebpf, next: next.try_into()?, context, frame: template.frame })
    }

    /// Hands the next packets to a program, or to none. Returns the verdict on the last and what became of it.
    pub fn send(&mut self, packets: u32, to: Option<&ProgramFd>) -> Result<(u32, Frame)> {
        match to {
            Some(program) => self.next.set(0, program, 0)?,
            None => self.next.clear_index(&0)?,
        }
        let mut frame = self.frame;
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            data_out: Some(&mut frame),
            ctx_in: Some(self.context.as_bytes()),
            repeat: packets,
            ..TestRunOptions::default()
        };
        let verdict = program(&mut self.ebpf)?.test_run(options)?.return_value;
        Ok((verdict, frame))
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    Ok(ebpf
        .program_mut("generate")
        .context("the generator's object has no program `generate`")?
        .try_into()?)
}
