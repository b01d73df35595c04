//! Frames as another implementation, etherparse, writes them: all lengths and checksums of theirs are its own.

mod icmp;
mod ip;
mod outer;
mod quic;

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, IpHeaders, IpNumber, Ipv4Header,
    Ipv6Header, PacketBuilder, TcpHeader, TransportHeader, UdpHeader,
};
use foobar_lb::model::Protocol;

pub use self::{
    icmp::{Complaint, IcmpError, Numbered, Ping, message},
    ip::{Extension, Fragment, as_part, headers, ip, set_traffic_class},
    outer::Outer,
    quic::Header,
};
use super::world::{self, BACKEND_SIDE, CLIENT, CLIENT_SIDE, Family, Host, Port, WEB1};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of the shortest frame that is sent, without its checksum.
pub const MINIMUM: usize = 60;

/// Who sends a frame to whom on a wire.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub from: [u8; 6],
    pub to: [u8; 6],
}

impl Link {
    /// The way of an answer.
    pub fn back(self) -> Self {
        Self { from: self.to, to: self.from }
    }
}

/// What arrives by an interface.
pub fn arriving(from: Host, by: Port) -> Link {
    Link { from: from.mac, to: by.balancer.mac }
}

/// What leaves by an interface.
pub fn leaving(by: Port, to: Host) -> Link {
    Link { from: by.balancer.mac, to: to.mac }
}

/// TCP or UDP, and what their header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Syn,
    SynAck,
    Ack,
    /// Without payload, with options, as a client that only listens sends it.
    BareAck,
    Fin,
    Rst,
    Udp,
    /// Without a checksum.
    BareUdp,
}

impl Transport {
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Udp | Self::BareUdp => Protocol::Udp,
            _ => Protocol::Tcp,
        }
    }

    fn number(self) -> IpNumber {
        match self.protocol() {
            Protocol::Tcp => IpNumber::TCP,
            Protocol::Udp => IpNumber::UDP,
        }
    }
}

/// Where all TCP connections stand.
pub const SEQUENCE: u32 = 0x0102_0304;
pub const ACKNOWLEDGEMENT: u32 = 0x0506_0708;
/// As many options as a timestamp takes.
const NO_OPERATIONS: [u8; 12] = [1; 12];

