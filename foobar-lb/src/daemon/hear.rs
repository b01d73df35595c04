//! The operator's word reaches the daemon: it counts at once, is kept, and lapses when its time is over.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{Answer, Daemon, Event, reply};
use crate::{
    api,
    bpf::Bpf,
    state::{Origin, Terms},
};

impl Daemon {
    /// Words are kept from now on.
    pub fn start_keeping(&mut self, events: mpsc::Sender<Event>) {
        let keeping = self.keeper.start(events);
        self.tasks.run(keeping);
    }

    /// Takes in what is said of backends.
    pub(super) fn hear(
        &mut self,
        said: &api::Say,
        operator: &api::Operator,
    ) -> Result<api::Heard, api::Failure> {
        let api::Say { service, backends, word, for_seconds, min_up, force } = said;
        if *word == api::Word::Enable && for_seconds.is_some() {
            let error = "`enable` takes back what was said and does not lapse: leave `for_seconds` out";
            return Err(api::Failure::new(error.to_owned()));
        }
        let origin = origin(operator, *for_seconds);
        let terms = Terms { force: *force, min_up: *min_up };
        let warnings = self
            .state
            .say_within(terms, service, backends, |before| word.on(before, &origin))
            .map_err(|error| api::Failure::unheard(&error))?;
        self.count_anew();
        let until = origin.until.map(|until| until.to_string());
        for backend in backends {
            info!(%service, %backend, by = origin.by, until, "the operator says: {word}");
        }
        warnings.iter().for_each(|warning| warn!("{warning}"));
        Ok(api::Heard { kept: false, until, warnings })
    }

    /// Takes in what is said of a service.
    pub(super) fn hear_of_service(
        &mut self,
        said: &api::SayOfService,
        operator: &api::Operator,
    ) -> Result<api::Heard, api::Failure> {
        let api::SayOfService { service, word, for_seconds } = said;
        let origin = origin(operator, *for_seconds);
        let until = origin.until.map(|until| until.to_string());
        let by = origin.by.clone();
        let disabled = match word {
            api::ServiceWord::Disable => Some(origin),
            api::ServiceWord::Enable if for_seconds.is_none() => None,
            api::ServiceWord::Enable => {
                let error = "`enable` takes back what was said and does not lapse: leave `for_seconds` out";
                return Err(api::Failure::new(error.to_owned()));
            }
        };
        let is_disabled = disabled.is_some();
        self.state.say_of_service(service, disabled).map_err(|error| api::Failure::unheard(&error))?;
        let word = if is_disabled { "disabled" } else { "enabled" };
        info!(%service, by, until, "the operator says: {word}");
        Ok(api::Heard { kept: false, until, warnings: Vec::new() })
    }

    /// What was heard comes into force; when it is on the disk, too, or cannot be, it is answered.
    pub(super) fn take_down(
        &mut self,
        heard: Result<api::Heard, api::Failure>,
        answer: Answer<api::Heard>,
        bpf: &mut Bpf,
    ) {
        self.reconcile(bpf);
        let heard = self.unless_failed(heard);
        self.keeper.keep(self.state.words(), move |failure| {
            let heard = heard.map(|mut heard| {
                heard.kept = failure.is_none();
                let unkept = |why| format!("this will not count any more when foobar-lb has ended: {why}");
                heard.warnings.extend(failure.map(unkept));
                heard
            });
            reply(answer, heard);
        });
    }

    /// Words may have gone with what they were about.
    pub(super) fn keep_words(&mut self) {
        self.keeper.keep(self.state.words(), |_| {});
    }

    /// Forgets words whose time is over. Returns whether there are any.
    pub(super) fn let_words_lapse(&mut self, now: Instant) -> bool {
        let lapsed = self.state.lapse(Timestamp::now());
        lapsed.iter().for_each(|word| info!("its time is over: {word}"));
        if !lapsed.is_empty() {
            self.count_anew();
        }
        if !lapsed.is_empty() || self.keeper.is_due(now) {
            self.keep_words();
        }
        !lapsed.is_empty()
    }
}

fn origin(operator: &api::Operator, period: Option<api::Period>) -> Origin {
    let at = Timestamp::now();
    let period =
        period.map(|period| SignedDuration::try_from(period.duration()).expect("it is ten years at most"));
    let until = period.map(|period| at.saturating_add(period).expect("a duration is no calendar unit"));
    Origin { by: operator.to_string(), at, until }
}
