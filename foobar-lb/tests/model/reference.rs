//! What must become of each packet: a reference that remembers every flow there is. A flow lives from its first packet
//! that is no SYN, and stays on its backend while that serves, but for the limits, each of them as narrow as it can be
//! told from outside.

use std::{collections::BTreeMap, time::Duration};

use foobar_lb::model::Protocol;

use super::{
    life::{Entry, Flow, Life, Stage},
    story::{BACKENDS, Backends, CLIENTS, Kind, Setting},
    tally::{Limit, Tally},
    world::{Past, Sight, Standings},
};

/// What is known of all flows.
pub struct Reference {
    pub tally: Tally,
    setting: Setting,
    lives: Vec<Life>,
    /// When each client last sent anything.
    sent: Vec<Option<Duration>>,
    /// Standings that packets may meet: two kinds while a change is done by half.
    standings: [Standings; 2],
    /// When a backend last began or ceased to serve, or to hold.
    turned: BTreeMap<u8, Duration>,
    owners: Vec<Option<u8>>,
    /// When a slot was owned by others than a backend that had owned it.
    away: BTreeMap<(u32, u8), Vec<Away>>,
    sweep: Sweep,
}

/// From when, and until when.
type Away = (Duration, Option<Duration>);

/// What a sweep that is under way knew as it began.
#[derive(Default)]
struct Sweep {
    began: Duration,
    /// By client, whom its slot leads to for good.
    homes: Vec<Option<u8>>,
    serving: Backends,
}

/// A packet that went where it must not.
pub type Refutation = String;

impl Reference {
    pub fn new(setting: Setting, standings: Standings, owners: Vec<Option<u8>>) -> Self {
        Self {
            tally: Tally::of_a_story(),
            setting,
            lives: vec![Life::Unknown; usize::from(CLIENTS)],
            sent: vec![None; usize::from(CLIENTS)],
            standings: [standings; 2],
            turned: BTreeMap::new(),
            owners,
            away: BTreeMap::new(),
            sweep: Sweep::default(),
        }
    }

    /// Whether anything was ever sent by the client.
    pub fn knows(&self, client: u8) -> bool {
        !matches!(self.lives[usize::from(client)], Life::Unknown)
    }

    /// When the client last sent something.
    pub fn last(&self, client: u8) -> Option<Duration> {
        self.sent[usize::from(client)]
    }

    /// The standings change; packets may meet the old ones until [`Self::settle_standings`].
    pub fn observe_standings(&mut self, standings: Standings, now: Duration) -> Result<(), Refutation> {
        let before = std::mem::replace(&mut self.standings[1], standings);
        for backend in 0..BACKENDS {
            let of = |standings: &Standings| (standings.serving.has(backend), standings.holding.has(backend));
            if of(&before) != of(&standings) {
                self.turned.insert(backend, now);
            }
        }
        for client in 0..CLIENTS {
            let life = &mut self.lives[usize::from(client)];
            let Life::Known(flow) = life else { continue };
            if flow.entry.is_none() && !standings.holding.has(flow.home) {
                flow.lapse.get_or_insert(Limit::UdpSwitch);
            }
            let flow = *flow;
            if !standings.present.has(flow.home) && !self.may_be_silent(&flow, now) {
                return Err(format!("the backend of client {client} is gone, and its flow is not: {flow:?}"));
            }
            self.lives[usize::from(client)] = self.claim(Life::Known(flow));
        }
        Ok(())
    }

    /// The change is done.
    pub fn settle_standings(&mut self) {
        self.standings[0] = self.standings[1];
    }

    /// That a backend does not serve ends the claims of its flows.
    fn claim(&self, life: Life) -> Life {
        let [before, standings] = self.standings;
        match life {
            Life::Known(flow) if !before.serving.has(flow.home) || !standings.serving.has(flow.home) => {
                let by = if standings.over.has(flow.home) {
                    Limit::DrainTime
                } else if self.setting.protocol == Protocol::Udp && standings.down.has(flow.home) {
                    Limit::UdpDown
                } else {
                    Limit::Dead
                };
                Life::Lost { by, flow }
            }
            life => life,
        }
    }

