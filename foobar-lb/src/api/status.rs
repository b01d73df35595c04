//! What the daemon says of itself: the answer to `GET /v1/status`. It is gathered elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Of the daemon.
    pub version: String,
    /// Since the daemon started.
    pub uptime_seconds: u64,
    /// Why the maps are not as they should be; absent while they are.
    pub failure: Option<String>,
    /// How long the configuration has been in force.
    pub config_seconds: u64,
    /// Why the last reload was refused; absent if there was none or it succeeded.
    pub reload_failure: Option<String>,
    /// How long ago that was.
    #[serde(default)]
    pub reload_failed_seconds: Option<u64>,
    /// Why what was said of backends and services before this daemon started does not count any more; absent if it does.
    pub words_lost: Option<String>,
    /// Why what is said would not outlive this daemon; absent if it would.
    pub words_unkept: Option<String>,
    /// The kernel's id of the program, as `bpftool prog show id` takes it.
    #[serde(default)]
    pub program_id: u32,
    /// Where the data path is attached.
    pub interfaces: Vec<Interface>,
    /// Name and id of the XDP program that gets the packets that are passed; absent where there is none.
    pub next_program: Option<String>,
    /// In the order of the configuration.
    pub services: Vec<Service>,
    /// By name: how often each reason occurred, on all interfaces.
    pub reasons: BTreeMap<String, Count>,
}

/// An attached interface.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `native` or `generic`.
    pub mode: String,
}

/// A balanced service.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// As configured.
    pub name: String,
    /// VIP and port, or more of them, as in the configuration.
    pub address: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// How packets reach the backends: `nat`, `dsr`, `tunnel` or `snat`.
    pub mode: String,
    /// That the operator has disabled it; absent unless that was said.
    pub disabled: Option<Saying>,
    /// Slots of its table.
    pub slots: u32,
    /// Where in the map of all slots its table begins.
    #[serde(default)]
    pub first_slot: u32,
    /// 16 hexadecimal digits that are the same wherever new flows of the service go to the same backends in the same way;
    /// absent while it is disabled.
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// Slots in which remembered flows count.
    pub slots_unsettled: u32,
    /// Slots that no backend owns.
    pub slots_unowned: u32,
    /// No backend is eligible, so new flows are spread over all that are enabled.
    pub fails_open: bool,
    /// What happens when no backend is eligible.
    pub when_empty: String,
    /// Frames sent to its backends.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames its backends sent to clients; none in modes `dsr` and `tunnel`, where they pass the balancer by.
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
    /// In the order of the configuration.
    pub backends: Vec<Backend>,
}

impl Service {
    /// Whether its backends' replies pass through the balancer.
    pub fn passes_replies(&self) -> bool {
        !["dsr", "tunnel"].contains(&self.mode.as_str())
    }
}

/// A backend of a service.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Backend {
    /// As configured.
    pub name: String,
    /// Where it listens; without a port if packets keep theirs.
    pub address: String,
    /// Its share of new flows: as the operator said, else as configured.
    pub weight: u16,
    /// `enabled`, `draining`, `disabled`, or `removed` when the configuration has it no more: what counts of the
    /// operator's word and the configuration.
    pub admin: String,
    /// What of that the operator said while the daemon ran, `draining` or `disabled`; absent unless one of them was.
    pub admin_said: Option<Saying>,
    /// That he said its weight; absent unless he did.
    pub weight_said: Option<Saying>,
    /// What the configuration says by itself: `enabled`, `draining` (a weight of 0) or `removed`.
    pub admin_configured: String,
    /// The weight that the configuration says.
    pub weight_configured: u16,
    /// How its flows leave it; absent unless it is draining or removed.
    pub drain: Option<Drain>,
    /// Remembered flows that had to leave it while they were alive.
    pub repicked: u64,
    /// What was measured.
    pub health: String,
    /// What the last probe met, or why packets cannot reach it.
    pub reason: String,
    /// How long its health has been what it is; absent before the first probe.
    pub since_seconds: Option<u64>,
    /// Whether its health is measured.
    pub checked: bool,
    /// How many of its probes have succeeded since the last that did not.
    pub successes: u64,
    /// How long the last successful probe took, in milliseconds.
    pub latency_ms: Option<f64>,
    /// How often its health has changed.
    pub transitions: u64,
    /// New flows are sent to it.
    pub eligible: bool,
    /// Known flows may stay on it.
    pub serves: bool,
    /// Slots it owns.
    pub slots: u32,
    /// MAC and interface; absent while no neighbour answers.
    pub next_hop: Option<String>,
    /// Frames sent to it.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames it sent to clients.
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}

/// Something that the operator said while the daemon ran, which counts more than the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Saying {
    /// What.
    pub word: String,
    /// By whom.
    pub by: String,
    /// When (RFC 3339).
    #[schema(format = DateTime)]
    pub at: String,
    /// When it lapses, if it does (RFC 3339).
    #[schema(format = DateTime)]
    pub until: Option<String>,
}

/// A drain under way.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// Since it began.
    pub seconds: u64,
    /// Remembered flows that are alive on it, as counted some seconds ago at most; absent if they are not counted yet.
    pub seen: Option<u64>,
    /// Remembered flows that have shown their end, of which an acknowledgement or two may still come, or a download.
    pub closing: Option<u64>,
    /// How long ago the flow that has been quiet the longest last sent; absent if there is none.
    pub quietest_seconds: Option<u64>,
    /// How much longer there may be flows that have been silent since it began and so are not counted; absent
    /// when that time is over.
    pub silent_for_seconds: Option<u64>,
    /// Until the flows that are left are re-picked; absent if they may stay, or have been re-picked.
    pub remaining_seconds: Option<u64>,
    /// The drain time is over.
    pub over: bool,
}

/// A counted reason.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Count {
    /// Frames.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What the reason means.
    pub help: String,
}
