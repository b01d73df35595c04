//! The kernel shell of the data path: a [`Packet`] over the XDP context, [`Tables`] over the maps, and all maps but
//! those of remembered flows. These, and the program itself, are left to the two that share it, `main.rs` and
//! `full_tracking.rs`.

use aya_ebpf::{
    bindings::{bpf_fib_lookup as FibLookup, xdp_action, xdp_md},
    helpers::{bpf_fib_lookup, bpf_ktime_get_ns, bpf_redirect},
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::XdpContext,
};
use foobar_lb_ebpf::{
    balance::{Tables, balance},
    conntrack::Conntrack,
    flow::{HashKey, Parsed},
    headers::{Family, Side},
    layout::{
        Address, Backend, Count, DirectKey, Endpoint, Interface, NextHop, Reply, Service, Slot, Traffic,
        capacity,
    },
    packet::{Frame, Packet},
    reason::{Reason, Verdict},
    word::Word,
};

const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;

#[map]
static SERVICES: HashMap<Endpoint, Service> = HashMap::with_max_entries(capacity::SERVICES, 0);
#[map]
static REPLIES: HashMap<Endpoint, Reply> = HashMap::with_max_entries(capacity::BACKENDS, 0);
#[map]
static ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(capacity::ADDRESSES, 0);
#[map]
static DIRECT: LpmTrie<DirectKey, u32> = LpmTrie::with_max_entries(capacity::DIRECT, BPF_F_NO_PREALLOC);
#[map]
static SLOTS: Array<Word> = Array::with_max_entries(capacity::SLOTS, BPF_F_MMAPABLE);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(capacity::BACKENDS, 0);
#[map]
static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(capacity::INTERFACES, 0);
#[map]
static TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(capacity::BACKENDS, 0);
#[map]
static REASONS: PerCpuArray<Count> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);

#[unsafe(no_mangle)]
static HASH_KEY: HashKey = [0; 10];

/// The user-space half is under the licence of the project; the kernel asks for the GPL of whatever calls
/// its helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// What becomes of a packet that has arrived, as the kernel wants to hear it. `conntrack` holds the flows that the
/// program remembers.
#[inline(always)]
pub fn run<C: Conntrack>(context: &XdpContext, conntrack: C) -> u32 {
    let tables = Maps { context: context.ctx, conntrack };
    match balance(&mut Arrived(context), &tables) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Transmit => xdp_action::XDP_TX,
        // SAFETY: a helper without preconditions.
        Verdict::Redirect(interface) => unsafe { bpf_redirect(interface, 0) as u32 },
    }
}

struct Arrived<'c>(&'c XdpContext);

impl Packet for Arrived<'_> {
    #[inline(always)]
    fn frame(&mut self) -> Frame<'_> {
        // SAFETY: the kernel lends these bytes to the program while it runs.
        unsafe { Frame::new(self.0.data(), self.0.data_end()) }
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }
}

/// On the stack the verifier wants eight bytes aligned to eight.
#[repr(C, align(8))]
struct Aligned<T>(T);

struct Maps<C> {
    context: *mut xdp_md,
    conntrack: C,
}

impl<C: Conntrack> Tables for Maps<C> {
    type Conntrack = C;

    #[inline(always)]
    fn conntrack(&self) -> &C {
        &self.conntrack
    }

    #[inline(always)]
    fn hash_key(&self) -> &HashKey {
        // The loader replaces the value, so the compiler must not know it.
        core::hint::black_box(&HASH_KEY)
    }

    #[inline(always)]
    fn service(&self, destination: &Endpoint) -> Option<&Service> {
        // SAFETY: elements are replaced as a whole; the memory of one that is removed stays readable for as
        // long as the program runs (RCU), at worst with the contents of a newer one.
        unsafe { SERVICES.get(destination) }
    }

    #[inline(always)]
    fn reply(&self, source: &Endpoint) -> Option<&Reply> {
        // SAFETY: as for `service`.
        unsafe { REPLIES.get(source) }
    }

