//! The histories: what happens to backends, and in which order.

use std::fmt;

use foobar_lb::{
    api::{Weight, Word},
    model::{Down, Health},
};
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, IteratorRandom},
};

/// Backends that there may ever be.
pub const BACKENDS: u8 = 20;

const CHANGES_IN_A_ROW: usize = 20;
/// Of those in a row none leaves fewer backends than this for new flows.
const FEWEST: usize = 5;

/// A script.
pub struct History {
    pub name: &'static str,
    /// Backends at the beginning: the first so many.
    pub backends: u8,
    /// A round of traffic lies between one and the next.
    pub changes: Vec<Change>,
    /// Changes come before the moves of earlier ones are over, so that most flows are remembered.
    pub overlaps: bool,
}

/// Something happens to backends, all at once.
pub struct Change {
    pub backends: Vec<u8>,
    pub what: What,
}

#[derive(Clone, Copy)]
pub enum What {
    Add,
    Remove,
    Say(Word),
    Health(Health),
}

impl Change {
    /// The backends are dead, and so are the flows on them.
    pub fn kills(&self) -> bool {
        matches!(self.what, What::Health(Health::Down(Down::Silent)))
    }
}

/// What a backend is called, by its number.
pub fn name(backend: u8) -> String {
    format!("b{}", backend + 1)
}

pub fn all(seed: u64) -> Vec<History> {
    let history = |name, backends, changes: &[(&[u8], What)]| {
        let change = |(backends, what): &(&[u8], What)| Change { backends: backends.to_vec(), what: *what };
        History { name, backends, changes: changes.iter().map(change).collect(), overlaps: false }
    };
    let down = |how| What::Health(Health::Down(how));
    let up = What::Health(Health::Up);
    vec![
        history("add 1 of 10", 9, &[(&[9], What::Add)]),
        history("drain 3 of 10", 10, &[(&[2, 5, 7], What::Say(Word::Drain))]),
        history("fail and return", 10, &[(&[3], down(Down::Silent)), (&[3], up)]),
        history("stop gracefully and return", 10, &[(&[3], down(Down::Answers)), (&[3], up)]),
        history("double the weights of 3 of 10", 10, &[(&[0, 4, 8], What::Say(Word::Weight(Weight(2))))]),
        History { name: "20 changes in a row", backends: 10, changes: draw_changes(seed), overlaps: true },
    ]
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Add => write!(f, "add")?,
            What::Remove => write!(f, "remove")?,
            What::Say(word) => write!(f, "{word}")?,
            What::Health(health) => write!(f, "{health}")?,
        }
        self.backends.iter().try_for_each(|backend| write!(f, " {}", name(*backend)))
    }
}

/// How a backend stands while changes are drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Serving,
    Draining,
    Down,
    Removed,
    Absent,
}

fn draw_changes(seed: u64) -> Vec<Change> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut standings = [Standing::Absent; BACKENDS as usize];
    standings[..10].fill(Standing::Serving);
    (0..CHANGES_IN_A_ROW).map(|_| draw_change(&mut standings, &mut rng)).collect()
}

fn draw_change(standings: &mut [Standing], rng: &mut StdRng) -> Change {
    let spare = standings.iter().filter(|standing| **standing == Standing::Serving).count() > FEWEST;
    let weight = rng.random_range(1..=4);
    let possible: Vec<(usize, What, Standing)> = [
        (Standing::Absent, What::Add, Standing::Serving),
        (Standing::Serving, What::Say(Word::Weight(Weight(weight))), Standing::Serving),
        (Standing::Serving, What::Say(Word::Drain), Standing::Draining),
        (Standing::Serving, What::Health(Health::Down(Down::Answers)), Standing::Down),
        (Standing::Draining, What::Say(Word::Enable), Standing::Serving),
        (Standing::Draining, What::Remove, Standing::Removed),
        (Standing::Down, What::Health(Health::Up), Standing::Serving),
    ]
    .into_iter()
    .filter(|(from, _, to)| spare || from == to || *from != Standing::Serving)
    .filter_map(|(from, what, to)| {
        let standing = (0..standings.len()).filter(|backend| standings[*backend] == from);
        Some((standing.choose(rng)?, what, to))
    })
    .collect();
    let &(backend, what, to) = possible.choose(rng).expect("weights may always change");
    standings[backend] = to;
    Change { backends: vec![backend as u8], what }
}
