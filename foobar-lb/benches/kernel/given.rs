//! A program that somebody else has loaded: what becomes of packets to a VIP of it, and what that costs.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use anyhow::{Context, Error, Result, bail, ensure};
use aya::programs::{ProgramInfo, loaded_programs};
use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex};

use crate::{
    address::{Family, OWN_MAC},
    baseline::Baseline,
    clock::Clock,
    contest::take_turns,
    contestant::{Contestant, Loaded},
    frame::{Packet, hex},
    generator::{Flows, Generator},
    path::{Path, verdict_name},
    report::Measurement,
    suite::{Case, Subject, counts},
};

/// `BPF_PROG_TYPE_XDP` (linux/bpf.h).
const XDP: u32 = 6;

/// A program and its VIP.
#[derive(clap::Args)]
pub struct Given {
    /// Measures this XDP program instead of ours, by its id or where it is pinned. Packets of it are counted as real ones.
    #[arg(long, value_name = "ID|PIN", requires = "vip")]
    program: Option<String>,
    /// Where its packets are sent to.
    #[arg(long, value_name = "ADDRESS:PORT[/tcp|udp]", requires = "program")]
    vip: Option<Vip>,
    /// The interface that its packets come by, which it is attached to; without one it is the loopback.
    #[arg(long, value_name = "NAME", requires = "program")]
    interface: Option<String>,
}

#[derive(Clone, Copy)]
struct Vip {
    address: SocketAddr,
    is_udp: bool,
}

impl FromStr for Vip {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let is_udp = match protocol {
            "tcp" => false,
            "udp" => true,
            other => bail!("`{other}` is neither tcp nor udp"),
        };
        Ok(Self { address: address.parse().context("write 203.0.113.80:80 or [2001:db8::80]:80")?, is_udp })
    }
}

impl Given {
    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        self.program.is_some()
    }

    /// Measures it beside what finds out the flow and nothing else, in this network namespace.
    pub fn measure(&self, all: bool, rounds: u32, clock: &mut Clock) -> Result<Vec<Measurement>> {
        let (name, vip) = self.program.as_ref().zip(self.vip).context("name a program and its VIP")?;
        let (interface, mac) = self.interface()?;
        let family = Family::of(vip.address.ip());
        let mut baseline = Baseline::load()?;
        let packets = if vip.is_udp { &[Packet::Datagram][..] } else { &Packet::ALL };
        let mut contestants = vec![];
        for &flows in counts(all) {
            let case = Case { subject: Subject::Parse(family), flows };
            let parse = Loaded::new(&baseline.program("parse")?)?;
            contestants.push(Contestant::prepare(case, parse, Path::unchanged(family), interface)?);
        }
        for packet in packets {
            for &flows in counts(all) {
                let case = Case { subject: Subject::Given(family, *packet), flows };
                let path = Path::unknown(vip.address, *packet, mac);
                contestants.push(prepare(case, Loaded::new(&find(name)?)?, path, interface)?);
            }
        }
        take_turns(&mut contestants, rounds, clock)?;
        Ok(contestants.into_iter().map(|contestant| Measurement::new("given", contestant)).collect())
    }

    /// Its index and its MAC address.
    fn interface(&self) -> Result<(u32, [u8; 6])> {
        let Some(name) = &self.interface else { return Ok((0, OWN_MAC)) };
        let index = if_nametoindex(name.as_str()).with_context(|| format!("there is no interface {name}"))?;
        let of_it = getifaddrs()?.filter(|address| address.interface_name == *name);
        let mac = of_it.filter_map(|address| address.address?.as_link_addr()?.addr()).next();
        Ok((index, mac.with_context(|| format!("{name} is not Ethernet"))?))
    }
}

fn find(program: &str) -> Result<ProgramInfo> {
    let info = match program.parse::<u32>() {
        Ok(id) => loaded_programs()
            .find(|info| info.as_ref().map_or(true, |info: &ProgramInfo| info.id() == id))
            .with_context(|| format!("no program with id {id} is loaded"))??,
        Err(_) => ProgramInfo::from_pin(PathBuf::from(program))
            .with_context(|| format!("no program is pinned at {program}"))?,
    };
    ensure!(info.program_type() as u32 == XDP, "{program} is no XDP program");
    Ok(info)
}

/// Sends a packet of every flow by itself, because of many at once only the last verdict is told.
fn prepare(case: Case, program: Loaded, mut path: Path, interface: u32) -> Result<Contestant> {
    let name = format!("{} of {} flows", case.subject.name(), case.flows);
    let mut generator =
        Generator::load_for(&program.fd, &path.template, Flows::Numbered(case.flows), interface)?;
    let (verdict, frame) = generator.send(1, Some(&program.fd))?;
    if case.flows == 1 {
        let subject = case.subject.name();
        println!("{subject}: {}, the packet became\n  {}", verdict_name(verdict), hex(&frame));
    }
    path.verdict = verdict;
    for flow in 1..case.flows {
        let (verdict, frame) = generator.send(1, Some(&program.fd))?;
        path.check_verdict(verdict)
            .with_context(|| format!("{name}: the packet of flow {flow} became {}", hex(&frame)))?;
    }
    Ok(Contestant::given(case, program, path, generator))
}
