//! The toolchain of the BPF program. Two routes lead there: rustup's nightly with the source of `core`, or
//! Debian's compiler, which ships that source and to which rustup is then told a name. Either way bpf-linker is
//! built against Debian's LLVM of the compiler's version.

use std::env;
use std::process::Command;

use anyhow::{Context, Result};

use super::{debian, show_and_run};
use crate::toolchain::{LINKED, LINKED_NAME, NIGHTLY, ON_PATH, Toolchain, has_rustup};

/// What [`install`] does, for people.
pub const PLAN: &str = "\
rustup component add rust-src clippy --toolchain=nightly   (where that fails: apt-get install rustc-web cargo-web rust-web-clippy rust-web-src)
  apt-get install llvm-N-dev   (of the compiler's LLVM version N)
  cargo install bpf-linker     (if there is none for that version)";

/// What to install where this file does not know how.
pub const REMEDY: &str = "\
rustup with `rustup toolchain install nightly --component rust-src,clippy`, and a bpf-linker whose LLVM is no older than
  that of the toolchain: https://github.com/aya-rs/bpf-linker";

/// How many seconds rustup may take for a component and for a toolchain, because a network may swallow what it
/// asks without an answer.
const COMPONENT_LIMIT: &str = "20";
const TOOLCHAIN_LIMIT: &str = "180";

/// The bpf-linker that is known to work, with every LLVM it can be built against.
const BPF_LINKER: &str = "bpf-linker@^0.13";

/// Whether the program can be built, and its source linted.
pub fn is_installed() -> bool {
    Toolchain::find().is_some_and(has_clippy)
}

/// Installs a toolchain that [`Toolchain::find`] then finds.
pub fn install() -> Result<()> {
    if provide_nightly() && has_linker_for(NIGHTLY)? {
        return install_linker(NIGHTLY);
    }
    println!(
        "setup: nightly is not to be had, or too new for Debian's LLVM: Debian's compiler takes its place"
    );
    install_linker(install_debian()?)
}

/// Nightly, with the source of `core`. Where it fails, rustup has said why.
fn provide_nightly() -> bool {
    let is_complete = || NIGHTLY.has_core() && has_clippy(NIGHTLY);
    if !is_complete() && has_rustup() {
        let (limit, words): (_, &[&str]) = match NIGHTLY.llvm() {
            Some(_) => (COMPONENT_LIMIT, &["component", "add", "rust-src", "clippy", "--toolchain=nightly"]),
            None => (
                TOOLCHAIN_LIMIT,
                &["toolchain", "install", "nightly", "--profile=minimal", "--component=rust-src,clippy"],
            ),
        };
        if let Err(error) = show_and_run(Command::new("timeout").args([limit, "rustup"]).args(words)) {
            println!("setup: {error:#}");
        }
    }
    is_complete()
}

fn has_clippy(toolchain: Toolchain) -> bool {
    toolchain.ask("cargo", &["clippy", "--version"]).is_some()
}

/// Whether there is a linker for the toolchain, or one can be built.
fn has_linker_for(toolchain: Toolchain) -> Result<bool> {
    Ok(toolchain.has_linker() || debian::has_package(&llvm_package(toolchain)?)?)
}

fn install_debian() -> Result<Toolchain> {
    debian::install(&["cargo-web", "rust-web-clippy", "rust-web-src", "rustc-web"])?;
    if !has_rustup() {
        return Ok(ON_PATH);
    }
    show_and_run(Command::new("rustup").args(["toolchain", "link", LINKED_NAME, "/usr"]))?;
    Ok(LINKED)
}

fn install_linker(toolchain: Toolchain) -> Result<()> {
    if toolchain.has_linker() {
        return Ok(());
    }
    let package = llvm_package(toolchain)?;
    debian::install(&[&package])?;
    let version = package.trim_end_matches("-dev");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "install",
        BPF_LINKER,
        "--force",
        "--locked",
        "--no-default-features",
        "--features",
        version,
    ]);
    // Its build script looks for llvm-config on the path.
    let path = env::var("PATH").context("PATH is not set")?;
    show_and_run(cargo.env("PATH", format!("/usr/lib/{version}/bin:{path}")))
}

/// Debian's package of the LLVM that the toolchain's compiler has in it; without "-dev" it is the name of its
/// directory, and of bpf-linker's feature.
fn llvm_package(toolchain: Toolchain) -> Result<String> {
    let version = toolchain.llvm().context("the Rust compiler does not tell its version of LLVM")?;
    Ok(format!("llvm-{version}-dev"))
}
