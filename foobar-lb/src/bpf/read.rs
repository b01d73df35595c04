//! Reads from the maps what the control plane has written to them, as a daemon needs it that takes over.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    Pod,
    maps::{Array, HashMap, MapData},
};
use foobar_lb_ebpf::layout::{Backend, Member, NO_ADDRESS, Routes, Service, Slot, Sources, Tunnel, name};
use zerocopy::{FromBytes, Immutable, IntoBytes, transmute};

use super::{Bpf, Error, Tree, failed, read};
use crate::image::{Image, Prefix};

impl Bpf {
    /// What the maps hold. Backends of which nothing tells whose they are, and slots that no service has, are free memory.
    pub fn read(&self) -> Result<Image, Error> {
        let places = 0..self.members.count();
        let members: BTreeMap<u32, Member> =
            places.filter_map(|id| Some((id, Member::from_word(self.members.load(id))?))).collect();
        let services = read_map(&self.services, name::SERVICES, |key| transmute!(key))?;
        let ranges = read_tree(&self.ranges, name::RANGES)?;
        let mut image = Image {
            tables: self.read_tables(services.values().chain(ranges.values())),
            services,
            ranges,
            interfaces: read_map(&self.interfaces, name::INTERFACES, |index| index)?,
            vlans: read_numbers(&self.vlans, name::VLANS, |key| transmute!(key))?,
            routes: self.read_routes()?,
            server_ids: read_numbers(&self.server_ids, name::SERVER_IDS, |key| transmute!(key))?,
            direct: read_tree(&self.direct, name::DIRECT)?,
            replies: read_map(&self.replies, name::REPLIES, |key| transmute!(key))?,
            reply_ranges: read_tree(&self.reply_ranges, name::REPLY_RANGES)?,
            addresses: read_map(&self.addresses, name::ADDRESSES, |key| transmute!(key))?,
            prefixes: read_tree(&self.prefixes, name::PREFIXES)?,
            ..Image::default()
        };
        for id in members.keys().copied() {
            let backend: Backend = read_place(&self.backends, id, name::BACKENDS)?;
            let tunnel: Tunnel = read_place(&self.tunnels, id, name::TUNNELS)?;
            let sources: Sources = read_place(&self.sources, id, name::SOURCES)?;
            image.backends.extend((backend.endpoint.address != NO_ADDRESS).then_some((id, backend)));
            image.tunnels.extend((tunnel.source != NO_ADDRESS).then_some((id, tunnel)));
            image.sources.extend((sources.count != 0).then_some((id, sources)));
        }
        image.members = members;
        Ok(image)
    }

    fn read_tables<'s>(
        &self,
        services: impl Iterator<Item = &'s Service>,
    ) -> BTreeMap<u32, std::sync::Arc<[Slot]>> {
        let regions: BTreeSet<(u32, u32)> =
            services.map(|service| (service.first_slot, service.slots)).collect();
        let read = |(first, slots)| {
            let words = (first..first + slots).map(|index| self.slots.load(index));
            (first, words.map(Slot::from_word).collect())
        };
        regions.into_iter().map(read).collect()
    }

    fn read_routes(&self) -> Result<Routes, Error> {
        read_place(&self.routes, self.routes_in_use.load(0) as u32, name::ROUTES)
    }
}

pub(super) fn read_map<K: Pod, V: Pod + AsRef<[u8]>, A: Ord, B: FromBytes + IntoBytes + Immutable>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
    key_of: impl Fn(K) -> A,
) -> Result<BTreeMap<A, B>, Error> {
    let entry = |entry| {
        let (key, value): (K, V) = entry?;
        Ok((key_of(key), read(&value)))
    };
    map.iter().map(entry).collect::<Result<_, _>>().map_err(failed(name, "read"))
}

fn read_numbers<K: Pod, A: Ord>(
    map: &HashMap<MapData, K, u32>,
    name: &'static str,
    key_of: impl Fn(K) -> A,
) -> Result<BTreeMap<A, u32>, Error> {
    let entry = |entry| {
        let (key, number): (K, u32) = entry?;
        Ok((key_of(key), number))
    };
    map.iter().map(entry).collect::<Result<_, _>>().map_err(failed(name, "read"))
}

pub(super) fn read_tree<const K: usize, const V: usize, A, B>(
    tree: &Tree<K, V>,
    name: &'static str,
) -> Result<BTreeMap<Prefix<A>, B>, Error>
where
    A: Ord + FromBytes + IntoBytes + Immutable,
    B: FromBytes + IntoBytes + Immutable,
{
    let entry = |entry| {
        let (key, value): (aya::maps::lpm_trie::Key<[u8; K]>, [u8; V]) = entry?;
        Ok(((read(&key.data()), key.prefix_len()), read(&value)))
    };
    tree.iter().map(entry).collect::<Result<_, _>>().map_err(failed(name, "read"))
}

pub(super) fn read_place<V: Pod + AsRef<[u8]>, B: FromBytes + IntoBytes + Immutable>(
    array: &Array<MapData, V>,
    place: u32,
    name: &'static str,
) -> Result<B, Error> {
    array.get(&place, 0).map(|value| read(&value)).map_err(failed(name, "read"))
}
