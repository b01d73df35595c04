//! The operator's word about services and backends, said while the daemon runs, for a while or until it is taken back.
//! That it survives the daemon is left to others: they are given all of it, and give it back.

use std::collections::BTreeMap;

use jiff::Timestamp;
use thiserror::Error;

use super::{Backend, Service, State, Word};
use crate::{
    config::nearest,
    model::{Admin, Health, WhenEmpty},
};

/// Something that was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said<T> {
    /// What.
    pub what: T,
    /// By whom, and when.
    pub origin: Origin,
}

/// Who said something, when, and for how long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The user, for people.
    pub by: String,
    /// When it was said.
    pub at: Timestamp,
    /// When it lapses, if it does.
    pub until: Option<Timestamp>,
}

impl Origin {
    fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// All that the operator has said and that counts. What it is about is named by its address: names may change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Disabled services.
    pub services: BTreeMap<String, Origin>,
    /// What was said of backends, by service and backend.
    pub backends: BTreeMap<(String, String), Word>,
}

/// What must hold for a word to be taken in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// The service may be left without an eligible backend.
    pub force: bool,
    /// So many of the service's other backends must be enabled and up.
    pub min_up: Option<u32>,
}

/// Why a word was not taken in. Nothing has changed then.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Unheard {
    /// There is no such service.
    #[error("there is no service `{service}`: {help}")]
    Service {
        /// As it was named.
        service: String,
        /// What may have been meant.
        help: String,
    },
    /// The service has no such backend.
    #[error("service `{service}` has no backend `{backend}`: {help}")]
    Backend {
        /// The service.
        service: String,
        /// As it was named.
        backend: String,
        /// What may have been meant.
        help: String,
    },
    /// No eligible backend would be left.
    #[error("this leaves service `{service}` without a backend that is enabled and up: {consequence}")]
    Last {
        /// The service.
        service: String,
        /// What becomes of its new flows.
        consequence: String,
    },
    /// Too few others are up.
    #[error("service `{service}` has {up} other backends that are enabled and up, and {needed} are needed")]
    TooFew {
        /// The service.
        service: String,
        /// Those that are up.
        up: u32,
        /// Those that must be.
        needed: u32,
    },
}

impl State {
    /// Changes what the operator says of backends of one service, of all that are named or of none. Returns what the
    /// operator should know of the consequences.
    pub fn say(
        &mut self,
        service: &str,
        backends: &[String],
        change: impl Fn(Word) -> Word,
    ) -> Result<Vec<String>, Unheard> {
        let terms = Terms { force: true, min_up: None };
        self.say_within(terms, service, backends, change)
    }

    /// The same, unless the terms are not kept.
    pub fn say_within(
        &mut self,
        terms: Terms,
        service: &str,
        backends: &[String],
        change: impl Fn(Word) -> Word,
    ) -> Result<Vec<String>, Unheard> {
        let service = self.named(service)?;
        let positions =
            backends.iter().map(|name| service.position(name)).collect::<Result<Vec<_>, Unheard>>()?;
        service.check_others(&positions, terms.min_up)?;
        let had_eligible = service.has_eligible();
        let before: Vec<(Word, u16)> =
            service.backends.iter().map(|backend| (backend.word.clone(), backend.weight())).collect();
        for position in &positions {
            let backend = &mut service.backends[*position];
            backend.word = change(std::mem::take(&mut backend.word));
        }
        if had_eligible && !service.has_eligible() && !terms.force {
            let refusal = service.refuse_last();
            for (backend, (word, _)) in service.backends.iter_mut().zip(before) {
                backend.word = word;
            }
            return Err(refusal);
        }
        let warn = |position: &usize| service.backends[*position].warn_of_no_effect(before[*position].1);
        let warnings = positions.iter().filter_map(warn);
        Ok(warnings.chain(service.warn_if_empty()).collect())
    }

    /// Disables a service, or enables it again.
    pub fn say_of_service(&mut self, service: &str, disabled: Option<Origin>) -> Result<(), Unheard> {
        self.named(service)?.disabled = disabled;
        Ok(())
    }

    /// The service and the backend of these names, by their positions.
    pub fn find(&self, service: &str, backend: &str) -> Result<(&Service, usize), Unheard> {
        let service = &self.services[self.position(service)?];
        Ok((service, service.position(backend)?))
    }

    /// All that the operator has said and that counts.
    pub fn words(&self) -> Words {
        let mut words = Words::default();
        for service in &self.services {
            let name = service.config.key.to_string();
            if let Some(origin) = &service.disabled {
                words.services.insert(name.clone(), origin.clone());
            }
            let said = service.backends.iter().filter(|backend| backend.word != Word::default());
            words.backends.extend(
                said.map(|backend| {
                    ((name.clone(), backend.config.address.to_string()), backend.word.clone())
                }),
            );
        }
        words
    }

