//! Services and replies at hand: each CPU keeps copies of those that its packets have asked for. To compare one costs less
//! than a look-up in a hash map, which hashes the 24 bytes of an end and calls for it.

use core::hint::black_box;

use aya_ebpf::{
    macros::map,
    maps::{Array, PerCpuArray},
};
use foobar_lb_ebpf::{
    layout::{Endpoint, Reply, Service},
    word::Word,
};

use super::{BPF_F_MMAPABLE, look_up_reply, look_up_reply_range, look_up_service};

/// So many ends are at hand; one takes the place of another.
const PLACES: u32 = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 8;

#[map]
static GENERATION: Array<Word> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static SERVICES_AT_HAND: PerCpuArray<AtHand<Service>> = PerCpuArray::with_max_entries(PLACES, 0);
#[map]
static REPLIES_AT_HAND: PerCpuArray<AtHand<Reply>> = PerCpuArray::with_max_entries(PLACES, 0);

/// What was known of an end in a generation.
#[repr(C)]
struct AtHand<V> {
    generation: u64,
    end: Endpoint,
    value: V,
}

/// The service of clients' packets to this end.
#[inline(always)]
pub fn service(end: &Endpoint) -> Option<&'static Service> {
    find(&SERVICES_AT_HAND, end, || fetch_service(end) != 0)
}

/// What packets from this end are rewritten to.
#[inline(always)]
pub fn reply(end: &Endpoint) -> Option<&'static Reply> {
    find(&REPLIES_AT_HAND, end, || fetch_reply(end) != 0 || fetch_reply_range(end) != 0)
}

#[inline(always)]
fn find<V>(
    places: &PerCpuArray<AtHand<V>>,
    end: &Endpoint,
    fetch: impl FnOnce() -> bool,
) -> Option<&'static V> {
    let at_hand = places.get_ptr(place(end))?;
    // SAFETY: this CPU's own element, which nobody but `fetch` writes.
    let is_current = unsafe { (*at_hand).end.is(end) && (*at_hand).generation == generation() };
    if is_current || fetch() {
        // SAFETY: the same; until the packet is done it is not fetched into again, but by whoever holds no value.
        Some(unsafe { &(*at_hand).value })
    } else {
        None
    }
}

/// Counts the changes of what the copies are of.
#[inline(always)]
fn generation() -> u64 {
    GENERATION.get(0).map_or(0, Word::load)
}

#[inline(always)]
fn place(end: &Endpoint) -> u32 {
    let [_, address, port] = end.to_words();
    (((address >> 32) ^ port) as u32).wrapping_mul(0x9e37_79b1) >> (u32::BITS - PLACE_BITS)
}

/// Looks a service up and keeps a copy; 0 where there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fetch_service(end: *const Endpoint) -> u32 {
    // SAFETY: null, or what the caller lends.
    unsafe { end.as_ref() }.is_some_and(|end| fetch(&SERVICES_AT_HAND, end, look_up_service)).into()
}

/// The same of a reply.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fetch_reply(end: *const Endpoint) -> u32 {
    // SAFETY: null, or what the caller lends.
    unsafe { end.as_ref() }.is_some_and(|end| fetch(&REPLIES_AT_HAND, end, look_up_reply)).into()
}

/// The same of replies from a range of ports.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fetch_reply_range(end: *const Endpoint) -> u32 {
    // SAFETY: null, or what the caller lends.
    unsafe { end.as_ref() }.is_some_and(|end| fetch(&REPLIES_AT_HAND, end, look_up_reply_range)).into()
}

#[inline(always)]
fn fetch<V: Copy + 'static>(
    places: &PerCpuArray<AtHand<V>>,
    end: &Endpoint,
    look_up: impl Fn(&Endpoint, u64) -> Option<&'static V>,
) -> bool {
    let generation = generation();
    // A CPU that loads out of order does not look up before it knows the generation: the key depends on it.
    let zero = generation ^ black_box(generation);
    let (Some(value), Some(at_hand)) = (look_up(end, zero), places.get_ptr_mut(place(end))) else {
        return false;
    };
    // SAFETY: this CPU's own element; XDP runs with softirqs off, so nothing else of it runs on this CPU now.
    unsafe { at_hand.write(AtHand { generation, end: *end, value: *value }) };
    true
}
