//! The `http` probe: one HTTP/1.1 GET on its own connection, judged by status and, where asked for, body.
//!
//! A backend may answer anything at all; what is kept of its answer is bounded, and nothing of it reaches a
//! reason but the status code. The body is read only where a text is expected in it. Once the handshake has
//! completed the host answers, so every failure from there on, a silent application included, leaves known
//! flows where they are.

use std::{
    error::Error as _,
    fmt,
    io::{self, ErrorKind},
    ops::RangeInclusive,
    pin::pin,
};

use futures::future::{Either, select};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{super::Http, Attempt, Millis, tcp};

const AGENT: &str = concat!("foobar-lb/", env!("CARGO_PKG_VERSION"));

/// How much of a head is parsed, and how much of a body is searched, before the probe gives up.
const READ_LIMIT: usize = 64 * 1024;
const HEADER_LIMIT: usize = 100;

/// What a host that accepted the connection did wrong.
#[derive(Debug, Error)]
pub(super) enum Error {
    #[error("connected, but no HTTP answer within {0}")]
    Hangs(Millis),
    #[error("the answer is not HTTP/1")]
    NotHttp,
    #[error("the answer's head has more than {HEADER_LIMIT} headers or 64 KiB")]
    HeadTooLarge,
    #[error("the connection was closed before the answer was complete")]
    ClosedEarly,
    #[error("connection reset before the answer was complete")]
    Reset,
    #[error("the HTTP exchange failed: {}", Causes(.0))]
    Exchange(hyper::Error),
    #[error("HTTP {status} in {elapsed}, expected {}", Statuses(expected))]
    Status { status: u16, elapsed: Millis, expected: RangeInclusive<u16> },
    #[error("HTTP {status}, but its body did not show {text:?} within {timeout}")]
    BodySlow { status: u16, text: String, timeout: Millis },
    #[error("HTTP {status} in {elapsed}, but the first {read} bytes of its body lack {text:?}")]
    BodyLacks { status: u16, elapsed: Millis, read: usize, text: String },
}

/// Succeeds with the status that came back and the time it took.
pub(super) async fn probe(expected: &Http, attempt: &Attempt) -> Result<String, super::Error> {
    let request = build_request(expected, attempt)?;
    let stream = tcp::connect(attempt).await?;
    Ok(exchange(expected, attempt, request, stream).await?)
}

fn build_request(expected: &Http, attempt: &Attempt) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let host = expected.host.clone().unwrap_or_else(|| attempt.address.to_string());
    Request::get(&expected.path)
        .header(HOST, host)
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(Empty::new())
}

/// Drives the connection and the exchange on it in one future, so that dropping the probe ends both.
async fn exchange(
    expected: &Http,
    attempt: &Attempt,
    request: Request<Empty<Bytes>>,
    stream: TcpStream,
) -> Result<String, Error> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(READ_LIMIT)
        .max_headers(HEADER_LIMIT)
        .handshake(TokioIo::new(stream))
        .await?;
    let answer = pin!(async move {
        let response = timeout_at(attempt.deadline(), sender.send_request(request)).await;
        judge(expected, attempt, response.map_err(|_elapsed| Error::Hangs(Millis(attempt.timeout)))??).await
    });
    match select(answer, pin!(connection)).await {
        Either::Left((judged, _connection)) => judged,
        // Whatever ended the connection, the answer is complete or fails by the same error.
        Either::Right((_ended, answer)) => answer.await,
    }
}

async fn judge(expected: &Http, attempt: &Attempt, response: Response<Incoming>) -> Result<String, Error> {
    let status = response.status().as_u16();
    let elapsed = attempt.elapsed();
    if !expected.status.contains(&status) {
        return Err(Error::Status { status, elapsed, expected: expected.status.clone() });
    }
    let Some(text) = expected.body.clone() else {
        return Ok(format!("HTTP {status} in {elapsed}"));
    };
    match search(response.into_body(), text.as_bytes(), attempt.deadline()).await? {
        Search::Found => Ok(format!("HTTP {status} in {elapsed}")),
        Search::Absent { read } => Err(Error::BodyLacks { status, elapsed, read, text }),
        Search::TimedOut => Err(Error::BodySlow { status, text, timeout: Millis(attempt.timeout) }),
    }
}

enum Search {
    Found,
    Absent { read: usize },
    TimedOut,
}

