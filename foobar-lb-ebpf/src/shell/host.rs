//! What the balancer's own host knows: the ways to clients, and which packets a socket of it takes.

use aya_ebpf::{
    bindings::{bpf_fib_lookup as FibLookup, xdp_md},
    helpers::{bpf_fib_lookup, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
};
use foobar_lb_ebpf::{
    forward::{Hop, Question},
    headers::Macs,
    ip::Family,
    layout::{Address, FlowKey, TCP},
    reason::Reason,
    tables::Tables,
};

use super::{Aligned, Maps};

/// [`Tables::route`].
#[inline(always)]
pub fn find_way(context: *mut xdp_md, question: &Question<'_>, hop: &mut Hop) -> Result<(), Reason> {
    let Question { ingress, protocol, length, may_fragment, source, destination } = *question;
    let packet = u64::from(may_fragment) << 56
        | u64::from(protocol) << 48
        | u64::from(length) << 32
        | u64::from(ingress);
    match route(context, source, destination, packet, hop) {
        0 => Ok(()),
        code => Err(refusal(code)),
    }
}

/// Asks the kernel for a way; `packet` is the ingress and, above it, the length, the protocol and whether it may be
/// fragmented. 0: `hop` has the answer; else a reason and one more.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn route(
    context: *mut xdp_md,
    source: *const Address,
    destination: *const Address,
    packet: u64,
    hop: *mut Hop,
) -> u32 {
    // SAFETY: null, or what the caller lends.
    let (Some(source), Some(destination), Some(hop)) =
        (unsafe { (source.as_ref(), destination.as_ref(), hop.as_mut()) })
    else {
        return Reason::NoRoute as u32 + 1;
    };
    let question = Question {
        ingress: packet as u32,
        length: (packet >> 32) as u16,
        protocol: (packet >> 48) as u8,
        may_fragment: packet >> 56 != 0,
        source,
        destination,
    };
    match ask(context, &question, hop) {
        Ok(()) => 0,
        Err(reason) => reason as u32 + 1,
    }
}

/// Asks the kernel.
#[inline(always)]
fn ask(context: *mut xdp_md, question: &Question<'_>, hop: &mut Hop) -> Result<(), Reason> {
    use aya_ebpf::bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED as FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED as FWD_DISABLED,
        BPF_FIB_LKUP_RET_NO_NEIGH as NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS as SUCCESS,
        BPF_FIB_LKUP_RET_UNSUPP_LWT as UNSUPP_LWT,
    };
    let mut lookup = lookup(question);
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the context is the program's own, and the size is that of the structure.
    let answer = unsafe { bpf_fib_lookup(context.cast(), &raw mut lookup.0, size, 0) };
    // What the answers mean is said in linux/bpf.h.
    match answer as u32 {
        SUCCESS => {
            if let Some(interface) = (Maps { context }).interface(lookup.0.ifindex) {
                let index = interface.egress(lookup.0.ifindex);
                *hop = Hop { interface: index, mtu: 0, macs: macs(&lookup.0) };
            }
            Ok(())
        }
        NO_NEIGH | UNSUPP_LWT => Ok(()),
        FRAG_NEEDED if question.may_fragment => Ok(()),
        FRAG_NEEDED => {
            // SAFETY: with this answer, and any other bytes would be a number too.
            hop.mtu = unsafe { lookup.0.__bindgen_anon_1.mtu_result }.into();
            Err(Reason::ReplyTooBig)
        }
        FWD_DISABLED => Err(Reason::ForwardingOff),
        _ => Err(Reason::NoRoute),
    }
}

/// The reason of a code of `route`.
#[inline(always)]
fn refusal(code: u32) -> Reason {
    let refusals = [Reason::ReplyTooBig, Reason::ForwardingOff];
    refusals.into_iter().find(|reason| *reason as u32 + 1 == code).unwrap_or(Reason::NoRoute)
}

#[inline(always)]
fn lookup(question: &Question<'_>) -> Aligned<FibLookup> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    // SAFETY: all zeros are a valid value of the structure.
    let mut aligned: Aligned<FibLookup> = unsafe { core::mem::zeroed() };
    let lookup = &mut aligned.0;
    let Question { source, destination, .. } = *question;
    match Family::of(destination) {
        Family::V4 => {
            lookup.family = AF_INET;
            lookup.__bindgen_anon_3.ipv4_src = last_word(source);
            lookup.__bindgen_anon_4.ipv4_dst = last_word(destination);
        }
        Family::V6 => {
            lookup.family = AF_INET6;
            lookup.__bindgen_anon_3.ipv6_src = zerocopy::transmute!(*source);
            lookup.__bindgen_anon_4.ipv6_dst = zerocopy::transmute!(*destination);
        }
    }
    lookup.l4_protocol = question.protocol;
    lookup.__bindgen_anon_1.tot_len = question.length;
    lookup.ifindex = question.ingress;
    aligned
}

/// The MAC addresses that the kernel found, at the end of its answer. They are taken out of whole words: the second is
/// at an offset at which the verifier lets nobody load four bytes of the stack.
#[inline(always)]
fn macs(answer: &FibLookup) -> Macs {
    // SAFETY: it has the size of eight words and no padding.
    let [.., before, last]: [u64; 8] = unsafe { core::mem::transmute_copy(answer) };
    Macs { source: before >> 32 | (last & 0xffff) << 32, destination: last >> 16 }
}

#[inline(always)]
fn last_word(address: &Address) -> u32 {
    let words: [u32; 4] = zerocopy::transmute!(*address);
    words[3]
}

/// Whether a socket takes packets of this flow: one that is connected to its source, or one that listens.
#[inline(always)]
pub fn has_socket(context: *mut xdp_md, flow: &FlowKey) -> bool {
    /// The network namespace of the interface.
    const CURRENT_NETNS: u64 = u64::MAX;
    let (mut tuple, length) = tuple(flow);
    let (context, tuple) = (context.cast(), (&raw mut tuple).cast());
    // SAFETY: the context is the program's own, and the length is that of what is written of the tuple.
    let socket = unsafe {
        match flow.source.protocol {
            TCP => bpf_sk_lookup_tcp(context, tuple, length, CURRENT_NETNS, 0),
            _ => bpf_sk_lookup_udp(context, tuple, length, CURRENT_NETNS, 0),
        }
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the look-up has lent it, and nobody uses it any more.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}

/// The two addresses of a `bpf_sock_tuple` and, in one word, its two ports; and its length in bytes.
#[inline(always)]
fn tuple(flow: &FlowKey) -> ([u32; 9], u32) {
    const WORD: u32 = size_of::<u32>() as u32;
    let FlowKey { source, destination } = flow;
    let ports = [source.port[0], source.port[1], destination.port[0], destination.port[1]];
    let ports = u32::from_ne_bytes(ports);
    let [s0, s1, s2, s3]: [u32; 4] = zerocopy::transmute!(source.address);
    let [d0, d1, d2, d3]: [u32; 4] = zerocopy::transmute!(destination.address);
    match Family::of(&source.address) {
        Family::V4 => ([s3, d3, ports, 0, 0, 0, 0, 0, 0], 3 * WORD),
        Family::V6 => ([s0, s1, s2, s3, d0, d1, d2, d3, ports], 9 * WORD),
    }
}
