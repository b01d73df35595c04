//! What network cards and drivers do to packets before the program sees them, by ethtool's netlink.

use std::{collections::BTreeSet, fs, path::Path, pin::pin, thread};

use ethtool::{EthtoolAttr, EthtoolChannelAttr, EthtoolFeatureAttr, EthtoolHandle};
use futures::StreamExt;

use super::{Finding, Kind};

/// Features that merge packets into larger ones, and ethtool's options for them.
const MERGING: &[(&str, &str)] = &[("rx-lro", "lro"), ("rx-gro-hw", "rx-gro-hw")];
/// What merges packets on the ports of a bridge, before a program on the bridge sees them.
const MERGING_BELOW: &[(&str, &str)] = &[("rx-lro", "lro"), ("rx-gro-hw", "rx-gro-hw"), ("rx-gro", "gro")];
/// Features that take VLAN tags off.
const UNTAGGING: &[(&str, &str)] =
    &[("rx-vlan-hw-parse", "rxvlan"), ("rx-vlan-stag-hw-parse", "rx-vlan-stag-hw-parse")];

const WHY_MERGING: &str =
    "packets are merged before the program sees them: it cannot send what is larger than the MTU";
const WHY_UNTAGGING: &str =
    "VLAN tags are taken off before the program sees them, and there are VLAN devices on it";

/// What is wrong with the interfaces. Where a driver tells nothing, nothing is found.
pub async fn examine(interfaces: &[String]) -> Vec<Finding> {
    let Ok((connection, mut handle, _)) = ethtool::new_connection() else { return Vec::new() };
    let connection = tokio::spawn(connection);
    let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
    let mut findings = Vec::new();
    for name in interfaces {
        let features = features(&mut handle, name).await;
        findings.extend(judge(name, &features, MERGING, Kind::MergedPackets, WHY_MERGING));
        if has_vlans(name) {
            findings.extend(judge(name, &features, UNTAGGING, Kind::VlanOffload, WHY_UNTAGGING));
        }
        findings.extend(judge_queues(name, queues(&mut handle, name).await, cpus));
        for port in below(name, "brif") {
            let features = self::features(&mut handle, &port).await;
            findings.extend(judge(&port, &features, MERGING_BELOW, Kind::MergedPackets, WHY_MERGING));
        }
    }
    connection.abort();
    findings
}

/// The names of the features that are on.
async fn features(handle: &mut EthtoolHandle, name: &str) -> BTreeSet<String> {
    let mut active = BTreeSet::new();
    let Ok(answers) = handle.feature().get(Some(name)).execute().await else { return active };
    let mut answers = pin!(answers);
    while let Some(Ok(answer)) = answers.next().await {
        for attribute in answer.payload.nlas {
            if let EthtoolAttr::Feature(EthtoolFeatureAttr::Active(bits)) = attribute {
                active.extend(bits.into_iter().filter(|bit| bit.value).map(|bit| bit.name));
            }
        }
    }
    active
}

/// Receive queues: how many are in use, and how many there could be.
async fn queues(handle: &mut EthtoolHandle, name: &str) -> Option<(u32, u32)> {
    let answers = handle.channel().get(Some(name)).execute().await.ok()?;
    let mut answers = pin!(answers);
    let (mut used, mut most) = (0, 0);
    while let Some(Ok(answer)) = answers.next().await {
        for attribute in answer.payload.nlas {
            use EthtoolChannelAttr::{CombinedCount, CombinedMax, RxCount, RxMax};
            match attribute {
                EthtoolAttr::Channel(RxCount(count) | CombinedCount(count)) => used += count,
                EthtoolAttr::Channel(RxMax(count) | CombinedMax(count)) => most += count,
                _ => {}
            }
        }
    }
    Some((used, most))
}

fn judge(
    name: &str,
    active: &BTreeSet<String>,
    harmful: &[(&str, &str)],
    kind: Kind,
    why: &str,
) -> Option<Finding> {
    let on: Vec<_> = harmful.iter().filter(|(feature, _)| active.contains(*feature)).collect();
    let names = on.iter().map(|(feature, _)| *feature).collect::<Vec<_>>().join(", ");
    let off: String = on.iter().map(|(_, option)| format!(" {option} off")).collect();
    let finding = Finding::new(kind, name, format!("{names} is on: {why}"));
    (!on.is_empty()).then(|| finding.remedy(format!("ethtool -K {name}{off}")))
}

fn judge_queues(name: &str, queues: Option<(u32, u32)>, cpus: u32) -> Option<Finding> {
    let (used, most) = queues?;
    let wanted = cpus.min(most);
    let seen = format!("{used} of {most} receive queues are in use, and there are {cpus} CPUs");
    let finding = Finding::new(Kind::FewQueues, name, seen);
    (used < wanted).then(|| {
        finding.remedy(format!("ethtool -L {name} combined {wanted} (or rx {wanted}, as ethtool -l shows)"))
    })
}

/// Names of what a directory of the interface in /sys lists; none where there is no such directory.
fn below(name: &str, directory: &str) -> Vec<String> {
    let path = Path::new("/sys/class/net").join(name).join(directory);
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Devices on top of an interface are links in its directory.
fn has_vlans(name: &str) -> bool {
    let vlan = |upper: &str| Path::new("/proc/net/vlan").join(upper).exists();
    below(name, "").iter().filter_map(|entry| entry.strip_prefix("upper_")).any(vlan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_merges_packets_is_told_with_the_command_that_ends_it() {
        let active = BTreeSet::from(["rx-lro", "rx-gro", "rx-gro-hw"].map(str::to_owned));
        let finding = judge("eth0", &active, MERGING, Kind::MergedPackets, WHY_MERGING).unwrap();
        assert_eq!(finding.remedy.as_deref(), Some("ethtool -K eth0 lro off rx-gro-hw off"));
        let harmless = BTreeSet::from(["rx-gro".to_owned()]);
        assert_eq!(judge("eth0", &harmless, MERGING, Kind::MergedPackets, WHY_MERGING), None);
    }

    #[test]
    fn tags_that_are_taken_off_are_told() {
        let active = BTreeSet::from(["rx-vlan-hw-parse".to_owned()]);
        let finding = judge("eth0", &active, UNTAGGING, Kind::VlanOffload, WHY_UNTAGGING).unwrap();
        assert_eq!(finding.remedy.as_deref(), Some("ethtool -K eth0 rxvlan off"));
    }

    #[test]
    fn queues_that_could_be_in_use_are_told() {
        for (queues, found) in
            [(None, false), (Some((1, 1)), false), (Some((1, 8)), true), (Some((4, 8)), false)]
        {
            assert_eq!(judge_queues("eth0", queues, 4).is_some(), found, "{queues:?}");
        }
    }
}
