//! What the doctor finds of a daemon that runs: of another version, without its words, behind with its maps, out of room.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::{Visit, use_all_queues};
use crate::support::SOON;
use crate::support::balancer::Balancer;
use crate::support::config::{Service, services, tcp_before};
use crate::support::conversation::Protocol;
use crate::support::echo::start_pair;
use crate::support::network::{Arms, BACKEND_PORT, Family, Network, VIP, VIP_PORT, WEB1};

const PAIR: [(u8, u16); 2] = [(1, 1), (2, 1)];

#[test]
fn a_daemon_that_is_not_well() -> Result<()> {
    let network = Network::new("doctor-daemon", Arms::Two)?;
    use_all_queues(&network)?;
    let _echoes = start_pair(&network)?;
    let services = tcp_before(&PAIR, &[]);
    let mut visit = Visit::new(&network, &services, &[])?;
    let balancer = Balancer::serve(&network, &services)?;
    visit.expect_health()?;

    // There is but one build to test: what this daemon says of its version is changed on the way.
    let relay = Relay::start(network.lab.directory().join("relay.sock"), balancer.socket())?;
    visit.words = vec!["--socket".to_owned(), relay.path.display().to_string()];
    visit.expect(&[("version-differs", "the daemon")])?;
    visit.words.clear();
    drop(relay);

    balancer.backend(&["weight", "tcp-v4", "web1", "2"])?.expect(0, &[])?;
    let words = balancer.state_path().join("words");
    balancer.stop(Signal::SIGTERM)?;
    fs::write(&words, "nothing that was said")?;
    let balancer = Balancer::serve(&network, &services)?;
    visit.expect(&[("words-not-kept", "the daemon")])?;
    balancer.stop(Signal::SIGTERM)?;

    let balancer = Balancer::serve(&network, &services)?;
    visit.expect_health()?;
    freeze(&network, balancer.status()?.program_id, "SERVICES")?;
    balancer.write_services(&tcp_before(&PAIR, &["mss = 1200"]))?;
    balancer.reload()?.expect(1, &["the maps are not up to date"])?;
    visit.expect(&[("maps-behind", "the daemon")])
}

#[test]
fn flows_that_there_is_no_room_for() -> Result<()> {
    let network = Network::new("doctor-room", Arms::Two)?;
    use_all_queues(&network)?;
    let _echoes = start_pair(&network)?;
    let vip = VIP.port(Family::V4, VIP_PORT);
    let service = Service::new("udp-v4", Protocol::Udp, vip)
        .key("remember = \"all\"")
        .backend("web1", WEB1.port(Family::V4, BACKEND_PORT));
    // Half of it is for flows that show no beginning, as those of UDP.
    let services = format!("flows = 1024\n{}", services(&[service]));
    let visit = Visit::new(&network, &services, &[])?;
    let balancer = Balancer::serve(&network, &services)?;
    network.client.enter(|| ask_from_many(vip, 400))??;
    visit.expect_health()?;
    network.client.enter(|| ask_from_many(vip, 50))??;
    visit.expect(&[("flows-nearly-full", "map ADOPTED")])?;
    network.client.enter(|| ask_from_many(vip, 100))??;
    ensure!(balancer.counted("not_remembered")? > 0, "all are remembered");
    visit.expect(&[("flows-nearly-full", "map ADOPTED"), ("flows-not-remembered", "the daemon")])
}

/// So many flows, each answered once.
fn ask_from_many(server: SocketAddr, flows: usize) -> io::Result<()> {
    let sockets = (0..flows).map(|_| UdpSocket::bind("0.0.0.0:0")).collect::<io::Result<Vec<_>>>()?;
    for socket in sockets {
        socket.set_read_timeout(Some(SOON))?;
        socket.send_to(b"who\n", server)?;
        socket.recv(&mut [0; 64])?;
    }
    Ok(())
}

/// From now on nobody can write to a map of the program from outside of the kernel.
fn freeze(network: &Network, program: u32, map: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Program {
        map_ids: Vec<u32>,
    }
    let bpftool = |words: &[&str]| network.balancer.run([&["bpftool", "--json"], words].concat());
    let program: Program = serde_json::from_str(&bpftool(&["prog", "show", "id", &program.to_string()])?)?;
    for id in program.map_ids.iter().map(u32::to_string) {
        if bpftool(&["map", "show", "id", &id])?.contains(&format!("\"{map}\"")) {
            return bpftool(&["map", "freeze", "id", &id]).map(drop);
        }
    }
    anyhow::bail!("there is no map {map}")
}

/// Stands between the doctor and the daemon, and makes another version of the one that the daemon says it is of.
struct Relay {
    path: PathBuf,
    ends: Arc<AtomicBool>,
    worker: Option<thread::JoinHandle<()>>,
}

impl Relay {
    fn start(path: PathBuf, daemon: &Path) -> Result<Self> {
        let listener = UnixListener::bind(&path).context("cannot listen")?;
        let (daemon, ends) = (daemon.to_owned(), Arc::new(AtomicBool::new(false)));
        let serve = {
            let ends = Arc::clone(&ends);
            move || {
                while let Ok((visitor, _)) = listener.accept()
                    && !ends.load(Ordering::Acquire)
                {
                    // Whoever is not answered complains himself.
                    pass(&visitor, &daemon).ok();
                }
            }
        };
        Ok(Self { path, ends, worker: Some(thread::spawn(serve)) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        drop(UnixStream::connect(&self.path));
        if let Some(worker) = self.worker.take() {
            worker.join().expect("the relay does not panic");
        }
    }
}

/// A conversation, until the visitor leaves.
fn pass(visitor: &UnixStream, daemon: &Path) -> io::Result<()> {
    let daemon = UnixStream::connect(daemon)?;
    thread::scope(|scope| {
        scope.spawn(|| {
            io::copy(&mut &*visitor, &mut &daemon).ok();
            daemon.shutdown(Shutdown::Write).ok();
        });
        // The version is in the first piece: it is what an answer begins with.
        let mut bytes = vec![0; 1 << 20];
        loop {
            let length = (&daemon).read(&mut bytes)?;
            if length == 0 {
                return Ok(());
            }
            let version = format!("\"version\":\"{}\"", env!("CARGO_PKG_VERSION"));
            let piece = String::from_utf8_lossy(&bytes[..length]);
            let piece = piece.replace(&version, &version.replace(char::is_numeric, "9"));
            (&mut &*visitor).write_all(piece.as_bytes())?;
        }
    })
}
