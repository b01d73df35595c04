//! What traffic through the balancer is compared with: an XDP router that looks up where a packet goes and sends it
//! there, and balances nothing. No balancer can be much faster on the same interfaces. And a sink, which tells how much of
//! what was sent has arrived. On the host it is an empty program.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod kernel {
    use aya_ebpf::{
        bindings::{bpf_fib_lookup as FibLookup, xdp_action},
        helpers::{bpf_fib_lookup, bpf_redirect},
        macros::{map, xdp},
        maps::PerCpuArray,
        programs::XdpContext,
    };

    /// How many frames the sink has swallowed.
    #[map]
    static SWALLOWED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

    const AF_INET: u8 = 2;
    const IPV4: [u8; 2] = 0x0800_u16.to_be_bytes();
    /// Version 4, a header of five words: no options.
    const PLAIN: u8 = 0x45;

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    /// The Ethernet header and the IPv4 header (RFC 791).
    #[repr(C)]
    struct Headers {
        /// The destination's, then the source's, in two pieces as they are written.
        macs: ([u8; 8], [u8; 4]),
        ether_type: [u8; 2],
        version_and_length: u8,
        tos: u8,
        total_length: [u8; 2],
        fragment: [u8; 4],
        ttl: u8,
        protocol: u8,
        checksum: [u8; 2],
        source: [u8; 4],
        destination: [u8; 4],
    }

    /// On the stack, at a place from which whole words may be loaded.
    #[repr(C, align(8))]
    struct Way(FibLookup);

    /// Routes plain IPv4; all else goes to the kernel. It takes frames of several buffers, as the balancer's program does.
    #[xdp(frags)]
    pub fn route(context: XdpContext) -> u32 {
        if context.data() + size_of::<Headers>() > context.data_end() {
            return xdp_action::XDP_PASS;
        }
        // SAFETY: within the packet, as compared above; any bytes are headers, at any place.
        let headers = unsafe { &mut *(context.data() as *mut Headers) };
        if headers.ether_type != IPV4 || headers.version_and_length != PLAIN || headers.ttl <= 1 {
            return xdp_action::XDP_PASS;
        }
        let mut way = headers.question(context.ingress_ifindex() as u32);
        // SAFETY: the context is the program's own, and the size is that of the structure.
        let answer =
            unsafe { bpf_fib_lookup(context.ctx.cast(), &raw mut way.0, size_of::<FibLookup>() as i32, 0) };
        if answer != 0 {
            return xdp_action::XDP_PASS;
        }
        headers.follow(&way);
        // SAFETY: the helper takes numbers.
        unsafe { bpf_redirect(way.0.ifindex, 0) as u32 }
    }

    /// Swallows the generator's frames, whatever is around them by now. Others of IPv4 are shorter: the handshakes of health
    /// checks.
    #[xdp(frags)]
    pub fn sink(context: XdpContext) -> u32 {
        const GENERATED: usize = 80;
        if context.data() + GENERATED > context.data_end() {
            return xdp_action::XDP_PASS;
        }
        // SAFETY: within the packet, as compared above; any bytes are headers, at any place.
        let headers = unsafe { &*(context.data() as *const Headers) };
        if headers.ether_type != IPV4 {
            return xdp_action::XDP_PASS;
        }
        if let Some(swallowed) = SWALLOWED.get_ptr_mut(0) {
            // SAFETY: this CPU's own element.
            unsafe { *swallowed += 1 }
        }
        xdp_action::XDP_DROP
    }

    impl Headers {
        #[inline(always)]
        fn question(&self, ingress: u32) -> Way {
            // SAFETY: all zeros are a valid value of the structure.
            let mut way: Way = unsafe { core::mem::zeroed() };
            let question = &mut way.0;
            question.family = AF_INET;
            question.l4_protocol = self.protocol;
            question.__bindgen_anon_1.tot_len = u16::from_be_bytes(self.total_length);
            question.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(self.source);
            question.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(self.destination);
            question.ifindex = ingress;
            way
        }

        #[inline(always)]
        fn follow(&mut self, way: &Way) {
            self.ttl -= 1;
            // RFC 1624: what the header's words lose, its sum gains, and a carry goes around.
            let sum = u32::from(u16::from_be_bytes(self.checksum)) + 0x0100;
            self.checksum = ((sum + (sum >> 16)) as u16).to_be_bytes();
            // The answer ends with both MAC addresses, the source's first. They are taken out of whole words, because the
            // second is where the verifier lets nobody load four bytes of the stack.
            // SAFETY: it has the size of eight words and no padding.
            let [.., before, last]: [u64; 8] = unsafe { core::mem::transmute_copy(way) };
            let source = before >> 32 | (last & 0xffff) << 32;
            self.macs = ((last >> 16 | source << 48).to_le_bytes(), ((source >> 16) as u32).to_le_bytes());
        }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}
