//! IPv6 extension headers (RFC 8200, 4): what lies behind them.

use crate::{headers::Extension, ip::Ip, packet::Frame};

const HOP_BY_HOP: u8 = 0;
/// The protocol number of a fragment header.
pub const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Those that can be stepped over. What follows a routing header may be for another destination.
#[inline(always)]
pub const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// What extension headers lead to.
#[derive(Clone, Copy)]
pub struct Beyond {
    /// In a byte, so that the verifier knows a bound of it.
    next: u8,
    protocol: u8,
    fragment: bool,
    first: bool,
    id: u32,
}

impl Beyond {
    /// Looks behind the extension headers at `next`, so many of them at most, of which the first is of this kind.
    #[inline(always)]
    pub fn of(frame: &Frame<'_>, next: u32, protocol: u8, most: u32) -> Self {
        let mut beyond = Self { next: next as u8, protocol, fragment: false, first: true, id: 0 };
        for _ in 0..most {
            if !beyond.first || !is_extension(beyond.protocol) {
                break;
            }
            let Ok(header) = frame.at::<Extension>(beyond.next.into()) else { break };
            let Some(next) = beyond.skip(header) else { break };
            beyond = next;
        }
        beyond
    }

    #[inline(always)]
    fn skip(self, header: &Extension) -> Option<Self> {
        const MORE_FRAGMENTS: u16 = 1;
        let length = match self.protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (u32::from(header.length) + 2) * 4,
            _ => (u32::from(header.length) + 1) * 8,
        };
        let next = u8::try_from(u32::from(self.next) + length).ok()?;
        let after = Self { protocol: header.next, next, ..self };
        if self.protocol != FRAGMENT {
            return Some(after);
        }
        let place = u16::from_be_bytes(header.offset);
        let first = place >> 3 == 0;
        let fragment = !first || place & MORE_FRAGMENTS != 0;
        Some(Self { first, fragment, id: u32::from_be_bytes(header.id), ..after })
    }

    /// What is known behind the extension headers.
    #[inline(always)]
    pub fn apply(self, ip: &mut Ip) {
        let Self { next, protocol, fragment, first, id } = self;
        ip.next = next.into();
        (ip.protocol, ip.fragment, ip.first, ip.id) = (protocol, fragment, first, id);
    }

    /// As one number.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        let Self { next, protocol, fragment, first, id } = self;
        (id as u64) << 32
            | (next as u64) << 16
            | (protocol as u64) << 8
            | (first as u64) << 1
            | fragment as u64
    }

    /// What the number says.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            next: (word >> 16) as u8,
            protocol: (word >> 8) as u8,
            fragment: word & 1 != 0,
            first: word & 2 != 0,
            id: (word >> 32) as u32,
        }
    }
}
