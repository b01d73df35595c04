//! The health machine: turns the outcomes of probes into a backend's health, by `rise` and `fall`.
//! It does no I/O and reads no clock: `now` is an argument. When and how to probe is left to others.

use std::time::Instant;

use crate::model::{Down, Health};

/// What one probe says of its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered as expected.
    Success,
    /// It did not.
    Failure(Down),
    /// The probe could not be made for want of something of the balancer's own: it says nothing of the
    /// backend.
    Inconclusive,
}

/// A change of a backend's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What it was.
    pub from: Health,
    /// What it is now; never equal to `from`.
    pub to: Health,
}

/// The health of one backend and what led to it.
///
/// | health | becomes | after |
/// |---|---|---|
/// | unknown | up | one success: a cold start must be quick |
/// | unknown, up | down | `fall` failures in a row; silent if none of them was answered, else answers |
/// | down | up | `rise` successes in a row |
/// | down, answers | down, silent | `fall` silent failures in a row: the host went away after its server |
/// | down, silent | down, answers | `fall` answered failures in a row: the host is back before its server |
///
/// The kind of a down thus changes no quicker than health itself: with `fall` of 2 or more, one odd timeout
/// among refusals re-picks no flow, and one odd refusal brings none back to a dead host.
#[derive(Clone, Debug)]
pub struct State {
    rise: u32,
    fall: u32,
    health: Health,
    since: Instant,
    transitions: u64,
    inconclusive: u64,
    reason: String,
    streak: Streak,
}

impl State {
    /// Starts from `health`: unknown for a backend never measured, else its remembered health, which holds
    /// until probes say otherwise. `rise` and `fall` are at least 1.
    pub fn new(health: Health, rise: u32, fall: u32, now: Instant) -> Self {
        Self {
            rise,
            fall,
            health,
            since: now,
            transitions: 0,
            inconclusive: 0,
            reason: "no probe has ended yet".to_owned(),
            streak: Streak::default(),
        }
    }

    /// Takes in what the probe that ended at `now` said, and why.
    pub fn observe(&mut self, outcome: Outcome, reason: String, now: Instant) -> Option<Transition> {
        self.reason = reason;
        if outcome == Outcome::Inconclusive {
            self.inconclusive += 1;
        }
        self.streak.extend(outcome);
        let transition = Transition { from: self.health, to: self.next_health() };
        if transition.from == transition.to {
            return None;
        }
        self.health = transition.to;
        self.since = now;
        self.transitions += 1;
        Some(transition)
    }

    /// The health as it stands.
    pub fn health(&self) -> Health {
        self.health
    }

    /// When the health became what it is, or when the machine started.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// How many times the health has changed.
    pub fn transitions(&self) -> u64 {
        self.transitions
    }

    /// How many probes said nothing.
    pub fn inconclusive(&self) -> u64 {
        self.inconclusive
    }

    /// What the last probe met, in words for the operator.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    fn next_health(&self) -> Health {
        let Streak { successes, failures, answered, silent } = self.streak;
        match self.health {
            Health::Unknown if successes >= 1 => Health::Up,
            Health::Down(_) if successes >= self.rise => Health::Up,
            Health::Unknown | Health::Up if silent >= self.fall => Health::Down(Down::Silent),
            Health::Unknown | Health::Up if failures >= self.fall => Health::Down(Down::Answers),
            Health::Down(Down::Answers) if silent >= self.fall => Health::Down(Down::Silent),
            Health::Down(Down::Silent) if answered >= self.fall => Health::Down(Down::Answers),
            unchanged => unchanged,
        }
    }
}

/// How many of the latest conclusive outcomes agree, counted back from the last one.
#[derive(Clone, Copy, Debug, Default)]
struct Streak {
    successes: u32,
    failures: u32,
    /// Failures in a row that the host answered.
    answered: u32,
    /// Failures in a row without any answer.
    silent: u32,
}

