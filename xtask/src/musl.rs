//! The daemon as one file that needs no library of the machine it runs on: linked with musl. No compiler for that is
//! asked of the network: the standard library is built from its source, as `core` is for BPF.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::setup::{self, Tool};
use crate::toolchain::Toolchain;
use crate::workspace;

/// musl's own front end of the C compiler.
const LINKER: &str = "musl-gcc";
const LIBUNWIND: &str = "/usr/lib/llvm-16/lib/libunwind.a";

/// Builds it, and returns where it is.
pub fn build() -> Result<PathBuf> {
    setup::provide(&[
        Tool { program: LINKER, package: "musl-tools" },
        Tool { program: LIBUNWIND, package: "libunwind-16-dev" },
    ])?;
    let toolchain =
        Toolchain::find().context("no compiler that builds its own library; run `cargo xtask setup`")?;
    let target = format!("{ARCH}-unknown-linux-musl");
    let directory = cargo::target_directory()?;
    let libraries = provide_unwinding(&directory.join("musl"))?;
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Crelocation-model=static".to_owned(),
        // The objects that begin and end a program are musl's, not those that rustup brings with its target.
        "-Clink-self-contained=no".to_owned(),
        format!("-Lnative={}", libraries.display()),
    ];
    let variable = target.to_uppercase().replace('-', "_");
    let mut command = toolchain.command("cargo");
    command
        .args(["build", "--release", "--package=foobar-lb", "--bins", "-Zbuild-std=std,panic_unwind"])
        .args(["--target", &target])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env(format!("CARGO_TARGET_{variable}_LINKER"), LINKER)
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(workspace());
    run(&mut command)?;
    Ok(directory.join(target).join("release/foobar-lb"))
}

/// The library that unwinds the stack: LLVM's, because GCC's asks glibc where a function is. Debian's has been compiled for
/// glibc as well, but asks it for nothing that musl lacks, but for one function.
fn provide_unwinding(directory: &Path) -> Result<PathBuf> {
    const MISSING: &str = r#"
        #include <stdarg.h>
        #include <stdio.h>
        int __fprintf_chk(FILE *file, int level, const char *format, ...) {
            va_list arguments;
            va_start(arguments, format);
            int written = vfprintf(file, format, arguments);
            va_end(arguments);
            return written;
        }
    "#;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let library = directory.join("libunwind.a");
    fs::copy(LIBUNWIND, &library).with_context(|| format!("cannot copy {LIBUNWIND}"))?;
    let [source, object] = ["missing.c", "missing.o"].map(|name| directory.join(name));
    fs::write(&source, MISSING).with_context(|| format!("cannot write {}", source.display()))?;
    run(Command::new(LINKER).args(["-O2", "-c"]).arg(&source).arg("-o").arg(&object))?;
    run(Command::new("ar").arg("r").arg(&library).arg(&object))?;
    Ok(directory.to_owned())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed with {status}");
    Ok(())
}
