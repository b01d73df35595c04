//! The heart: [`Event`] -> `State` -> `Image` -> plan -> apply. One task owns the state; everyone else sends it
//! events. After an event that changes something, and every second, `reconcile` brings the maps to what the state
//! says.

mod hear;
mod interfaces;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, error, info, warn};

use crate::{
    api,
    bpf::{self, Bpf, Link, Pins},
    doctor,
    fault::Fault,
    health::Report,
    image::Image,
    keeper::Keeper,
    model::Health,
    neighbour::View,
    plan,
    reload::{self, Read, Reload},
    service_manager::ServiceManager,
    start::chain,
    state::State,
    status,
    sweep::{Broom, Flows, Found, monotonic},
    tasks::Tasks,
};

/// How often the maps are brought up to date when nothing happens: moves end, failed writes are tried again.
const TICK: Duration = Duration::from_secs(1);
/// How often remembered flows are looked through while there can be any.
const SWEEP: Duration = Duration::from_secs(5);

/// Where an answer goes, or why there is none.
pub type Answer<T> = oneshot::Sender<Result<T, api::Failure>>;

/// Whatever changes what should be, or asks what is.
#[derive(Debug)]
pub enum Event {
    /// A probe has ended.
    Health(Report),
    /// The network has changed.
    Network(View),
    /// Somebody wants to know.
    Status(Answer<api::Status>),
    /// The operator takes the data path off interfaces.
    Detach(api::Detach, Answer<api::Detached>),
    /// Somebody wants to know of one backend, by the names of its service and of itself.
    Backend(String, String, Answer<api::Backend>),
    /// The operator says something about backends.
    Say(api::Say, api::Operator, Answer<api::Heard>),
    /// The operator says something about a service.
    SayOfService(api::SayOfService, api::Operator, Answer<api::Heard>),
    /// The operator's words are on the disk, or why they are not.
    Kept(Option<String>),
    /// Somebody wants to know what a configuration would change.
    Plan(api::Proposal, Answer<api::Plan>),
    /// Probes are to be sent through the data path.
    Probe(api::Probe, Answer<api::Probed>),
    /// The configuration is to be read again.
    Reload(api::Reload, Option<Answer<api::Reloaded>>),
    /// It was read.
    Read(Box<Read>, Option<Answer<api::Reloaded>>),
    /// Remembered flows were looked through.
    Swept(Box<Result<Found, bpf::Error>>),
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

/// The state, what the maps hold of it, and what runs for it.
pub struct Daemon {
    /// The attached interfaces, by index.
    pub links: BTreeMap<u32, Link>,
    /// What runs beside it.
    pub tasks: Tasks,
    state: State,
    current: Image,
    /// What outlives the daemon.
    pins: Option<Pins>,
    reload: Reload,
    keeper: Keeper,
    service_manager: ServiceManager,
    failure: Option<String>,
    /// Writes to the maps since the start.
    pub written: u64,
    fault: Fault,
    /// The maps are behind the state.
    stale: bool,
    /// When they are brought up to it, at the earliest.
    rested: Instant,
    started: Instant,
    /// When the last sweep began.
    swept: Instant,
    /// It goes on.
    sweeping: bool,
    /// When the next one begins, at the earliest.
    next_sweep: Instant,
    /// Sweeps that began before this count other backends.
    counted: Instant,
    /// Flows remembered on each backend, by its id, as the last sweep counted them.
    flows: Option<BTreeMap<u32, Flows>>,
}

/// Whether an event calls for a reconcile, or for the end.
enum Consequence {
    Nothing,
    Reconcile,
    End,
}

impl Daemon {
    /// `current` is what the maps hold; nothing is attached yet.
    pub fn new(
        state: State,
        current: Image,
        tasks: Tasks,
        reload: Reload,
        keeper: Keeper,
        pins: Option<Pins>,
    ) -> Self {
        let now = Instant::now();
        Self {
            state,
            current,
            pins,
            links: BTreeMap::new(),
            tasks,
            reload,
            keeper,
            service_manager: ServiceManager::find(),
            failure: None,
            written: 0,
            fault: Fault::asked_for(),
            stale: false,
            rested: now,
            started: now,
            swept: now,
            sweeping: false,
            next_sweep: now,
            counted: now,
            flows: Some(BTreeMap::new()),
        }
    }

    /// Starts what runs beside it once everything is attached.
    pub fn start_tasks(&mut self, bpf: &mut Bpf, reloads: impl Future<Output = ()> + Send + 'static) {
        info!(services = self.state.services.len(), "balancing");
        self.follow_services();
        self.tasks.watch_configuration(self.reload.watched());
        self.keep_words();
        self.tasks.run(reloads);
        if let Some(log) = bpf.follow_log() {
            self.tasks.run(log);
        }
    }

