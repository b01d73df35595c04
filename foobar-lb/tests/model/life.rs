//! What the reference knows of the life of a flow.

use std::time::Duration;

use foobar_lb_ebpf::conntrack::BRIEF_IDLE;

use super::{
    story::Setting,
    tally::Limit,
    world::{Past, Sight},
};

/// What is known of a client's flow.
#[derive(Clone, Copy, Debug)]
pub enum Life {
    Unknown,
    Known(Flow),
    /// It has no claim any more to the backend that it was on.
    Lost {
        by: Limit,
        flow: Flow,
    },
}

#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub home: u8,
    pub stage: Stage,
    /// Where it may just as well go, and why.
    pub rival: Option<(u8, Limit)>,
    /// It must be remembered, on its home.
    pub entry: Option<Entry>,
    /// Why it is not remembered any more, or cannot be.
    pub lapse: Option<Limit>,
    /// When it last sent.
    pub last: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub stage: Stage,
    pub renewed: Duration,
}

/// How far a flow has come, by its last packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Opening,
    Open,
    /// A FIN was the last but acknowledgements.
    Closing,
    /// A RST was the last.
    Reset,
}

impl Stage {
    /// The client may use its port again.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Closing | Self::Reset)
    }
}

impl Flow {
    /// Whether it has been silent for too long to be known still.
    pub fn is_over(&self, setting: &Setting, now: Duration) -> bool {
        self.entry.map_or(now - self.last > setting.idle, |entry| entry.is_over(setting, now))
    }
}

impl Entry {
    /// What a SYN leaves behind if its flow was not remembered.
    pub fn opening(sight: &Sight) -> Option<Self> {
        matches!(sight.slot.past, Past::Moving(_))
            .then_some(Self { stage: Stage::Opening, renewed: sight.now })
    }

    /// Why the flow is no longer remembered when this is over.
    pub fn lapse(&self) -> Limit {
        if self.stage == Stage::Open { Limit::Idle } else { Limit::Brief }
    }

    /// Whether it does not count any more.
    pub fn is_over(&self, setting: &Setting, now: Duration) -> bool {
        let limit = match self.stage {
            Stage::Open => setting.idle,
            Stage::Opening | Stage::Closing | Stage::Reset => {
                setting.idle.min(Duration::from_nanos(BRIEF_IDLE))
            }
        };
        now - self.renewed > limit
    }
}