/// A TCP or UDP packet on a wire.
#[derive(Clone, Debug)]
pub struct Datagram {
    pub link: Link,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub transport: Transport,
    pub hops: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Identification, of IPv4 and of fragments.
    pub id: u16,
    /// Of IPv4.
    pub options: &'static [u8],
    /// Of IPv6, in their order.
    pub extensions: Vec<Extension>,
    pub may_fragment: bool,
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Datagram {
    /// The client's packet to the service.
    pub fn request(family: Family, transport: Transport) -> Self {
        let bare = transport == Transport::BareAck;
        Self {
            link: arriving(CLIENT, CLIENT_SIDE),
            from: world::client(CLIENT, family),
            to: world::service(family),
            transport,
            hops: 64,
            traffic_class: 0,
            id: 0,
            options: &[],
            extensions: vec![],
            may_fragment: false,
            tcp_options: if bare { NO_OPERATIONS.to_vec() } else { vec![] },
            payload: if bare { vec![] } else { b"a payload of odd length".to_vec() },
        }
    }

    /// The first backend's packet to the client.
    pub fn reply(family: Family, transport: Transport) -> Self {
        Self {
            link: arriving(WEB1, BACKEND_SIDE),
            from: world::server(WEB1, family),
            to: world::client(CLIENT, family),
            ..Self::request(family, transport)
        }
    }

    /// The request as a backend gets it.
    pub fn reaching(self, backend: Host) -> Self {
        let to = world::server(backend, self.family());
        Self { link: leaving(BACKEND_SIDE, backend), to, hops: self.hops - 1, ..self }
    }

    /// The reply as its next hop gets it.
    pub fn returning(self, link: Link) -> Self {
        Self { link, from: world::service(self.family()), hops: self.hops - 1, ..self }
    }

    /// Of so many bytes, IP header included.
    pub fn sized(self, bytes: usize) -> Self {
        let headers = self.packet().len() - self.payload.len();
        Self { payload: vec![0x5a; bytes - headers], ..self }
    }

    pub fn family(&self) -> Family {
        family_of(self.to.ip())
    }

    /// The whole frame.
    pub fn frame(&self) -> Vec<u8> {
        self.carrying(self.packet())
    }

    /// A frame on the same wire, with a packet of the same family.
    pub fn carrying(&self, packet: Vec<u8>) -> Vec<u8> {
        ethernet(self.link, ether_type(self.family()), &packet)
    }

    /// The IP packet in it.
    pub fn packet(&self) -> Vec<u8> {
        let segment = self.segment();
        self.ip_packet(&self.extensions, None, &segment)
    }

    /// The IP packet that carries these bytes of what follows the IP header, which are not all.
    pub fn part(&self, bytes: Range<usize>) -> Vec<u8> {
        let segment = self.segment();
        let more = bytes.end < segment.len();
        assert!(bytes.start.is_multiple_of(8) && (!more || bytes.end.is_multiple_of(8)), "{bytes:?}");
        let fragment = Fragment { offset: (bytes.start / 8) as u16, more, id: self.id };
        match self.family() {
            Family::V4 => self.ip_packet(&[], Some(fragment), &segment[bytes]),
            Family::V6 => {
                let extensions = [&self.extensions[..], &[Extension::Fragment(fragment)]].concat();
                self.ip_packet(&extensions, None, &segment[bytes])
            }
        }
    }

    /// Bytes that follow the IP header.
    pub fn segment(&self) -> Vec<u8> {
        let mut header = self.transport_header();
        match self.ip_headers(None) {
            IpHeaders::Ipv4(ip, _) => header.update_checksum_ipv4(&ip, &self.payload).ok(),
            IpHeaders::Ipv6(ip, _) => header.update_checksum_ipv6(&ip, &self.payload).ok(),
        }
        .expect("payloads are short");
        if self.transport == Transport::BareUdp {
            header.mut_udp().expect("it is UDP").checksum = 0;
        }
        let mut segment = Vec::new();
        header.write(&mut segment).expect("a vector takes all that is written");
        [segment, self.payload.clone()].concat()
    }

    fn transport_header(&self) -> TransportHeader {
        let (source_port, destination_port) = (self.from.port(), self.to.port());
        if self.transport.protocol() == Protocol::Udp {
            let length = (UdpHeader::LEN + self.payload.len()) as u16;
            return TransportHeader::Udp(UdpHeader { source_port, destination_port, length, checksum: 0 });
        }
        let mut tcp = TcpHeader::new(source_port, destination_port, SEQUENCE, 0x8000);
        tcp.syn = matches!(self.transport, Transport::Syn | Transport::SynAck);
        tcp.fin = self.transport == Transport::Fin;
        tcp.rst = self.transport == Transport::Rst;
        tcp.ack = self.transport != Transport::Syn;
        tcp.acknowledgment_number = if tcp.ack { ACKNOWLEDGEMENT } else { 0 };
        tcp.set_options_raw(&self.tcp_options).expect("there is room for these options");
        TransportHeader::Tcp(tcp)
    }

    fn ip_packet(&self, extensions: &[Extension], fragment: Option<Fragment>, segment: &[u8]) -> Vec<u8> {
        ip::packet(self.ip_headers(fragment), extensions, self.transport.number(), segment)
    }

    fn ip_headers(&self, fragment: Option<Fragment>) -> IpHeaders {
        let mut ip = headers(self.from.ip(), self.to.ip(), self.hops);
        set_traffic_class(&mut ip, self.traffic_class);
        if let IpHeaders::Ipv4(header, _) = &mut ip {
            header.options = self.options.try_into().expect("rows have whole words of options");
            header.identification = self.id;
            header.dont_fragment = !self.may_fragment;
            fragment.into_iter().for_each(|fragment| ip::set_fragment(header, fragment));
        }
        ip
    }
}

/// Bytes of its header, without options.
pub fn ip_header(family: Family) -> usize {
    match family {
        Family::V4 => Ipv4Header::MIN_LEN,
        Family::V6 => Ipv6Header::LEN,
    }
}

/// Which IP an address is of.
pub fn family_of(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// How Ethernet calls it.
pub fn ether_type(family: Family) -> EtherType {
    match family {
        Family::V4 => EtherType::IPV4,
        Family::V6 => EtherType::IPV6,
    }
}

/// A frame of any kind.
pub fn ethernet(link: Link, ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source: link.from, destination: link.to, ether_type };
    [&header.to_bytes(), payload].concat()
}

/// A frame that is as long as a network card makes it.
pub fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(MINIMUM), 0);
    frame
}

/// An ARP packet; an end is its MAC and its address.
pub fn arp(link: Link, operation: ArpOperation, sender: ArpEnd, target: ArpEnd) -> Vec<u8> {
    let (ethernet, ipv4) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
    let packet = ArpPacket::new(ethernet, ipv4, operation, &sender.0, &sender.1, &target.0, &target.1)
        .expect("MACs and addresses are short");
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(link.from, link.to)
        .arp(packet)
        .write(&mut frame)
        .expect("a vector takes all that is written");
    padded(frame)
}

/// A MAC and the IPv4 address it has or looks for.
pub type ArpEnd = ([u8; 6], [u8; 4]);

/// The IPv4 address of a host.
pub fn octets(host: Host) -> [u8; 4] {
    match host.ip(Family::V4) {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => unreachable!("asked for the IPv4 address"),
    }
}

/// Where a segment stands in its connection.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    pub sequence: u32,
    pub acknowledged: Option<u32>,
}

/// The RST that refuses a segment.
pub fn refusal(segment: &Datagram, Numbers { sequence, acknowledged }: Numbers) -> Vec<u8> {
    let (from, to) = (segment.to, segment.from);
    let rst = ip(segment.link.back(), from.ip(), to.ip(), 64).tcp(from.port(), to.port(), sequence, 0).rst();
    let rst = match acknowledged {
        Some(number) => rst.ack(number),
        None => rst,
    };
    let mut frame = Vec::new();
    rst.write(&mut frame, &[]).expect("a vector takes all that is written");
    frame
}
