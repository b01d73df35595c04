//! Programs that are in the kernel, whoever loaded them: which they are, and what the maps of one hold that decides about
//! flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use aya::{
    maps::{Array, IterableMap as _, Map, MapData, MapError, MapInfo},
    programs::{ProgramInfo, loaded_programs},
};
use foobar_lb_ebpf::{
    flow::HashKey,
    layout::{
        Address, Backend, DirectKey, Entry, FlowKey, Mapping, NO_ADDRESS, PrefixKey, RangeKey, Reply,
        ReplyKey, ServerId, Service, Slot, Tunnel, Vip, name,
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    Bpf, Bytes, ENDPOINT, Error, Tree, failed, read,
    read::{read_map, read_place, read_tree},
    words::Words,
};
use crate::image::{Image, Prefix};

/// The map of the constants of the program; it has but one.
const CONSTANTS: &str = ".rodata";

/// Whether a loaded program is the balancer's.
pub fn is_ours(id: u32) -> bool {
    let found = loaded_programs().flatten().find(|info| info.id() == id);
    found.is_some_and(|info| info.name_as_str() == Some(name::PROGRAM))
}

/// Name and id of a loaded program, for people.
pub fn describe_program(id: u32) -> String {
    let same = |info: &ProgramInfo| info.id() == id;
    let info = loaded_programs().flatten().find(same);
    let name = info.as_ref().and_then(|info| info.name_as_str()).filter(|name| !name.is_empty());
    format!("`{}` (id {id})", name.unwrap_or("?"))
}

impl Bpf {
    /// The kernel's id of the program.
    pub fn program_id(&mut self) -> Result<u32, Error> {
        let info = self.program().info();
        info.map(|info| info.id()).map_err(|source| look("the program".to_owned(), source))
    }
}

/// What the kernel goes by.
pub struct Running {
    /// Services with their tables, the backends that these name, and their replies; the rest is empty.
    pub image: Image,
    /// The key of all hashes.
    pub hash_key: HashKey,
}

/// What the maps of the program with this id hold.
///
/// # Errors
/// When there is no such program, it has other maps, or this process may not look at them (`CAP_SYS_ADMIN`).
pub fn read_running(id: u32) -> Result<Running, Error> {
    let maps = Maps::of_program(id)?;
    let constants: Array<MapData, [u8; size_of::<HashKey>()]> = maps.open(CONSTANTS)?;
    let services = maps.read::<ENDPOINT, { size_of::<Service>() }, _, Service>(name::SERVICES)?;
    let ranges =
        maps.read_tree::<{ size_of::<RangeKey>() }, { size_of::<Service>() }, _, Service>(name::RANGES)?;
    let tables = maps.read_tables(services.values().chain(ranges.values()))?;
    let mut image = Image {
        tables,
        services,
        ranges,
        server_ids: maps.read::<{ size_of::<ServerId>() }, { size_of::<u32>() }, _, _>(name::SERVER_IDS)?,
        direct: maps.read_tree::<{ size_of::<DirectKey>() }, { size_of::<u32>() }, _, _>(name::DIRECT)?,
        replies: maps.read::<ENDPOINT, { size_of::<Reply>() }, _, _>(name::REPLIES)?,
        reply_ranges: maps
            .read_tree::<{ size_of::<ReplyKey>() }, { size_of::<Reply>() }, _, _>(name::REPLY_RANGES)?,
        addresses: maps.read::<{ size_of::<Address>() }, { size_of::<Vip>() }, _, _>(name::ADDRESSES)?,
        prefixes: maps.read_tree::<{ size_of::<PrefixKey>() }, { size_of::<Vip>() }, _, _>(name::PREFIXES)?,
        ..Image::default()
    };
    maps.read_backends(&mut image)?;
    Ok(Running { image, hash_key: read(&constants.get(&0, 0).map_err(failed(CONSTANTS, "read"))?) })
}

/// How full a map of flows is that refuses more when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its name.
    pub map: &'static str,
    /// Entries that it has.
    pub entries: u32,
    /// Entries that it has room for.
    pub room: u32,
}

/// How full those maps of the program with this id are.
///
/// # Errors
/// As [`read_running`].
pub fn count_flows(id: u32) -> Result<Vec<Fill>, Error> {
    const KEY: usize = size_of::<FlowKey>();
    let maps = Maps::of_program(id)?;
    Ok(vec![
        maps.count::<KEY, { size_of::<Entry>() }>(name::ESTABLISHED)?,
        maps.count::<KEY, { size_of::<Entry>() }>(name::ADOPTED)?,
        maps.count::<KEY, { size_of::<Mapping>() }>(name::MAPPINGS)?,
    ])
}

