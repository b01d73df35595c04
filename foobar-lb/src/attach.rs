//! The life of `foobar-lb attach`: everything is looked at, then brought up in an order in which a failure leaves
//! nothing behind; then the daemon balances; then everything is taken off again.

use std::time::Duration;

use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{debug, info};

use crate::{
    api,
    config::Config,
    daemon::{Daemon, Event},
    keeper::Keeper,
    metrics,
    reload::{self, Reload},
    start::{self, Options, Settings},
    state::State,
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
    Fill(#[source] crate::bpf::Error),
}

/// Attaches, and balances until `shutdown`; then takes everything off again. `reloads` ask for the configuration to be
/// read again.
pub async fn attach(
    config: Config,
    options: Options,
    reloads: mpsc::Receiver<()>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let interfaces = start::inspect(&options.interfaces).await?;
    let seed = start::prepare_state(&config)?;
    let mut listeners = Listeners::bind(&config).await?;
    let (sender, mut events) = mpsc::channel(1024);
    let mut tasks = Tasks::new(sender.clone());

    let mut state = State::new(config.services.clone(), seed);
    let keeper = Keeper::recall(config.daemon.state_path.clone(), &mut state);
    state.attached = start::render(&interfaces);
    tasks.watch_network(&state);
    wait_for_neighbours(&mut state, &mut events).await;
    let locals: Vec<_> = state.view().locals.iter().copied().collect();
    let mut settings = Settings::new(&config)?;
    // Those that were named even if the network could not be seen yet, and the VLAN devices on them.
    let mut names = options.interfaces.clone();
    names.extend(state.interface_names().into_iter().filter(|name| !options.interfaces.contains(name)));
    settings.ensure(&config, &names, options.set_sysctls, &locals)?;
    let mut bpf = start::load(&config, seed)?;
    let mode = options.mode;
    let reload = Reload::new(config, options, settings, sender.clone());
    let mut daemon = Daemon::new(state, tasks, reload, keeper);
    daemon.fill(&mut bpf).map_err(Error::Fill)?;
    daemon.links = start::attach(&mut bpf, &interfaces, mode)?;

    daemon.start_keeping(sender.clone());
    daemon.start_tasks(&mut bpf, reload::forward(reloads, sender.clone()));
    let last_answers = listeners.serve(sender, &mut daemon.tasks);
    daemon.balance(&mut bpf, events, shutdown).await;

    info!("detaching");
    drop(bpf);
    drop(daemon);
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
