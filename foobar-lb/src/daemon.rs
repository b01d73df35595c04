//! The daemon: one task that owns the state. Whatever happens is an [`Event`]; after every event that changes
//! something, and every second, `reconcile` brings the maps to what the state says.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, error, info, warn};

use crate::{
    announce, api,
    bpf::{Bpf, Link},
    config::Config,
    health::{self, Report, Target},
    image::Image,
    metrics,
    model::Health,
    neighbour::{self, View},
    plan,
    start::{self, Options, Settings, chain},
    state::State,
    status, sweep,
};

/// How often the maps are brought up to date when nothing happens: moves end, failed writes are tried again.
const TICK: Duration = Duration::from_secs(1);
/// How often remembered flows are looked through while some slot is not settled.
const SWEEP: Duration = Duration::from_secs(5);
/// How long the start waits for the neighbours of the backends, so that nothing is published before its next
/// hop is known.
const NEIGHBOURS: Duration = Duration::from_secs(1);

/// How long the end waits until the last requests are answered.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Whatever changes what should be, or asks what is.
#[derive(Debug)]
pub enum Event {
    /// A probe has ended.
    Health(Report),
    /// The network has changed.
    Network(View),
    /// Somebody wants to know.
    Status(oneshot::Sender<Result<api::Status, String>>),
    /// The operator takes the data path off interfaces.
    Detach(api::Detach, oneshot::Sender<Result<api::Detached, String>>),
}

impl From<Report> for Event {
    fn from(report: Report) -> Self {
        Self::Health(report)
    }
}

impl From<View> for Event {
    fn from(view: View) -> Self {
        Self::Network(view)
    }
}