/// Looks for `text` in the first 64 KiB of `body` as they arrive, so that an endless body succeeds early too.
async fn search(mut body: Incoming, text: &[u8], deadline: Instant) -> Result<Search, Error> {
    let mut read = Vec::new();
    while read.len() < READ_LIMIT {
        let data = match timeout_at(deadline, body.frame()).await {
            Err(_elapsed) => return Ok(Search::TimedOut),
            Ok(None) => break,
            Ok(Some(frame)) => frame?.into_data().unwrap_or_default(),
        };
        // The text may have begun in what was searched before.
        let unsearched = (read.len() + 1).saturating_sub(text.len());
        read.extend_from_slice(&data[..data.len().min(READ_LIMIT - read.len())]);
        if contains(&read[unsearched..], text) {
            return Ok(Search::Found);
        }
    }
    Ok(if text.is_empty() { Search::Found } else { Search::Absent { read: read.len() } })
}

fn contains(haystack: &[u8], text: &[u8]) -> bool {
    text.is_empty() || haystack.windows(text.len()).any(|window| window == text)
}

impl From<hyper::Error> for Error {
    fn from(error: hyper::Error) -> Self {
        let kind = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
        match kind {
            Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Self::Reset,
            Some(ErrorKind::UnexpectedEof) => Self::ClosedEarly,
            _ if error.is_parse_too_large() => Self::HeadTooLarge,
            _ if error.is_parse() => Self::NotHttp,
            _ if error.is_incomplete_message() => Self::ClosedEarly,
            _ => Self::Exchange(error),
        }
    }
}

/// A range of status codes as the operator wrote it.
struct Statuses<'a>(&'a RangeInclusive<u16>);

impl fmt::Display for Statuses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

