//! The model test: random stories of changes and packets happen to the control plane and to the data path, both as
//! they are, while a reference that remembers every flow watches each packet. A story that refutes the model is told
//! in its shortest form. The stories are the same each time, so that a change is not blamed for what was there before;
//! `PROPTEST_CASES=100000` plays so many others.

mod frames;
mod life;
mod play;
mod reference;
mod site;
mod story;
mod tally;
mod world;

use std::{
    cell::{Cell, RefCell},
    env,
};

use foobar_lb::model::{Protocol, Remember};
use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};

use self::{
    play::play,
    story::{Setting, settings, stories},
    tally::{Limit, Tally},
};

/// Limits that TCP flows meet where there is room.
const TCP_LIMITS: [Limit; 7] =
    [Limit::Handshake, Limit::Silent, Limit::Idle, Limit::Brief, Limit::Dead, Limit::Syn, Limit::DrainTime];

#[test]
fn tcp_flows_stay() {
    let tally = explore(5_000, settings(Protocol::Tcp, Remember::Needed));
    check(&tally, &TCP_LIMITS);
}

#[test]
fn udp_flows_stay() {
    let tally = explore(2_500, settings(Protocol::Udp, Remember::Needed));
    let udp = [Limit::UdpSwitch, Limit::UdpDown];
    check(&tally, &[&udp[..], &[Limit::Silent, Limit::Idle, Limit::Dead, Limit::DrainTime]].concat());
}

#[test]
fn flows_stay_where_all_are_remembered() {
    let tally = explore(1_500, settings(Protocol::Tcp, Remember::All));
    check(&tally, &TCP_LIMITS);
}

#[test]
fn flows_stay_where_there_is_room() {
    let cramped = |setting| Setting { cramped: true, ..setting };
    let tally = explore(1_500, settings(Protocol::Tcp, Remember::Needed).prop_map(cramped));
    check(&tally, &[&TCP_LIMITS[..], &[Limit::NoRoom]].concat());
}

/// Shows what came about, and makes sure that it says something: that flows did stay, most of them in the midst of
/// changes, and that they met these limits and no others.
fn check(tally: &Tally, limits: &[Limit]) {
    println!("{tally}");
    assert!(tally.stayed > 30 * tally.stories && tally.against_owner > 5 * tally.stories, "{tally}");
    assert!(2 * tally.eventful > tally.stories, "{tally}");
    for limit in Limit::ALL {
        let (possible, met) = (limits.contains(&limit), tally.of(limit) > 0);
        assert!(met <= possible, "{limit:?} is no reason here: {tally}");
        assert!(met || !possible || tally.stories < 1_500, "{limit:?} was never met: {tally}");
    }
}

/// Plays so many stories.
fn explore(stories_to_play: u32, settings: impl Strategy<Value = Setting>) -> Tally {
    let cases = env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = Config {
        cases: cases.unwrap_or(stories_to_play),
        failure_persistence: None,
        max_shrink_iters: 50_000,
        ..Config::default()
    };
    let (tally, refuted) = (RefCell::new(Tally::default()), Cell::new(false));
    let mut runner = match cases {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let outcome = runner.run(&stories(settings), |story| {
        match play(&story) {
            Ok(told) if !refuted.get() => tally.borrow_mut().add(&told),
            // From now on it is only made shorter.
            Err(why) => {
                refuted.set(true);
                return Err(TestCaseError::fail(why));
            }
            Ok(_) => {}
        }
        Ok(())
    });
    let tally = tally.into_inner();
    match outcome {
        Ok(()) => tally,
        Err(TestError::Fail(why, story)) => panic!("after {} stories, {why}\n{story:?}", tally.stories),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}
