//! The object of the data path, and how it gets into the kernel.

use std::{borrow::Cow, hash::Hasher, path::PathBuf};

use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned, programs::Xdp};
use foobar_lb_ebpf::{flow::hash_key, layout::name};
use siphasher::sip::SipHasher13;

use super::{Capacities, Error};

/// The frames that a program gets. All programs that run one after the other get the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// All, also jumbo frames that need several buffers (`xdp.frags`).
    All,
    /// Those that are in one buffer.
    OneBuffer,
}

impl Frames {
    /// Both kinds.
    pub const BOTH: [Self; 2] = [Self::All, Self::OneBuffer];

    /// The ones that these are not.
    pub const fn other(self) -> Self {
        match self {
            Self::All => Self::OneBuffer,
            Self::OneBuffer => Self::All,
        }
    }

    /// The object, with its program for these frames. It begins at a multiple of eight.
    pub(super) fn object(self) -> Cow<'static, [u8]> {
        let object = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-xdp"));
        match self {
            Self::All => Cow::Borrowed(object),
            Self::OneBuffer => Cow::Owned(for_one_buffer(object)),
        }
    }

    /// A hash of all that the program follows from.
    pub(super) fn made_of(self, seed: u64) -> u64 {
        let mut hasher = SipHasher13::new();
        hasher.write(&self.object());
        hasher.write_u64(seed);
        hasher.finish()
    }
}

/// Loads the maps of an object; those that are kept are the ones that are pinned there.
pub(super) fn load_maps(
    object: &[u8],
    capacities: Capacities,
    seed: u64,
    kept: &[(&'static str, PathBuf)],
) -> Result<Ebpf, Error> {
    let key = hash_key(seed);
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS).override_global(name::HASH_KEY, &key, true);
    for (map, entries) in capacities.of_maps() {
        loader.map_max_entries(map, entries);
    }
    for (map, path) in kept {
        loader.map_pin_path(map, path.as_path());
    }
    loader.load(object).map_err(|error| Error::Load(Box::new(error)))
}

/// Loads a program of an object whose maps are loaded.
pub(super) fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), Error> {
    let loaded = program(ebpf, name).load();
    loaded.map_err(|source| Error::Program { program: name, source: Box::new(source) })
}

/// A program of an object.
pub(super) fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> &'e mut Xdp {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .expect("the object has this XDP program")
}

/// aya loads a program for the frames that the name of its section says, `xdp.frags` or `xdp`.
fn for_one_buffer(object: &[u8]) -> Vec<u8> {
    const SECTION: &[u8] = b"xdp.frags\0";
    let mut object = object.to_vec();
    let named: Vec<usize> = object
        .windows(SECTION.len())
        .enumerate()
        .filter(|(_, name)| *name == SECTION)
        .map(|(place, _)| place + "xdp".len())
        .collect();
    named.into_iter().for_each(|end| object[end] = 0);
    object
}
