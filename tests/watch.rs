//! The file of the configuration changes, and the balancer follows without being told; what is wrong it refuses and shows.

use std::fs;

use anyhow::{Result, ensure};

use crate::support::balancer::{Balancer, Status};
use crate::support::config::tcp_before;
use crate::support::conversation::{Protocol, expect_newcomers_at, open_with};
use crate::support::echo::{Echo, start_pair};
use crate::support::network::{Arms, BACKEND_PORT, Family, Network, VIP, VIP_PORT};

const PAIR: [(u8, u16); 2] = [(1, 1), (2, 1)];
const ALL: [(u8, u16); 3] = [(1, 1), (2, 1), (3, 1)];

#[test]
fn a_change_of_the_file_is_followed() -> Result<()> {
    let network = Network::new("watch", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let _web3 = Echo::start(&network.add_backend(3)?, "web3", BACKEND_PORT)?;
    // What comes before the first service belongs to [daemon].
    let watched = |services: &str| format!("watch = true\n{services}");
    let has_web3 = |status: &Status| status.backends("web3").any(|backend| backend.admin == "enabled");
    let vip = VIP.port(Family::V4, VIP_PORT);
    let balancer = Balancer::serve(&network, &watched(&tcp_before(&PAIR, &[])))?;
    let mut flow = open_with(&network.client, Protocol::Tcp, vip, "web1")?;

    balancer.write_services(&watched(&tcp_before(&ALL, &[])))?;
    balancer.wait_until("web3 to be there", has_web3)?;
    balancer.wait_until_up("web3")?;
    expect_newcomers_at(&network.client, Protocol::Tcp, vip, &["web1", "web2", "web3"])?;

    replace(&balancer, &fs::read_to_string(balancer.config())?.replace("weight = 1", "weight = 1001"))?;
    balancer.wait_until("the failure to be shown", |status| status.reload_failure.is_some())?;
    let status = balancer.status()?;
    let tells = status.reload_failure.as_ref().is_some_and(|failure| failure.contains("1001"));
    ensure!(tells && status.reload_failed_seconds.is_some(), "the status does not tell: {status:?}");
    let text = balancer.status_text()?;
    ensure!(text.contains("NOT RELOADED") && text.contains(" ago, "), "{text}");
    ensure!(has_web3(&status), "the old configuration is not in force: {status:?}");
    flow.expect_answer_from("web1")?;

    // It watches no more once the file says so, which is the last that it follows.
    let last = fs::read_to_string(balancer.config())?.replace("weight = 1001", "weight = 1");
    replace(&balancer, &last.replace("watch = true", "watch = false"))?;
    balancer.wait_until("the failure to be gone", |status| status.reload_failure.is_none())?;
    balancer.write_services(&watched(&tcp_before(&PAIR, &[])))?;
    balancer.reload()?.expect(0, &["in force"])?;
    balancer.wait_until("web3 to be gone", |status| !has_web3(status))?;
    flow.expect_answer_from("web1")
}

/// As editors do: another file takes the place of the old one.
fn replace(balancer: &Balancer, text: &str) -> Result<()> {
    let new = balancer.config().with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, balancer.config())?)
}
