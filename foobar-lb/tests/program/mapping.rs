//! Mappings as the program's map has them; the host keeps them as they are.

use foobar_lb_ebpf::layout::{Entry, FlowKey, Mapping, Remembered};
use zerocopy::{FromBytes, IntoBytes};

/// A mapping as the map has it.
pub fn to_bytes(mapping: &Mapping) -> [u8; size_of::<Mapping>()] {
    let Mapping { to, entry, mss, back } = mapping;
    let words = [entry.load().to_word(), entry.seen()];
    let parts = [to.as_bytes(), words.as_bytes(), mss.as_bytes(), back.as_bytes()];
    parts.concat().try_into().expect("these are its parts")
}

/// The mapping of these.
pub fn to_mapping(bytes: &[u8; size_of::<Mapping>()]) -> Mapping {
    let number = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (to, rest) = FlowKey::read_from_prefix(bytes).expect("it begins with a flow");
    let at = bytes.len() - rest.len();
    let entry = Entry::new(Remembered::from_word(number(at)), number(at + 8));
    let last = number(at + 16);
    Mapping { to, entry, mss: last as u32, back: (last >> 32) as u32 }
}
