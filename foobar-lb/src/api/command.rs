//! What the daemon is told to do, and what it answers. It is done elsewhere.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

use crate::{
    config::MAX_WEIGHT,
    model::Admin,
    state::{self, Origin, Said},
};

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
    /// The word lapses after so long; without, it counts until it is taken back.
    #[serde(default)]
    pub for_seconds: Option<Period>,
    /// Refuse it unless so many of the service's other backends are enabled and up.
    #[serde(default)]
    #[schema(maximum = 4_294_967_295_u64)]
    pub min_up: Option<u32>,
    /// Do it also if no backend is left that is enabled and up.
    #[serde(default)]
    pub force: bool,
}

/// `POST /v1/services`: the operator says something of a service.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SayOfService {
    /// Its name.
    pub service: String,
    /// What is said.
    pub word: ServiceWord,
    /// The word lapses after so long; without, it counts until it is taken back.
    #[serde(default)]
    pub for_seconds: Option<Period>,
}

/// The operator's word about a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServiceWord {
    /// It is there again.
    Enable,
    /// Its packets are treated as if the configuration did not have it.
    Disable,
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

/// How long a word counts, in seconds, ten years at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct Period(u64);

impl Period {
    const MAX: u64 = 10 * 365 * 86_400;

    /// The same as a duration.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl TryFrom<u64> for Period {
    type Error = String;

    fn try_from(seconds: u64) -> Result<Self, String> {
        let is_valid = (1..=Self::MAX).contains(&seconds);
        is_valid
            .then_some(Self(seconds))
            .ok_or(format!("{seconds} seconds are out of range: 1 to {}", Self::MAX))
    }
}

impl PartialSchema for Period {
    fn schema() -> RefOr<Schema> {
        let integer = ObjectBuilder::new().schema_type(Type::Integer);
        integer.minimum(Some(1)).maximum(Some(Self::MAX)).build().into()
    }
}

impl ToSchema for Period {}

impl PartialSchema for Weight {
    fn schema() -> RefOr<Schema> {
        let integer = ObjectBuilder::new().schema_type(Type::Integer);
        integer.minimum(Some(0)).maximum(Some(MAX_WEIGHT)).build().into()
    }
}

impl ToSchema for Weight {}

impl Word {
    /// What is then said of a backend of which `said` was said before.
    pub fn on(self, said: state::Word, origin: &Origin) -> state::Word {
        let admin = |what| Some(Said { what, origin: origin.clone() });
        match self {
            Self::Enable => state::Word { admin: None, weight: said.weight.filter(|weight| weight.what > 0) },
            Self::Drain => state::Word { admin: admin(Admin::Draining), ..said },
            Self::Disable => state::Word { admin: admin(Admin::Disabled), ..said },
            Self::Weight(Weight(what)) => {
                state::Word { weight: Some(Said { what, origin: origin.clone() }), ..said }
            }
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

/// The answer to [`Say`] and [`SayOfService`]: it counts.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Heard {
    /// It is on the disk, and will count after a restart of the daemon, too. Else a warning says why not.
    pub kept: bool,
    /// When it lapses, if it does (RFC 3339).
    #[schema(format = DateTime)]
    pub until: Option<String>,
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