    #[inline(always)]
    fn address_flags(&self, address: &Address) -> u32 {
        // SAFETY: as for `service`.
        unsafe { ADDRESSES.get(address) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn is_direct(&self, list: u32, client: &Address) -> bool {
        let key = Aligned(Key::new(DirectKey::BITS, DirectKey { list, client: client.0 }));
        DIRECT.get(&key.0).is_some()
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        SLOTS.get(index).map(|word| Slot::from_word(word.load()))
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        BACKENDS.get(id)
    }

    #[inline(always)]
    fn interface(&self, index: u32) -> Option<&Interface> {
        // SAFETY: as for `service`.
        unsafe { INTERFACES.get(index) }
    }

    #[inline(always)]
    fn route(&self, parsed: &Parsed, ingress: u32, source: &Address) -> Result<Option<NextHop>, Reason> {
        let mut lookup = question(parsed, ingress, source);
        let size = size_of::<FibLookup>() as i32;
        // SAFETY: the context is the program's own, and the size is that of the structure.
        let answer = unsafe { bpf_fib_lookup(self.context.cast(), &raw mut lookup.0, size, 0) };
        self.next_hop(answer as u32, &lookup.0, parsed)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without preconditions.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn count(&self, reason: Reason, bytes: u64) {
        #[cfg(feature = "log")]
        self.log(reason, bytes);
        if let Some(count) = REASONS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's own element.
            unsafe { (*count).add(bytes) }
        }
    }

    #[inline(always)]
    fn count_traffic(&self, backend: u32, side: Side, bytes: u64) {
        if let Some(traffic) = TRAFFIC.get_ptr_mut(backend) {
            // SAFETY: this CPU's own element.
            let traffic = unsafe { &mut *traffic };
            match side {
                Side::Destination => traffic.forward.add(bytes),
                Side::Source => traffic.reply.add(bytes),
            }
        }
    }

    #[inline(always)]
    fn count_repicked(&self, backend: u32) {
        if let Some(traffic) = TRAFFIC.get_ptr_mut(backend) {
            // SAFETY: this CPU's own element.
            unsafe { (*traffic).repicked += 1 }
        }
    }
}

impl<C: Conntrack> Maps<C> {
    /// Says what is dropped, for whoever debugs the data path.
    #[cfg(feature = "log")]
    #[inline(always)]
    fn log(&self, reason: Reason, bytes: u64) {
        if reason.action() == foobar_lb_ebpf::reason::Action::Drop {
            let context = XdpContext::new(self.context);
            aya_log_ebpf::debug!(&context, "dropped {} bytes: {}", bytes, reason.name());
        }
    }

    /// What the kernel's answer (BPF_FIB_LKUP_RET_*, linux/bpf.h) means for a reply.
    #[inline(always)]
    fn next_hop(&self, answer: u32, lookup: &FibLookup, parsed: &Parsed) -> Result<Option<NextHop>, Reason> {
        use aya_ebpf::bindings::{
            BPF_FIB_LKUP_RET_FRAG_NEEDED as FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED as FWD_DISABLED,
            BPF_FIB_LKUP_RET_NO_NEIGH as NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS as SUCCESS,
            BPF_FIB_LKUP_RET_UNSUPP_LWT as UNSUPP_LWT,
        };
        match answer {
            SUCCESS if self.interface(lookup.ifindex).is_some() => Ok(Some(NextHop {
                interface: lookup.ifindex,
                mtu: 0,
                source: lookup.smac,
                destination: lookup.dmac,
            })),
            SUCCESS | NO_NEIGH | UNSUPP_LWT => Ok(None),
            FRAG_NEEDED if parsed.ip.may_fragment => Ok(None),
            FRAG_NEEDED => Err(Reason::ReplyTooBig),
            FWD_DISABLED => Err(Reason::ForwardingOff),
            _ => Err(Reason::NoRoute),
        }
    }
}

#[inline(always)]
fn question(parsed: &Parsed, ingress: u32, source: &Address) -> Aligned<FibLookup> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    // SAFETY: all zeros are a valid value of the structure.
    let mut aligned: Aligned<FibLookup> = unsafe { core::mem::zeroed() };
    let lookup = &mut aligned.0;
    let destination = &parsed.flow.destination.address;
    match parsed.family {
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
    lookup.l4_protocol = parsed.ip.protocol;
    lookup.__bindgen_anon_1.tot_len = parsed.ip.length;
    lookup.ifindex = ingress;
    aligned
}

#[inline(always)]
fn last_word(address: &Address) -> u32 {
    let words: [u32; 4] = zerocopy::transmute!(*address);
    words[3]
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
