//! The `tcp` probe: a handshake that completes is a success. Also how the other kinds connect.
//!
//! The connection is closed in the ordinary way. A reset (`SO_LINGER` of 0) would spare the balancer a socket
//! in TIME_WAIT for a minute, but many servers log a reset as a client's fault; and a port in TIME_WAIT is
//! taken towards that one backend only, so that even ten probes a second occupy 600 of its 28,000. A
//! server that expects a login, such as MySQL, counts and logs every such probe as an aborted connection.

use std::io;

use nix::errno::Errno;
use tokio::{net::TcpStream, time::timeout_at};

use super::{Attempt, Error, Millis};

/// Succeeds with the time that the handshake took.
pub(super) async fn probe(attempt: &Attempt) -> Result<String, Error> {
    connect(attempt).await?;
    Ok(format!("connected in {}", attempt.elapsed()))
}

/// Connects, or says why not.
pub(super) async fn connect(attempt: &Attempt) -> Result<TcpStream, Error> {
    let no_answer = || Error::NoAnswer(Millis(attempt.timeout));
    match timeout_at(attempt.deadline(), TcpStream::connect(attempt.address)).await {
        Err(_elapsed) => Err(no_answer()),
        Ok(Err(error)) if errno(&error) == Errno::ETIMEDOUT => Err(no_answer()),
        Ok(connected) => connected.map_err(classify),
    }
}

/// What `connect(2)` met. An error that means that the way to the backend is broken is the backend's, whoever
/// noticed; one that means that the balancer could not even try is its own. An error that is not known here
/// takes new flows away and leaves known ones alone.
fn classify(error: io::Error) -> Error {
    match errno(&error) {
        Errno::ECONNREFUSED => Error::Refused,
        Errno::ECONNRESET | Errno::ECONNABORTED => Error::Reset,
        Errno::EHOSTUNREACH | Errno::EHOSTDOWN => Error::NoRoute,
        // EINVAL is what Linux says of a blackhole route.
        Errno::ENETUNREACH | Errno::ENETDOWN | Errno::EINVAL => Error::NetworkUnreachable,
        // Out of ports, open files or memory, or forbidden by a local policy or route.
        Errno::EADDRNOTAVAIL
        | Errno::EADDRINUSE
        | Errno::EAGAIN
        | Errno::EMFILE
        | Errno::ENFILE
        | Errno::ENOBUFS
        | Errno::ENOMEM
        | Errno::EACCES
        | Errno::EPERM
        | Errno::EAFNOSUPPORT => Error::Local(error),
        _ => Error::Failed(error),
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;
    use crate::{
        health::{Kind, probe::probe, state::Outcome},
        model::Down,
    };

    const SILENT: Outcome = Outcome::Failure(Down::Silent);
    const ANSWERS: Outcome = Outcome::Failure(Down::Answers);

    #[tokio::test]
    async fn a_handshake_is_a_success_on_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let result = probe(&Kind::Tcp, listener.local_addr().unwrap(), Duration::from_secs(5)).await;
            assert_eq!(result.outcome, Outcome::Success, "{}", result.reason);
            assert!(result.reason.starts_with("connected in "), "{}", result.reason);
            assert!(result.latency.is_some());
        }
    }

    #[tokio::test]
    async fn the_server_sees_an_ordinary_close() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        probe(&Kind::Tcp, listener.local_addr().unwrap(), Duration::from_secs(5)).await;
        let (stream, _) = listener.accept().await.unwrap();
        stream.readable().await.unwrap();
        assert_eq!(stream.try_read(&mut [0; 1]).unwrap(), 0, "end of file, not a reset");
    }

    #[tokio::test]
    async fn a_closed_port_answers() {
        // Bound and not listening: refused, and nobody else can begin to listen there meanwhile.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let result = probe(&Kind::Tcp, socket.local_addr().unwrap(), Duration::from_secs(5)).await;
        assert_eq!(
            (result.outcome, result.reason.as_str(), result.latency),
            (ANSWERS, "connection refused", None)
        );
    }

    #[tokio::test]
    async fn a_handshake_without_answer_is_silent() {
        // A listener whose queue is full drops every further SYN, as a host that is gone does.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let _fills_the_queue = TcpStream::connect(address).await.unwrap();
        let result = probe(&Kind::Tcp, address, Duration::from_millis(150)).await;
        assert_eq!((result.outcome, result.reason.as_str()), (SILENT, "no answer within 150 ms"));
    }

    #[test]
    fn every_error_of_connect_is_classified() {
        let rows = [
            (Errno::ECONNREFUSED, ANSWERS, "connection refused"),
            (Errno::ECONNRESET, ANSWERS, "connection reset"),
            (Errno::EPROTO, ANSWERS, "connection failed: Protocol error (os error 71)"),
            (Errno::EHOSTUNREACH, SILENT, "no route to host"),
            (Errno::ENETUNREACH, SILENT, "network unreachable"),
            (Errno::ENETDOWN, SILENT, "network unreachable"),
            (Errno::EINVAL, SILENT, "network unreachable"),
        ];
        for (errno, outcome, reason) in rows {
            let error = classify(io::Error::from(errno));
            assert_eq!((error.outcome(), error.to_string().as_str()), (outcome, reason));
        }
    }

    #[test]
    fn what_the_balancer_lacks_says_nothing_of_the_backend() {
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::EADDRNOTAVAIL, Errno::ENOBUFS, Errno::EPERM] {
            assert_eq!(classify(io::Error::from(errno)).outcome(), Outcome::Inconclusive, "{errno}");
        }
        assert_eq!(
            classify(io::Error::from(Errno::EMFILE)).to_string(),
            "not probed, for want of something of the balancer's own: Too many open files (os error 24)"
        );
    }
}
