//! A bpffs for what the balancer of a namespace pins, which is unmounted at the end.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData};
use lab::Namespace;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mounted bpffs.
pub struct Bpffs(PathBuf);

impl Bpffs {
    /// Where the configuration of the namespace's balancer says that it is.
    pub fn mount(namespace: &Namespace) -> Result<Self> {
        let path = path(namespace);
        fs::create_dir_all(&path)?;
        let none: Option<&str> = None;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), none)
            .with_context(|| format!("cannot mount bpffs at {}", path.display()))?;
        Ok(Self(path))
    }

    /// What is pinned by the balancer.
    pub fn pins(&self) -> PathBuf {
        self.0.join("foobar-lb")
    }

    /// Replaces a word of a pinned array of words.
    pub fn store(&self, map: &Path, index: u32, word: u64) -> Result<()> {
        let map = MapData::from_pin(self.pins().join(map))?;
        let mut words: Array<MapData, u64> = Map::Array(map).try_into()?;
        Ok(words.set(index, word, 0)?)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

/// Where the bpffs of a namespace is, if it has one.
pub fn path(namespace: &Namespace) -> PathBuf {
    namespace.directory().join(format!("{}-bpffs", namespace.name()))
}
