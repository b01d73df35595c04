//! `cargo xtask build`: everything for release, and the size of what goes into the kernel.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::cargo::{self, Artifacts};

/// A BPF instruction, in bytes (RFC 9669, section 3).
const INSTRUCTION: u64 = 8;

/// Builds, and prints where things are and how long each function of the object is.
pub fn build() -> Result<ExitCode> {
    let built = release()?;
    for name in ["foobar-lb", "foobar-site"] {
        println!("{}", built.executable(name)?.display());
    }
    for object in ["foobar-lb-xdp", "foobar-lb-decap"] {
        let object = built.out_dir("foobar-lb")?.join(object);
        println!("{}", object.display());
        for (function, instructions) in functions(&object)? {
            println!("  {function}: {instructions} instructions");
        }
    }
    verify(built.executable("foobar-lb")?)
}

/// What this machine's kernel makes of them, which only root may ask.
fn verify(foobar_lb: &Path) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        println!("not root: the kernel is not asked to verify them (`foobar-lb verify`)");
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = Command::new(foobar_lb);
    let status = command.arg("verify").status().with_context(|| format!("cannot run {command:?}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the daemon, with the XDP program in it, and the site's application.
pub fn release() -> Result<Artifacts> {
    cargo::build(&["build", "--release", "--bins", "--package=foobar-lb", "--package=foobar-site"])
}

fn functions(object: &Path) -> Result<Vec<(String, u64)>> {
    // It is a part of binutils, and so on every machine that links Rust.
    let mut command = Command::new("readelf");
    command.args(["--symbols", "--wide"]).arg(object);
    let output = command.output().context("cannot run readelf, a part of binutils")?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(read_symbols(&String::from_utf8_lossy(&output.stdout)))
}

/// The names and lengths of the functions in readelf's table: number, value, size, type, binding, visibility,
/// section, name.
fn read_symbols(table: &str) -> Vec<(String, u64)> {
    let read_line = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let &[_, _, size, "FUNC", _, _, _, name] = columns.as_slice() else { return None };
        Some((name.to_owned(), size.parse::<u64>().ok()? / INSTRUCTION))
    };
    table.lines().filter_map(read_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_functions_of_an_object() {
        let table = "
Symbol table '.symtab' contains 3 entries:
   Num:    Value          Size Type    Bind   Vis      Ndx Name
     1: 0000000000000000     0 SECTION LOCAL  DEFAULT    3 xdp
     2: 0000000000000000  5312 FUNC    GLOBAL DEFAULT    3 foobar_lb
     3: 0000000000000000    32 OBJECT  GLOBAL DEFAULT    7 SERVICES";
        assert_eq!(read_symbols(table), [("foobar_lb".to_owned(), 664)]);
    }
}
