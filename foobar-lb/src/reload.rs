//! Taking in the configuration again while everything goes on: read and validated whole, then applied, or refused
//! whole with the old one still in force.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

use foobar_lb_ebpf::layout::{NO_BACKEND, Slot};
use tokio::{sync::mpsc, task::spawn_blocking};
use tracing::{debug, info, warn};

use crate::{
    api,
    bpf::{self, FlowMaps, Mode},
    changes,
    config::{self, Config},
    daemon::{Answer, Event, reply},
    model::{NotAShare, Place, Share, percentage},
    review::{Review, needs_restart},
    start::{self, Options, Settings, chain},
    state::{Room, State},
};

/// What the file held.
#[derive(Debug)]
pub struct Read {
    number: u64,
    config: Result<Config, config::Error>,
    request: api::Reload,
}

/// The configuration in force, and what is needed to replace it.
pub struct Reload {
    /// When it came into force.
    pub loaded: Instant,
    /// The last attempt to replace it, if that failed.
    pub failure: Option<Failure>,
    config: Arc<Config>,
    /// The number of the reading that it came from.
    number: u64,
    /// How many times the file was to be read.
    readings: u64,
    options: Options,
    settings: Settings,
    events: mpsc::Sender<Event>,
}

/// A configuration was refused.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When.
    pub at: Instant,
    /// What was wrong with it.
    pub why: String,
}

/// The tables of an image, by their first slot.
pub type Tables = BTreeMap<u32, Arc<[Slot]>>;

impl Reload {
    /// Nothing was reloaded yet. `settings` are kept for as long as this is.
    pub fn new(config: Config, options: Options, settings: Settings, events: mpsc::Sender<Event>) -> Self {
        Self {
            loaded: Instant::now(),
            failure: None,
            config: Arc::new(config),
            number: 0,
            readings: 0,
            options,
            settings,
            events,
        }
    }

    /// The file, if it is to be reloaded when it changes.
    pub fn watched(&self) -> Option<&Path> {
        self.config.daemon.watch.then_some(&self.options.file)
    }

    /// Whether the kernel settings stay as they are when the daemon ends.
    pub fn leave_settings(&mut self, stay: bool) {
        self.settings.stay(stay);
    }

    /// Names of the interfaces that are to be attached.
    pub fn interfaces(&self) -> &[String] {
        &self.options.interfaces
    }

    /// Where the program is to run.
    pub fn mode(&self) -> Option<Mode> {
        self.options.mode
    }

    /// Reads the file, which may be slow, and sends what came of it.
    pub fn read(
        &mut self,
        request: api::Reload,
        answer: Option<Answer<api::Reloaded>>,
    ) -> impl Future<Output = ()> + use<> {
        let (file, events) = (self.options.file.clone(), self.events.clone());
        self.readings += 1;
        let number = self.readings;
        async move {
            let Ok(config) = spawn_blocking(move || config::load(&file)).await else { return };
            let read = Box::new(Read { number, config, request });
            if events.send(Event::Read(read, answer)).await.is_err() {
                debug!("the daemon ends before the configuration is reloaded");
            }
        }
    }

    /// Puts what was read in force, or says why not.
    pub fn apply(&mut self, read: Read, state: &mut State) -> Result<api::Reloaded, api::Failure> {
        // Two readings at once may end in the wrong order; the later one has seen the newer file.
        if read.number < self.number {
            return Ok(api::Reloaded::default());
        }
        self.number = read.number;
        let applied = read.config.map_err(|error| api::Failure::invalid(&error)).and_then(|config| {
            let warnings = self.replace(&config, &read.request, state)?;
            self.config = Arc::new(config);
            Ok(warnings)
        });
        match applied {
            Ok(warnings) => {
                (self.loaded, self.failure) = (Instant::now(), None);
                info!(services = self.config.services.len(), "the configuration is reloaded");
                warnings.iter().for_each(|warning| warn!("{warning}"));
                Ok(api::Reloaded { warnings, ..api::Reloaded::default() })
            }
            Err(failure) => {
                warn!("the configuration is not reloaded, the old one stays in force: {}", failure.error);
                self.failure = Some(Failure { at: Instant::now(), why: failure.error.clone() });
                Err(failure)
            }
        }
    }