/// Ids of the maps of a program, by their names.
struct Maps(BTreeMap<String, u32>);

impl Maps {
    fn of_program(id: u32) -> Result<Self, Error> {
        let program = || format!("the program with the id {id}");
        let find = || {
            for info in loaded_programs() {
                let info = info?;
                if info.id() == id {
                    return info.map_ids();
                }
            }
            Ok(None)
        };
        let ids = find().map_err(|error| look(program(), error))?;
        let ids = ids.ok_or_else(|| look(program(), io::Error::from(io::ErrorKind::NotFound)))?;
        let named = |id: u32| {
            let info = MapInfo::from_id(id)?;
            Ok::<_, MapError>((info.name_as_str().unwrap_or_default().to_owned(), id))
        };
        ids.into_iter().map(named).collect::<Result<_, _>>().map(Self).map_err(|error| look(program(), error))
    }

    fn open<T: TryFrom<Map, Error = MapError>>(&self, map: &'static str) -> Result<T, Error> {
        let id = self.0.get(map).copied().unwrap_or(0);
        let opened = MapData::from_id(id).and_then(Map::from_map_data).and_then(T::try_from);
        opened.map_err(failed(map, "open"))
    }

    fn read<const K: usize, const V: usize, A, B>(&self, map: &'static str) -> Result<BTreeMap<A, B>, Error>
    where
        A: Ord + FromBytes + IntoBytes + Immutable,
        B: FromBytes + IntoBytes + Immutable,
    {
        let opened: Bytes<K, V> = self.open(map)?;
        read_map(&opened, map, |key| read(&key))
    }

    fn read_tree<const K: usize, const V: usize, A, B>(
        &self,
        map: &'static str,
    ) -> Result<BTreeMap<Prefix<A>, B>, Error>
    where
        A: Ord + FromBytes + IntoBytes + Immutable,
        B: FromBytes + IntoBytes + Immutable,
    {
        let opened: Tree<K, V> = self.open(map)?;
        read_tree(&opened, map)
    }

    fn count<const K: usize, const V: usize>(&self, map: &'static str) -> Result<Fill, Error> {
        let opened: Bytes<K, V> = self.open(map)?;
        let room = opened.map().info().map_err(failed(map, "look at"))?.max_entries();
        // An iteration that stands on an entry that goes begins anew.
        let entries = opened.keys().take(room as usize).filter(Result::is_ok).count() as u32;
        Ok(Fill { map, entries, room })
    }

    /// Of tables that lie outside of the arena as much as is within.
    fn read_tables<'s>(
        &self,
        services: impl Iterator<Item = &'s Service>,
    ) -> Result<BTreeMap<u32, std::sync::Arc<[Slot]>>, Error> {
        let arena: Array<MapData, u64> = self.open(name::SLOTS)?;
        let count = arena.len();
        let arena = Words::of(&arena, name::SLOTS, count)?;
        let regions: BTreeSet<(u32, u32)> =
            services.map(|service| (service.first_slot, service.slots)).collect();
        let read = |(first, slots): (u32, u32)| {
            let region = first..first.saturating_add(slots).min(count);
            (first, region.map(|index| Slot::from_word(arena.load(index))).collect())
        };
        Ok(regions.into_iter().map(read).collect())
    }

    /// Those that somebody names.
    fn read_backends(&self, image: &mut Image) -> Result<(), Error> {
        let backends: Array<MapData, [u8; size_of::<Backend>()]> = self.open(name::BACKENDS)?;
        let tunnels: Array<MapData, [u8; size_of::<Tunnel>()]> = self.open(name::TUNNELS)?;
        let mut is_named = vec![false; backends.len() as usize];
        let by_slots = image.tables.values().flat_map(|table| table.iter());
        let by_slots = by_slots.flat_map(|slot| [slot.owner, slot.previous]);
        for id in by_slots.chain(image.server_ids.values().copied()) {
            if let Some(named) = is_named.get_mut(id as usize) {
                *named = true;
            }
        }
        for id in (0..backends.len()).filter(|id| is_named[*id as usize]) {
            let backend: Backend = read_place(&backends, id, name::BACKENDS)?;
            let tunnel: Tunnel = read_place(&tunnels, id, name::TUNNELS)?;
            image.backends.extend((backend.endpoint.address != NO_ADDRESS).then_some((id, backend)));
            image.tunnels.extend((tunnel.source != NO_ADDRESS).then_some((id, tunnel)));
        }
        Ok(())
    }
}

fn look(program: String, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Look { program, source: Box::new(source) }
}
