//! Stories: what a service is like and what happens to it, made up at random, told in words when a model is refuted.

use std::{fmt, time::Duration};

use foobar_lb::{
    api::{Weight, Word},
    model::{Down, Health, Protocol, Remember, UdpDrain, WhenEmpty},
    sweep::GRACE,
};
use foobar_lb_ebpf::conntrack::BRIEF_IDLE;
use proptest::{prelude::*, sample::select};

/// Clients, each with one port and so one flow at a time.
pub const CLIENTS: u8 = 24;
/// Backends that may be configured.
pub const BACKENDS: u8 = 6;

/// What happens to a service.
#[derive(Clone)]
pub struct Story {
    pub setting: Setting,
    pub operations: Vec<Operation>,
}

/// What stays as it is throughout a story.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub protocol: Protocol,
    pub udp_drain: UdpDrain,
    /// At first.
    pub remember: Remember,
    pub when_empty: WhenEmpty,
    pub transition: Duration,
    pub idle: Duration,
    pub drain_time: Option<Duration>,
    /// There is room for a few remembered flows only.
    pub cramped: bool,
    /// Configured at first.
    pub backends: Backends,
}

/// A set of backends, a bit each.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Backends(pub u8);

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Operation {
    Packet(Packet),
    /// All clients send, but only a SYN if they never sent anything.
    Everyone {
        kind: Kind,
        late: bool,
    },
    /// `midway`: packets that come while half of the steps are done.
    Change {
        change: Change,
        midway: Vec<Packet>,
    },
    /// The weights of these backends rise slowly, while all clients send.
    Ramp(Backends),
    /// `asleep`: the daemon does nothing meanwhile, nor when the time has passed.
    Wait {
        time: Time,
        asleep: bool,
    },
    Sweep(Sweep),
}

/// A sweep, or a part of one: in between, other things happen.
#[derive(Clone, Copy, Debug)]
pub enum Sweep {
    Whole,
    Begin,
    Scan,
    /// The scan misses everything, and says that it may have.
    Disturbed,
    End,
}

/// A client's packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub client: u8,
    pub kind: Kind,
    /// It has read its slot before that last changed, if that was just now.
    pub late: bool,
}

/// What a packet is. Over UDP everything but an ICMP error is data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Syn,
    Data,
    /// An acknowledgement without data.
    Ack,
    Fin,
    Rst,
    /// An ICMP error about what the client was sent.
    Error,
}

/// What somebody changes, or what a health check says.
#[derive(Clone, Debug)]
pub enum Change {
    Configure { add: Backends, remove: Backends },
    Say(Backends, Word),
    Health(Backends, Health),
    Remember(Remember),
}

/// A span of time.
#[derive(Clone, Copy, Debug)]
pub enum Time {
    Milliseconds(u16),
    Seconds(u16),
    /// A limit and so many milliseconds more.
    About(Limit, i8),
}

/// A time that counts.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    Grace,
    Brief,
    Transition,
    Idle,
    DrainTime,
}

impl Backends {
    /// All of the set, by number.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..BACKENDS).filter(move |number| self.has(*number))
    }

    pub fn has(self, number: u8) -> bool {
        self.0 & (1 << number) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    pub fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }
}

impl FromIterator<u8> for Backends {
    fn from_iter<T: IntoIterator<Item = u8>>(numbers: T) -> Self {
        Self(numbers.into_iter().fold(0, |set, number| set | 1 << number))
    }
}

impl Time {
    /// How long it is in this setting.
    pub fn resolve(self, setting: &Setting) -> Duration {
        match self {
            Self::Milliseconds(milliseconds) => Duration::from_millis(milliseconds.into()),
            Self::Seconds(seconds) => Duration::from_secs(seconds.into()),
            Self::About(limit, more) => {
                let limit = match limit {
                    Limit::Grace => GRACE,
                    Limit::Brief => Duration::from_nanos(BRIEF_IDLE),
                    Limit::Transition => setting.transition,
                    Limit::Idle => setting.idle,
                    Limit::DrainTime => setting.drain_time.unwrap_or(setting.idle),
                };
                let more_or_less = Duration::from_millis(more.unsigned_abs().into());
                if more < 0 { limit - more_or_less } else { limit + more_or_less }
            }
        }
    }
}

/// Stories in settings of one kind.
pub fn stories(settings: impl Strategy<Value = Setting>) -> impl Strategy<Value = Story> {
    (settings, prop::collection::vec(operations(), 1..80))
        .prop_map(|(setting, operations)| Story { setting, operations })
}

/// All settings of a protocol in which there is room enough.
pub fn settings(protocol: Protocol, remember: Remember) -> impl Strategy<Value = Setting> {
    let seconds = |seconds: &'static [u64]| select(seconds).prop_map(Duration::from_secs);
    let backends = prop::bits::u8::sampled(1..=4, 0..usize::from(BACKENDS)).prop_map(Backends);
    (
        select(&[UdpDrain::Keep, UdpDrain::Switch]),
        select(&[WhenEmpty::FailOpen, WhenEmpty::Refuse]),
        seconds(&[30, 90, 300]),
        select(&[1, 2, 5]),
        prop::option::of(seconds(&[20, 100, 1000])),
        backends,
    )
        .prop_map(move |(udp_drain, when_empty, transition, idle, drain_time, backends)| Setting {
            protocol,
            udp_drain,
            remember,
            when_empty,
            transition,
            idle: transition * idle,
            drain_time,
            cramped: false,
            backends,
        })
}

