//! What outlives the daemon: maps, program and links, pinned in bpffs.
//!
//! ```text
//! /sys/fs/bpf/foobar-lb/v1/maps/SERVICES ...   every map of `name::KEPT`
//!                         /program             pinned once the maps are filled: without it the rest is worth nothing
//!                         /links/7             by index of the interface; who removes it takes the program off
//! ```

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use aya::{
    maps::{Array, Map, MapData, MapInfo},
    programs::{
        Xdp,
        links::{FdLink, PinnedLink},
    },
};
use aya_obj::{Object, programs::XdpAttachType};
use foobar_lb_ebpf::layout::{VERSION, daemon_word, name};
use nix::{
    mount::{MsFlags, mount},
    net::if_::if_indextoname,
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{Capacities, Frames};
use crate::{start::chain, sweep::monotonic};

/// Where bpffs is on every machine that mounts it by itself.
const BPFFS: &str = "/sys/fs/bpf";

/// How long another daemon may take to end, and how often that is looked for.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// Why nothing can be pinned, or what is pinned cannot be taken over. What runs is not disturbed then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another file system is there.
    #[error(
        "{} is not on a bpffs: set `pin_path` of [daemon] to a directory on one, such as {BPFFS}/foobar-lb, or mount one \
         there: mount -t bpf bpf {}",
        path.display(), path.display()
    )]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// Another daemon has what is pinned there.
    #[error("another foobar-lb{holder} has what is pinned at {}: stop that one, or set another `pin_path`", path.display())]
    Held {
        /// The directory.
        path: PathBuf,
        /// Its process, if it is known.
        holder: String,
    },
    /// Another version of foobar-lb has pinned its maps there.
    #[error(
        "the data path that is pinned at {} has layout {found}, and this foobar-lb has layout {VERSION}, which cannot go \
         on from it: run the version that it came from, or take it off first, which breaks flows: foobar-lb detach",
        path.display()
    )]
    OtherLayout {
        /// The directory.
        path: PathBuf,
        /// Its layout.
        found: String,
    },
    /// A map is not as it would be made now.
    #[error(
        "the map {map} that is pinned at {} has room for {found}, and the configuration asks for {wanted}: undo that \
         change of [daemon], or take the pinned data path off first, which breaks flows: foobar-lb detach",
        path.display()
    )]
    OtherRoom {
        /// The map.
        map: &'static str,
        /// The directory.
        path: PathBuf,
        /// Its entries.
        found: u32,
        /// Those it would have.
        wanted: u32,
    },
    /// A map has other keys or values.
    #[error(
        "the map {map} that is pinned at {} is of another build, which this one cannot go on from: run that one, or take \
         the pinned data path off first, which breaks flows: foobar-lb detach",
        path.display()
    )]
    OtherMap {
        /// The map.
        map: &'static str,
        /// The directory.
        path: PathBuf,
    },
    /// A file of bpffs cannot be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The pins of one data path, held by this daemon alone. Dropped before [`Pins::confirm`], what was pinned since is gone,
/// unless it was taken over.
pub struct Pins {
    root: PathBuf,
    confirmed: bool,
    /// Held as long as this lives.
    _lock: File,
}

/// What is pinned while no daemon answers.
#[derive(Clone, Debug)]
pub struct Left {
    /// The interfaces that the data path is on.
    pub interfaces: Vec<String>,
    /// How long ago a daemon looked after it.
    pub heartbeat: Option<Duration>,
}

impl Pins {
    /// Makes the directory, mounting bpffs where the machine has none, and keeps other daemons from it.
    ///
    /// # Errors
    /// When another has it, or when what is pinned there is of another layout.
    pub fn hold(root: &Path) -> Result<Self, Error> {
        ensure_bpffs(root)?;
        fs::create_dir_all(root).map_err(failed("make", root))?;
        let lock = File::open(root).map_err(failed("open", root))?;
        wait_for(&lock).map_err(|error| match error {
            TryLockError::WouldBlock => Error::Held { path: root.to_owned(), holder: holder(root) },
            TryLockError::Error(source) => failed("lock", root)(source),
        })?;
        if let Some(found) = other_layout(root)? {
            return Err(Error::OtherLayout { path: root.to_owned(), found });
        }
        let confirmed = layout(root).join("program").exists();
        let pins = Self { root: root.to_owned(), confirmed, _lock: lock };
        if !confirmed {
            pins.clear()?;
        }
        Ok(pins)
    }

    /// From now on they outlive this process.
    pub fn confirm(&mut self) {
        self.confirmed = true;
    }

