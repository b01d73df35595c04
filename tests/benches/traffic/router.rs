//! The bare XDP router (`foobar-lb-ebpf/src/router.rs`), attached.

use std::env;
use std::fs;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::{Xdp, xdp::XdpMode};
use lab::Namespace;

/// Dropping it detaches it.
pub struct Router {
    _ebpf: Ebpf,
}

impl Router {
    /// Attaches it to these interfaces.
    pub fn attach(namespace: &Namespace, interfaces: &[&str]) -> Result<Self> {
        let path =
            env::var("FOOBAR_LB_ROUTER").context("FOOBAR_LB_ROUTER does not name the router's object")?;
        let object = fs::read(&path).with_context(|| format!("cannot read {path}"))?;
        let mut ebpf = Ebpf::load(&object)?;
        let program: &mut Xdp =
            ebpf.program_mut("route").context("no program `route` in the object")?.try_into()?;
        program.load()?;
        namespace.enter(|| {
            interfaces.iter().try_for_each(|interface| program.attach(interface, XdpMode::Driver).map(drop))
        })??;
        Ok(Self { _ebpf: ebpf })
    }
}
