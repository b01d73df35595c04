//! The object as the kernel would get it: aya's own linker puts functions together and tells where maps are named.

use std::collections::HashMap;

use anyhow::{Context, Result};
use aya_obj::generated::bpf_insn;

/// A linked program.
pub struct Object {
    pub instructions: Vec<bpf_insn>,
    /// Instructions name maps by their place here.
    pub maps: Vec<Definition>,
    /// The compiler, as it calls itself in the debug information.
    pub compiler: String,
}

/// A map as the program wants it.
pub struct Definition {
    pub name: String,
    /// A number of `enum bpf_map_type`.
    pub kind: u32,
    /// Bytes of a key.
    pub key: usize,
    /// Bytes of a value.
    pub value: usize,
    pub capacity: u32,
    /// What is in the only value of a map of globals.
    pub contents: Vec<u8>,
}

impl Object {
    /// Links the program with this name, and gives a global another value.
    pub fn read(bytes: &[u8], program: &str, (global, value): (&str, &[u8])) -> Result<Self> {
        let mut object = aya_obj::Object::parse(bytes)?;
        object.patch_map_data(HashMap::from([(global, (value, true))]))?;
        let mut maps: Vec<_> = object.maps.clone().into_iter().collect();
        maps.sort_by(|(one, _), (other, _)| one.cmp(other));
        let text = object.functions.keys().map(|(section, _)| *section).collect();
        let numbered = (0..).zip(&maps).map(|(place, (name, map))| (name.as_str(), place, map));
        object.relocate_maps(numbered, &text)?;
        object.relocate_calls(&text)?;
        let program = object.programs.get(program).with_context(|| format!("no program {program}"))?;
        Ok(Self {
            instructions: object.functions[&program.function_key()].instructions.clone(),
            maps: maps.into_iter().map(define).collect(),
            compiler: find_compiler(bytes).context("the object does not tell its compiler")?,
        })
    }
}

fn define((name, map): (String, aya_obj::Map)) -> Definition {
    Definition {
        name,
        kind: map.map_type(),
        key: map.key_size() as usize,
        value: map.value_size() as usize,
        capacity: map.max_entries(),
        contents: map.data().to_vec(),
    }
}

/// The producer in the debug information is "clang LLVM (rustc version 1.95.0 (59807616e 2026-04-14))".
fn find_compiler(object: &[u8]) -> Option<String> {
    const BEFORE: &[u8] = b"(rustc version ";
    let at = object.windows(BEFORE.len()).position(|window| window == BEFORE)? + BEFORE.len();
    let version = object[at..].split(|byte| *byte == b' ').next()?;
    Some(format!("rustc {}", str::from_utf8(version).ok()?))
}
