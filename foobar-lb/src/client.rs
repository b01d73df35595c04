//! The commands' side of the API: one request over the daemon's socket.

use std::{
    io,
    path::{Path, PathBuf},
};

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::net::UnixStream;

use crate::api::{Detach, Detached, Failure, Heard, Plan, Proposal, Reload, Reloaded, Say, Status, Word};

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
    /// The conversation broke off.
    #[error("the daemon broke off the conversation")]
    Http(#[from] hyper::Error),
    /// The answer is not of this version.
    #[error("the daemon's answer is not understood: is it of another version?")]
    Answer(#[from] serde_json::Error),
    /// The daemon refused.
    #[error("{0}")]
    Refused(String),
    /// The daemon found the configuration wrong.
    #[error("{0}")]
    Invalid(String),
}

/// What the daemon says of itself.
pub async fn status(socket: &Path) -> Result<Status, Error> {
    request(socket, Method::GET, "/v1/status", &()).await
}

/// Takes the data path off interfaces; off all, if none is named.
pub async fn detach(socket: &Path, interfaces: Vec<String>) -> Result<Detached, Error> {
    request(socket, Method::POST, "/v1/detach", &Detach { interfaces }).await
}

/// Says something of backends of a service.
pub async fn say(socket: &Path, service: &str, backends: &[String], word: Word) -> Result<Heard, Error> {
    let said = Say { service: service.to_owned(), backends: backends.to_vec(), word };
    request(socket, Method::POST, "/v1/backends", &said).await
}

/// Has the configuration read again.
pub async fn reload(socket: &Path, reload: &Reload) -> Result<Reloaded, Error> {
    request(socket, Method::POST, "/v1/reload", reload).await
}

/// What a configuration would change.
pub async fn plan(socket: &Path, proposal: &Proposal) -> Result<Plan, Error> {
    request(socket, Method::POST, "/v1/plan", proposal).await
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
        _ => Error::Connect { path: socket.to_owned(), source },
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "foobar-lb")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))
        .expect("method, path and headers are constants");
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        let Failure { error, invalid } = serde_json::from_slice(&body)?;
        Err(if invalid { Error::Invalid(error) } else { Error::Refused(error) })
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
