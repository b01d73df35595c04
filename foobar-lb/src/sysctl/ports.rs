//! The ports that the kernel gives sockets which ask for none of their own. Where flows come from this machine's addresses,
//! they must have others: what a backend answers goes by address and port alone.

use std::{fs, ops::RangeInclusive, path::Path};

use super::{Error, Sysctls};

const RANGE: &str = "net/ipv4/ip_local_port_range";
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

impl Sysctls {
    /// The kernel's range, if sockets may get some of these ports.
    ///
    /// # Errors
    /// When a setting cannot be read.
    pub fn shared_ports(&self, ports: &RangeInclusive<u16>) -> Result<Option<RangeInclusive<u16>>, Error> {
        let given = self.read_ranges(RANGE)?;
        let reserved = self.read_ranges(RESERVED)?;
        let is_shared = |port: u16| {
            let is_in = |ranges: &[RangeInclusive<u16>]| ranges.iter().any(|range| range.contains(&port));
            is_in(&given) && !is_in(&reserved)
        };
        let shared = ports.clone().any(is_shared);
        Ok(given.into_iter().next().filter(|_| shared))
    }

    /// Ranges as `8080,9000-9100`, or as the two numbers of one.
    fn read_ranges(&self, path: &str) -> Result<Vec<RangeInclusive<u16>>, Error> {
        let path = self.root.join(path);
        let text = read(&path)?;
        let parts = text.trim().split(',').filter(|part| !part.is_empty());
        let range = |part: &str| {
            let mut ends = part.split(['-', '\t', ' ']).map(str::parse);
            let first = ends.next()?.ok()?;
            Some(first..=ends.next().map_or(Ok(first), |last| last).ok()?)
        };
        let ranges: Option<_> = parts.map(range).collect();
        ranges.ok_or_else(|| Error::NotANumber { path, text: text.trim().to_owned() })
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })
}