    /// Takes in what was said before the daemon started. Returns what it was about that is not there any more: that is
    /// forgotten, so that whoever gets the address later is as the configuration says.
    pub fn recall(&mut self, mut words: Words) -> Vec<String> {
        for service in &mut self.services {
            let name = service.config.key.to_string();
            service.disabled = words.services.remove(&name);
            for backend in &mut service.backends {
                let key = (name.clone(), backend.config.address.to_string());
                backend.word = words.backends.remove(&key).unwrap_or_default();
            }
        }
        let backends = words.backends.into_keys().map(|(service, backend)| format!("{backend} of {service}"));
        words.services.into_keys().chain(backends).collect()
    }

    /// Forgets what was said for a time that is over. Returns what it was.
    pub fn lapse(&mut self, now: Timestamp) -> Vec<String> {
        let mut lapsed = Vec::new();
        for service in &mut self.services {
            if service.disabled.take_if(|origin| origin.is_over(now)).is_some() {
                lapsed.push(format!("{} is enabled again", service.config.name));
            }
            for backend in &mut service.backends {
                let Word { admin, weight } = &mut backend.word;
                let admin = admin.take_if(|said| said.origin.is_over(now)).map(|said| said.what.to_string());
                let weight = weight.take_if(|said| said.origin.is_over(now));
                let weight = weight.map(|said| format!("weight {}", said.what));
                let (service, name) = (&service.config.name, &backend.config.name);
                let over = admin.into_iter().chain(weight);
                lapsed.extend(over.map(|word| format!("{name} of {service} is not {word} any more")));
            }
        }
        lapsed
    }

    fn named(&mut self, service: &str) -> Result<&mut Service, Unheard> {
        let position = self.position(service)?;
        Ok(&mut self.services[position])
    }

    fn position(&self, service: &str) -> Result<usize, Unheard> {
        let names: Vec<&str> = self.services.iter().map(|service| service.config.name.as_str()).collect();
        names.iter().position(|name| *name == service).ok_or_else(|| {
            let help = nearest(service, &names);
            Unheard::Service { service: service.to_owned(), help }
        })
    }
}

impl Backend {
    /// Why what was said leaves it without new flows, where that may not be meant.
    fn warn_of_no_effect(&self, weight_before: u16) -> Option<String> {
        let name = &self.config.name;
        let reweighted = self.weight() != weight_before;
        match self.admin() {
            Admin::Removed => Some(format!(
                "{name} gets no new flows: the configuration has it no more; add it there and reload"
            )),
            Admin::Draining if self.word.admin.is_none() => {
                Some(format!("{name} gets no new flows: its weight is 0"))
            }
            admin @ (Admin::Draining | Admin::Disabled) if reweighted && self.weight() > 0 => {
                Some(format!("{name} is {admin}: its weight counts when it is enabled"))
            }
            _ => None,
        }
    }
}

impl Service {
    /// Of two of the same name it is the one that the configuration has.
    fn position(&self, name: &str) -> Result<usize, Unheard> {
        let found = |removed: bool| {
            let same = |backend: &Backend| backend.removed == removed && backend.config.name == name;
            self.backends.iter().position(same)
        };
        found(false).or_else(|| found(true)).ok_or_else(|| {
            let names: Vec<&str> = self.backends.iter().map(|backend| backend.config.name.as_str()).collect();
            let help = nearest(name, &names);
            Unheard::Backend { service: self.config.name.clone(), backend: name.to_owned(), help }
        })
    }

    /// Whether enough of those at other positions are up.
    fn check_others(&self, positions: &[usize], min_up: Option<u32>) -> Result<(), Unheard> {
        let Some(needed) = min_up else { return Ok(()) };
        let others = self.backends.iter().enumerate().filter(|(position, _)| !positions.contains(position));
        let is_up = |backend: &Backend| backend.admin() == Admin::Enabled && backend.health() == Health::Up;
        let up = others.filter(|(_, backend)| is_up(backend)).count() as u32;
        if up < needed {
            return Err(Unheard::TooFew { service: self.config.name.clone(), up, needed });
        }
        Ok(())
    }

    fn refuse_last(&self) -> Unheard {
        let anyway = "its new flows would go to backends that are not up";
        let consequence = self.warn_if_empty().unwrap_or_else(|| anyway.to_owned());
        Unheard::Last { service: self.config.name.clone(), consequence }
    }