/// Why the daemon could not start.
#[derive(Debug, Error)]
pub enum Error {
    /// The data path cannot be brought up.
    #[error(transparent)]
    Start(#[from] start::Error),
    /// The API cannot be served.
    #[error(transparent)]
    Api(#[from] api::Error),
    /// The metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] metrics::Error),
    /// The maps could not be filled.
    #[error("cannot fill the maps")]
    Fill(#[source] crate::bpf::Error),
}

/// Attaches, and balances until `shutdown`; then takes everything off again.
pub async fn run(config: Config, options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let interfaces = start::inspect(&options).await?;
    let seed = start::prepare_state(&config)?;
    let mut listeners = Listeners::bind(&config).await?;
    let (sender, mut events) = mpsc::channel(1024);
    let mut tasks = JoinSet::new();
    tasks.spawn(watch_network(config.clone(), sender.clone()));

    let mut state = State::new(config.services.clone(), seed);
    state.attached = start::render(&interfaces);
    let early = wait_for_neighbours(&mut state, &mut events).await;
    let locals: Vec<_> = state.view().locals.iter().copied().collect();
    let settings = Settings::apply(&config, &options, &locals)?;
    let mut bpf = start::load(&config, seed)?;
    let mut daemon = Daemon::new(state);
    daemon.fill(&mut bpf).map_err(Error::Fill)?;
    daemon.links = start::attach(&mut bpf, &interfaces, options.mode)?;

    warn_of_unattached(&daemon.state);
    info!(services = config.services.len(), "balancing");
    start_health_checks(&mut tasks, &config, &sender);
    tasks.spawn(announce_vips(config, options.interfaces));
    if let Some(log) = bpf.follow_log() {
        tasks.spawn(log);
    }
    let last_answers = listeners.serve(sender, &mut tasks);
    for event in early {
        daemon.handle(event, &mut bpf);
    }
    daemon.balance(&mut bpf, events, shutdown).await;

    info!("detaching");
    drop(bpf);
    drop(settings);
    last_answers.await;
    Ok(())
}

/// Where the daemon answers. Opened before anything is attached, so that an address in use is known in time.
struct Listeners {
    socket: api::Socket,
    metrics: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, Error> {
        let socket = api::Socket::bind(&config.daemon.socket).await?;
        let metrics = match config.metrics_listen {
            Some(address) => Some(metrics::bind(address).await?),
            None => None,
        };
        Ok(Self { socket, metrics })
    }

    /// Serves until the future that it returns is awaited: then whoever asked for the end is told that it has
    /// come.
    fn serve(
        &mut self,
        events: mpsc::Sender<Event>,
        tasks: &mut JoinSet<()>,
    ) -> impl Future<Output = ()> + use<> {
        if let Some(metrics) = self.metrics.take() {
            tasks.spawn(report_end("metrics", metrics::serve(metrics, events.clone())));
        }
        let (end, ended) = oneshot::channel::<()>();
        let serving = self.socket.serve(events, async { drop(ended.await) });
        let api = tokio::spawn(report_end("the API", serving));
        async move {
            drop(end);
            if timeout(LAST_ANSWERS, api).await.is_err() {
                debug!("a request is left without an answer");
            }
        }
    }
}

/// Takes in the network until every backend has a next hop or patience ends; hands on whatever else came.
async fn wait_for_neighbours(state: &mut State, events: &mut mpsc::Receiver<Event>) -> Vec<Event> {
    let mut early = Vec::new();
    let waiting = async {
        while let Some(event) = events.recv().await {
            match event {
                Event::Network(view) => state.observe_network(view),
                other => early.push(other),
            }
            let mut backends = state.services.iter().flat_map(|service| &service.backends);
            if backends.all(|backend| backend.next_hop.is_some()) {
                return;
            }
        }
    };
    if timeout(NEIGHBOURS, waiting).await.is_err() {
        debug!("not all backends have a neighbour that answers");
    }
    early
}

async fn watch_network(config: Config, events: mpsc::Sender<Event>) {
    let addresses = config.services.iter().flat_map(|service| &service.backends);
    let targets: BTreeSet<_> = addresses.map(|backend| backend.address.ip()).collect();
    loop {
        match neighbour::watch(targets.iter().copied().collect(), events.clone()).await {
            Ok(()) => return,
            Err(error) => warn!("the network is not followed: {}; trying again", chain(&error)),
        }
        sleep(TICK).await;
    }
}

fn start_health_checks(tasks: &mut JoinSet<()>, config: &Config, events: &mpsc::Sender<Event>) {
    for service in &config.services {
        for backend in &service.backends {
            let target = Target { service: service.key, backend: backend.address };
            let events = events.clone();
            tasks.spawn(health::check(target, service.health.clone(), Health::Unknown, events));
        }
    }
}

async fn announce_vips(config: Config, interfaces: Vec<String>) {
    let announced = config.services.iter().filter(|service| service.announce);
    let vips: BTreeSet<_> = announced.map(|service| service.key.address.ip()).collect();
    let vips: Vec<_> = vips.into_iter().collect();
    if let Err(error) = announce::announce(&interfaces, &vips).await {
        warn!("VIPs are not announced: {}", chain(&error));
    }
}

async fn report_end(what: &'static str, serving: impl Future<Output = io::Result<()>>) {
    if let Err(error) = serving.await {
        error!("{what} is not served any more: {error}");
    }
}

/// Backends that are reached by an interface without the program get their packets from the kernel.
fn warn_of_unattached(state: &State) {
    for backend in state.services.iter().flat_map(|service| &service.backends) {
        let Some(hop) = backend.next_hop else { continue };
        if !state.attached.contains_key(&hop.interface) {
            let link = state.view().links.get(&hop.interface);
            warn!(
                backend = %backend.config.name,
                "reached by {}, which is not attached: its packets are handed to the kernel, and its replies \
                 are not seen; name that interface too",
                link.map_or("an interface", |link| &link.name)
            );
        }
    }
}

/// The state and what the maps hold of it.
struct Daemon {
    state: State,
    current: Image,
    links: BTreeMap<u32, Link>,
    failure: Option<String>,
    started: Instant,
    swept: Instant,
}

/// Whether an event calls for a reconcile, or for the end.
enum Consequence {
    Nothing,
    Reconcile,
    End,
}

impl Daemon {
    fn new(state: State) -> Self {
        let now = Instant::now();
        Self {
            state,
            current: Image::default(),
            links: BTreeMap::new(),
            failure: None,
            started: now,
            swept: now,
        }
    }

    async fn balance(
        &mut self,
        bpf: &mut Bpf,
        mut events: mpsc::Receiver<Event>,
        shutdown: impl Future<Output = ()>,
    ) {
        tokio::pin!(shutdown);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let consequence = tokio::select! {
                () = &mut shutdown => Consequence::End,
                Some(event) = events.recv() => self.handle(event, bpf),
                _ = tick.tick() => self.tick(bpf),
            };
            match consequence {
                Consequence::Nothing => {}
                Consequence::Reconcile => self.reconcile(bpf),
                Consequence::End => return,
            }
        }
    }

    fn handle(&mut self, event: Event, bpf: &mut Bpf) -> Consequence {
        match event {
            Event::Health(report) => self.observe_health(report),
            Event::Network(view) => self.observe_network(view),
            Event::Status(answer) => {
                let links = self.links.values();
                let status = status::gather(&self.state, bpf, links, self.failure.as_deref(), self.started);
                reply(answer, status.map_err(|error| chain(&error)));
                Consequence::Nothing
            }
            Event::Detach(request, answer) => {
                let detached = self.detach(&request, bpf);
                let ends = detached.as_ref().is_ok_and(|detached| detached.ends);
                reply(answer, detached);
                if ends { Consequence::End } else { Consequence::Reconcile }
            }
        }
    }

    fn observe_health(&mut self, report: Report) -> Consequence {
        let transition = report.transition;
        let reason = report.reason.clone();
        let Some((service, backend)) = self.state.observe_health(report) else { return Consequence::Nothing };
        let Some(transition) = transition else {
            let first = backend.health() == Health::Unknown;
            return if first { Consequence::Reconcile } else { Consequence::Nothing };
        };
        let (service, backend) = (&service.config.name, &backend.config.name);
        match transition.to {
            Health::Up => info!(%service, %backend, %reason, "backend is up"),
            health => warn!(%service, %backend, %reason, "backend is {health}"),
        }
        Consequence::Reconcile
    }

    /// An interface that is gone took the program with it; a new MAC is answered for from now on.
    fn observe_network(&mut self, view: View) -> Consequence {
        self.links.retain(|index, link| {
            let kept = view.links.contains_key(index);
            if !kept {
                warn!(interface = %link.interface, "the interface is gone; attach again when it is back");
            }
            kept
        });
        self.state.attached.retain(|index, interface| match view.links.get(index) {
            Some(link) => {
                interface.mac = link.mac.unwrap_or(interface.mac);
                true
            }
            None => false,
        });
        self.state.observe_network(view);
        Consequence::Reconcile
    }

    fn detach(&mut self, request: &api::Detach, bpf: &mut Bpf) -> Result<api::Detached, String> {
        let named =
            |link: &Link| request.interfaces.is_empty() || request.interfaces.contains(&link.interface);
        let attached = |name: &&String| self.links.values().any(|link| link.interface == **name);
        if let Some(name) = request.interfaces.iter().find(|name| !attached(name)) {
            return Err(format!("not attached to {name}"));
        }
        let indexes: Vec<u32> =
            self.links.iter().filter(|(_, link)| named(link)).map(|(index, _)| *index).collect();
        let mut interfaces = Vec::new();
        for index in indexes {
            let Some(link) = self.links.remove(&index) else { continue };
            let name = link.interface.clone();
            bpf.detach(link).map_err(|error| chain(&error))?;
            self.state.attached.remove(&index);
            info!(interface = %name, "detached");
            interfaces.push(name);
        }
        Ok(api::Detached { interfaces, ends: self.links.is_empty() })
    }

    fn tick(&mut self, bpf: &mut Bpf) -> Consequence {
        let now = Instant::now();
        if self.state.is_unsettled() && now.duration_since(self.swept) >= SWEEP {
            self.swept = now;
            if let Err(error) = sweep::sweep(&mut self.state, bpf, now) {
                warn!("remembered flows are not looked through: {}", chain(&error));
            }
        }
        let over = self.state.next_end_of_moves().is_some_and(|end| end <= now);
        let settled = self.swept == now;
        if over || settled || self.failure.is_some() { Consequence::Reconcile } else { Consequence::Nothing }
    }

    /// Brings the maps to what the state says. What fails is shown and tried again at the next tick.
    fn reconcile(&mut self, bpf: &mut Bpf) {
        match self.fill(bpf) {
            Ok(()) => self.failure = None,
            Err(error) => {
                let why = chain(&error);
                error!("the maps are not up to date: {why}");
                self.failure = Some(why);
            }
        }
    }

    /// Every step that is done is noted, so that a failure midway leaves the current image true.
    fn fill(&mut self, bpf: &mut Bpf) -> Result<(), crate::bpf::Error> {
        let wanted = self.state.render(Instant::now());
        for step in plan::diff(&self.current, &wanted) {
            bpf.apply(&step)?;
            self.current.apply(&step);
        }
        Ok(())
    }
}

/// Whoever asked may be gone.
fn reply<T>(answer: oneshot::Sender<T>, value: T) {
    if answer.send(value).is_err() {
        debug!("nobody waits for the answer any more");
    }
}
