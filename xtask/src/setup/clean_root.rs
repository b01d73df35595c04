//! A clean root directory of this machine's Debian with systemd, which the package is tried in. Made once by debootstrap,
//! from a mirror, and kept.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Tool, provide, show_and_run};
use crate::cargo::target_directory;
use crate::sandbox::root_command;

/// What the package needs of the machine that it is installed on, and the test of its tools.
const PACKAGES: &str = "--include=dbus,iproute2,nftables,procps,systemd-sysv";

/// Its path; made if it is not there.
pub fn clean_root() -> Result<PathBuf> {
    let release = fs::read_to_string("/etc/os-release").context("this system has no name")?;
    let codename = codename(&release).context("/etc/os-release has no VERSION_CODENAME")?;
    let directory = target_directory()?.join("clean-root");
    let root = directory.join(codename);
    if root.exists() {
        return Ok(root);
    }
    provide(&[Tool { program: "debootstrap", package: "debootstrap" }])?;
    // What an interruption has left does not count.
    let unfinished = directory.join("unfinished");
    show_and_run(root_command("rm").arg("-rf").arg(&unfinished))?;
    let mut debootstrap = root_command("debootstrap");
    show_and_run(debootstrap.args(["--variant=minbase", PACKAGES, codename]).arg(&unfinished))?;
    show_and_run(root_command("mv").arg(&unfinished).arg(&root))?;
    Ok(root)
}

fn codename(os_release: &str) -> Option<&str> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_debian_by_name() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(codename("ID=arch\n"), None);
    }
}
