//! The operator's word about backends, said while the daemon runs.

use thiserror::Error;

use super::{Service, State, Word};
use crate::{
    config::nearest,
    model::{Admin, WhenEmpty},
};

/// Why a word was not taken in. Nothing has changed then.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Unheard {
    /// There is no such service.
    #[error("there is no service `{service}`: {help}")]
    Service {
        /// As it was named.
        service: String,
        /// What may have been meant.
        help: String,
    },
    /// The service has no such backend.
    #[error("service `{service}` has no backend `{backend}`: {help}")]
    Backend {
        /// The service.
        service: String,
        /// As it was named.
        backend: String,
        /// What may have been meant.
        help: String,
    },
}

impl State {
    /// Changes what the operator says of backends of one service, of all that are named or of none. Returns what the
    /// operator should know of the consequences.
    pub fn say(
        &mut self,
        service: &str,
        backends: &[String],
        change: impl Fn(Word) -> Word,
    ) -> Result<Vec<String>, Unheard> {
        let names: Vec<&str> = self.services.iter().map(|service| service.config.name.as_str()).collect();
        let Some(number) = names.iter().position(|name| *name == service) else {
            let help = nearest(service, &names);
            return Err(Unheard::Service { service: service.to_owned(), help });
        };
        let service = &mut self.services[number];
        let positions =
            backends.iter().map(|name| service.position(name)).collect::<Result<Vec<_>, Unheard>>()?;
        for &position in &positions {
            let backend = &mut service.backends[position];
            backend.word = change(backend.word);
        }
        let without_share = positions
            .into_iter()
            .map(|position| &service.backends[position])
            .filter(|backend| backend.word.admin.is_none() && backend.weight() == 0)
            .map(|backend| format!("{} gets no new flows: its weight is 0", backend.config.name));
        Ok(without_share.chain(service.warn_if_empty()).collect())
    }
}

impl Service {
    /// Backends that the configuration has no more cannot be spoken of.
    fn position(&self, name: &str) -> Result<usize, Unheard> {
        let present = |backend: &&super::Backend| !backend.removed;
        let position =
            self.backends.iter().position(|backend| !backend.removed && backend.config.name == name);
        position.ok_or_else(|| {
            let names: Vec<&str> =
                self.backends.iter().filter(present).map(|backend| backend.config.name.as_str()).collect();
            let help = nearest(name, &names);
            Unheard::Backend { service: self.config.name.clone(), backend: name.to_owned(), help }
        })
    }

    /// What happens to new flows if the operator leaves no backend to take them.
    pub fn warn_if_empty(&self) -> Option<String> {
        if self.standings().iter().any(|standing| standing.eligible) {
            return None;
        }
        let name = &self.config.name;
        let enabled = self.backends.iter().any(|backend| backend.admin() == Admin::Enabled);
        Some(match (enabled, self.config.when_empty) {
            (false, _) => {
                format!("no backend of {name} is enabled: its new flows are dropped until one is")
            }
            (true, WhenEmpty::Refuse) => {
                format!("no backend of {name} is up: its new flows are dropped until one is")
            }
            (true, WhenEmpty::FailOpen) => {
                format!("no backend of {name} can be reached: its new flows are dropped until one can")
            }
        })
    }
}
