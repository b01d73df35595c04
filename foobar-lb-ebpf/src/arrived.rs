//! The [`Packet`] of the kernel: what the XDP context holds.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use foobar_lb_ebpf::{
    checksum::{self, Change},
    extension::Beyond,
    flow::MOST_EXTENSIONS,
    mss, nat64,
    packet::{Frame, Packet},
    reason::Reason,
};

/// A packet that has arrived.
pub struct Arrived<'c> {
    context: &'c XdpContext,
    ingress: u32,
}

impl<'c> Arrived<'c> {
    /// As it has arrived.
    #[inline(always)]
    pub fn new(context: &'c XdpContext) -> Self {
        Self::by(context.ingress_ifindex() as u32, context)
    }

    /// One that counts as come in by the interface with this index.
    #[inline(always)]
    pub fn by(ingress: u32, context: &'c XdpContext) -> Self {
        Self { context, ingress }
    }
}

impl Packet for Arrived<'_> {
    #[inline(always)]
    fn frame(&mut self) -> Frame<'_> {
        // SAFETY: the kernel lends these bytes to the program while it runs.
        unsafe { Frame::new(self.context.data(), self.context.data_end()) }
    }

    #[inline(always)]
    fn length(&mut self) -> u32 {
        // SAFETY: the context is the program's own.
        unsafe { bpf_xdp_get_buff_len(self.context.ctx) as u32 }
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.ingress
    }

    #[inline(always)]
    fn set_ingress(&mut self, interface: u32) {
        self.ingress = interface;
    }

    #[inline(always)]
    fn move_start(&mut self, bytes: i32) -> Result<(), Reason> {
        // SAFETY: the context is the program's own; frames borrow the packet, so none outlives the call.
        let refused = unsafe { bpf_xdp_adjust_head(self.context.ctx, bytes) };
        if refused == 0 { Ok(()) } else { Err(Reason::NoRoom) }
    }

    #[inline(always)]
    fn move_end(&mut self, bytes: i32) -> Result<(), Reason> {
        // SAFETY: as in `move_start`.
        let refused = unsafe { bpf_xdp_adjust_tail(self.context.ctx, bytes) };
        if refused == 0 { Ok(()) } else { Err(Reason::NoRoom) }
    }

    #[inline(always)]
    fn beyond(&mut self, next: u32, protocol: u8, extensions: u32) -> Beyond {
        Beyond::from_word(beyond(self.context.ctx, next, protocol.into(), extensions))
    }

    #[inline(always)]
    fn clamp_mss(&mut self, tcp: u32, most: u16) {
        clamp_mss(self.context.ctx, tcp, most.into());
    }

    #[inline(always)]
    fn sum(&mut self, from: u32, bytes: u32) -> Result<Change, Reason> {
        match sum(self.context.ctx, from, bytes) {
            NO_SUM => Err(Reason::Malformed),
            word => Ok(Change::from_word(word)),
        }
    }

    #[inline(always)]
    fn is_source_routed(&mut self, end: u32) -> bool {
        is_source_routed(self.context.ctx, end) != 0
    }
}

// What follows is rarely needed, and loops. As functions of their own, with C's calling convention and names for the
// linker, the verifier looks at each of them once for any arguments, and not once for every way that leads to a call.

/// [`Beyond::of`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn beyond(context: *mut xdp_md, next: u32, protocol: u32, extensions: u32) -> u64 {
    let context = XdpContext::new(context);
    Beyond::of(&Arrived::new(&context).frame(), next, protocol as u8, extensions.min(MOST_EXTENSIONS))
        .to_word()
}

/// [`mss::clamp`]. The kernel wants a function to return a number.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn clamp_mss(context: *mut xdp_md, tcp: u32, most: u32) -> u32 {
    let context = XdpContext::new(context);
    mss::clamp(&mut Arrived::new(&context).frame(), tcp, most as u16);
    0
}

/// In place of a sum.
const NO_SUM: u32 = u32::MAX;

/// [`checksum::sum`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sum(context: *mut xdp_md, from: u32, bytes: u32) -> u32 {
    let context = XdpContext::new(context);
    checksum::sum(&Arrived::new(&context).frame(), from, bytes).map_or(NO_SUM, Change::to_word)
}

/// [`nat64::is_source_routed`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_source_routed(context: *mut xdp_md, end: u32) -> u32 {
    let context = XdpContext::new(context);
    nat64::is_source_routed(&Arrived::new(&context).frame(), end).into()
}
