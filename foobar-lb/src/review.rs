//! A look at a configuration before it comes into force: what it would change, what would move, which flows that
//! concerns, and why it would be refused. It works on a copy of the state, on whatever thread it is on.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use crate::{
    api::{Plan, PlannedService, Turn},
    changes,
    config::Config,
    model::{Place, Share},
    start::{self, chain},
    state::{Moves, Preview, Room, State},
    sweep::{Broom, Store, monotonic},
};

/// What is in force.
pub struct Review {
    /// What is known.
    pub state: State,
    /// The configuration.
    pub config: Arc<Config>,
    /// Whether kernel settings that are missing may be set; none if this is not the machine that they are about.
    pub set_sysctls: Option<bool>,
}

/// What a configuration would do.
pub struct Verdict {
    /// For people and programs; flows are not counted yet.
    pub plan: Plan,
    moves: Vec<Moves>,
    /// For each planned service, the place of the one in force that it goes on from.
    places: Vec<Option<usize>>,
}

impl Review {
    /// Nothing but a configuration is in force, and all of its backends are up.
    pub fn of_file(config: Config) -> Self {
        let mut state = State::new(config.services.clone(), config.daemon.seed.unwrap_or_default());
        state.suppose_up(|_| false, Instant::now());
        Self { state, config: Arc::new(config), set_sysctls: None }
    }

    /// Looks at a configuration. `most` is the share of slots that may move, if not the one in force counts.
    pub fn judge(&self, config: &Config, most: Option<Share>) -> Verdict {
        let room = Room { slots: config.daemon.slots, backends: config.daemon.backends };
        let Preview { predecessors, moves } = self.state.preview(&config.services, room, Instant::now());
        let mut refused = self.find_refusals(config);
        let moves = match moves {
            Ok(moves) => {
                let too_much = self.state.check_moves(&moves, most).err();
                refused.extend(too_much.map(|too_much| too_much.to_string()));
                Some(moves)
            }
            Err(refusal) => {
                refused.push(refusal.to_string());
                None
            }
        };
        let mut warnings: Vec<String> =
            (!config.warnings.is_empty()).then(|| config.warnings.to_string()).into_iter().collect();
        warnings.extend(moves.iter().flatten().flat_map(|moves| &moves.displaced).map(|address| {
            let place = Place(*address);
            format!("{place} is removed and in use elsewhere then: its flows are not kept until they end")
        }));
        let (services, places) = self.compare(config, &predecessors, moves.as_deref());
        let kept = predecessors.iter().flatten().count();
        let changed = services.iter().filter(|service| service.turn == Turn::Changed).count();
        let keys = changes::of_daemon(&self.config, config);
        let plan = Plan { refused, warnings, keys, services, unchanged: kept - changed };
        Verdict { plan, moves: moves.unwrap_or_default(), places }
    }

    /// What keeps the configuration from coming into force, whatever it moves.
    fn find_refusals(&self, config: &Config) -> Vec<String> {
        let section = changes::needs_restart(&self.config, config);
        let mut refused: Vec<String> = section.map(needs_restart).into_iter().collect();
        if let Some(set_sysctls) = self.set_sysctls {
            let locals: Vec<_> = self.state.view().locals.iter().copied().collect();
            let checked = start::check_settings(config, &self.state.interface_names(), set_sysctls, &locals);
            refused.extend(checked.err().map(|error| chain(&error)));
        }
        refused
    }

    /// Services that come, go or change, and the place of each in force.
    fn compare(
        &self,
        config: &Config,
        predecessors: &[Option<usize>],
        moves: Option<&[Moves]>,
    ) -> (Vec<PlannedService>, Vec<Option<usize>>) {
        let mut planned = Vec::new();
        let in_force = |place: usize| &self.state.services[place].config;
        for (service, place) in config.services.iter().zip(predecessors) {
            let entry = match place {
                Some(place) => changes::between(in_force(*place), service),
                None => Some(changes::added(service)),
            };
            planned.extend(entry.map(|entry| (entry, *place)));
        }
        let kept: HashSet<usize> = predecessors.iter().flatten().copied().collect();
        let gone = (0..self.state.services.len()).filter(|place| !kept.contains(place));
        planned.extend(gone.map(|place| (changes::removed(in_force(place)), Some(place))));
        for (entry, place) in &mut planned {
            let Some(place) = place else { continue };
            entry.slots_moved = moves.map(|moves| moves[*place].slots.len() as u32);
            entry.max_moved = in_force(*place).max_moved.map(|most| most.to_string());
            let displaced = moves.iter().flat_map(|moves| &moves[*place].displaced);
            let displaced: HashSet<String> = displaced.map(|address| Place(*address).to_string()).collect();
            let leaving = entry.backends.iter_mut().filter(|backend| backend.turn == Turn::Removed);
            leaving
                .filter(|backend| displaced.contains(&backend.address))
                .for_each(|backend| backend.flows_stay_seconds = Some(0));
        }
        planned.into_iter().unzip()
    }

    /// Counts the flows that are remembered in slots that move and on backends that go. Where some may have been missed
    /// or counted twice, none are told.
    pub fn count<S: Store>(&self, verdict: &mut Verdict, store: &mut S) -> Result<(), S::Error> {
        let moving = verdict
            .moves
            .iter()
            .zip(0..)
            .flat_map(|(moves, place)| moves.slots.iter().map(move |slot| (*slot, place)));
        let moving: HashMap<u32, usize> = moving.collect();
        let leaving: HashSet<u32> =
            verdict.moves.iter().flat_map(|moves| moves.leaving.values()).copied().collect();
        let mut on_moved = vec![0; verdict.moves.len()];
        let mut on_leaving: HashMap<u32, u64> = HashMap::new();
        let broom = Broom::new(&self.state, monotonic(), Instant::now());
        let whole = broom.look(store, |slot, backend| {
            if let Some(place) = moving.get(&slot) {
                on_moved[*place] += 1;
            }
            if leaving.contains(&backend) {
                *on_leaving.entry(backend).or_default() += 1;
            }
        })?;
        if whole {
            verdict.note_flows(&on_moved, &on_leaving);
        }
        Ok(())
    }
}

impl Verdict {
    fn note_flows(&mut self, on_moved: &[u64], on_leaving: &HashMap<u32, u64>) {
        for (service, place) in self.plan.services.iter_mut().zip(&self.places) {
            let Some((place, moves)) = place.and_then(|place| Some((place, self.moves.get(place)?))) else {
                continue;
            };
            service.flows_on_moved = Some(on_moved[place]);
            let ids = moves.leaving.iter().map(|(address, id)| (Place(*address).to_string(), *id));
            let ids: HashMap<String, u32> = ids.collect();
            for backend in service.backends.iter_mut().filter(|backend| backend.turn == Turn::Removed) {
                let id = ids.get(&backend.address);
                backend.flows = id.map(|id| on_leaving.get(id).copied().unwrap_or(0));
            }
        }
    }
}

/// Why a section cannot change while the daemon runs.
pub fn needs_restart(section: &str) -> String {
    format!(
        "{section} has changed, which takes effect at a restart only: restart foobar-lb, or undo that change"
    )
}
