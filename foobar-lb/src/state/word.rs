//! The operator's word about backends, said while the daemon runs.

use thiserror::Error;

use super::{Backend, Service, State, Word};
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
        let mut warnings = Vec::new();
        for position in positions {
            let backend = &mut service.backends[position];
            let before = backend.weight();
            backend.word = change(backend.word);
            warnings.extend(backend.warn_of_no_effect(before));
        }
        warnings.extend(service.warn_if_empty());
        Ok(warnings)
    }
}

impl Backend {
    /// Why what was said leaves it without new flows, where that may not be meant.
    fn warn_of_no_effect(&self, weight_before: u16) -> Option<String> {
        let name = &self.config.name;
        let reweighted = self.weight() != weight_before;
        match self.admin() {
            Admin::Removed => Some(format!(
                "{name} gets no new flows: the configuration has it no more; add it there and reload"
            )),
            Admin::Draining if self.word.admin.is_none() => {
                Some(format!("{name} gets no new flows: its weight is 0"))
            }
            admin @ (Admin::Draining | Admin::Disabled) if reweighted && self.weight() > 0 => {
                Some(format!("{name} is {admin}: its weight counts when it is enabled"))
            }
            _ => None,
        }
    }
}

impl Service {
    /// Of two of the same name it is the one that the configuration has.
    fn position(&self, name: &str) -> Result<usize, Unheard> {
        let found = |removed: bool| {
            let same = |backend: &Backend| backend.removed == removed && backend.config.name == name;
            self.backends.iter().position(same)
        };
        found(false).or_else(|| found(true)).ok_or_else(|| {
            let names: Vec<&str> = self.backends.iter().map(|backend| backend.config.name.as_str()).collect();
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
