//! What ICMP errors say, in the words of the other family (RFC 7915, 4.2 and 5.2).

use crate::{headers::Icmp, ip::Family, reason::Reason};

/// The type and the code of ICMP errors that have a like.
mod v4 {
    pub const UNREACHABLE: u8 = 3;
    pub const HOST: u8 = 1;
    pub const PROTOCOL: u8 = 2;
    pub const PORT: u8 = 3;
    pub const TOO_BIG: u8 = 4;
    pub const PROHIBITED: u8 = 10;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER: u8 = 12;
}

/// The same of ICMPv6.
mod v6 {
    pub const UNREACHABLE: u8 = 1;
    pub const NO_ROUTE: u8 = 0;
    pub const PROHIBITED: u8 = 1;
    pub const PORT: u8 = 4;
    pub const TOO_BIG: u8 = 2;
    pub const TIME_EXCEEDED: u8 = 3;
    pub const PARAMETER: u8 = 4;
    pub const FIELD: u8 = 0;
    pub const NEXT_HEADER: u8 = 1;
}

/// What IPv4 and IPv6 headers differ by, without options.
const DIFFERENCE: u32 = 20;
/// The least MTU of IPv6: hosts do not believe in less (RFC 8201, 4).
const LEAST_MTU: u32 = 1280;

/// What an error says. Its data are a number, because the verifier wants them aligned on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    type_: u8,
    code: u8,
    data: u32,
}

/// What cannot be said: no error is of type 0 in either family.
const NOTHING: Message = message(0, 0, 0);

const fn message(type_: u8, code: u8, data: u32) -> Message {
    Message { type_, code, data }
}

impl Message {
    /// Says the same in the other family, of a packet of so many bytes.
    #[inline(always)]
    pub fn translated(family: Family, icmp: &Icmp, quoted: u16) -> Result<Self, Reason> {
        let data = u32::from_be_bytes(icmp.data);
        let translated = match family {
            Family::V4 => to_v6(icmp.type_, icmp.code, data, quoted),
            Family::V6 => to_v4(icmp.type_, icmp.code, data),
        };
        if translated.type_ == NOTHING.type_ { Err(Reason::Untranslatable) } else { Ok(translated) }
    }

    /// Its header, without a checksum.
    #[inline(always)]
    pub fn header(self) -> Icmp {
        let Self { type_, code, data } = self;
        Icmp { type_, code, check: [0; 2], data: data.to_be_bytes() }
    }
}

/// What stands in the first byte of the data.
const FIRST: u32 = 24;

/// The length that `data` may have of what is quoted (RFC 4884, 4) is not kept.
#[inline(always)]
fn to_v6(type_: u8, code: u8, data: u32, quoted: u16) -> Message {
    let unreachable = |code| message(v6::UNREACHABLE, code, 0);
    match (type_, code) {
        (v4::UNREACHABLE, v4::PROTOCOL) => {
            /// Where the next header stands in an IPv6 header.
            const NEXT_HEADER: u32 = 6;
            message(v6::PARAMETER, v6::NEXT_HEADER, NEXT_HEADER)
        }
        (v4::UNREACHABLE, v4::PORT) => unreachable(v6::PORT),
        (v4::UNREACHABLE, v4::TOO_BIG) => message(v6::TOO_BIG, 0, mtu_to_v6(data as u16, quoted)),
        // The network or the host, for whatever kind of service; a source route that led nowhere.
        (v4::UNREACHABLE, 0 | v4::HOST | 5..=8 | 11 | 12) => unreachable(v6::NO_ROUTE),
        // By administrators, of the network, of the host or of all; for want of precedence.
        (v4::UNREACHABLE, 9 | v4::PROHIBITED | 13 | 15) => unreachable(v6::PROHIBITED),
        (v4::TIME_EXCEEDED, _) => message(v6::TIME_EXCEEDED, code, 0),
        // A field, or a length.
        (v4::PARAMETER, 0 | 2) => match field_to_v6(data >> FIRST) {
            NO_FIELD => NOTHING,
            field => message(v6::PARAMETER, v6::FIELD, field),
        },
        _ => NOTHING,
    }
}

