//! A server to balance: on one port, TCP and UDP, IPv4 and IPv6, it answers whatever it hears with its own
//! name and the client's address as it sees it. The answer to a datagram is as long, where that leaves room for it.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use lab::Namespace;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use super::network::{BACKEND_PORT, Network};

/// Starts `web1` and `web2` of a network.
pub fn start_pair(network: &Network) -> Result<[Echo; 2]> {
    start_pair_in(&network.web1, &network.web2)
}

/// Starts an echo server of its name in each.
pub fn start_pair_in(web1: &Namespace, web2: &Namespace) -> Result<[Echo; 2]> {
    let web1 = Echo::start(web1, "web1", BACKEND_PORT)?;
    let web2 = Echo::start(web2, "web2", BACKEND_PORT)?;
    Ok([web1, web2])
}

/// A running echo server. Dropping it closes its sockets and connections, as the end of a process does.
pub struct Echo {
    retire: Option<oneshot::Sender<()>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Serves TCP and UDP.
    pub fn start(namespace: &Namespace, name: &str, port: u16) -> Result<Self> {
        Self::start_at(namespace, name, (Ipv6Addr::UNSPECIFIED, port).into())
    }

    /// Serves TCP and UDP at one address only, which is then the source of its answers.
    pub fn start_at(namespace: &Namespace, name: &str, address: SocketAddr) -> Result<Self> {
        let udp = namespace.enter(|| UdpSocket::bind(address))??;
        Self::serve(namespace, name, address, Some(udp))
    }

    /// Serves TCP only: UDP to this port is answered by the kernel, with ICMP.
    pub fn start_tcp_only(namespace: &Namespace, name: &str, port: u16) -> Result<Self> {
        Self::serve(namespace, name, (Ipv6Addr::UNSPECIFIED, port).into(), None)
    }

    /// Stops it gracefully: it takes no new connections, and keeps those it has until it is dropped.
    pub fn retire(&mut self) {
        drop(self.retire.take());
    }

    fn serve(namespace: &Namespace, name: &str, address: SocketAddr, udp: Option<UdpSocket>) -> Result<Self> {
        let tcp = namespace.enter(|| TcpListener::bind(address))??;
        let (stop, stopped) = oneshot::channel();
        let (retire, retired) = oneshot::channel();
        let name = name.to_owned();
        let thread = thread::spawn(move || {
            let served = serve_until(stopped, retired, &name, tcp, udp);
            served.unwrap_or_else(|error| panic!("echo server {name}: {error:#}"));
        });
        Ok(Self { retire: Some(retire), stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map_or(Ok(()), JoinHandle::join);
        assert!(ended.is_ok() || thread::panicking(), "an echo server failed");
    }
}

fn serve_until(
    mut stopped: oneshot::Receiver<()>,
    retired: oneshot::Receiver<()>,
    name: &str,
    tcp: TcpListener,
    udp: Option<UdpSocket>,
) -> Result<()> {
    tcp.set_nonblocking(true)?;
    if let Some(udp) = &udp {
        udp.set_nonblocking(true)?;
    }
    let runtime = Builder::new_current_thread().enable_io().build().context("no runtime")?;
    runtime.block_on(async {
        let tcp = net::TcpListener::from_std(tcp)?;
        let udp = udp.map(net::UdpSocket::from_std).transpose()?;
        tokio::select! {
            served = serve_tcp(name, tcp) => return served,
            served = serve_udp(name, udp) => return served,
            // The senders never send; that they are gone says what to do.
            _ = &mut stopped => return Ok(()),
            _ = retired => {}
        }
        drop(stopped.await);
        Ok(())
    })
}

async fn serve_tcp(name: &str, listener: net::TcpListener) -> Result<()> {
    loop {
        let (stream, client) = listener.accept().await?;
        let greeting = answer(name, client);
        tokio::spawn(async move {
            // A client that goes away ends the conversation; it is not the server's error.
            drop(answer_lines(stream, &greeting).await);
        });
    }
}

async fn answer_lines(stream: net::TcpStream, answer: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
        line.clear();
    }
    Ok(())
}

async fn serve_udp(name: &str, socket: Option<net::UdpSocket>) -> Result<()> {
    let Some(socket) = socket else { return std::future::pending().await };
    let mut datagram = vec![0; 1 << 16];
    loop {
        let (length, client) = socket.recv_from(&mut datagram).await?;
        let greeting = answer(name, client);
        let rest = datagram[..length].get(greeting.len()..).unwrap_or_default();
        socket.send_to(&[greeting.as_bytes(), rest].concat(), client).await?;
    }
}

fn answer(name: &str, client: SocketAddr) -> String {
    format!("{name} {}\n", SocketAddr::new(client.ip().to_canonical(), client.port()))
}
