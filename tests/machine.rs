//! A machine of its own, as far as a kernel lets that be: a root directory of Debian, changed in memory only, whose first
//! process is systemd, in the network of a namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, id};

use anyhow::{Context, Result, ensure};
use lab::{Namespace, Process, wait_for, wait_until};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::support::EVENTUALLY;
use crate::support::balancer::Ending;

/// Enters a control group, which is what systemd then sees as the whole of them, and leaves the namespaces.
const LEAVE: &str = r#"
    echo $$ > "$2/cgroup.procs" &&
    exec unshare --pid --mount --cgroup --uts --ipc --fork --kill-child sh -c "$3" sh "$1"
"#;

/// Furnishes the root directory as a kernel and an initial file system do, and gives it to systemd.
const BOOT: &str = r#"
    set -e
    cd "$1"
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t bpf bpf sys/fs/bpf -o mode=700
    mount -t tmpfs tmpfs run
    mount -t tmpfs tmpfs dev
    mkdir dev/pts dev/shm
    ln -s pts/ptmx dev/ptmx
    while read -r name number; do mknod -m 666 "dev/$name" c 1 "$number"; done <<- DEVICES
	null 3
	zero 5
	full 7
	random 8
	urandom 9
	DEVICES
    mkdir -p old
    pivot_root . old
    umount -l /old
    exec env -i container=other PATH="$PATH" /lib/systemd/systemd --system systemd.unit=multi-user.target
"#;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the names of its control groups begin with.
const GROUP: &str = "foobar-lb-test-";

/// A machine that is up. Dropping it ends all that runs on it, and takes its changes away.
pub struct Machine {
    process: Process,
    first: String,
    root: PathBuf,
    groups: PathBuf,
}

impl Machine {
    /// Boots from a root directory, which stays as it is.
    pub fn boot(namespace: &Namespace, clean: &Path) -> Result<Self> {
        let directory = namespace.directory().join("machine");
        let [changes, work, root, groups] =
            ["changes", "work", "root", "groups"].map(|name| directory.join(name));
        for path in [&changes, &work, &root, &groups] {
            fs::create_dir_all(path)?;
        }
        let layers =
            format!("lowerdir={},upperdir={},workdir={}", clean.display(), changes.display(), work.display());
        mount_at(&root, "overlay", Some(&layers))?;
        mount_at(&groups, "cgroup2", None)?;
        sweep_groups(&groups);
        let group = groups.join(format!("{GROUP}{}", id()));
        fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
        let [root_word, group_word] = [&root, &group].map(|path| path.display().to_string());
        let process = namespace.start("machine", ["sh", "-c", LEAVE, "sh", &root_word, &group_word, BOOT])?;
        let first = first_process(&process)?;
        let mut machine = Self { process, first, root, groups };
        machine.wait_until_up()?;
        Ok(machine)
    }

    /// Its root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Runs a command in it, and tells how that ended.
    pub fn ask<S: AsRef<str>>(&self, words: &[S]) -> Result<Ending> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first, "--all", "env", "-i", &format!("PATH={PATH}")]);
        command.args(["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"]);
        let output = command.args(words.iter().map(AsRef::as_ref)).output()?;
        Ok(output.into())
    }

    /// Runs a command in it that must succeed, and returns what it printed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let ending = self.ask(words)?;
        ensure!(ending.code == Some(0), "{words:?} failed: {ending:?}");
        Ok(ending.output.trim().to_owned())
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let is_up = || {
            let state = self.ask(&["systemctl", "is-system-running"]).map(|ending| ending.output);
            state.is_ok_and(|state| ["running", "degraded"].contains(&state.trim()))
        };
        wait_until(EVENTUALLY, "systemd to be up", is_up)
            .with_context(|| self.process.output().unwrap_or_default())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill() {
            eprintln!("{error:#}");
        }
        // The last process of the machine may be on its way still.
        let swept = wait_until(EVENTUALLY, "the end of the machine", || sweep_groups(&self.groups));
        if let Err(error) = swept {
            eprintln!("control groups are left: {error:#}");
        }
        for path in [&self.root, &self.groups] {
            if let Err(error) = umount2(path, MntFlags::MNT_DETACH) {
                eprintln!("cannot unmount {}: {error}", path.display());
            }
        }
    }
}

fn mount_at(path: &Path, kind: &str, options: Option<&str>) -> Result<()> {
    mount(Some(kind), path, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("cannot mount {kind} at {}", path.display()))
}

/// The only child of what leaves the namespaces: there it is the first process.
fn first_process(process: &Process) -> Result<String> {
    let children = format!("/proc/{0}/task/{0}/children", process.id());
    wait_for(EVENTUALLY, "the first process", || {
        let children = fs::read_to_string(&children).ok()?;
        let child = children.split_whitespace().next()?;
        let command = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
        (command.trim() == "systemd").then(|| child.to_owned())
    })
    .with_context(|| process.output().unwrap_or_default())
}

/// Removes the groups of machines that have ended, an earlier one's that was killed too; whether none is left.
fn sweep_groups(groups: &Path) -> bool {
    let Ok(entries) = fs::read_dir(groups) else { return false };
    let is_ours =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(GROUP));
    let ours: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(is_ours).collect();
    ours.iter().filter(|group| !remove_group(group)).count() == 0
}

fn remove_group(group: &Path) -> bool {
    let Ok(entries) = fs::read_dir(group) else { return true };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        remove_group(&path);
    }
    fs::remove_dir(group).is_ok()
}
