//! The seed of the flow hash and of the Maglev tables: from the configuration, else made once and kept, so that
//! a restart sends every flow where it went before.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Why there is no seed.
#[derive(Debug, Error)]
pub enum Error {
    /// The file could not be read or written.
    #[error("cannot use {}, which keeps the seed", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not hold a seed.
    #[error(
        "{} does not hold a seed of 16 hexadecimal digits; remove it to have a new one made, \
         which sends flows to other backends", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// The seed kept below `state_path`; made if there is none.
pub fn load_or_make(state_path: &Path) -> Result<u64, Error> {
    let path = state_path.join("seed");
    let failed = |source| Error::Io { path: path.clone(), source };
    match fs::read_to_string(&path) {
        Ok(text) => u64::from_str_radix(text.trim(), 16).map_err(|_| Error::Damaged { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let seed = rand::random();
            // Written aside and renamed: a crash leaves a whole file or none.
            let aside = path.with_extension("new");
            write_secret(&aside, &format!("{seed:016x}\n")).map_err(failed)?;
            fs::rename(&aside, &path).map_err(failed)?;
            Ok(seed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Who knows the seed can aim flows at one backend.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let seed = load_or_make(directory.path()).unwrap();
        assert_eq!(load_or_make(directory.path()).unwrap(), seed);
        let metadata = fs::metadata(directory.path().join("seed")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seed");
        fs::write(&path, "what").unwrap();
        assert!(matches!(load_or_make(directory.path()), Err(Error::Damaged { .. })));
        assert_eq!(fs::read_to_string(path).unwrap(), "what");
    }
}
