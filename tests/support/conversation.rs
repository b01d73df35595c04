//! A client's flow to an echo server, TCP or UDP, over ordinary sockets.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Namespace, wait_until};
use socket2::{Domain, SockRef, Socket, Type};

use super::network::Family;
use super::{EVENTUALLY, SOON};

/// So many flows do not leave out a backend by chance.
const MANY: usize = 500;
/// So many flows meet a backend that should have none.
const FEW: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Every family with every protocol.
pub const KINDS: [(Family, Protocol); 4] = [
    (Family::V4, Protocol::Tcp),
    (Family::V4, Protocol::Udp),
    (Family::V6, Protocol::Tcp),
    (Family::V6, Protocol::Udp),
];

/// What an echo server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who answered.
    pub backend: String,
    /// The client's address as the backend saw it.
    pub client: SocketAddr,
}

/// One flow, open.
pub enum Conversation {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

impl Conversation {
    /// Opens a flow to `server` from a port of the kernel's choice.
    pub fn open(client: &Namespace, protocol: Protocol, server: SocketAddr) -> Result<Self> {
        let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
        Self::open_from(client, any, protocol, server)
    }

    /// Opens a flow to `server` from the address `source`.
    pub fn open_from(
        client: &Namespace,
        source: SocketAddr,
        protocol: Protocol,
        server: SocketAddr,
    ) -> Result<Self> {
        let opened = client.enter(|| match protocol {
            Protocol::Tcp => connect_tcp(source, server).map(|stream| Self::Tcp(BufReader::new(stream))),
            Protocol::Udp => connect_udp(source, server).map(Self::Udp),
        })?;
        opened.with_context(|| format!("no {protocol:?} flow from {source} to {server}"))
    }

    /// Says something and waits for the answer. A connected UDP socket hears nobody but the address it
    /// asked, so an answer proves that it came from there.
    pub fn ask(&mut self) -> Result<Answer> {
        let mut answer = String::new();
        match self {
            Self::Tcp(stream) => {
                stream.get_mut().write_all(b"who are you\n").context("cannot ask")?;
                stream.read_line(&mut answer).context("no answer")?;
            }
            Self::Udp(socket) => {
                socket.send(b"who are you\n").context("cannot ask")?;
                let mut datagram = [0; 256];
                let length = receive(socket, &mut datagram).context("no answer")?;
                answer.push_str(str::from_utf8(&datagram[..length])?);
            }
        }
        let (backend, client) = answer.trim_end().split_once(' ').with_context(|| format!("{answer:?}"))?;
        Ok(Answer { backend: backend.to_owned(), client: client.parse()? })
    }

    /// The same backend must answer again.
    pub fn expect_answer_from(&mut self, backend: &str) -> Result<()> {
        let answer = self.ask().with_context(|| format!("a flow with {backend}"))?;
        ensure!(answer.backend == backend, "a flow moved from {backend} to {}", answer.backend);
        Ok(())
    }

    /// A connection that was handed to another backend is ended by that.
    pub fn expect_reset(&mut self) -> Result<()> {
        let Err(error) = self.ask() else { bail!("it was answered, not reset") };
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        ensure!(kind == Some(io::ErrorKind::ConnectionReset), "not reset, but: {error:#}");
        Ok(())
    }

    /// The other side closed it already, and must reset it for what was said since.
    pub fn wait_for_reset(&self) -> Result<()> {
        let Self::Tcp(stream) = self else { bail!("only TCP is reset") };
        let stream = SockRef::from(stream.get_ref());
        wait_until(EVENTUALLY, "the reset", || stream.take_error().is_ok_and(|error| error.is_some()))
    }

