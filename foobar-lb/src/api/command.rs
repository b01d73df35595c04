//! What the daemon is told to do, and what it answers. It is done elsewhere.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

use crate::{config::MAX_WEIGHT, model::Admin, state};

/// `POST /v1/detach`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// Names of interfaces; all if there is none.
    pub interfaces: Vec<String>,
}

/// The answer to [`Detach`].
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Detached {
    /// What is attached no more.
    pub interfaces: Vec<String>,
    /// Nothing is attached any more, so the daemon ends.
    pub ends: bool,
}

/// `POST /v1/backends`: the operator says something of backends of a service.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Say {
    /// Name of the service.
    pub service: String,
    /// Names of the backends: all are changed at once, or none.
    pub backends: Vec<String>,
    /// What is said.
    pub word: Word,
}

/// The operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// New flows again.
    Enable,
    /// No new flows; known ones stay.
    Drain,
    /// No flows.
    Disable,
    /// This share of new flows.
    Weight(Weight),
}

/// A share of new flows relative to those of other backends, 0 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16")]
pub struct Weight(pub u16);

impl TryFrom<u16> for Weight {
    type Error = String;

    fn try_from(weight: u16) -> Result<Self, String> {
        let is_valid = weight <= MAX_WEIGHT;
        is_valid.then_some(Self(weight)).ok_or(format!("weight {weight} is out of range: 0 to {MAX_WEIGHT}"))
    }
}

impl PartialSchema for Weight {
    fn schema() -> RefOr<Schema> {
        let integer = ObjectBuilder::new().schema_type(Type::Integer);
        integer.minimum(Some(0)).maximum(Some(MAX_WEIGHT)).build().into()
    }
}

impl ToSchema for Weight {}

impl Word {
    /// What is then said of a backend of which `said` was said before.
    pub fn on(self, said: state::Word) -> state::Word {
        match self {
            Self::Enable => state::Word { admin: None, weight: said.weight.filter(|weight| *weight > 0) },
            Self::Drain => state::Word { admin: Some(Admin::Draining), ..said },
            Self::Disable => state::Word { admin: Some(Admin::Disabled), ..said },
            Self::Weight(Weight(weight)) => state::Word { weight: Some(weight), ..said },
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enable => f.write_str("enabled"),
            Self::Drain => f.write_str("draining"),
            Self::Disable => f.write_str("disabled"),
            Self::Weight(Weight(weight)) => write!(f, "weight {weight}"),
        }
    }
}

/// The answer to [`Say`].
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Heard {
    /// Consequences that may not be meant.
    pub warnings: Vec<String>,
}

/// `POST /v1/reload`: the configuration is to be read again.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Reload {
    /// The largest share of the slots of a service that may move, as `10%`; else as the configuration in force says.
    pub max_moved: Option<String>,
    /// Whatever it moves.
    pub force: bool,
}

/// The answer to [`Reload`]: the configuration was read again and is in force.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// What works but may not be meant.
    pub warnings: Vec<String>,
    /// Writes to the maps that it took.
    pub writes: u64,
    /// Services some of whose slots have another owner now. New backends get theirs when they have been measured.
    pub moved: Vec<Moved>,
}

/// Slots that have another owner now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Moved {
    /// Name of the service.
    pub service: String,
    /// Slots of its table.
    pub slots: u32,
    /// Those that have another owner.
    pub moved: u32,
}
