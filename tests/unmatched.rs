//! What becomes of packets to ports of a VIP that no service has: `unmatched` of the VIP.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Namespace;

use crate::support::SOON;
use crate::support::config::vip_sections;
use crate::support::conversation::{Conversation, Protocol, connect};
use crate::support::echo::Echo;
use crate::support::frames::check_checksums;
use crate::support::network::{Arms, Family, VIP};
use crate::support::site::{Mode, Site};
use crate::support::wire::Wire;

const OTHER_PORT: u16 = 81;

#[test]
fn reject_two_arm() -> Result<()> {
    check_rejection("unmatched-reject-two", Arms::Two, Mode::Nat)
}

#[test]
fn reject_one_arm() -> Result<()> {
    check_rejection("unmatched-reject-one", Arms::One, Mode::Gue(Family::V4))
}

/// Also where this machine has the VIP.
#[test]
fn drop() -> Result<()> {
    check_silence("unmatched-drop", "unmatched = \"drop\"", true)
}

#[test]
fn pass_where_nobody_has_the_vip() -> Result<()> {
    check_silence("unmatched-pass", "unmatched = \"pass\"", false)
}

#[test]
fn pass_where_this_machine_has_the_vip() -> Result<()> {
    let site = Site::new("unmatched-local", Arms::Two, Mode::Nat)?;
    let _echoes = site.start_echoes()?;
    let balancer = &site.network.balancer;
    put_vips(balancer)?;
    let _own = Echo::start(balancer, "balancer", OTHER_PORT)?;
    let _running = site.serve(&(site.kinds(&[]) + &vip_sections(VIP, &["unmatched = \"pass\""])))?;
    for family in Family::BOTH {
        let mut flow = Conversation::open(&site.network.client, Protocol::Tcp, VIP.port(family, OTHER_PORT))?;
        flow.expect_answer_from("balancer")?;
    }
    Ok(())
}

fn check_rejection(name: &str, arms: Arms, mode: Mode) -> Result<()> {
    let site = Site::new(name, arms, mode)?;
    let _echoes = site.start_echoes()?;
    let client = &site.network.client;
    let balancer = site.serve(&(site.kinds(&[]) + &vip_sections(VIP, &["unmatched = \"reject\""])))?;
    let wire = Wire::open(client, "eth0")?;
    for family in Family::BOTH {
        let server = VIP.port(family, OTHER_PORT);
        let before = balancer.counted("rejected")?;
        let start = Instant::now();
        let error = connect(client, server, SOON)?.err().context("a port without a service answered")?;
        ensure!(error.kind() == ErrorKind::ConnectionRefused, "{family:?}, TCP: {error}");
        let error =
            Conversation::open(client, Protocol::Udp, server)?.ask().err().context("an answer by UDP")?;
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{family:?}, UDP: {error:#}");
        // A second SYN, after a second, would have been refused as well.
        ensure!(start.elapsed() < Duration::from_secs(1), "{family:?}: not at once");
        ensure!(balancer.counted("rejected")? == before + 2, "{family:?}: they are not counted");
    }
    check_checksums(&wire.received()?)
}

/// Nobody may answer, and nothing may go on, from where it would come back.
fn check_silence(name: &str, key: &str, local: bool) -> Result<()> {
    let site = Site::new(name, Arms::One, Mode::Nat)?;
    let _echoes = site.start_echoes()?;
    let client = &site.network.client;
    if local {
        put_vips(&site.network.balancer)?;
    }
    let balancer = site.serve(&(site.kinds(&[]) + &vip_sections(VIP, &[key])))?;
    for family in Family::BOTH {
        let before = balancer.counted("no_service")?;
        let error = connect(client, VIP.port(family, OTHER_PORT), SOON / 20)?.err().context("it answered")?;
        ensure!(error.kind() == ErrorKind::TimedOut, "{family:?}: {error}");
        ensure!(balancer.counted("no_service")? == before + 1, "{family:?}: counted otherwise than once");
    }
    Ok(())
}

/// Makes the VIPs the balancer's own addresses.
fn put_vips(balancer: &Namespace) -> Result<()> {
    balancer.add_address("lo", &format!("{}/32", VIP.v4()))?;
    balancer.add_address("lo", &format!("{}/128", VIP.v6()))
}