    /// Ends it without a word to wait for: TCP sends a reset.
    pub fn abort(self) -> Result<()> {
        if let Self::Tcp(stream) = &self {
            SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// The client's own address.
    pub fn local_address(&self) -> Result<SocketAddr> {
        Ok(match self {
            Self::Tcp(stream) => stream.get_ref().local_addr()?,
            Self::Udp(socket) => socket.local_addr()?,
        })
    }
}

/// Opens flows until one is with the backend, and returns that.
pub fn open_with(
    client: &Namespace,
    protocol: Protocol,
    server: SocketAddr,
    backend: &str,
) -> Result<Conversation> {
    for _ in 0..MANY {
        let mut conversation = Conversation::open(client, protocol, server)?;
        if conversation.ask()?.backend == backend {
            return Ok(conversation);
        }
    }
    bail!("{MANY} flows to {server}, and none was with {backend}")
}

/// New flows must be answered by these backends, by each of them and by no others.
pub fn expect_newcomers_at(
    client: &Namespace,
    protocol: Protocol,
    server: SocketAddr,
    backends: &[&str],
) -> Result<()> {
    let mut served = BTreeSet::new();
    for number in 0..MANY {
        let backend = ask_once(client, protocol, server)?.0.backend;
        ensure!(backends.contains(&backend.as_str()), "a new flow to {server} went to {backend}");
        served.insert(backend);
        if served.len() == backends.len() && number >= FEW {
            return Ok(());
        }
    }
    bail!("{MANY} new flows to {server} went to {served:?} only, not to all of {backends:?}")
}

/// Opens a flow, asks once, and returns who answered; the client's address must have been kept.
pub fn ask(client: &Namespace, protocol: Protocol, server: SocketAddr) -> Result<String> {
    let (answer, client) = ask_once(client, protocol, server)?;
    ensure!(answer.client == client, "the backend saw {}, but the client is {client}", answer.client);
    Ok(answer.backend)
}

/// Opens a flow, asks once, and returns the answer and the client's own address.
pub fn ask_once(client: &Namespace, protocol: Protocol, server: SocketAddr) -> Result<(Answer, SocketAddr)> {
    let mut conversation = Conversation::open(client, protocol, server)?;
    let answer = conversation.ask().with_context(|| format!("{protocol:?} to {server}"))?;
    Ok((answer, conversation.local_address()?))
}

/// Asks with a datagram of so many bytes, which makes fragments of it if that is too much for a frame. The answer must be
/// as long, and end as what was asked.
pub fn ask_at_length(client: &Namespace, server: SocketAddr, length: usize) -> Result<()> {
    ask_at_length_within(client, server, length, SOON)
}

/// The same, with an answer that is waited for so long.
pub fn ask_at_length_within(
    client: &Namespace,
    server: SocketAddr,
    length: usize,
    patience: Duration,
) -> Result<()> {
    /// No name and address in an answer are longer.
    const GREETING: usize = 100;
    let flow = Conversation::open(client, Protocol::Udp, server)?;
    let Conversation::Udp(socket) = flow else { bail!("a UDP flow is none of UDP") };
    socket.set_read_timeout(Some(patience))?;
    let question: Vec<u8> = (0..length).map(|place| (place / 3) as u8).collect();
    socket.send(&question).context("cannot ask")?;
    let mut answer = vec![0; 1 << 16];
    let received = receive(&socket, &mut answer).context("no answer")?;
    ensure!(received == length, "the answer has {received} bytes, not {length}");
    ensure!(answer[GREETING..length] == question[GREETING..], "the answer's data differ");
    Ok(())
}

/// Waits for a datagram, also when the process is stopped and goes on meanwhile, which interrupts the wait (signal(7)).
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            ended => return ended,
        }
    }
}

/// Tries a TCP connection for `patience`; the error is the socket's.
pub fn connect(client: &Namespace, server: SocketAddr, patience: Duration) -> Result<io::Result<TcpStream>> {
    client.enter(|| TcpStream::connect_timeout(&server, patience))
}

fn connect_tcp(source: SocketAddr, server: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    // A port may be used again while its last connection is still remembered.
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())?;
    socket.connect_timeout(&server.into(), SOON)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn connect_udp(source: SocketAddr, server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(source)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}
