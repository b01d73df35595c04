//! Maps that are not what the daemon wrote.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::{Visit, use_all_queues};
use crate::support::balancer::Balancer;
use crate::support::bpffs::Bpffs;
use crate::support::config::tcp_before;
use crate::support::echo::start_pair;
use crate::support::network::{Arms, Network};

/// A slot that names nobody and has no past, as one word.
const NOBODY: u64 = u64::MAX;

#[test]
fn a_slot_that_something_else_has_written() -> Result<()> {
    let network = Network::new("doctor-tables", Arms::Two)?;
    let bpffs = Bpffs::mount(&network.balancer)?;
    use_all_queues(&network)?;
    let _echoes = start_pair(&network)?;
    let services = tcp_before(&[(1, 1), (2, 1)], &[]);
    let attach =
        || Balancer::attach(&network.balancer, network.interfaces, &services, &["--sysctl", "--pin"]);
    let balancer = attach()?;
    balancer.wait_until_serving()?;
    let visit = Visit::new(&network, &services, &[])?;
    visit.expect_health()?;

    let status = balancer.status()?;
    let service = status.service("tcp-v6")?;
    let fingerprint = service.fingerprint.as_deref().context("it has no fingerprint")?;
    let text = balancer.status_text()?;
    ensure!(text.contains(fingerprint), "people do not see {fingerprint}:\n{text}");
    bpffs.store(Path::new("v1/maps/SLOTS"), service.first_slot, NOBODY)?;
    visit.expect(&[("tables-differ", "service tcp-v6")])?;
    ensure!(
        balancer.status()?.service("tcp-v6")?.fingerprint == service.fingerprint,
        "the daemon has noticed"
    );

    balancer.stop(Signal::SIGTERM)?;
    let balancer = attach()?;
    balancer.wait_until_serving()?;
    visit.expect_health()
}