    /// Whether the flow need not be known any more.
    fn may_be_silent(&self, flow: &Flow, now: Duration) -> bool {
        match flow.entry {
            // Half-open flows make room for one another.
            Some(entry) => entry.is_over(&self.setting, now) || self.setting.cramped,
            None => flow.lapse.is_some() || now - flow.last >= self.setting.transition,
        }
    }

    /// The owners of the slots as they are now.
    pub fn observe_owners(&mut self, owners: Vec<Option<u8>>, now: Duration) {
        for (place, (before, after)) in (0..).zip(self.owners.iter().zip(&owners)) {
            if before == after {
                continue;
            }
            if let Some(owner) = before {
                self.away.entry((place, *owner)).or_default().push((now, None));
            }
            if let Some(owner) = after
                && let Some((_, until)) = self.away.entry((place, *owner)).or_default().last_mut()
            {
                *until = Some(now);
            }
        }
        self.owners = owners;
    }

    /// A sweep begins. It will forget what is over now, what is on a backend that does not serve, and what is at home,
    /// but nothing that was renewed since.
    pub fn observe_sweep(&mut self, homes: Vec<Option<u8>>, now: Duration) {
        let [_, Standings { serving, .. }] = self.standings;
        self.sweep = Sweep { began: now, homes, serving };
    }

    /// The sweep forgets.
    pub fn observe_scan(&mut self) {
        let Sweep { began, homes, serving } = &self.sweep;
        for (life, home) in self.lives.iter_mut().zip(homes) {
            let (Life::Known(flow) | Life::Lost { flow, .. }) = life else { continue };
            let Some(entry) = flow.entry.filter(|entry| entry.renewed <= *began) else { continue };
            if entry.is_over(&self.setting, *began) {
                (flow.entry, flow.lapse) = (None, Some(entry.lapse()));
            } else if !serving.has(flow.home) {
                // If it is here again, that was remembered before it died.
                (flow.entry, flow.lapse) = (None, Some(Limit::Dead));
            } else if *home == Some(flow.home) {
                let holds = self.standings[1].holding.has(flow.home);
                (flow.entry, flow.lapse) = (None, (!holds).then_some(Limit::UdpSwitch));
            }
        }
    }

    /// A packet was seen.
    pub fn judge(&mut self, client: u8, kind: Kind, sight: &Sight) -> Result<(), Refutation> {
        self.tally.packets += 1;
        self.sent[usize::from(client)] = Some(sight.read);
        self.check_destination(sight)?;
        let life = self.lives[usize::from(client)];
        let kind = match (kind, self.setting.protocol) {
            (Kind::Syn | Kind::Ack | Kind::Fin | Kind::Rst, Protocol::Udp) => Kind::Data,
            (kind, _) => kind,
        };
        let life = match kind {
            Kind::Error => self.judge_error(life, sight)?,
            Kind::Syn => self.judge_syn(life, sight)?,
            Kind::Data | Kind::Ack | Kind::Fin | Kind::Rst => self.judge_ongoing(life, kind, sight)?,
        };
        self.lives[usize::from(client)] = match self.claim(life) {
            // While it was under way, its backend may have died and come back.
            Life::Known(flow)
                if sight.late && self.turned.get(&flow.home).is_some_and(|when| *when >= sight.read) =>
            {
                Life::Lost { by: Limit::Dead, flow }
            }
            life => life,
        };
        Ok(())
    }

