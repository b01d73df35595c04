//! Debian's packages: installs them without starting the services they bring.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::show_and_run;
use crate::sandbox::root_command;

/// Debian asks this script before it starts or stops a service (invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The first words of our policy: they tell it from the administrator's own, which is left alone.
const OURS: &str = "# Made by foobar-lb's setup";

/// Installs packages, with whatever an interruption left to do. The services in them, Nginx and MySQL, are
/// wanted as programs only: started, they would take the ports of this machine.
const INSTALL: &str = r#"
    policy=$1 ours=$2; shift 2
    export DEBIAN_FRONTEND=noninteractive
    if [ ! -e "$policy" ] || grep -qF "$ours" "$policy"; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 130' INT TERM
        printf '#!/bin/sh\n%s, and removed by it: no service starts meanwhile.\nexit 101\n' "$ours" > "$policy"
        chmod 755 "$policy"
    fi
    dpkg --configure -a
    for package; do
        apt-cache show --no-all-versions "$package" > /dev/null 2>&1 || unknown=$package
    done
    install() { apt-get install -qq --no-install-recommends --no-remove "$@"; }
    if [ -z "$unknown" ] && install "$@"; then exit 0; fi
    apt-get update -qq && install "$@"
"#;

/// Installs packages; the lists of packages are fetched anew only if the old ones do not do. Installed
/// packages are never removed for it.
pub fn install(packages: &[&str]) -> Result<()> {
    println!("setup: $ apt-get install {}", packages.join(" "));
    let mut command = root_command("sh");
    command.args(["-c", INSTALL, "sh", POLICY, OURS]).args(packages);
    let status = command.status().context("cannot run sh")?;
    if !status.success() {
        bail!("Debian's packages {} could not be installed; see above why", packages.join(", "));
    }
    Ok(())
}

/// Whether an installation was killed before its end.
pub fn is_unfinished() -> bool {
    fs::read_to_string(POLICY).is_ok_and(|script| script.contains(OURS))
}

/// Whether the package is installed or can be, by new lists of packages if need be.
pub fn has_package(name: &str) -> Result<bool> {
    if is_listed(name)? {
        return Ok(true);
    }
    show_and_run(root_command("apt-get").args(["update", "-qq"]))?;
    is_listed(name)
}

fn is_listed(package: &str) -> Result<bool> {
    let mut command = Command::new("apt-cache");
    let output =
        command.args(["show", "--no-all-versions", package]).output().context("cannot run apt-cache")?;
    Ok(output.status.success())
}
