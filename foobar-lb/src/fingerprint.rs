//! Fingerprints of services: equal where two balancers, or what the daemon wants and what its maps hold, send every flow
//! that is not remembered to the same backend, in the same way. Backends count by their addresses, and nothing counts that
//! each balancer finds on its own: ids, the order of its tables, next hops, what fits on the way, outer sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::Hasher as _,
};

use foobar_lb_ebpf::{
    flow::HashKey,
    layout::{
        Address, Backend, DirectKey, Endpoint, PrefixKey, Quic, RangeKey, Reply, ReplyKey, SETTLED, ServerId,
        Service, Slot, TRACES,
    },
};
use siphasher::sip::SipHasher13;
use zerocopy::{Immutable, IntoBytes};

use crate::image::{Image, Prefix};

/// The same on every machine, and in every version that answers alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Those of all services that packets find, by the index of the first slot of their tables.
pub fn fingerprints(image: &Image, key: &HashKey) -> BTreeMap<u32, Fingerprint> {
    let names = names(image);
    let of_table = |(first, destinations): (u32, Destinations)| {
        let mut print = Print(SipHasher13::new());
        print.write(key);
        print.write_destinations(&destinations);
        print.write_slots(image.tables.get(&first).map_or(&[], |table| table), &names);
        print.write_backends(first, &destinations, image, &names);
        (first, Fingerprint(print.0.finish()))
    };
    destinations(image).into_iter().map(of_table).collect()
}

/// VIP and port, or more of them: how many bits of the address, and of protocol and port, count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Destination {
    vip: (Address, u32),
    protocol: u32,
    port: ([u8; 2], u32),
}

/// What leads to one table, and the service that it leads to.
type Destinations = BTreeMap<Destination, Service>;

fn destinations(image: &Image) -> BTreeMap<u32, Destinations> {
    let mut all = BTreeMap::<u32, Destinations>::new();
    for (end, service) in &image.services {
        let Endpoint { address, port, protocol, .. } = *end;
        let vip = (address, u128::BITS);
        let destination = Destination { vip, protocol: protocol.into(), port: (port, RangeKey::BITS) };
        all.entry(service.first_slot).or_default().insert(destination, *service);
    }
    let vips = vips(image);
    for ((RangeKey { group, protocol, port, .. }, bits), service) in &image.ranges {
        let vip = vips.get(group).copied().unwrap_or_default();
        let destination = Destination { vip, protocol: *protocol, port: (*port, *bits) };
        all.entry(service.first_slot).or_default().insert(destination, *service);
    }
    all
}

/// The VIP of each group: the widest that has it, as addresses of the balancer's own within have it too.
fn vips(image: &Image) -> BTreeMap<u32, (Address, u32)> {
    let addresses = image.addresses.iter().map(|(address, vip)| (vip.group, (*address, u128::BITS)));
    let prefixes = image.prefixes.iter().map(|((key, bits), vip)| {
        (vip.group, (Address(key.address), bits.saturating_sub(PrefixKey::PAD_BITS)))
    });
    let mut vips = BTreeMap::<u32, (Address, u32)>::new();
    for (group, vip) in addresses.chain(prefixes).filter(|(group, _)| *group != 0) {
        let widest = vips.entry(group).or_insert(vip);
        if vip.1 < widest.1 {
            *widest = vip;
        }
    }
    vips
}

/// A hash for each backend, by its id: of its address, whether it serves, and its tunnel.
fn names(image: &Image) -> Vec<u64> {
    let last = image.backends.keys().next_back().map_or(0, |id| *id as usize + 1);
    let mut names = vec![0; last];
    for (id, Backend { endpoint, flags, .. }) in &image.backends {
        let mut name = Print(SipHasher13::new());
        name.write(endpoint);
        name.write(flags);
        name.write(&image.tunnels.get(id).map_or([0; 2], |tunnel| tunnel.port));
        names[*id as usize] = name.0.finish();
    }
    names
}

fn name_of(id: u32, names: &[u64]) -> u64 {
    // One that is in no map is nobody's, but not the same as none.
    names.get(id as usize).copied().filter(|name| *name != 0).unwrap_or(id.into())
}

/// A fingerprint in the making.
struct Print(SipHasher13);

