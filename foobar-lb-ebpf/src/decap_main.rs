//! The XDP program of a backend: lends [`decap`](foobar_lb_ebpf::decap) the packet and the maps. On the host it is an
//! empty program.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod arrived;

#[cfg(target_arch = "bpf")]
mod kernel {
    use aya_ebpf::{
        bindings::xdp_action,
        macros::{map, xdp},
        maps::{HashMap, PerCpuArray},
        programs::XdpContext,
    };
    use foobar_lb_ebpf::{
        decap::{Outcome, Tables, decapsulate},
        layout::Address,
        reason::Verdict,
    };

    use crate::arrived::Arrived;

    #[map]
    static VIPS: HashMap<Address, u32> = HashMap::with_max_entries(1, 0);
    #[map]
    static OUTCOMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Outcome::ALL.len() as u32, 0);

    #[unsafe(no_mangle)]
    static GUE_PORT: [u8; 2] = [0; 2];

    /// The user-space half is under the licence of the project; the kernel asks for the GPL of whatever calls its
    /// helpers.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    // Frames of several buffers, as jumbo frames are, need no more: the headers are in the first one.
    #[xdp(frags)]
    pub fn foobar_lb_decap(context: XdpContext) -> u32 {
        match decapsulate(&mut Arrived::new(&context), &Maps) {
            Verdict::Drop => xdp_action::XDP_DROP,
            _ => xdp_action::XDP_PASS,
        }
    }

    struct Maps;

    impl Tables for Maps {
        #[inline(always)]
        fn is_vip(&self, address: &Address) -> bool {
            VIPS.get_ptr(address).is_some()
        }

        #[inline(always)]
        fn gue_port(&self) -> [u8; 2] {
            // The loader replaces the value, so the compiler must not know it.
            *core::hint::black_box(&GUE_PORT)
        }

        #[inline(always)]
        fn count(&self, outcome: Outcome) {
            if let Some(packets) = OUTCOMES.get_ptr_mut(outcome as u32) {
                // SAFETY: this CPU's own element.
                unsafe { *packets += 1 }
            }
        }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}
