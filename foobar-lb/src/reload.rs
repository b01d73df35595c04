//! Taking in the configuration again while everything goes on: read and validated whole, then applied, or refused
//! whole with the old one still in force.

use std::time::Instant;

use tokio::{sync::mpsc, task::spawn_blocking};
use tracing::{debug, info, warn};

use crate::{
    api,
    config::{self, Config},
    daemon::{Answer, Event},
    model::Place,
    start::{Options, Settings},
    state::{Room, State},
};

/// What the file held.
#[derive(Debug)]
pub struct Read {
    number: u64,
    config: Result<Config, config::Error>,
}

/// The configuration in force, and what is needed to replace it.
pub struct Reload {
    /// When it came into force.
    pub loaded: Instant,
    /// Why the last attempt to replace it failed.
    pub failure: Option<String>,
    config: Config,
    /// The number of the reading that it came from.
    number: u64,
    /// How many times the file was to be read.
    readings: u64,
    options: Options,
    settings: Settings,
    events: mpsc::Sender<Event>,
}

impl Reload {
    /// Nothing was reloaded yet. `settings` are kept for as long as this is.
    pub fn new(config: Config, options: Options, settings: Settings, events: mpsc::Sender<Event>) -> Self {
        Self {
            loaded: Instant::now(),
            failure: None,
            config,
            number: 0,
            readings: 0,
            options,
            settings,
            events,
        }
    }

    /// Reads the file, which may be slow, and sends what came of it.
    pub fn read(&mut self, answer: Option<Answer<api::Reloaded>>) -> impl Future<Output = ()> + use<> {
        let (file, events) = (self.options.file.clone(), self.events.clone());
        self.readings += 1;
        let number = self.readings;
        async move {
            let Ok(config) = spawn_blocking(move || config::load(&file)).await else { return };
            if events.send(Event::Read(Box::new(Read { number, config }), answer)).await.is_err() {
                debug!("the daemon ends before the configuration is reloaded");
            }
        }
    }

    /// Puts what was read in force, or says why not.
    pub fn apply(&mut self, read: Read, state: &mut State) -> Result<api::Reloaded, api::Failure> {
        // Two readings at once may end in the wrong order; the later one has seen the newer file.
        if read.number < self.number {
            return Ok(api::Reloaded { warnings: Vec::new() });
        }
        self.number = read.number;
        let applied = read.config.map_err(|error| api::Failure::invalid(&error)).and_then(|config| {
            let warnings = self.replace(&config, state)?;
            self.config = config;
            Ok(warnings)
        });
        match applied {
            Ok(warnings) => {
                (self.loaded, self.failure) = (Instant::now(), None);
                info!(services = self.config.services.len(), "the configuration is reloaded");
                warnings.iter().for_each(|warning| warn!("{warning}"));
                Ok(api::Reloaded { warnings })
            }
            Err(failure) => {
                warn!("the configuration is not reloaded, the old one stays in force: {}", failure.error);
                self.failure = Some(failure.error.clone());
                Err(failure)
            }
        }
    }

    fn replace(&mut self, config: &Config, state: &mut State) -> Result<Vec<String>, api::Failure> {
        if let Some(section) = self.needs_restart(config) {
            return Err(api::Failure::new(format!(
                "{section} has changed, which takes effect at a restart only: restart foobar-lb, or undo that change"
            )));
        }
        let room = Room { slots: config.daemon.slots, backends: config.daemon.backends };
        state.check(&config.services, room).map_err(api::Failure::of)?;
        let locals: Vec<_> = state.view().locals.iter().copied().collect();
        let interfaces = state.interface_names();
        self.settings
            .ensure(config, &interfaces, self.options.set_sysctls, &locals)
            .map_err(api::Failure::of)?;
        let displaced = state.reconfigure(config.services.clone(), room).map_err(api::Failure::of)?;
        let displaced = displaced.iter().map(|address| {
            format!(
                "{} was removed and is now in use elsewhere: its flows are not kept until they end",
                Place(*address)
            )
        });
        let warnings = (!config.warnings.is_empty()).then(|| config.warnings.to_string());
        Ok(warnings.into_iter().chain(displaced).collect())
    }

    /// The section that cannot change while the daemon runs, if it has.
    fn needs_restart(&self, config: &Config) -> Option<&'static str> {
        if self.config.daemon != config.daemon {
            return Some("[daemon]");
        }
        (self.config.metrics_listen != config.metrics_listen).then_some("[metrics]")
    }
}

/// Passes on that the configuration is to be read again.
pub async fn forward(mut reloads: mpsc::Receiver<()>, events: mpsc::Sender<Event>) {
    while reloads.recv().await.is_some() {
        if events.send(Event::Reload(None)).await.is_err() {
            return;
        }
    }
}
