//! The configuration: a TOML file -> the validated model, or everything that is wrong with it and where.
//! What the values mean to the tables is left to the daemon; what the host lacks for them, to `attach`.
//!
//! `shape` is what the file looks like, `values` reads one value, `service`, `health`, `vip` and `daemon` read a
//! section, `forwarding` what depends on the mode of a service, `quic` its connection ids, `conflicts` looks across services, `report` shows a
//! problem under the line it is about. `notes` is about what is right and still takes work elsewhere.

mod conflicts;
mod daemon;
mod forwarding;
mod health;
mod notes;
mod quic;
mod report;
mod service;
mod shape;
mod values;
mod vip;

use std::{
    fs,
    io::{self, Read},
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use thiserror::Error;

pub(crate) use self::values::nearest;
pub use self::{
    daemon::{
        DEFAULT_BACKENDS, DEFAULT_FLOWS, DEFAULT_HALF_OPEN, DEFAULT_METRICS_LISTEN, DEFAULT_PIN_PATH,
        DEFAULT_SLOTS, DEFAULT_SOCKET, DEFAULT_STATE_PATH, DEFAULT_WATCH, Daemon,
    },
    forwarding::DEFAULT_MODE,
    health::{DEFAULT_FALL, DEFAULT_INTERVAL, DEFAULT_PATH, DEFAULT_RISE, DEFAULT_STATUS, DEFAULT_TIMEOUT},
    quic::DEFAULT_CONFIG_ROTATION,
    report::{Diagnostic, Diagnostics},
    service::{
        DEFAULT_ANNOUNCE, DEFAULT_DRAIN_TIME, DEFAULT_PROTOCOL, DEFAULT_REMEMBER, DEFAULT_TABLE_SIZE,
        DEFAULT_TCP_IDLE, DEFAULT_TCP_TRANSITION, DEFAULT_UDP_DRAIN, DEFAULT_UDP_IDLE,
        DEFAULT_UDP_TRANSITION, DEFAULT_WEIGHT, DEFAULT_WHEN_EMPTY, MAX_WEIGHT,
    },
    vip::{DEFAULT_PING, DEFAULT_UNMATCHED},
};
use self::{
    report::{Problem, Problems, Source},
    shape::File,
};
use crate::model::Service;

/// No configuration is larger than this, in bytes: a mistaken file is not to fill the memory.
pub const MAX_FILE: u64 = 16 << 20;

/// So many times a file is read that changes meanwhile.
const READINGS: usize = 3;

/// A configuration that can be put to work.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The daemon's own settings.
    pub daemon: Daemon,
    /// Where metrics and the dashboard are served, if they are.
    pub metrics_listen: Option<SocketAddr>,
    /// At least one; names and keys are unique and no VIP is a backend.
    pub services: Vec<Service>,
    /// What works but may not be what was meant.
    pub warnings: Diagnostics,
}

