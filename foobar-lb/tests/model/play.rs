//! A story happens to the world, and the reference watches.

use std::time::Duration;

use foobar_lb::{
    api::{Weight, Word},
    model::Remember,
    sweep::GRACE,
};

use super::{
    reference::{Reference, Refutation},
    story::{Backends, CLIENTS, Change, Kind, Operation, Packet, Setting, Story, Sweep},
    tally::Tally,
    world::{Past, World},
};

/// Plays a story to its end, and then lets all come to rest.
pub fn play(story: &Story) -> Result<Tally, Refutation> {
    let mut play = Play::new(story.setting);
    for (number, operation) in (1..).zip(&story.operations) {
        play.perform(operation).map_err(|refutation| format!("at {number}: {refutation}"))?;
    }
    play.rest().map_err(|refutation| format!("at rest: {refutation}"))?;
    Ok(play.reference.tally)
}

struct Play {
    setting: Setting,
    world: World,
    reference: Reference,
}

impl Play {
    fn new(setting: Setting) -> Self {
        let world = World::new(&setting);
        let reference = Reference::new(setting, world.standings(), world.owners());
        Self { setting, world, reference }
    }

    fn perform(&mut self, operation: &Operation) -> Result<(), Refutation> {
        match operation {
            Operation::Packet(packet) => self.send(*packet)?,
            Operation::Everyone { kind, late } => self.send_all(*kind, *late)?,
            Operation::Change { change, midway } => {
                self.world.change(change);
                self.reconcile(midway)?;
            }
            Operation::Ramp(backends) => self.ramp(*backends)?,
            Operation::Wait { time, asleep: true } => self.world.pass(time.resolve(&self.setting)),
            Operation::Wait { time, asleep: false } => self.wait(time.resolve(&self.setting))?,
            Operation::Sweep(sweep) => self.sweep(*sweep)?,
        }
        self.check_settled()
    }

    fn send(&mut self, packet: Packet) -> Result<(), Refutation> {
        let now = self.world.elapsed;
        let (place, _) = self.world.slot(packet.client);
        let slot_changed = self.world.changed(place).filter(|when| now - *when < GRACE);
        let under_way = slot_changed
            .is_some_and(|when| self.reference.last(packet.client).is_none_or(|last| last < when));
        let late = packet.late && under_way && matches!(packet.kind, Kind::Syn | Kind::Data);
        let sight = self.world.send(packet, late);
        let judged = self.reference.judge(packet.client, packet.kind, &sight);
        judged.map_err(|refutation| format!("{packet}: {refutation}"))
    }

    fn send_all(&mut self, kind: Kind, late: bool) -> Result<(), Refutation> {
        let senders = (0..CLIENTS).filter(|client| kind == Kind::Syn || self.reference.knows(*client));
        let senders: Vec<u8> = senders.collect();
        senders.into_iter().try_for_each(|client| self.send(Packet { client, kind, late }))
    }

    /// Brings the maps up to date.
    fn reconcile(&mut self, midway: &[Packet]) -> Result<(), Refutation> {
        self.world.check_ids()?;
        let steps = self.world.plan();
        self.reference.observe_standings(self.world.standings(), self.world.elapsed)?;
        for (done, step) in steps.iter().enumerate() {
            if done == steps.len() / 2 {
                midway.iter().try_for_each(|packet| self.send(*packet))?;
            }
            self.world.apply(step);
            self.reference.observe_owners(self.world.owners(), self.world.elapsed);
        }
        self.reference.settle_standings();
        let longest = self.world.moving_since().map(|since| self.world.elapsed - since);
        match longest.filter(|longest| *longest >= self.setting.transition) {
            Some(longest) => Err(format!("a slot still moves after {longest:?}")),
            None => Ok(()),
        }
    }

    fn ramp(&mut self, backends: Backends) -> Result<(), Refutation> {
        for weight in [1, 2, 3, 5, 8] {
            self.world.change(&Change::Say(backends, Word::Weight(Weight(weight))));
            self.reconcile(&[])?;
            self.wait(self.setting.transition / 3)?;
            self.send_all(Kind::Data, false)?;
        }
        Ok(())
    }

    /// The daemon brings the maps up to date whenever something is over.
    fn wait(&mut self, time: Duration) -> Result<(), Refutation> {
        let end = self.world.elapsed + time;
        let (until, tick) = (self.world.now() + time, Duration::from_millis(1));
        while let Some(next) = self.world.state.next_change().filter(|next| *next < until) {
            let pause = next.saturating_duration_since(self.world.now()).max(tick);
            self.world.pass(pause.min(end - self.world.elapsed));
            self.reconcile(&[])?;
        }
        self.world.pass(end - self.world.elapsed);
        self.reconcile(&[])
    }

    fn sweep(&mut self, sweep: Sweep) -> Result<(), Refutation> {
        if matches!(sweep, Sweep::Whole | Sweep::Begin) && self.world.begin_sweep() {
            self.reference.observe_sweep(self.world.homes(), self.world.elapsed);
            // What happens next happens later.
            self.world.pass(Duration::from_nanos(1));
        }
        if matches!(sweep, Sweep::Whole | Sweep::Scan) && self.world.scan(false) {
            self.reference.observe_scan();
        }
        if matches!(sweep, Sweep::Disturbed) {
            self.world.scan(true);
        }
        if matches!(sweep, Sweep::Whole | Sweep::End) {
            self.world.end_sweep();
            self.reconcile(&[])?;
        }
        Ok(())
    }

    /// No flow is remembered that a settled slot would ignore.
    fn check_settled(&mut self) -> Result<(), Refutation> {
        if self.world.service().config.remember == Remember::All {
            return Ok(());
        }
        let stray = self.world.remembered().into_iter().find(|(_, slot)| slot.past == Past::Settled);
        stray.map_or(Ok(()), |(flow, slot)| Err(format!("its slot is settled: {flow:?}, {slot:?}")))
    }

    /// Nobody sends and nothing changes any more: all slots settle, and nobody is remembered.
    fn rest(&mut self) -> Result<(), Refutation> {
        let Setting { idle, drain_time, .. } = self.setting;
        self.wait(idle.max(drain_time.unwrap_or_default()) + Duration::from_millis(1))?;
        for _ in 0..5 {
            self.wait(GRACE)?;
            self.sweep(Sweep::Whole)?;
        }
        let unsettled = self.world.service().table.unsettled();
        if unsettled > 0 || !self.world.remembered().is_empty() {
            return Err(format!(
                "{unsettled} slots do not settle, remembered: {:?}",
                self.world.remembered()
            ));
        }
        let service = self.world.service();
        let standings = service.backends.iter().zip(service.standings());
        let mut gone = standings.skip(service.config.backends.len());
        // One that stands in for want of another may stay.
        if gone.any(|(_, standing)| !standing.eligible) {
            return Err("a backend that was removed lingers for ever".to_owned());
        }
        let lingers = service.backends.len() > service.config.backends.len();
        let forgets = service.config.remember == Remember::Needed && !lingers;
        match forgets && self.world.state.needs_sweep() {
            true => Err("sweeps do not end".to_owned()),
            false => Ok(()),
        }
    }
}
