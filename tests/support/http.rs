//! A small HTTP client that shows when the first byte and when the last byte of a download come, and that uploads.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use lab::Namespace;

use super::{EVENTUALLY, SOON};

/// Large enough that reading is no more work than sending.
const BUFFER: usize = 256 << 10;

/// An answer whose header has arrived; the body may still be on its way.
pub struct Download {
    /// What the server says of itself in `X-Served-By`.
    pub served_by: String,
    /// What is still to be read of the body, in bytes.
    pub left: u64,
    stream: BufReader<TcpStream>,
}

impl Download {
    /// Asks for a file and waits for the header of a 200.
    pub fn begin(client: &Namespace, server: SocketAddr, path: &str) -> Result<Self> {
        let begun = client.enter(|| Self::request(server, path))?;
        begun.with_context(|| format!("GET http://{server}{path}"))
    }

    /// Writes so many bytes of the body into `sink`, fewer only at its end.
    pub fn read_into(&mut self, sink: &mut impl Write, bytes: u64) -> Result<()> {
        let wanted = bytes.min(self.left);
        let read = io::copy(&mut (&mut self.stream).take(wanted), sink);
        let read = read.with_context(|| format!("broken off with {} bytes left", self.left))?;
        ensure!(read == wanted, "ended with {} bytes left", self.left - read);
        self.left -= read;
        Ok(())
    }

    /// Waits for the rest of the body, which must have the length that the header says.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        self.read_into(&mut body, u64::MAX)?;
        let more = self.stream.read(&mut [0])?;
        ensure!(more == 0, "the body is longer than the header says");
        Ok(body)
    }

    fn request(server: SocketAddr, path: &str) -> Result<Self> {
        let mut stream = connect(server)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut stream = BufReader::with_capacity(BUFFER, stream);
        let mut status = String::new();
        stream.read_line(&mut status)?;
        ensure!(status.starts_with("HTTP/1.1 200 "), "the server says {status:?}");
        let headers = read_headers(&mut stream)?;
        let header = |name: &str| {
            let found = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone()).with_context(|| format!("no {name} in {headers:?}"))
        };
        Ok(Self { served_by: header("x-served-by")?, left: header("content-length")?.parse()?, stream })
    }
}

/// Puts a file at a path where the server has none yet.
pub fn upload(client: &Namespace, server: SocketAddr, path: &str, file: &mut File) -> Result<()> {
    let put = || {
        let mut stream = connect(server)?;
        let length = file.metadata()?.len();
        write!(
            stream,
            "PUT {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        )?;
        let sent = io::copy(file, &mut stream)?;
        ensure!(sent == length, "{sent} bytes sent of {length}");
        let mut status = String::new();
        BufReader::new(stream).read_line(&mut status)?;
        ensure!(status.starts_with("HTTP/1.1 201 "), "the server says {status:?}");
        Ok(())
    };
    client.enter(put)?.with_context(|| format!("PUT http://{server}{path}"))
}

fn connect(server: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, SOON)?;
    stream.set_read_timeout(Some(EVENTUALLY))?;
    stream.set_write_timeout(Some(EVENTUALLY))?;
    Ok(stream)
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
