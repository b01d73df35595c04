//! Probes through the data path: what is said in `POST /v1/probe`. They are made elsewhere.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/probe`: a client's first packet is to be sent through the data path to each backend of a service.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Name of the service.
    pub service: String,
    /// Instead, what ends the connections that such packets have begun.
    pub end: bool,
}

/// The answer to [`Probe`].
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Probed {
    /// Those that were sent, at most one to each backend.
    pub sent: Vec<SentProbe>,
}

/// A packet that went through the data path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SentProbe {
    /// Name of the backend that it is for.
    pub backend: String,
    /// Where it seems to come from, address and port.
    pub client: String,
    /// Where it goes, address and port.
    pub vip: String,
}
