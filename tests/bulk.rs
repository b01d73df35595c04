//! Much data arrives whole.

use std::fs::File;
use std::io::{self, Read};

use anyhow::{Result, ensure};

use crate::support::balancer::Balancer;
use crate::support::config::{Service, services};
use crate::support::conversation::Protocol;
use crate::support::digest::Sha256;
use crate::support::http::Download;
use crate::support::network::{Arms, Family, Network, VIP, WEB1, WEB2};
use crate::support::nginx::Nginx;

const SIZE: u64 = 100_000_000;

#[test]
fn two_arm() -> Result<()> {
    check_download("bulk-two", Arms::Two)
}

#[test]
fn one_arm() -> Result<()> {
    check_download("bulk-one", Arms::One)
}

fn check_download(name: &str, arms: Arms) -> Result<()> {
    let network = Network::new(name, arms)?;
    let path = network.lab.directory().join("bulk");
    io::copy(&mut File::open("/dev/urandom")?.take(SIZE), &mut File::create(&path)?)?;
    let mut expected = Sha256::new()?;
    io::copy(&mut File::open(&path)?, &mut expected)?;
    let expected = expected.finish()?;
    let _web1 = Nginx::start(&network.web1, "web1", network.lab.directory())?;
    let _web2 = Nginx::start(&network.web2, "web2", network.lab.directory())?;
    let www = Family::BOTH.map(|family| {
        Service::new(&format!("www-{family:?}"), Protocol::Tcp, VIP.port(family, 80))
            .backend("web1", WEB1.port(family, 80))
            .backend("web2", WEB2.port(family, 80))
    });
    let _balancer = Balancer::serve(&network, &services(&www))?;
    for family in Family::BOTH {
        let mut download = Download::begin(&network.client, VIP.port(family, 80), "/bulk")?;
        let mut sum = Sha256::new()?;
        download.read_into(&mut sum, SIZE)?;
        ensure!(sum.finish()? == expected, "{family:?}: another sha256 than the file's");
    }
    Ok(())
}
