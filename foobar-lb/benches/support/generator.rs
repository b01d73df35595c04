//! Runs the flow generator (`foobar-lb-ebpf/src/generator.rs`) in the kernel: many packets of as many flows, each handed
//! to the program behind it. Benches and tests share it; what they send and what has to come of it is their own.

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions, include_bytes_aligned,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, Xdp},
};
use zerocopy::IntoBytes;

/// All frames are of this length.
pub type Frame = [u8; 80];

/// As many flows as there can be: the next packet is always of a new one.
pub const ENDLESS: u64 = 1 << 32;

/// Outer headers are shorter than this, bytes.
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

/// What the packets of a flow differ in from the template, bit by bit: the last two bytes of the client's address, its port,
/// and the last two bytes of the server's.
pub type Ends = [u16; 3];

/// What packets are made of: those of this template, and of as many flows.
#[derive(Clone, Copy)]
pub enum Flows<'l> {
    /// A power of two, at most [`ENDLESS`], that the generator finds the ends of.
    Numbered(u64),
    /// A power of two of listed ones.
    Listed(&'l [Ends]),
}

/// The generator for one template.
pub struct Generator {
    ebpf: Ebpf,
    program: &'static str,
    next: ProgramArray<MapData>,
    /// Whether there is a program behind it.
    hands_on: bool,
    /// `struct xdp_md` (linux/bpf.h): data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    context: [u32; 6],
    frame: Frame,
}

impl Generator {
    /// Loads it, to run before programs that take frames of several buffers. Its packets arrive by the interface
    /// `ingress`. Flows follow each other in an order that is another one each time; the first packet is as the template.
    pub fn load(template: &Template, flows: Flows<'_>, ingress: u32) -> Result<Self> {
        Self::load_program("generate", template, flows, ingress)
    }

    /// Loads it so that it can run before this program.
    pub fn load_for(
        program: &ProgramFd,
        template: &Template,
        flows: Flows<'_>,
        ingress: u32,
    ) -> Result<Self> {
        let mut generator = Self::load(template, flows, ingress)?;
        if generator.hand_on(Some(program)).is_err() {
            generator = Self::load_program("generate_linear", template, flows, ingress)?;
            generator.hand_on(Some(program)).context(
                "the kernel lets no program of ours call it, as where it was loaded without the attach type BPF_XDP",
            )?;
        }
        Ok(generator)
    }

    fn load_program(name: &'static str, template: &Template, flows: Flows<'_>, ingress: u32) -> Result<Self> {
        let (count, list) = match flows {
            Flows::Numbered(count) => (count, &[][..]),
            Flows::Listed(list) => (list.len() as u64, list),
        };
        ensure!(count.is_power_of_two() && count <= ENDLESS, "there cannot be {count} flows");
        let mut ebpf = EbpfLoader::new()
            .override_global("TEMPLATE", &template.frame, true)
            .override_global("LAST_FLOW", &((count - 1) as u32), true)
            .override_global("CLIENT_AT", &template.client_at, true)
            .override_global("PORT_AT", &template.port_at, true)
            .override_global("SERVER_AT", &template.server_at, true)
            .override_global("SERVERS", &template.servers, true)
            .override_global("GROWS", &u32::from(template.grows), true)
            .override_global("LISTED", &u32::from(!list.is_empty()), true)
            .map_max_entries("LIST", list.len().max(1) as u32)
            .load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-generator")))
            .context("the kernel refused the generator")?;
        let next = ebpf.take_map("NEXT").context("the generator has no map NEXT")?;
        write_list(&mut ebpf, list)?;
        program(&mut ebpf, name)?.load().context("the verifier refused the generator")?;
        let context = [0, size_of::<Frame>() as u32, 0, ingress, 0, 0];
        let next = next.try_into()?;
        Ok(Self { ebpf, program: name, next, hands_on: false, context, frame: template.frame })
    }

    /// Hands the next packets to a program, or to none. Returns the verdict on the last and what became of it.
    pub fn send(&mut self, packets: u32, to: Option<&ProgramFd>) -> Result<(u32, Vec<u8>)> {
        self.hand_on(to)?;
        let mut frame = [0; size_of::<Frame>() + MOST_GROWTH];
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            data_out: Some(&mut frame),
            ctx_in: Some(self.context.as_bytes()),
            repeat: packets,
            ..TestRunOptions::default()
        };
        let result = program(&mut self.ebpf, self.program)?.test_run(options)?;
        Ok((result.return_value, frame[..result.data_size_out as usize].to_vec()))
    }

    /// Chooses the program behind it, or none.
    fn hand_on(&mut self, to: Option<&ProgramFd>) -> Result<()> {
        match to {
            Some(program) => self.next.set(0, program, 0)?,
            None if self.hands_on => self.next.clear_index(&0)?,
            None => {}
        }
        self.hands_on = to.is_some();
        Ok(())
    }
}

fn write_list(ebpf: &mut Ebpf, list: &[Ends]) -> Result<()> {
    let map = ebpf.map_mut("LIST").context("the generator has no map LIST")?;
    let mut map: Array<_, [u16; 4]> = map.try_into()?;
    for (flow, [client, port, server]) in (0..).zip(list) {
        map.set(flow, [*client, *port, *server, 0], 0)?;
    }
    Ok(())
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp> {
    let program = ebpf.program_mut(name);
    Ok(program.with_context(|| format!("the generator's object has no program `{name}`"))?.try_into()?)
}
