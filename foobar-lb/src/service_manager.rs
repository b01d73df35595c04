//! What the service manager is told by sd_notify(3): that the balancer serves, reads its configuration again, is alive, or
//! ends, and in a line how its services are. Where none asked for that, by `NOTIFY_SOCKET`, nothing is said or gathered.

use std::{env, future::pending, io};

use sd_notify::NotifyState::{Ready, Reloading, Status, Stopping, Watchdog as Alive};
use sd_notify::{NotifyState, notify, watchdog_enabled};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::warn;

/// The service manager, if there is one that listens.
pub struct ServiceManager {
    listens: bool,
    /// The line that it was told last.
    status: String,
}

impl ServiceManager {
    /// The one that started this process.
    pub fn find() -> Self {
        Self { listens: env::var_os("NOTIFY_SOCKET").is_some(), status: String::new() }
    }

    /// The balancer serves, for the first time or after [`Self::reloading`].
    pub fn ready(&mut self, status: impl FnOnce() -> String) {
        if self.listens {
            self.status = status();
            self.tell(&[Status(&self.status), Ready]);
        }
    }

    /// The configuration is read again. Whatever comes of that, [`Self::ready`] says that it is over.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[Reloading, now]),
            Err(error) => warn_of(&error),
        }
    }

    /// The balancer ends.
    pub fn stopping(&self) {
        self.tell(&[Stopping]);
    }

    /// How the services are, if that is not what was told last.
    pub fn inform(&mut self, status: impl FnOnce() -> String) {
        if !self.listens {
            return;
        }
        let status = status();
        if status != self.status {
            self.tell(&[Status(&status)]);
            self.status = status;
        }
    }

    /// What is to be fed by the task whose life it is about.
    pub fn watchdog(&self) -> Watchdog {
        let limit = watchdog_enabled().filter(|limit| self.listens && !limit.is_zero());
        Watchdog(limit.map(|limit| {
            let mut interval = interval(limit / 2);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        }))
    }

    /// The daemon's task goes on.
    pub fn alive(&self) {
        self.tell(&[Alive]);
    }

    fn tell(&self, words: &[NotifyState]) {
        if let Err(error) = notify(words) {
            warn_of(&error);
        }
    }
}

/// When the service manager is to be told that the task which waits here is alive.
pub struct Watchdog(Option<Interval>);

impl Watchdog {
    /// Twice in the time after which the service manager takes the process for hung; never, if it does not look.
    pub async fn is_due(&mut self) {
        match &mut self.0 {
            Some(interval) => drop(interval.tick().await),
            None => pending().await,
        }
    }
}

fn warn_of(error: &io::Error) {
    warn!("the service manager is not told how it goes: {error}");
}
