//! Whether there is room for more flows in the maps that refuse them when they are full.

use foobar_lb_ebpf::layout::name;

use super::{Finding, Kind, unseen};
use crate::bpf::{self, Fill};

/// What is nearly full, in percent.
const NEARLY: u64 = 80;

/// Maps of the running program that are nearly full.
pub fn examine(program: u32) -> Vec<Finding> {
    match bpf::count_flows(program) {
        Ok(fills) => fills.into_iter().filter_map(judge).collect(),
        Err(error) => vec![unseen("remembered flows", &error)],
    }
}

fn judge(Fill { map, entries, room }: Fill) -> Option<Finding> {
    let percent = u64::from(entries) * 100 / u64::from(room.max(1));
    // Of each flow that is mapped there are two entries; of the others, half of the room is for each kind.
    let (flows, key, now) = match map {
        name::MAPPINGS => ("flows whose source is replaced", "mappings", room / 2),
        name::ESTABLISHED => ("remembered flows that began since a change", "flows", room * 2),
        _ => ("remembered flows that began before a change, and of UDP", "flows", room * 2),
    };
    let seen =
        format!("its room for {flows} is used to {percent} %; when it is full, further ones may break");
    let finding = Finding::new(Kind::FlowsNearlyFull, format!("map {map}"), seen);
    (percent >= NEARLY)
        .then(|| finding.remedy(format!("raise `{key}` of [daemon], which is {now}, and restart")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearly_full_is_told_with_the_key_to_raise() {
        for (map, entries, room, remedy) in [
            (name::ESTABLISHED, 409, 512, None),
            (name::ESTABLISHED, 410, 512, Some("`flows` of [daemon], which is 1024")),
            (name::ADOPTED, 512, 512, Some("`flows` of [daemon], which is 1024")),
            (name::MAPPINGS, 2000, 2048, Some("`mappings` of [daemon], which is 1024")),
        ] {
            let told = judge(Fill { map, entries, room }).and_then(|finding| finding.remedy);
            assert_eq!(told.is_some(), remedy.is_some(), "{map} {entries}");
            assert!(told.unwrap_or_default().contains(remedy.unwrap_or_default()), "{map} {entries}");
        }
    }
}
