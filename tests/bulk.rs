//! Much data arrives whole, in either direction.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::support::digest::Sha256;
use crate::support::http::{Download, upload};
use crate::support::network::{Arms, Family, VIP, VIP_PORT};
use crate::support::site::{Mode, Site};

const SIZE: u64 = 100_000_000;

#[test]
fn two_arm() -> Result<()> {
    check_transfers("bulk-two", Arms::Two, Mode::Nat)
}

#[test]
fn one_arm() -> Result<()> {
    check_transfers("bulk-one", Arms::One, Mode::Nat)
}

#[test]
fn dsr_two_arm() -> Result<()> {
    check_transfers("bulk-dsr-two", Arms::Two, Mode::Dsr)
}

#[test]
fn dsr_one_arm() -> Result<()> {
    check_transfers("bulk-dsr-one", Arms::One, Mode::Dsr)
}

#[test]
fn ipip_over_ipv4_one_arm() -> Result<()> {
    check_transfers("bulk-ipip-v4", Arms::One, Mode::Ipip(Family::V4))
}

#[test]
fn ipip_over_ipv6_two_arm() -> Result<()> {
    check_transfers("bulk-ipip-v6", Arms::Two, Mode::Ipip(Family::V6))
}

#[test]
fn gue_over_ipv4_two_arm() -> Result<()> {
    check_transfers("bulk-gue-v4", Arms::Two, Mode::Gue(Family::V4))
}

#[test]
fn gue_over_ipv6_one_arm() -> Result<()> {
    check_transfers("bulk-gue-v6", Arms::One, Mode::Gue(Family::V6))
}

#[test]
fn snat_one_arm() -> Result<()> {
    check_transfers("bulk-snat-one", Arms::One, Mode::Snat)
}

#[test]
fn snat_two_arm() -> Result<()> {
    check_transfers("bulk-snat-two", Arms::Two, Mode::Snat)
}

#[test]
fn nat64_two_arm() -> Result<()> {
    check_transfers("bulk-nat64", Arms::Two, Mode::Nat64)
}

fn check_transfers(name: &str, arms: Arms, mode: Mode) -> Result<()> {
    let site = Site::new(name, arms, mode)?;
    let client = &site.network.client;
    let path = site.network.lab.directory().join("bulk");
    io::copy(&mut File::open("/dev/urandom")?.take(SIZE), &mut File::create(&path)?)?;
    let expected = sum(&path)?;
    let _servers = site.start_nginx()?;
    let _balancer = site.serve(&site.www(&[]))?;
    for family in Family::BOTH {
        let server = VIP.port(family, VIP_PORT);
        let mut download = Download::begin(client, server, "/bulk")?;
        let mut sum_of_download = Sha256::new()?;
        download.read_into(&mut sum_of_download, SIZE).with_context(|| format!("download by {family:?}"))?;
        ensure!(sum_of_download.finish()? == expected, "{family:?}: another sha256 than the file's");

        upload(client, server, "/uploaded", &mut File::open(&path)?)?;
        let uploaded = site.network.lab.directory().join("uploaded");
        ensure!(sum(&uploaded)? == expected, "{family:?}: another sha256 than that of what was sent");
        fs::remove_file(uploaded)?;
    }
    Ok(())
}

fn sum(path: &Path) -> Result<String> {
    let mut sum = Sha256::new()?;
    io::copy(&mut File::open(path)?, &mut sum)?;
    sum.finish()
}
