//! The daemon's HTTP API over its Unix socket: `status` and `command` have the shapes of what is said, `routes` takes
//! requests to the daemon's task, `socket` is where they come in.

mod command;
mod description;
mod operator;
mod plan;
mod probe;
mod routes;
mod socket;
mod status;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::{
    command::*,
    operator::{Operator, Peer},
    plan::{Change, Plan, PlannedBackend, PlannedService, Proposal, Turn},
    probe::{Probe, Probed, SentProbe},
    routes::{Rights, openapi, routes},
    socket::{Error, Socket},
    status::*,
};
use crate::{config, start::chain, state::Unheard};

/// A request that failed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// Why.
    pub error: String,
    /// The configuration is wrong, rather than what was asked impossible.
    #[serde(default)]
    pub invalid: bool,
    /// What was named is not there.
    #[serde(default)]
    pub unknown: bool,
    /// It is done with `force`.
    #[serde(default)]
    pub needs_force: bool,
}

impl Failure {
    /// What was asked cannot be done.
    pub fn new(error: String) -> Self {
        Self { error, invalid: false, unknown: false, needs_force: false }
    }

    /// What was asked cannot be done for this reason.
    pub fn of(error: impl std::error::Error) -> Self {
        Self::new(chain(&error))
    }

    /// The configuration is wrong.
    pub fn invalid(error: &config::Error) -> Self {
        Self { invalid: true, ..Self::new(error.to_string()) }
    }

    /// What was said was not taken in.
    pub fn unheard(error: &Unheard) -> Self {
        Self {
            unknown: matches!(error, Unheard::Service { .. } | Unheard::Backend { .. }),
            needs_force: matches!(error, Unheard::Last { .. }),
            ..Self::new(error.to_string())
        }
    }
}
