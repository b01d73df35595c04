//! A service manager is told how it goes, by datagrams to the socket that it names: the whole life of a balancer.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::support::EVENTUALLY;
use crate::support::balancer::Balancer;
use crate::support::config::tcp_before;
use crate::support::echo::start_pair;
use crate::support::network::{Arms, Network};

const PAIR: [(u8, u16); 2] = [(1, 1), (2, 1)];
/// After this time of silence a process is taken for hung.
const WATCHDOG: Duration = Duration::from_millis(400);

#[test]
fn it_is_told_what_the_balancer_does() -> Result<()> {
    let network = Network::new("told", Arms::Two)?;
    let mut echoes = start_pair(&network)?;
    let manager = Manager::listen(&network)?;
    let services = tcp_before(&PAIR, &[]);
    let mut balancer = manager.launch(&network, &services)?;

    let first = manager.hear()?;
    ensure!(first.contains(&"READY=1".to_owned()), "before it serves it says {first:?}");
    for interface in network.interfaces {
        let link = network.balancer.ip(&format!("link show {interface}"))?;
        ensure!(link.contains("xdp"), "it says that it serves, but is not attached: {link}");
    }
    manager.hear_of("STATUS=2 of 2 services up, 4 of 4 backends up")?;
    echoes[0].retire();
    manager.hear_of("STATUS=2 of 2 services up, 2 of 4 backends up")?;
    echoes[1].retire();
    manager.hear_of("STATUS=0 of 2 services up, 0 of 4 backends up")?;

    balancer.reload()?.expect(0, &["in force"])?;
    manager.hear_a_reload()?;
    balancer.write_services("[[service]]\n")?;
    balancer.process.signal(Signal::SIGHUP)?;
    let status = manager.hear_a_reload()?;
    ensure!(status.contains("; not reloaded: ") && status.contains("foobar-lb.toml:"), "{status}");
    balancer.write_services(&services)?;
    balancer.reload()?.expect(0, &["in force"])?;
    let status = manager.hear_a_reload()?;
    ensure!(!status.contains("not reloaded"), "{status}");

    balancer.process.signal(Signal::SIGTERM)?;
    manager.hear_of("STOPPING=1")?;
    ensure!(balancer.process.wait(EVENTUALLY)?.success(), "it does not end well");
    manager.expect_silence()
}

#[test]
fn the_watchdog_is_fed_while_the_daemon_is_alive() -> Result<()> {
    let network = Network::new("fed", Arms::Two)?;
    let manager = Manager::listen(&network)?;
    let balancer = manager.launch(&network, &tcp_before(&PAIR, &[]))?;
    manager.hear_of("READY=1")?;
    manager.hear_of("WATCHDOG=1")?;
    let begin = Instant::now();
    for _ in 0..5 {
        let fed = Instant::now();
        manager.hear_of("WATCHDOG=1")?;
        ensure!(fed.elapsed() < WATCHDOG, "not fed for {:?}", fed.elapsed());
    }
    ensure!(begin.elapsed() > WATCHDOG, "fed five times within {:?}", begin.elapsed());

    balancer.process.signal(Signal::SIGSTOP)?;
    manager.expect_silence()?;
    balancer.process.signal(Signal::SIGCONT)?;
    manager.hear_of("WATCHDOG=1")
}

#[test]
fn what_does_not_start_is_never_ready() -> Result<()> {
    let network = Network::new("not-ready", Arms::Two)?;
    let manager = Manager::listen(&network)?;
    let mut balancer = manager.launch(&network, "[[service]]\n")?;
    ensure!(balancer.process.wait(EVENTUALLY)?.code() == Some(2), "it is no configuration");
    manager.expect_silence()
}

#[test]
fn nobody_needs_to_listen() -> Result<()> {
    let network = Network::new("told-in-vain", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let services = tcp_before(&PAIR, &[]);
    let gone = Manager::listen(&network)?.path;
    for (socket, watchdog) in [(gone.display().to_string(), "0"), ("relative".to_owned(), "-1")] {
        let environment = [format!("NOTIFY_SOCKET={socket}"), format!("WATCHDOG_USEC={watchdog}")];
        let launcher = ["env", &environment[0], &environment[1]];
        let balancer =
            Balancer::launch(&launcher, &network.balancer, network.interfaces, &services, &["--sysctl"])?;
        balancer.wait_until_serving()?;
        let printed = balancer.process.output()?;
        ensure!(printed.contains("the service manager is not told how it goes"), "{printed}");
        balancer.stop(Signal::SIGINT)?;
    }
    let balancer = Balancer::serve(&network, &services)?;
    ensure!(!balancer.process.output()?.contains("service manager"), "{}", balancer.process.output()?);
    balancer.stop(Signal::SIGINT)
}

/// What a service manager does: it listens.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn listen(network: &Network) -> Result<Self> {
        let path = network.lab.directory().join("notify.sock");
        let socket = UnixDatagram::bind(&path)?;
        Ok(Self { socket, path })
    }

    fn launch(&self, network: &Network, services: &str) -> Result<Balancer> {
        let socket = format!("NOTIFY_SOCKET={}", self.path.display());
        let watchdog = format!("WATCHDOG_USEC={}", WATCHDOG.as_micros());
        let launcher = ["env", &socket, &watchdog];
        Balancer::launch(&launcher, &network.balancer, network.interfaces, services, &["--sysctl"])
    }

    /// The lines of the next datagram.
    fn hear(&self) -> Result<Vec<String>> {
        self.hear_within(EVENTUALLY)?.context("nothing is said")
    }

    fn hear_within(&self, deadline: Duration) -> Result<Option<Vec<String>>> {
        self.socket.set_read_timeout(Some(deadline))?;
        let mut datagram = [0; 4096];
        match self.socket.recv(&mut datagram) {
            Ok(length) => {
                let text = str::from_utf8(&datagram[..length])?;
                Ok(Some(text.lines().map(str::to_owned).collect()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a line.
    fn hear_of(&self, line: &str) -> Result<()> {
        let begin = Instant::now();
        let mut heard = Vec::new();
        while begin.elapsed() < EVENTUALLY {
            heard.extend(self.hear()?);
            if heard.iter().any(|heard| heard == line) {
                return Ok(());
            }
        }
        bail!("{line} is not among {heard:?}")
    }

    /// Waits for the beginning of a reload and its end, and returns the status that is told with that.
    fn hear_a_reload(&self) -> Result<String> {
        let is_about = |lines: &[String]| !lines.iter().any(|line| line == "WATCHDOG=1");
        let next = || loop {
            let lines = self.hear()?;
            if is_about(&lines) {
                return Ok::<_, anyhow::Error>(lines);
            }
        };
        let begin = next()?;
        let [reloading, clock] = begin.as_slice() else { bail!("no reload begins: {begin:?}") };
        let clock = clock.strip_prefix("MONOTONIC_USEC=").and_then(|clock| clock.parse::<u64>().ok());
        ensure!(reloading == "RELOADING=1" && clock.is_some(), "no reload begins: {begin:?}");
        let end = next()?;
        let [status, ready] = end.as_slice() else { bail!("the reload does not end: {end:?}") };
        ensure!(ready == "READY=1", "the reload does not end: {end:?}");
        Ok(status.clone())
    }

    /// Nothing is said for longer than a watchdog waits, but for what was said before.
    fn expect_silence(&self) -> Result<()> {
        let begin = Instant::now();
        while let Some(lines) = self.hear_within(WATCHDOG * 2)? {
            ensure!(begin.elapsed() < WATCHDOG, "it still says {lines:?}");
        }
        Ok(())
    }
}
