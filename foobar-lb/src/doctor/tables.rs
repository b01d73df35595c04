//! Whether the maps in the kernel hold what the daemon believes: it compares fingerprints of services, its own of what it
//! has written, with those of what is there.

use std::{collections::BTreeMap, path::Path, time::Duration};

use tokio::time::sleep;

use super::{Finding, Kind, unseen};
use crate::{
    api::{Service, Status},
    bpf, client,
    fingerprint::fingerprints,
};

/// While it looks, the daemon may be writing: what differs is looked at again so often, after a pause.
const LOOKS: usize = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// Services whose maps differ from what the daemon believes.
pub async fn examine(socket: &Path, before: &Status) -> Vec<Finding> {
    let mut status = before.clone();
    let mut found = Vec::new();
    for look in 0..LOOKS {
        if look > 0 {
            sleep(PAUSE).await;
            match client::status(socket).await {
                Ok(now) => status = now,
                Err(error) => return vec![unseen("tables", &error)],
            }
        }
        // What it could not write is told of elsewhere.
        if status.failure.is_some() {
            return Vec::new();
        }
        let there = match look_at(status.program_id) {
            Ok(there) => there,
            Err(error) => return vec![unseen("tables", &error)],
        };
        found = status.services.iter().filter_map(|service| judge(service, &there)).collect();
        if found.is_empty() {
            break;
        }
    }
    found
}

fn look_at(program: u32) -> Result<BTreeMap<u32, String>, bpf::Error> {
    let bpf::Running { image, hash_key } = bpf::read_running(program)?;
    let prints = fingerprints(&image, &hash_key).into_iter();
    Ok(prints.map(|(first, fingerprint)| (first, fingerprint.to_string())).collect())
}

fn judge(service: &Service, there: &BTreeMap<u32, String>) -> Option<Finding> {
    let found = there.get(&service.first_slot);
    let name = |fingerprint: Option<&String>| fingerprint.map_or("none", String::as_str).to_owned();
    let seen = format!(
        "what its maps hold has the fingerprint {}, and what the daemon wrote has {}: something else writes to them",
        name(found),
        name(service.fingerprint.as_ref()),
    );
    let finding = Finding::new(Kind::TablesDiffer, format!("service {}", service.name), seen);
    (found != service.fingerprint.as_ref())
        .then(|| finding.remedy("restart the daemon, which reads its maps and mends them"))
}
