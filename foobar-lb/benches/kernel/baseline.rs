//! The programs that others are compared with (`foobar-lb-ebpf/src/baseline.rs`).

use anyhow::{Context, Result};
use aya::{
    Ebpf, include_bytes_aligned,
    programs::{ProgramInfo, Xdp, XdpMode},
};

/// The programs, loaded.
pub struct Baseline {
    ebpf: Ebpf,
}

impl Baseline {
    pub fn load() -> Result<Self> {
        let ebpf = Ebpf::load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-baseline")))
            .context("the kernel refused the object to compare with")?;
        let mut baseline = Self { ebpf };
        for name in ["transmit", "parse"] {
            baseline.xdp(name)?.load().with_context(|| format!("the verifier refused `{name}`"))?;
        }
        Ok(baseline)
    }

    /// Lets an interface have queues for XDP, which it has only while a program is attached to it.
    pub fn attach(&mut self, interface: u32) -> Result<()> {
        let transmit = self.xdp("transmit")?;
        transmit.attach_to_if_index(interface, XdpMode::Driver).context("cannot attach `transmit`")?;
        Ok(())
    }

    /// One of them: `transmit` or `parse`.
    pub fn program(&mut self, name: &str) -> Result<ProgramInfo> {
        Ok(self.xdp(name)?.info()?)
    }

    fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self.ebpf.program_mut(name);
        Ok(program.with_context(|| format!("the object has no program `{name}`"))?.try_into()?)
    }
}
