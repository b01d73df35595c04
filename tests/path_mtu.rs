//! Path MTU discovery (RFC 1191, RFC 8201): whoever sends more than some way carries is told so, whichever end it is and
//! wherever the way is narrow, and the rest arrives.

use std::fs::{self, File};
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lab::Namespace;

use crate::support::frames::check_checksums;
use crate::support::http::{Download, upload};
use crate::support::network::{Arms, Family, Network, ROUTER, VIP, VIP_PORT};
use crate::support::site::{Mode, Site, www_name};
use crate::support::wire::Wire;

/// Between the least that IPv6 allows and what hosts send.
const NARROW: u16 = 1400;
/// Bytes that are sent either way: many times what is on its way at once.
const SIZE: usize = 8 << 20;

#[test]
fn a_narrow_link_nat_one_arm() -> Result<()> {
    check_narrow_link("mtu-nat-one", Arms::One, Mode::Nat)
}

#[test]
fn a_narrow_link_nat_two_arm() -> Result<()> {
    check_narrow_link("mtu-nat-two", Arms::Two, Mode::Nat)
}

#[test]
fn a_narrow_link_dsr() -> Result<()> {
    check_narrow_link("mtu-dsr", Arms::One, Mode::Dsr)
}

#[test]
fn a_narrow_link_ipip_over_ipv4() -> Result<()> {
    check_narrow_link("mtu-ipip-v4", Arms::One, Mode::Ipip(Family::V4))
}

#[test]
fn a_narrow_link_gue_over_ipv6() -> Result<()> {
    check_narrow_link("mtu-gue-v6", Arms::One, Mode::Gue(Family::V6))
}

#[test]
fn a_narrow_link_snat_one_arm() -> Result<()> {
    check_narrow_link("mtu-snat-one", Arms::One, Mode::Snat)
}

#[test]
fn a_narrow_link_snat_two_arm() -> Result<()> {
    check_narrow_link("mtu-snat-two", Arms::Two, Mode::Snat)
}

#[test]
fn a_tunnel_by_ipip_over_ipv4() -> Result<()> {
    check_tunnel("mtu-tunnel-ipip-v4", Arms::One, Mode::Ipip(Family::V4))
}

#[test]
fn a_tunnel_by_ipip_over_ipv6() -> Result<()> {
    check_tunnel("mtu-tunnel-ipip-v6", Arms::Two, Mode::Ipip(Family::V6))
}

#[test]
fn a_tunnel_by_gue_over_ipv4() -> Result<()> {
    check_tunnel("mtu-tunnel-gue-v4", Arms::Two, Mode::Gue(Family::V4))
}

#[test]
fn a_tunnel_by_gue_over_ipv6() -> Result<()> {
    check_tunnel("mtu-tunnel-gue-v6", Arms::One, Mode::Gue(Family::V6))
}

/// In mode `nat` the balancer sees what both ends ask for.
#[test]
fn clamped_segments_need_no_icmp() -> Result<()> {
    let network = Network::with_far_router("mtu-clamped", Arms::One, NARROW)?;
    let site = Site::of(network, Mode::Nat)?;
    let Network { client, web1, web2, .. } = &site.network;
    [client, web1, web2].into_iter().try_for_each(block_icmp)?;
    let file = write_file(&site)?;
    let _servers = site.start_nginx()?;
    let _balancer = site.serve(&site.www(&["mss = 1300"]))?;
    for family in Family::BOTH {
        let download = Download::begin(client, VIP.port(family, VIP_PORT), "/file")?;
        ensure!(download.finish()? == file, "{family:?}: the download differs from the file");
        check_upload(&site, family, &file)?;
    }
    Ok(())
}

/// Else it does not see what the backend asks for, which has to ask for less by itself.
#[test]
fn a_tunnel_to_modest_backends_needs_no_icmp() -> Result<()> {
    let mode = Mode::Gue(Family::V6);
    let site = Site::new("mtu-modest", Arms::One, mode)?;
    let Network { client, web1, web2, .. } = &site.network;
    block_icmp(client)?;
    for backend in [web1, web2] {
        for family in Family::BOTH {
            backend.ip(&format!("route replace default via {} advmss 1380", ROUTER.of(family)))?;
        }
    }
    let file = write_file(&site)?;
    let _servers = site.start_nginx()?;
    let balancer = site.serve(&site.www(&[]))?;
    for family in Family::BOTH {
        check_upload(&site, family, &file)?;
        ensure!(balancer.counted("too_big")? == 0, "{family:?}: the client sends too much");
    }
    Ok(())
}

