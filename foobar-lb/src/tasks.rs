//! What runs beside the daemon's own task and sends it events: the watch of the network, a health check for each
//! backend, and announcements of VIPs. Which of them run follows from the state.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::IpAddr,
    path::Path,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet, spawn_blocking},
    time::sleep,
};
use tracing::{debug, error, warn};

use crate::{
    announce,
    bpf::{self, FlowMaps},
    daemon::Event,
    health::{self, Settings, Target},
    neighbour,
    start::chain,
    state::State,
    sweep::{Broom, Found},
    watch,
};

/// How long after a failure the network is watched again.
const RETRY: Duration = Duration::from_secs(1);

/// The tasks; they end when this is dropped.
pub struct Tasks {
    events: mpsc::Sender<Event>,
    running: JoinSet<()>,
    watched: BTreeSet<IpAddr>,
    watch: Option<AbortHandle>,
    checks: HashMap<Target, (Settings, AbortHandle)>,
    announced: BTreeSet<IpAddr>,
    config_watch: Option<AbortHandle>,
}

impl Tasks {
    /// None yet.
    pub fn new(events: mpsc::Sender<Event>) -> Self {
        Self {
            events,
            running: JoinSet::new(),
            watched: BTreeSet::new(),
            watch: None,
            checks: HashMap::new(),
            announced: BTreeSet::new(),
            config_watch: None,
        }
    }

    /// Runs one more task. The set keeps those that have ended until they are asked for.
    pub fn run(&mut self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        while self.running.try_join_next().is_some() {}
        self.running.spawn(task)
    }

    /// Watches the next hops of the backends that the state has now.
    pub fn watch_network(&mut self, state: &State) {
        let backends = state.backends();
        let targets: BTreeSet<_> = backends.map(|backend| backend.config.address.ip()).collect();
        if targets == self.watched && self.watch.is_some() {
            return;
        }
        if let Some(watch) = &self.watch {
            watch.abort();
        }
        self.watched.clone_from(&targets);
        self.watch = Some(self.run(watch_network(targets, self.events.clone())));
    }

    /// Checks the backends that the state has now, in the way that it has now.
    pub fn check_health(&mut self, state: &State) {
        let mut checks = HashMap::new();
        for service in &state.services {
            for backend in &service.backends {
                let target = Target { service: service.config.key, backend: backend.config.address };
                let settings = &service.config.health;
                let check = match self.checks.remove(&target) {
                    Some(check) if check.0 == *settings => check,
                    other => {
                        if let Some((_, task)) = other {
                            task.abort();
                        }
                        let events = self.events.clone();
                        let check = health::check(target, settings.clone(), backend.health(), events);
                        (settings.clone(), self.run(check))
                    }
                };
                checks.insert(target, check);
            }
        }
        self.checks.drain().for_each(|(_, (_, task))| task.abort());
        self.checks = checks;
    }

    /// Sweeps remembered flows, and sends what was found.
    pub fn sweep(&mut self, broom: Broom, maps: Result<FlowMaps, bpf::Error>) {
        let events = self.events.clone();
        self.run(async move {
            let sweep = move || maps.and_then(|mut maps| broom.sweep(&mut maps));
            // A sweep that panicked has found nothing.
            let found = spawn_blocking(sweep).await.unwrap_or_else(|_| Ok(Found::default()));
            if events.send(Event::Swept(Box::new(found))).await.is_err() {
                debug!("the daemon ends before the sweep");
            }
        });
    }

    /// Watches the file of the configuration, or no more.
    pub fn watch_configuration(&mut self, file: Option<&Path>) {
        match (file, &self.config_watch) {
            (Some(file), None) => {
                let watch = watch::watch(file.to_owned(), self.events.clone());
                self.config_watch = Some(self.run(watch));
            }
            (None, Some(watch)) => {
                watch.abort();
                self.config_watch = None;
            }
            _ => {}
        }
    }

    /// Announces the VIPs that are announced from now on.
    pub fn announce(&mut self, state: &State) {
        let vips: BTreeSet<_> =
            state.services.iter().flat_map(|service| service.config.announced()).collect();
        let new: Vec<_> = vips.difference(&self.announced).copied().collect();
        self.announced = vips;
        if new.is_empty() {
            return;
        }
        let interfaces = state.interface_names();
        self.run(async move {
            if let Err(error) = announce::announce(&interfaces, &new).await {
                warn!("VIPs are not announced: {}", chain(&error));
            }
        });
    }
}

/// Says so if what is served is served no more.
pub async fn report_end(what: &'static str, serving: impl Future<Output = io::Result<()>>) {
    if let Err(error) = serving.await {
        error!("{what} is not served any more: {error}");
    }
}

async fn watch_network(targets: BTreeSet<IpAddr>, events: mpsc::Sender<Event>) {
    loop {
        match neighbour::watch(targets.iter().copied().collect(), events.clone()).await {
            Ok(()) => return,
            Err(error) => warn!("the network is not followed: {}; trying again", chain(&error)),
        }
        sleep(RETRY).await;
    }
}
