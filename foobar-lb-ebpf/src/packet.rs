//! A packet as the data path sees it: [`Frame`], a bounds-checked view that gives out typed headers, and
//! [`Packet`], which lends frames and changes its size. [`Buffer`] is the packet of the host.

#[cfg(not(target_arch = "bpf"))]
use alloc::vec::Vec;
use core::marker::PhantomData;

use crate::{
    checksum::{self, Change},
    extension::Beyond,
    headers::Header,
    mss, nat64,
    reason::Reason,
};

/// The bytes of a packet, from its Ethernet header on; of one in several buffers the first, which has all headers. It borrows the packet, so no pointer into it outlives a
/// change of the packet's size.
pub struct Frame<'p> {
    start: usize,
    end: usize,
    packet: PhantomData<&'p mut [u8]>,
}

impl Frame<'_> {
    /// # Safety
    /// `start..end` are bytes that may be read and written, by nobody else, for the lifetime of the frame.
    #[inline(always)]
    pub unsafe fn new(start: usize, end: usize) -> Self {
        Self { start, end, packet: PhantomData }
    }

    /// Length in bytes; of a frame that needs several buffers, that of the first.
    #[inline(always)]
    pub fn len(&self) -> u64 {
        (self.end - self.start) as u64
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The header at `offset`, or `Malformed` where the frame ends before it does.
    #[inline(always)]
    pub fn at<T: Header>(&self, offset: u32) -> Result<&T, Reason> {
        let header = self.bounded::<T>(offset)? as *const T;
        // SAFETY: the header lies within the frame, and any bytes at any alignment are a valid `Header`.
        Ok(unsafe { &*header })
    }

    /// Like [`Frame::at`], to write.
    #[inline(always)]
    pub fn at_mut<T: Header>(&mut self, offset: u32) -> Result<&mut T, Reason> {
        let header = self.bounded::<T>(offset)? as *mut T;
        // SAFETY: as in `at`; the frame is borrowed for writing, so nobody else holds a header of it.
        Ok(unsafe { &mut *header })
    }

    /// The comparisons have the form in which the verifier learns how far the packet may be read: it has to know
    /// a bound of the offset, which it loses on the way through the stack, before it compares with the end.
    #[inline(always)]
    fn bounded<T>(&self, offset: u32) -> Result<usize, Reason> {
        let header = self.start + offset as usize;
        if offset > FARTHEST || header + size_of::<T>() > self.end {
            return Err(Reason::Malformed);
        }
        Ok(header)
    }
}

/// No header that is read begins farther from the start: Ethernet, two IP headers of 60 bytes and ICMP between.
pub const FARTHEST: u32 = 255;

/// A packet that arrived.
pub trait Packet {
    /// Its bytes.
    fn frame(&mut self) -> Frame<'_>;

    /// Its length in bytes, whatever buffers it is in.
    fn length(&mut self) -> u32;

    /// Index of the interface it came in by; of a frame that had VLAN tags, that of their VLAN device.
    fn ingress(&self) -> u32;

    /// Lets it count as come in by another interface.
    fn set_ingress(&mut self, interface: u32);

    /// Moves the start of the frame: on, past so many bytes, or back (negative) by so many of any value. `NoRoom`
    /// where there are not so many.
    fn move_start(&mut self, bytes: i32) -> Result<(), Reason>;

    /// Moves the end of the frame: on by so many bytes, or back (negative). `NoRoom` where there are not so many.
    fn move_end(&mut self, bytes: i32) -> Result<(), Reason>;

    /// [`Beyond::of`]. The kernel has this, and the next three, as functions of their own.
    #[inline(always)]
    fn beyond(&mut self, next: u32, protocol: u8, extensions: u32) -> Beyond {
        Beyond::of(&self.frame(), next, protocol, extensions)
    }

    /// [`mss::clamp`].
    #[inline(always)]
    fn clamp_mss(&mut self, tcp: u32, most: u16) {
        mss::clamp(&mut self.frame(), tcp, most);
    }

    /// [`checksum::sum`].
    #[inline(always)]
    fn sum(&mut self, from: u32, bytes: u32) -> Result<Change, Reason> {
        checksum::sum(&self.frame(), from, bytes)
    }

    /// [`nat64::is_source_routed`].
    #[inline(always)]
    fn is_source_routed(&mut self, end: u32) -> bool {
        nat64::is_source_routed(&self.frame(), end)
    }

    /// Cuts what lies behind the first `length` bytes. `NoRoom` where there are not so many.
    #[inline(always)]
    fn cut(&mut self, length: u32) -> Result<(), Reason> {
        match self.length().checked_sub(length) {
            Some(rest) => self.move_end(-(rest as i32)),
            None => Err(Reason::NoRoom),
        }
    }
}

/// A packet in ordinary memory.
#[cfg(not(target_arch = "bpf"))]
pub struct Buffer {
    /// Its bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Index of the interface it came in by.
    pub ingress: u32,
}

#[cfg(not(target_arch = "bpf"))]
impl Packet for Buffer {
    fn frame(&mut self) -> Frame<'_> {
        let bytes = self.bytes.as_mut_ptr_range();
        // SAFETY: the range is that of a slice borrowed for writing as long as the frame lives.
        unsafe { Frame::new(bytes.start.expose_provenance(), bytes.end.expose_provenance()) }
    }

    fn length(&mut self) -> u32 {
        self.bytes.len() as u32
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn set_ingress(&mut self, interface: u32) {
        self.ingress = interface;
    }

    fn move_start(&mut self, bytes: i32) -> Result<(), Reason> {
        let count = bytes.unsigned_abs() as usize;
        if bytes < 0 {
            self.bytes.splice(..0, core::iter::repeat_n(0, count));
        } else if count <= self.bytes.len() {
            self.bytes.drain(..count);
        } else {
            return Err(Reason::NoRoom);
        }
        Ok(())
    }

    fn move_end(&mut self, bytes: i32) -> Result<(), Reason> {
        let length = self.bytes.len().checked_add_signed(bytes as isize).ok_or(Reason::NoRoom)?;
        self.bytes.resize(length, 0);
        Ok(())
    }
}
