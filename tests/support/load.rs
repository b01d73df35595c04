//! The load under which is proven that nothing breaks: two thousand connections that ask all the time, two hundred new
//! ones a second, and a download of a gibibyte that goes on from the first to the last. A story begins it, does what it
//! is about, and asks at the end what was lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Namespace;

use super::config::{Service, services, tcp_before_with};
use super::conversation::Protocol;
use super::crowd::{Crowd, Ledger};
use super::digest::{Sha256, write_random_file};
use super::echo::Echo;
use super::http::Download;
use super::network::{BACKEND_PORT, Family, Network, VIP, VIP_PORT, web};
use super::nginx::Nginx;

/// Connections of each family that ask all the time.
const SIZE: usize = 1000;
/// From one visitor of each family to the next.
const VISITS: Duration = Duration::from_millis(10);
/// Of what is downloaded, in MiB.
const FILE: u64 = 1024;
const PATH: &str = "/large";
/// The service that it is downloaded from.
const DOWNLOAD_PORT: u16 = 81;
/// The port of its backends.
const NGINX_PORT: u16 = 80;
/// The download is read in pieces with pauses, so that it lasts for a minute; what is left is read at the end.
const PIECE: u64 = 256 << 10;
const PAUSE: Duration = Duration::from_millis(15);
/// Patient enough not to be mistaken on a machine that is busy with the load.
const HEALTH: [&str; 5] =
    ["kind = \"tcp\"", "interval = \"500ms\"", "timeout = \"500ms\"", "rise = 2", "fall = 3"];

/// The services under load, before these backends, each by number and weight; with keys of the story's choice.
pub fn configuration(backends: &[(u8, u16)], keys: &[&str]) -> String {
    let change =
        |service: Service| keys.iter().fold(service.health(&HEALTH), |service, key| service.key(key));
    let download = Service::new("download", Protocol::Tcp, VIP.port(Family::V4, DOWNLOAD_PORT));
    let download = backends.iter().fold(change(download), |service, &(number, weight)| {
        let address = web(number).port(Family::V4, NGINX_PORT);
        service.weighted_backend(&format!("web{number}"), address, weight)
    });
    [tcp_before_with(backends, change), services(&[download])].join("\n")
}

/// The servers of the backends, by number: each host has an echo server and an Nginx.
pub struct Servers {
    hosts: BTreeMap<u8, Namespace>,
    running: BTreeMap<u8, (Echo, Nginx)>,
    sha256: String,
}

impl Servers {
    /// Hosts 1 to `count`, 2 at least, all of which serve.
    pub fn start(network: &Network, count: u8) -> Result<Self> {
        let sha256 = write_random_file(&network.lab.directory().join(PATH.trim_start_matches('/')), FILE)?;
        let hosts = BTreeMap::from([(1, network.web1.clone()), (2, network.web2.clone())]);
        let mut servers = Self { hosts, running: BTreeMap::new(), sha256 };
        (3..=count).try_for_each(|number| servers.add_host(network, number))?;
        (1..=count).try_for_each(|number| servers.serve(number))?;
        Ok(servers)
    }

    /// One more host, which does not serve yet.
    pub fn add_host(&mut self, network: &Network, number: u8) -> Result<()> {
        self.hosts.insert(number, network.add_backend(number)?);
        Ok(())
    }

    /// Starts the servers of a host.
    pub fn serve(&mut self, number: u8) -> Result<()> {
        let host = self.hosts.get(&number).with_context(|| format!("no host {number}"))?;
        let name = format!("web{number}");
        let echo = Echo::start(host, &name, BACKEND_PORT)?;
        let nginx = Nginx::start(host, &name, host.directory())?;
        self.running.insert(number, (echo, nginx));
        Ok(())
    }
}

/// The load, running. Dropping it ends it.
pub struct Load {
    /// Who asks, to be told what may break.
    pub crowd: Crowd,
    download: Downloading,
    began: Instant,
}

impl Load {
    /// Begins once all connections have had an answer.
    pub fn begin(client: &Namespace, servers: &Servers) -> Result<Self> {
        let crowd = Crowd::gather_visited(client, &Family::BOTH.map(vip), SIZE, VISITS)?;
        let download = Downloading::begin(client, &servers.sha256, crowd.ledger())?;
        Ok(Self { crowd, download, began: Instant::now() })
    }

    /// Says what the story does from now on: whatever is lost tells in which chapter. Nothing may have been lost so far.
    pub fn chapter(&self, chapter: &str) -> Result<()> {
        self.crowd.note_chapter(chapter);
        self.crowd.expect_nothing_broken()
    }

    /// Waits until every connection has had an answer to what it asked after this began. None may have been lost.
    pub fn wait_for_answers(&self) -> Result<()> {
        self.crowd.wait_for_answers()?;
        self.crowd.expect_nothing_broken()
    }

    /// Ends it: the download must arrive whole, and no connection have broken or been refused.
    pub fn end(self) -> Result<()> {
        let Self { crowd, download, began } = self;
        let seconds = began.elapsed().as_secs_f64();
        crowd.note_chapter("the end");
        crowd.wait_until_whole(Family::BOTH.len() * SIZE)?;
        let veterans = crowd.count_veterans();
        let downloaded = download.end()? >> 20;
        let served = crowd.disperse()?;
        println!(
            "in {seconds:.1} s {served} connections were served, {veterans} of them from the first to the last, and \
             {downloaded} MiB were downloaded"
        );
        // A machine that has not opened half of what was meant has not put the balancer under this load.
        let meant = seconds / VISITS.as_secs_f64() * Family::BOTH.len() as f64;
        ensure!(served as f64 > meant / 2.0, "only {served} connections were opened, of {meant:.0}");
        Ok(())
    }
}

/// A download under way on a thread of its own, and another when it is over. Dropping it ends it.
struct Downloading {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<u64>>>,
}

#[derive(Default)]
struct Shared {
    /// It is to be read to its end without pauses.
    hurries: AtomicBool,
    /// It is to be given up.
    ends: AtomicBool,
}

impl Downloading {
    fn begin(client: &Namespace, sha256: &str, ledger: Ledger) -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let first = Download::begin(client, VIP.port(Family::V4, DOWNLOAD_PORT), PATH)?;
        let thread = thread::spawn({
            let (client, sha256, shared) = (client.clone(), sha256.to_owned(), shared.clone());
            move || {
                let read = shared.read(first, &client, &sha256);
                read.inspect_err(|error| ledger.note_broken(&format!("the download: {error:#}")))
            }
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Returns how many bytes were read before this.
    fn end(mut self) -> Result<u64> {
        self.shared.hurries.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it ends once")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Downloading {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What became of it is in the ledger.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn read(&self, first: Download, client: &Namespace, sha256: &str) -> Result<u64> {
        let (mut download, mut downloaded) = (first, 0);
        loop {
            let mut sum = Sha256::new()?;
            while download.left > 0 && !self.ends.load(Ordering::Relaxed) {
                download.read_into(&mut sum, PIECE)?;
                if !self.hurries.load(Ordering::Relaxed) {
                    downloaded += PIECE;
                    thread::sleep(PAUSE);
                }
            }
            if self.ends.load(Ordering::Relaxed) {
                return Ok(downloaded);
            }
            ensure!(sum.finish()? == sha256, "another sha256 than the file's");
            if self.hurries.load(Ordering::Relaxed) {
                return Ok(downloaded);
            }
            download = Download::begin(client, VIP.port(Family::V4, DOWNLOAD_PORT), PATH)?;
        }
    }
}

fn vip(family: Family) -> SocketAddr {
    VIP.port(family, VIP_PORT)
}
