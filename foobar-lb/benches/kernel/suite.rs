//! What is measured: suites of subjects, whose rounds take turns so that they can be compared.

use anyhow::{Result, ensure};

use crate::{
    address::Family,
    frame::Packet,
    generator::ENDLESS,
    path::Kind,
    setup::{Mode, Setup, Slots},
};

/// How many flows the packets belong to: what is in the caches with one may not be with more.
const FEW_COUNTS: [u64; 3] = [1, 1 << 14, MOST];
const ALL_COUNTS: [u64; 5] = [1, 1 << 10, 1 << 14, 1 << 18, MOST];
pub const MOST: u64 = 1 << 20;

/// Subjects that are compared.
pub struct Suite {
    pub name: &'static str,
    pub cases: Vec<Case>,
}

/// A subject, and how many flows its packets belong to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub subject: Subject,
    pub flows: u64,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A program that sends every packet back.
    Transmit,
    /// The same after it has found out the packet's flow.
    Parse(Family),
    /// A balancer, which gets such packets.
    Balancer(Setup, Kind, Packet),
    /// A program that somebody else has loaded.
    Given(Family, Packet),
}

impl Subject {
    /// For people and for comparing reports.
    pub fn name(&self) -> String {
        match self {
            Self::Transmit => "XDP_TX".to_owned(),
            Self::Parse(family) => format!("parse + XDP_TX {family}"),
            Self::Given(_, packet) => packet.name().to_owned(),
            Self::Balancer(setup, Kind::Pass, _) => format!("pass {}", setup.family),
            Self::Balancer(setup, kind, packet) => {
                let Setup { mode, family, slots, services, backends, .. } = setup;
                let direction = if *kind == Kind::Reply { "reply" } else { "forward" };
                let (mode, slots, packet) = (mode.name(), slots.name(), packet.name());
                let mut name = format!("{mode} {direction} {family}, {slots}, {packet}");
                if (*services, *backends) != (1, 4) {
                    name += &format!(", services: {services}, backends: {}", setup.all_backends());
                }
                name
            }
        }
    }

    /// The program that is measured, if it is one of ours.
    pub fn program_name(&self) -> Option<&'static str> {
        match self {
            Self::Transmit => Some("XDP_TX"),
            Self::Parse(_) => Some("parse + XDP_TX"),
            Self::Balancer(Setup { slots: Slots::Tracked, .. }, ..) => Some("foobar-lb with full tracking"),
            Self::Balancer(..) => Some("foobar-lb"),
            Self::Given(..) => None,
        }
    }

    /// Which IP, where that makes a difference.
    pub fn family(&self) -> Option<Family> {
        match self {
            Self::Transmit => None,
            Self::Parse(family) | Self::Given(family, _) | Self::Balancer(Setup { family, .. }, ..) => {
                Some(*family)
            }
        }
    }

    fn settled(mode: Mode, family: Family, kind: Kind, packet: Packet) -> Self {
        Self::Balancer(Setup::settled(mode, family), kind, packet)
    }

    fn forward(setup: Setup, packet: Packet) -> Self {
        Self::Balancer(setup, Kind::Forward, packet)
    }
}

/// How many flows there are, one after the other.
pub fn counts(all: bool) -> &'static [u64] {
    if all { &ALL_COUNTS } else { &FEW_COUNTS }
}

/// The suites, with all subjects or those that make up the default, as far as their names have all words of one of the
/// patterns.
pub fn select(all: bool, patterns: &[String]) -> Result<Vec<Suite>> {
    let is_separator = |letter: char| letter == ',' || letter.is_whitespace();
    let has = |name: &str, pattern: &String| {
        pattern
            .split_whitespace()
            .all(|word| name.split(is_separator).any(|part| part.eq_ignore_ascii_case(word)))
    };
    let mut suites = suites(all);
    for Suite { name, cases } in &mut suites {
        cases.retain(|case| {
            let name = format!("{name} {}", case.subject.name());
            patterns.is_empty() || patterns.iter().any(|pattern| has(&name, pattern))
        });
    }
    suites.retain(|suite| !suite.cases.is_empty());
    ensure!(!suites.is_empty(), "nothing has all words of {patterns:?} in its name");
    Ok(suites)
}