#[inline(always)]
fn to_v4(type_: u8, code: u8, data: u32) -> Message {
    let unreachable = |code| message(v4::UNREACHABLE, code, 0);
    match (type_, code) {
        // No route; beyond the scope of the source; the address.
        (v6::UNREACHABLE, v6::NO_ROUTE | 2 | 3) => unreachable(v4::HOST),
        (v6::UNREACHABLE, v6::PROHIBITED) => unreachable(v4::PROHIBITED),
        (v6::UNREACHABLE, v6::PORT) => unreachable(v4::PORT),
        (v6::TOO_BIG, _) => {
            let mtu = data.saturating_sub(DIFFERENCE).min(u16::MAX.into());
            message(v4::UNREACHABLE, v4::TOO_BIG, mtu)
        }
        (v6::TIME_EXCEEDED, _) => message(v4::TIME_EXCEEDED, code, 0),
        (v6::PARAMETER, v6::FIELD) => match field_to_v4(data) {
            NO_FIELD => NOTHING,
            field => message(v4::PARAMETER, 0, field << FIRST),
        },
        (v6::PARAMETER, v6::NEXT_HEADER) => unreachable(v4::PROTOCOL),
        _ => NOTHING,
    }
}

/// Where no field of a header begins.
const NO_FIELD: u32 = u32::MAX;

/// Where the field stands in an IPv6 header that has this place in one of IPv4.
#[inline(always)]
fn field_to_v6(place: u32) -> u32 {
    match place {
        0 | 1 => place,
        2 | 3 => 4,
        8 => 7,
        9 => 6,
        12..=15 => 8,
        16..=19 => 24,
        _ => NO_FIELD,
    }
}

/// The other way round.
#[inline(always)]
fn field_to_v4(place: u32) -> u32 {
    match place {
        0 => 0,
        1 => 1,
        4 | 5 => 2,
        6 => 9,
        7 => 8,
        8..=23 => 12,
        24..=39 => 16,
        _ => NO_FIELD,
    }
}

/// The MTU of a way through IPv4. Old routers do not tell: then it is the next smaller one of those that there are (RFC
/// 1191, 7).
#[inline(always)]
fn mtu_to_v6(mtu: u16, quoted: u16) -> u32 {
    let mtu = match (u32::from(mtu), quoted) {
        (0, 32_001..) => 32_000,
        (0, 17_915..) => 17_914,
        (0, 8167..) => 8166,
        (0, 4353..) => 4352,
        (0, 2003..) => 2002,
        (0, 1493..) => 1492,
        (0, _) => LEAST_MTU,
        (mtu, _) => mtu + DIFFERENCE,
    };
    mtu.max(LEAST_MTU)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_that_tell_no_mtu_have_a_known_one() {
        // The largest of RFC 1191, 7, that is less than the packet, and nothing that IPv6 hosts would not believe.
        for (quoted, mtu) in [
            (65_535, 32_000),
            (32_000, 17_914),
            (9000, 8166),
            (4352, 2002),
            (1500, 1492),
            (1492, 1280),
            (60, 1280),
        ] {
            assert_eq!(mtu_to_v6(0, quoted), mtu, "{quoted}");
        }
        assert_eq!(mtu_to_v6(1280, 1500), 1300);
        assert_eq!(mtu_to_v6(68, 1500), 1280);
    }

    #[test]
    fn fields_come_back() {
        for place in [0, 1, 2, 8, 9, 12, 16] {
            assert_eq!(field_to_v4(field_to_v6(place)), place);
        }
        assert!([4, 5, 6, 7, 10, 11, 20, 255].iter().all(|place| field_to_v6(*place) == NO_FIELD));
        assert!([2, 3, 40, u32::MAX].iter().all(|place| field_to_v4(*place) == NO_FIELD));
    }

    #[test]
    fn what_both_can_say_comes_back() {
        for code in 0..=u8::MAX {
            for type_ in [v6::UNREACHABLE, v6::TIME_EXCEEDED, v6::PARAMETER] {
                let there = to_v4(type_, code, 0);
                let back = to_v6(there.type_, there.code, there.data, 0);
                // The three reasons for which nothing is found are one in IPv4.
                let same = back.type_ == type_ && (back.code == code || back.code == v6::NO_ROUTE);
                assert!(there == NOTHING || same, "{type_} {code}: {there:?} {back:?}");
            }
        }
    }
}
