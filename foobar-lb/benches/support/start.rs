//! How a bench starts, and what it ends with.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use nix::unistd::geteuid;

/// Runs the bench with this name, as root only.
pub fn start(bench: &str, run: impl FnOnce() -> Result<()>) -> ExitCode {
    match check_root(bench).and_then(|()| run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench {bench}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check_root(bench: &str) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "only root may load XDP programs and make network namespaces: use `cargo xtask bench {bench}`"
    );
    Ok(())
}