    /// While somebody is eligible, nothing is dropped, and all goes to those who serve. A late packet may meet what
    /// was true before.
    fn check_destination(&self, sight: &Sight) -> Result<(), Refutation> {
        match sight.to {
            _ if sight.late => Ok(()),
            None if self.standings.iter().all(|standings| !standings.eligible.is_empty()) => {
                Err(format!("dropped, while {} are eligible", self.standings[1].eligible))
            }
            Some(to) if !self.standings.iter().any(|standings| standings.serving.has(to)) => {
                Err(format!("sent to web{to}, which does not serve"))
            }
            _ => Ok(()),
        }
    }

    fn judge_error(&self, life: Life, sight: &Sight) -> Result<Life, Refutation> {
        match life {
            Life::Known(flow) if flow.stage != Stage::Opening && sight.to != Some(flow.home) => {
                self.excuse(&flow, Kind::Error, sight).map(|_| life)
            }
            _ => Ok(life),
        }
    }

    fn judge_ongoing(&mut self, life: Life, kind: Kind, sight: &Sight) -> Result<Life, Refutation> {
        let before = match life {
            Life::Unknown => None,
            Life::Known(flow) => {
                self.judge_known(&flow, sight)?;
                Some(flow)
            }
            Life::Lost { by, flow } => {
                if sight.to != Some(flow.home) {
                    self.tally.count(by);
                }
                Some(flow)
            }
        };
        Ok(sight.to.map_or(Life::Unknown, |home| Life::Known(self.go_on(home, before, kind, sight))))
    }

    /// The flow, which was like `before`, as this packet leaves it.
    fn go_on(&self, home: u8, before: Option<Flow>, kind: Kind, sight: &Sight) -> Flow {
        let recalled = before.filter(|flow| flow.home == home).and_then(|flow| flow.entry);
        let serves = self.standings.iter().all(|standings| standings.serving.has(home));
        let recalled = serves && recalled.is_some_and(|entry| !entry.is_over(&self.setting, sight.now));
        let moving = matches!(sight.slot.past, Past::Moving(_));
        let stage = match kind {
            Kind::Fin => Stage::Closing,
            Kind::Rst => Stage::Reset,
            // After a FIN it may be the last packet of all.
            Kind::Ack if before.is_some_and(|flow| flow.stage == Stage::Closing) && (recalled || !moving) => {
                Stage::Closing
            }
            _ => Stage::Open,
        };
        // Nothing but memory leads past the owner of a slot that is not moving.
        let recalled = recalled || sight.slot.owner != Some(home);
        let remembers = moving || recalled && sight.slot.past == Past::Traces;
        let holds = self.standings.iter().all(|standings| standings.holding.has(home));
        let lapse = match sight.refused {
            true => Some(Limit::NoRoom),
            false => (!holds).then_some(Limit::UdpSwitch),
        };
        let entry = (remembers && !sight.refused).then_some(Entry { stage, renewed: sight.now });
        Flow { home, stage, rival: None, entry, lapse, last: sight.read }
    }

    fn judge_known(&mut self, flow: &Flow, sight: &Sight) -> Result<(), Refutation> {
        match flow.rival {
            Some((rival, _)) if sight.to == Some(rival) => return Ok(()),
            Some((_, limit)) if sight.to == Some(flow.home) => self.tally.count(limit),
            None if sight.to == Some(flow.home) => {
                self.tally.count_stay(sight.slot.owner != sight.to);
            }
            _ => {
                let limit = self.excuse(flow, Kind::Data, sight)?;
                self.tally.count(limit);
            }
        }
        Ok(())
    }

    /// Why a flow need not come to its home. It must, if that is where even unknown packets of this kind go.
    fn excuse(&self, flow: &Flow, kind: Kind, sight: &Sight) -> Result<Limit, Refutation> {
        let refutation = || Err(format!("not sent to web{}, which serves: {flow:?}, {sight:?}", flow.home));
        let unknown_to = match sight.slot.past {
            Past::Moving(previous) if kind != Kind::Syn => Some(previous),
            _ => sight.slot.owner,
        };
        if unknown_to == Some(flow.home) {
            return refutation();
        }
        match flow.entry {
            Some(entry) if entry.is_over(&self.setting, sight.now) => Ok(entry.lapse()),
            // Half-open flows make room for one another.
            Some(_) if sight.known == Some(false) => Ok(Limit::NoRoom),
            None if self.outlasted(flow, sight) => {
                Ok(if flow.stage == Stage::Opening { Limit::Handshake } else { Limit::Silent })
            }
            None => flow.lapse.map_or_else(refutation, Ok),
            Some(_) => refutation(),
        }
    }

