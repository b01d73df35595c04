//! Builds the XDP program that the daemon carries: `$OUT_DIR/foobar-lb-xdp`.

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

use std::path::Path;
use std::{env, fs};

use toolchain::Toolchain;

const WHAT_IT_IS_MADE_OF: &[&str] =
    &["../foobar-lb-ebpf", "../xtask/src/toolchain.rs", "../Cargo.toml", "../Cargo.lock"];

fn main() {
    for path in WHAT_IT_IS_MADE_OF {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Err(error) = build_program() {
        // Cargo shows one line for each of these, and fails.
        for line in error.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build_program() -> Result<(), String> {
    let out_dir = env::var("OUT_DIR").expect("cargo tells every build script its directory");
    let target_dir = Path::new(&out_dir).join("target");
    let Some(toolchain) = Toolchain::find() else {
        return Err("the tools that build BPF programs are not installed: run `cargo xtask setup`".to_owned());
    };
    let mut cargo = toolchain.cargo("build");
    // Target directories are locked while cargo runs, so this one must not be that of the cargo outside.
    cargo.arg("--target-dir").arg(&target_dir).arg("--quiet");
    if env::var("PROFILE").as_deref() == Ok("debug") {
        cargo.arg("--features=log");
    }
    let output = cargo.output().map_err(|error| format!("cannot run {cargo:?}: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let object = target_dir.join("bpfel-unknown-none/release/foobar-lb-xdp");
    fs::copy(&object, Path::new(&out_dir).join("foobar-lb-xdp"))
        .map_err(|error| format!("cannot copy {}: {error}", object.display()))?;
    Ok(())
}
