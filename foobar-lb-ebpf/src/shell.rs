//! The kernel shell of the data path: a [`Packet`] over the XDP context, [`Tables`] over the maps, and all maps but
//! those of remembered flows. These, and the program itself, are left to the two that share it, `main.rs` and
//! `full_tracking.rs`.

mod at_hand;
mod functions;
mod host;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{bpf_ktime_get_ns, bpf_redirect},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, lpm_trie::Key},
    programs::XdpContext,
};
use foobar_lb_ebpf::{
    balance::{self, Decision},
    complain::{self, Limit},
    flow::{HashKey, Kind},
    forward::{Hop, Question},
    headers::Side,
    layout::{
        Address, Backend, Count, DirectKey, Endpoint, Ends, FlowKey, FragmentKey, Interface, KNOWN_WORDS,
        Mapping, PrefixKey, Quic, RangeKey, Reply, ReplyKey, Routes, ServerId, Service, Slot, Sources, Tags,
        Traffic, Tunnel, VLAN_DEVICE, Vip, VlanKey, capacity, daemon_word, known_bit,
    },
    packet::Packet,
    reason::{Reason, Verdict},
    snat::{Added, Claim},
    tables::Tables,
    vlan,
    word::Word,
};

use crate::{arrived::Arrived, kernel::Flows};

const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_NOEXIST: u64 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;

#[map]
static SERVICES: HashMap<Endpoint, Service> = HashMap::with_max_entries(capacity::SERVICES, 0);
#[map]
static RANGES: LpmTrie<RangeKey, Service> = LpmTrie::with_max_entries(capacity::RANGES, BPF_F_NO_PREALLOC);
#[map]
static REPLIES: HashMap<Endpoint, Reply> = HashMap::with_max_entries(capacity::BACKENDS, 0);
#[map]
static REPLY_RANGES: LpmTrie<ReplyKey, Reply> =
    LpmTrie::with_max_entries(capacity::REPLY_RANGES, BPF_F_NO_PREALLOC);
#[map]
static ADDRESSES: HashMap<Address, Vip> = HashMap::with_max_entries(capacity::ADDRESSES, 0);
#[map]
static PREFIXES: LpmTrie<PrefixKey, Vip> = LpmTrie::with_max_entries(capacity::PREFIXES, BPF_F_NO_PREALLOC);
#[map]
static KNOWN: Array<Word> = Array::with_max_entries(KNOWN_WORDS, BPF_F_MMAPABLE);
#[map]
static DIRECT: LpmTrie<DirectKey, u32> = LpmTrie::with_max_entries(capacity::DIRECT, BPF_F_NO_PREALLOC);
#[map]
static SLOTS: Array<Word> = Array::with_max_entries(capacity::SLOTS, BPF_F_MMAPABLE);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(capacity::BACKENDS, 0);
#[map]
static TUNNELS: Array<Tunnel> = Array::with_max_entries(capacity::BACKENDS, 0);
#[map]
static SOURCES: Array<Sources> = Array::with_max_entries(capacity::BACKENDS, 0);
#[map]
static MAPPINGS: HashMap<FlowKey, Mapping> = HashMap::with_max_entries(capacity::MAPPINGS, BPF_F_NO_PREALLOC);
#[map]
static SERVER_IDS: HashMap<ServerId, u32> =
    HashMap::with_max_entries(capacity::SERVER_IDS, BPF_F_NO_PREALLOC);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, Ends> = LruHashMap::with_max_entries(capacity::FRAGMENTS, 0);