/// An error with what caused it; hyper's own text leaves the cause out.
struct Causes<'a>(&'a hyper::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut causes = std::iter::successors(self.0.source(), |&cause| cause.source());
        write!(f, "{}", self.0)?;
        causes.try_for_each(|cause| write!(f, ": {cause}"))
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::oneshot,
    };

    use super::*;
    use crate::{
        health::{
            Kind,
            probe::{self, ProbeResult},
            state::Outcome,
        },
        model::Down,
    };

    const ANSWERS: Outcome = Outcome::Failure(Down::Answers);
    /// Long enough for a loaded machine, where the probe is not meant to wait for it.
    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn the_expected_status_is_a_success() {
        let result = probe_server(anything(), LONG, b"HTTP/1.1 204 No Content\r\n\r\n", After::Close).await;
        assert_eq!(result.outcome, Outcome::Success, "{}", result.reason);
        assert!(result.reason.starts_with("HTTP 204 in "), "{}", result.reason);
        assert!(result.latency.is_some());
    }

    #[tokio::test]
    async fn the_request_is_a_plain_get() {
        for (host, expected) in [(Some("www.foobar.com".to_owned()), Some("www.foobar.com")), (None, None)] {
            let listener = TcpListener::bind("[::1]:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (sender, request) = oneshot::channel();
            let server = tokio::spawn(async move {
                let mut stream = listener.accept().await.unwrap().0;
                sender.send(read_head(&mut stream).await).unwrap();
            });
            let kind = Kind::Http(Http { path: "/healthz?deep=1".into(), host, ..anything() });
            let result = probe::probe(&kind, address, LONG).await;
            server.await.unwrap();
            assert_eq!(result.reason, "the connection was closed before the answer was complete");
            let host = expected.map_or_else(|| address.to_string(), str::to_owned);
            let lines = [
                "GET /healthz?deep=1 HTTP/1.1",
                &format!("host: {host}"),
                &format!("user-agent: {AGENT}"),
                "connection: close",
            ];
            assert_eq!(request.await.unwrap(), lines.join("\r\n") + "\r\n\r\n");
        }
    }

    #[tokio::test]
    async fn a_wrong_status_names_both() {
        let answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
        for (status, expected) in [(200..=299, " ms, expected 200-299"), (200..=200, " ms, expected 200")] {
            let result = probe_server(Http { status, ..anything() }, LONG, answer, After::Close).await;
            assert_eq!(result.outcome, ANSWERS);
            let reason = result.reason;
            assert!(reason.starts_with("HTTP 503 in ") && reason.ends_with(expected), "{reason}");
        }
    }

    #[tokio::test]
    async fn the_body_may_be_split_anywhere() {
        let answer =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nal\r\n3\r\nl w\r\n3\r\nell\r\n";
        let result = probe_server(body("all well"), LONG, answer, After::Hang).await;
        assert_eq!(result.outcome, Outcome::Success, "{}", result.reason);
    }

    #[tokio::test]
    async fn a_body_without_the_text_fails_after_64_kib_of_it_at_most() {
        let short = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nbroken".as_slice();
        let endless = b"HTTP/1.1 200 OK\r\n\r\n";
        let rows = [
            (short, After::Close, "the first 6 bytes"),
            (endless, After::Repeat(&[b'x'; 4000], usize::MAX), "the first 65536 bytes"),
        ];
        for (answer, after, read) in rows {
            let result = probe_server(body("all well"), LONG, answer, after).await;
            assert_eq!(result.outcome, ANSWERS);
            let expected = format!(" ms, but {read} of its body lack \"all well\"");
            assert!(result.reason.ends_with(&expected), "{}", result.reason);
        }
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        for after in [After::Repeat(b"X-A: b\r\n", 10_000), After::Repeat(&[b'x'; 1000], 1_000_000)] {
            let result = probe_server(anything(), LONG, b"HTTP/1.1 200 OK\r\nX:", after).await;
            let reason = "the answer's head has more than 100 headers or 64 KiB";
            assert_eq!((result.outcome, result.reason.as_str()), (ANSWERS, reason));
        }
    }

    #[tokio::test]
    async fn every_other_broken_answer_has_its_reason() {
        let not_http = "the answer is not HTTP/1";
        let closed = "the connection was closed before the answer was complete";
        let bad_chunk = "the HTTP exchange failed: error reading a body from connection: Invalid chunk size";
        let rows = [
            (b"5.7.0-MySQL\x00\x01\xff\n".as_slice(), After::Hang, not_http),
            (b"HTTP/9.9 yes\r\n\r\n", After::Hang, not_http),
            (b"\x16\x03\x01\x02", After::Hang, not_http),
            (b"", After::Close, closed),
            (b"HTTP/1.1 20", After::Close, closed),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\nx", After::Close, closed),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", After::Hang, bad_chunk),
            (b"HTTP/1.1 200 OK\r\n", After::Reset, "connection reset before the answer was complete"),
        ];
        for (answer, after, expected) in rows {
            let result = probe_server(body("all well"), LONG, answer, after).await;
            assert_eq!(result.outcome, ANSWERS);
            assert!(result.reason.starts_with(expected), "{} after {}", result.reason, answer.escape_ascii());
        }
    }

    #[tokio::test]
    async fn one_timeout_covers_a_silent_or_dripping_application_on_a_living_host() {
        let head = b"HTTP/1.1 200 OK\r\n\r\n";
        let hangs = "connected, but no HTTP answer within 1000 ms";
        let rows = [
            (b"".as_slice(), After::Hang, hangs),
            (b"", After::Drip(head), hangs),
            (b"", After::Repeat(b"HTTP/1.1 100 Continue\r\n\r\n", usize::MAX), hangs),
            (
                head,
                After::Drip(b"all well"),
                "HTTP 200, but its body did not show \"all well\" within 1000 ms",
            ),
        ];
        for (first, after, reason) in rows {
            let result = probe_server(body("all well"), SHORT, first, after).await;
            assert_eq!((result.outcome, result.reason.as_str()), (ANSWERS, reason));
        }
    }

    #[tokio::test]
    async fn a_request_that_cannot_be_written_is_not_the_backends_fault() {
        let http = Http { host: Some("www\r\n".into()), ..anything() };
        let result = probe_server(http, LONG, b"", After::Close).await;
        assert_eq!(result.outcome, Outcome::Inconclusive);
        assert_eq!(result.reason, "not probed, the request cannot be written: failed to parse header value");
    }

    fn anything() -> Http {
        Http { path: "/".into(), host: None, status: 200..=299, body: None }
    }

    fn body(text: &str) -> Http {
        Http { body: Some(text.into()), ..anything() }
    }

    /// What the server does after the first part of its answer.
    enum After {
        Close,
        Hang,
        Reset,
        /// Sends this so many times, or until the probe has gone.
        Repeat(&'static [u8], usize),
        /// Sends one byte a second, then hangs.
        Drip(&'static [u8]),
    }

    async fn probe_server(
        expected: Http,
        timeout: Duration,
        first: &'static [u8],
        after: After,
    ) -> ProbeResult {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, first, after));
        let result = probe::probe(&Kind::Http(expected), address, timeout).await;
        server.abort();
        result
    }

    async fn serve(listener: TcpListener, first: &[u8], after: After) -> io::Result<()> {
        let (mut stream, _) = listener.accept().await?;
        read_head(&mut stream).await;
        stream.write_all(first).await?;
        match after {
            After::Close => {}
            After::Hang => std::future::pending().await,
            After::Reset => stream.set_zero_linger()?,
            After::Repeat(bytes, times) => {
                for _ in 0..times {
                    stream.write_all(bytes).await?;
                }
            }
            After::Drip(bytes) => {
                let mut second = tokio::time::interval(Duration::from_secs(1));
                for byte in bytes {
                    second.tick().await;
                    stream.write_u8(*byte).await?;
                }
                std::future::pending().await
            }
        }
        Ok(())
    }

    async fn read_head(stream: &mut TcpStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }
}
