//! What the API says of a configuration before it is put in force.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/plan`: a configuration that is to be looked at.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// What messages call it: the name of the file.
    pub name: String,
    /// The configuration itself.
    pub text: String,
    /// The largest share of the slots of a service that may move, as `10%`; else as the configuration in force says.
    #[serde(default)]
    pub max_moved: Option<String>,
}

/// The answer to [`Proposal`]: what a reload would change. Nothing has changed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// Why a reload would be refused; empty if it would not be.
    pub refused: Vec<String>,
    /// What works but may not be meant.
    pub warnings: Vec<String>,
    /// Keys of `[daemon]` and `[metrics]` that change.
    pub keys: Vec<Change>,
    /// Services that come, go or change: in the order of the configuration, then those that it has no more.
    pub services: Vec<PlannedService>,
    /// How many services stay as they are.
    pub unchanged: usize,
}

/// What happens to a service or a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Turn {
    /// It was not there.
    Added,
    /// It will not be there.
    Removed,
    /// It is there before and after.
    Changed,
}

/// A key that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// Its name.
    pub key: String,
    /// What it is now; `none` where it is absent and has no default.
    pub from: String,
    /// What it will be.
    pub to: String,
}

/// A service that comes, goes or changes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlannedService {
    /// As it will be called.
    pub name: String,
    /// Where clients reach it.
    pub address: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// What happens to it.
    pub turn: Turn,
    /// Keys that change.
    pub keys: Vec<Change>,
    /// Backends that come, go or change.
    pub backends: Vec<PlannedBackend>,
    /// Slots of its table.
    pub slots: u32,
    /// Slots that get another owner, once all new backends are up; absent if it cannot be told, as the configuration
    /// would be refused.
    pub slots_moved: Option<u32>,
    /// The largest share of them that may move, if there is a limit.
    pub max_moved: Option<String>,
    /// Flows that are remembered in slots that move; absent if they are not counted.
    pub flows_on_moved: Option<u64>,
    /// Flows that are silent for longer from then on break if their slot moves, unless they are remembered.
    pub transition_seconds: u64,
}

/// A backend that comes, goes or changes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlannedBackend {
    /// As it will be called.
    pub name: String,
    /// Where it listens; without a port if packets keep theirs.
    pub address: String,
    /// What happens to it.
    pub turn: Turn,
    /// Keys that change.
    pub keys: Vec<Change>,
    /// Flows that are remembered on it, if it goes; absent if they are not counted.
    pub flows: Option<u64>,
    /// For how long they may stay, if it goes; absent if there is no limit.
    pub flows_stay_seconds: Option<u64>,
}
