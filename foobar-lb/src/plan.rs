//! From one image to another: the steps, in an order that is safe at every prefix. First what others will
//! refer to, then who refers to it, and the other way round when taking away, so that a crash midway leaves no
//! service without a table and no slot without a backend.

use std::{collections::BTreeMap, sync::Arc};

use foobar_lb_ebpf::layout::{
    Address, Backend, DirectKey, Endpoint, Interface, Member, PrefixKey, RangeKey, Reply, ReplyKey, Routes,
    ServerId, Service, Slot, Sources, Tunnel, Vip, VlanKey,
};

use crate::{
    image::{Image, Prefix},
    known::Known,
};

/// One write to one map.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the map entry it names; the types say the rest")]
pub enum Step {
    PutInterface(u32, Interface),
    PutVlan(VlanKey, u32),
    SetRoutes(Box<Routes>),
    PutTunnel(u32, Tunnel),
    PutSources(u32, Sources),
    /// For the daemon that takes over. It goes before its backend, and out behind it.
    PutMember(u32, Member),
    PutBackend(u32, Backend),
    PutServerId(ServerId, u32),
    PutDirect(Prefix<DirectKey>, u32),
    PutReply(Endpoint, Reply),
    PutReplyRange(Prefix<ReplyKey>, Reply),
    /// Stores a run of slots of the table that begins at slot `table` of the arena, from its `place` on.
    StoreSlots {
        table: u32,
        place: u32,
        slots: Vec<Slot>,
    },
    /// Replaces a word of the set of known addresses.
    StoreKnown(u32, u64),
    PutService(Endpoint, Service),
    PutRange(Prefix<RangeKey>, Service),
    PutPrefix(Prefix<PrefixKey>, Vip),
    PutAddress(Address, Vip),
    RemoveAddress(Address),
    RemovePrefix(Prefix<PrefixKey>),
    RemoveRange(Prefix<RangeKey>),
    RemoveService(Endpoint),
    RemoveTable(u32),
    RemoveReply(Endpoint),
    RemoveReplyRange(Prefix<ReplyKey>),
    RemoveDirect(Prefix<DirectKey>),
    RemoveServerId(ServerId),
    RemoveBackend(u32),
    RemoveMember(u32),
    RemoveTunnel(u32),
    RemoveSources(u32),
    RemoveVlan(VlanKey),
    RemoveInterface(u32),
}

impl Step {
    /// Whether it is to a map of which CPUs keep copies.
    pub fn is_copied(&self) -> bool {
        matches!(
            self,
            Self::PutService(..)
                | Self::RemoveService(_)
                | Self::PutReply(..)
                | Self::RemoveReply(_)
                | Self::PutReplyRange(..)
                | Self::RemoveReplyRange(_)
        )
    }

    fn store_known((word, bits): (u32, u64)) -> Self {
        Self::StoreKnown(word, bits)
    }
}

