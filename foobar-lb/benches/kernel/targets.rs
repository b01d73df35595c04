//! What the data path is to cost, and whether it does. That it is missed is told and is no failure: a machine may be slow.

use serde_json::{Value, json};

use crate::{
    address::Family,
    frame::Packet,
    generator::ENDLESS,
    path::Kind,
    report::Measurement,
    setup::{Mode, Setup, Slots},
    suite::{MOST, Subject},
    table,
};

/// A limit, and what was measured.
pub struct Target {
    what: String,
    value: f64,
    limit: Limit,
    unit: &'static str,
}

#[derive(Clone, Copy)]
enum Limit {
    Most(f64),
    Least(f64),
}

const NANOSECONDS: &str = " ns";
const TIMES: &str = " x";

/// Those whose measurements are there, by the least net cost of each.
pub fn of(measurements: &[Measurement]) -> Vec<Target> {
    let find = Finder(measurements);
    let v4 = |mode| Setup::settled(mode, Family::V4);
    let costs = [
        ("nat forward IPv4, 1 flow", forward(v4(Mode::Nat)), 40.0),
        ("nat reply IPv4, 1 flow", Subject::Balancer(v4(Mode::Nat), Kind::Reply, Packet::Ack), 45.0),
        ("dsr IPv4, 1 flow", forward(v4(Mode::Dsr)), 45.0),
        ("tunnel ipip IPv4, 1 flow", forward(v4(Mode::Ipip)), 45.0),
        ("pass IPv4, 1 flow", Subject::Balancer(v4(Mode::Nat), Kind::Pass, Packet::Ack), 15.0),
    ];
    let costs = costs.into_iter().filter_map(|(what, subject, most)| {
        let value = find.net(subject, 1)?;
        Some(Target { what: what.to_owned(), value, limit: Limit::Most(most), unit: NANOSECONDS })
    });
    costs.chain(ratios(&find)).collect()
}

/// The same for people.
pub fn table(measurements: &[Measurement]) -> String {
    let mut table = table::new(&["target", "limit", "measured", ""]);
    for target in of(measurements) {
        let Target { what, value, limit, unit } = &target;
        let limit = match limit {
            Limit::Most(most) => format!("<= {most}{unit}"),
            Limit::Least(least) => format!(">= {least}{unit}"),
        };
        let met = if target.is_met() { "met" } else { "not met" };
        table.add_row([what.clone(), limit, format!("{value:.2}{unit}"), met.to_owned()]);
    }
    table.to_string()
}

fn ratios(find: &Finder<'_>) -> Vec<Target> {
    let nat = Setup::settled(Mode::Nat, Family::V4);
    let tracked = forward(Setup { slots: Slots::Tracked, flows: MOST as u32, ..nat });
    let syn = Subject::Balancer(nat, Kind::Forward, Packet::Syn);
    let large = forward(Setup { services: 10_000, backends: 6, ..nat });
    let nat = forward(nat);
    let most = [
        find.ratio("nat forward IPv4 to full tracking, 16 k flows", (nat, 1 << 14), (tracked, 1 << 14), 0.5),
        find.worst("1 M flows to 1 flow", &stateless(), |one| ((one, MOST), (one, 1)), 1.15),
        find.ratio("SYN flood of new flows to 1 flow", (syn, ENDLESS), (syn, 1), 1.15),
        find.ratio("10,000 services, 60,000 backends to 1 and 4, 1 flow", (large, 1), (nat, 1), 1.5),
        find.ratio("the same, 16 k flows", (large, 1 << 14), (nat, 1 << 14), 1.5),
        find.ratio("the same, 1 M flows", (large, MOST), (nat, MOST), 1.5),
        find.worst("IPv6 to IPv4, 1 flow", &stateless(), |one| ((in_v6(one), 1), (one, 1)), 1.2),
    ];
    let slower =
        find.ratio("full tracking to nat forward IPv4, 1 M flows", (tracked, MOST), (nat, MOST), 5.0);
    let slower = slower.map(|target| Target { limit: Limit::Least(5.0), ..target });
    most.into_iter().chain([slower]).flatten().collect()
}

/// What keeps nothing of a flow on settled slots, in IPv4.
fn stateless() -> Vec<Subject> {
    let setup = |mode| Setup::settled(mode, Family::V4);
    let mut subjects: Vec<Subject> =
        [Mode::Nat, Mode::Dsr, Mode::Ipip, Mode::Gue].map(|mode| forward(setup(mode))).into();
    subjects.push(Subject::Balancer(setup(Mode::Nat), Kind::Reply, Packet::Ack));
    subjects
}

fn in_v6(subject: Subject) -> Subject {
    match subject {
        Subject::Balancer(setup, kind, packet) => {
            Subject::Balancer(Setup { family: Family::V6, ..setup }, kind, packet)
        }
        Subject::Parse(_) => Subject::Parse(Family::V6),
        Subject::Given(_, packet) => Subject::Given(Family::V6, packet),
        Subject::Transmit => Subject::Transmit,
    }
}

fn forward(setup: Setup) -> Subject {
    Subject::Balancer(setup, Kind::Forward, Packet::Ack)
}

impl Target {
    fn is_met(&self) -> bool {
        match self.limit {
            Limit::Most(most) => self.value <= most,
            Limit::Least(least) => self.value >= least,
        }
    }

    /// For comparing reports.
    pub fn to_json(&self) -> Value {
        let (bound, limit) = match self.limit {
            Limit::Most(most) => ("most", most),
            Limit::Least(least) => ("least", least),
        };
        json!({ "what": self.what, bound: limit, "measured": self.value, "unit": self.unit.trim(), "met": self.is_met() })
    }
}

struct Finder<'m>(&'m [Measurement]);

impl Finder<'_> {
    fn net(&self, subject: Subject, flows: u64) -> Option<f64> {
        let found = self.0.iter().find(|one| one.subject == subject && one.flows == flows);
        found.map(Measurement::net_min)
    }

    /// A pair of measurements of one suite, whose rounds took turns.
    fn pair(&self, (one, flows): (Subject, u64), (to, its_flows): (Subject, u64)) -> Option<f64> {
        let of = |subject, flows| {
            self.0.iter().filter(move |one: &&Measurement| one.subject == subject && one.flows == flows)
        };
        let pairs = of(one, flows).flat_map(|one| of(to, its_flows).map(move |other| (one, other)));
        let together = |(one, other): &(&Measurement, &Measurement)| one.suite == other.suite;
        pairs.into_iter().find(together).map(|(one, other)| one.net_min() / other.net_min())
    }

    fn ratio(&self, what: &str, one: (Subject, u64), to: (Subject, u64), most: f64) -> Option<Target> {
        let value = self.pair(one, to)?;
        Some(Target { what: what.to_owned(), value, limit: Limit::Most(most), unit: TIMES })
    }

    /// The largest of such ratios.
    fn worst(
        &self,
        what: &str,
        subjects: &[Subject],
        pair: impl Fn(Subject) -> ((Subject, u64), (Subject, u64)),
        most: f64,
    ) -> Option<Target> {
        let ratios = subjects.iter().filter_map(|subject| {
            let (one, to) = pair(*subject);
            Some((subject, self.pair(one, to)?))
        });
        let (subject, value) = ratios.max_by(|(_, one), (_, other)| one.total_cmp(other))?;
        let what = format!("{what}, at worst: {}", subject.name());
        Some(Target { what, value, limit: Limit::Most(most), unit: TIMES })
    }
}