#[map]
static LIMIT: PerCpuArray<Limit> = PerCpuArray::with_max_entries(1, 0);
#[map]
static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(capacity::INTERFACES, 0);
#[map]
static VLANS: HashMap<VlanKey, u32> = HashMap::with_max_entries(capacity::INTERFACES, 0);
#[map]
static ROUTES: Array<Routes> = Array::with_max_entries(capacity::ROUTES, 0);
#[map]
static ROUTES_IN_USE: Array<Word> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(capacity::BACKENDS, 0);
#[map]
static REASONS: PerCpuArray<Count> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);
#[map]
static MEMBERS: Array<Word> = Array::with_max_entries(capacity::BACKENDS, BPF_F_MMAPABLE);
#[map]
static DAEMON: Array<Word> = Array::with_max_entries(daemon_word::COUNT, BPF_F_MMAPABLE);
#[map]
static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

#[unsafe(no_mangle)]
static HASH_KEY: HashKey = [0; size_of::<HashKey>() / size_of::<u32>()];

/// The user-space half is under the licence of the project; the kernel asks for the GPL of whatever calls
/// its helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// What becomes of a packet that has arrived, as the kernel wants to hear it.
#[inline(always)]
pub fn run(context: &XdpContext) -> u32 {
    let action = balance(context);
    if action == xdp_action::XDP_PASS {
        // SAFETY: nothing is left to be done here, and the kernel accepts no program that does not suit this one.
        unsafe { NEXT.tail_call(context, 0) };
    }
    action
}

/// [`balance::balance`] in pieces.
#[inline(always)]
fn balance(context: &XdpContext) -> u32 {
    let mut packet = Arrived::new(context);
    let (mut ingress, mut tags) = (packet.ingress(), 0);
    if vlan::is_tagged(&packet.frame()) {
        tags = read_tags(context.ctx);
        ingress = enter(context.ctx, tags);
        if ingress == 0 {
            return xdp_action::XDP_PASS;
        }
    }
    let mut decision = decide(context.ctx, ingress, 0);
    if decision as u32 == OPEN {
        decision = open(context.ctx, (decision >> 32) as u32);
        if decision as u32 == OPEN {
            decision = decide(context.ctx, ingress, 1);
        }
    }
    let (action, detail) = (decision as u32, (decision >> 32) as u32);
    match action {
        xdp_action::XDP_REDIRECT if tags == 0 && detail & VLAN_DEVICE == 0 => redirect(detail),
        xdp_action::XDP_DROP | xdp_action::XDP_PASS | xdp_action::XDP_TX if tags == 0 => action,
        _ => finish(context.ctx, decision, ingress, tags),
    }
}

/// Beside an XDP action: when the ICMP error has been made one of the other IP.
const TRANSLATE_ERROR: u32 = 1 << 28;
/// The same of any other packet.
const TRANSLATE: u32 = 1 << 29;
/// In the place of an XDP action: what has no ports is to be looked at.
const LOOK: u32 = 1 << 27;
/// In the place of an XDP action: the flow needs mappings to the backend above it, or has them now.
const OPEN: u32 = 1 << 30;
/// Beside a reason, in the place of an XDP action, with an MTU above it.
const COMPLAIN: u32 = 1 << 31;

/// The decision as one word.
#[inline(always)]
fn to_word(decision: &Decision) -> u64 {
    let with = |action: u32, detail: u32| u64::from(detail) << 32 | u64::from(action);
    match *decision {
        Decision::Verdict(verdict) => with(action(verdict), egress(verdict)),
        Decision::Translate(verdict, false) => with(TRANSLATE | action(verdict), egress(verdict)),
        Decision::Translate(verdict, true) => with(TRANSLATE_ERROR | action(verdict), egress(verdict)),
        Decision::Look => with(LOOK, 0),
        Decision::Open(backend) => with(OPEN, backend),
        Decision::Complain(reason, mtu) => with(COMPLAIN | reason as u32, mtu),
    }
}

#[inline(always)]
pub const fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Transmit => xdp_action::XDP_TX,
        Verdict::Redirect(_) => xdp_action::XDP_REDIRECT,
    }
}

/// The interface that it is redirected to; 0 for none.
#[inline(always)]
const fn egress(verdict: Verdict) -> u32 {
    if let Verdict::Redirect(interface) = verdict { interface } else { 0 }
}

