//! A backend under test: the real `foobar-lb decap` on it, and a stand-in for the balancer, which sends what clients ask
//! of the VIP on to it, in whatever outer headers.

use std::net::IpAddr;
use std::thread;

use anyhow::{Context, Result, ensure};
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, Icmpv6Type, IpHeaders, IpNumber, NetHeaders, PacketBuilder,
    PacketBuilderStep, PacketHeaders, SlicedPacket, TransportSlice, UdpHeader,
};
use lab::{Namespace, Process, wait_until};
use nix::sys::signal::Signal;

use super::balancer::{Ending, binary};
use super::conversation::{Protocol, ask};
use super::echo::Echo;
use super::frames::{HOP_LIMIT, Macs, Seen};
use super::network::{Arms, BACKEND_GATEWAY, Family, Network, VIP, VIP_PORT, WEB1};
use super::wire::Wire;
use super::{EVENTUALLY, SOON};

/// What it is told besides the VIP: not the default port of GUE.
pub const GUE_PORT: u16 = 6081;

/// How packets reach the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// As they are, in frames for the backend.
    Plain,
    /// In an IP packet of this family.
    Ip(Family),
    /// In UDP, without a header of its own.
    Gue(Family),
    /// In UDP, with a header.
    GueHeader(Family),
}

impl Arrival {
    /// All that have outer headers.
    pub fn tunnelled() -> impl Iterator<Item = Self> {
        Family::BOTH.into_iter().flat_map(|outer| [Self::Ip(outer), Self::Gue(outer), Self::GueHeader(outer)])
    }
}

/// The network of all stories, in which the balancer has no program, and what its kernel gets for the VIP goes nowhere.
pub struct Stage {
    pub network: Network,
    from_clients: Wire,
    to_backend: Wire,
    macs: Macs,
}

impl Stage {
    pub fn new(prefix: &str) -> Result<Self> {
        let network = Network::new(prefix, Arms::Two)?;
        for vip in vips() {
            network.balancer.ip(&format!("route add blackhole {vip}"))?;
        }
        Ok(Self {
            from_clients: Wire::open(&network.balancer, "eth0")?,
            to_backend: Wire::open(&network.balancer, "eth1")?,
            macs: Macs { source: network.balancer.mac("eth1")?, destination: network.web1.mac("eth0")? },
            network,
        })
    }

    /// The machine that becomes a backend.
    pub fn backend(&self) -> &Namespace {
        &self.network.web1
    }

    /// Servers for the VIP, which has to be there.
    pub fn serve(&self) -> Result<[Echo; 2]> {
        let [v4, v6] =
            Family::BOTH.map(|family| Echo::start_at(self.backend(), "web1", VIP.port(family, VIP_PORT)));
        Ok([v4?, v6?])
    }

    /// The backend must answer a client that asks the VIP, when packets reach it like this.
    pub fn expect_answer(&self, arrival: Arrival, family: Family, protocol: Protocol) -> Result<()> {
        let server = VIP.port(family, VIP_PORT);
        let answered = thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&self.network.client, protocol, server));
            wait_until(EVENTUALLY, "an answer or its failure", || {
                self.carry(arrival).is_err() || asking.is_finished()
            })?;
            asking.join().expect("it does not panic")
        });
        answered.map(drop).with_context(|| format!("{protocol:?} to {server}, by {arrival:?}"))
    }

    /// Carries what has arrived for the VIP on to the backend.
    fn carry(&self, arrival: Arrival) -> Result<()> {
        for frame in self.from_clients.received()? {
            if let Some(seen) = Seen::read(&frame).filter(|seen| vips().contains(&seen.to.ip())) {
                let number = if seen.to.is_ipv4() { IpNumber::IPV4 } else { IpNumber::IPV6 };
                self.to_backend.send(&self.wrap(arrival, number, &frame)?)?;
            }
        }
        Ok(())
    }

    fn wrap(&self, arrival: Arrival, number: IpNumber, frame: &[u8]) -> Result<Vec<u8>> {
        const MACS: usize = 12;
        const ETHERNET: usize = 14;
        let packet = &frame[ETHERNET..];
        let mut wrapped = Vec::new();
        match arrival {
            Arrival::Plain => {
                let Macs { source, destination } = self.macs;
                wrapped = [&destination, &source, &frame[MACS..]].concat();
            }
            Arrival::Ip(outer) => self.outer(outer).write(&mut wrapped, number, packet)?,
            Arrival::Gue(outer) => self.outer_udp(outer).write(&mut wrapped, packet)?,
            Arrival::GueHeader(outer) => {
                let payload = [&[0, number.0, 0, 0], packet].concat();
                self.outer_udp(outer).write(&mut wrapped, &payload)?;
            }
        }
        Ok(wrapped)
    }

    fn outer_udp(&self, outer: Family) -> PacketBuilderStep<UdpHeader> {
        self.outer(outer).udp(0xc001, GUE_PORT)
    }

    fn outer(&self, outer: Family) -> PacketBuilderStep<IpHeaders> {
        let (balancer, backend) = (BACKEND_GATEWAY, WEB1);
        match outer {
            Family::V4 => self.macs.start().ipv4(balancer.v4().octets(), backend.v4().octets(), HOP_LIMIT),
            Family::V6 => self.macs.start().ipv6(balancer.v6().octets(), backend.v6().octets(), HOP_LIMIT),
        }
    }

    /// Whether the backend tells the balancer's side that it has the VIP. It is asked for the VIP, then for its own
    /// address: when that answer is there, the other is, or never comes.
    pub fn tells_of_vip(&self, family: Family) -> Result<bool> {
        self.to_backend.received()?;
        for asked in [VIP, WEB1] {
            self.to_backend.send(&self.question(asked.of(family))?)?;
        }
        let mut told = Vec::new();
        wait_until(SOON, "the backend to tell its own address", || {
            let frames = self.to_backend.received().unwrap_or_default();
            told.extend(frames.iter().filter_map(|frame| told_address(frame)));
            told.contains(&WEB1.of(family))
        })?;
        Ok(told.contains(&VIP.of(family)))
    }

    /// An ARP request (RFC 826), or a neighbour solicitation (RFC 4861, 4.3) to all nodes, which the backend hears
    /// whatever groups it is in.
    fn question(&self, asked: IpAddr) -> Result<Vec<u8>> {
        let source = self.macs.source;
        let mut frame = Vec::new();
        match asked {
            IpAddr::V4(asked) => {
                let request = ArpEthIpv4Packet {
                    operation: ArpOperation::REQUEST,
                    sender_mac: source,
                    sender_ipv4: BACKEND_GATEWAY.v4().octets(),
                    target_mac: [0; 6],
                    target_ipv4: asked.octets(),
                };
                PacketBuilder::ethernet2(source, [0xff; 6]).arp(request.into()).write(&mut frame)?;
            }
            IpAddr::V6(asked) => {
                let payload = [&asked.octets()[..], &[1, 1], &source].concat();
                PacketBuilder::ethernet2(source, [0x33, 0x33, 0, 0, 0, 1])
                    .ipv6(BACKEND_GATEWAY.v6().octets(), ALL_NODES, 255)
                    .icmpv6(Icmpv6Type::NeighborSolicitation)
                    .write(&mut frame, &payload)?;
            }
        }
        Ok(frame)
    }

    /// The addresses that the backend's ARP requests came from since the last look.
    pub fn asked_from(&self) -> Result<Vec<IpAddr>> {
        let frames = self.to_backend.received()?;
        let requests = frames.iter().filter_map(|frame| arp(frame));
        let requests = requests.filter(|arp| arp.operation == ArpOperation::REQUEST);
        Ok(requests.map(|arp| arp.sender_ipv4.into()).collect())
    }
}

