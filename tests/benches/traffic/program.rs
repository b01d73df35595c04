//! The bench's own programs in the kernel: the bare XDP router and the sink (`foobar-lb-ebpf/src/router.rs`), and the flow
//! generator (`generator.rs` there).

use std::env;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{PerCpuArray, ProgramArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRunAttrs, Xdp};
use aya::{Ebpf, EbpfLoader, TestRun, TestRunOptions};
use lab::Namespace;
use nix::net::if_::if_nametoindex;

/// All generated frames are of this length.
pub const FRAME: usize = 80;

/// Flows of the generator, which have a port each.
const FLOWS: u32 = 16;

/// Where the source port is in a frame of UDP over IPv4 without options.
const PORT_AT: u32 = 34;

/// The router, attached until it is dropped.
pub struct Router {
    _ebpf: Ebpf,
}

impl Router {
    /// Attaches it to these interfaces.
    pub fn attach(namespace: &Namespace, interfaces: &[&str]) -> Result<Self> {
        let mut ebpf = load("foobar-lb-router", EbpfLoader::new())?;
        attach(&mut ebpf, "route", namespace, interfaces)?;
        Ok(Self { _ebpf: ebpf })
    }
}

/// The sink, attached until it is dropped.
pub struct Sink {
    ebpf: Ebpf,
}

impl Sink {
    /// Attaches it to an interface.
    pub fn attach(namespace: &Namespace, interface: &str) -> Result<Self> {
        let mut ebpf = load("foobar-lb-router", EbpfLoader::new())?;
        attach(&mut ebpf, "sink", namespace, &[interface])?;
        Ok(Self { ebpf })
    }

    /// How many of the generator's frames have arrived.
    pub fn swallowed(&self) -> Result<u64> {
        let map = self.ebpf.map("SWALLOWED").context("the sink has no map SWALLOWED")?;
        let per_cpu = PerCpuArray::<_, u64>::try_from(map)?.get(&0, 0)?;
        Ok(per_cpu.iter().sum())
    }
}

/// The flow generator, sending from an interface.
pub struct Generator {
    ebpf: Ebpf,
    _transmit: Ebpf,
    frame: [u8; FRAME],
    /// `struct xdp_md` (linux/bpf.h): data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    context: Vec<u8>,
}

impl Generator {
    /// One that sends this frame, with other source ports too. It may be used on threads of that namespace.
    pub fn new(namespace: &Namespace, interface: &str, frame: [u8; FRAME]) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let last_flow = FLOWS - 1;
        loader
            .override_global("TEMPLATE", &frame, true)
            .override_global("LAST_FLOW", &last_flow, true)
            .override_global("PORT_AT", &PORT_AT, true);
        let mut ebpf = load("foobar-lb-generator", loader)?;
        program(&mut ebpf, "generate")?.load()?;
        let mut transmit = load("foobar-lb-baseline", EbpfLoader::new())?;
        program(&mut transmit, "transmit")?.load()?;
        let next = ebpf.map_mut("NEXT").context("the generator has no map NEXT")?;
        ProgramArray::try_from(next)?.set(0, program(&mut transmit, "transmit")?.fd()?, 0)?;
        let interface = namespace.enter(|| if_nametoindex(interface))??;
        let context = [0, FRAME as u32, 0, interface, 0, 0].map(u32::to_ne_bytes).concat();
        Ok(Self { ebpf, _transmit: transmit, frame, context })
    }

    /// Sends so many frames as fast as this thread's CPU can, which also takes them on from interface to interface.
    pub fn send(&mut self, frames: u32) -> Result<()> {
        /// As many as a network driver takes at once.
        const BATCH: u32 = 64;
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            ctx_in: Some(&self.context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        program(&mut self.ebpf, "generate")?.test_run(options).context("the kernel does not send frames")?;
        Ok(())
    }
}

fn load(name: &str, mut loader: EbpfLoader<'_>) -> Result<Ebpf> {
    let directory = env::var("FOOBAR_LB_OBJECTS")
        .context("FOOBAR_LB_OBJECTS does not name the directory of BPF objects")?;
    let path = Path::new(&directory).join(name);
    let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    loader.load(&object).with_context(|| format!("the kernel refused {name}"))
}

fn attach(ebpf: &mut Ebpf, name: &str, namespace: &Namespace, interfaces: &[&str]) -> Result<()> {
    let program = program(ebpf, name)?;
    program.load()?;
    let attach =
        || interfaces.iter().try_for_each(|interface| program.attach(interface, XdpMode::Driver).map(drop));
    namespace.enter(attach)?.with_context(|| format!("cannot attach `{name}`"))
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program `{name}` in its object"))?.try_into()?)
}
