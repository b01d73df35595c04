//! The daemon's HTTP API over its Unix socket: the shapes of what it says, and the server.

mod plan;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

pub use self::plan::{Change, Plan, PlannedBackend, PlannedService, Proposal, Turn};
use crate::{
    config,
    daemon::{self, Event},
    model::Admin,
    start::chain,
    state,
};

/// No proposal is larger, in bytes: JSON may take two for one of the largest configuration.
const MAX_PROPOSAL: usize = 2 * config::MAX_FILE as usize + 4096;

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// Where the data path is attached.
    pub interfaces: Vec<Interface>,
    /// In the order of the configuration.
    pub services: Vec<Service>,
    /// By name: how often each reason occurred, on all interfaces.
    pub reasons: BTreeMap<String, Count>,
}

/// An attached interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `native` or `generic`.
    pub mode: String,
}

/// A balanced service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    /// As configured.
    pub name: String,
    /// VIP and port, or more of them, as in the configuration.
    pub address: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// How packets reach the backends: `nat`, `dsr`, `tunnel` or `snat`.
    pub mode: String,
    /// Slots of its table.
    pub slots: u32,
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
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backend {
    /// As configured.
    pub name: String,
    /// Where it listens; without a port if packets keep theirs.
    pub address: String,
    /// Its share of new flows: as the operator said, else as configured.
    pub weight: u16,
    /// `enabled`, `draining`, `disabled`, or `removed` when the configuration has it no more.
    pub admin: String,
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

/// A drain under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drain {
    /// Since it began.
    pub seconds: u64,
    /// Remembered flows that are alive on it, as counted some seconds ago at most; absent if they are not counted yet.
    pub seen: Option<u64>,
    /// Remembered flows that have shown their end, of which an acknowledgement or two may still come, or a download.
    pub closing: Option<u64>,
    /// How much longer there may be flows that have been silent since it began and so are not counted; absent
    /// when that time is over.
    pub silent_for_seconds: Option<u64>,
    /// Until the flows that are left are re-picked; absent if they may stay, or have been re-picked.
    pub remaining_seconds: Option<u64>,
    /// The drain time is over.
    pub over: bool,
}

/// A counted reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Count {
    /// Frames.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What the reason means.
    pub help: String,
}

/// `POST /v1/detach`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Detach {
    /// Names of interfaces; all if there is none.
    pub interfaces: Vec<String>,
}

/// The answer to [`Detach`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Detached {
    /// What is attached no more.
    pub interfaces: Vec<String>,
    /// Nothing is attached any more, so the daemon ends.
    pub ends: bool,
}

/// `POST /v1/backends`: the operator says something of backends of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Say {
    /// Name of the service.
    pub service: String,
    /// Names of the backends: all are changed at once, or none.
    pub backends: Vec<String>,
    /// What is said.
    pub word: Word,
}

/// The operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// New flows again.
    Enable,
    /// No new flows; known ones stay.
    Drain,
    /// No flows.
    Disable,
    /// This share of new flows, 0 to 1000.
    Weight(u16),
}

impl Word {
    /// What is then said of a backend of which `said` was said before.
    pub fn on(self, said: state::Word) -> state::Word {
        match self {
            Self::Enable => state::Word { admin: None, weight: said.weight.filter(|weight| *weight > 0) },
            Self::Drain => state::Word { admin: Some(Admin::Draining), ..said },
            Self::Disable => state::Word { admin: Some(Admin::Disabled), ..said },
            Self::Weight(weight) => state::Word { weight: Some(weight), ..said },
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enable => f.write_str("enabled"),
            Self::Drain => f.write_str("draining"),
            Self::Disable => f.write_str("disabled"),
            Self::Weight(weight) => write!(f, "weight {weight}"),
        }
    }
}

/// The answer to [`Say`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Heard {
    /// Consequences that may not be meant.
    pub warnings: Vec<String>,
}

/// `POST /v1/reload`: the configuration is to be read again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reload {
    /// The largest share of the slots of a service that may move, as `10%`; else as the configuration in force says.
    pub max_moved: Option<String>,
    /// Whatever it moves.
    pub force: bool,
}

