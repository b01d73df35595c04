//! 10,000 health checks a second, of real listeners: what they cost the daemon, and whether they come when they should.

use std::{
    collections::HashMap,
    mem,
    net::{IpAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    configuration::Configuration,
    daemon::{Daemon, Network},
    report::{Report, Unit},
};

const CHECKS: &str = "health checks";
const SUBJECT: &str = "10,000 backends, tcp, every second";
const CONFIGURATION: Configuration = Configuration {
    health: "kind = \"tcp\"\ninterval = \"1s\"\ntimeout = \"500ms\"",
    ..Configuration::unchecked(100, 100, 10_007)
};
/// When a connection was accepted, and at which address.
type Arrivals = Vec<(IpAddr, Instant)>;

/// Watches them for so many seconds.
pub fn measure(report: &mut Report, seconds: u64) -> Result<()> {
    let network = Network::new("checks")?;
    let arrivals = Arc::<Mutex<Arrivals>>::default();
    let listener = network.host.enter(|| TcpListener::bind("0.0.0.0:80"))??;
    let accepted = Arc::clone(&arrivals);
    // It ends with the process.
    thread::spawn(move || accept(&listener, &accepted));
    let daemon = Daemon::start(&network, CONFIGURATION)?;
    take(&arrivals);
    let (start, cpu, failures) = (Instant::now(), daemon.cpu()?, daemon.failures()?);
    thread::sleep(Duration::from_secs(seconds));
    let (cpu, elapsed, arrived) = (daemon.cpu()? - cpu, start.elapsed(), take(&arrivals));
    let failures = daemon.failures()? - failures;
    report.add(CHECKS, SUBJECT, "backends taken for down, though all answer", Unit::Count, failures as f64);
    let rate = arrived.len() as f64 / elapsed.as_secs_f64();
    report.add(CHECKS, SUBJECT, "checks a second", Unit::Count, rate.round());
    let share = 100.0 * cpu.as_secs_f64() / elapsed.as_secs_f64();
    report.add(CHECKS, SUBJECT, "CPU of the daemon, of one core", Unit::Percent, share);
    tell_intervals(report, &arrived)?;
    daemon.tell_memory(report, SUBJECT)
}

/// Accepts and closes.
fn accept(listener: &TcpListener, arrivals: &Mutex<Arrivals>) {
    while let Ok((stream, _)) = listener.accept() {
        // The daemon may have reset it already.
        let Ok(address) = stream.local_addr() else { continue };
        arrivals.lock().unwrap_or_else(PoisonError::into_inner).push((address.ip(), Instant::now()));
    }
}

fn take(arrivals: &Mutex<Arrivals>) -> Arrivals {
    mem::take(&mut arrivals.lock().unwrap_or_else(PoisonError::into_inner))
}

/// How far the time between two checks of a backend is off.
fn tell_intervals(report: &mut Report, arrived: &Arrivals) -> Result<()> {
    let mut last = HashMap::new();
    let between = |(address, at): &(IpAddr, Instant)| last.insert(*address, *at).map(|before| *at - before);
    let mut gaps: Vec<Duration> = arrived.iter().filter_map(between).collect();
    gaps.sort_unstable();
    ensure!(!gaps.is_empty(), "no backend was checked twice");
    for (what, percent) in [
        ("between checks of a backend, least", 0),
        ("between checks of a backend, median", 50),
        ("between checks of a backend, 99 % within", 99),
        ("between checks of a backend, most", 100),
    ] {
        let place = (gaps.len() - 1) * percent / 100;
        report.add_time(CHECKS, SUBJECT, what, gaps[place]);
    }
    Ok(())
}
