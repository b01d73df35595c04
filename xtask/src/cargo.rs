//! Runs cargo on the workspace, and reads from its messages what it built and where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace;

/// What a build made.
#[derive(Debug, Default)]
pub struct Artifacts {
    executables: BTreeMap<String, PathBuf>,
    out_dirs: BTreeMap<String, PathBuf>,
}

impl Artifacts {
    /// The executable of a target: a binary, a test or a bench.
    pub fn executable(&self, target: &str) -> Result<&Path> {
        let path = self.executables.get(target);
        path.map(PathBuf::as_path).with_context(|| format!("cargo built no executable of {target}"))
    }

    /// Where the build script of a package put its results.
    pub fn out_dir(&self, package: &str) -> Result<&Path> {
        let path = self.out_dirs.get(package);
        path.map(PathBuf::as_path).with_context(|| format!("cargo ran no build script of {package}"))
    }

    fn read(messages: &str) -> Result<Self> {
        let mut artifacts = Self::default();
        for line in messages.lines() {
            artifacts.add(&serde_json::from_str(line).context("cargo's message is not JSON")?);
        }
        Ok(artifacts)
    }

    fn add(&mut self, message: &Value) {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        if let Some(out_dir) = text(&message["out_dir"]) {
            let package = text(&message["package_id"]).unwrap_or_default();
            self.out_dirs.insert(package_name(&package).to_owned(), out_dir.into());
        }
        if let Some(executable) = text(&message["executable"]) {
            let target = text(&message["target"]["name"]).unwrap_or_default();
            self.executables.insert(target, executable.into());
        }
    }
}

/// `cargo WORDS` in the workspace.
pub fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(words).current_dir(workspace());
    command
}

/// Runs a cargo command that builds, and returns what it built. Cargo's progress and diagnostics are shown.
pub fn build(words: &[&str]) -> Result<Artifacts> {
    let mut command = cargo(words);
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("`cargo {}` failed", words.join(" "));
    }
    Artifacts::read(&String::from_utf8_lossy(&output.stdout))
}

/// Where cargo puts what it builds.
pub fn target_directory() -> Result<PathBuf> {
    let mut command = cargo(&["metadata", "--no-deps", "--format-version=1"]);
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo's metadata is not JSON")?;
    let path = metadata["target_directory"].as_str().context("cargo's metadata names no target directory")?;
    Ok(path.into())
}

/// The name in a package id: `path+file:///a/NAME#0.1.0`, or `path+file:///a/b#NAME@0.1.0` where they differ.
fn package_name(id: &str) -> &str {
    let (url, fragment) = id.rsplit_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, _)) => name,
        None => url.rsplit('/').next().unwrap_or(url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_cargo_built() {
        let messages = r#"
{"reason":"build-script-executed","package_id":"path+file:///w/foobar-lb#0.1.0","out_dir":"/t/out"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"program"},"executable":"/t/program-1"}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"lab"},"executable":null}
{"reason":"build-finished","success":true}"#;
        let artifacts = Artifacts::read(messages.trim()).unwrap();
        assert_eq!(artifacts.out_dir("foobar-lb").unwrap(), Path::new("/t/out"));
        assert_eq!(artifacts.executable("program").unwrap(), Path::new("/t/program-1"));
        assert!(artifacts.executable("lab").is_err());
    }

    #[test]
    fn reads_package_names() {
        assert_eq!(package_name("path+file:///w/foobar-lb#0.1.0"), "foobar-lb");
        assert_eq!(package_name("path+file:///w/site/app#foobar-site@0.1.0"), "foobar-site");
        assert_eq!(package_name("registry+https://github.com/rust-lang/crates.io-index#nix@0.31.0"), "nix");
    }
}
