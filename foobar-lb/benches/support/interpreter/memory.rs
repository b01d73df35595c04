//! What a program may point at: its packet, its context, its stack and the values of maps. An address has the number of
//! a region in its upper half and where in that it points in the lower.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use zerocopy::IntoBytes;

use super::maps::Map;

/// The frame, whose addresses have to fit into the 32 bits of an `xdp_md`.
const PACKET: u64 = 0;
const CONTEXT: u64 = 1;
const STACK: u64 = 2;
/// And from there on.
const MAPS: u64 = 3;

/// Bytes before a frame and behind it, as in a test run of the kernel.
const HEADROOM: usize = 256;
const TAILROOM: usize = 320;
/// Of the bytes before a frame the kernel keeps some to itself (`struct xdp_frame`).
const KEPT: usize = 40;
/// A frame has an Ethernet header at least.
const SHORTEST: usize = 14;
/// The stack of a function, in bytes, and how many may call each other.
const FUNCTION_STACK: usize = 512;
const DEEPEST: usize = 8;

/// Where the program finds its context.
pub const CONTEXT_ADDRESS: u64 = CONTEXT << 32;

/// The memory of one run.
pub struct Memory<'m> {
    buffer: Vec<u8>,
    frame: Range<usize>,
    ingress: u32,
    context: Vec<u8>,
    stack: Vec<u8>,
    pub maps: &'m mut [Map],
}

impl<'m> Memory<'m> {
    /// A frame that arrives on the interface with this index.
    pub fn new(frame: &[u8], ingress: u32, maps: &'m mut [Map]) -> Self {
        let buffer = [&[0; HEADROOM], frame, &[0; TAILROOM]].concat();
        let frame = HEADROOM..HEADROOM + frame.len();
        let stack = vec![0; FUNCTION_STACK * DEEPEST];
        let mut memory = Self { buffer, frame, ingress, context: vec![], stack, maps };
        memory.write_context();
        memory
    }

    /// The frame as it is now.
    pub fn frame(&self) -> Vec<u8> {
        self.buffer[self.frame.clone()].to_vec()
    }

    /// Its length.
    pub fn length(&self) -> usize {
        self.frame.len()
    }

    /// Moves the beginning of the frame; false where there is no room.
    pub fn move_start(&mut self, bytes: i32) -> bool {
        let start = self.frame.start.checked_add_signed(bytes as isize);
        match start.filter(|start| (KEPT..=self.frame.end.saturating_sub(SHORTEST)).contains(start)) {
            Some(start) => self.set_frame(start..self.frame.end),
            None => false,
        }
    }

    /// Moves its end; false where there is no room.
    pub fn move_end(&mut self, bytes: i32) -> bool {
        let old = self.frame.end;
        let end = old.checked_add_signed(bytes as isize);
        match end.filter(|end| (self.frame.start + SHORTEST..=self.buffer.len()).contains(end)) {
            Some(end) => {
                self.buffer[old.min(end)..end].fill(0);
                self.set_frame(self.frame.start..end)
            }
            None => false,
        }
    }

    fn set_frame(&mut self, frame: Range<usize>) -> bool {
        self.frame = frame;
        self.write_context();
        true
    }

    /// A `struct xdp_md`: where data begins, ends and is preceded by metadata, and where it arrived.
    fn write_context(&mut self) {
        let Range { start, end } = self.frame;
        let fields = [start as u32, end as u32, start as u32, self.ingress, 0, 0];
        self.context = fields.as_bytes().to_vec();
    }

    /// Where the stack of a function ends that so many others wait for.
    pub fn stack_end(depth: usize) -> Result<u64> {
        ensure!(depth < DEEPEST, "more than {DEEPEST} functions call each other");
        Ok(STACK << 32 | (FUNCTION_STACK * (depth + 1)) as u64)
    }

    /// The address of what is there in the values of a map.
    pub fn address(map: usize, place: usize) -> u64 {
        (MAPS + map as u64) << 32 | place as u64
    }

    /// A number of so many bytes.
    pub fn load(&mut self, address: u64, bytes: usize) -> Result<u64> {
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(self.bytes(address, bytes)?);
        Ok(u64::from_le_bytes(number))
    }

    /// Writes its lowest bytes.
    pub fn store(&mut self, address: u64, bytes: usize, number: u64) -> Result<()> {
        ensure!(address >> 32 != CONTEXT, "the context cannot be written");
        self.bytes(address, bytes)?.copy_from_slice(&number.to_le_bytes()[..bytes]);
        Ok(())
    }

    /// Bytes of a region.
    pub fn bytes(&mut self, address: u64, bytes: usize) -> Result<&mut [u8]> {
        let (region, start) = (address >> 32, address as u32 as usize);
        let range = start..start + bytes;
        let memory = match region {
            PACKET => {
                let within = self.frame.start <= range.start && range.end <= self.frame.end;
                within.then_some(&mut self.buffer).map(Vec::as_mut_slice)
            }
            CONTEXT => Some(self.context.as_mut_slice()),
            STACK => Some(self.stack.as_mut_slice()),
            _ => self.maps.get_mut((region - MAPS) as usize).map(|map| map.values.as_mut_slice()),
        };
        let memory = memory.and_then(|memory| memory.get_mut(range));
        memory.with_context(|| format!("no {bytes} bytes at {address:#x}"))
    }
}
