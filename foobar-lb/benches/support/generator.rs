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

/// As many flows as there can be: the next packet is always of a new one.
pub const ENDLESS: u64 = 1 << 32;

/// Outer headers are shorter.
const MOST_GROWTH: usize = 128;

/// The packet of the first flow, and where in it those of others differ.
#[derive(Clone, Copy)]
pub struct Template {
    pub frame: Frame,
    /// Where the last two bytes of the client's address begin; there is a client for every 16 flows.
    pub client_at: u32,
    /// Where the client's port begins.
    pub port_at: u32,
    /// Where the last two bytes of the server's address begin; of no effect if there is but one.
    pub server_at: u32,
    /// How many servers the flows are for.
    pub servers: u32,
    /// Whether the program behind puts something before the frame.
    pub grows: bool,
}

impl Template {
    /// All flows are for one server, and frames stay as long as they are.
    pub const fn new(frame: Frame, client_at: u32, port_at: u32) -> Self {
        Self { frame, client_at, port_at, server_at: 0, servers: 1, grows: false }
    }
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
    /// an order that is another one each time: a power of two, and at most [`ENDLESS`].
    pub fn load(template: &Template, flows: u64, ingress: u32) -> Result<Self> {
        ensure!(flows.is_power_of_two() && flows <= ENDLESS, "there cannot be {flows} flows");
        let mut ebpf = EbpfLoader::new()
            .override_global("TEMPLATE", &template.frame, true)
            .override_global("LAST_FLOW", &((flows - 1) as u32), true)
            .override_global("CLIENT_AT", &template.client_at, true)
            .override_global("PORT_AT", &template.port_at, true)
            .override_global("SERVER_AT", &template.server_at, true)
            .override_global("SERVERS", &template.servers, true)
            .override_global("GROWS", &u32::from(template.grows), true)
            .load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-generator")))
            .context("the kernel refused the generator")?;
        let next = ebpf.take_map("NEXT").context("the generator has no map NEXT")?;
        program(&mut ebpf)?.load().context("the verifier refused the generator")?;
        let context = [0, size_of::<Frame>() as u32, 0, ingress, 0, 0];
        Ok(Self { ebpf, next: next.try_into()?, context, frame: template.frame })
    }

    /// Hands the next packets to a program, or to none. Returns the verdict on the last and what became of it.
    pub fn send(&mut self, packets: u32, to: Option<&ProgramFd>) -> Result<(u32, Vec<u8>)> {
        match to {
            Some(program) => self.next.set(0, program, 0)?,
            None => self.next.clear_index(&0)?,
        }
        let mut frame = [0; size_of::<Frame>() + MOST_GROWTH];
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            data_out: Some(&mut frame),
            ctx_in: Some(self.context.as_bytes()),
            repeat: packets,
            ..TestRunOptions::default()
        };
        let result = program(&mut self.ebpf)?.test_run(options)?;
        Ok((result.return_value, frame[..result.data_size_out as usize].to_vec()))
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    Ok(ebpf
        .program_mut("generate")
        .context("the generator's object has no program `generate`")?
        .try_into()?)
}