    /// Where they are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether there is a data path to take over.
    pub fn are_whole(&self) -> bool {
        self.program().exists()
    }

    /// Whether the program on an interface is there by one of the links.
    pub fn have_link(&self, interface: u32, program: u32) -> bool {
        let info = PinnedLink::from_pin(self.link(interface)).map(FdLink::from).and_then(|link| link.info());
        info.is_ok_and(|info| info.program_id() == program)
    }

    /// The interfaces that have links, by index.
    pub fn linked(&self) -> Result<Vec<u32>, Error> {
        linked(&layout(&self.root))
    }

    /// Removes everything, which takes the data path off all interfaces.
    pub fn clear(&self) -> Result<(), Error> {
        remove_all(&layout(&self.root))
    }

    /// Removes the link of an interface that is gone, or is to be attached anew.
    pub fn forget(&self, interface: u32) -> Result<(), Error> {
        let path = self.link(interface);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The seed of what is to be taken over.
    pub fn seed(&self) -> Option<u64> {
        daemon_word(&self.root, daemon_word::SEED).filter(|_| self.are_whole())
    }

    /// The frames that the program gets, if it is as it would be loaded now.
    pub fn frames(&self, seed: u64) -> Option<Frames> {
        let object = daemon_word(&self.root, daemon_word::OBJECT).filter(|_| self.are_whole())?;
        Frames::BOTH.into_iter().find(|frames| frames.made_of(seed) == object)
    }

    /// The program, if it is as it would be loaded now for these frames.
    pub(super) fn take_program(&self, frames: Frames, seed: u64) -> Option<Xdp> {
        let is_same = self.frames(seed) == Some(frames);
        is_same.then(|| Xdp::from_pin(self.program(), XdpAttachType::Interface).ok()).flatten()
    }

    /// How long ago a daemon looked after what is to be taken over.
    pub fn heartbeat(&self) -> Option<Duration> {
        look(&self.root)?.heartbeat
    }

    /// The maps that are taken over; they are as they would be made now.
    pub(super) fn kept(&self, object: &Object, capacities: Capacities) -> Result<Vec<&'static str>, Error> {
        let mut kept = Vec::new();
        if !self.are_whole() {
            return Ok(kept);
        }
        let asked = capacities.of_maps();
        for map in name::KEPT {
            let (Some(ours), Ok(info)) = (object.maps.get(map), MapInfo::from_pin(self.map(map))) else {
                continue;
            };
            let asked = asked.iter().find(|(name, _)| *name == map).map(|(_, entries)| *entries);
            let (found, wanted) = (info.max_entries(), asked.unwrap_or(ours.max_entries()));
            let path = || self.root.clone();
            if (info.key_size(), info.value_size()) != (ours.key_size(), ours.value_size()) {
                return Err(Error::OtherMap { map, path: path() });
            }
            // A build that knows of more reasons counts anew.
            if found == wanted {
                kept.push(map);
            } else if map != name::REASONS {
                return Err(Error::OtherRoom { map, path: path(), found, wanted });
            }
        }
        Ok(kept)
    }

    /// Pins something, in the place of what is there.
    pub(super) fn pin<T, E>(
        &self,
        path: &Path,
        pin: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<T, super::Error>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let directory = path.parent().expect("what is pinned is in a directory");
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
        // Names on bpffs have no dots.
        let name = path.file_name().expect("what is pinned has a name").to_string_lossy();
        let new = path.with_file_name(format!("{name}-new"));
        unless_missing(fs::remove_file(&new)).map_err(failed("remove", &new))?;
        let pinned = pin(&new);
        let pinned =
            pinned.map_err(|source| super::Error::Pin { path: path.to_owned(), source: Box::new(source) })?;
        // What is there stays until the new one takes its place, so that there is never none.
        fs::rename(&new, path).map_err(failed("rename", &new))?;
        Ok(pinned)
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        layout(&self.root).join("maps").join(name)
    }

    pub(super) fn program(&self) -> PathBuf {
        layout(&self.root).join("program")
    }

    pub(super) fn link(&self, interface: u32) -> PathBuf {
        layout(&self.root).join("links").join(interface.to_string())
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if self.confirmed {
            return;
        }
        if let Err(error) = self.clear() {
            tracing::warn!("{}", chain(&error));
        }
    }
}

