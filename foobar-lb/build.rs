//! Builds the XDP programs that foobar-lb carries, `$OUT_DIR/foobar-lb-xdp` for the balancer and `foobar-lb-decap` for
//! backends, and those that benches and tests need beside them: `foobar-lb-full-tracking`, `foobar-lb-baseline` and
//! `foobar-lb-router`, to compare with, and `foobar-lb-generator`, to run before it.

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

use std::path::PathBuf;
use std::{env, fs};

use toolchain::Toolchain;

const PROGRAMS: [&str; 6] = [
    "foobar-lb-xdp",
    "foobar-lb-decap",
    "foobar-lb-full-tracking",
    "foobar-lb-baseline",
    "foobar-lb-router",
    "foobar-lb-generator",
];

const WHAT_THEY_ARE_MADE_OF: &[&str] =
    &["../foobar-lb-ebpf", "../xtask/src/toolchain.rs", "../Cargo.toml", "../Cargo.lock"];

fn main() {
    for path in WHAT_THEY_ARE_MADE_OF {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Err(error) = build_programs() {
        // Cargo shows one line for each of these, and fails.
        for line in error.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build_programs() -> Result<(), String> {
    let out_dir =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo tells every build script its directory"));
    // Builds, checks and lints each have an OUT_DIR; what is four levels above is theirs in common, and the same
    // program need not be built for each. Not that directory itself: the cargo outside holds its lock.
    let target_dir = out_dir.ancestors().nth(4).unwrap_or(&out_dir).join("bpf");
    let Some(toolchain) = Toolchain::find() else {
        return Err("the tools that build BPF programs are not installed: run `cargo xtask setup`".to_owned());
    };
    let mut cargo = toolchain.cargo("build");
    cargo.arg("--target-dir").arg(&target_dir).arg("--quiet");
    if env::var("PROFILE").as_deref() == Ok("debug") {
        cargo.arg("--features=log");
    }
    let output = cargo.output().map_err(|error| format!("cannot run {cargo:?}: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    for program in PROGRAMS {
        let object = target_dir.join("bpfel-unknown-none/release").join(program);
        fs::copy(&object, out_dir.join(program))
            .map_err(|error| format!("cannot copy {}: {error}", object.display()))?;
    }
    Ok(())
}