    /// Balances until `shutdown`, or until it is detached from the last interface.
    pub async fn balance(
        &mut self,
        bpf: &mut Bpf,
        mut events: mpsc::Receiver<Event>,
        shutdown: impl Future<Output = ()>,
    ) {
        tokio::pin!(shutdown);
        self.say_ready();
        let mut watchdog = self.service_manager.watchdog();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let consequence = tokio::select! {
                () = &mut shutdown => Consequence::End,
                Some(event) = events.recv() => self.handle(event, bpf),
                () = sleep_until(self.rested.into()), if self.stale => Consequence::Nothing,
                _ = tick.tick() => self.tick(bpf),
                () = watchdog.is_due() => {
                    self.service_manager.alive();
                    Consequence::Nothing
                }
            };
            match consequence {
                Consequence::Nothing => {}
                Consequence::Reconcile => self.stale = true,
                Consequence::End => return,
            }
            if self.stale && Instant::now() >= self.rested {
                self.reconcile(bpf);
            }
        }
    }

    fn handle(&mut self, event: Event, bpf: &mut Bpf) -> Consequence {
        match event {
            Event::Health(report) => self.observe_health(report),
            Event::Network(view) => self.observe_network(view, bpf),
            Event::Status(answer) => {
                reply(answer, self.status(bpf));
                Consequence::Nothing
            }
            Event::Swept(found) => self.take_in(*found),
            Event::Detach(request, answer) => {
                let detached = self.detach(&request, bpf);
                let ends = detached.as_ref().is_ok_and(|detached| detached.ends);
                reply(answer, detached);
                if ends { Consequence::End } else { Consequence::Reconcile }
            }
            Event::Backend(service, backend, answer) => {
                reply(answer, self.backend_status(&service, &backend, bpf));
                Consequence::Nothing
            }
            Event::Say(said, operator, answer) => {
                let heard = self.hear(&said, &operator);
                self.take_down(heard, answer, bpf);
                Consequence::Nothing
            }
            Event::SayOfService(said, operator, answer) => {
                let heard = self.hear_of_service(&said, &operator);
                self.take_down(heard, answer, bpf);
                Consequence::Nothing
            }
            Event::Kept(failure) => {
                self.keeper.note(failure);
                Consequence::Nothing
            }
            Event::Plan(proposal, answer) => {
                let planning = self.reload.plan(proposal, &self.state, bpf.flow_maps(), answer);
                self.tasks.run(planning);
                Consequence::Nothing
            }
            Event::Probe(request, answer) => {
                let sent = doctor::send_probes(&request, &self.state, &self.current, bpf);
                reply(answer, sent);
                Consequence::Nothing
            }
            Event::Reload(request, answer) => {
                self.service_manager.reloading();
                self.tasks.run(self.reload.read(request, answer));
                Consequence::Nothing
            }
            Event::Read(read, answer) => {
                let reloaded = self.take_in_configuration(*read, bpf);
                if let Some(answer) = answer {
                    reply(answer, reloaded);
                }
                Consequence::Nothing
            }
        }
    }

    /// A configuration that was read comes into force, or is refused.
    fn take_in_configuration(&mut self, read: Read, bpf: &mut Bpf) -> Result<api::Reloaded, api::Failure> {
        let mut reloaded = self.reload.apply(read, &mut self.state);
        if reloaded.is_ok() {
            self.keep_words();
            self.count_anew();
            self.follow_services();
            self.tasks.watch_configuration(self.reload.watched());
        }
        let before = self.current.tables.clone();
        let writes = self.reconcile(bpf);
        if let Ok(reloaded) = &mut reloaded {
            reloaded.writes = writes;
            reloaded.moved = reload::moved(&before, &self.current.tables, &self.state);
            info!("{}", reload::describe(reloaded));
        }
        self.say_ready();
        self.unless_failed(reloaded)
    }

    /// Tells the service manager that the balancer serves, and how.
    fn say_ready(&mut self) {
        let Self { state, reload, failure, .. } = self;
        self.service_manager.ready(|| status::summarize(state, reload, failure.as_deref()));
    }

    /// What is told is in force.
    fn status(&mut self, bpf: &mut Bpf) -> Result<api::Status, api::Failure> {
        self.catch_up(bpf);
        let program = bpf.program_id().map_err(api::Failure::of)?;
        self.sources(bpf).gather(self.links.values(), program).map_err(api::Failure::of)
    }

    fn backend_status(
        &mut self,
        service: &str,
        backend: &str,
        bpf: &mut Bpf,
    ) -> Result<api::Backend, api::Failure> {
        self.catch_up(bpf);
        let sources = self.sources(bpf);
        let (service, position) =
            sources.state.find(service, backend).map_err(|error| api::Failure::unheard(&error))?;
        sources.gather_one(service, position).map_err(api::Failure::of)
    }

    fn catch_up(&mut self, bpf: &mut Bpf) {
        if self.stale {
            self.reconcile(bpf);
        }
    }

    fn sources<'s>(&'s self, bpf: &'s Bpf) -> status::Sources<'s> {
        status::Sources {
            state: &self.state,
            bpf,
            image: &self.current,
            flows: self.flows.as_ref(),
            failure: self.failure.as_deref(),
            keeper: &self.keeper,
            reload: &self.reload,
            started: self.started,
        }
    }

