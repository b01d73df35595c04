//! The file that keeps the operator's words while no daemon runs: one line with the version of its form and a checksum,
//! then JSON. It is replaced as a whole, so that a crash leaves the old one or the new one. When it is written is left to
//! the [`keeper`](crate::keeper).

use std::{
    fs::{self, File, OpenOptions},
    hash::Hasher,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher};
use thiserror::Error;

use crate::{
    model::Admin,
    state::{Origin, Said, Word, Words},
};

/// Goes up when an older foobar-lb would take the content for something else.
const VERSION: u32 = 1;
const NAME: &str = "words";

/// Why the words could not be read.
#[derive(Debug, Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{} is damaged ({why}) and set aside as {}", path.display(), aside.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: Fault,
        /// Where it is now.
        aside: PathBuf,
    },
    /// The file is not what was written, and stays where it is.
    #[error("{} is damaged ({why}) and cannot be set aside", path.display())]
    Stuck {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: Fault,
        /// What the system said.
        source: io::Error,
    },
}

/// What is wrong with the content of the file.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// Its first line has another form.
    #[error("its first line is not that of such a file")]
    Header,
    /// Another foobar-lb wrote it.
    #[error("its version is {0}, and this foobar-lb knows version {VERSION}")]
    Version(u32),
    /// Something has changed since it was written.
    #[error("its checksum does not match")]
    Checksum,
    /// What was written says nothing.
    #[error("its content is not understood: {0}")]
    Content(String),
}

/// The words kept below `state_path`; none if there is no file. A damaged file is set aside.
pub fn load(state_path: &Path) -> Result<Words, Error> {
    let path = state_path.join(NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Words::default()),
        Err(source) => return Err(Error::Read { path, source }),
    };
    decode(&bytes).map_err(|why| {
        let aside = path.with_extension("damaged");
        match fs::rename(&path, &aside) {
            Ok(()) => Error::Damaged { path, why, aside },
            Err(source) => Error::Stuck { path, why, source },
        }
    })
}

/// Keeps the words below `state_path`. When this returns they outlive a loss of power; if it fails, those from before do.
pub fn store(state_path: &Path, words: &Words) -> io::Result<()> {
    let path = state_path.join(NAME);
    let aside = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(&encode(words))?;
    file.sync_all()?;
    fs::rename(&aside, &path)?;
    File::open(state_path)?.sync_all()
}

fn encode(words: &Words) -> Vec<u8> {
    let body = serde_json::to_vec_pretty(&Content::from(words)).expect("names are text");
    [header(VERSION, &body).into_bytes(), body].concat()
}

fn decode(bytes: &[u8]) -> Result<Words, Fault> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(Fault::Header)? + 1;
    let (first, body) = bytes.split_at(end);
    let first = str::from_utf8(first).map_err(|_| Fault::Header)?;
    let version = first.strip_prefix("foobar-lb words ").and_then(|rest| rest.split_once(' '));
    let version = version.and_then(|(version, _)| version.parse().ok()).ok_or(Fault::Header)?;
    // As text: every bit of the line counts, also those that make no other number.
    if first != header(version, body) {
        return Err(Fault::Checksum);
    }
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    let content: Content = serde_json::from_slice(body).map_err(|error| Fault::Content(error.to_string()))?;
    Ok(content.into())
}

fn header(version: u32, body: &[u8]) -> String {
    let mut hasher = SipHasher::new();
    hasher.write_u32(version);
    hasher.write(body);
    format!("foobar-lb words {version} {:032x}\n", u128::from(hasher.finish128()))
}

/// What the file has, in its form.
#[derive(Serialize, Deserialize)]
struct Content {
    services: Vec<DisabledService>,
    backends: Vec<Backend>,
}

#[derive(Serialize, Deserialize)]
struct DisabledService {
    service: String,
    disabled: Source,
}

#[derive(Serialize, Deserialize)]
struct Backend {
    service: String,
    backend: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<AdminWord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<WeightWord>,
}

#[derive(Serialize, Deserialize)]
struct AdminWord {
    is: State,
    #[serde(flatten)]
    said: Source,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Draining,
    Disabled,
}

#[derive(Serialize, Deserialize)]
struct WeightWord {
    is: u16,
    #[serde(flatten)]
    said: Source,
}

