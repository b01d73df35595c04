//! The maps of the programs that a process has loaded, as the kernel tells of them.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd, AsRawFd},
    process,
};

use anyhow::{Context, Result};
use aya::{
    maps::{Array, Map, MapData, MapInfo},
    programs::loaded_programs,
};
use foobar_lb_ebpf::layout::{Slot, name};

/// The slots of the program that this process has loaded.
pub struct OwnSlots(Array<MapData, u64>);

impl OwnSlots {
    /// This process has loaded one program.
    pub fn find() -> Result<Self> {
        let maps = of_process(process::id())?;
        let slots =
            maps.into_iter().find(|map| map.name == name::SLOTS).context("no map of slots is loaded")?;
        Ok(Self(Array::try_from(Map::Array(MapData::from_id(slots.id)?))?))
    }

    /// Reads slots one by one, by system calls, as they were not written.
    pub fn read(&self, first: u32, count: u32) -> Result<Vec<Slot>> {
        (first..first + count).map(|index| Ok(Slot::from_word(self.0.get(&index, 0)?))).collect()
    }
}

/// A map in the kernel.
pub struct HeldMap {
    pub id: u32,
    pub name: String,
    /// The memory that it takes.
    pub bytes: u64,
}

/// The maps that the programs of a process use, each once. The process itself may have closed them.
pub fn of_process(process: u32) -> Result<Vec<HeldMap>> {
    let programs = held_programs(process)?;
    let mut ids = BTreeSet::new();
    // One that has gone since is nobody's.
    for program in loaded_programs().filter_map(Result::ok).filter(|program| programs.contains(&program.id()))
    {
        ids.extend(program.map_ids()?.context("the kernel does not tell the maps of a program")?);
    }
    ids.into_iter().map(describe).collect()
}

/// The ids of the programs that it holds a file of.
fn held_programs(process: u32) -> Result<BTreeSet<u32>> {
    let directory = format!("/proc/{process}/fdinfo");
    let files = fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))?;
    // A file may be closed meanwhile.
    let texts = files.filter_map(|file| fs::read_to_string(file.ok()?.path()).ok());
    Ok(texts.filter_map(|text| number(&text, "prog_id:")?.try_into().ok()).collect())
}

fn describe(id: u32) -> Result<HeldMap> {
    let info = MapInfo::from_id(id)?;
    let name = info.name_as_str().context("the kernel does not tell the name of a map")?.to_owned();
    let map = info.fd()?;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd()))?;
    let bytes = number(&text, "memlock:").context("the kernel does not tell the memory of a map")?;
    Ok(HeldMap { id, name, bytes })
}

fn number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}
