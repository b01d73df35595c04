//! All flows of a client go to one backend where the service says so, and clients still spread.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use crate::support::conversation::{Conversation, KINDS, Protocol};
use crate::support::network::{Arms, Dual, Family, VIP, VIP_PORT, dual};
use crate::support::site::{Mode, Site};

/// So many addresses do not all lead to the same of two backends.
const CLIENTS: u8 = 16;
/// So many flows of one address would not all lead to the same backend if each went its own way.
const FLOWS: usize = 16;

#[test]
fn a_client_stays_with_one_backend_in_nat() -> Result<()> {
    check_clients("affinity-nat", Arms::Two, Mode::Nat)
}

#[test]
fn a_client_stays_with_one_backend_in_a_tunnel() -> Result<()> {
    check_clients("affinity-tunnel", Arms::One, Mode::Ipip(Family::V4))
}

fn check_clients(name: &str, arms: Arms, mode: Mode) -> Result<()> {
    let site = Site::new(name, arms, mode)?;
    let client = &site.network.client;
    for number in 0..CLIENTS {
        client.add_address("eth0", &format!("{}/32", address(number).v4()))?;
        client.ip(&format!("address add {}/128 dev eth0 nodad", address(number).v6()))?;
    }
    let _echoes = site.start_echoes()?;
    let _balancer = site.serve(&site.kinds(&["affinity = \"source\""]))?;
    for (family, protocol) in KINDS {
        let mut served = BTreeSet::new();
        for number in 0..CLIENTS {
            let backends = backends_of(&site, address(number), family, protocol)
                .with_context(|| format!("{protocol:?} from {:?}", address(number)))?;
            ensure!(backends.len() == 1, "{protocol:?} from {:?}: {backends:?}", address(number));
            served.extend(backends);
        }
        ensure!(served.len() == 2, "{family:?} {protocol:?}: all clients went to {served:?}");
    }
    Ok(())
}

/// Who answers the flows of one client.
fn backends_of(site: &Site, from: Dual, family: Family, protocol: Protocol) -> Result<BTreeSet<String>> {
    let (from, server) = (from.port(family, 0), VIP.port(family, VIP_PORT));
    let flow = || Conversation::open_from(&site.network.client, from, protocol, server)?.ask();
    (0..FLOWS).map(|_| Ok(flow()?.backend)).collect()
}

fn address(number: u8) -> Dual {
    dual([10, 0, 0, 100 + number], [0xfd00, 0xa], 0x100 + u16::from(number))
}
