//! The file that keeps the old values of changed settings across a crash.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use super::Error;

/// What was done to one setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub original: u32,
    pub set: u32,
}

/// The changes of one boot of the machine, by path: a reboot undoes them all.
#[derive(Debug)]
pub(super) struct Record {
    boot: String,
    changes: BTreeMap<String, Change>,
}

impl Record {
    /// Reads the file; one that is missing or of another boot holds no changes.
    pub fn load(saved: &Path, boot: &str) -> Result<Self, Error> {
        let text = match fs::read_to_string(saved) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => String::new(),
            result => result.map_err(|source| Error::Saved { path: saved.into(), source })?,
        };
        let mut record = Self { boot: boot.to_owned(), changes: BTreeMap::new() };
        let mut lines = text.lines().enumerate();
        if lines.next().is_none_or(|(_, first)| first != record.first_line()) {
            return Ok(record);
        }
        for (index, line) in lines {
            let (path, change) =
                parse(line).ok_or_else(|| Error::Damaged { path: saved.into(), line: index + 1 })?;
            record.changes.insert(path, change);
        }
        Ok(record)
    }

    /// Notes a change about to be made. An original noted before is kept, unless someone else changed the
    /// setting in between: then that is what to go back to.
    pub fn note(&mut self, path: &str, change: Change) {
        let noted = self.changes.entry(path.to_owned()).or_insert(change);
        if noted.set != change.original {
            noted.original = change.original;
        }
        noted.set = change.set;
    }

    pub fn changes(&self) -> impl Iterator<Item = (&str, Change)> {
        self.changes.iter().map(|(path, change)| (path.as_str(), *change))
    }

    /// Replaces the file at once and for good: a crash leaves the old one or the new one.
    pub fn store(&self, saved: &Path) -> io::Result<()> {
        let directory = saved.parent().filter(|path| *path != Path::new("")).unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let fresh = saved.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(self.to_string().as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, saved)?;
        File::open(directory)?.sync_all()
    }

    fn first_line(&self) -> String {
        format!("boot {}", self.boot)
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.first_line())?;
        self.changes
            .iter()
            .try_for_each(|(path, Change { original, set })| writeln!(f, "{path} {original} {set}"))
    }
}

/// Neither a setting's nor an interface's name holds white space.
fn parse(line: &str) -> Option<(String, Change)> {
    let mut words = line.split(' ');
    let path = words.next()?.to_owned();
    let change = Change { original: words.next()?.parse().ok()?, set: words.next()?.parse().ok()? };
    words.next().is_none().then_some((path, change))
}
