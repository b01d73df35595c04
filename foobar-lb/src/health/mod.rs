//! Health checks: one task per backend probes, feeds the pure machine of [`state`] and reports what came of
//! it. What a change of health means for the tables, and telling the operator of it, is left to the daemon.

pub mod probe;
pub mod state;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    time::{sleep, sleep_until},
};
use tracing::warn;

use self::{
    probe::{ProbeResult, probe},
    state::{Outcome, State, Transition},
};
use crate::model::{Health, Place, ServiceKey};

/// The longest that a first probe waits, so that the checks of a large configuration do not start in one
/// burst.
const SPREAD: Duration = Duration::from_millis(100);

/// How the backends of a service are checked. Validated: `timeout <= interval`, `rise` and `fall` at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What one probe does.
    pub kind: Kind,
    /// The port that is probed, if it is not the backend's own.
    pub port: Option<u16>,
    /// From the start of one probe to the start of the next, before jitter.
    pub interval: Duration,
    /// How long one probe may take.
    pub timeout: Duration,
    /// Successes in a row that turn a backend up.
    pub rise: u32,
    /// Failures in a row that turn a backend down.
    pub fall: u32,
}

/// What one probe does and what it takes for a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No probes: the backend counts as up.
    None,
    /// A TCP handshake completes.
    Tcp,
    /// An HTTP/1.1 GET is answered as expected.
    Http(Http),
}

/// The expectations of an `http` check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// The request target, beginning with `/`.
    pub path: String,
    /// The Host header; the backend's address where absent.
    pub host: Option<String>,
    /// Accepted status codes, inclusive.
    pub status: std::ops::RangeInclusive<u16>,
    /// Text that the first 64 KiB of the body must contain.
    pub body: Option<String>,
}

/// Whom a health check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The service that checks it; the same server may be up for one service and down for another.
    pub service: ServiceKey,
    /// Where it listens; the port that is probed may be another.
    pub backend: SocketAddr,
}

/// What is known of a backend after a probe.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whom it is about.
    pub target: Target,
    /// The health as it now stands.
    pub health: Health,
    /// The change that this probe brought about, if any.
    pub transition: Option<Transition>,
    /// When the health became what it is.
    pub since: Instant,
    /// How many times it has changed since the check began.
    pub transitions: u64,
    /// How many probes could not be made for want of something of the balancer's own.
    pub inconclusive: u64,
    /// What this probe met, in words for the operator.
    pub reason: String,
    /// How long the probe took; absent unless it succeeded.
    pub latency: Option<Duration>,
}

/// Checks one backend until it is dropped or nobody receives `events` any more, one probe and so one socket
/// at a time, and sends a [`Report`] after each. `health` is what is known beforehand: unknown for a new
/// backend, the last health after a restart or a change of settings. A backend that is not to be checked is
/// reported up, once.
pub async fn check<E: From<Report> + Send + 'static>(
    target: Target,
    settings: Settings,
    health: Health,
    events: mpsc::Sender<E>,
) {
    let health = if settings.kind == Kind::None { Health::Unknown } else { health };
    let check = Check::new(target, &settings, health);
    let mut address = target.backend;
    address.set_port(settings.port.unwrap_or(address.port()));
    check.run(&events, || probe(&settings.kind, address, settings.timeout)).await;
}

/// A health check under way.
struct Check<'a> {
    target: Target,
    settings: &'a Settings,
    state: State,
    /// Whether the last probe could not be made: said in the log once, not at every probe.
    hindered: bool,
}

impl<'a> Check<'a> {
    fn new(target: Target, settings: &'a Settings, health: Health) -> Self {
        let state = State::new(health, settings.rise, settings.fall, now());
        Self { target, settings, state, hindered: false }
    }

    /// Probes soon, then every interval, counted from start to start: a probe that takes longer than that
    /// delays the next and never makes several follow at once.
    async fn run<E, P>(mut self, events: &mpsc::Sender<E>, probe: impl Fn() -> P)
    where
        E: From<Report>,
        P: Future<Output = ProbeResult>,
    {
        let interval = self.settings.interval;
        sleep(interval.min(SPREAD).mul_f64(rand::random())).await;
        loop {
            let started = tokio::time::Instant::now();
            let report = self.observe(probe().await);
            let received = events.send(report.into()).await.is_ok();
            if !received || self.settings.kind == Kind::None {
                return;
            }
            sleep_until(started + jitter(interval)).await;
        }
    }

    fn observe(&mut self, result: ProbeResult) -> Report {
        let ProbeResult { outcome, reason, latency } = result;
        self.log(outcome, &reason);
        let transition = self.state.observe(outcome, reason, now());
        Report {
            target: self.target,
            health: self.state.health(),
            transition,
            since: self.state.since(),
            transitions: self.state.transitions(),
            inconclusive: self.state.inconclusive(),
            reason: self.state.reason().to_owned(),
            latency,
        }
    }

    fn log(&mut self, outcome: Outcome, reason: &str) {
        let hindered = outcome == Outcome::Inconclusive;
        if hindered && !self.hindered {
            let Target { service, backend } = self.target;
            let backend = Place(backend);
            let health = self.state.health();
            warn!(%service, %backend, %health, "backend {reason}; its health stays as it was");
        }
        self.hindered = hindered;
    }
}

/// `interval` give or take a tenth, so that checks that once met do not stay in step.
fn jitter(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.9..=1.1))
}

