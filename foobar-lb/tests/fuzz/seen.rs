//! A packet as another implementation, etherparse, sees it: where its parts lie, and which of its checksums are right.

use std::{collections::BTreeSet, net::IpAddr};

use etherparse::{IpNumber, Ipv6ExtensionSlice, Ipv6FragmentHeader, LaxIpSlice, checksum::Sum16BitWords};
use foobar_lb_ebpf::{flow::MOST_EXTENSIONS, packet::FARTHEST};

use crate::packet::{
    frame::{ETHERNET, ether_type, family_of},
    world::Family,
};

/// Bytes that ICMP and ICMPv6 begin with; in an error the quoted packet follows.
pub const ICMP: usize = 8;

/// An IP packet in a frame. Places are bytes from the start of the frame.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Where its header begins.
    pub at: usize,
    /// Where what it carries begins.
    pub next: usize,
    /// Where it ends, or the frame.
    pub end: usize,
    pub protocol: IpNumber,
    pub part: Option<Part>,
    /// It ends where its header says.
    pub is_complete: bool,
    /// How many extension headers it has.
    extensions: usize,
}

/// What a fragment says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub id: u32,
    pub is_first: bool,
}

impl Seen {
    /// The packet in a frame; none where etherparse does not find all of its headers.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let seen = Self::read(frame, ETHERNET)?;
        let expected = ether_type(seen.family()).0.to_be_bytes();
        (frame[ETHERNET - 2..ETHERNET] == expected).then_some(seen)
    }

    /// The packet that begins at this place.
    fn read(frame: &[u8], at: usize) -> Option<Self> {
        let (ip, None) = LaxIpSlice::from_slice(frame.get(at..)?).ok()? else { return None };
        // More than one (RFC 8200, 4.1, has one at most) are a matter of opinion.
        if fragment_headers(&ip).nth(1).is_some() {
            return None;
        }
        let payload = ip.payload();
        let next = payload.payload.as_ptr().addr() - frame.as_ptr().addr();
        Some(Self {
            source: ip.source_addr(),
            destination: ip.destination_addr(),
            at,
            next,
            end: next + payload.payload.len(),
            protocol: payload.ip_number,
            part: part(&ip),
            is_complete: !payload.incomplete,
            extensions: extensions(&ip).count(),
        })
    }

    pub fn family(&self) -> Family {
        family_of(self.source)
    }

    /// Whether the data path reads as far as to what it carries.
    pub fn is_within_reach(&self) -> bool {
        self.next <= FARTHEST as usize && self.extensions <= MOST_EXTENSIONS as usize
    }

    /// Whether it carries the beginning of a header.
    pub fn is_first(&self) -> bool {
        self.part.is_none_or(|part| part.is_first)
    }

    /// The packet that it quotes, if it is an ICMP error.
    pub fn quoted(&self, frame: &[u8]) -> Option<Self> {
        let kind = *frame.get(self.next)?;
        let is_error = match self.family() {
            Family::V4 => self.protocol == IpNumber::ICMP && matches!(kind, 3 | 11 | 12),
            Family::V6 => self.protocol == IpNumber::IPV6_ICMP && kind < 128,
        };
        let quoted = Self::read(frame, self.next + ICMP)?;
        (is_error && self.is_first() && quoted.family() == self.family()).then_some(quoted)
    }

    /// Where the checksum is of what it carries.
    pub fn transport_checksum(&self) -> Option<usize> {
        let place = match self.protocol {
            IpNumber::TCP => 16,
            IpNumber::UDP => 6,
            IpNumber::ICMP | IpNumber::IPV6_ICMP => 2,
            _ => return None,
        };
        Some(self.next + place)
    }

    /// Where the checksum is of its header.
    pub fn header_checksum(&self) -> Option<usize> {
        (self.family() == Family::V4).then_some(self.at + 10)
    }
}

fn part(ip: &LaxIpSlice<'_>) -> Option<Part> {
    let (id, offset, is_part) = match ip {
        LaxIpSlice::Ipv4(ip) => {
            let header = ip.header();
            (header.identification().into(), header.fragments_offset(), header.is_fragmenting_payload())
        }
        LaxIpSlice::Ipv6(_) => {
            let header = fragment_headers(ip).next()?;
            (header.identification, header.fragment_offset, header.is_fragmenting_payload())
        }
    };
    is_part.then_some(Part { id, is_first: offset.value() == 0 })
}

