//! What other balancers do, to compare with: the same data path, but every flow is remembered, in one map that evicts
//! the least recently used. The control plane renders its slots as moving from their owner to that same owner, so
//! that flows which begin are remembered there, and so are unknown ones. On the host it is an empty program.

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
        maps::LruHashMap,
        programs::XdpContext,
    };
    use foobar_lb_ebpf::{
        conntrack::Conntrack,
        layout::{Entry, FlowKey, capacity},
    };

    use crate::shell;

    #[map]
    static FLOWS: LruHashMap<FlowKey, Entry> = LruHashMap::with_max_entries(capacity::FLOWS, 0);

    #[xdp(frags)]
    pub fn foobar_lb(context: XdpContext) -> u32 {
        shell::run(&context)
    }

    /// All flows.
    #[derive(Clone, Copy)]
    pub struct Flows;

    impl Conntrack for Flows {
        #[inline(always)]
        fn half_open(&self, _: &FlowKey) -> Option<&Entry> {
            None
        }

        #[inline(always)]
        fn remembered(&self, flow: &FlowKey) -> Option<&Entry> {
            // SAFETY: the memory of an element that is removed stays readable for as long as the program runs (RCU), at
            // worst with the contents of a newer one; its words are loaded and stored atomically.
            unsafe { FLOWS.get(flow) }
        }

        #[inline(always)]
        fn insert_half_open(&self, flow: &FlowKey, entry: Entry) -> bool {
            FLOWS.insert(flow, entry, 0).is_ok()
        }

        #[inline(always)]
        fn insert_established(&self, flow: &FlowKey, entry: Entry) -> bool {
            FLOWS.insert(flow, entry, 0).is_ok()
        }

        #[inline(always)]
        fn insert_adopted(&self, flow: &FlowKey, entry: Entry) -> bool {
            FLOWS.insert(flow, entry, 0).is_ok()
        }

        #[inline(always)]
        fn forget_half_open(&self, _: &FlowKey) {}

        // That there is no entry is what is asked for, so it is no failure.
        #[inline(always)]
        fn forget(&self, flow: &FlowKey) {
            FLOWS.remove(flow).ok();
        }
    }
}