    /// What was asked is in force, unless the maps could not be written.
    fn unless_failed<T>(&self, done: Result<T, api::Failure>) -> Result<T, api::Failure> {
        match &self.failure {
            Some(why) if done.is_ok() => Err(api::Failure::new(format!(
                "taken in, but the maps are not up to date yet, which is tried again every second: {why}"
            ))),
            _ => done,
        }
    }

    /// What runs for the services follows them.
    fn follow_services(&mut self) {
        self.tasks.watch_network(&self.state);
        self.tasks.check_health(&self.state);
        self.tasks.announce(&self.state);
        warn_of_unattached(&self.state);
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

    fn tick(&mut self, bpf: &mut Bpf) -> Consequence {
        let now = Instant::now();
        bpf.beat(monotonic());
        let Self { state, reload, failure, .. } = self;
        self.service_manager.inform(|| status::summarize(state, reload, failure.as_deref()));
        let over = self.state.next_change().is_some_and(|change| change <= now) | self.let_words_lapse(now);
        // While the maps are not what the state says, what they remember cannot be judged by it.
        let needed = self.state.needs_sweep() || self.flows.is_none();
        if !self.stale && self.failure.is_none() && needed && now >= self.next_sweep {
            self.sweep(bpf);
        }
        if over || self.failure.is_some() { Consequence::Reconcile } else { Consequence::Nothing }
    }

    /// Other backends may drain now, and what was counted before says nothing of them.
    fn count_anew(&mut self) {
        self.flows = None;
        self.counted = Instant::now();
        self.next_sweep = self.counted;
    }

    /// Has remembered flows looked through, one sweep at a time.
    fn sweep(&mut self, bpf: &Bpf) {
        if self.sweeping {
            return;
        }
        self.swept = Instant::now();
        self.sweeping = true;
        let broom = Broom::new(&self.state, monotonic(), self.swept);
        self.tasks.sweep(broom, bpf.flow_maps());
    }

    fn take_in(&mut self, found: Result<Found, bpf::Error>) -> Consequence {
        self.sweeping = false;
        let is_old = self.swept < self.counted;
        self.next_sweep = Instant::now() + if is_old { Duration::ZERO } else { self.pause() };
        let found = found.unwrap_or_else(|error| {
            warn!("remembered flows are not looked through: {}", chain(&error));
            Found::default()
        });
        if self.state.settle(&found) {
            self.keep_words();
            self.follow_services();
        }
        self.flows = (found.whole && !is_old).then_some(found.flows);
        Consequence::Reconcile
    }

    /// How long until the next sweep: where somebody may wait for a drain to end, sooner, but a sweep of full maps takes
    /// no more than a tenth of the time.
    fn pause(&self) -> Duration {
        let drains = self.state.backends().any(|backend| backend.drain.is_some());
        let least = if drains { TICK } else { SWEEP };
        least.max(self.swept.elapsed() * 9)
    }

    /// Brings the maps to what the state says, and returns how many writes it took. What fails is shown and tried again at
    /// the next tick.
    ///
    /// Then events are handled for as long as it took: after a start there is one for each backend, and each would have
    /// all services looked through.
    fn reconcile(&mut self, bpf: &mut Bpf) -> u64 {
        let start = Instant::now();
        let written = self.written;
        match self.fill(bpf) {
            Ok(()) => {
                if self.failure.take().is_some() {
                    self.state.renew_grace(Instant::now());
                }
            }
            Err(error) => {
                let why = chain(&error);
                error!("the maps are not up to date: {why}");
                self.failure = Some(why);
            }
        }
        self.stale = false;
        self.rested = Instant::now() + start.elapsed();
        self.written - written
    }

    /// Writes to the maps what they lack. Every step that is done is noted, so that a failure midway leaves the current
    /// image true.
    pub fn fill(&mut self, bpf: &mut Bpf) -> Result<(), bpf::Error> {
        let wanted = self.state.render(Instant::now());
        for step in plan::diff(&self.current, &wanted) {
            self.fault.strike(self.written)?;
            bpf.apply(&step)?;
            self.current.apply(&step);
            self.written += 1;
        }
        // They are equal now; but what the wanted one shares with the state is no copy, and compared at a glance.
        self.current = wanted;
        Ok(())
    }
}

/// Backends that are reached by an interface without the program get their packets from the kernel, if its mode lets
/// it.
fn warn_of_unattached(state: &State) {
    for backend in state.backends() {
        let Some(hop) = backend.next_hop else { continue };
        let name = &backend.config.name;
        if let Some(obstacle) = &backend.obstacle {
            warn!(backend = %name, "no packet can be sent to it: {obstacle}");
        } else if !state.interfaces().contains_key(&hop.interface) {
            let link = state.view().links.get(&hop.interface);
            warn!(
                backend = %name,
                "reached by {}, which is not attached: its packets are handed to the kernel, and its replies \
                 are not seen; name that interface too",
                link.map_or("an interface", |link| &link.name)
            );
        }
    }
}

/// Whoever asked may be gone.
pub fn reply<T>(answer: Answer<T>, value: Result<T, api::Failure>) {
    if answer.send(value).is_err() {
        debug!("nobody waits for the answer any more");
    }
}