    /// What happens to new flows if the operator leaves no backend to take them.
    pub fn warn_if_empty(&self) -> Option<String> {
        if self.standings().iter().any(|standing| standing.eligible) {
            return None;
        }
        let name = &self.config.name;
        let enabled = self.backends.iter().any(|backend| backend.admin() == Admin::Enabled);
        Some(match (enabled, self.config.when_empty) {
            (false, _) => {
                format!("no backend of {name} is enabled: its new flows are dropped until one is")
            }
            (true, WhenEmpty::Refuse) => {
                format!("no backend of {name} is up: its new flows are dropped until one is")
            }
            (true, WhenEmpty::FailOpen) => {
                format!("no backend of {name} can be reached: its new flows are dropped until one can")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::config;

    /// A service of two backends, both up.
    fn state() -> State {
        let backend = |number: u8| {
            format!("[[service.backend]]\nname = \"b{number}\"\naddress = \"10.0.0.{number}:80\"\n")
        };
        let text = format!(
            "[[service]]\nname = \"a\"\naddress = \"203.0.113.1:80\"\ntable_size = 1009\n{}{}",
            backend(1),
            backend(2)
        );
        let config = config::parse(&text, "test.toml").unwrap_or_else(|error| panic!("{error}"));
        let mut state = State::new(config.services, 1);
        state.suppose_up(|_| false, Instant::now());
        state
    }

    fn drained(until: Option<i64>) -> Word {
        let until = until.map(|second| Timestamp::from_second(second).unwrap());
        let origin = Origin { by: "alice".to_owned(), until, ..Origin::default() };
        Word { admin: Some(Said { what: Admin::Draining, origin }), weight: None }
    }

    fn drain(state: &mut State, terms: Terms, backend: &str) -> Result<Vec<String>, Unheard> {
        state.say_within(terms, "a", &[backend.to_owned()], |_| drained(None))
    }

    fn admin(state: &State, position: usize) -> Admin {
        state.services[0].backends[position].admin()
    }

    #[test]
    fn the_last_backend_is_left_alone_unless_it_is_forced() {
        let mut state = state();
        drain(&mut state, Terms::default(), "b1").unwrap();
        let before = state.words();
        let refused = drain(&mut state, Terms::default(), "b2").unwrap_err();
        assert!(matches!(refused, Unheard::Last { .. }), "{refused}");
        assert_eq!(state.words(), before);
        let weight = Said { what: 0, origin: Origin::default() };
        let weightless = |word: Word| Word { weight: Some(weight.clone()), ..word };
        let refused = state.say_within(Terms::default(), "a", &["b2".to_owned()], weightless);
        assert!(matches!(refused, Err(Unheard::Last { .. })), "{refused:?}");
        assert_eq!(state.words(), before);
        let warnings = drain(&mut state, Terms { force: true, ..Terms::default() }, "b2").unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        // It cannot become worse, so nothing is to be forced.
        drain(&mut state, Terms::default(), "b1").unwrap();
    }

    #[test]
    fn the_second_of_two_who_need_each_other_is_refused() {
        let mut state = state();
        let terms = Terms { min_up: Some(1), ..Terms::default() };
        drain(&mut state, terms, "b1").unwrap();
        let refused = drain(&mut state, terms, "b2").unwrap_err();
        assert_eq!(refused, Unheard::TooFew { service: "a".to_owned(), up: 0, needed: 1 });
        assert_eq!(admin(&state, 1), Admin::Enabled);
    }

    #[test]
    fn what_was_said_is_recalled_and_what_it_is_about_no_more_is_forgotten() {
        let mut before = state();
        drain(&mut before, Terms::default(), "b2").unwrap();
        before.say_of_service("a", Some(Origin::default())).unwrap();
        let mut words = before.words();
        let gone = ("tcp 203.0.113.1:80".to_owned(), "10.0.0.3:80".to_owned());
        words.backends.insert(gone, drained(None));
        let mut after = state();
        assert_eq!(after.recall(words), ["10.0.0.3:80 of tcp 203.0.113.1:80"]);
        assert_eq!(after.words(), before.words());
        assert_eq!([admin(&after, 0), admin(&after, 1)], [Admin::Enabled, Admin::Draining]);
    }

    #[test]
    fn a_word_lapses_at_its_time_and_not_before() {
        let mut state = state();
        state.say("a", &["b1".to_owned()], |_| drained(Some(100))).unwrap();
        state.say("a", &["b2".to_owned()], |_| drained(None)).unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(state.lapse(at(99)), Vec::<String>::new());
        assert_eq!(state.lapse(at(100)), ["b1 of a is not draining any more"]);
        assert_eq!([admin(&state, 0), admin(&state, 1)], [Admin::Enabled, Admin::Draining]);
    }

    #[test]
    fn a_disabled_service_has_no_record_and_an_enabled_one_has_it_again() {
        let mut state = state();
        let now = Instant::now();
        let enabled = state.render(now);
        state.say_of_service("a", Some(Origin::default())).unwrap();
        let disabled = state.render(now);
        assert!(disabled.services.is_empty());
        assert_eq!(disabled.addresses, enabled.addresses, "the VIP is one as before");
        state.say_of_service("a", None).unwrap();
        assert_eq!(state.render(now), enabled);
    }
}
