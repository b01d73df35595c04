//! The paths that are measured: a packet, where in it the client is, and what has to come out.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use etherparse::{PacketBuilder, PacketBuilderStep, TcpHeader};
use foobar_lb::bpf::Bpf;
use foobar_lb_ebpf::reason::Reason;

use crate::{
    generator::{Frame, Template},
    place::{
        BACKENDS, CLIENT_V4, CLIENT_V6, NEIGHBOUR_MAC, OWN_MAC, STRANGER_V4, VIP_V4, VIP_V6, backends_of,
    },
};

/// Verdicts as the kernel writes them (linux/bpf.h, `enum xdp_action`).
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

const HOPS: u8 = 64;

/// What a packet is to the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: a program that does no work sends it back.
    Bare,
    /// From a client to a service.
    Forward,
    /// From a backend to a client.
    Reply,
    /// For no service.
    Pass,
}

impl Kind {
    /// How many packets of the kind the program has counted.
    pub fn counted(self, bpf: &Bpf) -> Result<u64> {
        let traffic = || (0..BACKENDS).map(|id| bpf.traffic(id));
        match self {
            Self::Bare => Ok(0),
            Self::Forward => traffic().map(|traffic| Ok(traffic?.forward.packets)).sum(),
            Self::Reply => traffic().map(|traffic| Ok(traffic?.reply.packets)).sum(),
            Self::Pass => {
                let reasons = bpf.reasons()?;
                Ok(reasons
                    .iter()
                    .find(|(reason, _)| *reason == Reason::NotForService)
                    .map_or(0, |(_, count)| count.packets))
            }
        }
    }

    fn verdict(self) -> u32 {
        match self {
            Self::Bare | Self::Forward | Self::Reply => XDP_TX,
            Self::Pass => XDP_PASS,
        }
    }
}

/// A path through the program.
pub struct Path {
    /// For people.
    pub name: &'static str,
    /// What its packets are.
    pub kind: Kind,
    /// Its packets.
    pub template: Template,
    /// What that packet may become.
    expected: Vec<Frame>,
}

impl Path {
    /// Compares what came out with what has to.
    pub fn check(&self, verdict: u32, frame: &Frame) -> Result<()> {
        let Self { name, kind, expected, .. } = self;
        ensure!(verdict == kind.verdict(), "{name}: the verdict is {verdict}, not {}", kind.verdict());
        ensure!(
            expected.contains(frame),
            "{name}: the packet became {frame:02x?}, not one of {expected:02x?}"
        );
        Ok(())
    }
}

/// The paths, in the order of the report.
pub fn all() -> Vec<Path> {
    vec![
        untouched("bare XDP_TX", Kind::Bare, CLIENT_V4, VIP_V4),
        forward("nat forward IPv4, SYN", CLIENT_V4, VIP_V4, Step::syn),
        forward("nat forward IPv4", CLIENT_V4, VIP_V4, acknowledge),
        forward("nat forward IPv6, SYN", CLIENT_V6, VIP_V6, Step::syn),
        forward("nat forward IPv6", CLIENT_V6, VIP_V6, acknowledge),
        reply("nat reply IPv4", CLIENT_V4, VIP_V4),
        reply("nat reply IPv6", CLIENT_V6, VIP_V6),
        untouched("pass IPv4", Kind::Pass, CLIENT_V4, STRANGER_V4),
    ]
}

fn forward(name: &'static str, client: SocketAddr, vip: SocketAddr, flag: fn(Step) -> Step) -> Path {
    let expected = backends_of(vip).map(|backend| sent(client, backend, flag)).collect();
    let template = template(client, vip, flag);
    Path { name, kind: Kind::Forward, template, expected }
}

fn reply(name: &'static str, client: SocketAddr, vip: SocketAddr) -> Path {
    let backend = backends_of(vip).next().expect("every service has backends");
    let mut template = template(backend, client, acknowledge);
    // The destination's address stands right behind the source's, and so does its port.
    template.address_at += if vip.is_ipv4() { 4 } else { 16 };
    template.port_at += 2;
    Path { name, kind: Kind::Reply, template, expected: vec![sent(vip, client, acknowledge)] }
}

fn untouched(name: &'static str, kind: Kind, client: SocketAddr, destination: SocketAddr) -> Path {
    let template = template(client, destination, acknowledge);
    Path { name, kind, template, expected: vec![template.frame] }
}

/// Its flows differ in who sends.
fn template(from: SocketAddr, to: SocketAddr, flag: fn(Step) -> Step) -> Template {
    let (address_at, port_at) = if from.is_ipv4() { (28, 34) } else { (36, 54) };
    Template { frame: arriving(from, to, flag), address_at, port_at }
}

type Step = PacketBuilderStep<TcpHeader>;

fn acknowledge(step: Step) -> Step {
    step.ack(1)
}

fn arriving(from: SocketAddr, to: SocketAddr, flag: fn(Step) -> Step) -> Frame {
    build([NEIGHBOUR_MAC, OWN_MAC], from, to, HOPS, flag)
}

fn sent(from: SocketAddr, to: SocketAddr, flag: fn(Step) -> Step) -> Frame {
    build([OWN_MAC, NEIGHBOUR_MAC], from, to, HOPS - 1, flag)
}

/// A frame with right checksums, by another implementation than the one that is measured.
fn build(macs: [[u8; 6]; 2], from: SocketAddr, to: SocketAddr, hops: u8, flag: fn(Step) -> Step) -> Frame {
    let ethernet = PacketBuilder::ethernet2(macs[0], macs[1]);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), hops),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), hops),
        _ => unreachable!("both ends of a flow are of one family"),
    };
    let tcp = flag(ip.tcp(from.port(), to.port(), 1, 1024));
    let payload = vec![0; size_of::<Frame>() - tcp.size(0)];
    let mut frame = Vec::new();
    tcp.write(&mut frame, &payload).expect("a vector can be written to");
    frame.try_into().expect("the payload fills the frame")
}
