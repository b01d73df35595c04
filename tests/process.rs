//! Processes of a lab, with their output kept and their end guaranteed, and waiting with a deadline.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A process in the background, leader of its own process group. Dropping it kills and reaps the group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, both its outputs going to `NAME.log` in `directory`, anew at each start.
    ///
    /// # Errors
    /// If the log cannot be made or the command cannot start.
    pub fn start(name: &str, mut command: Command, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        // In a group of its own it does not see the Ctrl-C of a terminal, and dies with its workers.
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("Linux process ids fit in 31 bits"))
    }

    /// All it has printed so far, both outputs in order.
    ///
    /// # Errors
    /// If its log cannot be read.
    pub fn output(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until it has printed a whole line that contains `text`, and returns that line.
    ///
    /// # Errors
    /// If it ends first or the deadline passes; the error shows what it printed instead.
    pub fn wait_for_line(&mut self, text: &str, deadline: Duration) -> Result<String> {
        let start = Instant::now();
        loop {
            // Asked before the output is read, so that the last words of a process are not missed.
            let ended = self.child.try_wait()?;
            let output = self.output()?;
            let whole_lines = &output[..output.rfind('\n').map_or(0, |end| end + 1)];
            if let Some(line) = whole_lines.lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if let Some(status) = ended {
                bail!("{} ended ({status}) before it printed {text:?}; it printed:\n{output}", self.name);
            }
            if start.elapsed() > deadline {
                bail!("{} has not printed {text:?} within {deadline:?}; it printed:\n{output}", self.name);
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// If the kernel does not know it any more.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// If the deadline passes first; the error shows what it printed.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait_for(deadline, &format!("the end of {}", self.name), || child.try_wait().transpose())
            .with_context(|| format!("{} printed:\n{}", self.name, self.output().unwrap_or_default()))?
            .context("cannot wait for a child")
    }

    /// Sends a signal to the process itself, not to its children.
    ///
    /// # Errors
    /// If it has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.id(), signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Kills the process and its children at once, as `kill -9` does, and reaps it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        match killpg(self.id(), Signal::SIGKILL) {
            // Nothing of the group is left.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot kill {}", self.name)),
        }
        self.child.wait().with_context(|| format!("cannot reap {}", self.name))?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

/// Waits until `condition` holds, looking often.
///
/// # Errors
/// If it does not hold within `deadline`: "waited 5s in vain for WHAT".
pub fn wait_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for(deadline, what, || condition().then_some(()))
}

/// Waits until `attempt` returns something, and returns that.
///
/// # Errors
/// If it does not within `deadline`: "waited 5s in vain for WHAT".
pub fn wait_for<T>(deadline: Duration, what: &str, mut attempt: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} in vain for {what}");
        }
        thread::sleep(POLL_INTERVAL);
    }
}
