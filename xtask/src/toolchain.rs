//! The compiler and the linker of the BPF program: which of this machine's can build it, and the cargo command
//! with which they do. Shared by xtask and by the build script of foobar-lb, so it needs the standard library
//! only. Installing what is missing is left to [`setup`](crate::setup).

use std::env;
use std::env::consts::ARCH;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

/// The toolchain of rustup that may use unstable features.
pub const NIGHTLY: Toolchain = Toolchain { name: Some("nightly") };

/// The distribution's own compiler, under the name that setup tells rustup.
pub const LINKED: Toolchain = Toolchain { name: Some(LINKED_NAME) };
pub const LINKED_NAME: &str = "foobar-lb-bpf";

/// The compiler on the path, where there is no rustup.
pub const ON_PATH: Toolchain = Toolchain { name: None };

/// A Rust toolchain, by its name in rustup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Toolchain {
    name: Option<&'static str>,
}

impl Toolchain {
    /// The first toolchain that is complete: it has the source of `core`, which no one ships compiled for BPF,
    /// and a linker that reads what its compiler writes. Never asks the network.
    pub fn find() -> Option<Self> {
        let candidates: &[Self] = if has_rustup() { &[NIGHTLY, LINKED] } else { &[ON_PATH] };
        candidates.iter().copied().find(|toolchain| toolchain.has_core() && toolchain.has_linker())
    }

    /// Whether the source of `core` is installed.
    pub fn has_core(self) -> bool {
        let sysroot = self.ask("rustc", &["--print", "sysroot"]);
        sysroot.is_some_and(|path| Path::new(path.trim()).join("lib/rustlib/src/rust/library/core").is_dir())
    }

    /// Whether bpf-linker is installed and its LLVM is no older than the compiler's: LLVM reads the bitcode of
    /// earlier versions, not of later ones.
    pub fn has_linker(self) -> bool {
        // bpf-linker insists on these files before it hands the option to LLVM, and then touches neither.
        let words = ["--llvm-args=--version", "--output", "/dev/null", "/dev/null"];
        let linker = self.ask("bpf-linker", &words).and_then(|answer| read_llvm(&answer));
        linker.zip(self.llvm()).is_some_and(|(linker, compiler)| linker >= compiler)
    }

    /// The major version of the compiler's LLVM.
    pub fn llvm(self) -> Option<u32> {
        read_llvm(&self.ask("rustc", &["--version", "--verbose"])?)
    }

    /// `cargo SUBCOMMAND` for the XDP programs alone: optimised objects for BPF, with types for the kernel.
    /// To be run in a directory of the workspace.
    pub fn cargo(self, subcommand: &str) -> Command {
        // What cargo tells a build script or `cargo clippy` its children is about another compiler.
        let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| ARCH.to_owned());
        let arch = format!("--cfg=bpf_target_arch=\"{arch}\"");
        // v3 is Linux 5.1: arithmetic and jumps of 32 bits.
        // Else every copy and clearing of more than a word or two is a call of a loop over its bytes.
        let inline_copies = "-Clink-arg=--disable-expand-memcpy-in-order";
        let flags = [&arch, "-Ctarget-cpu=v3", "-Cdebuginfo=2", "-Clink-arg=--btf", inline_copies];
        let mut command = self.command("cargo");
        command
            .args([subcommand, "--package=foobar-lb-ebpf", "--bins", "--release"])
            .args(["--target=bpfel-unknown-none", "-Zbuild-std=core"])
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            // Lets a stable compiler build `core`; nightly may anyway.
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTC")
            .env_remove("RUSTC_WORKSPACE_WRAPPER");
        command
    }

    /// A program as the toolchain's own build would find it.
    pub fn command(self, program: &str) -> Command {
        let Some(name) = self.name else { return Command::new(program) };
        let mut command = Command::new("rustup");
        command.args(["run", name, program]);
        command
    }

    /// What a program of the toolchain prints; none if it is missing or fails.
    pub fn ask(self, program: &str, words: &[&str]) -> Option<String> {
        let output = self.command(program).args(words).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Whether rustup manages the compilers of this machine.
pub fn has_rustup() -> bool {
    let answer = Command::new("rustup").arg("--version").output();
    !answer.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Finds the major version in "LLVM version: 22.1.8" (rustc) or "Debian LLVM version 22.1.8" (LLVM itself).
fn read_llvm(answer: &str) -> Option<u32> {
    let (_, version) = answer.split_once("LLVM version")?;
    version.trim_start_matches([':', ' ']).split('.').next()?.parse().ok()
}
