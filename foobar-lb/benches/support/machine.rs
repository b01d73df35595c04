//! What was measured on, of all benches.

use std::{fmt, fs, process::Command};

use anyhow::{Context, Result};

/// CPU, kernel and commit.
pub struct Machine {
    pub cpu: String,
    pub kernel: String,
    pub commit: String,
}

impl Machine {
    /// This one.
    pub fn find() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let kernel =
            fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
        Ok(Self {
            cpu: model.map_or("unknown CPU", |(_, name)| name.trim()).to_owned(),
            kernel: kernel.trim().to_owned(),
            commit: describe_commit().unwrap_or_else(|| "unknown".to_owned()),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, Linux {}, commit {}", self.cpu, self.kernel, self.commit)
    }
}

/// The commit, and whether the files differ from it; none without git.
fn describe_commit() -> Option<String> {
    let mut git = Command::new("git");
    // As root in another's checkout git wants to be told that this is meant.
    git.args(["-c", "safe.directory=*", "describe", "--always", "--dirty", "--abbrev=12"]);
    let output = git.current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
