//! In the other modes than `nat` too, new flows leave a backend that drains or is silent, and return.

use anyhow::Result;

use crate::support::config::service_name;
use crate::support::conversation::{KINDS, Protocol, expect_newcomers_at, open_with};
use crate::support::network::{Arms, Family, VIP, VIP_PORT};
use crate::support::site::{Mode, Site};

const KEYS: &[&str] = &["transition = \"1s\""];

#[test]
fn dsr() -> Result<()> {
    check_leaving("leaving-dsr", Arms::Two, Mode::Dsr)
}

#[test]
fn tunnel() -> Result<()> {
    check_leaving("leaving-ipip", Arms::One, Mode::Ipip(Family::V4))
}

#[test]
fn tunnel_by_udp() -> Result<()> {
    check_leaving("leaving-gue", Arms::Two, Mode::Gue(Family::V6))
}

#[test]
fn snat() -> Result<()> {
    check_leaving("leaving-snat", Arms::One, Mode::Snat)
}

fn check_leaving(name: &str, arms: Arms, mode: Mode) -> Result<()> {
    let site = Site::new(name, arms, mode)?;
    let _echoes = site.start_echoes()?;
    let client = &site.network.client;
    let balancer = site.serve(&site.kinds(KEYS))?;
    for family in Family::BOTH {
        let service = service_name(family, Protocol::Tcp);
        let vip = VIP.port(family, VIP_PORT);
        let mut flow = open_with(client, Protocol::Tcp, vip, "web1")?;
        balancer.backend(&["drain", &service, "web1"])?.expect(0, &["web1"])?;
        expect_newcomers_at(client, Protocol::Tcp, vip, &["web2"])?;
        flow.expect_answer_from("web1")?;
        balancer.backend(&["enable", &service, "web1"])?.expect(0, &["web1"])?;
        expect_newcomers_at(client, Protocol::Tcp, vip, &["web1", "web2"])?;
        flow.expect_answer_from("web1")?;
    }
    site.network.unplug("web1")?;
    balancer.wait_until_down("web1")?;
    for (family, protocol) in KINDS {
        expect_newcomers_at(client, protocol, VIP.port(family, VIP_PORT), &["web2"])?;
    }
    site.network.plug_in("web1")?;
    balancer.wait_until_up("web1")?;
    for family in Family::BOTH {
        expect_newcomers_at(client, Protocol::Tcp, VIP.port(family, VIP_PORT), &["web1", "web2"])?;
    }
    Ok(())
}