#[derive(Serialize, Deserialize)]
struct Source {
    by: String,
    at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

impl From<&Words> for Content {
    fn from(words: &Words) -> Self {
        let services = words
            .services
            .iter()
            .map(|(service, origin)| DisabledService { service: service.clone(), disabled: origin.into() });
        let backends = words.backends.iter().map(|((service, backend), word)| Backend {
            service: service.clone(),
            backend: backend.clone(),
            admin: word.admin.as_ref().map(|said| AdminWord {
                is: if said.what == Admin::Disabled { State::Disabled } else { State::Draining },
                said: (&said.origin).into(),
            }),
            weight: word
                .weight
                .as_ref()
                .map(|said| WeightWord { is: said.what, said: (&said.origin).into() }),
        });
        Self { services: services.collect(), backends: backends.collect() }
    }
}

impl From<Content> for Words {
    fn from(content: Content) -> Self {
        let services = content.services.into_iter().map(|entry| (entry.service, entry.disabled.into()));
        let backends = content.backends.into_iter().map(|Backend { service, backend, admin, weight }| {
            let admin = admin.map(|AdminWord { is, said }| Said {
                what: match is {
                    State::Draining => Admin::Draining,
                    State::Disabled => Admin::Disabled,
                },
                origin: said.into(),
            });
            let weight = weight.map(|WeightWord { is, said }| Said { what: is, origin: said.into() });
            ((service, backend), Word { admin, weight })
        });
        Self { services: services.collect(), backends: backends.collect() }
    }
}

impl From<&Origin> for Source {
    fn from(Origin { by, at, until }: &Origin) -> Self {
        Self { by: by.clone(), at: *at, until: *until }
    }
}

impl From<Source> for Origin {
    fn from(Source { by, at, until }: Source) -> Self {
        Self { by, at, until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Words {
        let origin = |until| Origin {
            by: "alice (uid 1000)".to_owned(),
            at: "2026-01-02T03:04:05Z".parse().unwrap(),
            until,
        };
        let mut words = Words::default();
        words.services.insert("tcp 203.0.113.80:80".to_owned(), origin(None));
        let until = Some("2026-01-02T03:34:05Z".parse().unwrap());
        let admin = Some(Said { what: Admin::Draining, origin: origin(until) });
        let weight = Some(Said { what: 7, origin: origin(None) });
        let key = ("tcp 203.0.113.80:80".to_owned(), "10.0.1.11:80".to_owned());
        words.backends.insert(key, Word { admin, weight });
        words
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load(directory.path()).unwrap(), Words::default());
        for words in [words(), Words::default()] {
            store(directory.path(), &words).unwrap();
            assert_eq!(load(directory.path()).unwrap(), words);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_detected() {
        let written = encode(&words());
        assert_eq!(decode(&written), Ok(words()));
        for place in 0..written.len() {
            for bit in 0..8 {
                let mut flipped = written.clone();
                flipped[place] ^= 1 << bit;
                assert!(decode(&flipped).is_err(), "bit {bit} of byte {place}");
            }
            assert!(decode(&written[..place]).is_err(), "the first {place} bytes");
        }
        assert_eq!(decode(&[&written[..], b" "].concat()), Err(Fault::Checksum));
    }

    #[test]
    fn the_file_of_another_version_is_told_apart() {
        let body = b"what a later one writes";
        let written = [header(2, body).as_bytes(), body].concat();
        assert_eq!(decode(&written), Err(Fault::Version(2)));
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(NAME), "what").unwrap();
        let error = load(directory.path()).unwrap_err();
        assert!(matches!(error, Error::Damaged { why: Fault::Header, .. }), "{error}");
        assert_eq!(fs::read_to_string(directory.path().join("words.damaged")).unwrap(), "what");
        assert_eq!(load(directory.path()).unwrap(), Words::default());
    }

    #[test]
    fn what_a_crash_left_half_written_counts_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), &words()).unwrap();
        let aside = directory.path().join("words.new");
        let next = encode(&Words::default());
        for length in 0..next.len() {
            fs::write(&aside, &next[..length]).unwrap();
            assert_eq!(load(directory.path()).unwrap(), words());
        }
        store(directory.path(), &Words::default()).unwrap();
        assert_eq!(load(directory.path()).unwrap(), Words::default());
    }

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), &words()).unwrap();
        // Nothing can be written where a directory is.
        fs::create_dir(directory.path().join("words.new")).unwrap();
        store(directory.path(), &Words::default()).unwrap_err();
        assert_eq!(load(directory.path()).unwrap(), words());
    }
}
