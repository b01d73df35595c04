//! What is drawn, taken from the JSON of the benches.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::figures::{list, median, text};

/// A line: the cost of one subject over the number of flows.
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// One contender's rates divided by another's of the same rounds.
pub struct Spread {
    pub name: String,
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

/// The curves of a run of bench kernel by what is drawn together: of subjects that were measured with several numbers of
/// flows.
pub fn curves(run: &Value) -> BTreeMap<String, Vec<Curve>> {
    let mut plots: BTreeMap<String, Vec<Curve>> = BTreeMap::new();
    for one in list(&run["measurements"]) {
        let (Some(flows), Some(cost)) = (one["flows"].as_f64(), one["net_min"].as_f64()) else { continue };
        // Where a subject costs no more than the generator's noise there is no logarithm.
        if cost <= 0.0 {
            continue;
        }
        let name = text(&one["name"]);
        let family = if name.contains("IPv6") { "IPv6" } else { "IPv4" };
        let curves = plots.entry(format!("{}, {family}", text(&one["suite"]))).or_default();
        match curves.iter_mut().find(|curve| curve.name == name) {
            Some(curve) => curve.points.push((flows, cost)),
            None => curves.push(Curve { name, points: vec![(flows, cost)] }),
        }
    }
    for curves in plots.values_mut() {
        curves.retain(|curve| curve.points.len() > 2);
        curves.iter_mut().for_each(|curve| curve.points.sort_by(|one, other| one.0.total_cmp(&other.0)));
    }
    plots.retain(|_, curves| !curves.is_empty());
    plots
}

/// The loads of a run of bench traffic.
pub fn loads(run: &Value) -> BTreeSet<String> {
    list(&run["turns"]).iter().map(|turn| text(&turn["load"])).collect()
}

/// Who bore a load, beside the one named `base`.
pub fn spreads(run: &Value, load: &str, base: &str) -> Vec<Spread> {
    let others = contenders(run, load).into_iter().filter(|name| name != base);
    let base = rates(run, load, base);
    let spread = |name: String| {
        let rates = rates(run, load, &name);
        let ratios: Vec<f64> =
            rates.iter().filter_map(|(round, rate)| Some(rate / base.get(round)?)).collect();
        let (least, most) = ratios.iter().copied().fold((f64::INFINITY, 0.0), |(least, most), ratio| {
            (f64::min(least, ratio), f64::max(most, ratio))
        });
        Some(Spread { name, least, median: median(&ratios)?, most })
    };
    others.filter_map(spread).collect()
}

/// Who bore a load.
pub fn contenders(run: &Value, load: &str) -> BTreeSet<String> {
    let turns = list(&run["turns"]).iter().filter(|turn| turn["load"] == load);
    turns.map(|turn| text(&turn["contender"])).collect()
}

/// Operations a second, by round.
fn rates(run: &Value, load: &str, contender: &str) -> BTreeMap<u64, f64> {
    let turns = list(&run["turns"]).iter();
    let own = turns.filter(|turn| turn["load"] == load && turn["contender"] == contender);
    let rate = |turn: &Value| {
        let rate = turn["operations"].as_f64()? / turn["seconds"].as_f64()?;
        Some((turn["round"].as_u64()?, rate))
    };
    own.filter_map(rate).filter(|(_, rate)| *rate > 0.0).collect()
}
