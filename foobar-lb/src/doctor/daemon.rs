//! Whether the daemon runs, answers, and is well by its own word.

use std::{fs, path::Path, time::Duration};

use tokio::{net::UnixStream, time::timeout};

use super::{Finding, Kind, network::place, unseen};
use crate::{
    api::{Backend, Service, Status},
    client::{self, Error},
    start::chain,
};

/// How long it has to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Files that the daemon has open whatever it balances.
const OWN_FILES: usize = 64;

/// Its status, or what is wrong with it.
///
/// # Errors
/// What was found instead.
pub async fn ask(socket: &Path) -> Result<Status, Finding> {
    let place = socket.display().to_string();
    match timeout(PATIENCE, client::status(socket)).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(error @ Error::NotRunning { .. })) => {
            Err(Finding::new(Kind::DaemonNotRunning, place, error.to_string())
                .remedy("foobar-lb attach IFACE...; or name interfaces, to look at the host alone"))
        }
        Ok(Err(error @ Error::Answer(_))) => {
            Err(Finding::new(Kind::VersionDiffers, place, chain(&error)).remedy("restart the daemon"))
        }
        Ok(Err(error)) => Err(unseen(&place, &error)),
        Err(_) => {
            let seen = format!("it has been asked for its status, and has not answered for {PATIENCE:?}");
            Err(Finding::new(Kind::DaemonHung, place, seen)
                .remedy("restart the daemon; its log may tell more"))
        }
    }
}

/// What is wrong by its own word.
pub fn judge(status: &Status) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(failure) = &status.failure {
        let seen =
            format!("the maps are not as they should be, which is tried again every second: {failure}");
        findings.push(Finding::new(Kind::MapsBehind, "the daemon", seen));
    }
    if let Some(why) = &status.reload_failure {
        let finding =
            Finding::new(Kind::ReloadRefused, "the daemon", format!("the old configuration counts: {why}"));
        findings.push(finding.remedy("foobar-lb check FILE, then foobar-lb reload"));
    }
    for why in [&status.words_lost, &status.words_unkept].into_iter().flatten() {
        let finding = Finding::new(Kind::WordsNotKept, "the daemon", why);
        findings.push(finding.remedy("say again with foobar-lb backend and service what still counts"));
    }
    let own = env!("CARGO_PKG_VERSION");
    if status.version != own {
        let seen = format!("it is of version {}, and this command of {own}", status.version);
        findings.push(Finding::new(Kind::VersionDiffers, "the daemon", seen).remedy("restart the daemon"));
    }
    if status.reasons.get("not_remembered").is_some_and(|count| count.packets > 0) {
        let seen = "there was no room to remember flows of slots that moved: some of them may have broken";
        findings.push(
            Finding::new(Kind::FlowsNotRemembered, "the daemon", seen).remedy("raise `flows` of [daemon]"),
        );
    }
    let backends =
        status.services.iter().flat_map(|service| service.backends.iter().map(move |one| (service, one)));
    findings.extend(backends.filter_map(|(service, backend)| judge_backend(service, backend)));
    findings
}

fn judge_backend(service: &Service, backend: &Backend) -> Option<Finding> {
    let Backend { health, reason, admin, .. } = backend;
    let is_down = health.starts_with("down") && admin != "disabled";
    is_down.then(|| {
        Finding::new(Kind::BackendDown, place(&service.name, &backend.name), format!("{health}: {reason}"))
    })
}

/// Every health check under way has a file open.
pub async fn judge_files(socket: &Path, status: &Status) -> Option<Finding> {
    let process = UnixStream::connect(socket).await.ok()?.peer_cred().ok()?.pid()?;
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let limit: usize = line.split_whitespace().next()?.parse().ok()?;
    let checks: usize = status.services.iter().map(|service| service.backends.len()).sum();
    let needed = checks + OWN_FILES;
    let seen = format!(
        "it may open {limit} files, and needs {needed} when all of its {checks} health checks are under way"
    );
    let finding = Finding::new(Kind::FewOpenFiles, format!("process {process}"), seen);
    (limit < needed).then(|| finding.remedy(format!("LimitNOFILE={needed} in its unit, or more")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::Count;

    fn status() -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: 1,
            failure: None,
            config_seconds: 1,
            reload_failure: None,
            reload_failed_seconds: None,
            words_lost: None,
            words_unkept: None,
            program_id: 1,
            next_program: None,
            interfaces: Vec::new(),
            services: Vec::new(),
            reasons: BTreeMap::new(),
        }
    }

    #[test]
    fn what_the_daemon_says_of_itself_is_judged() {
        let count = Count { packets: 1, bytes: 0, help: String::new() };
        let reasons = BTreeMap::from([("not_remembered".to_owned(), count)]);
        for (status, found) in [
            (status(), None),
            (Status { failure: Some("no".to_owned()), ..status() }, Some(Kind::MapsBehind)),
            (Status { words_lost: Some("no".to_owned()), ..status() }, Some(Kind::WordsNotKept)),
            (Status { words_unkept: Some("no".to_owned()), ..status() }, Some(Kind::WordsNotKept)),
            (Status { version: "0.0.0".to_owned(), ..status() }, Some(Kind::VersionDiffers)),
            (Status { reasons, ..status() }, Some(Kind::FlowsNotRemembered)),
        ] {
            let kinds: Vec<Kind> = judge(&status).iter().map(|finding| finding.kind).collect();
            assert_eq!(kinds, Vec::from_iter(found));
        }
    }
}
