//! What loops over maps or is rarely needed, as functions of their own: see `decide` in `shell.rs` for why.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    programs::XdpContext,
};
use foobar_lb_ebpf::{
    conntrack,
    flow::Kind,
    forward::{self, Hop},
    layout::{Address, FlowKey, NO_BACKEND, Quic, Slot},
    nat64,
    packet::Packet,
    quic,
    snat::{self, Added, Claim},
    unmatched,
};

use super::{Maps, action};
use crate::arrived::Arrived;

/// [`unmatched::pass_or_answer`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pass_or_answer(context: *mut xdp_md, ingress: u32) -> u32 {
    let (tables, context) = (Maps { context }, XdpContext::new(context));
    action(unmatched::pass_or_answer(&mut Arrived::by(ingress, &context), &tables))
}

/// [`nat64::translate`]; `action` where it could.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn translate(context: *mut xdp_md, action: u32) -> u32 {
    let (tables, context) = (Maps { context }, XdpContext::new(context));
    if nat64::translate(&mut Arrived::new(&context), &tables, false) { action } else { xdp_action::XDP_DROP }
}

/// The same of an ICMP error.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn translate_error(context: *mut xdp_md, action: u32) -> u32 {
    let (tables, context) = (Maps { context }, XdpContext::new(context));
    if nat64::translate(&mut Arrived::new(&context), &tables, true) { action } else { xdp_action::XDP_DROP }
}

/// [`snat::renew`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn renew(flow: *const FlowKey, kind: u32, idle: u64) -> u32 {
    let tables = Maps { context: core::ptr::null_mut() };
    // SAFETY: null, or what the caller lends.
    let flow = unsafe { flow.as_ref() };
    flow.is_some_and(|flow| snat::renew(&tables, flow, Kind::from_word(kind), idle)).into()
}

/// [`snat::take`]; `choice` is the backend and, above it, the attempt.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take(flow: *const FlowKey, choice: u64, mss: u32, hash: u64) -> u32 {
    let tables = Maps { context: core::ptr::null_mut() };
    let claim = Claim { backend: choice as u32, attempt: (choice >> 32) as u32, mss, hash };
    // SAFETY: null, or what the caller lends.
    match unsafe { flow.as_ref() } {
        Some(flow) => snat::take(&tables, flow, claim) as u32,
        None => Added::NoRoom as u32,
    }
}

/// [`snat::is_free`]; `choice` as in `take`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_free(context: *mut xdp_md, flow: *const FlowKey, choice: u64, hash: u64) -> u32 {
    let tables = Maps { context };
    let claim = Claim { backend: choice as u32, attempt: (choice >> 32) as u32, mss: 0, hash };
    // SAFETY: null, or what the caller lends.
    let flow = unsafe { flow.as_ref() };
    flow.is_some_and(|flow| snat::is_free(&tables, flow, claim)).into()
}

/// [`forward::find_known_way`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_known_way(destination: *const Address, length: u32, hop: *mut Hop) -> u32 {
    let tables = Maps { context: core::ptr::null_mut() };
    // SAFETY: null, or what the caller lends.
    match unsafe { (destination.as_ref(), hop.as_mut()) } {
        (Some(destination), Some(hop)) => {
            forward::find_known_way(&tables, destination, length as u16, hop).into()
        }
        _ => 0,
    }
}

/// [`conntrack::follow`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn follow(flow: *const FlowKey, kind: u32, slot: u64, idle: u64) -> u32 {
    // SAFETY: null, or the flow that the caller lends.
    match unsafe { flow.as_ref() } {
        Some(flow) => {
            // It asks for no more than maps and the time.
            let tables = Maps { context: core::ptr::null_mut() };
            conntrack::follow(&tables, flow, Kind::from_word(kind), Slot::from_word(slot), idle)
        }
        None => NO_BACKEND,
    }
}

/// [`quic::named_backend`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn named_backend(context: *mut xdp_md, udp: u32, quic: u64) -> u32 {
    let (tables, context) = (Maps { context }, XdpContext::new(context));
    quic::named_backend(&Arrived::new(&context).frame(), &tables, udp, Quic::from_word(quic))
}

/// What a claim is for, as `take` and `is_free` want it.
#[inline(always)]
pub fn choice(claim: &Claim) -> u64 {
    u64::from(claim.attempt) << 32 | u64::from(claim.backend)
}
