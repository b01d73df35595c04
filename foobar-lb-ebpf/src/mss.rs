//! Clamping the maximum segment size (RFC 9293, 3.7.1) that the two ends of a TCP connection ask of each other, where
//! they cannot know how little fits between them.

use network_types::tcp::TcpHdr;

use crate::{checksum::Change, flow::Parsed, headers::Word, layout::TCP, packet::Frame};

/// The option comes first from most systems; behind so many others it is not looked for.
const FARTHEST_OPTION: u32 = 4;
/// Bytes of the option.
const OPTION: u32 = size_of::<Word>() as u32;
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Whether a packet is a SYN or SYN-ACK, whose options say something of segments.
#[inline(always)]
pub fn concerns(frame: &Frame<'_>, parsed: &Parsed) -> bool {
    let tcp = parsed.ip.protocol == TCP && parsed.ip.first;
    tcp && frame.at::<TcpHdr>(parsed.ip.next).is_ok_and(|tcp| tcp.syn() != 0)
}

/// Lowers what the TCP header at `tcp` asks for to `most` bytes. One that is broken is left to its receiver.
#[inline(always)]
pub fn clamp(frame: &mut Frame<'_>, tcp: u32, most: u16) {
    let Ok(header) = frame.at::<TcpHdr>(tcp) else { return };
    let end = tcp + u32::from(header.doff()) * size_of::<Word>() as u32;
    let mut option = tcp + TcpHdr::LEN as u32;
    for _ in 0..FARTHEST_OPTION {
        if option + OPTION > end {
            return;
        }
        let Ok(words) = frame.at_mut::<Word>(option) else { return };
        match read_option(words, most.to_be_bytes()) {
            Found::Lowered(change) => return follow(frame, tcp, change, (option - tcp).is_multiple_of(2)),
            Found::Other(length) => option += length,
            Found::Nothing => return,
        }
    }
}

/// What an option turned out to be.
enum Found {
    /// The one looked for; it was, and is.
    Lowered([[u8; 2]; 2]),
    /// Another, of this length in bytes.
    Other(u32),
    /// Nothing to be lowered, here or behind.
    Nothing,
}

#[inline(always)]
fn read_option(option: &mut Word, most: [u8; 2]) -> Found {
    match *option {
        [NO_OPERATION, ..] => Found::Other(1),
        [MAXIMUM_SEGMENT_SIZE, 4, high, low] if [high, low] > most => {
            [option[2], option[3]] = most;
            Found::Lowered([[high, low], most])
        }
        // An option's length counts its kind and itself.
        [END | MAXIMUM_SEGMENT_SIZE, ..] | [_, 0 | 1, ..] => Found::Nothing,
        [_, length, ..] => Found::Other(length.into()),
    }
}

#[inline(always)]
fn follow(frame: &mut Frame<'_>, tcp: u32, [old, new]: [[u8; 2]; 2], even: bool) {
    // At an odd place its two bytes belong to two words, as the low one and the high one.
    let word = |[high, low]: [u8; 2]| if even { [high, low] } else { [low, high] };
    if let Ok(header) = frame.at_mut::<TcpHdr>(tcp) {
        header.check = Change::new().word(word(old), word(new)).apply(header.check);
    }
}
