//! A place for what needs root, from which nothing can leak: processes, mounts, `/run` and the BPF file system
//! are its own and end with it, the network as well if asked for. What runs in it is left to the caller.
//!
//! Outside, [`command`] names the programs of util-linux that make it. Inside, its first process is xtask again
//! ([`run_inside`]), because a first process is deaf to signals it does not handle, and most programs handle none.

use std::ffi::{OsStr, OsString};
use std::process::{Command, ExitCode, ExitStatus};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, wait as wait_for_child};
use nix::unistd::{Pid, geteuid, getpid};

/// How many files a process in the sandbox may have open: enough for the flows of a traffic test.
const OPEN_FILES: &str = "20000";

/// Which network is seen in the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// One of its own: nothing but a loopback that is up.
    Private,
    /// The machine's.
    Host,
}

/// A command that runs `program` as root in a new sandbox, with the environment of this process; add arguments
/// as usual. The sandbox ends, with all its processes, when the program ends or this process dies.
pub fn command(program: impl AsRef<OsStr>, network: Network) -> Result<Command> {
    let xtask = env::current_exe().context("cannot find the executable of xtask")?;
    let mut command = root_command("setpriv");
    command.args(["--pdeathsig=KILL", "prlimit", &format!("--nofile={OPEN_FILES}")]);
    command.args(["unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--mount"]);
    if network == Network::Private {
        command.arg("--net");
    }
    command.arg(xtask).arg("sandboxed").arg(program);
    Ok(command)
}

/// A command that runs as root, with the environment of this process: by sudo, if this process is not root.
pub fn root_command(program: impl AsRef<OsStr>) -> Command {
    if geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["--preserve-env", "--"]).arg(program);
    command
}

/// Runs a command to its end, [`uninterrupted`].
pub fn wait(command: &mut Command) -> Result<ExitStatus> {
    let status = uninterrupted(|| command.status())?;
    status.with_context(|| format!("cannot run {command:?}"))
}

/// Removes the control groups whose names begin so, in which nothing may run any more.
pub fn remove_control_groups(beginning: &str) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("no list of mounts")?;
    let root = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, path, "cgroup2", ..] => Some(path.to_owned()),
        _ => None,
    });
    let Some(root) = root else { return Ok(()) };
    let mut find = root_command("find");
    find.args([&root, "-depth", "-type", "d", "-path", &format!("{root}/{beginning}*"), "-delete"]);
    let status = find.status().with_context(|| format!("cannot run {find:?}"))?;
    ensure!(status.success(), "control groups are left in {root}");
    Ok(())
}

/// Lets what runs in a sandbox alone answer a Ctrl-C, so that it can tidy up first: this process follows it only
/// when `work` is done.
pub fn uninterrupted<T>(work: impl FnOnce() -> T) -> Result<T> {
    let interrupt = SigSet::from(Signal::SIGINT);
    interrupt.thread_block().context("cannot block SIGINT")?;
    let done = work();
    interrupt.thread_unblock().context("cannot unblock SIGINT")?;
    Ok(done)
}

/// The first process of a sandbox: furnishes it, runs the command, and returns its exit code.
pub fn run_inside(words: &[OsString]) -> Result<ExitCode> {
    // Anywhere else the mounts would be the machine's.
    ensure!(getpid() == Pid::from_raw(1), "this is not the first process of a sandbox");
    furnish().context("cannot furnish the sandbox")?;
    // The first process is deaf to it, but the command would inherit the mask of `uninterrupted`.
    SigSet::from(Signal::SIGINT).thread_unblock().context("cannot unblock SIGINT")?;
    let (program, arguments) = words.split_first().context("an empty command")?;
    let child = Command::new(program)
        .args(arguments)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let child = Pid::from_raw(i32::try_from(child.id()).expect("Linux process ids fit in 31 bits"));
    loop {
        // The first process is also the parent of every orphan.
        match wait_for_child().context("cannot wait for the processes of the sandbox")? {
            WaitStatus::Exited(pid, code) if pid == child => return Ok(to_exit_code(code)),
            WaitStatus::Signaled(pid, signal, _) if pid == child => {
                return Ok(to_exit_code(128 + signal as i32));
            }
            _ => {}
        }
    }
}

fn furnish() -> Result<()> {
    const NONE: Option<&str> = None;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("no /run")?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), NONE).context("no BPF file system")?;
    // In the machine's network namespace it is up already.
    let loopback = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("cannot run ip")?;
    if !loopback.success() {
        bail!("the loopback does not come up");
    }
    Ok(())
}

fn to_exit_code(code: i32) -> ExitCode {
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}