/// The steps that lead from the current image to the wanted one; none where they are equal.
pub fn diff(current: &Image, wanted: &Image) -> Vec<Step> {
    let mut steps = Vec::new();
    let (before, after) = (Known::of(current), Known::of(wanted));
    let both = before.with(&after);
    steps.extend(before.changes(&both).map(Step::store_known));
    put(&mut steps, &current.interfaces, &wanted.interfaces, Step::PutInterface);
    put(&mut steps, &current.vlans, &wanted.vlans, Step::PutVlan);
    if current.routes != wanted.routes {
        steps.push(Step::SetRoutes(Box::new(wanted.routes)));
    }
    put(&mut steps, &current.tunnels, &wanted.tunnels, Step::PutTunnel);
    put(&mut steps, &current.sources, &wanted.sources, Step::PutSources);
    put(&mut steps, &current.members, &wanted.members, Step::PutMember);
    put(&mut steps, &current.backends, &wanted.backends, Step::PutBackend);
    put(&mut steps, &current.server_ids, &wanted.server_ids, Step::PutServerId);
    put(&mut steps, &current.direct, &wanted.direct, Step::PutDirect);
    put(&mut steps, &current.replies, &wanted.replies, Step::PutReply);
    put(&mut steps, &current.reply_ranges, &wanted.reply_ranges, Step::PutReplyRange);
    for (first, slots) in &wanted.tables {
        let before = current.tables.get(first);
        if !before.is_some_and(|before| Arc::ptr_eq(before, slots)) {
            store(&mut steps, *first, before.map_or(&[], |before| before), slots);
        }
    }
    put(&mut steps, &current.services, &wanted.services, Step::PutService);
    put(&mut steps, &current.ranges, &wanted.ranges, Step::PutRange);
    put(&mut steps, &current.prefixes, &wanted.prefixes, Step::PutPrefix);
    put(&mut steps, &current.addresses, &wanted.addresses, Step::PutAddress);

    remove(&mut steps, &current.services, &wanted.services, Step::RemoveService);
    remove(&mut steps, &current.addresses, &wanted.addresses, Step::RemoveAddress);
    remove(&mut steps, &current.prefixes, &wanted.prefixes, Step::RemovePrefix);
    remove(&mut steps, &current.ranges, &wanted.ranges, Step::RemoveRange);
    remove(&mut steps, &current.tables, &wanted.tables, Step::RemoveTable);
    remove(&mut steps, &current.reply_ranges, &wanted.reply_ranges, Step::RemoveReplyRange);
    remove(&mut steps, &current.replies, &wanted.replies, Step::RemoveReply);
    remove(&mut steps, &current.direct, &wanted.direct, Step::RemoveDirect);
    remove(&mut steps, &current.server_ids, &wanted.server_ids, Step::RemoveServerId);
    remove(&mut steps, &current.backends, &wanted.backends, Step::RemoveBackend);
    remove(&mut steps, &current.members, &wanted.members, Step::RemoveMember);
    remove(&mut steps, &current.tunnels, &wanted.tunnels, Step::RemoveTunnel);
    remove(&mut steps, &current.sources, &wanted.sources, Step::RemoveSources);
    remove(&mut steps, &current.vlans, &wanted.vlans, Step::RemoveVlan);
    remove(&mut steps, &current.interfaces, &wanted.interfaces, Step::RemoveInterface);
    steps.extend(both.changes(&after).map(Step::store_known));
    steps
}

fn put<K: Ord + Copy, V: PartialEq + Copy>(
    steps: &mut Vec<Step>,
    current: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    step: impl Fn(K, V) -> Step,
) {
    let changed = wanted.iter().filter(|(key, value)| current.get(key) != Some(value));
    steps.extend(changed.map(|(key, value)| step(*key, *value)));
}

fn remove<K: Ord + Copy, V>(
    steps: &mut Vec<Step>,
    current: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    step: impl Fn(K) -> Step,
) {
    steps.extend(current.keys().filter(|key| !wanted.contains_key(key)).map(|key| step(*key)));
}

/// One step for each run of slots that differ.
fn store(steps: &mut Vec<Step>, table: u32, before: &[Slot], after: &[Slot]) {
    let same = |place: usize| before.get(place) == Some(&after[place]);
    let mut place = 0;
    while place < after.len() {
        if same(place) {
            place += 1;
            continue;
        }
        let end = (place..after.len()).find(|place| same(*place)).unwrap_or(after.len());
        let slots = after[place..end].to_vec();
        steps.push(Step::StoreSlots { table, place: place as u32, slots });
        place = end;
    }
}

