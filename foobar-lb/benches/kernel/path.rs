//! The paths that are measured: a packet, where in it the client is, and what has to come out.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};

use crate::{
    address::Family,
    frame::{Packet, arriving, hex, in_gue, in_ip, sent},
    generator::{Ends, Template},
    setup::{Mode, Setup},
};

/// Verdicts as the kernel writes them (linux/bpf.h, `enum xdp_action`).
const VERDICTS: [&str; 5] = ["XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT"];
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// What a packet is to the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From a client to a service.
    Forward,
    /// From a backend to a client.
    Reply,
    /// For no service.
    Pass,
}

/// A way through a program.
pub struct Path {
    /// Its packets.
    pub template: Template,
    /// What is decided about all of them.
    pub verdict: u32,
    /// What the first of them may become, if the balancer has chosen this port.
    expected: Box<dyn Fn(u16) -> Vec<Vec<u8>>>,
    /// Where in it that port is.
    chosen_at: Option<usize>,
}

impl Path {
    /// The one that all balancers of a setup have for packets of this kind.
    pub fn of(setup: Setup, kind: Kind, packet: Packet) -> Self {
        let Setup { mode, family, .. } = setup;
        match kind {
            Kind::Forward => forward(setup, packet, client(setup, packet)),
            Kind::Reply => {
                let backend = SocketAddr::new(family.backend(0), mode.backend_port());
                reply([backend, family.client(0)], packet)
            }
            Kind::Pass => {
                let to = setup.family.stranger();
                Self { verdict: XDP_PASS, ..Self::back(setup.family.client(0), to, packet) }
            }
        }
    }

    /// The one through a program that leaves a packet as it is and sends it back.
    pub fn unchanged(family: Family) -> Self {
        Self::back(family.client(0), family.vip(0), Packet::Ack)
    }

    /// The one of packets that begin the flows of those that go on.
    pub fn of_beginnings(setup: Setup) -> Self {
        forward(setup, Packet::Syn, client(setup, Packet::Ack))
    }

    /// The one of replies in mode `snat`: each is from the backend that such a flow was sent to, to where it was sent from.
    pub fn of_replies(flows: &[[SocketAddr; 2]], packet: Packet) -> (Self, Vec<Ends>) {
        let [from, to] = flows[0];
        let last = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.to_bits() as u16,
            IpAddr::V6(ip) => ip.segments()[7],
        };
        let differs = |[source, backend]: &[SocketAddr; 2]| {
            let [client, server] =
                [(source, from), (backend, to)].map(|(one, first)| last(one.ip()) ^ last(first.ip()));
            [client, source.port() ^ from.port(), server]
        };
        (reply([to, from], packet), flows.iter().map(differs).collect())
    }

    /// The one of packets to this address, whatever becomes of them.
    pub fn unknown(to: SocketAddr, packet: Packet, mac: [u8; 6]) -> Self {
        let path = Self::back(Family::of(to.ip()).client(0), to, packet);
        let mut template = Template { grows: true, ..path.template };
        template.frame[..mac.len()].copy_from_slice(&mac);
        Self { template, ..path }
    }

    fn back(from: SocketAddr, to: SocketAddr, packet: Packet) -> Self {
        let template = template(from, to, packet);
        let expected = Box::new(move |_| vec![template.frame.to_vec()]);
        Self { template, verdict: XDP_TX, expected, chosen_at: None }
    }

    /// Compares what became of the first packet with what has to.
    pub fn check(&self, verdict: u32, frame: &[u8]) -> Result<()> {
        self.check_verdict(verdict)?;
        let chosen = self.chosen_at.and_then(|at| frame.get(at..at + 2)).unwrap_or(&[0; 2]);
        let expected = (self.expected)(u16::from_be_bytes([chosen[0], chosen[1]]));
        ensure!(
            expected.iter().any(|expected| expected == frame),
            "the packet became\n{}, not one of\n{}",
            hex(frame),
            expected.iter().map(|expected| hex(expected)).collect::<Vec<_>>().join("\n")
        );
        Ok(())
    }

    /// Compares what was decided about any packet with what has to be.
    pub fn check_verdict(&self, verdict: u32) -> Result<()> {
        ensure!(
            verdict == self.verdict,
            "the verdict is {}, not {}",
            verdict_name(verdict),
            verdict_name(self.verdict)
        );
        Ok(())
    }
}

/// A verdict as the kernel calls it.
pub fn verdict_name(verdict: u32) -> String {
    let name = VERDICTS.get(verdict as usize);
    name.map_or_else(|| verdict.to_string(), |name| (*name).to_owned())
}

/// Flows that go on are not those that begin all the time. In mode `snat` there are not ports enough for both.
fn client(setup: Setup, packet: Packet) -> SocketAddr {
    setup.family.client(u8::from(packet == Packet::Syn && setup.mode != Mode::Snat))
}

fn forward(setup: Setup, packet: Packet, client: SocketAddr) -> Path {
    let Setup { mode, family, services, backends, .. } = setup;
    let vip = family.vip(0);
    let places = Places::of(family);
    let template = Template {
        server_at: places.destination,
        servers: services.into(),
        grows: matches!(mode, Mode::Ipip | Mode::Gue),
        ..template(client, vip, packet)
    };
    let to = move |number| SocketAddr::new(family.backend(number), mode.backend_port());
    let become_of = move |backend: SocketAddr, port: u16| match mode {
        Mode::Nat => vec![sent(client, backend, packet)],
        Mode::Dsr => vec![sent(client, vip, packet)],
        Mode::Ipip => vec![in_ip(&sent(client, vip, packet), family.own(), backend.ip())],
        Mode::Gue => vec![in_gue(&sent(client, vip, packet), family.own(), backend.ip(), port)],
        Mode::Snat => {
            family.snat_sources().map(|source| sent(SocketAddr::new(source, port), backend, packet)).collect()
        }
    };
    let chosen_at = match mode {
        Mode::Nat | Mode::Dsr | Mode::Ipip => None,
        // In the outer headers there, in the only ones here.
        Mode::Gue | Mode::Snat => Some(places.port as usize),
    };
    let expected = move |port| (0..backends).map(to).flat_map(|backend| become_of(backend, port)).collect();
    Path { template, verdict: XDP_TX, expected: Box::new(expected), chosen_at }
}

fn reply([backend, to]: [SocketAddr; 2], packet: Packet) -> Path {
    let family = Family::of(backend.ip());
    let places = Places::of(family);
    let template = Template {
        client_at: places.destination,
        port_at: places.port + 2,
        server_at: places.source,
        ..template(backend, to, packet)
    };
    let expected = Box::new(move |_| vec![sent(family.vip(0), family.client(0), packet)]);
    Path { template, verdict: XDP_TX, expected, chosen_at: None }
}

/// Its flows differ in who sends.
fn template(from: SocketAddr, to: SocketAddr, packet: Packet) -> Template {
    let places = Places::of(Family::of(from.ip()));
    Template::new(arriving(from, to, packet), places.source, places.port)
}

/// Where in a frame the last two bytes of addresses begin, and the source port.
struct Places {
    source: u32,
    destination: u32,
    port: u32,
}

impl Places {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self { source: 28, destination: 32, port: 34 },
            Family::V6 => Self { source: 36, destination: 52, port: 54 },
        }
    }
}
