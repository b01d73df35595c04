//! The flow generator of benches and tests: an XDP program that puts a packet in its place, one of another flow each
//! time, and hands it to the program behind it. A test run restores nothing between its repetitions, so without it a
//! program would be run on its own output. What to send is left to whoever loads it.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod kernel {
    use aya_ebpf::{
        bindings::xdp_action,
        helpers::bpf_xdp_adjust_head,
        macros::{map, xdp},
        maps::{Array, ProgramArray},
        programs::XdpContext,
    };

    /// Bytes of a frame.
    const FRAME: usize = 80;
    const WORD: usize = size_of::<u64>();
    /// Clients have so many ports each, and more where there are more flows than 2^16 clients have then.
    const PORT_BITS: u32 = 4;
    const CLIENT_BITS: u32 = 16;

    /// The program that the packets are for; none: what generating costs by itself.
    #[map]
    static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);
    /// What is put in place of numbers made from that of a flow, where these say nothing: the client's, its port, the server's.
    #[map]
    static LIST: Array<[u16; 4]> = Array::with_max_entries(1, 0);
    /// Where it is in its order of flows.
    #[map]
    static ORDER: Array<Order> = Array::with_max_entries(1, 0);

    /// An order of flows.
    #[repr(C)]
    struct Order {
        /// How many packets there were.
        generated: u32,
        /// From flow to flow; odd, but for the very first.
        stride: u32,
    }

    // Globals that the loader sets, so the verifier knows their values and removes what they rule out.

    /// The frame of flow 0.
    #[unsafe(no_mangle)]
    static TEMPLATE: [u64; FRAME / WORD] = [0; FRAME / WORD];
    /// Flows less one, all ones in binary. Each has its own client address or port.
    #[unsafe(no_mangle)]
    static LAST_FLOW: u32 = 0;
    /// How many servers there are; flow 0 is for the first.
    #[unsafe(no_mangle)]
    static SERVERS: u32 = 1;
    /// Where the last two bytes of the client's address begin.
    #[unsafe(no_mangle)]
    static CLIENT_AT: u32 = 0;
    /// Where the client's port begins.
    #[unsafe(no_mangle)]
    static PORT_AT: u32 = 0;
    /// Where the last two bytes of the server's address begin.
    #[unsafe(no_mangle)]
    static SERVER_AT: u32 = 0;
    /// Whether the program puts something before the frame, to be taken off again. 1: yes.
    #[unsafe(no_mangle)]
    static GROWS: u32 = 0;

    /// Whether flows are those of the list. 1: yes.
    #[unsafe(no_mangle)]
    static LISTED: u32 = 0;

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    // The kernel lets each call nothing but what is of its own kind.

    /// For programs that take frames of several buffers.
    #[xdp(frags)]
    pub fn generate(context: XdpContext) -> u32 {
        hand_on(&context)
    }

    /// For programs that do not.
    #[xdp]
    pub fn generate_linear(context: XdpContext) -> u32 {
        hand_on(&context)
    }

    #[inline(always)]
    fn hand_on(context: &XdpContext) -> u32 {
        let ends = next_flow().and_then(find_ends);
        let Some(ends) = ends else { return xdp_action::XDP_ABORTED };
        if !restore_start(context) || !write_frame(context, ends) {
            return xdp_action::XDP_ABORTED;
        }
        // SAFETY: the map holds XDP programs only, and the context is the one this program was given.
        unsafe { NEXT.tail_call(context, 0) };
        xdp_action::XDP_PASS
    }

    /// What a flow's packets differ in from those of flow 0.
    #[derive(Clone, Copy)]
    struct Ends {
        client: u16,
        port: u16,
        server: u16,
    }

    #[inline(always)]
    fn find_ends(flow: u32) -> Option<Ends> {
        if load(&LISTED) != 0 {
            let [client, port, server, _] = *LIST.get(flow)?;
            return Some(Ends { client, port, server });
        }
        // The product of a number that is spread over 32 bits and of theirs is spread over them, above 32 bits.
        let server = u64::from(flow.wrapping_mul(0x85eb_ca6b)) * u64::from(load(&SERVERS));
        Some(Ends {
            client: (flow >> PORT_BITS) as u16,
            port: (flow & ((1 << PORT_BITS) - 1) | flow >> (PORT_BITS + CLIENT_BITS) << PORT_BITS) as u16,
            server: (server >> u32::BITS) as u16,
        })
    }

    /// Each flow comes once before any comes twice: to multiply by an odd number permutes them. It is another number each
    /// time, because what remembers flows in the order in which it first saw them would have neighbours in time as
    /// neighbours in memory if they came in that order again.
    #[inline(always)]
    fn next_flow() -> Option<u32> {
        let order = ORDER.get_ptr_mut(0)?;
        // SAFETY: a test run uses one CPU, and the map belongs to this program.
        let order = unsafe { &mut *order };
        if order.generated & load(&LAST_FLOW) == 0 {
            order.stride = (order.stride | 1).wrapping_mul(0x9e37_79b5);
        }
        let flow = order.generated.wrapping_mul(order.stride) & load(&LAST_FLOW);
        order.generated = order.generated.wrapping_add(1);
        Some(flow)
    }

    /// Calls the helper in any case, because a program is charged with what its packets cost more than others.
    #[inline(always)]
    fn restore_start(context: &XdpContext) -> bool {
        if load(&GROWS) == 0 {
            return true;
        }
        let grown = (context.data_end() - context.data()) as i32 - FRAME as i32;
        // SAFETY: the context is the program's own, and pointers into the packet are made after this.
        unsafe { bpf_xdp_adjust_head(context.ctx, grown) == 0 }
    }

    /// Writes whole words, so that the program's narrower loads of them are served by the store buffer as fast as by
    /// the cache.
    #[inline(always)]
    fn write_frame(context: &XdpContext, ends: Ends) -> bool {
        let start = context.data() as *mut u64;
        if context.data() + FRAME > context.data_end() {
            return false;
        }
        for (index, word) in TEMPLATE.iter().enumerate() {
            let ends = place(load(&CLIENT_AT), index, ends.client)
                | place(load(&PORT_AT), index, ends.port)
                | place(load(&SERVER_AT), index, ends.server);
            // SAFETY: within the packet, as compared above; a test run aligns it to a page and its headroom.
            unsafe { start.add(index).write(load(word) ^ ends) }
        }
        true
    }

    /// The bits that put a number at an even offset of the frame, in network order, if that is in this word.
    #[inline(always)]
    fn place(at: u32, word: usize, number: u16) -> u64 {
        let (in_word, byte) = (at as usize / WORD, at % WORD as u32);
        if in_word == word { u64::from(number.to_be()) << (byte * u8::BITS) } else { 0 }
    }

    /// Reads a global that the loader replaces, so the compiler must not know its value.
    #[inline(always)]
    fn load<T: Copy>(global: &T) -> T {
        // SAFETY: a reference may be read.
        unsafe { core::ptr::read_volatile(global) }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}
