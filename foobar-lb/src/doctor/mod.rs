//! `foobar-lb doctor`: looks at a set-up the way an experienced operator would, and tells what is wrong and what would
//! mend it. It changes nothing. A file for each topic: `host` privileges, kernel and interfaces, `offloads` what
//! network cards do to packets before the program, `settings` sysctls, firewalls and ports, `network` next hops and MTU.

mod finding;
mod host;
mod network;
mod offloads;
mod settings;

use std::time::Duration;

pub use self::finding::{Finding, Kind, Severity};
use crate::{config::Config, neighbour::View, start::chain};

/// How long neighbours have to be resolved, as when the daemon starts.
const NEIGHBOURS: Duration = Duration::from_secs(1);

/// What is to be looked at.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The configuration.
    pub config: Config,
    /// The interfaces that the program runs on, or will.
    pub interfaces: Vec<String>,
}

impl Subject {
    /// Everything that is wrong, the worst first.
    pub async fn examine(&self) -> Vec<Finding> {
        let mut findings = host::examine(&self.interfaces).await;
        findings.extend(offloads::examine(&self.interfaces).await);
        match network::look(&self.config.services, NEIGHBOURS).await {
            Ok(view) => findings.extend(self.examine_with(&view)),
            Err(error) => findings.push(unseen("the network", &error)),
        }
        findings.sort_by_key(|finding| (finding.kind.severity(), finding.kind));
        findings
    }

    fn examine_with(&self, view: &View) -> Vec<Finding> {
        let locals: Vec<_> = view.locals.iter().copied().collect();
        let mut findings = settings::examine(&self.config, &self.interfaces, &locals);
        findings.extend(network::examine(&self.config.services, &self.interfaces, view));
        findings
    }
}

/// Something that could not be looked at.
fn unseen(place: &str, error: &dyn std::error::Error) -> Finding {
    Finding::new(Kind::CannotTell, place, chain(error))
}
