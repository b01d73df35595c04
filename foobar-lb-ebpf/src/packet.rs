//! A packet as the data path sees it: [`Frame`], a bounds-checked view that gives out typed headers, and
//! [`Packet`], which lends frames. [`Buffer`] is the packet of the host.

use core::marker::PhantomData;

use crate::{headers::Header, reason::Reason};

/// The bytes of a packet, from its Ethernet header on. It borrows the packet, so no pointer into it outlives a
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

    /// Length in bytes.
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
const FARTHEST: u32 = 255;

/// A packet that arrived.
pub trait Packet {
    /// Its bytes.
    fn frame(&mut self) -> Frame<'_>;

    /// Index of the interface it came in by.
    fn ingress(&self) -> u32;
}

/// A packet in ordinary memory.
pub struct Buffer<'b> {
    /// Its bytes, from the Ethernet header on.
    pub bytes: &'b mut [u8],
    /// Index of the interface it came in by.
    pub ingress: u32,
}

impl Packet for Buffer<'_> {
    fn frame(&mut self) -> Frame<'_> {
        let bytes = self.bytes.as_mut_ptr_range();
        // SAFETY: the range is that of a slice borrowed for writing as long as the frame lives.
        unsafe { Frame::new(bytes.start.expose_provenance(), bytes.end.expose_provenance()) }
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }
}