#[inline(always)]
fn redirect(interface: u32) -> u32 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_redirect(interface, 0) as u32 }
}

// What follows is long, or rarely needed. As functions of their own, with C's calling convention and names for the
// linker, the verifier looks at each of them once for any arguments, and not once for every way that leads to a call;
// and they use the same 512 bytes of stack one after the other.

/// Does to a packet what else was decided, and gives it the tags that it leaves with.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn finish(context: *mut xdp_md, decision: u64, ingress: u32, tags: u64) -> u32 {
    let (action, detail) = (decision as u32, (decision >> 32) as u32);
    let action = match action {
        OPEN => xdp_action::XDP_DROP,
        LOOK => functions::pass_or_answer(context, ingress),
        _ if action & COMPLAIN != 0 => complain(context, ingress, action & !COMPLAIN, detail),
        _ if action & TRANSLATE != 0 => functions::translate(context, action & !TRANSLATE),
        _ if action & TRANSLATE_ERROR != 0 => functions::translate_error(context, action & !TRANSLATE_ERROR),
        _ => action,
    };
    leave(context, action, detail, tags)
}

/// [`vlan::read`]; 0 where that fails.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_tags(context: *mut xdp_md) -> u64 {
    let (tables, context) = (Maps { context }, XdpContext::new(context));
    let mut packet = Arrived::new(&context);
    match vlan::read(&packet.frame()) {
        Ok(tags) => tags.to_word(),
        Err(reason) => {
            tables.count(reason, packet.length().into());
            0
        }
    }
}

/// [`vlan::enter`]; 0 where that fails, and where there are no tags.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn enter(context: *mut xdp_md, tags: u64) -> u32 {
    let (tables, context, tags) = (Maps { context }, XdpContext::new(context), Tags::from_word(tags));
    if tags.is_none() {
        return 0;
    }
    let mut packet = Arrived::new(&context);
    match vlan::enter(&mut packet, &tables, tags) {
        Ok(ingress) => ingress,
        Err(reason) => {
            tables.count(reason, packet.length().into());
            0
        }
    }
}

/// [`vlan::leave`], of a verdict in the kernel's words; beside [`XDP_REDIRECT`](xdp_action::XDP_REDIRECT) the interface.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn leave(context: *mut xdp_md, action: u32, interface: u32, tags: u64) -> u32 {
    let (tables, context) = (Maps { context }, XdpContext::new(context));
    let verdict = match action {
        xdp_action::XDP_PASS => Verdict::Pass,
        xdp_action::XDP_TX => Verdict::Transmit,
        xdp_action::XDP_REDIRECT => Verdict::Redirect(interface),
        _ => Verdict::Drop,
    };
    let mut packet = Arrived::new(&context);
    let physical = packet.ingress();
    match vlan::leave(&mut packet, &tables, physical, Tags::from_word(tags), verdict) {
        Verdict::Redirect(interface) => redirect(interface),
        verdict => self::action(verdict),
    }
}

/// [`balance::decide`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn decide(context: *mut xdp_md, ingress: u32, is_open: u32) -> u64 {
    let (tables, context) = (Maps { context }, XdpContext::new(context));
    to_word(&balance::decide(&mut Arrived::by(ingress, &context), &tables, is_open != 0))
}

/// [`balance::open`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn open(context: *mut xdp_md, backend: u32) -> u64 {
    let (tables, context) = (Maps { context }, XdpContext::new(context));
    match balance::open(&mut Arrived::new(&context), &tables, backend) {
        None => OPEN.into(),
        Some(refusal) => to_word(&refusal),
    }
}

/// What senders are told of.
const COMPLAINTS: [Reason; 6] =
    [Reason::HopLimit, Reason::TooBig, Reason::Rejected, Reason::Unmapped, Reason::NoPort, Reason::NotMapped];

