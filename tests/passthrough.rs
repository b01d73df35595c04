//! What is not for a service passes untouched, and nothing on the wire can hurt.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, PacketBuilder, VlanId};
use lab::wait_until;

use crate::support::SOON;
use crate::support::balancer::Balancer;
use crate::support::config::all_kinds;
use crate::support::conversation::{KINDS, ask};
use crate::support::echo::{Echo, start_pair};
use crate::support::frames::{HOP_LIMIT, Macs, udp};
use crate::support::network::{Arms, BACKEND_PORT, CLIENT, Family, Network, VIP, VIP_PORT, WEB1};
use crate::support::wire::Wire;

const RANDOM_FRAMES: u64 = 2_000;
const FREE_PORT: u16 = 9999;

#[test]
fn other_traffic_passes_byte_for_byte() -> Result<()> {
    let network = Network::new("passthrough", Arms::Two)?;
    // Nobody answers UDP, so that nothing but what is sent here comes back this way.
    let _web1 = Echo::start_tcp_only(&network.web1, "web1", BACKEND_PORT)?;
    let _web2 = Echo::start_tcp_only(&network.web2, "web2", BACKEND_PORT)?;
    let frames = other_traffic(&network)?;
    let without = forward(&network, &frames)?;
    ensure!(without.len() == frames.len(), "{} of {} frames are forwarded", without.len(), frames.len());
    let _balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    let with = forward(&network, &frames)?;
    let (lost, new): (Vec<_>, Vec<_>) =
        (without.difference(&with).collect(), with.difference(&without).collect());
    ensure!(with == without, "frames lost or changed: {lost:02x?}; frames that came instead: {new:02x?}");
    Ok(())
}

#[test]
fn random_frames_change_nothing_two_arm() -> Result<()> {
    check_random_frames("random-two", Arms::Two)
}

#[test]
fn random_frames_change_nothing_one_arm() -> Result<()> {
    check_random_frames("random-one", Arms::One)
}

fn check_random_frames(name: &str, arms: Arms) -> Result<()> {
    let network = Network::new(name, arms)?;
    let _echoes = start_pair(&network)?;
    let mut balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    // From a backend the frames meet the balancer unfiltered, however many arms it has.
    let wire = Wire::open(&network.web1, "eth0")?;
    let macs = Macs::between(&network.web1, &network.balancer, network.backend_interface())?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..RANDOM_FRAMES {
        wire.send(&random_frame(&mut random, macs)?)?;
    }
    ensure!(!balancer.process.has_ended()?, "the balancer ended");
    balancer.wait_until_serving()?;
    check_services(&network)
}

fn check_services(network: &Network) -> Result<()> {
    for (family, protocol) in KINDS {
        for _ in 0..10 {
            ask(&network.client, protocol, VIP.port(family, VIP_PORT))
                .with_context(|| format!("{protocol:?} over {family:?}"))?;
        }
    }
    Ok(())
}

/// Sends frames from the client and returns those that reach web1, up to a last one as a mark.
fn forward(network: &Network, frames: &[Vec<u8>]) -> Result<BTreeSet<Vec<u8>>> {
    const MARK: &[u8] = b"this is the last";
    let client = Wire::open(&network.client, "eth0")?;
    let web1 = Wire::open(&network.web1, "eth0")?;
    let (from, to) = (CLIENT.port(Family::V4, FREE_PORT), WEB1.port(Family::V4, FREE_PORT));
    let last = udp(client_macs(network)?, from, to, MARK)?;
    for frame in frames.iter().chain([&last]) {
        client.send(frame)?;
    }
    let mut arrived = Vec::new();
    wait_until(SOON, "the last frame", || {
        arrived.extend(web1.received().unwrap_or_default());
        arrived.iter().any(|frame| frame.ends_with(MARK))
    })?;
    // Beside the client's, there are the balancer's probes.
    let of_client = |frame: &Vec<u8>| {
        let v4 = frame.get(26..30) == Some(&CLIENT.v4().octets());
        let v6 = frame.get(22..38) == Some(&CLIENT.v6().octets());
        (v4 || v6) && !frame.ends_with(MARK)
    };
    Ok(arrived.into_iter().filter(of_client).collect())
}