    /// Whether the slot was away from the flow's home for a whole transition while the flow was silent.
    fn outlasted(&self, flow: &Flow, sight: &Sight) -> bool {
        let away = self.away.get(&(sight.place, flow.home)).map_or(&[][..], Vec::as_slice);
        let outlasts = |(from, until): &Away| {
            *from >= flow.last && until.unwrap_or(sight.now) - *from >= self.setting.transition
        };
        away.iter().any(outlasts)
    }

    fn judge_syn(&mut self, life: Life, sight: &Sight) -> Result<Life, Refutation> {
        match life {
            Life::Known(flow) if !flow.stage.is_end() && !flow.is_over(&self.setting, sight.now) => {
                self.judge_another_syn(flow, sight).map(Life::Known)
            }
            Life::Lost { flow, .. } => self.judge_first_syn(Some(flow), sight),
            Life::Known(_) | Life::Unknown => self.judge_first_syn(None, sight),
        }
    }

    /// A new flow goes to somebody who is eligible, unless the one that it replaces may still live. That one, `former`,
    /// had lost its home, which may be back.
    fn judge_first_syn(&self, former: Option<Flow>, sight: &Sight) -> Result<Life, Refutation> {
        let Some(home) = sight.to else { return Ok(Life::Unknown) };
        let recalled = former.filter(|flow| flow.home == home).and_then(|flow| flow.entry).filter(|entry| {
            !entry.stage.is_end()
                && !entry.is_over(&self.setting, sight.now)
                && sight.slot.past != Past::Settled
        });
        let eligible = sight.late || self.standings.iter().any(|standings| standings.eligible.has(home));
        if !eligible && recalled.is_none() {
            return Err(format!("a new flow was sent to web{home}, which is not eligible: {sight:?}"));
        }
        let entry = recalled.or_else(|| Entry::opening(sight));
        let flow = Flow { home, stage: Stage::Opening, rival: None, entry, lapse: None, last: sight.read };
        Ok(Life::Known(flow))
    }

    /// A SYN of a flow that is there already. One that is remembered is not harmed. One that is not may be taken for a
    /// new one.
    fn judge_another_syn(&mut self, flow: Flow, sight: &Sight) -> Result<Flow, Refutation> {
        let is_home = sight.to == Some(flow.home);
        match flow.entry {
            Some(_) if is_home && sight.known != Some(false) => return Ok(flow),
            Some(_) if !is_home => {
                let limit = self.excuse(&flow, Kind::Syn, sight)?;
                self.tally.count(limit);
            }
            None if !is_home && sight.to != sight.slot.owner => {
                return Err(format!(
                    "a SYN was sent neither to its flow's backend nor to the owner: {flow:?}, {sight:?}"
                ));
            }
            _ => {}
        }
        let entry = Entry::opening(sight);
        match sight.to {
            Some(_) if is_home && sight.to == sight.slot.owner => Ok(Flow { entry, ..flow }),
            Some(_) if is_home => Ok(flow),
            Some(home) if flow.stage == Stage::Opening => {
                let rival = Some((flow.home, Limit::Handshake));
                Ok(Flow { home, rival, entry, last: sight.read, ..flow })
            }
            Some(home) if entry.is_some() => {
                let rival = Some((flow.home, Limit::Syn));
                Ok(Flow { home, stage: Stage::Opening, rival, entry, last: sight.read, ..flow })
            }
            _ => Ok(flow),
        }
    }
}