/// [`complain::complain`], about a packet that has not been changed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn complain(context: *mut xdp_md, ingress: u32, reason: u32, mtu: u32) -> u32 {
    let Some(reason) = COMPLAINTS.into_iter().find(|complaint| *complaint as u32 == reason) else {
        return xdp_action::XDP_DROP;
    };
    let (tables, context) = (Maps { context }, XdpContext::new(context));
    match complain::complain(&mut Arrived::by(ingress, &context), &tables, reason, mtu) {
        Verdict::Transmit => xdp_action::XDP_TX,
        _ => xdp_action::XDP_DROP,
    }
}

/// On the stack the verifier wants eight bytes aligned to eight.
#[repr(C, align(8))]
struct Aligned<T>(T);

struct Maps {
    context: *mut xdp_md,
}

#[inline(always)]
fn look_up_service(destination: &Endpoint, zero: u64) -> Option<&'static Service> {
    // SAFETY: elements are replaced as a whole; the memory of one that is removed stays readable for as
    // long as the program runs (RCU), at worst with the contents of a newer one.
    unsafe { SERVICES.get(plus(destination, zero)) }
}

/// An end whose port depends on a number, which is zero.
#[inline(always)]
fn plus(end: &Endpoint, zero: u64) -> Endpoint {
    let [upper, lower, port] = end.to_words();
    Endpoint::from_words([upper, lower, port ^ zero])
}

#[inline(always)]
fn look_up_reply(source: &Endpoint, zero: u64) -> Option<&'static Reply> {
    // SAFETY: as for a service.
    unsafe { REPLIES.get(plus(source, zero)) }
}

#[inline(always)]
fn look_up_reply_range(source: &Endpoint, zero: u64) -> Option<&'static Reply> {
    REPLY_RANGES.get(&Aligned(Key::new(ReplyKey::BITS, plus(source, zero).reply_key())).0)
}

impl Tables for Maps {
    type Conntrack = Flows;

    #[inline(always)]
    fn conntrack(&self) -> &Flows {
        &Flows
    }

    #[inline(always)]
    fn hash_key(&self) -> &HashKey {
        // The loader replaces the value, so the compiler must not know it.
        core::hint::black_box(&HASH_KEY)
    }

    #[inline(always)]
    fn service(&self, destination: &Endpoint) -> Option<&Service> {
        at_hand::service(destination)
    }

    #[inline(always)]
    fn range(&self, group: u32, destination: &Endpoint) -> Option<&Service> {
        if group == 0 {
            return None;
        }
        RANGES.get(&Aligned(Key::new(RangeKey::BITS, destination.range_key(group))).0)
    }

    #[inline(always)]
    fn reply(&self, source: &Endpoint) -> Option<&Reply> {
        at_hand::reply(source)
    }

