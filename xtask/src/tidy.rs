//! `cargo xtask tidy`: reads every Rust file of the workspace and checks the house rules on it. What the rules
//! are is in [`rules`], what they are told of a file in [`source`].

mod rules;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::workspace;
use rules::{Finding, Severity};
use source::Source;

/// Checks all files, prints what is against the rules, and fails if any of that is an error.
pub fn tidy() -> Result<ExitCode> {
    let workspace = workspace();
    let mut paths = Vec::new();
    collect_files(&workspace, &mut paths)?;
    paths.sort();
    let mut errors = 0;
    for path in &paths {
        let name = path.strip_prefix(&workspace).unwrap_or(path).to_string_lossy();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let source = Source::parse(&name, &text).with_context(|| format!("{name} is not Rust"))?;
        for Finding { severity, line, what } in rules::check(&source) {
            println!("{name}:{line}: {severity}: {what}");
            errors += u32::from(severity == Severity::Error);
        }
    }
    println!("tidy: {} files, {errors} errors", paths.len());
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All Rust files below a directory, but those that cargo made and hidden ones.
fn collect_files(directory: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect_files(&path, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
    Ok(())
}
