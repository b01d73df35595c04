//! Who talks to a backend's own address gets answers from that address: listed clients, and the balancer.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::support::balancer::Balancer;
use crate::support::config::{all_kinds, all_kinds_with};
use crate::support::conversation::{Conversation, KINDS, ask, connect};
use crate::support::echo::start_pair;
use crate::support::network::{Arms, BACKEND_PORT, Dual, Family, Network, VIP, VIP_PORT, WEB1, dual};

/// A second address of the client's host, listed in `direct`.
const ADMIN: Dual = dual([10, 0, 0, 99], [0xfd00, 0xa], 0x99);

#[test]
fn listed_clients_reach_backends_past_the_service_two_arm() -> Result<()> {
    check_direct("direct-two", Arms::Two)
}

#[test]
fn listed_clients_reach_backends_past_the_service_one_arm() -> Result<()> {
    check_direct("direct-one", Arms::One)
}

#[test]
fn the_balancer_itself_reaches_backends() -> Result<()> {
    let network = Network::new("direct-balancer", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &[]))?;
    for (family, protocol) in KINDS {
        let backend = ask(&network.balancer, protocol, WEB1.port(family, BACKEND_PORT))?;
        ensure!(backend == "web1", "{backend} answered for web1");
    }
    ensure!(balancer.counted("to_balancer")? > 0, "answers to the balancer are not counted");
    Ok(())
}

fn check_direct(name: &str, arms: Arms) -> Result<()> {
    let network = Network::new(name, arms)?;
    let _echoes = start_pair(&network)?;
    network.client.add_address("eth0", &format!("{}/32", ADMIN.v4()))?;
    // Deprecated, so that it is the source only of who asks for it.
    network.client.ip(&format!("address add {}/128 dev eth0 nodad preferred_lft 0", ADMIN.v6()))?;
    let services = all_kinds_with(VIP, |family, service| {
        let length = if family == Family::V4 { 32 } else { 128 };
        service.key(&format!("direct = [\"{}/{length}\"]", ADMIN.of(family)))
    });
    let balancer = Balancer::serve(&network, &services)?;
    for (family, protocol) in KINDS {
        let admin = ADMIN.port(family, 0);
        let backend = WEB1.port(family, BACKEND_PORT);
        let answer = Conversation::open_from(&network.client, admin, protocol, backend)?
            .ask()
            .with_context(|| format!("{protocol:?} from the listed {admin} to {backend}"))?;
        ensure!(answer.backend == "web1", "{} answered for web1", answer.backend);
        ask(&network.client, protocol, VIP.port(family, VIP_PORT))?;
    }
    ensure!(balancer.counted("direct_client")? > 0, "answers to a listed client are not counted");
    for family in Family::BOTH {
        let unlisted = connect(&network.client, WEB1.port(family, BACKEND_PORT), Duration::from_millis(500))?;
        let kind = unlisted.err().map(|error| error.kind());
        ensure!(
            kind == Some(ErrorKind::TimedOut),
            "an unlisted client's answers come from the VIP, but: {kind:?}"
        );
    }
    Ok(())
}