#[cfg(test)]
mod tests {
    use foobar_lb_ebpf::{
        layout::{NO_ADDRESS, NO_BACKEND, NextHop, Quic, TCP, mapped, mode},
        tables::Tables,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{
        image::range_prefixes,
        model::{Ports, Protocol},
        twin::Twin,
    };

    fn end(host: u8) -> Endpoint {
        Endpoint::new(mapped([10, 0, 0, host]), [0, 80], TCP)
    }

    fn backend(host: u8) -> Backend {
        let next_hop = NextHop { interface: u32::from(host), ..NextHop::default() };
        Backend { endpoint: end(host), flags: 1, next_hop, subnet: mapped([255; 4]) }
    }

    /// Images in which services have tables and tables have backends, as all that are rendered.
    fn images() -> impl Strategy<Value = Image> {
        let ports = prop::option::of((0u16..40, 0u16..40));
        let rest = (any::<u8>(), ports);
        let service = (prop::collection::vec(1u8..6, 1..4), prop::collection::vec(0usize..3, 4), rest);
        prop::collection::btree_map(0u8..4, service, 0..4).prop_map(|services| {
            let mut image = Image::default();
            for (number, (backends, owners, (idle, ports))) in services {
                let first = u32::from(number) * 4;
                let id = |host: u8| u32::from(number) * 10 + u32::from(host);
                let service = end(100 + number);
                for &host in &backends {
                    image.backends.insert(id(host), backend(host));
                    let reply = Reply { service, backend: id(host), direct: 0, mss: 0, pad: 0 };
                    image.replies.insert(end(host + number * 10), reply);
                    let server = ServerId { list: u32::from(number) + 1, length: 1, id: [host % 3; 16] };
                    image.server_ids.insert(server, id(host));
                }
                let owner = |owner: &usize| Slot::settled(id(backends[owner % backends.len()]));
                image.tables.insert(first, owners.iter().map(owner).collect());
                let idle = idle.into();
                let record = Service {
                    first_slot: first,
                    slots: 4,
                    idle,
                    mode: mode::NAT,
                    mss: 0,
                    affinity: NO_ADDRESS,
                    quic: Quic::NONE,
                };
                image.services.insert(service, record);
                let group = ports.map_or(0, |_| u32::from(number) + 1);
                image.addresses.insert(service.address, Vip { flags: 1, group });
                if let Some((a, b)) = ports {
                    let ports = Ports { first: a.min(b), last: a.max(b) };
                    let prefixes = range_prefixes(group, Protocol::Tcp, ports);
                    image.ranges.extend(prefixes.map(|prefix| (prefix, record)));
                }
            }
            image
        })
    }

    /// Every address that a packet is looked up by is known.
    fn are_known(known: &Known, image: &Image) -> bool {
        let needed = Known::of(image);
        needed.with(known) == *known
    }

    /// Every service has a whole table, and every owner exists.
    fn dangles(image: &Image) -> Option<String> {
        for service in image.services.values().chain(image.ranges.values()) {
            let Some(table) = image.tables.get(&service.first_slot) else {
                return Some(format!("{service:?} has no table"));
            };
            if table.len() < service.slots as usize {
                return Some(format!("{service:?} has a short table"));
            }
            let known = |slot: &&Slot| slot.owner == NO_BACKEND || image.backends.contains_key(&slot.owner);
            if let Some(slot) = table.iter().find(|slot| !known(slot)) {
                return Some(format!("{service:?} has {slot:?}"));
            }
        }
        if let Some(server) = image.server_ids.iter().find(|(_, id)| !image.backends.contains_key(id)) {
            return Some(format!("{server:?}"));
        }
        let known = |reply: &&Reply| image.backends.contains_key(&reply.backend);
        image.replies.values().find(|reply| !known(reply)).map(|reply| format!("{reply:?}"))
    }

    proptest! {
        #[test]
        fn reaches_any_image_from_any_other_and_no_prefix_dangles(from in images(), to in images()) {
            let (mut image, mut known) = (from.clone(), Known::of(&from));
            for step in diff(&from, &to) {
                image.apply(&step);
                if let Step::StoreKnown(word, bits) = step {
                    known.store(word, bits);
                }
                prop_assert!(are_known(&known, &image), "after {:?}", step);
                prop_assert_eq!(dangles(&image), None, "after {:?}", step);
            }
            prop_assert_eq!(&image, &to);
            prop_assert_eq!(known, Known::of(&to));
            prop_assert_eq!(diff(&image, &to), vec![]);
        }

        /// The longest prefix of old and new ones together is never another's than that of one of them.
        #[test]
        fn a_port_is_never_anothers_on_the_way(from in images(), to in images(), port in 0u16..41) {
            let owner = |image: &Image, number: u8| {
                let destination = Endpoint { port: port.to_be_bytes(), ..end(100 + number) };
                let twin = Twin::new(image.clone(), 1);
                twin.service_of(&destination).map(|service| service.first_slot)
            };
            let mut image = from.clone();
            for step in diff(&from, &to) {
                image.apply(&step);
                for number in 0..4 {
                    let found = owner(&image, number);
                    let ends = [owner(&from, number), owner(&to, number)];
                    prop_assert!(ends.contains(&found), "{:?} after {:?}", found, step);
                }
            }
        }
    }

    #[test]
    fn writes_only_the_runs_that_differ() {
        let slots = |owners: &[u32]| owners.iter().map(|owner| Slot::settled(*owner)).collect::<Vec<_>>();
        let mut from = Image::default();
        from.tables.insert(0, slots(&[1, 1, 1, 1, 1]).into());
        let mut to = from.clone();
        to.tables.insert(0, slots(&[1, 2, 2, 1, 3]).into());
        let run = |place, owners: &[u32]| Step::StoreSlots { table: 0, place, slots: slots(owners) };
        assert_eq!(diff(&from, &to), [run(1, &[2, 2]), run(4, &[3])]);
    }
}