/// Why there is no configuration. The text names the file and, where there is one, the line and column.
#[derive(Debug, Error)]
pub enum Error {
    /// The file could not be read.
    #[error("{}: error: {source}: name a file that this user may read", path.display())]
    Unreadable {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is a pipe, a socket or a device.
    #[error(
        "{}: error: not a regular file, which can be read again: write the configuration into one", path.display()
    )]
    NotAFile {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// It was written to all the time.
    #[error("{}: error: it changes while it is read: try again when it is written", path.display())]
    Changing {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// The file is too large to be a configuration.
    #[error("{}: error: larger than {} MiB: name a configuration", path.display(), MAX_FILE >> 20)]
    TooLarge {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// The file is not text.
    #[error("{}:{line}:{column}: error: not UTF-8 text: save the file as UTF-8", path.display())]
    NotUtf8 {
        /// The file that was asked for.
        path: PathBuf,
        /// Line of the first byte that is not, from 1.
        line: usize,
        /// Its column in characters, from 1.
        column: usize,
    },
    /// The text is no valid configuration.
    #[error("{0}")]
    Invalid(Diagnostics),
}

/// Reads and validates the file at `path`, which can be read again.
pub fn load(path: &Path) -> Result<Config, Error> {
    parse(&read(path)?, &path.display().to_string())
}

/// The same where it may be a pipe: it need not be read again.
pub fn load_once(path: &Path) -> Result<Config, Error> {
    parse(&read_once(path)?, &path.display().to_string())
}

/// Reads the file at `path`, which is not validated but for being text.
pub fn read(path: &Path) -> Result<String, Error> {
    decode(path, read_bytes(path)?)
}

/// The same where it may be a pipe.
pub fn read_once(path: &Path) -> Result<String, Error> {
    if !fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) {
        return read(path);
    }
    let unreadable = |source| Error::Unreadable { path: path.into(), source };
    let pipe = fs::File::open(path).map_err(unreadable)?;
    decode(path, take(path, pipe)?)
}

fn decode(path: &Path, bytes: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let (line, column) = report::end_of(&String::from_utf8_lossy(valid));
        Error::NotUtf8 { path: path.into(), line, column }
    })
}

/// Validates `text`; `name` is what messages call it.
pub fn parse(text: &str, name: &str) -> Result<Config, Error> {
    let source = Source::new(name, text);
    let mut problems = Problems::new(&source);
    let config = shape::parse(text, &mut problems).and_then(|file| validate(file, &mut problems));
    let (errors, warnings) = problems.into_diagnostics();
    match config {
        Some((daemon, metrics_listen, services)) if errors.is_empty() => {
            Ok(Config { daemon, metrics_listen, services, warnings })
        }
        _ => Err(Error::Invalid(errors)),
    }
}

/// What a regular file holds at one moment: one that is being written while it is read is read again.
fn read_bytes(path: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |source| Error::Unreadable { path: path.into(), source };
    for _ in 0..READINGS {
        // A pipe would keep the opener waiting for a writer.
        let mut options = fs::OpenOptions::new();
        let file =
            options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(unreadable)?;
        let before = file.metadata().map_err(unreadable)?;
        if !before.is_file() && !before.is_dir() {
            return Err(Error::NotAFile { path: path.into() });
        }
        let bytes = take(path, &file)?;
        let after = file.metadata().map_err(unreadable)?;
        let moment = |of: &fs::Metadata| (of.len(), of.mtime(), of.mtime_nsec());
        if moment(&before) == moment(&after) {
            return Ok(bytes);
        }
    }
    Err(Error::Changing { path: path.into() })
}

fn take(path: &Path, file: impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::Unreadable { path: path.into(), source })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::TooLarge { path: path.into() });
    }
    Ok(bytes)
}

/// Everything there is to say about the file goes to `problems`; absent only if something did.
fn validate(file: File, problems: &mut Problems) -> Option<(Daemon, Option<SocketAddr>, Vec<Service>)> {
    let File { daemon, metrics, vip, service } = file;
    if service.is_empty() {
        problems.error(
            Problem::new(0..0, "there is no service")
                .help("add a `[[service]]` with a `name`, an `address` and a `[[service.backend]]`"),
        );
    }
    let capacity = daemon::Capacity::of(&daemon);
    let daemon = daemon::validate(daemon, problems);
    let metrics_listen = metrics.map(|metrics| daemon::validate_metrics(metrics, problems));
    let drafts: Vec<_> = service.into_iter().map(|service| service::draft(service, problems)).collect();
    if let Some(daemon) = &daemon {
        capacity.check(daemon, &drafts, problems);
    }
    conflicts::check(&drafts, problems);
    let vips = vip::read(vip, &drafts, problems)?;
    let daemon = daemon?;
    let services = drafts.into_iter().map(|draft| draft.build(&vips, &daemon));
    let services = services.collect::<Option<_>>()?;
    Some((daemon, metrics_listen.map_or(Some(None), |listen| listen.map(Some))?, services))
}
