//! IP headers, with the extension headers of IPv6.

use std::net::IpAddr;

use etherparse::{
    IpAuthHeader, IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader,
    Ipv6Header, Ipv6RawExtHeader, PacketBuilder, PacketBuilderStep,
};

use super::Link;

/// A part of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    /// In units of 8 bytes.
    pub offset: u16,
    pub more: bool,
    pub id: u16,
}

/// An extension header of IPv6 (RFC 8200, 4).
#[derive(Clone, Copy, Debug)]
pub enum Extension {
    HopByHop,
    /// Options for the destination: so many words of eight bytes after the first.
    Destination(usize),
    Routing,
    Fragment(Fragment),
    /// RFC 4302.
    Authentication,
}

impl Extension {
    fn number(self) -> IpNumber {
        match self {
            Self::HopByHop => IpNumber::IPV6_HEADER_HOP_BY_HOP,
            Self::Destination(_) => IpNumber::IPV6_DESTINATION_OPTIONS,
            Self::Routing => IpNumber::IPV6_ROUTE_HEADER,
            Self::Fragment(_) => IpNumber::IPV6_FRAGMENTATION_HEADER,
            Self::Authentication => IpNumber::AUTHENTICATION_HEADER,
        }
    }

    fn bytes(self, next: IpNumber) -> Vec<u8> {
        match self {
            Self::HopByHop => options(next, 0),
            Self::Destination(words) => options(next, words),
            // A source route that has come to its end.
            Self::Routing => raw(next, &[0; 6]),
            Self::Fragment(Fragment { offset, more, id }) => {
                let offset = IpFragOffset::try_new(offset).expect("rows keep to 13 bits");
                Ipv6FragmentHeader::new(next, offset, more, id.into()).to_bytes().to_vec()
            }
            Self::Authentication => {
                IpAuthHeader::new(next, 1, 1, &[0x5a; 12]).expect("it is short").to_bytes().to_vec()
            }
        }
    }
}

/// Options that only take up room: padding of one byte each.
fn options(next: IpNumber, words: usize) -> Vec<u8> {
    raw(next, &vec![0; 6 + 8 * words])
}

fn raw(next: IpNumber, payload: &[u8]) -> Vec<u8> {
    Ipv6RawExtHeader::new_raw(next, payload).expect("whole words, not too many").to_bytes().to_vec()
}

/// An IP packet of these headers and what follows.
pub fn packet(mut ip: IpHeaders, extensions: &[Extension], protocol: IpNumber, body: &[u8]) -> Vec<u8> {
    let mut first = protocol;
    let mut body = body.to_vec();
    for extension in extensions.iter().rev() {
        body = [extension.bytes(first), body].concat();
        first = extension.number();
    }
    match &mut ip {
        IpHeaders::Ipv4(header, _) => header.protocol = first,
        IpHeaders::Ipv6(header, _) => header.next_header = first,
    }
    ip.set_payload_len(body.len()).expect("packets are short enough");
    let mut packet = Vec::new();
    match ip {
        IpHeaders::Ipv4(header, _) => header.write(&mut packet),
        IpHeaders::Ipv6(header, _) => header.write(&mut packet),
    }
    .expect("a vector takes all that is written");
    [packet, body].concat()
}

/// The packet as the only part that has arrived of a larger one.
pub fn as_part(packet: &[u8], fragment: Fragment) -> Vec<u8> {
    let (mut headers, body) = IpHeaders::from_slice(packet).expect("it is an IP packet");
    match &mut headers {
        IpHeaders::Ipv4(header, _) => {
            set_fragment(header, fragment);
            let protocol = header.protocol;
            self::packet(headers, &[], protocol, body.payload)
        }
        IpHeaders::Ipv6(header, _) => {
            let next = header.next_header;
            self::packet(headers, &[Extension::Fragment(fragment)], next, body.payload)
        }
    }
}

/// Makes it the header of a part.
pub fn set_fragment(header: &mut Ipv4Header, Fragment { offset, more, id }: Fragment) {
    header.identification = id;
    header.fragment_offset = offset.try_into().expect("rows keep to 13 bits");
    header.more_fragments = more;
}

/// Headers whose lengths and checksum are filled in when it is known what follows.
pub fn headers(from: IpAddr, to: IpAddr, hops: u8) -> IpHeaders {
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

/// Sets DSCP and ECN.
pub fn set_traffic_class(ip: &mut IpHeaders, traffic_class: u8) {
    match ip {
        IpHeaders::Ipv4(header, _) => {
            header.dscp = (traffic_class >> 2).try_into().expect("it has six bits");
            header.ecn = (traffic_class & 3).try_into().expect("it has two bits");
        }
        IpHeaders::Ipv6(header, _) => header.traffic_class = traffic_class,
    }
}

/// A frame up to and with its IP header.
pub fn ip(link: Link, from: IpAddr, to: IpAddr, hops: u8) -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ethernet2(link.from, link.to).ip(headers(from, to, hops))
}
