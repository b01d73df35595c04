//! Who asks: whom the kernel says is at the other end of the socket, and whether he may change something.

use std::fmt;

use axum::{
    extract::{ConnectInfo, FromRequestParts, connect_info::Connected},
    http::{StatusCode, request::Parts},
    serve::IncomingStream,
};
use nix::unistd::{Uid, User};
use tokio::{
    net::{UnixListener, UnixStream},
    task::spawn_blocking,
};
use tracing::info;

use super::{
    Failure,
    routes::{Api, Refusal, Rights},
};

/// The process at the other end, as it was when it connected; absent if the kernel does not say.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    credentials: Option<Credentials>,
}

#[derive(Clone, Copy, Debug)]
struct Credentials {
    uid: u32,
    pid: Option<i32>,
}

impl Peer {
    /// Who is at the other end of a connection.
    pub fn of(stream: &UnixStream) -> Self {
        let credentials = stream.peer_cred().ok();
        let credentials = credentials.map(|peer| Credentials { uid: peer.uid(), pid: peer.pid() });
        Self { credentials }
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self::of(stream.io())
    }
}

/// Somebody who may change something, and asks for it: that is in the log from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// His user.
    pub uid: u32,
    /// The name of that, if it has one.
    pub user: Option<String>,
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => write!(f, "{user} (uid {})", self.uid),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

impl FromRequestParts<Api> for Operator {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        if api.rights == Rights::Read {
            let error = "at this socket nothing can be changed: use the one that `socket` in [daemon] names, which is for \
                         root and the group that `socket_group` names";
            return Err(Refusal(StatusCode::FORBIDDEN, Failure::new(error.to_owned())));
        }
        let peer = ConnectInfo::<Peer>::from_request_parts(parts, api).await.ok();
        let Some(Credentials { uid, pid }) = peer.and_then(|ConnectInfo(peer)| peer.credentials) else {
            let error =
                "who asks is unknown, so nothing is changed: the kernel does not say who is at the other end";
            return Err(Refusal(StatusCode::FORBIDDEN, Failure::new(error.to_owned())));
        };
        // Where users are kept elsewhere, the answer may take its time.
        let user = spawn_blocking(move || User::from_uid(Uid::from_raw(uid)).ok().flatten());
        let user = user.await.ok().flatten().map(|user| user.name);
        let operator = Self { uid, user };
        info!(by = %operator, pid, "asked for {} {}", parts.method, parts.uri.path());
        Ok(operator)
    }
}
