//! The XDP program of the balancer: remembers flows where they would otherwise break, in three maps. All else is in
//! `shell.rs`. On the host it is an empty program.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod arrived;
#[cfg(target_arch = "bpf")]
mod shell;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod kernel {
    use aya_ebpf::{
        macros::{map, xdp},
        maps::{HashMap, LruHashMap},
        programs::XdpContext,
    };
    use foobar_lb_ebpf::{
        conntrack::Conntrack,
        layout::{Entry, FlowKey, capacity},
    };

    use crate::shell;

    #[map]
    static HALF_OPEN: LruHashMap<FlowKey, Entry> = LruHashMap::with_max_entries(capacity::HALF_OPEN, 0);
    #[map]
    static ESTABLISHED: HashMap<FlowKey, Entry> = HashMap::with_max_entries(capacity::ESTABLISHED, 0);
    #[map]
    static ADOPTED: HashMap<FlowKey, Entry> = HashMap::with_max_entries(capacity::ADOPTED, 0);

    // Frames that need several buffers, as jumbo frames do, are among those that it gets.
    #[xdp(frags)]
    pub fn foobar_lb(context: XdpContext) -> u32 {
        shell::run(&context)
    }

    /// The flows that would otherwise break.
    #[derive(Clone, Copy)]
    pub struct Flows;

    impl Conntrack for Flows {
        #[inline(always)]
        fn half_open(&self, flow: &FlowKey) -> Option<&Entry> {
            // SAFETY: the memory of an element that is removed stays readable for as long as the program runs (RCU), at
            // worst with the contents of a newer one; its words are loaded and stored atomically.
            unsafe { HALF_OPEN.get(flow) }
        }

        #[inline(always)]
        fn remembered(&self, flow: &FlowKey) -> Option<&Entry> {
            // SAFETY: as for `half_open`.
            unsafe { ESTABLISHED.get(flow).or_else(|| ADOPTED.get(flow)) }
        }

        #[inline(always)]
        fn insert_half_open(&self, flow: &FlowKey, entry: Entry) -> bool {
            HALF_OPEN.insert(flow, entry, 0).is_ok()
        }

        #[inline(always)]
        fn insert_established(&self, flow: &FlowKey, entry: Entry) -> bool {
            ESTABLISHED.insert(flow, entry, 0).is_ok()
        }

        #[inline(always)]
        fn insert_adopted(&self, flow: &FlowKey, entry: Entry) -> bool {
            ADOPTED.insert(flow, entry, 0).is_ok()
        }

        // That there is no entry is what is asked for, so it is no failure.
        #[inline(always)]
        fn forget_half_open(&self, flow: &FlowKey) {
            HALF_OPEN.remove(flow).ok();
        }

        #[inline(always)]
        fn forget(&self, flow: &FlowKey) {
            HALF_OPEN.remove(flow).ok();
            ESTABLISHED.remove(flow).ok();
            ADOPTED.remove(flow).ok();
        }
    }
}
