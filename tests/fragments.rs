//! Datagrams larger than the way carries are answered whole: all of their fragments reach one backend, and those of its
//! answers the client.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::wait_until;

use crate::support::EVENTUALLY;
use crate::support::balancer::Balancer;
use crate::support::conversation::{ask_at_length, ask_at_length_within};
use crate::support::network::{Arms, Family, VIP, VIP_PORT};
use crate::support::site::{Mode, Site};

/// Enough that, with two backends, none is left out by chance.
const FLOWS: usize = 20;
/// Bytes of data: just too many for a frame, those of NFS, and almost all that there may be.
const LENGTHS: [usize; 3] = [1500, 8192, 60_000];

#[test]
fn nat_two_arm() -> Result<()> {
    check_datagrams("fragments-nat-two", Arms::Two, Mode::Nat)
}

#[test]
fn nat_one_arm() -> Result<()> {
    check_datagrams("fragments-nat-one", Arms::One, Mode::Nat)
}

#[test]
fn dsr_two_arm() -> Result<()> {
    check_datagrams("fragments-dsr-two", Arms::Two, Mode::Dsr)
}

#[test]
fn dsr_one_arm() -> Result<()> {
    check_datagrams("fragments-dsr-one", Arms::One, Mode::Dsr)
}

#[test]
fn ipip_over_ipv4() -> Result<()> {
    check_datagrams("fragments-ipip-v4", Arms::Two, Mode::Ipip(Family::V4))
}

#[test]
fn ipip_over_ipv6() -> Result<()> {
    check_datagrams("fragments-ipip-v6", Arms::One, Mode::Ipip(Family::V6))
}

#[test]
fn gue_over_ipv4() -> Result<()> {
    check_datagrams("fragments-gue-v4", Arms::One, Mode::Gue(Family::V4))
}

#[test]
fn gue_over_ipv6() -> Result<()> {
    check_datagrams("fragments-gue-v6", Arms::Two, Mode::Gue(Family::V6))
}

#[test]
fn snat_two_arm() -> Result<()> {
    check_datagrams("fragments-snat-two", Arms::Two, Mode::Snat)
}

#[test]
fn snat_one_arm() -> Result<()> {
    check_datagrams("fragments-snat-one", Arms::One, Mode::Snat)
}

/// No packet inside a tunnel is fragmented by the balancer: the client has to make smaller fragments.
#[test]
fn a_client_learns_what_fits_through_a_tunnel() -> Result<()> {
    let site = Site::new("fragments-narrow", Arms::Two, Mode::Ipip(Family::V6))?;
    let _echoes = site.start_echoes()?;
    let balancer = site.serve(&site.kinds(&[]))?;
    for family in Family::BOTH {
        let too_big = balancer.counted("too_big")?;
        ask_until_it_fits(&site, &balancer, family, 8192)?;
        ensure!(balancer.counted("too_big")? > too_big, "{family:?}: everything fitted from the start");
    }
    Ok(())
}

/// A fragment of IPv4 grows as one of IPv6: the client has to make smaller ones first.
#[test]
fn datagrams_in_fragments_become_those_of_the_other_ip() -> Result<()> {
    let site = Site::new("fragments-nat64", Arms::Two, Mode::Nat64)?;
    let _echoes = site.start_echoes()?;
    let balancer = site.serve(&site.kinds(&[]))?;
    for family in Family::BOTH {
        for length in LENGTHS {
            ask_until_it_fits(&site, &balancer, family, length)?;
        }
    }
    Ok(())
}

/// What is too big for the way is lost, and whoever sent it told: each backend and the client have to learn it once.
fn ask_until_it_fits(site: &Site, balancer: &Balancer, family: Family, length: usize) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let (client, vip) = (&site.network.client, VIP.port(family, VIP_PORT));
    let fits = wait_until(EVENTUALLY, "an answer to fragments that fit", || {
        ask_at_length_within(client, vip, length, PATIENCE).is_ok()
    });
    let status = || balancer.status_text().unwrap_or_else(|error| error.to_string());
    fits.with_context(|| format!("{length} bytes by {family:?}; {}", status()))
}

fn check_datagrams(name: &str, arms: Arms, mode: Mode) -> Result<()> {
    let site = Site::new(name, arms, mode)?;
    site.widen()?;
    let _echoes = site.start_echoes()?;
    let balancer = site.serve(&site.kinds(&[]))?;
    for family in Family::BOTH {
        for length in LENGTHS {
            for flow in 0..FLOWS {
                ask_at_length(&site.network.client, VIP.port(family, VIP_PORT), length)
                    .with_context(|| format!("{length} bytes by {family:?}, flow {flow}"))?;
            }
        }
    }
    for reason in ["fragment", "too_big"] {
        let counted = balancer.counted(reason)?;
        ensure!(counted == 0, "{counted} packets are counted as {reason}");
    }
    Ok(())
}
