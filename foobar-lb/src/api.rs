//! The daemon's HTTP API over its Unix socket: the shapes of what it says, and the server.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use crate::daemon::Event;

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Of the daemon.
    pub version: String,
    /// Since the daemon started.
    pub uptime_seconds: u64,
    /// Why the maps are not as they should be; absent while they are.
    pub failure: Option<String>,
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
    /// VIP and port.
    pub address: SocketAddr,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// How packets reach the backends.
    pub mode: String,
    /// Slots of its table.
    pub slots: u32,
    /// Slots whose earlier owner still counts.
    pub slots_moving: u32,
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
    /// Frames its backends sent to clients.
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
    /// In the order of the configuration.
    pub backends: Vec<Backend>,
}

/// A backend of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backend {
    /// As configured.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// As configured.
    pub weight: u16,
    /// The operator's word.
    pub admin: String,
    /// What was measured.
    pub health: String,
    /// What the last probe met.
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

/// A request that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// Why.
    pub error: String,
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

async fn status(State(events): State<mpsc::Sender<Event>>) -> Answer<Status> {
    ask(events, Event::Status).await
}

async fn detach(State(events): State<mpsc::Sender<Event>>, Json(request): Json<Detach>) -> Answer<Detached> {
    ask(events, |answer| Event::Detach(request, answer)).await
}

async fn ask<T>(
    events: mpsc::Sender<Event>,
    event: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Event,
) -> Answer<T> {
    let fail = |code, error| Err((code, Json(Failure { error })));
    let (answer, answered) = oneshot::channel();
    let ending = || "the daemon is ending".to_owned();
    if events.send(event(answer)).await.is_err() {
        return fail(StatusCode::SERVICE_UNAVAILABLE, ending());
    }
    match answered.await {
        Ok(Ok(value)) => Ok(Json(value)),
        Ok(Err(error)) => fail(StatusCode::CONFLICT, error),
        Err(_) => fail(StatusCode::SERVICE_UNAVAILABLE, ending()),
    }
}
