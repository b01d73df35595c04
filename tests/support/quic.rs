//! QUIC between real ends: servers whose connection ids name them, or say nothing, and clients that change their address
//! in mid-connection.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Namespace;
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig,
    TokioRuntime,
};
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::SOON;

/// The first three bits of the ids that name a server.
pub const CONFIG_ROTATION: u8 = 2;
/// Bytes of a server id.
pub const SERVER_ID: usize = 3;
/// Bytes behind it.
const NONCE: usize = 6;
/// The name that servers show a certificate for.
const NAME: &str = "www.foobar.com";
/// Bytes of the longest answer.
const LONGEST: usize = 64;

/// What servers show that they are, and clients believe.
pub struct Identity(CertifiedKey<KeyPair>);

impl Identity {
    pub fn new() -> Result<Self> {
        Ok(Self(generate_simple_self_signed([NAME.to_owned()])?))
    }

    fn certificate(&self) -> CertificateDer<'static> {
        self.0.cert.der().clone()
    }

    fn server(&self) -> Result<ServerConfig> {
        let key = PrivatePkcs8KeyDer::from(self.0.signing_key.serialize_der());
        Ok(ServerConfig::with_single_cert(vec![self.certificate()], key.into())?)
    }

    fn client(&self) -> Result<ClientConfig> {
        let mut known = RootCertStore::empty();
        known.add(self.certificate())?;
        Ok(ClientConfig::with_root_certificates(Arc::new(known))?)
    }
}

/// A server that answers everything with its name. Dropping it ends it without a word to its clients.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves at this address, with connection ids that have `id` in them, or that say nothing.
    pub fn start(
        namespace: &Namespace,
        name: &'static str,
        address: SocketAddr,
        id: Option<[u8; SERVER_ID]>,
        identity: &Identity,
    ) -> Result<Self> {
        let socket = bind(namespace, address)?;
        let mut endpoint = EndpointConfig::default();
        if let Some(id) = id {
            endpoint.cid_generator(move || Box::new(Named(id)));
        }
        let server = identity.server()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let served = serve_until(stopped, name, endpoint, server, socket);
            served.unwrap_or_else(|error| panic!("QUIC server {name}: {error:#}"));
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map_or(Ok(()), JoinHandle::join);
        assert!(ended.is_ok() || thread::panicking(), "a QUIC server failed");
    }
}

/// Makes ids that name a server, as draft-ietf-quic-load-balancers has them without a key.
struct Named([u8; SERVER_ID]);

impl ConnectionIdGenerator for Named {
    fn generate_cid(&mut self) -> ConnectionId {
        let first = CONFIG_ROTATION << 5 | rand::random::<u8>() >> 3;
        ConnectionId::new(&[&[first], &self.0[..], &rand::random::<[u8; NONCE]>()].concat())
    }

    fn cid_len(&self) -> usize {
        1 + SERVER_ID + NONCE
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn serve_until(
    stopped: oneshot::Receiver<()>,
    name: &'static str,
    endpoint: EndpointConfig,
    server: ServerConfig,
    socket: UdpSocket,
) -> Result<()> {
    runtime()?.block_on(async {
        let endpoint = Endpoint::new(endpoint, Some(server), socket, Arc::new(TokioRuntime))?;
        tokio::select! {
            () = serve(name, &endpoint) => {}
            // The sender never sends; that it is gone says what to do.
            _ = stopped => {}
        }
        Ok(())
    })
}

async fn serve(name: &'static str, endpoint: &Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            // A client that goes away ends the conversation; it is not the server's error.
            if let Ok(connection) = incoming.await {
                drop(answer(name, &connection).await);
            }
        });
    }
}

async fn answer(name: &str, connection: &Connection) -> Result<()> {
    loop {
        let (mut answer, mut question) = connection.accept_bi().await?;
        question.read_to_end(LONGEST).await?;
        answer.write_all(name.as_bytes()).await?;
        answer.finish()?;
    }
}

/// A client with a connection.
pub struct Client {
    runtime: Runtime,
    endpoint: Endpoint,
    connection: Connection,
}

impl Client {
    /// Connects from one address to the other.
    pub fn connect(
        namespace: &Namespace,
        from: SocketAddr,
        server: SocketAddr,
        identity: &Identity,
    ) -> Result<Self> {
        let socket = bind(namespace, from)?;
        let runtime = runtime()?;
        let (endpoint, connection) = runtime.block_on(async {
            let config = EndpointConfig::default();
            let endpoint = Endpoint::new(config, None, socket, Arc::new(TokioRuntime))?;
            let connecting = endpoint.connect_with(identity.client()?, server, NAME)?;
            let connection = connecting.await.with_context(|| format!("from {from} to {server}"))?;
            anyhow::Ok((endpoint, connection))
        })?;
        Ok(Self { runtime, endpoint, connection })
    }

    /// Who answers on the connection, if anybody does soon.
    pub fn ask(&self) -> Result<String> {
        let answered = async { timeout(SOON, ask(&self.connection)).await };
        self.runtime.block_on(answered).context("no answer")?
    }

    /// The same server must answer again.
    pub fn expect_answer_from(&self, server: &str) -> Result<()> {
        let answer = self.ask()?;
        ensure!(answer == server, "a connection moved from {server} to {answer}");
        Ok(())
    }

    /// From now on it sends from another address, and the connection goes on.
    pub fn move_to(&self, namespace: &Namespace, from: SocketAddr) -> Result<()> {
        let socket = bind(namespace, from)?;
        self.runtime.block_on(async { self.endpoint.rebind(socket) }).context("cannot move")
    }
}

async fn ask(connection: &Connection) -> Result<String> {
    let (mut question, mut answer) = connection.open_bi().await?;
    question.write_all(b"who are you").await?;
    question.finish()?;
    Ok(String::from_utf8(answer.read_to_end(LONGEST).await?)?)
}

fn bind(namespace: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    namespace.enter(|| UdpSocket::bind(address))?.with_context(|| format!("cannot bind {address}"))
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("no runtime")
}
