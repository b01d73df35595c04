//! The packets that clients send, and where a packet went.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::LazyLock,
};

use anyhow::{Context, Result};
use etherparse::{PacketBuilder, TcpHeader};

/// What clients connect to.
pub const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(203, 0, 113, 80)), 80);
pub const BALANCER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Ethernet, IPv4 and TCP without options or payload.
pub type Frame = [u8; 54];

const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
/// RFC 2544's benchmark network, a client for each of its addresses.
const CLIENTS: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const HOPS: u8 = 64;
const SOURCE: std::ops::Range<usize> = 26..30;
const DESTINATION: std::ops::Range<usize> = 30..34;
const SOURCE_PORT: std::ops::Range<usize> = 34..36;

/// A packet of a TCP connection.
#[derive(Clone, Copy, Debug)]
pub enum Segment {
    Syn,
    Ack,
    Fin,
    Rst,
}

/// The address of a backend, by its number.
pub fn backend(number: u8) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 1, 11 + number), 8080).into()
}

/// A client's packet. The checksums are those of another client: nobody looks at them here.
pub fn frame(client: u32, port: u16, segment: Segment) -> Frame {
    static TEMPLATES: LazyLock<[Frame; 4]> =
        LazyLock::new(|| [Segment::Syn, Segment::Ack, Segment::Fin, Segment::Rst].map(template));
    let mut frame = TEMPLATES[segment as usize];
    frame[SOURCE].copy_from_slice(&(CLIENTS + client).to_be_bytes());
    frame[SOURCE_PORT].copy_from_slice(&port.to_be_bytes());
    frame
}

/// The number of the backend that a packet is for.
pub fn destination(frame: &Frame) -> Result<u8> {
    let address: [u8; 4] = frame[DESTINATION].try_into()?;
    let number = address.strip_prefix(&[10, 0, 1]).and_then(|host| host[0].checked_sub(11));
    number.with_context(|| format!("a packet was sent to {}, which is no backend", Ipv4Addr::from(address)))
}

fn template(segment: Segment) -> Frame {
    let SocketAddr::V4(vip) = VIP else { unreachable!("it is of IPv4") };
    let mut tcp = TcpHeader::new(0, vip.port(), 1, 1024);
    tcp.syn = matches!(segment, Segment::Syn);
    tcp.ack = !tcp.syn;
    tcp.fin = matches!(segment, Segment::Fin);
    tcp.rst = matches!(segment, Segment::Rst);
    let packet = PacketBuilder::ethernet2(ROUTER_MAC, BALANCER_MAC)
        .ipv4(CLIENTS.to_be_bytes(), vip.ip().octets(), HOPS)
        .tcp_header(tcp);
    let mut frame = Vec::new();
    packet.write(&mut frame, &[]).expect("a vector takes all that is written");
    frame.try_into().expect("nothing has options")
}
