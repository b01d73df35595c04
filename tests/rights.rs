//! Who may read and who may change: the kernel decides at the one socket, and nobody changes anything at the other.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::support::SOON;
use crate::support::balancer::{Balancer, Ending, Files, binary};
use crate::support::config::tcp_before;
use crate::support::echo::start_pair;
use crate::support::network::{Arms, Network};

/// A user and a group of no rights, and a group that every Debian has.
const NOBODY: u32 = 65534;
const GROUP: (&str, u32) = ("daemon", 1);

#[test]
fn others_read_and_only_the_group_changes() -> Result<()> {
    let network = Network::new("rights", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let reading = network.lab.directory().join("read-only.sock");
    let rights = format!("socket_group = \"{}\"\nread_only_socket = \"{}\"\n", GROUP.0, reading.display());
    let mut balancer = Balancer::serve(&network, &(rights + &tcp_before(&[(1, 1), (2, 1)], &[])))?;
    let program = for_everybody(&network)?;
    let drain = ["backend", "drain", "tcp-v4", "web1"];

    let stranger = |socket: &Path, words: &[&str]| run_as(&program, NOBODY, NOBODY, socket, words);
    stranger(&reading, &["status"])?.expect(0, &["tcp-v4", "web1"])?;
    stranger(&reading, &drain)?.expect(1, &["at this socket nothing can be changed"])?;
    stranger(balancer.socket(), &["status"])?.expect(1, &["not permitted", "socket_group"])?;
    // Nor root, who may use the other one.
    run_as(&program, 0, 0, &reading, &drain)?.expect(1, &["at this socket nothing can be changed"])?;
    let untouched = balancer.status()?.backends("web1").all(|backend| backend.admin == "enabled");
    ensure!(untouched, "somebody changed what he may not");

    let member = run_as(&program, NOBODY, GROUP.1, balancer.socket(), &drain)?;
    member.expect(0, &["web1 of tcp-v4: draining"])?;
    let said = balancer.status()?.service("tcp-v4")?.backend("web1")?.admin_said.clone();
    ensure!(said.as_ref().is_some_and(|said| said.by == "nobody (uid 65534)"), "{said:?}");
    let line = balancer.process.wait_for_line("asked for POST /v1/backends", SOON)?;
    ensure!(line.contains("nobody (uid 65534)") && line.contains("pid"), "{line}");
    Ok(())
}

#[test]
fn what_cannot_be_the_socket_is_refused() -> Result<()> {
    let network = Network::new("rights-wrong", Arms::Two)?;
    let services = tcp_before(&[(1, 1), (2, 1)], &[]);
    let files = Files::write(&network.balancer, &format!("socket_group = \"no-such-group\"\n{services}"))?;
    let refused = files.attach_in_vain(&network.balancer, network.interfaces)?;
    refused.expect(1, &["there is no group `no-such-group`", "groupadd", "socket_group"])?;

    let files = Files::write(&network.balancer, &services)?;
    fs::write(&files.socket, "mine")?;
    let refused = files.attach_in_vain(&network.balancer, network.interfaces)?;
    refused.expect(1, &["is not a socket", "`socket` in [daemon]"])?;
    ensure!(fs::read_to_string(&files.socket)? == "mine", "the file is gone");
    Ok(())
}

/// The program under test, where everybody may run it.
pub fn for_everybody(network: &Network) -> Result<PathBuf> {
    let program = network.lab.directory().join("foobar-lb");
    fs::copy(binary()?, &program)?;
    Ok(program)
}

fn run_as(program: &Path, uid: u32, gid: u32, socket: &Path, words: &[&str]) -> Result<Ending> {
    let mut command = Command::new(program);
    command.args(words).arg("--socket").arg(socket).uid(uid).gid(gid);
    Ok(command.output()?.into())
}
