//! The program of a backend: loads it with the VIPs it is for, and reads its counters.

use std::{collections::BTreeSet, net::IpAddr};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned,
    maps::{HashMap, MapData, PerCpuArray},
    programs::Xdp,
};
use foobar_lb_ebpf::{
    decap::{Outcome, name},
    layout::Address,
};
use zerocopy::transmute;

use super::{Attach, Error, failed, load_program, program, put, take};
use crate::image::address;

/// The loaded program, which takes the outer headers off packets for some VIPs. Dropping it detaches it.
pub struct Decap {
    ebpf: Ebpf,
    outcomes: PerCpuArray<MapData, u64>,
}

impl Decap {
    /// Loads it into the kernel, attached nowhere. GUE comes to the UDP port `gue_port`.
    ///
    /// # Errors
    /// When the kernel refuses the program or its maps.
    pub fn load(vips: &BTreeSet<IpAddr>, gue_port: u16) -> Result<Self, Error> {
        let gue_port = gue_port.to_be_bytes();
        let object = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-decap"));
        let mut ebpf = EbpfLoader::new()
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global(name::GUE_PORT, &gue_port, true)
            .map_max_entries(name::VIPS, vips.len().max(1) as u32)
            .load(object)
            .map_err(|error| Error::Load(Box::new(error)))?;
        load_program(&mut ebpf, name::PROGRAM)?;
        let mut map: HashMap<MapData, [u8; size_of::<Address>()], u32> = take(&mut ebpf, name::VIPS)?;
        for &vip in vips {
            put(&mut map, transmute!(address(vip)), 1, name::VIPS)?;
        }
        Ok(Self { outcomes: take(&mut ebpf, name::OUTCOMES)?, ebpf })
    }

    /// How many packets came to each outcome.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn outcomes(&self) -> Result<Vec<(Outcome, u64)>, Error> {
        let packets = |&outcome: &Outcome| {
            let cpus = self.outcomes.get(&(outcome as u32), 0).map_err(failed(name::OUTCOMES, "read"))?;
            Ok((outcome, cpus.iter().sum()))
        };
        Outcome::ALL.iter().map(packets).collect()
    }
}

impl Attach for Decap {
    fn xdp(&mut self) -> &mut Xdp {
        program(&mut self.ebpf, name::PROGRAM)
    }
}
