//! What a daemon leaves in the maps for the one after it. No packet reads it.

/// Of the layout of all maps. Daemons that differ in it cannot take each other's maps over.
pub const VERSION: u32 = 1;

/// Indices of the words of [`DAEMON`](super::name::DAEMON).
pub mod daemon_word {
    /// The seed of all hashes.
    pub const SEED: u32 = 0;
    /// When the daemon last said that it goes on: nanoseconds since the machine started, `CLOCK_BOOTTIME`; 0: never.
    pub const HEARTBEAT: u32 = 1;
    /// The daemon's process id.
    pub const PROCESS: u32 = 2;
    /// A hash of the object that the program in use came from.
    pub const OBJECT: u32 = 3;
    /// How many there are.
    pub const COUNT: u32 = 4;
}

/// Which service a backend belongs to, and what its health was when it was last measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Index of the first slot of the service's table.
    pub table: u32,
    /// One of [`member_health`].
    pub health: u32,
}

/// Values of [`Member::health`]. None is 0, which is what a place without a member has.
pub mod member_health {
    /// Not measured.
    pub const UNKNOWN: u32 = 1;
    /// Up.
    pub const UP: u32 = 2;
    /// Down, and its host answers.
    pub const ANSWERS: u32 = 3;
    /// Down, and nothing answers.
    pub const SILENT: u32 = 4;
}

impl Member {
    /// The word of the map.
    pub const fn to_word(self) -> u64 {
        (self.health as u64) << 32 | self.table as u64
    }

    /// The member of a word, if it has one.
    pub const fn from_word(word: u64) -> Option<Self> {
        let (table, health) = (word as u32, (word >> 32) as u32);
        if health == 0 { None } else { Some(Self { table, health }) }
    }
}