/// The answer to [`Reload`]: the configuration was read again and is in force.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reloaded {
    /// What works but may not be meant.
    pub warnings: Vec<String>,
    /// Writes to the maps that it took.
    pub writes: u64,
    /// Services some of whose slots have another owner now. New backends get theirs when they have been measured.
    pub moved: Vec<Moved>,
}

/// Slots that have another owner now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Name of the service.
    pub service: String,
    /// Slots of its table.
    pub slots: u32,
    /// Those that have another owner.
    pub moved: u32,
}

/// A request that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
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

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody answers there already.
    #[error("another foobar-lb is running: it answers at {}", path.display())]
    Running {
        /// The socket.
        path: PathBuf,
    },
    /// The path is taken by something else.
    #[error("{} is not a socket; set `socket` in [daemon] to another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen at {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The socket, removed when dropped.
pub struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Socket {
    /// Listens; takes the place of a socket that nobody answers at any more.
    pub async fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Listen { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(metadata) => {
                use std::os::unix::fs::FileTypeExt;
                if !metadata.file_type().is_socket() {
                    return Err(Error::NotASocket { path: path.to_owned() });
                }
                if UnixStream::connect(path).await.is_ok() {
                    return Err(Error::Running { path: path.to_owned() });
                }
                fs::remove_file(path).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = Self { path: path.to_owned(), listener: Some(listener) };
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        Ok(socket)
    }

    /// Serves the API until `end`, and then until the requests under way are answered. To be called once.
    pub fn serve<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        events: mpsc::Sender<Event>,
        end: F,
    ) -> impl Future<Output = io::Result<()>> + use<F> {
        let listener = self.listener.take().expect("a socket is served once");
        let routes = Router::new()
            .route("/v1/status", get(status))
            .route("/v1/detach", post(detach))
            .route("/v1/backends", post(say))
            .route("/v1/plan", post(plan).layer(DefaultBodyLimit::max(MAX_PROPOSAL)))
            .route("/v1/reload", post(reload))
            .with_state(events);
        async move { axum::serve(listener, routes).with_graceful_shutdown(end).await }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

type Answer<T> = Result<Json<T>, (StatusCode, Json<Failure>)>;
type Events = State<mpsc::Sender<Event>>;

async fn status(State(events): Events) -> Answer<Status> {
    ask(events, Event::Status).await
}

async fn detach(State(events): Events, Json(request): Json<Detach>) -> Answer<Detached> {
    ask(events, |answer| Event::Detach(request, answer)).await
}

async fn say(State(events): Events, Json(request): Json<Say>) -> Answer<Heard> {
    ask(events, |answer| Event::Say(request, answer)).await
}

async fn plan(State(events): Events, Json(proposal): Json<Proposal>) -> Answer<Plan> {
    ask(events, |answer| Event::Plan(proposal, answer)).await
}

async fn reload(State(events): Events, Json(request): Json<Option<Reload>>) -> Answer<Reloaded> {
    ask(events, |answer| Event::Reload(request.unwrap_or_default(), Some(answer))).await
}

async fn ask<T>(events: mpsc::Sender<Event>, event: impl FnOnce(daemon::Answer<T>) -> Event) -> Answer<T> {
    let fail = |code, failure| Err((code, Json(failure)));
    let (answer, answered) = oneshot::channel();
    let ending = || Failure::new("the daemon is ending".to_owned());
    if events.send(event(answer)).await.is_err() {
        return fail(StatusCode::SERVICE_UNAVAILABLE, ending());
    }
    match answered.await {
        Ok(Ok(value)) => Ok(Json(value)),
        Ok(Err(failure)) if failure.invalid => fail(StatusCode::UNPROCESSABLE_ENTITY, failure),
        Ok(Err(failure)) => fail(StatusCode::CONFLICT, failure),
        Err(_) => fail(StatusCode::SERVICE_UNAVAILABLE, ending()),
    }
}
