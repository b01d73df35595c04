//! The life of `foobar-lb attach`: everything is looked at, then brought up in an order in which a failure leaves
//! nothing behind; then the daemon balances; then everything is taken off again.

use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{debug, info, warn};

use crate::{
    api,
    bpf::{self, Bpf, Pins},
    config::Config,
    daemon::{Daemon, Event},
    image::Image,
    keeper::Keeper,
    known::Known,
    metrics,
    reload::{self, Reload},
    start::{self, Options, Settings},
    state::{Refusal, Room, State},
    tasks::{Tasks, report_end},
};

/// How long the start waits for the neighbours of the backends, so that nothing is published before its next
/// hop is known.
const NEIGHBOURS: Duration = Duration::from_secs(1);
/// How long the end waits until the last requests are answered.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Why the balancer could not start.
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
    Fill(#[source] bpf::Error),
    /// What is pinned cannot be read.
    #[error("cannot read the maps that are pinned")]
    Read(#[source] bpf::Error),
    /// The configuration does not go on from what is pinned.
    #[error("the configuration cannot go on from what is pinned")]
    Room(#[from] Refusal),
}

/// Attaches, and balances until `shutdown`; then takes everything off again. `reloads` ask for the configuration to be
/// read again.
pub async fn attach(
    config: Config,
    options: Options,
    reloads: mpsc::Receiver<()>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    start::require_privileges_for(&config)?;
    let pins = options.pin.then(|| start::hold_pins(&config)).transpose()?;
    let interfaces = start::inspect(&options.interfaces, pins.as_ref()).await?;
    let next = start::find_next(options.next.as_ref())?;
    let seed = start::prepare_state(&config, pins.as_ref())?;
    let mut listeners = Listeners::bind(&config).await?;
    let (sender, mut events) = mpsc::channel(1024);
    let mut tasks = Tasks::new(sender.clone());

    let mut settings = Settings::new(&config, pins.as_ref())?;
    let mut bpf = start::load(&config, seed, pins.as_ref(), next.as_ref())?;
    let (mut state, current) = match pins.as_ref().filter(|pins| pins.are_whole()) {
        Some(pins) => take_over(&config, seed, &mut bpf, pins)?,
        None => (State::new(config.services.clone(), seed), Image::default()),
    };
    let keeper = Keeper::recall(config.daemon.state_path.clone(), &mut state);
    state.attached = start::render(&interfaces);
    tasks.watch_network(&state);
    wait_for_neighbours(&mut state, &mut events).await;
    let locals: Vec<_> = state.view().locals.iter().copied().collect();
    // Those that were named even if the network could not be seen yet, and the VLAN devices on them.
    let mut names = options.interfaces.clone();
    names.extend(state.interface_names().into_iter().filter(|name| !options.interfaces.contains(name)));
    settings.ensure(&config, &names, options.set_sysctls, &locals)?;
    let mode = options.mode;
    let reload = Reload::new(config, options, settings, sender.clone());
    let mut daemon = Daemon::new(state, current, tasks, reload, keeper, pins);
    daemon.fill(&mut bpf).map_err(Error::Fill)?;
    info!(writes = daemon.written, "the maps are up to date");
    bpf.set_next(next).map_err(start::Error::from)?;
    daemon.attach(&mut bpf, &interfaces, mode, seed)?;

    daemon.start_keeping(sender.clone());
    daemon.start_tasks(&mut bpf, reload::forward(reloads, sender.clone()));
    let last_answers = listeners.serve(sender, &mut daemon.tasks);
    daemon.balance(&mut bpf, events, shutdown).await;

    daemon.leave();
    drop(bpf);
    drop(daemon);
    last_answers.await;
    Ok(())
}

/// Goes on from what the daemon before has left in the maps.
fn take_over(config: &Config, seed: u64, bpf: &mut Bpf, pins: &Pins) -> Result<(State, Image), Error> {
    let image = bpf.read().map_err(Error::Read)?;
    bpf.correct_known(&Known::of(&image));
    let room = Room { slots: config.daemon.slots, backends: config.daemon.backends };
    let taken = State::take_over(config.services.clone(), seed, &image, room, Instant::now())?;
    let frozen =
        pins.heartbeat().map_or_else(|| "an unknown time".to_owned(), |age| format!("{} s", age.as_secs()));
    info!(
        services = image.services.len() + image.ranges.len(),
        backends = image.backends.len(),
        "taking over what is pinned at {}; nobody has looked after it for {frozen}",
        pins.root().display()
    );
    for service in taken.begun_anew {
        warn!(%service, "its mode, affinity or table size is another one now: its flows begin anew");
    }
    Ok((taken.state, image))
}

/// Where the daemon answers. Opened before anything is attached, so that an address in use is known in time.
struct Listeners {
    socket: api::Socket,
    metrics: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, Error> {
        let socket = api::Socket::bind(&config.daemon).await?;
        let metrics = match config.metrics_listen {
            Some(address) => Some(metrics::bind(address).await?),
            None => None,
        };
        Ok(Self { socket, metrics })
    }

    /// Serves until the future that it returns is awaited: then whoever asked for the end is told that it has
    /// come.
    fn serve(&mut self, events: mpsc::Sender<Event>, tasks: &mut Tasks) -> impl Future<Output = ()> + use<> {
        if let Some(metrics) = self.metrics.take() {
            tasks.run(report_end("metrics", metrics::serve(metrics, events.clone())));
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

/// Takes in the network until every backend has a next hop or patience ends. Nobody else sends events yet.
async fn wait_for_neighbours(state: &mut State, events: &mut mpsc::Receiver<Event>) {
    let waiting = async {
        while let Some(Event::Network(view)) = events.recv().await {
            state.observe_network(view);
            if state.backends().all(|backend| backend.next_hop.is_some()) {
                return;
            }
        }
    };
    if timeout(NEIGHBOURS, waiting).await.is_err() {
        debug!("not all backends have a neighbour that answers");
    }
}
