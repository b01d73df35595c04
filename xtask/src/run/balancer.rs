//! The balancer of the site: the real foobar-lb, and what it says of its backends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Namespace, Process, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::run::network::INTERFACES;
use crate::workspace;

/// How long it may take to load, attach, or detach.
const SOON: Duration = Duration::from_secs(10);

/// A running `foobar-lb attach`.
pub(super) struct Balancer {
    process: Process,
    namespace: Namespace,
    program: PathBuf,
}

/// What foobar-lb says of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backend {
    pub(super) service: String,
    pub(super) name: String,
    pub(super) health: String,
    /// Whether it gets new flows.
    pub(super) is_eligible: bool,
}

impl Balancer {
    /// Attaches to every interface of the balancer's namespace, with the site's configuration.
    ///
    /// # Errors
    /// If foobar-lb ends, or does not answer soon; the error shows what it printed.
    pub(super) fn attach(program: &Path, namespace: &Namespace) -> Result<Self> {
        let config = workspace().join("site/foobar-lb.toml");
        let mut command = namespace.command(program);
        command.arg("attach").args(INTERFACES).arg("--config").arg(config).arg("--sysctl");
        let process = Process::start("foobar-lb", command, namespace.directory())?;
        let mut balancer = Self { process, namespace: namespace.clone(), program: program.to_owned() };
        let answered = wait_until(SOON, "foobar-lb to answer", || {
            balancer.process.has_ended().unwrap_or(true) || balancer.backends().is_ok()
        });
        let is_up = answered.is_ok() && !balancer.has_ended()?;
        ensure!(is_up, "foobar-lb did not come up; it printed:\n{}", balancer.output()?);
        Ok(balancer)
    }

    /// The backends of all services, in the order of the configuration.
    ///
    /// # Errors
    /// If foobar-lb does not answer, or not in the form that is documented.
    pub(super) fn backends(&self) -> Result<Vec<Backend>> {
        let output = self.namespace.command(&self.program).args(["status", "--json"]).output()?;
        ensure!(output.status.success(), "no status: {}", String::from_utf8_lossy(&output.stderr));
        read_status(&serde_json::from_slice(&output.stdout)?).with_context(|| {
            format!("not the status of a balancer: {}", String::from_utf8_lossy(&output.stdout))
        })
    }

    /// Waits until all backends of that name get new flows, or none of them does.
    ///
    /// # Errors
    /// If that does not come within `deadline`.
    pub(super) fn wait_for(&self, backend: &str, is_eligible: bool, deadline: Duration) -> Result<()> {
        let what = format!("the health check to turn {backend} {}", if is_eligible { "up" } else { "down" });
        wait_until(deadline, &what, || {
            let backends = self.backends().unwrap_or_default();
            let mut named = backends.iter().filter(|known| known.name == backend).peekable();
            named.peek().is_some() && named.all(|known| known.is_eligible == is_eligible)
        })
    }

    /// Waits until every backend is measured up and gets new flows.
    ///
    /// # Errors
    /// If that does not come within `deadline`; the error shows how far it came.
    pub(super) fn wait_for_all(&self, deadline: Duration) -> Result<()> {
        let is_up = |backend: &Backend| backend.health == "up" && backend.is_eligible;
        wait_until(deadline, "every backend to be up", || {
            self.backends().is_ok_and(|backends| backends.iter().all(is_up))
        })
        .with_context(|| format!("foobar-lb says {:#?}", self.backends()))
    }

    /// Whether foobar-lb has ended by itself.
    ///
    /// # Errors
    /// If the kernel does not know it any more.
    pub(super) fn has_ended(&mut self) -> Result<bool> {
        self.process.has_ended()
    }

    /// What foobar-lb has printed.
    ///
    /// # Errors
    /// If its log cannot be read.
    pub(super) fn output(&self) -> Result<String> {
        self.process.output()
    }

    /// Detaches.
    ///
    /// # Errors
    /// If it does not end soon and well.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.wait(SOON)?;
        ensure!(status.success(), "foobar-lb ended with {status}; it printed:\n{}", self.output()?);
        Ok(())
    }
}

fn read_status(status: &Value) -> Option<Vec<Backend>> {
    let mut backends = Vec::new();
    for service in status["services"].as_array()? {
        for backend in service["backends"].as_array()? {
            backends.push(Backend {
                service: service["name"].as_str()?.to_owned(),
                name: backend["name"].as_str()?.to_owned(),
                health: backend["health"].as_str()?.to_owned(),
                is_eligible: backend["eligible"].as_bool()?,
            });
        }
    }
    Some(backends)
}
