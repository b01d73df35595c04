//! The commands' side of the API: one request over the daemon's socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{net::UnixStream, time::timeout};

use crate::api::{
    Backend, Detach, Detached, Failure, Heard, Plan, Probe, Probed, Proposal, Reload, Reloaded, Say,
    SayOfService, Status,
};

/// How long the daemon may take to say how it is: many times what it takes with 10,000 services.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the daemon did not do what it was asked.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no foobar-lb is running: nobody listens at {}", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be used.
    #[error("cannot talk to the daemon at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody listens, and does not answer.
    #[error("the foobar-lb that listens at {} has not answered for {} s: it hangs, or has too much to do", path.display(), PATIENCE.as_secs())]
    NoAnswer {
        /// The socket.
        path: PathBuf,
    },
    /// The conversation broke off.
    #[error("the daemon broke off the conversation")]
    Http(#[from] hyper::Error),
    /// The answer is not of this version.
    #[error("the daemon's answer is not understood: is it of another version?")]
    Answer(#[from] serde_json::Error),
    /// The socket is not for this user.
    #[error(
        "not permitted to use {}: be root, or a member of its group (`socket_group` in [daemon])", path.display()
    )]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon refused.
    #[error("{0}")]
    Refused(String),
    /// The daemon does it when it is forced.
    #[error("{0}")]
    NeedsForce(String),
    /// The daemon found the configuration wrong.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Whether there is nobody who answers.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::NotRunning { .. } | Self::NoAnswer { .. })
    }
}

/// What the daemon says of itself.
pub async fn status(socket: &Path) -> Result<Status, Error> {
    let answer = timeout(PATIENCE, request(socket, Method::GET, "/v1/status", &())).await;
    answer.unwrap_or_else(|_| Err(Error::NoAnswer { path: socket.to_owned() }))
}

/// Takes the data path off interfaces; off all, if none is named.
pub async fn detach(socket: &Path, interfaces: Vec<String>) -> Result<Detached, Error> {
    request(socket, Method::POST, "/v1/detach", &Detach { interfaces }).await
}

/// What the daemon says of one backend.
pub async fn backend(socket: &Path, service: &str, backend: &str) -> Result<Backend, Error> {
    let [service, backend] = [service, backend].map(|name| utf8_percent_encode(name, NON_ALPHANUMERIC));
    request(socket, Method::GET, &format!("/v1/services/{service}/backends/{backend}"), &()).await
}

/// Says something of backends of a service.
pub async fn say(socket: &Path, said: &Say) -> Result<Heard, Error> {
    request(socket, Method::POST, "/v1/backends", said).await
}

/// Says something of a service.
pub async fn say_of_service(socket: &Path, said: &SayOfService) -> Result<Heard, Error> {
    request(socket, Method::POST, "/v1/services", said).await
}

/// Has the configuration read again.
pub async fn reload(socket: &Path, reload: &Reload) -> Result<Reloaded, Error> {
    request(socket, Method::POST, "/v1/reload", reload).await
}

/// What a configuration would change.
pub async fn plan(socket: &Path, proposal: &Proposal) -> Result<Plan, Error> {
    request(socket, Method::POST, "/v1/plan", proposal).await
}

/// Sends a client's first packets through the data path, or ends what they have begun.
pub async fn probe(socket: &Path, service: &str, end: bool) -> Result<Probed, Error> {
    request(socket, Method::POST, "/v1/probe", &Probe { service: service.to_owned(), end }).await
}

async fn request<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> Result<T, Error> {
    let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Error::NotRunning { path: socket.to_owned() }
        }
        io::ErrorKind::PermissionDenied => Error::Denied { path: socket.to_owned() },
        _ => Error::Connect { path: socket.to_owned(), source },
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "foobar-lb")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))
        .expect("names in the path are encoded, and the rest are constants");
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        let failure: Failure = serde_json::from_slice(&body)?;
        Err(match failure {
            Failure { invalid: true, error, .. } => Error::Invalid(error),
            Failure { needs_force: true, error, .. } => Error::NeedsForce(error),
            Failure { error, .. } => Error::Refused(error),
        })
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection ends only when the exchange is over or broken.
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}