/// The runtime's clock, so that virtual time reaches the machine too.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        net::{IpAddr, Ipv4Addr, TcpListener},
    };

    use tokio::time::timeout;

    use super::*;
    use crate::model::{Down, Protocol};

    const INTERVAL: Duration = Duration::from_secs(2);
    /// Where what a probe meets does not matter.
    const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

    #[tokio::test(start_paused = true)]
    async fn probes_start_soon_and_then_every_interval_give_or_take_a_tenth() {
        let begun = tokio::time::Instant::now();
        let starts = probe_starts(200, Duration::ZERO).await;
        assert!(starts[0] - begun <= SPREAD);
        let gaps: Vec<_> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let (tolerance, shortest, longest) =
            (Duration::from_millis(1), gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
        assert!(*shortest >= INTERVAL.mul_f64(0.9) && *longest <= INTERVAL.mul_f64(1.1) + tolerance);
        assert!(*longest - *shortest > INTERVAL / 10, "the gaps are spread: {shortest:?} to {longest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_a_probe_takes_is_part_of_the_interval() {
        let starts = probe_starts(50, INTERVAL / 2).await;
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] < INTERVAL * 5 / 4));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_probes_follow_each_other_without_piling_up() {
        let starts = probe_starts(50, INTERVAL * 3).await;
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= INTERVAL * 3));
    }

    #[tokio::test(start_paused = true)]
    async fn the_check_ends_when_nobody_receives() {
        let (sender, receiver) = mpsc::channel::<Report>(1);
        drop(receiver);
        let checking = check(target(NOBODY), settings(Kind::Tcp), Health::Unknown, sender);
        timeout(INTERVAL * 10, checking).await.expect("it ends");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_checked_is_up_once_whatever_it_was() {
        for remembered in [Health::Unknown, Health::Down(Down::Silent)] {
            let (sender, mut reports) = mpsc::channel::<Report>(8);
            let checking = check(target(NOBODY), settings(Kind::None), remembered, sender);
            timeout(INTERVAL * 10, checking).await.expect("it ends");
            let report = reports.recv().await.unwrap();
            assert_eq!((report.health, report.reason.as_str()), (Health::Up, "not checked"));
            assert!(report.transition.is_some() && report.latency.is_none());
            assert!(reports.recv().await.is_none());
        }
    }

    #[tokio::test]
    async fn a_backend_comes_goes_and_comes_back() {
        let address = own_address();
        let settings = Settings { interval: Duration::from_millis(20), ..settings(Kind::Tcp) };
        let (sender, mut reports) = mpsc::channel::<Report>(8);
        let listener = TcpListener::bind(address).unwrap();
        let checking = tokio::spawn(check(target(address), settings, Health::Unknown, sender));

        let came = next_transition(&mut reports).await;
        assert_eq!(came.transition.unwrap(), Transition { from: Health::Unknown, to: Health::Up });
        assert!(came.latency.is_some() && came.reason.starts_with("connected in "));

        drop(listener);
        let went = next_transition(&mut reports).await;
        let down = Health::Down(Down::Answers);
        assert_eq!(went.transition.unwrap(), Transition { from: Health::Up, to: down });
        assert_eq!(went.transitions, 2);
        assert!(went.since > came.since);

        let _listener = TcpListener::bind(address).unwrap();
        let returned = next_transition(&mut reports).await;
        assert_eq!(returned.transition.unwrap(), Transition { from: down, to: Health::Up });
        checking.abort();
    }

    #[tokio::test]
    async fn a_remembered_down_waits_for_rise() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = Settings { interval: Duration::from_millis(20), rise: 3, ..settings(Kind::Tcp) };
        let down = Health::Down(Down::Silent);
        let (sender, mut reports) = mpsc::channel::<Report>(8);
        let address = listener.local_addr().unwrap();
        let checking = tokio::spawn(check(target(address), settings, down, sender));
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(reports.recv().await.unwrap().health);
        }
        assert_eq!(seen, [down, down, Health::Up]);
        checking.abort();
    }

    /// When the first `count` probes of a check begin, each taking `duration`.
    async fn probe_starts(count: usize, duration: Duration) -> Vec<tokio::time::Instant> {
        let starts = RefCell::new(Vec::new());
        let (sender, mut reports) = mpsc::channel::<Report>(1);
        let settings = settings(Kind::Tcp);
        let running = Check::new(target(NOBODY), &settings, Health::Unknown).run(&sender, || async {
            starts.borrow_mut().push(tokio::time::Instant::now());
            sleep(duration).await;
            ProbeResult { outcome: Outcome::Success, reason: String::new(), latency: Some(duration) }
        });
        let receiving = async {
            for _ in 0..count {
                reports.recv().await.unwrap();
            }
        };
        tokio::select! {
            () = running => unreachable!("somebody receives"),
            () = receiving => {}
        }
        starts.into_inner()
    }

    async fn next_transition(reports: &mut mpsc::Receiver<Report>) -> Report {
        let next = async {
            loop {
                let report = reports.recv().await.expect("the check runs");
                if report.transition.is_some() {
                    return report;
                }
            }
        };
        timeout(Duration::from_secs(20), next).await.expect("a transition comes")
    }

    fn settings(kind: Kind) -> Settings {
        Settings { kind, port: None, interval: INTERVAL, timeout: INTERVAL, rise: 2, fall: 2 }
    }

    fn target(backend: SocketAddr) -> Target {
        let address = SocketAddr::from(([203, 0, 113, 80], 80)).into();
        Target { service: ServiceKey { address, protocol: Protocol::Tcp }, backend }
    }

    /// An address of this host that no other process of these tests uses, to be listened on more than once.
    fn own_address() -> SocketAddr {
        let [_, a, b, c] = std::process::id().to_be_bytes();
        SocketAddr::from(([127, a, b, c], 7911))
    }
}