    fn replace(
        &mut self,
        config: &Config,
        request: &api::Reload,
        state: &mut State,
    ) -> Result<Vec<String>, api::Failure> {
        if let Some(section) = changes::needs_restart(&self.config, config) {
            return Err(api::Failure::new(needs_restart(section)));
        }
        let room = Room { slots: config.daemon.slots, backends: config.daemon.backends };
        state.check(&config.services, room).map_err(api::Failure::of)?;
        start::require_privileges_for(config).map_err(api::Failure::of)?;
        check_moves(config, room, request, state)?;
        self.ensure_settings_of(config, state).map_err(api::Failure::of)?;
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

    /// The kernel settings that the configuration in force needs, on all interfaces.
    pub fn ensure_settings(&mut self, state: &State) -> Result<(), start::Error> {
        self.ensure_settings_of(&self.config.clone(), state)
    }

    fn ensure_settings_of(&mut self, config: &Config, state: &State) -> Result<(), start::Error> {
        let locals: Vec<_> = state.view().locals.iter().copied().collect();
        self.settings.ensure(config, &state.interface_names(), self.options.set_sysctls, &locals)
    }

    /// Looks at a configuration that somebody proposes, on another thread, and answers what would come of it.
    pub fn plan(
        &self,
        proposal: api::Proposal,
        state: &State,
        maps: Result<FlowMaps, bpf::Error>,
        answer: Answer<api::Plan>,
    ) -> impl Future<Output = ()> + use<> {
        let set_sysctls = Some(self.options.set_sysctls);
        let review = Review { state: state.clone(), config: self.config.clone(), set_sysctls };
        async move {
            let planned = spawn_blocking(move || plan(&review, &proposal, maps)).await;
            // One that panicked answers nothing.
            if let Ok(planned) = planned {
                reply(answer, planned);
            }
        }
    }
}

/// Whether no more slots move than may.
fn check_moves(
    config: &Config,
    room: Room,
    request: &api::Reload,
    state: &State,
) -> Result<(), api::Failure> {
    let most = share(request.max_moved.as_deref())?;
    if request.force || most.is_none() && !state.limits_moves() {
        return Ok(());
    }
    let moves = state.preview(&config.services, room, Instant::now()).moves.map_err(api::Failure::of)?;
    state.check_moves(&moves, most).map_err(api::Failure::of)
}

fn share(text: Option<&str>) -> Result<Option<Share>, api::Failure> {
    let wrong = |error: NotAShare| api::Failure::new(format!("max_moved is {error}"));
    text.map(str::parse).transpose().map_err(wrong)
}

fn plan(
    review: &Review,
    proposal: &api::Proposal,
    maps: Result<FlowMaps, bpf::Error>,
) -> Result<api::Plan, api::Failure> {
    let most = share(proposal.max_moved.as_deref())?;
    let config =
        config::parse(&proposal.text, &proposal.name).map_err(|error| api::Failure::invalid(&error))?;
    let mut verdict = review.judge(&config, most);
    if let Err(error) = maps.and_then(|mut maps| review.count(&mut verdict, &mut maps)) {
        verdict.plan.warnings.push(format!("remembered flows are not counted: {}", chain(&error)));
    }
    Ok(verdict.plan)
}

/// Services some of whose slots have another owner than before.
pub fn moved(before: &Tables, after: &Tables, state: &State) -> Vec<api::Moved> {
    let services = state.services.iter().filter_map(|service| {
        let first = service.table.first();
        let (before, after) = (before.get(&first)?, after.get(&first)?);
        if Arc::ptr_eq(before, after) {
            return None;
        }
        let moves = |(old, new): &(&Slot, &Slot)| old.owner != NO_BACKEND && old.owner != new.owner;
        let moved = before.iter().zip(&**after).filter(moves).count() as u32;
        let (service, slots) = (service.config.name.clone(), after.len() as u32);
        (moved > 0).then_some(api::Moved { service, slots, moved })
    });
    services.collect()
}

/// `17 writes, 0.4 % of the slots of www moved`.
pub fn describe(reloaded: &api::Reloaded) -> String {
    /// Of more services it is not told by name.
    const NAMED: usize = 5;
    let api::Reloaded { writes, moved, .. } = reloaded;
    let plural = if *writes == 1 { "" } else { "s" };
    let named = moved.iter().take(NAMED).map(|api::Moved { service, slots, moved }| {
        format!(", {} of the slots of {service} moved", percentage(*moved, *slots))
    });
    let rest = match moved.len().saturating_sub(NAMED) {
        0 => String::new(),
        rest => format!(", and some of {rest} services more"),
    };
    format!("{writes} write{plural}{}{rest}", named.collect::<String>())
}

/// Passes on that the configuration is to be read again.
pub async fn forward(mut reloads: mpsc::Receiver<()>, events: mpsc::Sender<Event>) {
    while reloads.recv().await.is_some() {
        if events.send(Event::Reload(api::Reload::default(), None)).await.is_err() {
            return;
        }
    }
}
