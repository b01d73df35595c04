//! Watches the file of the configuration, and asks for a reload when it has changed. The kernel tells of changes in its
//! directory, and in those that links on the way to it are in; because directories vanish, and not every file system tells,
//! it is looked at now and then in any case.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{api, daemon::Event};

/// For so long a file stays as it is before it counts as written.
const QUIET: Duration = Duration::from_millis(500);
/// How long nobody looks if the kernel tells of nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// As many links in a row as the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Asks for a reload at once, as the file may have changed since it was read, and then whenever it has.
pub async fn watch(file: PathBuf, events: mpsc::Sender<Event>) {
    info!(file = %file.display(), "the configuration is reloaded when it changes");
    let mut lookout = Lookout::new();
    let mut known = None;
    loop {
        lookout.follow(&file);
        let found = wait_until_written(&file, known.as_ref()).await;
        if known.as_ref() != Some(&found) {
            known = Some(found);
            if events.send(Event::Reload(api::Reload::default(), None)).await.is_err() {
                return;
            }
        }
        lookout.wait().await;
    }
}

/// What a file is, at the end of all links, without a look at what it holds: its device and inode, its size, and when it
/// was changed, in nanoseconds. None if it is not there.
type Stamp = Option<[i128; 4]>;

fn stamp(file: &Path) -> Stamp {
    let found = fs::metadata(file).ok()?;
    let changed = i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec());
    Some([found.dev().into(), found.ino().into(), found.size().into(), changed])
}

/// The file as it is once it stays as it is.
async fn wait_until_written(file: &Path, known: Option<&Stamp>) -> Stamp {
    let mut found = stamp(file);
    while known != Some(&found) {
        sleep(QUIET).await;
        let before = std::mem::replace(&mut found, stamp(file));
        if before == found {
            break;
        }
    }
    found
}

/// Directories that the kernel tells of.
struct Lookout {
    changed: Arc<Notify>,
    /// It watches as long as it is held.
    watcher: Option<RecommendedWatcher>,
    /// Each by its path, device and inode: another may take its place.
    directories: BTreeSet<(PathBuf, u64, u64)>,
}

impl Lookout {
    fn new() -> Self {
        Self { changed: Arc::default(), watcher: None, directories: BTreeSet::new() }
    }

    /// Watches the directories that the file is in now.
    fn follow(&mut self, file: &Path) {
        let directories = directories(file);
        if directories == self.directories {
            return;
        }
        self.watcher = self
            .start(&directories)
            .inspect_err(|error| {
                warn!("{} is looked at every {PATIENCE:?} only: {error}", file.display());
            })
            .ok();
        self.directories = directories;
    }

    fn start(&self, directories: &BTreeSet<(PathBuf, u64, u64)>) -> notify::Result<RecommendedWatcher> {
        let changed = self.changed.clone();
        let mut watcher = notify::recommended_watcher(move |_| changed.notify_one())?;
        for (directory, ..) in directories {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    }

    /// Waits for a change, or until it is time to look in any case.
    async fn wait(&self) {
        if timeout(PATIENCE, self.changed.notified()).await.is_ok() {
            debug!("something has changed near the configuration");
        }
    }
}

/// The directory of the file, and that of each file that it is a link to.
fn directories(file: &Path) -> BTreeSet<(PathBuf, u64, u64)> {
    let mut directories = BTreeSet::new();
    let mut path = file.to_owned();
    for _ in 0..MAX_LINKS {
        let Some(directory) = path.parent().map(Path::to_owned) else { break };
        if let Ok(found) = fs::metadata(&directory) {
            directories.insert((directory.clone(), found.dev(), found.ino()));
        }
        match fs::read_link(&path) {
            Ok(target) => path = directory.join(target),
            Err(_) => break,
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use std::{fs::rename, os::unix::fs::symlink};

    use tempfile::TempDir;

    use super::*;

    /// Longer than what is not told by the kernel takes to be noticed.
    const DEADLINE: Duration = Duration::from_secs(20);

    struct Watched {
        directory: TempDir,
        file: PathBuf,
        events: mpsc::Receiver<Event>,
    }

    impl Watched {
        /// A file in a directory of its own, watched, and the first reload asked for.
        async fn new() -> Self {
            let directory = TempDir::new().unwrap();
            let file = directory.path().join("etc/foobar-lb.toml");
            fs::create_dir(file.parent().unwrap()).unwrap();
            fs::write(&file, "first").unwrap();
            let (sender, events) = mpsc::channel(16);
            tokio::spawn(watch(file.clone(), sender));
            let mut watched = Self { directory, file, events };
            watched.expect_reload().await;
            watched
        }

        async fn expect_reload(&mut self) {
            let event = timeout(DEADLINE, self.events.recv()).await.expect("a reload in time");
            assert!(matches!(event, Some(Event::Reload(_, None))), "{event:?}");
        }

        fn beside(&self, name: &str) -> PathBuf {
            self.file.with_file_name(name)
        }
    }

    #[tokio::test]
    async fn a_file_that_is_written_in_place_is_reloaded_once() {
        let mut watched = Watched::new().await;
        fs::write(&watched.file, "half").unwrap();
        fs::write(watched.beside("another"), "nothing").unwrap();
        fs::write(&watched.file, "whole, now").unwrap();
        watched.expect_reload().await;
        // Whatever would be asked for beyond would be so before the next change is.
        fs::write(watched.beside("another"), "nothing again").unwrap();
        assert!(timeout(PATIENCE + 2 * QUIET, watched.events.recv()).await.is_err(), "a reload too many");
    }

    #[tokio::test]
    async fn a_file_that_takes_its_place_is_reloaded() {
        let mut watched = Watched::new().await;
        for text in ["second", "third"] {
            fs::write(watched.beside(".foobar-lb.toml.swp"), text).unwrap();
            rename(watched.beside(".foobar-lb.toml.swp"), &watched.file).unwrap();
            watched.expect_reload().await;
        }
    }

    /// As Kubernetes does: the file is a link by way of a link to a directory, which is replaced.
    #[tokio::test]
    async fn a_link_that_leads_elsewhere_is_followed() {
        let mut watched = Watched::new().await;
        for version in ["v1", "v2", "v3"] {
            let versioned = watched.beside(version);
            fs::create_dir(&versioned).unwrap();
            fs::write(versioned.join("foobar-lb.toml"), version).unwrap();
            symlink(version, watched.beside("..data_tmp")).unwrap();
            rename(watched.beside("..data_tmp"), watched.beside("..data")).unwrap();
            if version == "v1" {
                symlink("..data/foobar-lb.toml", watched.beside("link")).unwrap();
                rename(watched.beside("link"), &watched.file).unwrap();
            }
            watched.expect_reload().await;
        }
        fs::write(watched.beside("v3").join("foobar-lb.toml"), "written where the link leads").unwrap();
        watched.expect_reload().await;
    }

    #[tokio::test]
    async fn a_directory_that_vanishes_and_returns_is_found_again() {
        let mut watched = Watched::new().await;
        let (here, away) = (watched.directory.path().join("etc"), watched.directory.path().join("away"));
        rename(&here, &away).unwrap();
        // That the file is gone is for the reload to tell.
        watched.expect_reload().await;
        fs::create_dir(&here).unwrap();
        fs::write(&watched.file, "in another directory").unwrap();
        watched.expect_reload().await;
        fs::write(&watched.file, "and watched there").unwrap();
        watched.expect_reload().await;
    }
}
