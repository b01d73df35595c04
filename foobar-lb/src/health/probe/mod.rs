//! Probes: one attempt to learn whether a backend works, one file per kind.
//! A probe says what it met; what follows from several of them is decided by [`super::state`].

mod http;
mod tcp;

use std::{fmt, io, net::SocketAddr, time::Duration};

use thiserror::Error;
use tokio::time::Instant;

use super::{Kind, state::Outcome};
use crate::model::Down;

/// What one probe met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeResult {
    /// What it says of the backend.
    pub outcome: Outcome,
    /// The same in words for the operator; holds no bytes that the backend sent.
    pub reason: String,
    /// How long a successful probe took; absent for the others and for what is not probed.
    pub latency: Option<Duration>,
}

/// Probes `address` once; takes no longer than `timeout`, holds one socket at most and gives it up when
/// dropped.
pub async fn probe(kind: &Kind, address: SocketAddr, timeout: Duration) -> ProbeResult {
    let attempt = Attempt { address, started: Instant::now(), timeout };
    let answer = match kind {
        Kind::None => {
            return ProbeResult {
                outcome: Outcome::Success,
                reason: "not checked".to_owned(),
                latency: None,
            };
        }
        Kind::Tcp => tcp::probe(&attempt).await,
        Kind::Http(expected) => http::probe(expected, &attempt).await,
    };
    let latency = attempt.started.elapsed();
    match answer {
        Ok(reason) => ProbeResult { outcome: Outcome::Success, reason, latency: Some(latency) },
        Err(error) => ProbeResult { outcome: error.outcome(), reason: error.to_string(), latency: None },
    }
}

/// One attempt at one backend, under one timeout from beginning to end.
struct Attempt {
    address: SocketAddr,
    started: Instant,
    timeout: Duration,
}

impl Attempt {
    fn deadline(&self) -> Instant {
        self.started + self.timeout
    }

    fn elapsed(&self) -> Millis {
        Millis(self.started.elapsed())
    }
}

/// Why a probe did not succeed; its text is the reason that the operator reads.
#[derive(Debug, Error)]
enum Error {
    #[error("no answer within {0}")]
    NoAnswer(Millis),
    #[error("no route to host")]
    NoRoute,
    #[error("network unreachable")]
    NetworkUnreachable,
    #[error("connection refused")]
    Refused,
    #[error("connection reset")]
    Reset,
    #[error("connection failed: {0}")]
    Failed(io::Error),
    #[error(transparent)]
    Http(#[from] http::Error),
    #[error("not probed, for want of something of the balancer's own: {0}")]
    Local(io::Error),
    #[error("not probed, the request cannot be written: {0}")]
    Request(#[from] hyper::http::Error),
}

impl Error {
    /// Silent only if nothing came back. Where a handshake completed, or a reset or refusal arrived, the
    /// host's own kernel is alive and ends by itself what is dead, so known flows may stay even if the
    /// application hangs.
    fn outcome(&self) -> Outcome {
        match self {
            Self::NoAnswer(_) | Self::NoRoute | Self::NetworkUnreachable => Outcome::Failure(Down::Silent),
            Self::Refused | Self::Reset | Self::Failed(_) | Self::Http(_) => Outcome::Failure(Down::Answers),
            Self::Local(_) | Self::Request(_) => Outcome::Inconclusive,
        }
    }
}

/// A time in milliseconds, with a decimal only where it tells something.
#[derive(Clone, Copy, Debug)]
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_secs_f64() * 1e3;
        let decimals = usize::from(millis < 10.0 && millis.fract() > 0.0);
        write!(f, "{millis:.decimals$} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let shown =
            [500, 1_200, 10_400, 2_000_000].map(|micros| Millis(Duration::from_micros(micros)).to_string());
        assert_eq!(shown, ["0.5 ms", "1.2 ms", "10 ms", "2000 ms"]);
    }

    #[tokio::test]
    async fn what_is_not_checked_succeeds() {
        let address = "192.0.2.1:9".parse().unwrap();
        let result = probe(&Kind::None, address, Duration::from_secs(1)).await;
        assert_eq!(
            result,
            ProbeResult { outcome: Outcome::Success, reason: "not checked".into(), latency: None }
        );
    }
}
