//! What the balancer's own host would do with a packet: whether a socket of it takes the packet.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
};
use foobar_lb_ebpf::{
    ip::Family,
    layout::{FlowKey, TCP},
};

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
