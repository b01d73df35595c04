//! `cargo xtask package`: Debian's package of the daemon. What is in it is in `foobar-lb/Cargo.toml`; manual pages and
//! completions are made by the program itself.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::{self, cargo};
use crate::musl;

/// The shells, and what the file is called in which each looks for completions.
const SHELLS: [(&str, &str); 3] = [("bash", "foobar-lb"), ("fish", "foobar-lb.fish"), ("zsh", "_foobar-lb")];

/// Builds the package, or the static program alone, and prints where it is.
pub fn package(is_static: bool) -> Result<ExitCode> {
    let built = if is_static { musl::build()? } else { build()? };
    println!("{}", built.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the package.
pub fn build() -> Result<PathBuf> {
    provide_cargo_deb()?;
    let built = cargo::build(&["build", "--release", "--package=foobar-lb", "--bins"])?;
    // As `target/release/package` of the manifest, which cargo-deb knows to be there.
    let directory = cargo::target_directory()?.join("release/package");
    describe(built.executable("foobar-lb")?, &directory)?;
    let mut deb = cargo(&["deb", "--no-build", "--package=foobar-lb"]);
    deb.arg("--output").arg(directory.join("deb"));
    let output = deb.output().with_context(|| format!("cannot run {deb:?}"))?;
    let complaints = String::from_utf8_lossy(&output.stderr);
    eprint!("{complaints}");
    ensure!(output.status.success(), "no package: cargo deb failed with {}", output.status);
    let path = String::from_utf8(output.stdout).context("the path of the package is no text")?;
    Ok(PathBuf::from(path.trim()))
}

/// Writes manual pages and completions.
fn describe(program: &Path, directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot empty {}", directory.display()))?;
    }
    let completions = directory.join("completions");
    fs::create_dir_all(&completions).with_context(|| format!("cannot make {}", completions.display()))?;
    let manual = directory.join("man");
    run(Command::new(program).arg("manual").arg(&manual))?;
    run(Command::new("gzip").args(["--best", "--no-name", "--recursive"]).arg(&manual))?;
    for (shell, file) in SHELLS {
        let script = File::create(completions.join(file)).context("cannot write a script of completions")?;
        run(Command::new(program).args(["completions", shell]).stdout(script))?;
    }
    Ok(())
}

fn provide_cargo_deb() -> Result<()> {
    if cargo(&["deb", "--version"]).output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    let words = ["install", "--locked", "cargo-deb"];
    println!("package: cargo-deb is missing\npackage: $ cargo {}", words.join(" "));
    run(&mut cargo(&words))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