fn fragment_headers(ip: &LaxIpSlice<'_>) -> impl Iterator<Item = Ipv6FragmentHeader> {
    extensions(ip).filter_map(|extension| match extension {
        Ipv6ExtensionSlice::Fragment(fragment) => Some(fragment.to_header()),
        _ => None,
    })
}

fn extensions<'p>(ip: &'p LaxIpSlice<'p>) -> impl Iterator<Item = Ipv6ExtensionSlice<'p>> {
    ip.ipv6().map(|ip| ip.extensions().clone()).into_iter().flatten()
}

/// Names of the checksums of a frame that are right; those that cannot be computed from it are not among them.
pub fn right_checksums(frame: &[u8]) -> BTreeSet<&'static str> {
    let Some(seen) = Seen::of(frame) else { return BTreeSet::new() };
    let mut right = BTreeSet::new();
    right.extend(seen.header_is_right(frame).then_some("of the IP header"));
    right.extend(seen.rest_is_right(frame).then_some("behind the IP header"));
    if let Some(quoted) = seen.quoted(frame) {
        right.extend(quoted.header_is_right(frame).then_some("of the quoted IP header"));
        right.extend(quoted.rest_is_right(frame).then_some("behind the quoted IP header"));
    }
    right
}

/// Makes the checksums of a frame right, but for those that cannot be computed from it.
pub fn mend_checksums(frame: &mut [u8]) {
    let Some(seen) = Seen::of(frame) else { return };
    // What is quoted is a part of what the checksum of an error is computed of.
    for packet in seen.quoted(frame).into_iter().chain([seen]) {
        let places = [packet.header_checksum(), packet.transport_checksum()];
        for (place, sum) in places.into_iter().zip([Seen::header_sum, Seen::rest_sum]) {
            let Some((place, _)) = place.zip(sum(&packet, frame)) else { continue };
            frame[place..place + 2].fill(0);
            let check = sum(&packet, frame).map_or(0, |sum| sum.to_ones_complement_with_no_zero());
            frame[place..place + 2].copy_from_slice(&check.to_be_bytes());
        }
    }
}

impl Seen {
    fn header_is_right(&self, frame: &[u8]) -> bool {
        self.header_sum(frame).is_some_and(|sum| sum.ones_complement() == 0)
    }

    fn rest_is_right(&self, frame: &[u8]) -> bool {
        let has_none = self.protocol == IpNumber::UDP && frame[self.next..].get(6..8) == Some(&[0, 0]);
        let may_have_none = self.family() == Family::V4;
        self.rest_sum(frame).is_some_and(
            |sum| {
                if has_none { may_have_none } else { sum.ones_complement() == 0 }
            },
        )
    }

    fn header_sum(&self, frame: &[u8]) -> Option<Sum16BitWords> {
        let length = usize::from(frame[self.at] & 0xf) * 4;
        let header = frame.get(self.at..self.at + length)?;
        (self.family() == Family::V4).then(|| Sum16BitWords::new().add_slice(header))
    }

    /// Of what follows the IP header, if it is there as a whole.
    fn rest_sum(&self, frame: &[u8]) -> Option<Sum16BitWords> {
        let body = &frame[self.next..self.end];
        let shortest = match self.protocol {
            IpNumber::TCP => 20,
            IpNumber::UDP | IpNumber::ICMP | IpNumber::IPV6_ICMP => 8,
            _ => return None,
        };
        if self.part.is_some() || !self.is_complete || body.len() < shortest {
            return None;
        }
        let length = if self.protocol == IpNumber::UDP {
            usize::from(u16::from_be_bytes([body[4], body[5]]))
        } else {
            body.len()
        };
        (length == body.len()).then(|| self.pseudo_header(length as u32).add_slice(body))
    }

    /// RFC 9293, 3.1; RFC 8200, 8.1. ICMP has none.
    fn pseudo_header(&self, length: u32) -> Sum16BitWords {
        let mut sum = Sum16BitWords::new();
        match (self.source, self.destination) {
            (IpAddr::V4(_), _) if self.protocol == IpNumber::ICMP => return sum,
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                sum = sum.add_4bytes(source.octets()).add_4bytes(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                sum = sum.add_16bytes(source.octets()).add_16bytes(destination.octets());
            }
            _ => unreachable!("both are of the packet's family"),
        }
        sum.add_2bytes([0, self.protocol.0]).add_4bytes(length.to_be_bytes())
    }
}
