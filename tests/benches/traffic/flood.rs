//! Sends small packets through the balancer, as many as one CPU can, and counts them where they leave it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::counters::busy_seconds;
use super::load::Sample;
use super::program::{FRAME, Generator, Sink};
use super::support::frames::{Macs, udp, without_udp_checksum};
use super::support::network::Network;

/// Frames of one run of the generator, of which a turn has as many as it takes: few and long, because to begin one takes
/// long.
const FRAMES: u32 = 500_000;

/// Ethernet, IPv4 and UDP.
const HEADERS: usize = 14 + 20 + 8;

/// From the network for benchmarks (RFC 2544).
const SENDER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), 40_000);

/// Sends packets from the client to `to` for so many seconds. They end at the switch's port, where a sink takes the place of the program that
/// passes everything.
pub fn flood(network: &Network, to: SocketAddr, seconds: u64) -> Result<Sample> {
    let Network { lab, client, balancer, switch, .. } = network;
    let macs = Macs::between(client, balancer, "eth0")?;
    // The generator changes ports, and mends no checksums.
    let frame = without_udp_checksum(udp(macs, SENDER, to, &[0; FRAME - HEADERS])?);
    let frame = <[u8; FRAME]>::try_from(frame).ok().context("the payload does not fill the frame")?;
    let mut generator = Generator::new(client, "eth0", frame)?;
    lab.end_pass_xdp(switch, "balancer");
    let sink = Sink::attach(switch, "balancer")?;
    let before = busy_seconds()?;
    let (sent, took) = client.enter(|| send(&mut generator, Duration::from_secs(seconds)))??;
    let cpu_seconds = busy_seconds()? - before;
    let arrived = sink.swallowed()?;
    drop(sink);
    lab.pass_xdp(switch, "balancer")?;
    ensure!(arrived > sent / 2, "of {sent} packets only {arrived} arrived");
    let seconds = took.as_secs_f64();
    Ok(Sample { operations: arrived, seconds, bytes: arrived * FRAME as u64, latency: None, cpu_seconds })
}

/// How many it sends at least for so long, on one CPU, which then does all the work of the interfaces on the way as well;
/// and how long that takes.
fn send(generator: &mut Generator, least: Duration) -> Result<(u64, Duration)> {
    pin_to_one_cpu()?;
    let (mut sent, start) = (0, Instant::now());
    while start.elapsed() < least {
        generator.send(FRAMES)?;
        sent += u64::from(FRAMES);
    }
    Ok((sent, start.elapsed()))
}

/// Pins this thread to the last CPU that it may run on.
fn pin_to_one_cpu() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let last = (0..CpuSet::count()).rev().find(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("this thread may run nowhere")?)?;
    Ok(sched_setaffinity(this, &one)?)
}
