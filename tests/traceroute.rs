//! The ways that `traceroute` and `tracepath` find to a VIP: they end there, and show the balancer where a packet goes on
//! behind it. What fits on the way they tell too.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lab::Namespace;

use crate::support::config::vip_sections;
use crate::support::network::{Arms, BACKEND_GATEWAY, CLIENT_GATEWAY, Family, Network, VIP};
use crate::support::site::{Mode, Site};

const NARROW: u16 = 1400;

#[test]
fn nat_two_arm() -> Result<()> {
    check_ways("traceroute-nat-two", Arms::Two, Mode::Nat)
}

#[test]
fn nat_one_arm() -> Result<()> {
    check_ways("traceroute-nat-one", Arms::One, Mode::Nat)
}

#[test]
fn dsr_one_arm() -> Result<()> {
    check_ways("traceroute-dsr", Arms::One, Mode::Dsr)
}

#[test]
fn ipip_over_ipv6_two_arm() -> Result<()> {
    check_ways("traceroute-ipip", Arms::Two, Mode::Ipip(Family::V6))
}

#[test]
fn gue_over_ipv4_one_arm() -> Result<()> {
    check_ways("traceroute-gue", Arms::One, Mode::Gue(Family::V4))
}

#[test]
fn snat_two_arm() -> Result<()> {
    check_ways("traceroute-snat-two", Arms::Two, Mode::Snat)
}

#[test]
fn snat_one_arm() -> Result<()> {
    check_ways("traceroute-snat-one", Arms::One, Mode::Snat)
}

/// `tracepath` asks ports that no service has, and ends at the balancer.
#[test]
fn tracepath_finds_a_narrow_link() -> Result<()> {
    let site = Site::of(Network::with_far_router("tracepath", Arms::One, NARROW)?, Mode::Nat)?;
    let _echoes = site.start_echoes()?;
    let _balancer = site.serve(&(site.kinds(&[]) + &rejecting()))?;
    for family in Family::BOTH {
        let vip = VIP.of(family).to_string();
        let output = site.network.client.run(["tracepath", "-n", &vip])?;
        let last = output.lines().find(|line| line.contains(" reached"));
        let last = last.with_context(|| format!("it did not find the VIP: {output}"))?;
        ensure!(last.contains(&format!(" {vip} ")), "something else than the VIP answered: {output}");
        ensure!(output.contains(&format!("Resume: pmtu {NARROW} hops 3 ")), "{family:?}: {output}");
    }
    Ok(())
}

fn check_ways(name: &str, arms: Arms, mode: Mode) -> Result<()> {
    let site = Site::new(name, arms, mode)?;
    let client = &site.network.client;
    if let Some(router) = &site.network.router {
        allow_errors(router)?;
    }
    let _echoes = site.start_echoes()?;
    let _balancer = site.serve(&(site.kinds(&[]) + &rejecting()))?;
    for family in Family::BOTH {
        // Without a service it is the balancer that has the VIP.
        let (to_balancer, to_backend) = match arms {
            Arms::One => (&[CLIENT_GATEWAY][..], &[CLIENT_GATEWAY, BACKEND_GATEWAY][..]),
            Arms::Two => (&[][..], &[CLIENT_GATEWAY][..]),
        };
        for (options, routers) in [
            (&["-U"][..], to_balancer),
            (&["-I"], to_balancer),
            (&["-U", "-p", "80"], to_backend),
            (&["-T", "-p", "80"], to_backend),
        ] {
            let expected: Vec<_> = routers.iter().chain([&VIP]).map(|hop| hop.of(family)).collect();
            let (hops, output) = trace(client, family, options)?;
            ensure!(hops == expected, "{options:?} finds {hops:?}, not {expected:?}: {output}");
        }
        let (_, output) = trace(client, family, &["-U", "-p", "80", "--mtu"])?;
        let fits = format!("F={}", 1500 - mode.overhead());
        ensure!(output.contains(&fits), "{family:?}: it does not tell {fits}: {output}");
    }
    Ok(())
}

fn rejecting() -> String {
    vip_sections(VIP, &["unmatched = \"reject\""])
}

/// A kernel sends one client few errors in a second.
fn allow_errors(router: &Namespace) -> Result<()> {
    router.set_sysctl("net.ipv4.icmp_ratelimit", "0")?;
    router.set_sysctl("net.ipv6.icmp.ratelimit", "0")
}

/// Who answers, hop by hop, and all that `traceroute` prints.
fn trace(client: &Namespace, family: Family, options: &[&str]) -> Result<(Vec<IpAddr>, String)> {
    let vip = VIP.of(family).to_string();
    let words = [&["traceroute", "-n", "-q", "1", "-w", "1", "-m", "5"], options, &[&vip]].concat();
    let output = client.run(words)?;
    let hops = output.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap_or_default().parse());
    let hops =
        hops.collect::<Result<_, _>>().with_context(|| format!("{options:?} lacks a hop: {output}"))?;
    Ok((hops, output))
}
