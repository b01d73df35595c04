//! The clients: each has one connection at a time, and knows which backend it is with. Dice decide when one ends and
//! how; they are the same whatever the balancer.

use anyhow::Result;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{balancer::Balancer, frames::Segment};

/// Connections at any time.
pub const CLIENTS: u32 = 100_000;
/// The share of connections that ends in a round.
pub const TURNOVER: f64 = 0.2;

/// The share of connections that are silent in a round, of those that were not in the last.
pub const SILENT: f64 = 0.5;

const SAME_PORT: f64 = 0.1;
const PORTS: std::ops::RangeInclusive<u16> = 1024..=u16::MAX;

pub struct Clients {
    flows: Vec<Flow>,
    rng: StdRng,
    /// The rounds so far.
    round: u32,
    pub tally: Tally,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub packets: u64,
    pub flows: u64,
    /// Flows of which a packet went to another backend although theirs was alive.
    pub broken: u64,
    /// Flows whose backend died: it is no fault of the balancer that they end.
    pub repicked: u64,
}

struct Flow {
    port: u16,
    /// The backend that its SYN went to, if that has been alive ever since.
    home: Option<u8>,
    /// The round in which it began, as far as a balancer can tell.
    born: u32,
    /// It has sent nothing in the last round.
    silent: bool,
}

/// How a connection ends, by what its client sends.
#[derive(Clone, Copy)]
enum Ending {
    /// It closes first, and acknowledges that the server does.
    ByClient,
    /// It acknowledges that the server closes, and does, too.
    ByServer,
    Reset,
    /// It is never heard of again.
    Vanished,
}

/// What dice say about one client in one round.
struct Turn {
    ends: bool,
    silent: bool,
    ending: Ending,
    same_port: bool,
}

impl Clients {
    /// Everyone connects.
    pub fn connect(balancer: &mut Balancer, seed: u64) -> Result<Self> {
        let flow = |_| Flow { port: *PORTS.start(), home: None, born: 0, silent: false };
        let mut clients = Self {
            flows: (0..CLIENTS).map(flow).collect(),
            rng: StdRng::seed_from_u64(seed),
            round: 0,
            tally: Tally::default(),
        };
        (0..CLIENTS).try_for_each(|client| clients.open(client, balancer))?;
        Ok(clients)
    }

    /// The rounds so far.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// Connections send or are silent, some end and others begin in their place. Those that were born up to round `old`
    /// end now.
    pub fn play_round(&mut self, balancer: &mut Balancer, old: Option<u32>) -> Result<()> {
        self.round += 1;
        for client in 0..CLIENTS {
            let mut turn = self.draw();
            if old.is_some_and(|old| self.flow(client).born <= old) {
                turn = Turn { ends: true, same_port: false, ..turn };
            }
            if turn.ends {
                self.close(client, turn, balancer)?;
                self.open(client, balancer)?;
            } else if turn.silent && !self.flow(client).silent {
                self.flow(client).silent = true;
            } else if !self.send(client, Segment::Ack, balancer)? {
                // The backend does not know the connection and resets it.
                self.take_port(client);
                self.open(client, balancer)?;
            }
        }
        Ok(())
    }

    /// Flows of backends that are dead have no claim to them, even if they return.
    pub fn lose(&mut self, backends: &[u8]) {
        for flow in &mut self.flows {
            if flow.home.is_some_and(|home| backends.contains(&home)) {
                flow.home = None;
                self.tally.repicked += 1;
            }
        }
    }

    fn draw(&mut self) -> Turn {
        let ending = match self.rng.random_range(0..20) {
            0..=8 => Ending::ByClient,
            9..=17 => Ending::ByServer,
            18 => Ending::Reset,
            _ => Ending::Vanished,
        };
        Turn {
            ends: self.rng.random_bool(TURNOVER),
            silent: self.rng.random_bool(SILENT),
            ending,
            same_port: self.rng.random_bool(SAME_PORT),
        }
    }

    fn open(&mut self, client: u32, balancer: &mut Balancer) -> Result<()> {
        let port = self.flow(client).port;
        self.flow(client).home = Some(balancer.send(client, port, Segment::Syn)?);
        self.tally.packets += 1;
        self.tally.flows += 1;
        self.send(client, Segment::Ack, balancer)?;
        Ok(())
    }

    fn close(&mut self, client: u32, turn: Turn, balancer: &mut Balancer) -> Result<()> {
        let segments: &[Segment] = match turn.ending {
            Ending::ByClient => &[Segment::Fin, Segment::Ack],
            Ending::ByServer => &[Segment::Ack, Segment::Fin],
            Ending::Reset => &[Segment::Rst],
            Ending::Vanished => &[],
        };
        for segment in segments {
            if !self.send(client, *segment, balancer)? {
                self.take_port(client);
                return Ok(());
            }
        }
        match turn.ending {
            _ if !turn.same_port => self.take_port(client),
            // Nobody has seen the end of it: a SYN from its port belongs to it.
            Ending::Vanished => {}
            _ => self.flow(client).born = self.round,
        }
        Ok(())
    }

    fn take_port(&mut self, client: u32) {
        let round = self.round;
        let flow = self.flow(client);
        flow.port = flow.port.checked_add(1).unwrap_or(*PORTS.start());
        flow.born = round;
    }

    /// Returns whether the packet met the backend that knows its connection.
    fn send(&mut self, client: u32, segment: Segment, balancer: &mut Balancer) -> Result<bool> {
        let port = self.flow(client).port;
        let backend = balancer.send(client, port, segment)?;
        self.tally.packets += 1;
        let flow = self.flow(client);
        flow.silent = false;
        let home = flow.home;
        if home == Some(backend) {
            return Ok(true);
        }
        flow.home = None;
        if home.is_some() {
            self.tally.broken += 1;
        }
        Ok(false)
    }

    fn flow(&mut self, client: u32) -> &mut Flow {
        &mut self.flows[client as usize]
    }
}
