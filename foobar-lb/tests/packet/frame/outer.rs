//! Packets in packets, as a backend in mode `tunnel` gets them.

use std::net::IpAddr;

use etherparse::{IpNumber, UdpHeader};

use super::{Link, ether_type, ethernet, family_of, ip};

/// What is put around a packet; nobody may fragment it.
#[derive(Clone, Debug)]
pub struct Outer {
    pub link: Link,
    pub from: IpAddr,
    pub to: IpAddr,
    pub traffic_class: u8,
    /// Ports of GUE: whose, and which.
    pub gue: Option<(u16, u16)>,
}

impl Outer {
    const HOPS: u8 = 64;

    /// The frame with the packet inside.
    pub fn around(&self, packet: &[u8]) -> Vec<u8> {
        let mut ip = ip::headers(self.from, self.to, Self::HOPS);
        ip::set_traffic_class(&mut ip, self.traffic_class);
        let inner = if packet[0] >> 4 == 4 { IpNumber::IPV4 } else { IpNumber::IPV6 };
        let packet = match self.gue {
            None => ip::packet(ip, &[], inner, packet),
            Some((source_port, destination_port)) => {
                let length = (UdpHeader::LEN + packet.len()) as u16;
                let udp = UdpHeader { source_port, destination_port, length, checksum: 0 };
                ip::packet(ip, &[], IpNumber::UDP, &[&udp.to_bytes()[..], packet].concat())
            }
        };
        ethernet(self.link, ether_type(family_of(self.to)), &packet)
    }
}
