//! How a service reaches its backends, and what they get: what a row is about is the same in each mode.

use std::net::SocketAddr;

use foobar_lb::model::{Encapsulation, Mode, Tunnel};
use foobar_lb_ebpf::{
    flow::{hash, hash_key},
    headers::Side,
    reason::Verdict,
};

use super::{
    Row,
    frame::{Datagram, Outer, ip_header, leaving},
    world::{self, BACKEND_SIDE, CLIENT_SIDE, Family, Host, SEED, Story, WEB1, flow, id},
};

/// The port that GUE goes to: not the default, so that it is seen to be taken from the operator.
const GUE: u16 = 6081;

/// A mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Nat,
    Dsr,
    /// Packets in packets.
    IpIn(Family),
    /// Packets in UDP in packets.
    GueIn(Family),
}

/// Those that put packets into packets.
pub const TUNNELS: [Way; 4] =
    [Way::IpIn(Family::V4), Way::IpIn(Family::V6), Way::GueIn(Family::V4), Way::GueIn(Family::V6)];
pub const WAYS: [Way; 6] = [Way::Nat, Way::Dsr, TUNNELS[0], TUNNELS[1], TUNNELS[2], TUNNELS[3]];

impl Way {
    /// The usual network, where all services reach their backends this way and the first has everything.
    pub fn story(self) -> Story {
        self.configure(Story::settled())
    }

    /// Lets all services of a story reach their backends this way.
    pub fn configure(self, story: Story) -> Story {
        story.configured(|service| {
            service.mode = self.mode();
            if let Some(outer) = self.outer() {
                for (backend, host) in service.backends.iter_mut().zip(world::WEBS) {
                    backend.address = SocketAddr::new(host.ip(outer), backend.address.port());
                }
            }
        })
    }

    fn mode(self) -> Mode {
        let tunnel = |encapsulation| Mode::Tunnel(Tunnel { encapsulation, sources: vec![] });
        match self {
            Self::Nat => Mode::Nat,
            Self::Dsr => Mode::Dsr,
            Self::IpIn(_) => tunnel(Encapsulation::Ipip),
            Self::GueIn(_) => tunnel(Encapsulation::Gue(GUE)),
        }
    }

    /// Which IP is outside.
    pub fn outer(self) -> Option<Family> {
        match self {
            Self::Nat | Self::Dsr => None,
            Self::IpIn(outer) | Self::GueIn(outer) => Some(outer),
        }
    }

    /// Bytes that packets grow by.
    pub fn overhead(self) -> usize {
        let udp = if matches!(self, Self::GueIn(_)) { 8 } else { 0 };
        udp + self.outer().map_or(0, ip_header)
    }

    /// The frame in which a backend gets this packet of the flow. `packet` makes it of the datagram as it travels.
    pub fn carry(self, request: &Datagram, backend: Host, packet: &Packet<'_>) -> Vec<u8> {
        let one_less = Datagram { hops: request.hops - 1, ..request.clone() };
        match self.outer() {
            Some(outer) => self.outer_headers(request, backend, outer).around(&packet(&one_less)),
            None => {
                let link = leaving(BACKEND_SIDE, backend);
                let to =
                    if self == Self::Nat { world::server(backend, request.family()) } else { request.to };
                let sent = Datagram { link, to, ..one_less };
                sent.carrying(packet(&sent))
            }
        }
    }

    /// What is put around packets of a flow.
    pub fn outer_headers(self, request: &Datagram, backend: Host, outer: Family) -> Outer {
        Outer {
            link: leaving(BACKEND_SIDE, backend),
            from: BACKEND_SIDE.balancer.ip(outer),
            to: backend.ip(outer),
            traffic_class: request.traffic_class,
            gue: matches!(self, Self::GueIn(_)).then(|| (source_port(request), GUE)),
        }
    }

    /// The first backend gets the packet of the request.
    pub fn carries(self, what: &str, request: &Datagram, packet: &Packet<'_>) -> Row {
        let out = self.carry(request, WEB1, packet);
        self.translates(what, request, request.carrying(packet(request)), out)
    }

    /// The first backend gets `out` of the frame.
    pub fn translates(self, what: &str, request: &Datagram, frame: Vec<u8>, out: Vec<u8>) -> Row {
        let traffic = (id(WEB1, request.family(), request.transport.protocol()), Side::Destination);
        let verdict = Verdict::Redirect(BACKEND_SIDE.index);
        let (name, image) = (self.called(what, request), self.story().image());
        Row::translates(name, image, CLIENT_SIDE.index, frame, out, verdict, traffic)
    }

    pub fn called(self, what: &str, request: &Datagram) -> String {
        format!("{self:?}: {what} ({:?} {:?})", request.transport, request.family())
    }
}

/// What makes a packet of a datagram: all of it, a part of it, something about it.
pub type Packet<'p> = dyn Fn(&Datagram) -> Vec<u8> + 'p;

/// The source port of GUE: of the ephemeral ones, by the hash of the flow.
fn source_port(request: &Datagram) -> u16 {
    let flow = flow(request.from, request.to, request.transport.protocol());
    (hash(&hash_key(SEED), &flow) >> 32) as u16 | 49_152
}
