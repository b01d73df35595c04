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
        macros::{map, xdp},
        maps::{Array, ProgramArray},
        programs::XdpContext,
    };

    /// Bytes of a frame.
    const FRAME: usize = 80;
    const WORD: usize = size_of::<u64>();
    /// Clients have so many ports each.
    const PORTS: u32 = 16;

    /// The program that the packets are for; none: what generating costs by itself.
    #[map]
    static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);
    /// How many packets there were.
    #[map]
    static GENERATED: Array<u32> = Array::with_max_entries(1, 0);

    // Globals that the loader sets, so the verifier knows their values and removes what they rule out.

    /// The frame of flow 0.
    #[unsafe(no_mangle)]
    static TEMPLATE: [u64; FRAME / WORD] = [0; FRAME / WORD];
    /// Flows, a power of two, of which each has its own client address or port.
    #[unsafe(no_mangle)]
    static FLOWS: u32 = 1;
    /// Where the last two bytes of the client's address begin.
    #[unsafe(no_mangle)]
    static ADDRESS_AT: u32 = 0;
    /// Where the client's port begins.
    #[unsafe(no_mangle)]
    static PORT_AT: u32 = 0;

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    // The kernel lets it call nothing but what is of its own kind.
    #[xdp(frags)]
    pub fn generate(context: XdpContext) -> u32 {
        let Some(flow) = next_flow() else { return xdp_action::XDP_ABORTED };
        if !write_frame(&context, flow) {
            return xdp_action::XDP_ABORTED;
        }
        // SAFETY: the map holds XDP programs only, and the context is the one this program was given.
        unsafe { NEXT.tail_call(&context, 0) };
        xdp_action::XDP_PASS
    }

    /// The cheapest program that sends a packet on.
    #[xdp(frags)]
    pub fn transmit(_: XdpContext) -> u32 {
        xdp_action::XDP_TX
    }

    /// Multiplying by an odd number permutes the flows: each comes once before any comes twice, and no two in a row
    /// are neighbours in memory.
    #[inline(always)]
    fn next_flow() -> Option<u32> {
        let generated = GENERATED.get_ptr_mut(0)?;
        // SAFETY: a test run uses one CPU, and the map belongs to this program.
        let number = unsafe { generated.replace((*generated).wrapping_add(1)) };
        Some(number.wrapping_mul(0x9e37_79b1) & (load(&FLOWS) - 1))
    }

    /// Writes whole words, so that the program's narrower loads of them are served by the store buffer as fast as by
    /// the cache.
    #[inline(always)]
    fn write_frame(context: &XdpContext, flow: u32) -> bool {
        let start = context.data() as *mut u64;
        if context.data() + FRAME > context.data_end() {
            return false;
        }
        for (index, word) in TEMPLATE.iter().enumerate() {
            let client =
                place(load(&ADDRESS_AT), index, flow / PORTS) | place(load(&PORT_AT), index, flow % PORTS);
            // SAFETY: within the packet, as compared above; a test run aligns it to a page and its headroom.
            unsafe { start.add(index).write(load(word) ^ client) }
        }
        true
    }

    /// The bits that put a number at an even offset of the frame, in network order, if that is in this word.
    #[inline(always)]
    fn place(at: u32, word: usize, number: u32) -> u64 {
        let (in_word, byte) = (at as usize / WORD, at % WORD as u32);
        if in_word == word { u64::from((number as u16).to_be()) << (byte * u8::BITS) } else { 0 }
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
