//! What the fuzzer tries, and what has to be true of it: [`Scene`] is made of the fuzzer's bytes, and [`check`] runs it
//! through the data path on the host. The fuzz target and the test that replays its corpus share this. What a scene may
//! be is left to `scene` and `wire`, what is claimed to `claims`.

mod claims;
mod families;
mod mapped;
mod scene;
mod seen;
mod translation;
mod wire;

use std::collections::BTreeMap;

use anyhow::Result;
use foobar_lb::{image::Image, twin::Twin};
use foobar_lb_ebpf::{
    headers::Side,
    layout::Traffic,
    reason::{Reason, Verdict},
};

use self::claims::Datagrams;
pub use self::scene::Scene;
use crate::packet::{
    Arrival, hex, increase,
    way::Way,
    world::{FLOWS, HALF_OPEN, MAPPINGS, SEED, routes},
};

/// Longer after boot than any flow is silent; nanoseconds.
const START: u64 = 1_000_000_000_000;

/// What became of a frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub out: Vec<u8>,
    /// The backends it was counted to or from.
    pub carried: Vec<(u32, Side)>,
    /// What it was counted as, and how often.
    pub reasons: Vec<(Reason, u64)>,
}

/// Lets all frames of a scene arrive. Panics where something is not as it has to be, and shows the frame.
pub fn check(scene: &Scene) {
    let mut stage = Stage::new(scene.way(), scene.image());
    for flow in &scene.known {
        stage.twin.remember(&flow.remembered(START));
    }
    for step in &scene.steps {
        stage.wait(step.later);
        for arrival in &step.arrivals {
            let outcome = stage.check(arrival);
            if step.again {
                stage.check_again(arrival, &outcome);
            }
        }
    }
}

/// A balancer that every frame is checked at.
pub struct Stage {
    way: Way,
    image: Image,
    twin: Twin,
    datagrams: Datagrams,
}

impl Stage {
    /// All services of the image reach their backends this way, but for flows that are mapped.
    pub fn new(way: Way, image: Image) -> Self {
        let mut twin = Twin::with_capacities(image.clone(), SEED, FLOWS, HALF_OPEN, MAPPINGS);
        twin.now = START;
        Self { way, image, twin, datagrams: Datagrams::default() }
    }

    /// So many nanoseconds pass.
    pub fn wait(&mut self, time: u64) {
        self.twin.now += time;
    }

    /// Lets a frame arrive. Panics where what becomes of it is not as it has to be.
    pub fn check(&mut self, arrival: &Arrival) -> Outcome {
        let outcome = self.run(arrival);
        let claims = claims::check(self, arrival, &outcome);
        let claims = claims.and_then(|()| self.datagrams.check(arrival, &outcome));
        self.judge(arrival, &outcome, claims);
        outcome
    }

    /// Lets a frame arrive again that has just arrived.
    fn check_again(&mut self, arrival: &Arrival, first: &Outcome) {
        let second = self.run(arrival);
        self.judge(arrival, &second, claims::check_again(first, &second));
    }

    fn judge(&self, arrival: &Arrival, outcome: &Outcome, claims: Result<()>) {
        let Outcome { verdict, out, carried, reasons } = outcome;
        if let Err(wrong) = claims {
            let what = format!("{verdict:?}, {carried:?}, {reasons:?}, out: {}", hex(out));
            panic!("{wrong:#}\n{arrival:?}\n{what}\n{:?}\n{}", self.way, self.image);
        }
    }

    fn run(&mut self, arrival: &Arrival) -> Outcome {
        self.twin.routes = routes(arrival.ingress);
        let (reasons, traffic) = (self.twin.reasons(), self.traffic());
        let mut out = arrival.frame.clone();
        let verdict = self.twin.run(&mut out, arrival.ingress);
        let counted = increase(&reasons, &self.twin.reasons());
        let carried = self.traffic().into_iter().flat_map(|(id, after)| {
            let before = &traffic[&id];
            let towards = (after.forward.packets > before.forward.packets).then_some((id, Side::Destination));
            let from = (after.reply.packets > before.reply.packets).then_some((id, Side::Source));
            towards.into_iter().chain(from)
        });
        Outcome {
            verdict,
            out,
            carried: carried.collect(),
            reasons: counted.into_iter().map(|(reason, count)| (reason, count.packets)).collect(),
        }
    }

    fn traffic(&self) -> BTreeMap<u32, Traffic> {
        self.image.backends.keys().map(|id| (*id, self.twin.traffic(*id))).collect()
    }
}