const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// The address that a frame tells to be its sender's.
fn told_address(frame: &[u8]) -> Option<IpAddr> {
    if let Some(arp) = arp(frame) {
        return (arp.operation == ArpOperation::REPLY).then(|| arp.sender_ipv4.into());
    }
    match SlicedPacket::from_ethernet(frame).ok()?.transport? {
        TransportSlice::Icmpv6(icmp) if matches!(icmp.icmp_type(), Icmpv6Type::NeighborAdvertisement(_)) => {
            let (target, _) = icmp.payload().split_first_chunk::<16>()?;
            Some((*target).into())
        }
        _ => None,
    }
}

fn arp(frame: &[u8]) -> Option<ArpEthIpv4Packet> {
    match PacketHeaders::from_ethernet_slice(frame).ok()?.net? {
        NetHeaders::Arp(arp) => arp.try_eth_ipv4().ok(),
        _ => None,
    }
}

/// Both VIPs.
pub fn vips() -> [IpAddr; 2] {
    Family::BOTH.map(|family| VIP.of(family))
}

/// A running `foobar-lb decap`. Dropping it kills it, as a crash would.
pub struct Decap {
    pub process: Process,
}

impl Decap {
    /// Starts it on the stage's backend for both VIPs, and waits until it is ready.
    pub fn start(stage: &Stage, options: &[&str]) -> Result<Self> {
        Self::start_for(stage, &vips(), options)
    }

    /// The same for these VIPs only.
    pub fn start_for(stage: &Stage, vips: &[IpAddr], options: &[&str]) -> Result<Self> {
        Self::start_on(stage.backend(), vips, options)
    }

    /// Starts it on a backend for these VIPs, and waits until it is ready.
    pub fn start_on(backend: &Namespace, vips: &[IpAddr], options: &[&str]) -> Result<Self> {
        let name = format!("{}-decap", backend.name());
        let mut process = backend.start(&name, words(backend, &["eth0"], vips, options)?)?;
        process.wait_for_line("ready:", EVENTUALLY)?;
        Ok(Self { process })
    }

    /// Ends it as Ctrl-C or a service manager does, and returns what it printed.
    pub fn stop(mut self, signal: Signal) -> Result<String> {
        self.process.signal(signal)?;
        let exit = self.process.wait(SOON)?;
        let output = self.process.output()?;
        ensure!(exit.success(), "it ended with {exit} and printed:\n{output}");
        Ok(output)
    }
}

/// Starts it with these words, expecting it to end by itself, and returns how it ended.
pub fn start_in_vain(
    backend: &Namespace,
    interfaces: &[&str],
    vips: &[IpAddr],
    options: &[&str],
) -> Result<Ending> {
    let mut process = backend.start("decap-refused", words(backend, interfaces, vips, options)?)?;
    let exit = process.wait(EVENTUALLY)?;
    Ok(Ending { code: exit.code(), output: process.output()? })
}

/// The command line.
pub fn words(
    backend: &Namespace,
    interfaces: &[&str],
    vips: &[IpAddr],
    options: &[&str],
) -> Result<Vec<String>> {
    let state_path = format!("{}-decap-state", backend.name());
    let state_path = backend.directory().join(state_path).display().to_string();
    let mut words = vec![binary()?, "decap".to_owned()];
    words.extend(interfaces.iter().map(|&interface| interface.to_owned()));
    words.push("--vip".to_owned());
    words.extend(vips.iter().map(IpAddr::to_string));
    words.extend(["--state-path".to_owned(), state_path]);
    words.extend(options.iter().map(|&option| option.to_owned()));
    Ok(words)
}
