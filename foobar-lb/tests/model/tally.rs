//! What came about in all stories together, and how often each limit was the reason that a flow did not stay.

use std::fmt;

/// Why a flow may come to another backend although its own serves, or did: what `docs/consistency.md` calls the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A handshake that began on a slot which moved before it was over.
    Handshake,
    /// A flow that was not remembered was silent for the whole transition.
    Silent,
    /// A remembered flow was silent for longer than it is remembered.
    Idle,
    /// A remembered flow was silent after a FIN, a RST, or its SYN.
    Brief,
    /// Its backend was disabled or silent meanwhile.
    Dead,
    /// There was no room to remember it.
    NoRoom,
    /// A flow that was not remembered sent another SYN to a moving slot.
    Syn,
    /// A UDP flow that was not remembered, as its backend began to drain.
    UdpSwitch,
    /// A UDP flow whose backend was down.
    UdpDown,
    /// The time for which its backend may drain was over.
    DrainTime,
}

impl Limit {
    pub const ALL: [Self; 10] = [
        Self::Handshake,
        Self::Silent,
        Self::Idle,
        Self::Brief,
        Self::Dead,
        Self::NoRoom,
        Self::Syn,
        Self::UdpSwitch,
        Self::UdpDown,
        Self::DrainTime,
    ];
}

/// Counts.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub stories: u64,
    /// Stories in which a flow stayed although another backend owned its slot.
    pub eventful: u64,
    pub packets: u64,
    /// Packets of known flows that came to their backend,
    pub stayed: u64,
    /// although another one owned the slot.
    pub against_owner: u64,
    limits: [u64; Limit::ALL.len()],
}

impl Tally {
    /// One story begins.
    pub fn of_a_story() -> Self {
        Self { stories: 1, ..Self::default() }
    }

    /// A packet came to its flow's backend; another one may own the slot.
    pub fn count_stay(&mut self, against_owner: bool) {
        self.stayed += 1;
        if against_owner {
            self.against_owner += 1;
            self.eventful = 1;
        }
    }

    pub fn count(&mut self, limit: Limit) {
        self.limits[limit as usize] += 1;
    }

    pub fn of(&self, limit: Limit) -> u64 {
        self.limits[limit as usize]
    }

    pub fn add(&mut self, other: &Self) {
        let Self { stories, eventful, packets, stayed, against_owner, limits } = other;
        self.stories += stories;
        self.eventful += eventful;
        self.packets += packets;
        self.stayed += stayed;
        self.against_owner += against_owner;
        self.limits.iter_mut().zip(limits).for_each(|(sum, more)| *sum += more);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stories, eventful, packets, stayed, against_owner, .. } = self;
        write!(f, "{stories} stories, in {eventful} of them a flow stayed against the owner of its slot; ")?;
        write!(f, "{packets} packets, {stayed} stayed, {against_owner} of them against the owner")?;
        Limit::ALL.iter().try_for_each(|limit| write!(f, ", {limit:?} {}", self.of(*limit)))
    }
}
