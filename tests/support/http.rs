//! A small HTTP client that shows when the first byte and when the last byte of a download come.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use lab::Namespace;

use super::{EVENTUALLY, SOON};

/// An answer whose header has arrived; the body may still be on its way.
pub struct Download {
    /// What the server says of itself in `X-Served-By`.
    pub served_by: String,
    length: usize,
    stream: BufReader<TcpStream>,
}

impl Download {
    /// Asks for a file and waits for the header of a 200.
    pub fn begin(client: &Namespace, server: SocketAddr, path: &str) -> Result<Self> {
        let begun = client.enter(|| Self::request(server, path))?;
        begun.with_context(|| format!("GET http://{server}{path}"))
    }

    /// Waits for the rest of the body, which must have the length that the header says.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        let mut body = Vec::with_capacity(self.length);
        let read = self.stream.read_to_end(&mut body);
        read.with_context(|| format!("broken off after {} of {} bytes", body.len(), self.length))?;
        ensure!(body.len() == self.length, "{} bytes came of {}", body.len(), self.length);
        Ok(body)
    }

    fn request(server: SocketAddr, path: &str) -> Result<Self> {
        let mut stream = TcpStream::connect_timeout(&server, SOON)?;
        stream.set_read_timeout(Some(EVENTUALLY))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut stream = BufReader::new(stream);
        let mut status = String::new();
        stream.read_line(&mut status)?;
        ensure!(status.starts_with("HTTP/1.1 200 "), "the server says {status:?}");
        let headers = read_headers(&mut stream)?;
        let header = |name: &str| {
            let found = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone()).with_context(|| format!("no {name} in {headers:?}"))
        };
        Ok(Self { served_by: header("x-served-by")?, length: header("content-length")?.parse()?, stream })
    }
}

fn read_headers(stream: &mut impl BufRead) -> Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    for line in stream.lines() {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    Ok(headers)
}
