//! What the operator said outlives the daemon: it is restarted, crashes, finds its file damaged, or cannot write it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::wait_until;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::support::EVENTUALLY;
use crate::support::SOON;
use crate::support::balancer::{Balancer, Saying};
use crate::support::config::tcp_before;
use crate::support::conversation::{Protocol, connect, expect_newcomers_at};
use crate::support::echo::start_pair;
use crate::support::network::{Arms, Family, Network, VIP, VIP_PORT};

const PAIR: [(u8, u16); 2] = [(1, 1), (2, 1)];

#[test]
fn it_survives_a_restart_and_a_crash() -> Result<()> {
    let network = Network::new("word-restart", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let services = tcp_before(&PAIR, &[]);
    let balancer = Balancer::serve(&network, &services)?;
    balancer.backend(&["drain", "tcp-v4", "web1"])?.expect(0, &["web1 of tcp-v4: draining"])?;
    balancer.backend(&["weight", "tcp-v6", "web2", "7"])?.expect(0, &["weight 7"])?;
    balancer.command(&["service", "disable", "tcp-v6"])?.expect(0, &["tcp-v6: disabled"])?;
    let said = said_of_web1(&balancer)?.context("nothing was said")?;
    ensure!(said.word == "draining" && said.by.starts_with("root") && said.until.is_none(), "{said:?}");
    balancer.stop(Signal::SIGTERM)?;

    let mut balancer = attach(&network, &services)?;
    expect_words(&network, &balancer, &said)?;
    balancer.process.kill()?;

    let balancer = attach(&network, &services)?;
    expect_words(&network, &balancer, &said)?;
    let text = balancer.status_text()?;
    for words in ["web1: draining said by root", "the configuration says enabled", "DISABLED by root"] {
        ensure!(text.contains(words), "the status does not say {words:?}:\n{text}");
    }
    balancer.command(&["service", "enable", "tcp-v6"])?.expect(0, &["tcp-v6: enabled"])?;
    balancer.backend(&["enable", "tcp-v4", "web1"])?.expect(0, &[])?;
    balancer.stop(Signal::SIGTERM)?;
    let balancer = Balancer::serve(&network, &services)?;
    ensure!(said_of_web1(&balancer)?.is_none(), "what was taken back counts again");
    let disabled = connect(&network.client, VIP.port(Family::V6, VIP_PORT), SOON)?;
    ensure!(disabled.is_ok(), "the service is not enabled: {disabled:?}");
    Ok(())
}

#[test]
fn it_lapses_when_its_time_is_over() -> Result<()> {
    let network = Network::new("word-lapse", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let services = tcp_before(&PAIR, &[]);
    let mut balancer = Balancer::serve(&network, &services)?;
    balancer.backend(&["enable", "tcp-v4", "web1", "--for", "1m"])?.expect(2, &["--for"])?;
    balancer.backend(&["drain", "tcp-v4", "web1", "--for", "soon"])?.expect(2, &["--for"])?;
    balancer.backend(&["drain", "tcp-v4", "web1", "--for", "6s"])?.expect(0, &["draining, until "])?;
    balancer.process.kill()?;
    let balancer = attach(&network, &services)?;
    let said = said_of_web1(&balancer)?.context("it has not survived")?;
    ensure!(said.until.is_some(), "{said:?}");
    balancer.wait_until_serving()?;
    ensure!(said_of_web1(&balancer)?.is_none(), "it has not lapsed");
    expect_newcomers_at(&network.client, Protocol::Tcp, VIP.port(Family::V4, VIP_PORT), &["web1", "web2"])
}

#[test]
fn a_damaged_file_is_set_aside_and_no_reason_not_to_start() -> Result<()> {
    let network = Network::new("word-damaged", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let services = tcp_before(&PAIR, &[]);
    let balancer = Balancer::serve(&network, &services)?;
    balancer.backend(&["drain", "tcp-v4", "web1"])?.expect(0, &[])?;
    let file = balancer.state_path().join("words");
    balancer.stop(Signal::SIGTERM)?;
    let mut bytes = fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes)?;

    let balancer = Balancer::serve(&network, &services)?;
    let lost = balancer.status()?.words_lost.context("nothing is said to be lost")?;
    ensure!(lost.contains("checksum") && lost.contains("words.damaged"), "{lost}");
    ensure!(fs::read(file.with_extension("damaged"))? == bytes, "it is not kept aside");
    ensure!(balancer.status_text()?.contains("FORGOTTEN"), "{}", balancer.status_text()?);
    balancer.backend(&["drain", "tcp-v4", "web1"])?.expect(0, &[])
}

#[test]
fn a_full_or_read_only_disk_does_not_keep_it_from_counting() -> Result<()> {
    let network = Network::new("word-full", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let services = tcp_before(&PAIR, &[]);
    let disk = Disk::mount(&network.balancer.directory().join("word-full-balancer-foobar-lb/state"))?;
    let balancer = Balancer::serve(&network, &services)?;
    ensure!(balancer.state_path() == disk.0, "the disk is not where the words are: {:?}", disk.0);
    let vip = VIP.port(Family::V4, VIP_PORT);

    disk.fill()?;
    let warned = balancer.backend(&["drain", "tcp-v4", "web1"])?;
    warned.expect(0, &["warning: this will not count any more when foobar-lb has ended", "No space left"])?;
    expect_newcomers_at(&network.client, Protocol::Tcp, vip, &["web2"])?;
    let unkept = balancer.status()?.words_unkept.context("the status does not tell")?;
    ensure!(unkept.contains("No space left"), "{unkept}");
    ensure!(balancer.status_text()?.contains("NOT KEPT"), "{}", balancer.status_text()?);
    disk.empty()?;
    balancer.wait_until("the words to be kept", |status| status.words_unkept.is_none())?;

    disk.remount(MsFlags::MS_RDONLY)?;
    let warned = balancer.backend(&["weight", "tcp-v4", "web2", "3"])?;
    warned.expect(0, &["warning: this will not count any more", "Read-only"])?;
    balancer.stop(Signal::SIGTERM)?;
    disk.remount(MsFlags::empty())?;
    // What was kept before counts again.
    let balancer = attach(&network, &services)?;
    ensure!(said_of_web1(&balancer)?.is_some(), "the drain is lost");
    let weight = balancer.status()?.service("tcp-v4")?.backend("web2")?.weight;
    ensure!(weight == 1, "the weight was kept: {weight}");
    Ok(())
}

fn attach(network: &Network, services: &str) -> Result<Balancer> {
    Balancer::attach(&network.balancer, network.interfaces, services, &["--sysctl"])
}

fn said_of_web1(balancer: &Balancer) -> Result<Option<Saying>> {
    Ok(balancer.status()?.service("tcp-v4")?.backend("web1")?.admin_said.clone())
}

/// What was said before must count, as it was said.
fn expect_words(network: &Network, balancer: &Balancer, said: &Saying) -> Result<()> {
    balancer.wait_until_up("web2").or_else(|_| balancer.wait_until_serving())?;
    let again = said_of_web1(balancer)?;
    ensure!(again.as_ref() == Some(said), "{said:?} has become {again:?}");
    let status = balancer.status()?;
    let web1 = status.service("tcp-v4")?.backend("web1")?;
    ensure!(web1.admin == "draining" && web1.admin_configured == "enabled", "{web1:?}");
    let web2 = status.service("tcp-v6")?.backend("web2")?;
    ensure!(web2.weight == 7 && web2.weight_said.is_some(), "{web2:?}");
    expect_newcomers_at(&network.client, Protocol::Tcp, VIP.port(Family::V4, VIP_PORT), &["web2"])?;
    let before = balancer.counted("no_service")?;
    let disabled = connect(&network.client, VIP.port(Family::V6, VIP_PORT), Duration::from_millis(300))?;
    ensure!(disabled.is_err(), "a disabled service answers");
    wait_until(EVENTUALLY, "the packet to be counted", || {
        balancer.counted("no_service").is_ok_and(|now| now > before)
    })
}

/// A small file system of its own.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)?;
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("size=64k"))?;
        Ok(Self(path.to_owned()))
    }

    fn remount(&self, flags: MsFlags) -> Result<()> {
        Ok(mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>)?)
    }

    fn fill(&self) -> Result<()> {
        let filled = fs::write(self.filler(), vec![0; 1 << 20]);
        ensure!(filled.is_err(), "the disk is larger than meant");
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}
