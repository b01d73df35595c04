//! Pings of a VIP are answered by the balancer, up to the size of a frame, unless it is told not to.

use anyhow::{Context, Result, ensure};
use lab::Namespace;

use crate::support::config::vip_sections;
use crate::support::frames::check_checksums;
use crate::support::network::{Arms, Family, VIP};
use crate::support::site::{Mode, Site};
use crate::support::wire::Wire;

/// Bytes of data: none, the usual ones, an odd number, and as many as fit into a frame of IPv6.
const LENGTHS: [u16; 4] = [0, 56, 777, 1452];
const COUNT: u64 = 3;

#[test]
fn two_arm() -> Result<()> {
    check_pings("ping-two", Arms::Two, Mode::Nat)
}

#[test]
fn one_arm() -> Result<()> {
    check_pings("ping-one", Arms::One, Mode::Nat)
}

/// The answer does not depend on how backends are reached.
#[test]
fn of_snat() -> Result<()> {
    check_pings("ping-snat", Arms::Two, Mode::Snat)
}

/// The same.
#[test]
fn of_a_tunnel() -> Result<()> {
    check_pings("ping-tunnel", Arms::One, Mode::Ipip(Family::V6))
}

#[test]
fn none_is_answered_where_that_is_not_wanted() -> Result<()> {
    let site = Site::new("ping-off", Arms::Two, Mode::Nat)?;
    let _echoes = site.start_echoes()?;
    let balancer = site.serve(&(site.kinds(&[]) + &vip_sections(VIP, &["ping = false"])))?;
    for family in Family::BOTH {
        let before = balancer.counted("no_service")?;
        let vip = VIP.of(family).to_string();
        // It ends with 1 where nobody answers.
        let output =
            site.network.client.command("ping").args(["-c", "2", "-i", "0.2", "-W", "0.2", &vip]).output()?;
        let output = String::from_utf8(output.stdout)?;
        ensure!(output.contains("2 packets transmitted, 0 received"), "{family:?}: {output}");
        ensure!(balancer.counted("no_service")? == before + 2, "{family:?}: they are not counted");
    }
    Ok(())
}

fn check_pings(name: &str, arms: Arms, mode: Mode) -> Result<()> {
    let site = Site::new(name, arms, mode)?;
    let _echoes = site.start_echoes()?;
    let client = &site.network.client;
    let balancer = site.serve(&site.kinds(&[]))?;
    let wire = Wire::open(client, "eth0")?;
    for family in Family::BOTH {
        for length in LENGTHS {
            let before = balancer.counted("echo")?;
            ping(client, family, length)?;
            ensure!(balancer.counted("echo")? == before + COUNT, "{family:?}: the balancer did not answer");
        }
    }
    check_checksums(&wire.received()?)
}

/// All must be answered, with the data that were sent.
fn ping(client: &Namespace, family: Family, length: u16) -> Result<()> {
    let (vip, length) = (VIP.of(family).to_string(), length.to_string());
    let output = client
        .run(["ping", "-M", "do", "-c", &COUNT.to_string(), "-i", "0.01", "-s", &length, &vip])
        .with_context(|| format!("{length} bytes by {family:?}"))?;
    let whole =
        output.contains(" 0% packet loss") && !output.contains("wrong data") && !output.contains("BAD");
    ensure!(whole, "{length} bytes by {family:?}: {output}");
    Ok(())
}
