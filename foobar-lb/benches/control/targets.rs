//! What the control plane is to cost at most, and whether it does. That it is missed is told and is no failure: a machine
//! may be slow.

use serde_json::{Value, json};

use crate::{
    changes::{CHANGES, REPLACED, WRITE},
    daemon::{ALL_REPLACED, CONNTRACK, IN_FORCE, MAPS, MEMORY, PROCESS},
    report::Figure,
    tables::{BOTH, TABLES, subject},
};

/// Every target that was measured, by the least of all rounds: what else the machine does only adds to it.
pub fn of(figures: &[Figure]) -> Vec<Value> {
    let find = |chapter, subject: &str, what| {
        let found = figures
            .iter()
            .find(|one| one.chapter == chapter && one.subject.as_str() == subject && one.what == what);
        found.map(Figure::min)
    };
    let built = find(TABLES, &subject(65_537, 1_000), BOTH);
    let services = "100 services of 65,537 slots";
    let maps = find(MEMORY, services, MAPS);
    let conntrack = find(MEMORY, services, CONNTRACK).unwrap_or_default();
    let built =
        built.map(|value| target("65,537 slots, 1,000 backends: built and written", value, 5.0, "ms"));
    let maps = maps.map(|value| {
        target(
            &format!("{services}: maps, beside {conntrack:.1} MiB of remembered flows"),
            value,
            64.0,
            "MiB",
        )
    });
    let reloaded = find(PROCESS, ALL_REPLACED, IN_FORCE).map(|value| {
        target("1,000 services x 100 backends, each with another: reloaded", value, 2_000.0, "ms")
    });
    let written = find(CHANGES, REPLACED, WRITE)
        .map(|value| target("1,000 services x 100 backends, one replaced: written", value, 50.0, "ms"));
    [built, maps, reloaded, written].into_iter().flatten().collect()
}

/// A target for people.
pub fn line(target: &Value) -> String {
    let text = |key: &str| target[key].as_str().unwrap_or_default();
    let number = |key: &str| target[key].as_f64().unwrap_or_default();
    let (what, unit, verdict) =
        (text("what"), text("unit"), if target["met"] == true { "met" } else { "MISSED" });
    format!("{verdict:7} {what}: {:.2} {unit}, at most {} {unit}", number("measured"), number("most"))
}

fn target(what: &str, value: f64, most: f64, unit: &str) -> Value {
    json!({ "what": what, "measured": value, "most": most, "unit": unit, "met": value < most })
}
