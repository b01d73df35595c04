//! Much data arrives whole.

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::support::balancer::Balancer;
use crate::support::config::{Service, services};
use crate::support::conversation::Protocol;
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
    let mut random = std::io::Read::take(File::open("/dev/urandom")?, SIZE);
    std::io::copy(&mut random, &mut File::create(&path)?)?;
    let expected = sha256(&fs::read(&path)?)?;
    let _web1 = Nginx::start(&network.web1, "web1", network.lab.directory())?;
    let _web2 = Nginx::start(&network.web2, "web2", network.lab.directory())?;
    let www = Family::BOTH.map(|family| {
        Service::new(&format!("www-{family:?}"), Protocol::Tcp, VIP.port(family, 80))
            .backend("web1", WEB1.port(family, 80))
            .backend("web2", WEB2.port(family, 80))
    });
    let _balancer = Balancer::serve(&network, &services(&www))?;
    for family in Family::BOTH {
        let body = Download::begin(&network.client, VIP.port(family, 80), "/bulk")?.finish()?;
        ensure!(body.len() as u64 == SIZE, "{family:?}: {} bytes came", body.len());
        ensure!(sha256(&body)? == expected, "{family:?}: another sha256 than the file's");
    }
    Ok(())
}

fn sha256(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("stdin is piped")?.write_all(bytes)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "sha256sum ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
