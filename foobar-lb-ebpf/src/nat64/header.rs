//! IP headers, the fragment header of IPv6 included: what one of a family says that one of the other says too (RFC 7915,
//! 4.1 and 5.1).

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    checksum::Change,
    extension::FRAGMENT,
    headers::Extension,
    ip::{Family, Fresh, Ip},
    layout::Address,
    packet::Frame,
    reason::Reason,
};

/// Bytes of a fragment header.
const FRAGMENT_LENGTH: u32 = size_of::<Extension>() as u32;

/// Bytes of a header, that of a fragment included.
#[inline(always)]
pub fn length(family: Family, fragment: bool) -> u32 {
    let part = if fragment && family == Family::V6 { FRAGMENT_LENGTH } else { 0 };
    family.header_length() + part
}

/// What is carried over from one header to the other. IPv4 options and the extension headers of IPv6 are not.
pub struct Carried {
    /// What follows.
    pub protocol: u8,
    /// Bytes that follow.
    pub behind: u16,
    traffic_class: u8,
    hops: u8,
    fragment: bool,
    /// Of a fragment: where it begins, in units of 8 bytes, above three bits of which the last says that more follow.
    place: u16,
    id: u32,
}

impl Carried {
    /// Reads the header at `at`, of which `ip` is known.
    #[inline(always)]
    pub fn read(frame: &Frame<'_>, family: Family, at: u32, ip: &Ip) -> Result<Self, Reason> {
        let header = ip.next - at;
        let mut carried = Self {
            protocol: ip.protocol,
            behind: ip.length.saturating_sub(header as u16),
            traffic_class: family.traffic_class(frame, at)?,
            hops: ip.hops,
            fragment: ip.fragment,
            place: 0,
            id: ip.id,
        };
        if ip.fragment {
            carried.place = match family {
                Family::V4 => place(frame.at::<Ipv4Hdr>(at)?.frags),
                // With other headers around it is not known where it is.
                Family::V6 if header != length(family, true) => return Err(Reason::Untranslatable),
                Family::V6 => u16::from_be_bytes(frame.at::<Extension>(at + Ipv6Hdr::LEN as u32)?.offset),
            };
        }
        Ok(carried)
    }

    /// Identifies what is not a fragment, for the case that an IPv4 router makes fragments of it. As good as a random
    /// number is what differs between packets that differ: the checksum of what follows.
    #[inline(always)]
    pub fn identify(&mut self, check: [u8; 2]) {
        if !self.fragment {
            self.id = u32::from(u16::from_be_bytes(check));
        }
    }

    /// Writes the header of this family at `at`.
    #[inline(always)]
    pub fn write(
        &self,
        frame: &mut Frame<'_>,
        family: Family,
        at: u32,
        source: &Address,
        destination: &Address,
    ) -> Result<(), Reason> {
        let is_extended = self.fragment && family == Family::V6;
        let fresh = Fresh {
            source,
            destination,
            protocol: if is_extended { FRAGMENT } else { self.protocol },
            length: self.behind.saturating_add(length(family, self.fragment) as u16),
            traffic_class: self.traffic_class,
        };
        family.write(frame, at, &fresh)?;
        family.set_hops(frame, at, self.hops)?;
        if family == Family::V4 {
            self.set_fragmentation(frame.at_mut(at)?);
        } else if is_extended {
            let (offset, id) = ((self.place & !RESERVED).to_be_bytes(), self.id.to_be_bytes());
            let header = Extension { next: self.protocol, length: 0, offset, id };
            *frame.at_mut(at + Ipv6Hdr::LEN as u32)? = header;
        }
        Ok(())
    }

    /// Of a packet that would be within the least MTU of IPv6 routers may make fragments: to the sender, who does not
    /// send smaller ones, they would complain in vain.
    #[inline(always)]
    fn set_fragmentation(&self, header: &mut Ipv4Hdr) {
        const LARGEST: u16 = 1260;
        const DO_NOT_FRAGMENT: u16 = 0x4000;
        let [.., high, low] = self.id.to_be_bytes();
        let (id, frags) = if self.fragment {
            ([high, low], (self.place >> 3 | (self.place & 1) << 13).to_be_bytes())
        } else if u16::from_be_bytes(header.tot_len) > LARGEST {
            ([0; 2], DO_NOT_FRAGMENT.to_be_bytes())
        } else {
            ([high, low], [0; 2])
        };
        let change = Change::new().word(header.id, id).word(header.frags, frags);
        (header.id, header.frags) = (id, frags);
        header.check = change.apply(header.check);
    }
}

/// Two of the bits below the place of a fragment.
const RESERVED: u16 = 0b110;

/// The place of a fragment of IPv4 as IPv6 has it.
#[inline(always)]
fn place(frags: [u8; 2]) -> u16 {
    const MORE: u16 = 0x2000;
    let frags = u16::from_be_bytes(frags);
    frags << 3 | u16::from(frags & MORE != 0)
}