    #[inline(always)]
    fn vip(&self, address: &Address) -> Vip {
        // SAFETY: as for a service.
        let vip = unsafe { ADDRESSES.get(address) };
        let prefix = || {
            let key = PrefixKey { pad: 0, address: address.0 };
            PREFIXES.get(&Aligned(Key::new(PrefixKey::BITS, key)).0)
        };
        vip.or_else(prefix).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn knows(&self, address: &Address) -> bool {
        let (index, bit) = known_bit(address);
        KNOWN.get(index).is_some_and(|word| word.load() & bit != 0)
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
    fn named(&self, server: &ServerId) -> Option<u32> {
        // SAFETY: as for a service.
        unsafe { SERVER_IDS.get(server) }.copied()
    }

    #[inline(always)]
    fn tunnel(&self, backend: u32) -> Option<&Tunnel> {
        TUNNELS.get(backend)
    }

    #[inline(always)]
    fn sources(&self, backend: u32) -> Option<&Sources> {
        SOURCES.get(backend)
    }

    #[inline(always)]
    fn mapping(&self, flow: &FlowKey) -> Option<&Mapping> {
        // SAFETY: as for a service; the words of its entry are loaded and stored atomically.
        unsafe { MAPPINGS.get(flow) }
    }

    #[inline(always)]
    fn add_mapping(&self, flow: &FlowKey, mapping: &Mapping) -> Added {
        const EEXIST: i32 = -17;
        match MAPPINGS.insert(flow, mapping, BPF_NOEXIST) {
            Ok(()) => Added::Yes,
            Err(EEXIST) => Added::Taken,
            Err(_) => Added::NoRoom,
        }
    }

    #[inline(always)]
    fn remove_mapping(&self, flow: &FlowKey) -> bool {
        MAPPINGS.remove(flow).is_ok()
    }

    #[inline(always)]
    fn host_has(&self, flow: &FlowKey) -> bool {
        host::has_socket(self.context, flow)
    }

    #[inline(always)]
    fn ports(&self, datagram: &FragmentKey) -> Option<Ends> {
        // SAFETY: as for a service.
        unsafe { FRAGMENTS.get(datagram) }.copied()
    }

    #[inline(always)]
    fn remember_ports(&self, datagram: &FragmentKey, ends: Ends) {
        // A map that evicts has room, and a fragment that is forgotten is counted when it is missed.
        FRAGMENTS.insert(datagram, ends, 0).ok();
    }

    #[inline(always)]
    fn vlan(&self, vlan: &VlanKey) -> Option<u32> {
        // SAFETY: as for a service.
        unsafe { VLANS.get(vlan) }.copied()
    }

    #[inline(always)]
    fn interface(&self, index: u32) -> Option<&Interface> {
        // SAFETY: as for a service.
        unsafe { INTERFACES.get(index) }
    }

    #[inline(always)]
    fn routes(&self) -> Option<&Routes> {
        ROUTES.get(ROUTES_IN_USE.get(0)?.load() as u32)
    }

    #[inline(always)]
    fn route(&self, question: &Question<'_>, hop: &mut Hop) -> Result<(), Reason> {
        host::find_way(self.context, question, hop)
    }

    #[inline(always)]
    fn find_known_way(&self, destination: &Address, length: u16, hop: &mut Hop) -> bool {
        functions::find_known_way(destination, length.into(), hop) != 0
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without preconditions.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn named_backend<P: Packet>(&self, _: &mut P, udp: u32, quic: Quic) -> u32 {
        functions::named_backend(self.context, udp, quic.to_word())
    }

    #[inline(always)]
    fn follow(&self, flow: &FlowKey, kind: Kind, slot: Slot, idle: u64) -> u32 {
        functions::follow(flow, kind.to_word(), slot.to_word(), idle)
    }

    #[inline(always)]
    fn renew(&self, flow: &FlowKey, kind: Kind, idle: u64) -> bool {
        functions::renew(flow, kind.to_word(), idle) != 0
    }

    #[inline(always)]
    fn is_free(&self, flow: &FlowKey, claim: Claim) -> bool {
        functions::is_free(self.context, flow, functions::choice(&claim), claim.hash) != 0
    }

    #[inline(always)]
    fn take(&self, flow: &FlowKey, claim: Claim) -> Added {
        match functions::take(flow, functions::choice(&claim), claim.mss, claim.hash) {
            code if code == Added::Yes as u32 => Added::Yes,
            code if code == Added::Taken as u32 => Added::Taken,
            _ => Added::NoRoom,
        }
    }

    #[inline(always)]
    fn may_complain(&self) -> bool {
        match LIMIT.get_ptr_mut(0) {
            // SAFETY: this CPU's own element.
            Some(limit) => unsafe { (*limit).admits(self.now()) },
            None => false,
        }
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

impl Maps {
    /// Says what is dropped, for whoever debugs the data path.
    #[cfg(feature = "log")]
    #[inline(always)]
    fn log(&self, reason: Reason, bytes: u64) {
        if reason.action() == foobar_lb_ebpf::reason::Action::Drop {
            let context = XdpContext::new(self.context);
            aya_log_ebpf::debug!(&context, "dropped {} bytes: {}", bytes, reason.name());
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
