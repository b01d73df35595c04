//! `foobar-lb doctor`: looks at a set-up the way an experienced operator would, and tells what is wrong and what would
//! mend it. It changes nothing. A file for each topic: `host` privileges, kernel and interfaces, `offloads` what
//! network cards do to packets before the program, `settings` sysctls, firewalls and ports, `network` next hops and MTU,
//! `owners` who answers for addresses, `daemon` the daemon's own word, `tables` whether its maps hold what it wrote, `room` whether they have room. `probe` and `answers` try every backend through the data path.

mod answers;
mod daemon;
mod finding;
mod host;
mod network;
mod offloads;
mod owners;
mod probe;
mod room;
mod settings;
mod tables;

use std::{path::PathBuf, time::Duration};

pub use self::{
    finding::{Finding, Kind, Severity},
    probe::send_probes,
};
use crate::{api::Status, config::Config, neighbour::View, start::chain};

/// How long neighbours have to be resolved, as when the daemon starts.
const NEIGHBOURS: Duration = Duration::from_secs(1);

/// What is to be looked at.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The configuration.
    pub config: Config,
    /// Where the daemon listens.
    pub socket: PathBuf,
    /// The interfaces that the program runs on, or will; those of the running daemon if there is none.
    pub interfaces: Vec<String>,
}

impl Subject {
    /// Everything that is wrong, the worst first. That no daemon runs is wrong only where no interfaces are named.
    pub async fn examine(mut self) -> Vec<Finding> {
        let mut findings = Vec::new();
        match daemon::ask(&self.socket).await {
            Ok(status) => findings.extend(self.examine_running(&status).await),
            Err(finding) if finding.kind == Kind::DaemonNotRunning && !self.interfaces.is_empty() => {}
            Err(finding) => findings.push(finding),
        }
        findings.extend(self.examine_host().await);
        findings.sort_by_key(|finding| (finding.kind.severity(), finding.kind));
        findings
    }

    async fn examine_running(&mut self, status: &Status) -> Vec<Finding> {
        if self.interfaces.is_empty() {
            self.interfaces = status.interfaces.iter().map(|interface| interface.name.clone()).collect();
        }
        let mut findings = daemon::judge(status);
        findings.extend(daemon::judge_files(&self.socket, status).await);
        findings.extend(room::examine(status.program_id));
        findings.extend(tables::examine(&self.socket, status).await);
        findings.extend(answers::examine(&self.socket, status).await);
        findings
    }

    async fn examine_host(&self) -> Vec<Finding> {
        let mut findings = host::examine(&self.interfaces).await;
        findings.extend(offloads::examine(&self.interfaces).await);
        match network::look(&self.config.services, NEIGHBOURS).await {
            Ok(view) => findings.extend(self.examine_with(&view).await),
            Err(error) => findings.push(unseen("the network", &error)),
        }
        findings
    }

    async fn examine_with(&self, view: &View) -> Vec<Finding> {
        let locals: Vec<_> = view.locals.iter().copied().collect();
        let mut findings = settings::examine(&self.config, &self.interfaces, &locals);
        findings.extend(network::examine(&self.config.services, &self.interfaces, view));
        findings.extend(owners::examine(&self.config.services, &self.interfaces, view).await);
        findings
    }
}

/// Something that could not be looked at.
fn unseen(place: &str, error: &dyn std::error::Error) -> Finding {
    Finding::new(Kind::CannotTell, place, chain(error))
}
