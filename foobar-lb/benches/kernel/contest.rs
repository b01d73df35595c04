//! A suite, measured: all programs loaded and checked, then rounds in which all of them take turns, then checked again.

use anyhow::{Context, Result, ensure};

use crate::{
    address::Family,
    balancer::Balancer,
    clock::Clock,
    contestant::{Contestant, Loaded},
    count::count,
    generator::ENDLESS,
    path::{Kind, Path},
    place::Place,
    report::Measurement,
    setup::{Setup, Slots},
    suite::{Case, Subject, Suite},
};

/// Measures all cases of a suite.
pub fn measure(suite: &Suite, rounds: u32, clock: &mut Clock, place: &mut Place) -> Result<Vec<Measurement>> {
    let (mut balancers, mut contestants) = (vec![], vec![]);
    for case in &suite.cases {
        let contestant = prepare(*case, &mut balancers, place);
        contestants.push(contestant.with_context(|| case.subject.name())?);
    }
    balancers.iter_mut().try_for_each(Balancer::end_moves)?;
    take_turns(&mut contestants, rounds, clock)?;
    for balancer in &mut balancers {
        check(balancer, &contestants)?;
    }
    Ok(contestants.into_iter().map(|contestant| Measurement::new(suite.name, contestant)).collect())
}

/// Lets all contestants run once in each round.
pub fn take_turns(contestants: &mut [Contestant], rounds: u32, clock: &mut Clock) -> Result<()> {
    for _ in 0..rounds {
        for contestant in &mut *contestants {
            let ran = contestant.run(clock);
            ran.with_context(|| contestant.case.subject.name())?;
        }
    }
    Ok(())
}

/// Loads the program of a case, if it is not loaded yet.
fn prepare(case: Case, balancers: &mut Vec<Balancer>, place: &mut Place) -> Result<Contestant> {
    let mut executed = None;
    let (info, path) = match case.subject {
        Subject::Transmit => (place.baseline.program("transmit")?, Path::unchanged(Family::V4)),
        Subject::Parse(family) => (place.baseline.program("parse")?, Path::unchanged(family)),
        Subject::Balancer(setup, kind, packet) => {
            let balancer = find(balancers, setup, place.interface)?;
            if case.flows < ENDLESS {
                executed = Some(count(balancer, kind, packet, place.interface)?);
            }
            (balancer.program()?, Path::of(setup, kind, packet))
        }
        Subject::Given(..) => unreachable!("it is in no suite"),
    };
    let mut contestant = Contestant::prepare(case, Loaded::new(&info)?, path, place.interface)?;
    contestant.executed = executed;
    Ok(contestant)
}

/// The balancer with this setup, which is loaded if there is none yet.
fn find(balancers: &mut Vec<Balancer>, setup: Setup, interface: u32) -> Result<&mut Balancer> {
    let position = match balancers.iter().position(|balancer| balancer.setup == setup) {
        Some(position) => position,
        None => {
            balancers.push(Balancer::load(setup, interface)?);
            balancers.len() - 1
        }
    };
    Ok(&mut balancers[position])
}

/// All packets must have been counted as what they were. No flow may be remembered of settled slots, and all those that
/// came again must be of others.
fn check(balancer: &mut Balancer, contestants: &[Contestant]) -> Result<()> {
    let setup = balancer.setup;
    for kind in [Kind::Forward, Kind::Reply, Kind::Pass] {
        let sent: u64 = contestants.iter().map(|contestant| contestant.sent_to(setup, kind)).sum();
        let counted = balancer.counted(kind)?;
        ensure!(counted == sent, "{setup:?}: {counted} of {sent} packets were counted as {kind:?}");
    }
    let known = contestants.iter().filter(|contestant| contestant.is_of(setup));
    let known = known.map(|contestant| contestant.case.flows).filter(|flows| *flows < ENDLESS).max();
    let remembered = balancer.remembered()?;
    match setup.slots {
        Slots::Settled => ensure!(remembered == 0, "{setup:?}: {remembered} flows are remembered"),
        Slots::Moving | Slots::Traces | Slots::Tracked => ensure!(
            Some(remembered) >= known,
            "{setup:?}: {remembered} flows are remembered, which should be {known:?} or more"
        ),
    }
    Ok(())
}