/// Frames to a backend that a router forwards, and that no service has a part in: other ports, other
/// protocols, options, fragments, odd lengths, no checksum.
fn other_traffic(network: &Network) -> Result<Vec<Vec<u8>>> {
    let macs = client_macs(network)?;
    let mut frames = Vec::new();
    for family in Family::BOTH {
        let client = CLIENT.port(family, FREE_PORT);
        let web1 = WEB1.port(family, FREE_PORT);
        for length in [0, 1, 7, 64, 511, 1400] {
            frames.push(udp(macs, client, web1, &vec![0xa5; length])?);
        }
        // From the port of a service to the backends' port: still not to the VIP.
        frames.push(udp(
            macs,
            CLIENT.port(family, VIP_PORT),
            WEB1.port(family, BACKEND_PORT),
            b"to the backend",
        )?);
    }
    let (client, web1) = (CLIENT.v4().octets(), WEB1.v4().octets());
    let ipv4 = || macs.start().ipv4(client, web1, HOP_LIMIT);
    let mut tcp = Vec::new();
    ipv4().tcp(FREE_PORT, FREE_PORT, 1, 1024).syn().write(&mut tcp, &[])?;
    let mut echo = Vec::new();
    ipv4().icmpv4_echo_request(7, 7).write(&mut echo, b"ping")?;
    frames.extend([tcp, echo]);
    for (options, fragment) in [(&[1, 1, 1, 0][..], 0), (&[], 8)] {
        let mut header = Ipv4Header::new(32, HOP_LIMIT, IpNumber(253), client, web1)?;
        header.options = Ipv4Options::try_from(options)?;
        header.fragment_offset = IpFragOffset::try_new(fragment)?;
        header.more_fragments = fragment > 0;
        header.dont_fragment = false;
        let mut frame = Vec::new();
        macs.start().ip(etherparse::IpHeaders::Ipv4(header, Default::default())).write(
            &mut frame,
            IpNumber(253),
            &[9; 32],
        )?;
        frames.push(frame);
    }
    Ok(frames)
}

/// A frame that is random from a random byte on: some are noise, most are almost right.
fn random_frame(random: &mut Random, macs: Macs) -> Result<Vec<u8>> {
    let family = Family::BOTH[random.below(2)];
    let (client, vip) = (CLIENT.port(family, 1024), VIP.port(family, VIP_PORT));
    let (web1, free) = (WEB1.port(family, BACKEND_PORT), CLIENT.port(family, FREE_PORT));
    let ends = [
        (client, vip),
        (web1, client),
        (web1, vip),
        (vip, client),
        (vip, web1),
        (client, web1),
        (web1, free),
    ];
    let (from, to) = ends[random.below(ends.len())];
    let payload: Vec<u8> = (0..random.below(200)).map(|_| random.byte()).collect();
    let mut frame = match random.below(8) {
        0 => tagged(macs, random)?,
        _ => udp(macs, from, to, &payload)?,
    };
    // TCP, UDP, ICMP, ICMPv6, fragments, none: what follows the IP header may then say anything.
    let protocol_at = if family == Family::V4 { 23 } else { 20 };
    frame[protocol_at] = [6, 17, 1, 58, 44, 0, 60, 253][random.below(8)];
    for _ in 0..random.below(6) {
        let at = 12 + random.below(frame.len() - 12);
        frame[at] = random.byte();
    }
    frame.truncate(14 + random.below(frame.len() - 13));
    Ok(frame)
}

fn tagged(macs: Macs, random: &mut Random) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(macs.source, macs.destination)
        .single_vlan(VlanId::try_new(7)?)
        .ipv4(CLIENT.v4().octets(), VIP.v4().octets(), random.byte())
        .udp(FREE_PORT, VIP_PORT)
        .write(&mut frame, b"tagged")?;
    Ok(frame)
}

fn client_macs(network: &Network) -> Result<Macs> {
    Macs::between(&network.client, &network.balancer, "eth0")
}

/// Numbers that are the same at each run (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}
