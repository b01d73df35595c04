//! What attaching may change on a machine, to see that nothing of it stays.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use lab::Namespace;

const SYSCTL_TREES: [&str; 2] = ["/proc/sys/net/ipv4", "/proc/sys/net/ipv6"];

/// The sysctls of a namespace, its XDP programs and its routing rules.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    sysctls: BTreeMap<String, String>,
    xdp: Vec<String>,
    rules: String,
}

impl Traces {
    /// Takes note of how things are.
    pub fn of(namespace: &Namespace) -> Result<Self> {
        let read = || {
            let mut sysctls = BTreeMap::new();
            SYSCTL_TREES.iter().try_for_each(|tree| collect(Path::new(tree), &mut sysctls))?;
            std::io::Result::Ok(sysctls)
        };
        let sysctls = namespace.enter(read)??;
        let links = namespace.ip("-details link show")?;
        let xdp = links.lines().filter(|line| line.contains("xdp")).map(str::to_owned).collect();
        let rules = namespace.ip("rule show")? + &namespace.ip("-6 rule show")?;
        Ok(Self { sysctls, xdp, rules })
    }

    /// Whether an interface has an XDP program.
    pub fn has_xdp(&self) -> bool {
        !self.xdp.is_empty()
    }

    /// Everything must be as it was then.
    pub fn expect_no_change(&self, namespace: &Namespace) -> Result<()> {
        let now = Self::of(namespace)?;
        let changed: Vec<_> =
            now.sysctls.iter().filter(|(key, value)| self.sysctls.get(*key) != Some(value)).collect();
        ensure!(changed.is_empty(), "sysctls not restored: {changed:?}");
        ensure!(now.xdp == self.xdp, "XDP left behind: {:?}", now.xdp);
        ensure!(now.rules == self.rules, "routing rules left behind: {}", now.rules);
        Ok(())
    }
}

fn collect(directory: &Path, into: &mut BTreeMap<String, String>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, into)?;
        } else if let Ok(value) = fs::read_to_string(&path) {
            // Those that cannot be read (write-only triggers, secrets not set) cannot be compared.
            into.insert(path.display().to_string(), value);
        }
    }
    Ok(())
}
