//! The packets that clients send, as frames, made once.

use std::{net::Ipv4Addr, sync::LazyLock};

use etherparse::{
    Icmpv4Type, IpNumber, Ipv4Header, PacketBuilder, PacketBuilderStep, TcpHeader,
    icmpv4::DestUnreachableHeader,
};
use foobar_lb::model::Protocol;

use super::story::{BACKENDS, CLIENTS, Kind};

pub const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
pub const SERVICE_PORT: u16 = 80;
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub const BALANCER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const HOPS: u8 = 64;
/// Where a frame says whom it is for.
const DESTINATION: std::ops::Range<usize> = 30..34;

/// The port that a client sends from.
pub fn client_port(client: u8) -> u16 {
    40_000 + u16::from(client)
}

/// The address of a backend.
pub fn backend_address(backend: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, 11 + backend)
}

/// The backend that a frame is for.
pub fn destination(frame: &[u8]) -> Option<u8> {
    let address = &frame[DESTINATION];
    (0..BACKENDS).find(|backend| backend_address(*backend).octets() == address)
}

/// A client's packet.
pub fn frame(protocol: Protocol, client: u8, kind: Kind) -> &'static [u8] {
    static TCP: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| frames(Protocol::Tcp));
    static UDP: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| frames(Protocol::Udp));
    let frames = match protocol {
        Protocol::Tcp => &TCP,
        Protocol::Udp => &UDP,
    };
    &frames[usize::from(client) * KINDS.len() + kind as usize]
}

const KINDS: [Kind; 6] = [Kind::Syn, Kind::Data, Kind::Ack, Kind::Fin, Kind::Rst, Kind::Error];

fn frames(protocol: Protocol) -> Vec<Vec<u8>> {
    let of_client = |client| KINDS.map(|kind| write(protocol, client_port(client), kind));
    (0..CLIENTS).flat_map(of_client).collect()
}

fn write(protocol: Protocol, port: u16, kind: Kind) -> Vec<u8> {
    let step = PacketBuilder::ethernet2(ROUTER_MAC, BALANCER_MAC).ipv4(CLIENT.octets(), VIP.octets(), HOPS);
    let mut frame = Vec::new();
    match (kind, protocol) {
        (Kind::Error, _) => {
            let unreachable = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
            step.icmpv4(unreachable).write(&mut frame, &reply(protocol, port))
        }
        (_, Protocol::Udp) => step.udp(port, SERVICE_PORT).write(&mut frame, b"data"),
        (Kind::Data, Protocol::Tcp) => step.tcp_header(tcp(port, kind)).write(&mut frame, b"data"),
        (_, Protocol::Tcp) => step.tcp_header(tcp(port, kind)).write(&mut frame, b""),
    }
    .expect("a vector takes all that is written");
    frame
}

fn tcp(port: u16, kind: Kind) -> TcpHeader {
    let mut tcp = TcpHeader::new(port, SERVICE_PORT, 1, 1024);
    tcp.syn = kind == Kind::Syn;
    tcp.ack = kind != Kind::Syn;
    tcp.fin = kind == Kind::Fin;
    tcp.rst = kind == Kind::Rst;
    tcp
}

/// What the client was sent, without an Ethernet header.
fn reply(protocol: Protocol, port: u16) -> Vec<u8> {
    let header =
        Ipv4Header::new(0, HOPS, IpNumber::TCP, VIP.octets(), CLIENT.octets()).expect("nothing is short");
    let step: PacketBuilderStep<_> =
        PacketBuilder::ip(etherparse::IpHeaders::Ipv4(header, Default::default()));
    let mut packet = Vec::new();
    match protocol {
        Protocol::Tcp => step.tcp(SERVICE_PORT, port, 1, 1024).write(&mut packet, b""),
        Protocol::Udp => step.udp(SERVICE_PORT, port).write(&mut packet, b""),
    }
    .expect("a vector takes all that is written");
    packet
}
