//! Tells the neighbourhood at start that a VIP is here now: a gratuitous ARP request (RFC 5227 section 2.3)
//! or an unsolicited neighbour advertisement (RFC 4861 section 7.2.6). Questions about the VIP are
//! answered by the data path.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, Icmpv6Type, PacketBuilder,
    icmpv6::{NeighborAdvertisementHeader, NeighborAdvertisementPayload},
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use tracing::warn;

use crate::ethernet::{self, BROADCAST};

/// How often each VIP is announced. A frame may get lost, and a switch may still be learning.
const ROUNDS: usize = 3;
const INTERVAL: Duration = Duration::from_secs(1);

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// RFC 2464 section 7: how Ethernet carries a packet to all nodes.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Why nothing can be announced.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No raw socket; it needs `CAP_NET_RAW`.
    #[error("cannot open a packet socket to announce VIPs")]
    Open(#[source] Errno),
    /// An interface cannot be used.
    #[error("cannot announce VIPs")]
    Interface(#[from] ethernet::Error),
}

/// Announces every VIP on every interface, three times, a second apart. Dropping the future ends it. A frame
/// that cannot be sent is logged and does not keep the others back.
///
/// # Errors
/// When the socket cannot be opened or an interface is not there, before anything is sent.
pub async fn announce(interfaces: &[String], vips: &[IpAddr]) -> Result<(), Error> {
    // Protocol 0: a socket that only sends costs the machine's traffic nothing.
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).map_err(Error::Open)?;
    let links = ethernet::find_links(interfaces.iter().map(String::as_str))?;
    let mut interval = tokio::time::interval(INTERVAL);
    for _ in 0..ROUNDS {
        interval.tick().await;
        for link in &links {
            for &vip in vips {
                // A frame that does not fit now is not worth holding up the daemon.
                if let Err(error) = link.send(&socket, &frame(vip, link.mac)) {
                    warn!(%vip, interface = link.name, %error, "cannot announce a VIP");
                }
            }
        }
    }
    Ok(())
}

fn frame(vip: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    match vip {
        IpAddr::V4(vip) => arp_announcement(vip, mac),
        IpAddr::V6(vip) => neighbour_advertisement(vip, mac),
    }
}

fn arp_announcement(vip: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac,
        sender_ipv4: vip.octets(),
        target_mac: [0; 6],
        target_ipv4: vip.octets(),
    };
    let builder = PacketBuilder::ethernet2(mac, BROADCAST).arp(packet.into());
    let mut frame = Vec::with_capacity(builder.size());
    builder.write(&mut frame).expect("a vector takes every byte");
    frame
}

fn neighbour_advertisement(vip: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let flags = NeighborAdvertisementHeader { router: false, solicited: false, r#override: true };
    let mut payload = NeighborAdvertisementPayload { target_address: vip }.to_bytes().to_vec();
    // The target link-layer address option (RFC 4861 section 4.6.1): type 2, one unit of 8 bytes.
    payload.extend([2, 1]);
    payload.extend(mac);
    let builder = PacketBuilder::ethernet2(mac, ALL_NODES_MAC)
        .ipv6(vip.octets(), ALL_NODES.octets(), 255)
        .icmpv6(Icmpv6Type::NeighborAdvertisement(flags));
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, &payload).expect("a vector takes every byte");
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn ipv4_is_announced_by_an_arp_request_for_itself_to_everybody() {
        let bytes = frame("203.0.113.80".parse().unwrap(), MAC);
        let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
        let ethernet = packet.link.unwrap().to_header().unwrap().ethernet2().unwrap();
        assert_eq!((ethernet.source, ethernet.destination), (MAC, BROADCAST));
        let Some(NetSlice::Arp(arp)) = packet.net else { panic!("{:?}", packet.net) };
        assert_eq!(arp.operation(), ArpOperation::REQUEST);
        assert_eq!((arp.sender_hw_addr(), arp.target_hw_addr()), (&MAC[..], &[0; 6][..]));
        let vip = [203, 0, 113, 80];
        assert_eq!((arp.sender_protocol_addr(), arp.target_protocol_addr()), (&vip[..], &vip[..]));
    }

    #[test]
    fn ipv6_is_announced_by_an_advertisement_that_overrides_to_all_nodes() {
        let vip: Ipv6Addr = "2001:db8::80".parse().unwrap();
        let bytes = frame(vip.into(), MAC);
        let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
        let ethernet = packet.link.unwrap().to_header().unwrap().ethernet2().unwrap();
        assert_eq!((ethernet.source, ethernet.destination), (MAC, ALL_NODES_MAC));
        let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!("{:?}", packet.net) };
        let ip = ip.header();
        assert_eq!((ip.source_addr(), ip.destination_addr(), ip.hop_limit()), (vip, ALL_NODES, 255));
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("{:?}", packet.transport) };
        assert!(icmp.is_checksum_valid(ip.source(), ip.destination()));
        let flags = NeighborAdvertisementHeader { router: false, solicited: false, r#override: true };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::NeighborAdvertisement(flags));
        let (target, option) = icmp.payload().split_at(16);
        assert_eq!(target, vip.octets());
        assert_eq!(option, [&[2, 1][..], &MAC].concat());
    }
}
