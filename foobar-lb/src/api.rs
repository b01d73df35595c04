//! The daemon's HTTP API over its Unix socket: `status` and `command` have the shapes of what is said, `routes` takes
//! requests to the daemon's task, `socket` is where they come in.

mod command;
mod description;
mod plan;
mod routes;
mod socket;
mod status;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::{
    command::*,
    plan::{Change, Plan, PlannedBackend, PlannedService, Proposal, Turn},
    routes::{openapi, routes},
    socket::{Error, Socket},
    status::*,
};
use crate::{config, start::chain};

/// A request that failed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// Why.
    pub error: String,
    /// The configuration is wrong, rather than what was asked impossible.
    #[serde(default)]
    pub invalid: bool,
}

impl Failure {
    /// What was asked cannot be done.
    pub fn new(error: String) -> Self {
        Self { error, invalid: false }
    }

    /// What was asked cannot be done for this reason.
    pub fn of(error: impl std::error::Error) -> Self {
        Self::new(chain(&error))
    }

    /// The configuration is wrong.
    pub fn invalid(error: &config::Error) -> Self {
        Self { error: error.to_string(), invalid: true }
    }
}
