//! A visitor's HTTP client: HTTP/1.0 on a new connection for each request, so that each is a flow of its own
//! and ends with its connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// Longer than any step of a request takes on a site that works.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a server answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Answer {
    /// The value of a header; empty if it is missing.
    pub(super) fn header(&self, name: &str) -> &str {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }
}

/// Fetches a page.
///
/// # Errors
/// If the connection fails or the answer is not HTTP; any status is an answer.
pub(super) fn get(server: SocketAddr, path: &str) -> Result<Answer> {
    exchange(server, &format!("GET {path} HTTP/1.0\r\nHost: www.foobar.com\r\n\r\n"))
}

/// Sends a form, already encoded.
///
/// # Errors
/// As [`get`].
pub(super) fn post(server: SocketAddr, path: &str, form: &str) -> Result<Answer> {
    let length = form.len();
    let fields = "Content-Type: application/x-www-form-urlencoded";
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: www.foobar.com\r\n{fields}\r\nContent-Length: {length}\r\n\r\n"
    );
    exchange(server, &(head + form))
}

fn exchange(server: SocketAddr, request: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).context("no connection")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes()).context("the request could not be sent")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the answer broke off")?;
    parse(&answer).with_context(|| format!("not an HTTP answer: {answer:?}"))
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_headers_and_body_are_found() {
        let answer = parse("HTTP/1.1 200 OK\r\nX-Web-Server: web1\r\n\r\nbody\r\n\r\nmore").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "body\r\n\r\nmore"));
        assert_eq!((answer.header("x-web-server"), answer.header("missing")), ("web1", ""));
    }

    #[test]
    fn what_is_not_http_is_no_answer() {
        for wrong in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 many OK\r\n\r\n"] {
            assert!(parse(wrong).is_none(), "{wrong:?}");
        }
    }
}