fn operations() -> impl Strategy<Value = Operation> {
    let midway = || prop::collection::vec(packets(), 0..3);
    prop_oneof![
        10 => packets().prop_map(Operation::Packet),
        8 => everyone(),
        10 => (changes(), midway()).prop_map(|(change, midway)| Operation::Change { change, midway }),
        1 => some_backends().prop_map(Operation::Ramp),
        6 => (times(), prop::bool::weighted(0.2)).prop_map(|(time, asleep)| Operation::Wait { time, asleep }),
        8 => sweeps().prop_map(Operation::Sweep),
    ]
}

fn everyone() -> impl Strategy<Value = Operation> {
    let kinds = prop_oneof![6 => Just(Kind::Data), 1 => Just(Kind::Syn), 1 => Just(Kind::Ack)];
    (kinds, prop::bool::weighted(0.2)).prop_map(|(kind, late)| Operation::Everyone { kind, late })
}

fn sweeps() -> impl Strategy<Value = Sweep> {
    prop_oneof![
        4 => Just(Sweep::Whole),
        2 => Just(Sweep::Begin),
        2 => Just(Sweep::Scan),
        1 => Just(Sweep::Disturbed),
        2 => Just(Sweep::End),
    ]
}

fn packets() -> impl Strategy<Value = Packet> {
    let kinds = prop_oneof![
        6 => Just(Kind::Data),
        4 => Just(Kind::Syn),
        2 => Just(Kind::Ack),
        1 => Just(Kind::Fin),
        1 => Just(Kind::Rst),
        1 => Just(Kind::Error),
    ];
    (0..CLIENTS, kinds, prop::bool::weighted(0.1)).prop_map(|(client, kind, late)| Packet {
        client,
        kind,
        late,
    })
}

fn changes() -> impl Strategy<Value = Change> {
    let any_backends = || prop::bits::u8::masked((1 << BACKENDS) - 1).prop_map(Backends);
    let words = prop_oneof![
        2 => Just(Word::Enable),
        2 => Just(Word::Drain),
        1 => Just(Word::Disable),
        2 => select(&[0, 1, 2, 3, 8]).prop_map(|weight| Word::Weight(Weight(weight))),
    ];
    let health = prop_oneof![
        4 => Just(Health::Up),
        1 => Just(Health::Unknown),
        1 => Just(Health::Down(Down::Answers)),
        1 => Just(Health::Down(Down::Silent)),
    ];
    prop_oneof![
        2 => (some_backends(), Just(Backends(0))).prop_map(|(add, remove)| Change::Configure { add, remove }),
        2 => (Just(Backends(0)), some_backends()).prop_map(|(add, remove)| Change::Configure { add, remove }),
        1 => (some_backends(), some_backends()).prop_map(|(add, remove)| Change::Configure { add, remove }),
        5 => (some_backends(), words).prop_map(|(backends, word)| Change::Say(backends, word)),
        6 => (some_backends(), health).prop_map(|(backends, health)| Change::Health(backends, health)),
        2 => any_backends().prop_map(|backends| Change::Health(backends, Health::Up)),
        1 => select(&[Remember::Needed, Remember::All]).prop_map(Change::Remember),
    ]
}

fn some_backends() -> impl Strategy<Value = Backends> {
    prop::bits::u8::sampled(1..=3, 0..usize::from(BACKENDS)).prop_map(Backends)
}

fn times() -> impl Strategy<Value = Time> {
    let limits = select(&[Limit::Grace, Limit::Brief, Limit::Transition, Limit::Idle, Limit::DrainTime]);
    prop_oneof![
        3 => (1u16..2_000).prop_map(Time::Milliseconds),
        3 => (1u16..100).prop_map(Time::Seconds),
        4 => (limits, -1i8..=1).prop_map(|(limit, more)| Time::About(limit, more)),
    ]
}

impl fmt::Debug for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.setting)?;
        (1..).zip(&self.operations).try_for_each(|(number, operation)| writeln!(f, "{number:3}. {operation}"))
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.iter().map(name).collect();
        f.write_str(if names.is_empty() { "nobody" } else { "" })?;
        f.write_str(&names.join("+"))
    }
}

/// What a backend is called.
pub fn name(backend: u8) -> String {
    format!("web{backend}")
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packet(packet) => write!(f, "{packet}"),
            Self::Everyone { kind, late } => write!(f, "every client sends {kind}{}", suffix(*late)),
            Self::Change { change, midway } => {
                write!(f, "{change}")?;
                midway.iter().try_for_each(|packet| write!(f, "; midway {packet}"))
            }
            Self::Ramp(backends) => {
                write!(f, "the weight of {backends} rises slowly, every client sends data")
            }
            Self::Wait { time, asleep } => {
                write!(f, "wait {time}{}", if *asleep { ", the daemon is asleep" } else { "" })
            }
            Self::Sweep(Sweep::Whole) => f.write_str("sweep"),
            Self::Sweep(part) => write!(f, "sweep: {part:?}"),
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, kind, late } = self;
        write!(f, "client {client} sends {kind}{}", suffix(*late))
    }
}

fn suffix(late: bool) -> &'static str {
    if late { ", late" } else { "" }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syn => "a SYN",
            Self::Data => "data",
            Self::Ack => "an acknowledgement",
            Self::Fin => "a FIN",
            Self::Rst => "a RST",
            Self::Error => "an ICMP error",
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configure { add, remove } => write!(f, "reload: {add} added, {remove} removed"),
            Self::Say(backends, word) => write!(f, "{backends} {word}"),
            Self::Health(backends, health) => write!(f, "{backends} {health}"),
            Self::Remember(remember) => write!(f, "reload: remember {remember:?}"),
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Milliseconds(milliseconds) => write!(f, "{milliseconds} ms"),
            Self::Seconds(seconds) => write!(f, "{seconds} s"),
            Self::About(limit, 0) => write!(f, "{limit:?}"),
            Self::About(limit, more) => write!(f, "{limit:?}{more:+} ms"),
        }
    }
}