/// What is pinned there, if anything is.
pub fn look(root: &Path) -> Option<Left> {
    let layout = layout(root);
    if !layout.join("program").exists() {
        return None;
    }
    let interfaces = linked(&layout).ok()?.into_iter().map(interface_name).collect();
    let heartbeat = daemon_word(root, daemon_word::HEARTBEAT).map(Duration::from_nanos);
    Some(Left { interfaces, heartbeat: heartbeat.and_then(|last| monotonic().checked_sub(last)) })
}

/// Takes what is pinned there off the named interfaces, or off all, while no daemon has it, of any layout. Returns the
/// interfaces, and whether nothing is left.
///
/// # Errors
/// When a daemon has it.
pub fn take_off(root: &Path, names: &[String]) -> Result<(Vec<String>, bool), Error> {
    let mut taken = Vec::new();
    let mut left = false;
    let Ok(directory) = File::open(root) else { return Ok((taken, true)) };
    if wait_for(&directory).is_err() {
        return Err(Error::Held { path: root.to_owned(), holder: holder(root) });
    }
    for layout in layouts(root)? {
        for index in linked(&layout)? {
            let name = interface_name(index);
            if !names.is_empty() && !names.contains(&name) {
                left = true;
                continue;
            }
            let path = layout.join("links").join(index.to_string());
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            taken.push(name);
        }
        if !left {
            remove_all(&layout)?;
        }
    }
    if !left {
        fs::remove_dir(root).map_err(failed("remove", root))?;
    }
    Ok((taken, !left))
}

/// One that was killed may hold it for a moment longer, by a command that it was about to run.
fn wait_for(lock: &File) -> Result<(), TryLockError> {
    let patience = Instant::now() + PATIENCE;
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < patience => sleep(PAUSE),
            other => return other,
        }
    }
}

fn layout(root: &Path) -> PathBuf {
    root.join(format!("v{VERSION}"))
}

/// The directories of all layouts.
fn layouts(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(root).map_err(failed("read", root))?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

/// Another layout than ours that has a program.
fn other_layout(root: &Path) -> Result<Option<String>, Error> {
    let others = layouts(root)?.into_iter().filter(|path| *path != layout(root));
    let mut whole = others.filter(|path| path.join("program").exists());
    let version = |path: PathBuf| path.file_name()?.to_str()?.strip_prefix('v').map(str::to_owned);
    Ok(whole.next().map(|path| version(path).unwrap_or_else(|| "?".to_owned())))
}

fn linked(layout: &Path) -> Result<Vec<u32>, Error> {
    let path = layout.join("links");
    match fs::read_dir(&path) {
        Ok(entries) => {
            let names = entries.flatten().map(|entry| entry.file_name());
            Ok(names.filter_map(|name| name.to_str()?.parse().ok()).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

/// Links go first: the program leaves the interfaces before its maps do.
fn remove_all(layout: &Path) -> Result<(), Error> {
    let part = |part| layout.join(part);
    let remove =
        |removed: io::Result<()>, path: &Path| unless_missing(removed).map_err(failed("remove", path));
    remove(fs::remove_dir_all(part("links")), &part("links"))?;
    remove(fs::remove_file(part("program")), &part("program"))?;
    remove(fs::remove_dir_all(part("maps")), &part("maps"))?;
    remove(fs::remove_dir(layout), layout)
}

fn unless_missing(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// A word that a daemon has left.
fn daemon_word(root: &Path, index: u32) -> Option<u64> {
    let map = MapData::from_pin(layout(root).join("maps").join(name::DAEMON)).ok()?;
    let words: Array<MapData, u64> = Map::Array(map).try_into().ok()?;
    words.get(&index, 0).ok().filter(|word| *word != 0)
}

/// `, process 4242 (foobar-lb),`
fn holder(root: &Path) -> String {
    let Some(process) = daemon_word(root, daemon_word::PROCESS) else { return String::new() };
    let command = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    format!(", process {process} ({}),", command.trim())
}

fn interface_name(index: u32) -> String {
    let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("interface {index}, which is gone"))
}

/// The directory may not be there yet; what is above it counts then.
fn ensure_bpffs(root: &Path) -> Result<(), Error> {
    let is_on_one = || root.ancestors().find(|path| path.exists()).is_some_and(is_bpffs);
    if !is_on_one() && root.starts_with(BPFFS) && !is_bpffs(Path::new(BPFFS)) {
        tracing::info!("mounting bpffs at {BPFFS}");
        let none: Option<&str> = None;
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
            .map_err(|errno| failed("mount bpffs at", Path::new(BPFFS))(errno.into()))?;
    }
    if is_on_one() { Ok(()) } else { Err(Error::NotBpffs { path: root.to_owned() }) }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}
