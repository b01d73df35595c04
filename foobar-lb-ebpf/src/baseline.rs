//! What the balancer's speed is compared with: an XDP program that sends every packet back, and one that first finds out
//! its flow, as every balancer has to. On the host it is an empty program.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod arrived;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod kernel {
    use core::hint::black_box;

    use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
    use foobar_lb_ebpf::flow::Parsed;

    use crate::arrived::Arrived;

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    /// The cheapest program that sends a packet on.
    #[xdp(frags)]
    pub fn transmit(_: XdpContext) -> u32 {
        xdp_action::XDP_TX
    }

    /// The cheapest one that knows the packet's flow.
    #[xdp(frags)]
    pub fn parse(context: XdpContext) -> u32 {
        let mut parsed = Parsed::new();
        if parsed.parse(&mut Arrived::new(&context)).is_err() {
            return xdp_action::XDP_PASS;
        }
        // The compiler must not see that nobody asks.
        black_box(&parsed.flow);
        xdp_action::XDP_TX
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}
