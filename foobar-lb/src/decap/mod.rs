//! The life of `foobar-lb decap`, on a backend: it has the VIPs and keeps quiet about them, takes the outer headers off
//! what a `tunnel` service sends, and undoes all of it at the end. How to have kernel devices do that is in `recipe`.

pub mod recipe;
mod vips;

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use foobar_lb_ebpf::decap::Outcome;
use thiserror::Error;
use tokio::time::interval;
use tracing::{debug, info, warn};

use self::vips::Vips;
use crate::{
    bpf::{self, Decap, Mode},
    neighbour::Interface,
    start::{self, chain},
    sysctl::{self, Sysctls},
};

/// Where GUE comes to if nobody says otherwise: the port that IANA gave it.
pub const DEFAULT_GUE_PORT: u16 = 6080;

/// How often counters are looked at, for who debugs.
const COUNTING: Duration = Duration::from_secs(1);

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of the interfaces that packets for the VIPs come in by, at least one.
    pub interfaces: Vec<String>,
    /// The VIPs, at least one.
    pub vips: BTreeSet<IpAddr>,
    /// The program; none for a backend of a `dsr` service, which gets packets without outer headers.
    pub program: Option<Program>,
    /// Where the old values of kernel settings are kept.
    pub state_path: PathBuf,
}

/// How the program runs.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The UDP port that GUE comes to.
    pub gue_port: u16,
    /// Where it runs; native where possible if absent.
    pub mode: Option<Mode>,
}

/// Why a backend cannot be one.
#[derive(Debug, Error)]
pub enum Error {
    /// An interface cannot be used, or the program cannot be attached.
    #[error(transparent)]
    Start(#[from] start::Error),
    /// Another one is at work.
    #[error("another `foobar-lb decap` runs in this network namespace; name all VIPs and interfaces to one")]
    Running,
    /// It cannot be told whether another one is at work.
    #[error("cannot tell whether another `foobar-lb decap` runs")]
    Lock(#[source] io::Error),
    /// Kernel settings could not be checked, set or restored.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// The VIPs are not on `lo`, or still are.
    #[error(transparent)]
    Vips(#[from] vips::Error),
    /// The program could not be loaded, or does not tell its counters.
    #[error(transparent)]
    Bpf(#[from] bpf::Error),
}

/// Has the VIPs until `shutdown`, and then undoes everything. Tells how many packets came to each outcome.
///
/// # Errors
/// When something cannot be done, then what was done is undone; or when it cannot be undone.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<Vec<(Outcome, u64)>, Error> {
    let Options { interfaces, vips, program, state_path } = options;
    let found = match program {
        Some(_) => start::inspect(&interfaces, None).await?,
        None => start::inspect_without_program(&interfaces).await?,
    };
    let _only = Only::one()?;
    // ARP is quiet before there is a VIP to ask for, and until there is none any more.
    let settings = Settings::ensure(&interfaces, &vips, &state_path)?;
    let on_loopback = Vips::connect()?;
    let served = serve(&on_loopback, &vips, program, &found, shutdown).await;
    let removed = on_loopback.remove().await;
    drop(settings);
    if let (Err(_), Err(error)) = (&served, &removed) {
        warn!("{}", chain(error));
    }
    let outcomes = served?;
    removed?;
    Ok(outcomes)
}

async fn serve(
    on_loopback: &Vips,
    vips: &BTreeSet<IpAddr>,
    program: Option<Program>,
    interfaces: &[(String, Interface)],
    shutdown: impl Future<Output = ()>,
) -> Result<Vec<(Outcome, u64)>, Error> {
    on_loopback.put(vips).await?;
    let Some(Program { gue_port, mode }) = program else {
        info!("ready: the VIPs are on lo");
        shutdown.await;
        return Ok(Vec::new());
    };
    let mut decap = Decap::load(vips, gue_port)?;
    let _links = start::attach(&mut decap, interfaces, mode)?;
    info!("ready: the VIPs are on lo, and outer headers are taken off");
    tokio::select! {
        result = follow(&decap) => result?,
        () = shutdown => {}
    }
    Ok(decap.outcomes()?)
}

/// Logs the counters whenever they change.
async fn follow(decap: &Decap) -> Result<(), Error> {
    let mut ticks = interval(COUNTING);
    let mut before = decap.outcomes()?;
    loop {
        ticks.tick().await;
        let now = decap.outcomes()?;
        for (&(outcome, packets), (_, packets_before)) in now.iter().zip(&before) {
            if packets != *packets_before {
                debug!(packets, "{}", outcome.name());
            }
        }
        before = now;
    }
}

/// Makes this process the only one of its kind in its network namespace: the next one would take the VIPs and settings
/// of this one for those of a crash. The kernel frees the name however the process ends.
struct Only(#[expect(dead_code, reason = "the name is taken as long as the socket is open")] UnixDatagram);

impl Only {
    fn one() -> Result<Self, Error> {
        let name = SocketAddr::from_abstract_name("foobar-lb decap").map_err(Error::Lock)?;
        match UnixDatagram::bind_addr(&name) {
            Ok(socket) => Ok(Self(socket)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Error::Running),
            Err(error) => Err(Error::Lock(error)),
        }
    }
}

/// The kernel settings that this process, or one that crashed, has changed; restored when dropped.
struct Settings {
    saved: PathBuf,
}

impl Settings {
    fn ensure(interfaces: &[String], vips: &BTreeSet<IpAddr>, state_path: &Path) -> Result<Self, Error> {
        let settings = Self { saved: state_path.join("decap-sysctls") };
        if vips.iter().any(IpAddr::is_ipv4) {
            let sysctls = Sysctls::default();
            let needed = sysctls.needed_by_backend(interfaces)?;
            needed.iter().for_each(|requirement| info!("until the end: {requirement}"));
            sysctls.set(&needed, &settings.saved)?;
        }
        Ok(settings)
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        if let Err(error) = Sysctls::default().restore(&self.saved) {
            warn!(
                "kernel settings are not restored: {}; starting and ending it again tries again",
                chain(&error)
            );
        }
    }
}
