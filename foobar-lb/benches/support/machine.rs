//! What was measured on, of all benches, and the frame of what they write as JSON.

use std::{fmt, fs, path::Path, process::Command, thread::available_parallelism};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// CPU, kernel and commit.
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
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
            cores: available_parallelism().context("cannot tell the number of cores")?.get(),
            kernel: kernel.trim().to_owned(),
            commit: describe_commit().unwrap_or_else(|| "unknown".to_owned()),
        })
    }

    /// Writes a bench's results, an object, as JSON: beside its own keys `bench`, `commit` and `machine`, as in all files
    /// that `cargo xtask bench report` reads.
    pub fn write(&self, bench: &str, mut results: Value, file: &Path) -> Result<()> {
        let Self { cpu, cores, kernel, commit } = self;
        results["bench"] = bench.into();
        results["commit"] = commit.as_str().into();
        results["machine"] = json!({ "cpu": cpu, "cores": cores, "kernel": kernel });
        fs::write(file, format!("{results:#}\n")).with_context(|| format!("cannot write {}", file.display()))
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, kernel, commit } = self;
        write!(f, "{cpu}, {cores} cores, Linux {kernel}, commit {commit}")
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
