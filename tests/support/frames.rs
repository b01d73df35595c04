//! Frames, built and judged by another implementation than the balancer's.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{
    Ethernet2Header, NetHeaders, PacketBuilder, PacketBuilderStep, PacketHeaders, SlicedPacket,
    TransportHeader, TransportSlice,
};
use lab::Namespace;

use super::conversation::Protocol;

/// The TTL and hop limit that frames start with.
pub const HOP_LIMIT: u8 = 64;

/// Where the UDP checksum is in a frame without IP options.
const UDP_CHECKSUM_V4: std::ops::Range<usize> = 40..42;

/// A UDP frame; the checksums are right.
pub fn udp(macs: Macs, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Result<Vec<u8>> {
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => macs.start().ipv4(from.octets(), to.octets(), HOP_LIMIT),
        (IpAddr::V6(from), IpAddr::V6(to)) => macs.start().ipv6(from.octets(), to.octets(), HOP_LIMIT),
        _ => bail!("{from} and {to} are of two families"),
    };
    let mut frame = Vec::new();
    builder.udp(from.port(), to.port()).write(&mut frame, payload)?;
    Ok(frame)
}

/// The same frame without a UDP checksum, which only IPv4 allows (RFC 768).
pub fn without_udp_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[UDP_CHECKSUM_V4].fill(0);
    frame
}

/// Source and destination of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Macs {
    pub source: [u8; 6],
    pub destination: [u8; 6],
}

impl Macs {
    /// From the `eth0` of one namespace to an interface of another.
    pub fn between(from: &Namespace, to: &Namespace, interface: &str) -> Result<Self> {
        Ok(Self { source: from.mac("eth0")?, destination: to.mac(interface)? })
    }

    /// A frame between the two, to be continued.
    pub fn start(self) -> PacketBuilderStep<Ethernet2Header> {
        PacketBuilder::ethernet2(self.source, self.destination)
    }
}

/// What the stories ask of an arrived packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub hop_limit: u8,
    pub protocol: Protocol,
}

impl Seen {
    /// Reads a TCP or UDP frame; None for any other.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let headers = PacketHeaders::from_ethernet_slice(frame).ok()?;
        let (from, to, hop_limit) = match headers.net? {
            NetHeaders::Ipv4(ip, _) => {
                (IpAddr::from(ip.source), IpAddr::from(ip.destination), ip.time_to_live)
            }
            NetHeaders::Ipv6(ip, _) => (ip.source.into(), ip.destination.into(), ip.hop_limit),
            NetHeaders::Arp(_) => return None,
        };
        let (from_port, to_port, protocol) = match headers.transport? {
            TransportHeader::Tcp(tcp) => (tcp.source_port, tcp.destination_port, Protocol::Tcp),
            TransportHeader::Udp(udp) => (udp.source_port, udp.destination_port, Protocol::Udp),
            _ => return None,
        };
        let (from, to) = (SocketAddr::new(from, from_port), SocketAddr::new(to, to_port));
        Some(Self { from, to, hop_limit, protocol })
    }
}

/// Every checksum of every IP packet must be right: of the IPv4 header, of TCP, UDP, ICMP.
pub fn check_checksums(frames: &[Vec<u8>]) -> Result<()> {
    for frame in frames {
        check_frame(frame).with_context(|| format!("frame {frame:02x?}"))?;
    }
    Ok(())
}

fn check_frame(frame: &[u8]) -> Result<()> {
    let headers = PacketHeaders::from_ethernet_slice(frame)?;
    let (Some(net), Some(mut transport)) = (headers.net, headers.transport) else { return Ok(()) };
    let payload = headers.payload.slice();
    let mut right = transport.clone();
    // Linux says a TCP checksum of zero as 0xffff too, as UDP has to (skb_checksum_help): the same number.
    if let TransportHeader::Tcp(tcp) = &mut transport
        && tcp.checksum == u16::MAX
    {
        tcp.checksum = 0;
    }
    match net {
        NetHeaders::Ipv4(ip, _) => {
            ensure!(ip.header_checksum == ip.calc_header_checksum(), "wrong IPv4 header checksum");
            right.update_checksum_ipv4(&ip, payload)?;
        }
        NetHeaders::Ipv6(ip, _) => right.update_checksum_ipv6(&ip, payload)?,
        NetHeaders::Arp(_) => {}
    }
    ensure!(transport == right, "wrong checksum: {transport:?}, it should be {right:?}");
    Ok(())
}

/// Whether the frame is an ICMP redirect of either family (RFC 792; RFC 4861 section 4.5).
pub fn is_redirect(frame: &[u8]) -> bool {
    const REDIRECT: u8 = 5;
    const REDIRECT_V6: u8 = 137;
    match SlicedPacket::from_ethernet(frame).ok().and_then(|packet| packet.transport) {
        Some(TransportSlice::Icmpv4(icmp)) => icmp.type_u8() == REDIRECT,
        Some(TransportSlice::Icmpv6(icmp)) => icmp.type_u8() == REDIRECT_V6,
        _ => false,
    }
}
