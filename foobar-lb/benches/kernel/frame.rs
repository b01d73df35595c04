//! Frames with right checksums, written by another implementation than the one that is measured.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use etherparse::{
    EtherType, Ethernet2Header, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, NetHeaders, PacketBuilder,
    PacketBuilderStep, PacketHeaders, TransportHeader, UdpHeader,
    ip_number::{IPV4, IPV6, UDP},
};

use crate::{
    address::{GUE_PORT, NEIGHBOUR_MAC, OWN_MAC},
    generator::Frame,
};

const HOPS: u8 = 64;
const ETHERNET: usize = Ethernet2Header::LEN;
const ETHER_TYPE_AT: usize = 12;

/// What a packet is to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// It begins.
    Syn,
    /// It goes on.
    Ack,
    /// It is one of UDP, of which nothing shows what it is.
    Datagram,
}

impl Packet {
    /// Those of TCP.
    pub const ALL: [Self; 2] = [Self::Syn, Self::Ack];

    pub fn name(self) -> &'static str {
        match self {
            Self::Syn => "SYN",
            Self::Ack => "mid-flow",
            Self::Datagram => "datagram",
        }
    }

    /// Writes it behind an IP header, with a payload that fills the frame.
    fn write(self, ip: PacketBuilderStep<IpHeaders>, from: u16, to: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        let padding = |size: usize| vec![0; size_of::<Frame>() - size];
        let tcp = |ip: PacketBuilderStep<IpHeaders>| ip.tcp(from, to, 1, 1024);
        let written = match self {
            Self::Datagram => {
                let udp = ip.udp(from, to);
                let payload = padding(udp.size(0));
                udp.write(&mut frame, &payload)
            }
            Self::Syn | Self::Ack => {
                let tcp = if self == Self::Syn { tcp(ip).syn() } else { tcp(ip).ack(1) };
                let payload = padding(tcp.size(0));
                tcp.write(&mut frame, &payload)
            }
        };
        written.expect("a vector can be written to");
        frame
    }
}

/// As it arrives.
pub fn arriving(from: SocketAddr, to: SocketAddr, packet: Packet) -> Frame {
    let frame = build([NEIGHBOUR_MAC, OWN_MAC], from, to, HOPS, packet);
    frame.try_into().expect("the payload fills the frame")
}

/// As it goes on.
pub fn sent(from: SocketAddr, to: SocketAddr, packet: Packet) -> Vec<u8> {
    build([OWN_MAC, NEIGHBOUR_MAC], from, to, HOPS - 1, packet)
}

/// As it goes on with another IP header around what was `sent`.
pub fn in_ip(frame: &[u8], from: IpAddr, to: IpAddr) -> Vec<u8> {
    wrap(frame, from, to, protocol_of(frame), &frame[ETHERNET..])
}

/// As it goes on with a UDP header too, of which the balancer has chosen the source port.
pub fn in_gue(frame: &[u8], from: IpAddr, to: IpAddr, source_port: u16) -> Vec<u8> {
    let inner = &frame[ETHERNET..];
    let length = (UdpHeader::LEN + inner.len()) as u16;
    let udp = UdpHeader { source_port, destination_port: GUE_PORT, length, checksum: 0 };
    wrap(frame, from, to, UDP, &[&udp.to_bytes()[..], inner].concat())
}

/// Where a TCP packet comes from and goes to.
pub fn ends_of(frame: &[u8]) -> Result<[SocketAddr; 2]> {
    let headers = PacketHeaders::from_ethernet_slice(frame)?;
    let (source, destination): (IpAddr, IpAddr) = match headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => (ip.source.into(), ip.destination.into()),
        Some(NetHeaders::Ipv6(ip, _)) => (ip.source.into(), ip.destination.into()),
        _ => bail!("{} is no IP packet", hex(frame)),
    };
    let tcp = headers.transport.and_then(TransportHeader::tcp);
    let tcp = tcp.with_context(|| format!("{} is no TCP packet", hex(frame)))?;
    Ok([SocketAddr::new(source, tcp.source_port), SocketAddr::new(destination, tcp.destination_port)])
}

/// A frame in hexadecimal.
pub fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn build(macs: [[u8; 6]; 2], from: SocketAddr, to: SocketAddr, hops: u8, packet: Packet) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(macs[0], macs[1]);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), hops),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), hops),
        _ => unreachable!("both ends of a flow are of one family"),
    };
    packet.write(ip, from.port(), to.port())
}

fn protocol_of(frame: &[u8]) -> IpNumber {
    if frame[ETHERNET] >> 4 == 4 { IPV4 } else { IPV6 }
}

fn wrap(frame: &[u8], from: IpAddr, to: IpAddr, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let outer = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => outer_v4(from, to, protocol, payload.len() as u16),
        (IpAddr::V6(from), IpAddr::V6(to)) => outer_v6(from, to, protocol, payload.len() as u16),
        _ => unreachable!("both ends of a tunnel are of one family"),
    };
    let ether_type = if from.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
    [&frame[..ETHER_TYPE_AT], &ether_type.0.to_be_bytes(), &outer, payload].concat()
}

fn outer_v4(from: Ipv4Addr, to: Ipv4Addr, protocol: IpNumber, length: u16) -> Vec<u8> {
    let header = Ipv4Header::new(length, HOPS, protocol, from.octets(), to.octets());
    let mut header = header.expect("the payload is short");
    header.header_checksum = header.calc_header_checksum();
    header.to_bytes().to_vec()
}

fn outer_v6(from: Ipv6Addr, to: Ipv6Addr, protocol: IpNumber, length: u16) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: length,
        next_header: protocol,
        hop_limit: HOPS,
        source: from.octets(),
        destination: to.octets(),
        ..Ipv6Header::default()
    };
    header.to_bytes().to_vec()
}