impl Print {
    fn write(&mut self, part: &(impl IntoBytes + Immutable + ?Sized)) {
        self.0.write(part.as_bytes());
    }

    fn write_destinations(&mut self, destinations: &Destinations) {
        for (Destination { vip, protocol, port }, service) in destinations {
            self.write(&vip.0);
            self.write(&[vip.1, *protocol, port.1]);
            self.write(&port.0);
            // Where its table is and what its list is called means nothing elsewhere, and what fits depends on the way.
            let quic = Quic { list: u32::from(service.quic.list != 0), ..service.quic };
            self.write(&Service { first_slot: 0, mss: 0, quic, ..*service });
        }
    }

    fn write_slots(&mut self, slots: &[Slot], names: &[u64]) {
        for Slot { owner, previous } in slots.iter().copied() {
            // Traces count for flows that are remembered, and so does an owner that follows itself.
            let moves = ![SETTLED, TRACES, owner].contains(&previous);
            let previous = if moves { name_of(previous, names).rotate_left(1) } else { 0 };
            self.0.write_u64(name_of(owner, names).wrapping_add(previous));
        }
    }

    /// What becomes of packets to and from the backends that slots and connection ids name.
    fn write_backends(&mut self, first: u32, destinations: &Destinations, image: &Image, names: &[u64]) {
        let mut is_named = vec![false; names.len()];
        let mut ids = Vec::new();
        // One that is in no map has nothing to tell.
        let mut name = |id: u32| {
            if is_named.get_mut(id as usize).is_some_and(|named| !std::mem::replace(named, true)) {
                ids.push(id);
            }
        };
        for slot in image.tables.get(&first).into_iter().flat_map(|table| table.iter()) {
            name(slot.owner);
            name(slot.previous);
        }
        let lists = destinations.values().map(|service| service.quic.list).filter(|list| *list != 0);
        for list in BTreeSet::from_iter(lists) {
            for (ServerId { length, id, .. }, backend) in image.server_ids.range(server_ids(list)) {
                self.write(length);
                self.write(id);
                self.0.write_u64(name_of(*backend, names));
                name(*backend);
            }
        }
        let end = |id: u32| Some((image.backends.get(&id)?.endpoint, id));
        let mut backends: Vec<(Endpoint, u32)> = ids.into_iter().filter_map(end).collect();
        backends.sort();
        for (end, id) in backends {
            self.0.write_u64(name_of(id, names));
            self.write_replies(replies(&end, id, image), image);
        }
    }

    fn write_replies<'i>(&mut self, replies: impl Iterator<Item = (&'i Reply, u32)>, image: &Image) {
        let mut lists = BTreeSet::new();
        for (reply, bits) in replies {
            self.write(&reply.service);
            self.0.write_u32(bits);
            lists.extend(Some(reply.direct).filter(|list| *list != 0));
        }
        for list in lists {
            for (key, bits) in image.direct.range(direct_clients(list)).map(|(prefix, _)| prefix) {
                self.write(&key.client);
                self.0.write_u32(*bits);
            }
        }
    }
}

/// What packets from a backend are rewritten to, and how many bits of their ports count.
fn replies<'i>(
    end: &Endpoint,
    id: u32,
    image: &'i Image,
) -> impl Iterator<Item = (&'i Reply, u32)> + use<'i> {
    let exact = image.replies.get(end).map(|reply| (reply, ReplyKey::BITS));
    let key = |port| ReplyKey { port, ..end.reply_key() };
    let ranges = image.reply_ranges.range((key([0; 2]), 0)..=(key([u8::MAX; 2]), u32::MAX));
    let ranges = ranges.map(|((_, bits), reply)| (reply, *bits));
    exact.into_iter().chain(ranges).filter(move |(reply, _)| reply.backend == id)
}

fn server_ids(list: u32) -> std::ops::RangeInclusive<ServerId> {
    ServerId { list, length: 0, id: [0; 16] }..=ServerId { list, length: u32::MAX, id: [u8::MAX; 16] }
}

fn direct_clients(list: u32) -> std::ops::RangeInclusive<Prefix<DirectKey>> {
    (DirectKey { list, client: [0; 16] }, 0)..=(DirectKey { list, client: [u8::MAX; 16] }, u32::MAX)
}
