//! Commands that wait for a backend: they ask for it every second, tell how far it is, and end with what they wait for, with
//! the time limit, or when somebody ends them. A daemon that is restarted meanwhile is waited for, too.

use std::{
    io::{IsTerminal, Write, stderr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use foobar_lb::{
    api::{Backend, Drain},
    client,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

use crate::table::render_drain;

/// How often the daemon is asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// So many probes that have begun after a change say that the backend is well. One more may have been under way.
const PROBES: u64 = 2;

/// Nobody waits for longer; a clock has an end.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// When a wait is over that may take so long.
pub fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(LONGEST)
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it should be.
    Reached,
    /// The time is over.
    TimedOut,
    /// Ctrl-C, SIGTERM, or the terminal is gone.
    Interrupted,
}

/// What ends a command from outside. From now on none of it kills the process.
pub struct Interrupts([Signal; 3]);

impl Interrupts {
    /// Waits for them from now on.
    pub fn expect() -> Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] =
            kinds.map(|kind| signal(kind).context("cannot wait for signals"));
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    /// Comes to its end with the next.
    pub async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The backend that is waited for.
pub struct Awaited<'a> {
    /// The daemon's socket.
    pub socket: &'a Path,
    /// Name of its service.
    pub service: &'a str,
    /// Its own name.
    pub backend: &'a str,
}

impl Awaited<'_> {
    /// Waits until it has no flows left, neither remembered ones nor silent ones, or its drain time is over.
    pub async fn until_drained(&self, deadline: Instant, interrupts: &mut Interrupts) -> Result<Outcome> {
        self.until(deadline, interrupts, |backend| match &backend.drain {
            Some(drain) if !is_drained(drain) => render_drain(backend),
            None if backend.admin == "enabled" => Some(format!("{} is enabled", backend.name)),
            _ => None,
        })
        .await
    }

    /// Waits until probes that have begun after this find it well.
    pub async fn until_well(&self, deadline: Instant, interrupts: &mut Interrupts) -> Result<Outcome> {
        let mut first = None;
        let mut had_failure = false;
        self.until(deadline, interrupts, |backend| {
            let first = *first.get_or_insert(backend.successes);
            had_failure |= backend.successes < first;
            let needed = if had_failure { PROBES } else { first + PROBES + 1 };
            let is_well = backend.health == "up" && (backend.successes >= needed || !backend.checked);
            (!is_well).then(|| format!("{} is {}: {}", backend.name, backend.health, backend.reason))
        })
        .await
    }

    /// Waits until nothing is said of what is left to wait for.
    async fn until(
        &self,
        deadline: Instant,
        interrupts: &mut Interrupts,
        mut left: impl FnMut(&Backend) -> Option<String>,
    ) -> Result<Outcome> {
        let mut progress = Progress::default();
        loop {
            let asked = async {
                tokio::select! {
                    answer = client::backend(self.socket, self.service, self.backend) => Some(answer),
                    () = interrupts.next() => None,
                }
            };
            let text = match asked.await {
                None => return Ok(Outcome::Interrupted),
                Some(Ok(backend)) => match left(&backend) {
                    None => return Ok(Outcome::Reached),
                    Some(text) => text,
                },
                Some(Err(client::Error::NotRunning { .. } | client::Error::Http(_))) => {
                    "the daemon does not answer; waiting for it".to_owned()
                }
                Some(Err(error)) => return Err(error.into()),
            };
            progress.show(text.trim_end());
            tokio::select! {
                () = sleep(INTERVAL) => {}
                () = sleep_until(deadline) => return Ok(Outcome::TimedOut),
                () = interrupts.next() => return Ok(Outcome::Interrupted),
            }
        }
    }
}

/// Whether no flows are left, or those that are need not be waited for.
fn is_drained(drain: &Drain) -> bool {
    let Drain { seen, closing, silent_for_seconds, over, .. } = drain;
    *over || *seen == Some(0) && *closing == Some(0) && silent_for_seconds.is_none()
}

/// One line on a terminal, which is written anew; else a line whenever something has changed. To standard error.
#[derive(Default)]
struct Progress {
    shown: String,
    is_open: bool,
}

impl Progress {
    fn show(&mut self, text: &str) {
        if text == self.shown {
            return;
        }
        if stderr().is_terminal() {
            eprint!("\r\x1b[K{text}");
            // What cannot be shown is no reason to wait for less.
            stderr().flush().ok();
            self.is_open = true;
        } else {
            eprintln!("{text}");
        }
        self.shown = text.to_owned();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_open {
            eprintln!();
        }
    }
}