/// Both ends send more than a link in the middle carries.
fn check_narrow_link(name: &str, arms: Arms, mode: Mode) -> Result<()> {
    let site = Site::of(Network::with_far_router(name, arms, NARROW)?, mode)?;
    let Network { client, web1, web2, .. } = &site.network;
    let file = write_file(&site)?;
    let _servers = site.start_nginx()?;
    let balancer = site.serve(&site.www(&[]))?;
    for family in Family::BOTH {
        let wires = [Wire::open(web1, "eth0")?, Wire::open(web2, "eth0")?];
        let download = Download::begin(client, VIP.port(family, VIP_PORT), "/file")?;
        let serving = download.served_by.clone();
        let [right, wrong] = if serving == "web1" { [web1, web2] } else { [web2, web1] };
        ensure!(download.finish()? == file, "{family:?}: the download differs from the file");
        for wire in wires {
            check_checksums(&wire.received()?)?;
        }
        let seen = mode.client().of(family);
        expect_learned(right, seen, NARROW)?;
        ensure!(learned(wrong, seen)?.is_none(), "{} got another's ICMP error", wrong.name());

        // The other backend knows nothing yet, and so does not ask the client for small segments.
        balancer.backend(&["disable", &www_name(family), &serving])?.expect(0, &[&serving])?;
        check_upload(&site, family, &file)?;
        expect_learned(client, VIP.of(family), NARROW)?;
    }
    Ok(())
}

/// What the client sends fits everywhere, but with outer headers it does not.
fn check_tunnel(name: &str, arms: Arms, mode: Mode) -> Result<()> {
    let site = Site::new(name, arms, mode)?;
    let file = write_file(&site)?;
    let _servers = site.start_nginx()?;
    let balancer = site.serve(&site.www(&[]))?;
    for family in Family::BOTH {
        let before = balancer.counted("too_big")?;
        check_upload(&site, family, &file)?;
        ensure!(balancer.counted("too_big")? > before, "{family:?}: nothing is counted");
        expect_learned(&site.network.client, VIP.of(family), 1500 - mode.overhead())?;
    }
    Ok(())
}

/// A file in the directory that is served.
fn write_file(site: &Site) -> Result<Vec<u8>> {
    let file = vec![0x5a; SIZE];
    fs::write(site.network.lab.directory().join("file"), &file)?;
    Ok(file)
}

fn check_upload(site: &Site, family: Family, file: &[u8]) -> Result<()> {
    let directory = site.network.lab.directory();
    let server = VIP.port(family, VIP_PORT);
    upload(&site.network.client, server, "/uploaded", &mut File::open(directory.join("file"))?)?;
    let uploaded = directory.join("uploaded");
    ensure!(fs::read(&uploaded)? == file, "{family:?}: what arrived is not what was sent");
    fs::remove_file(uploaded).context("it was there")
}

fn expect_learned(sender: &Namespace, receiver: IpAddr, mtu: u16) -> Result<()> {
    let learned = learned(sender, receiver)?;
    ensure!(
        learned == Some(mtu),
        "{} takes the MTU to {receiver} to be {learned:?}, not {mtu}",
        sender.name()
    );
    Ok(())
}

/// What a host has learned by ICMP of the way to another.
fn learned(sender: &Namespace, receiver: IpAddr) -> Result<Option<u16>> {
    let route = sender.ip(&format!("route get {receiver}"))?;
    let mtu = route.split_whitespace().skip_while(|&word| word != "mtu").nth(1);
    mtu.map(|mtu| mtu.parse().with_context(|| format!("no MTU in {route}"))).transpose()
}

/// As firewalls of the cautious do.
fn block_icmp(namespace: &Namespace) -> Result<()> {
    const RULES: &str = "table inet cautious { chain input { type filter hook input priority 0;
        icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }";
    namespace.run(["nft", "--", RULES]).map(drop)
}
