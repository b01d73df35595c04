//! A later version of foobar-lb, to upgrade to and to go back from: this one with another version number, an XDP program that
//! differs, and a counter more.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo::{build, cargo};
use crate::workspace;

/// A text of a file, and what the successor has in its place.
struct Change {
    file: &'static str,
    before: &'static str,
    after: &'static str,
}

const CHANGES: [Change; 3] = [
    Change {
        file: "Cargo.toml",
        before: concat!("version = \"", env!("CARGO_PKG_VERSION"), "\""),
        after: "version = \"99.0.0\"",
    },
    // Senders are told of half as many errors a second.
    Change {
        file: "foobar-lb-ebpf/src/complain.rs",
        before: "PRICE: u64 = 1_000_000;",
        after: "PRICE: u64 = 2_000_000;",
    },
    Change {
        file: "foobar-lb-ebpf/src/reason.rs",
        before: "=> Forward,\n}\n\n#[cfg(test)]",
        after: "=> Forward,\n    /// Never.\n    Later = \"later\" => Forward,\n}\n\n#[cfg(test)]",
    },
];

/// Builds it, and returns its executable. Its sources are next to what cargo builds.
///
/// # Errors
/// When a text that is to change is not there once, and when cargo fails.
pub fn make() -> Result<PathBuf> {
    let place = target_directory()?.join("successor");
    let source = place.join("source");
    for file in files()? {
        let contents = fs::read(workspace().join(&file)).with_context(|| format!("cannot read {file}"))?;
        write(&source.join(&file), &changed(&file, contents)?)?;
    }
    let manifest = format!("--manifest-path={}", source.join("Cargo.toml").display());
    // With the dependencies that are built already. The next build of this version puts its executable there again.
    let built = build(&["build", "--release", "--bins", "--package=foobar-lb", &manifest])?;
    let executable = place.join("foobar-lb");
    fs::copy(built.executable("foobar-lb")?, &executable)
        .with_context(|| format!("cannot write {}", executable.display()))?;
    Ok(executable)
}

fn changed(file: &str, contents: Vec<u8>) -> Result<Vec<u8>> {
    let Some(Change { before, after, .. }) = CHANGES.iter().find(|change| change.file == file) else {
        return Ok(contents);
    };
    let text = String::from_utf8(contents).with_context(|| format!("{file} is not UTF-8"))?;
    ensure!(text.matches(before).count() == 1, "{file} has {before:?} not once, which the successor changes");
    Ok(text.replace(before, after).into_bytes())
}

/// Leaves a file alone that is right, so that cargo builds no more than it must.
fn write(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == contents) {
        return Ok(());
    }
    let directory = path.parent().expect("it is below the place");
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(path, contents))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The files of the workspace, without what git ignores.
fn files() -> Result<Vec<String>> {
    let mut command = std::process::Command::new("git");
    command.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]).current_dir(workspace());
    let output = command.output().context("cannot run git")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    let names = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    let exists = |name: &String| workspace().join(name).is_file();
    Ok(names.split_terminator('\0').map(str::to_owned).filter(exists).collect())
}

fn target_directory() -> Result<PathBuf> {
    let mut command = cargo(&["metadata", "--no-deps", "--format-version=1"]);
    let output = command.output().context("cannot run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata says nothing")?;
    metadata["target_directory"].as_str().map(PathBuf::from).context("cargo names no target directory")
}
