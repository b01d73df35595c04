//! Frames as another implementation, etherparse, writes them: all lengths and checksums of theirs are its own.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv4Type, Icmpv6Type, IpFragOffset,
    IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header, PacketBuilder,
    PacketBuilderStep, TcpHeader, icmpv4, icmpv6,
};
use foobar_lb::model::Protocol;

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
}

/// A part of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    /// In units of 8 bytes.
    pub offset: u16,
    pub more: bool,
}

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
    /// Of IPv4.
    pub options: &'static [u8],
    pub fragment: Option<Fragment>,
    pub may_fragment: bool,
    pub payload: Vec<u8>,
}

impl Datagram {
    /// The client's packet to the service.
    pub fn request(family: Family, transport: Transport) -> Self {
        Self {
            link: arriving(CLIENT, CLIENT_SIDE),
            from: world::client(CLIENT, family),
            to: world::service(family),
            transport,
            hops: 64,
            options: &[],
            fragment: None,
            may_fragment: false,
            payload: match transport {
                Transport::BareAck => Vec::new(),
                _ => b"a payload of odd length".to_vec(),
            },
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

    pub fn family(&self) -> Family {
        if self.to.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The whole frame.
    pub fn frame(&self) -> Vec<u8> {
        let ether_type = match self.family() {
            Family::V4 => EtherType::IPV4,
            Family::V6 => EtherType::IPV6,
        };
        ethernet(self.link, ether_type, &self.packet())
    }

    /// The IP packet in it.
    pub fn packet(&self) -> Vec<u8> {
        let step = PacketBuilder::ip(self.ip());
        let mut packet = Vec::new();
        match self.transport {
            Transport::Udp | Transport::BareUdp => {
                step.udp(self.from.port(), self.to.port()).write(&mut packet, &self.payload)
            }
            _ => step.tcp_header(self.tcp()).write(&mut packet, &self.payload),
        }
        .expect("a vector takes all that is written");
        if self.transport == Transport::BareUdp {
            let check = packet.len() - self.payload.len() - 2;
            packet[check..check + 2].fill(0);
        }
        packet
    }

    fn tcp(&self) -> TcpHeader {
        let mut tcp = TcpHeader::new(self.from.port(), self.to.port(), 0x0102_0304, 0x8000);
        tcp.syn = matches!(self.transport, Transport::Syn | Transport::SynAck);
        tcp.fin = self.transport == Transport::Fin;
        tcp.rst = self.transport == Transport::Rst;
        tcp.ack = self.transport != Transport::Syn;
        if self.transport == Transport::BareAck {
            tcp.set_options_raw(&NO_OPERATIONS).expect("there is room for these options");
        }
        tcp
    }

    fn ip(&self) -> IpHeaders {
        let mut ip = ip_headers(self.from.ip(), self.to.ip(), self.hops);
        let fragment = self.fragment.unwrap_or(Fragment { offset: 0, more: false });
        let offset = IpFragOffset::try_new(fragment.offset).expect("rows keep to 13 bits");
        match &mut ip {
            IpHeaders::Ipv4(header, _) => {
                header.options = self.options.try_into().expect("rows have whole words of options");
                header.dont_fragment = !self.may_fragment;
                header.more_fragments = fragment.more;
                header.fragment_offset = offset;
            }
            IpHeaders::Ipv6(_, extensions) if self.fragment.is_some() => {
                let header = Ipv6FragmentHeader::new(IpNumber::TCP, offset, fragment.more, 1);
                extensions.fragment = Some(header);
            }
            IpHeaders::Ipv6(..) => {}
        }
        ip
    }
}

/// What an ICMP error says of the packet it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    PortUnreachable,
    /// Fragmentation needed, packet too big.
    TooBig,
}

/// An ICMP error on a wire.
#[derive(Clone, Debug)]
pub struct IcmpError {
    pub link: Link,
    pub from: IpAddr,
    pub to: IpAddr,
    pub hops: u8,
    pub complaint: Complaint,
    /// The packet it quotes, or as much of it as fits.
    pub quoted: Vec<u8>,
}

impl IcmpError {
    pub fn frame(&self) -> Vec<u8> {
        let step = ip(self.link, self.from, self.to, self.hops);
        let mut frame = Vec::new();
        match (self.to, self.complaint) {
            (IpAddr::V4(_), complaint) => {
                let code = match complaint {
                    Complaint::PortUnreachable => icmpv4::DestUnreachableHeader::Port,
                    Complaint::TooBig => {
                        icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 }
                    }
                };
                step.icmpv4(Icmpv4Type::DestinationUnreachable(code)).write(&mut frame, &self.quoted)
            }
            (IpAddr::V6(_), Complaint::PortUnreachable) => step
                .icmpv6(Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port))
                .write(&mut frame, &self.quoted),
            (IpAddr::V6(_), Complaint::TooBig) => {
                step.icmpv6(Icmpv6Type::PacketTooBig { mtu: 1400 }).write(&mut frame, &self.quoted)
            }
        }
        .expect("a vector takes all that is written");
        frame
    }
}

/// A frame up to and with its IP header.
pub fn ip(link: Link, from: IpAddr, to: IpAddr, hops: u8) -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ethernet2(link.from, link.to).ip(ip_headers(from, to, hops))
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

fn ip_headers(from: IpAddr, to: IpAddr, hops: u8) -> IpHeaders {
    // Header and length of what follows are filled in when it is known.
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = Ipv4Header::new(0, hops, IpNumber::TCP, from.octets(), to.octets())
                .expect("nothing is short enough");
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                hop_limit: hops,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        }
        _ => panic!("{from} and {to} are of different families"),
    }
}