fn suites(all: bool) -> Vec<Suite> {
    let mut suites = vec![Suite { name: "settled", cases: settled(all) }];
    // One by one, because each needs room for a million flows.
    for family in if all { &Family::ALL[..] } else { &[Family::V4] } {
        for mode in if all { &Mode::ALL[..] } else { &[Mode::Nat] } {
            suites.push(Suite { name: "moves", cases: moves(*mode, *family, all) });
        }
    }
    suites.push(Suite { name: "floods", cases: floods(all) });
    suites.push(Suite { name: "scale", cases: scale(all) });
    suites
}

/// Every mode in every direction, and what it is compared with.
fn settled(all: bool) -> Vec<Case> {
    let mut subjects = vec![Subject::Transmit];
    for family in Family::ALL {
        subjects.push(Subject::Parse(family));
        subjects.push(Subject::settled(Mode::Nat, family, Kind::Pass, Packet::Ack));
        subjects.push(Subject::settled(Mode::Nat, family, Kind::Reply, Packet::Ack));
        subjects.push(Subject::Balancer(with_mappings(Mode::Snat, family), Kind::Reply, Packet::Ack));
        for mode in Mode::ALL {
            let wanted = |packet: &Packet| all || *packet == Packet::Ack || mode == Mode::Nat;
            let packets = Packet::ALL.into_iter().filter(wanted);
            subjects.extend(packets.map(|packet| Subject::forward(with_mappings(mode, family), packet)));
        }
        if all || family == Family::V4 {
            subjects.push(Subject::forward(tracked(family), Packet::Ack));
        }
    }
    with_flows(&subjects, all)
}

/// What the past of slots costs.
fn moves(mode: Mode, family: Family, all: bool) -> Vec<Case> {
    let setups = [Slots::Moving, Slots::Traces].map(|slots| {
        let flows = MOST as u32;
        Setup { slots, flows, ..Setup::settled(mode, family) }
    });
    let subjects: Vec<Subject> = setups
        .into_iter()
        .flat_map(|setup| Packet::ALL.map(|packet| Subject::forward(setup, packet)))
        .collect();
    with_flows(&subjects, all)
}

/// Packets that are all of flows never seen before.
fn floods(all: bool) -> Vec<Case> {
    let mut cases = vec![];
    for family in if all { &Family::ALL[..] } else { &[Family::V4] } {
        let settled = Setup::settled(Mode::Nat, *family);
        let [moving, traces] =
            [Slots::Moving, Slots::Traces].map(|slots| Setup { slots, flows: 1 << 17, ..settled });
        for setup in [settled, moving, traces, tracked(*family)] {
            for packet in Packet::ALL {
                let subject = Subject::forward(setup, packet);
                cases.extend([1, ENDLESS].map(|flows| Case { subject, flows }));
            }
        }
    }
    cases
}

/// Many services and many backends.
fn scale(all: bool) -> Vec<Case> {
    let sizes = [(1, 4), (100, 4), (10_000, 4), (1, 1_000), (1, 60_000), (10_000, 6)];
    let setup = Setup::settled(Mode::Nat, Family::V4);
    let subjects = sizes
        .map(|(services, backends)| Subject::forward(Setup { services, backends, ..setup }, Packet::Ack));
    with_flows(&subjects, all)
}

/// The same with full tracking, and room for all flows.
fn tracked(family: Family) -> Setup {
    Setup { slots: Slots::Tracked, flows: MOST as u32, ..Setup::settled(Mode::Nat, family) }
}

/// Mode `snat` keeps a mapping of every flow.
fn with_mappings(mode: Mode, family: Family) -> Setup {
    let setup = Setup::settled(mode, family);
    if mode == Mode::Snat { Setup { flows: MOST as u32, ..setup } } else { setup }
}

fn with_flows(subjects: &[Subject], all: bool) -> Vec<Case> {
    let cases = subjects.iter().flat_map(|subject| counts(all).iter().map(|flows| (*subject, *flows)));
    cases.map(|(subject, flows)| Case { subject, flows }).collect()
}