impl Streak {
    fn extend(&mut self, outcome: Outcome) {
        let Self { successes, failures, answered, silent } = *self;
        *self = match outcome {
            Outcome::Success => Self { successes: successes.saturating_add(1), ..Self::default() },
            Outcome::Failure(Down::Answers) => Self {
                failures: failures.saturating_add(1),
                answered: answered.saturating_add(1),
                ..Self::default()
            },
            Outcome::Failure(Down::Silent) => Self {
                failures: failures.saturating_add(1),
                silent: silent.saturating_add(1),
                ..Self::default()
            },
            Outcome::Inconclusive => *self,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    const UNKNOWN: Health = Health::Unknown;
    const UP: Health = Health::Up;
    const ANSWERS: Health = Health::Down(Down::Answers);
    const SILENT: Health = Health::Down(Down::Silent);

    const SUCCESS: Outcome = Outcome::Success;
    const ANSWERED: Outcome = Outcome::Failure(Down::Answers);
    const UNANSWERED: Outcome = Outcome::Failure(Down::Silent);
    const CONCLUSIVE: [Outcome; 3] = [SUCCESS, ANSWERED, UNANSWERED];

    /// With rise = fall = 2 two outcomes are all that can matter, so the table is exhaustive.
    #[test]
    fn every_pair_of_outcomes_leads_where_the_table_says() {
        // One row for each first outcome, one column for each second: success, answered, unanswered.
        let table = [
            (UNKNOWN, [[UP, UP, UP], [UP, ANSWERS, ANSWERS], [UP, ANSWERS, SILENT]]),
            (UP, [[UP, UP, UP], [UP, ANSWERS, ANSWERS], [UP, ANSWERS, SILENT]]),
            (ANSWERS, [[UP, ANSWERS, ANSWERS], [ANSWERS, ANSWERS, ANSWERS], [ANSWERS, ANSWERS, SILENT]]),
            (SILENT, [[UP, SILENT, SILENT], [SILENT, ANSWERS, SILENT], [SILENT, SILENT, SILENT]]),
        ];
        for (start, rows) in table {
            for (first, row) in CONCLUSIVE.into_iter().zip(rows) {
                for (second, expected) in CONCLUSIVE.into_iter().zip(row) {
                    let reached = health_after(start, &[first, second]);
                    assert_eq!(reached, expected, "{start}: {first:?}, {second:?}");
                }
            }
        }
    }

    #[test]
    fn one_outcome_moves_only_what_was_never_measured() {
        for start in [UNKNOWN, UP, ANSWERS, SILENT] {
            for outcome in CONCLUSIVE {
                let expected = if (start, outcome) == (UNKNOWN, SUCCESS) { UP } else { start };
                assert_eq!(health_after(start, &[outcome]), expected, "{start}: {outcome:?}");
            }
        }
    }

    #[test]
    fn a_host_that_hangs_after_its_server_stopped_becomes_silent() {
        assert_eq!(health_after(UP, &[ANSWERED, UNANSWERED]), ANSWERS);
        assert_eq!(health_after(UP, &[ANSWERED, UNANSWERED, UNANSWERED]), SILENT);
    }

    #[test]
    fn the_reason_is_the_last_probes() {
        let now = Instant::now();
        let mut state = State::new(UNKNOWN, 1, 1, now);
        assert_eq!(state.reason(), "no probe has ended yet");
        for (outcome, reason) in
            [(SUCCESS, "fine"), (Outcome::Inconclusive, "no port"), (ANSWERED, "refused")]
        {
            state.observe(outcome, reason.to_owned(), now);
            assert_eq!(state.reason(), reason);
        }
        assert_eq!((state.transitions(), state.inconclusive()), (2, 1));
    }

    proptest! {
        #[test]
        fn a_transition_has_earned_its_streak(run in runs()) {
            for (transition, before) in walk(&run) {
                let in_row = |wanted: &[Outcome]| {
                    before.iter().rev().take_while(|&outcome| wanted.contains(outcome)).count() as u32
                };
                match (transition.from, transition.to) {
                    (Health::Unknown, Health::Up) => prop_assert_eq!(in_row(&[SUCCESS]), 1),
                    (_, Health::Up) => prop_assert_eq!(in_row(&[SUCCESS]), run.rise),
                    (Health::Down(_), Health::Down(kind)) => {
                        prop_assert!(in_row(&[Outcome::Failure(kind)]) >= run.fall);
                    }
                    (_, Health::Down(kind)) => {
                        prop_assert_eq!(in_row(&[ANSWERED, UNANSWERED]), run.fall);
                        prop_assert_eq!(in_row(&[UNANSWERED]) == run.fall, kind == Down::Silent);
                    }
                    (_, Health::Unknown) => prop_assert!(false, "what is measured is never unknown again"),
                }
            }
        }

        #[test]
        fn transitions_chain_and_are_counted_and_dated(run in runs()) {
            let mut now = Instant::now();
            let mut state = State::new(run.start, run.rise, run.fall, now);
            let (mut health, mut since, mut transitions) = (run.start, now, 0);
            for (outcome, gap) in run.outcomes {
                now += Duration::from_millis(gap);
                if let Some(transition) = state.observe(outcome, String::new(), now) {
                    prop_assert_eq!(transition.from, health);
                    prop_assert_ne!(transition.to, health);
                    (health, since, transitions) = (transition.to, now, transitions + 1);
                }
                let kept = (state.health(), state.since(), state.transitions());
                prop_assert_eq!(kept, (health, since, transitions));
            }
        }

        #[test]
        fn what_goes_on_long_enough_is_believed(run in runs(), last in select(CONCLUSIVE.to_vec())) {
            let mut state = replay(&run);
            for _ in 0..run.rise.max(run.fall) {
                state.observe(last, String::new(), Instant::now());
            }
            let believed = match last {
                Outcome::Success => UP,
                Outcome::Failure(kind) => Health::Down(kind),
                Outcome::Inconclusive => unreachable!("only conclusive outcomes are drawn"),
            };
            prop_assert_eq!(state.health(), believed);
        }

        #[test]
        fn inconclusive_probes_change_nothing_but_their_count(run in runs()) {
            let state = replay(&run);
            let said_nothing = run.outcomes.iter().filter(|(outcome, _)| *outcome == Outcome::Inconclusive);
            prop_assert_eq!(state.inconclusive(), said_nothing.count() as u64);
            let mut conclusive = run;
            conclusive.outcomes.retain(|(outcome, _)| *outcome != Outcome::Inconclusive);
            let without = replay(&conclusive);
            prop_assert_eq!((state.health(), state.transitions()), (without.health(), without.transitions()));
        }
    }

    /// A backend's life: where it starts and what its probes say, each so many milliseconds after the last.
    #[derive(Clone, Debug)]
    struct Run {
        start: Health,
        rise: u32,
        fall: u32,
        outcomes: Vec<(Outcome, u64)>,
    }

    fn runs() -> impl Strategy<Value = Run> {
        let outcome = select(vec![SUCCESS, ANSWERED, UNANSWERED, Outcome::Inconclusive]);
        let start = select(vec![UNKNOWN, UP, ANSWERS, SILENT]);
        (start, 1..4u32, 1..4u32, vec((outcome, 1..10_000u64), 0..60))
            .prop_map(|(start, rise, fall, outcomes)| Run { start, rise, fall, outcomes })
    }

    /// Each transition of a run with the conclusive outcomes up to and with the one that caused it.
    fn walk(run: &Run) -> Vec<(Transition, Vec<Outcome>)> {
        let mut state = State::new(run.start, run.rise, run.fall, Instant::now());
        let mut before = Vec::new();
        let mut transitions = Vec::new();
        for &(outcome, _) in &run.outcomes {
            if outcome != Outcome::Inconclusive {
                before.push(outcome);
            }
            let transition = state.observe(outcome, String::new(), Instant::now());
            transitions.extend(transition.map(|transition| (transition, before.clone())));
        }
        transitions
    }

    fn replay(run: &Run) -> State {
        let mut state = State::new(run.start, run.rise, run.fall, Instant::now());
        for &(outcome, _) in &run.outcomes {
            state.observe(outcome, String::new(), Instant::now());
        }
        state
    }

    fn health_after(start: Health, outcomes: &[Outcome]) -> Health {
        let outcomes = outcomes.iter().map(|&outcome| (outcome, 1)).collect();
        replay(&Run { start, rise: 2, fall: 2, outcomes }).health()
    }
}
