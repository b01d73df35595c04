//! Runs the generator in the kernel, with a program behind it or alone.

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions, include_bytes_aligned,
    maps::{MapData, ProgramArray},
    programs::{ProgramFd, Xdp},
};
use nix::time::{ClockId, clock_gettime};

use crate::path::{Frame, Path};

/// The generator for one path and number of flows.
pub struct Generator {
    ebpf: Ebpf,
    measured: ProgramArray<MapData>,
    /// `struct xdp_md` (linux/bpf.h): data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    context: [u32; 6],
    frame: Frame,
}

impl Generator {
    /// Loads it; its packets arrive by the interface `ingress`.
    pub fn load(path: &Path, flows: u32, ingress: u32) -> Result<Self> {
        ensure!(flows.is_power_of_two(), "{flows} is no power of two");
        let mut ebpf = EbpfLoader::new()
            .override_global("TEMPLATE", &path.frame, true)
            .override_global("FLOWS", &flows, true)
            .override_global("ADDRESS_AT", &path.address_at, true)
            .override_global("PORT_AT", &path.port_at, true)
            .load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-generator")))
            .context("the kernel refused the generator")?;
        let measured = ebpf.take_map("MEASURED").context("the generator has no map MEASURED")?;
        program(&mut ebpf, "generate")?.load().context("the verifier refused the generator")?;
        let context = [0, size_of::<Frame>() as u32, 0, ingress, 0, 0];
        Ok(Self { ebpf, measured: measured.try_into()?, context, frame: path.frame })
    }

    /// A program that sends every packet back and does nothing else.
    pub fn transmit(&mut self) -> Result<ProgramFd> {
        let transmit = program(&mut self.ebpf, "transmit")?;
        transmit.load()?;
        Ok(transmit.fd()?.try_clone()?)
    }

    /// The verdict of a program on the next packet, and the packet as it left it.
    pub fn run_once(&mut self, measured: &ProgramFd) -> Result<(u32, Frame)> {
        self.put_behind(Some(measured))?;
        let mut frame = self.frame;
        let verdict = self.run(1, &mut frame)?;
        Ok((verdict, frame))
    }

    /// Nanoseconds per packet of generator and program, or of the generator alone.
    pub fn time(&mut self, measured: Option<&ProgramFd>, packets: u32) -> Result<f64> {
        self.put_behind(measured)?;
        let mut frame = self.frame;
        // The kernel's own measurement is rounded to whole nanoseconds. This thread's clock stands while others run.
        let clock = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
        let start = clock()?;
        self.run(packets, &mut frame)?;
        let took = std::time::Duration::from(clock()? - start);
        Ok(took.as_nanos() as f64 / f64::from(packets))
    }

    fn put_behind(&mut self, measured: Option<&ProgramFd>) -> Result<()> {
        match measured {
            Some(program) => self.measured.set(0, program, 0)?,
            None => self.measured.clear_index(&0)?,
        }
        Ok(())
    }

    fn run(&mut self, repeat: u32, frame: &mut Frame) -> Result<u32> {
        let context = zerocopy::IntoBytes::as_bytes(&self.context);
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            data_out: Some(frame),
            ctx_in: Some(context),
            repeat,
            ..TestRunOptions::default()
        };
        let result = program(&mut self.ebpf, "generate")?.test_run(options)?;
        Ok(result.return_value)
    }
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp> {
    Ok(ebpf
        .program_mut(name)
        .with_context(|| format!("the generator's object has no program {name}"))?
        .try_into()?)
}
