//! Two thousand connections that ask all the time, and not one breaks while backends are added, drained, weighed,
//! removed, stopped, and fail and return; but for those with the one that failed.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lab::{Namespace, wait_until};

use crate::support::EVENTUALLY;
use crate::support::balancer::{Backend, Balancer, Drain};
use crate::support::config::{service_name, tcp_before_with};
use crate::support::conversation::{Protocol, expect_newcomers_at};
use crate::support::crowd::Crowd;
use crate::support::echo::Echo;
use crate::support::network::{Arms, BACKEND_PORT, Family, Network, VIP, VIP_PORT};

/// Connections of each family.
const SIZE: usize = 1000;
/// Moves end while the story goes on.
const TRANSITION: &str = "transition = \"3s\"";
const IDLE: &str = "idle = \"8s\"";
/// Patient enough not to be mistaken on a machine that is busy with the crowd.
const HEALTH: [&str; 5] =
    ["kind = \"tcp\"", "interval = \"500ms\"", "timeout = \"500ms\"", "rise = 2", "fall = 3"];

#[test]
fn no_connection_breaks() -> Result<()> {
    let mut story = Story::begin(&[(1, 1), (2, 1), (3, 1)])?;
    story.add().context("adding web4")?;
    story.drain().context("draining web2")?;
    story.weigh().context("weighing")?;
    story.remove_when_drained().context("removing web2, which has drained")?;
    story.remove_in_use().context("removing web1, which is in use")?;
    story.stop_gracefully().context("stopping web3 gracefully")?;
    story.fail().context("a failure of web4")?;
    for round in 1..=2 {
        story.everything_at_once().with_context(|| format!("everything at once, round {round}"))?;
    }
    story.end()
}

struct Story {
    crowd: Crowd,
    balancer: Balancer,
    echoes: BTreeMap<u8, Echo>,
    /// They listen no more and keep their connections.
    retired: Vec<Echo>,
    hosts: BTreeMap<u8, Namespace>,
    network: Network,
}

impl Story {
    /// All servers run, some are backends, by number and weight.
    fn begin(backends: &[(u8, u16)]) -> Result<Self> {
        let network = Network::new("consistency", Arms::Two)?;
        let mut hosts = BTreeMap::from([(1, network.web1.clone()), (2, network.web2.clone())]);
        for number in 3..=5 {
            hosts.insert(number, network.add_backend(number)?);
        }
        let start = |(number, host): (&u8, &Namespace)| {
            Ok((*number, Echo::start(host, &format!("web{number}"), BACKEND_PORT)?))
        };
        let echoes = hosts.iter().map(start).collect::<Result<_>>()?;
        let balancer = Balancer::serve(&network, &configuration(backends))?;
        let crowd = Crowd::gather(&network.client, &Family::BOTH.map(vip), SIZE)?;
        Ok(Self { crowd, balancer, echoes, retired: Vec::new(), hosts, network })
    }

    fn add(&mut self) -> Result<()> {
        self.reload(&[(1, 1), (2, 1), (3, 1), (4, 1)])?;
        self.balancer.wait_until_up("web4")?;
        self.expect_newcomers_at(&["web1", "web2", "web3", "web4"])
    }

    fn drain(&mut self) -> Result<()> {
        self.command(&["drain"], &["web2"])?;
        self.expect_newcomers_at(&["web1", "web3", "web4"])?;
        self.expect_all_seen("web2")?;
        self.wait_for_drain("web2", "to have no silent flows", |drain| drain.silent_for_seconds.is_none())?;
        self.expect_all_seen("web2")
    }

    fn weigh(&mut self) -> Result<()> {
        self.command(&["weight"], &["web3", "2"])?;
        self.expect_shares(&[("web1", 0.25), ("web3", 0.5), ("web4", 0.25)])?;
        self.crowd.wait_for_answers()?;
        self.reload(&[(1, 5), (2, 1), (3, 1), (4, 1)])?;
        self.expect_shares(&[("web1", 0.625), ("web3", 0.25), ("web4", 0.125)])?;
        self.crowd.wait_for_answers()?;
        self.crowd.expect_nothing_broken()
    }

    fn remove_when_drained(&mut self) -> Result<()> {
        self.crowd.leave("web2");
        self.wait_for_drain("web2", "to have no flows", |drain| drain.seen == Some(0))?;
        for family in Family::BOTH {
            let left = self.crowd.count(vip(family), "web2");
            ensure!(left == 0, "{left} connections to web2 that nobody has seen");
        }
        self.reload(&[(1, 1), (3, 1), (4, 1)])?;
        self.wait_until_gone(&["web2"])?;
        self.crowd.expect_again("web2");
        self.crowd.expect_nothing_broken()
    }

    fn remove_in_use(&mut self) -> Result<()> {
        self.reload(&[(2, 1), (3, 1), (4, 1)])?;
        self.balancer.wait_until_up("web2")?;
        self.expect_newcomers_at(&["web2", "web3", "web4"])?;
        self.expect_all_seen("web1")?;
        self.wait_for_drain("web1", "to have no silent flows", |drain| drain.silent_for_seconds.is_none())?;
        self.crowd.wait_for_answers()?;
        self.expect_all_seen("web1")?;
        let status = self.balancer.status()?;
        let removed = status.backends("web1").all(|backend| backend.admin == "removed");
        ensure!(removed, "web1 does not linger: {status:#?}");
        self.reload(&[(1, 1), (2, 1), (3, 1), (4, 1)])?;
        self.balancer.wait_until_up("web1")?;
        self.expect_newcomers_at(&["web1", "web2", "web3", "web4"])
    }

    fn stop_gracefully(&mut self) -> Result<()> {
        self.crowd.let_newcomers_fail(true);
        self.retire(3)?;
        self.balancer.wait_until_down("web3")?;
        self.crowd.let_newcomers_fail(false);
        self.expect_newcomers_at(&["web1", "web2", "web4"])?;
        self.crowd.wait_for_answers()?;
        ensure!(
            self.crowd.count(vip(Family::V4), "web3") > 0,
            "no connection to web3 is left, so this proves nothing"
        );
        self.restart(3)?;
        self.balancer.wait_until_up("web3")?;
        self.expect_newcomers_at(&["web1", "web2", "web3", "web4"])
    }

    fn fail(&mut self) -> Result<()> {
        self.crowd.let_newcomers_fail(true);
        self.crowd.give_up("web4");
        self.network.unplug("web4")?;
        self.balancer.wait_until_down("web4")?;
        self.crowd.let_newcomers_fail(false);
        self.expect_newcomers_at(&["web1", "web2", "web3"])?;
        wait_until(EVENTUALLY, "web4's connections to be reset", || {
            Family::BOTH.iter().all(|family| self.crowd.count(vip(*family), "web4") == 0)
        })?;
        self.network.plug_in("web4")?;
        self.balancer.wait_until_up("web4")?;
        self.crowd.expect_again("web4");
        self.expect_newcomers_at(&["web1", "web2", "web3", "web4"])
    }

    /// Waits for nothing but an answer between one change and the next; only a failure has to be noticed.
    fn everything_at_once(&mut self) -> Result<()> {
        self.change(|story| story.reload(&[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]))?;
        self.change(|story| story.command(&["drain"], &["web2"]))?;
        self.change(|story| story.command(&["weight"], &["web3", "4"]))?;
        self.change(|story| story.reload(&[(1, 3), (2, 1), (3, 1), (4, 1), (5, 1)]))?;
        self.change(|story| story.reload(&[(2, 1), (3, 1), (4, 1), (5, 1)]))?;
        self.crowd.let_newcomers_fail(true);
        self.change(|story| story.retire(3))?;
        self.crowd.give_up("web4");
        self.network.unplug("web4")?;
        self.balancer.wait_until_down("web3")?;
        self.balancer.wait_until_down("web4")?;
        self.crowd.let_newcomers_fail(false);
        self.change(|story| story.command(&["enable"], &["web2"]))?;
        self.change(|story| story.restart(3))?;
        self.network.plug_in("web4")?;
        self.change(|story| story.command(&["weight"], &["web3", "1"]))?;
        self.change(|story| story.reload(&[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]))?;
        self.change(|story| story.reload(&[(1, 1), (2, 1), (3, 1), (4, 1)]))?;
        self.balancer.wait_until_up("web4")?;
        self.crowd.expect_again("web4");
        self.crowd.expect_nothing_broken()
    }

    /// Everyone has had an answer and gone, and nothing is remembered of it.
    fn end(self) -> Result<()> {
        let Self { crowd, balancer, .. } = self;
        crowd.wait_until_whole(2 * SIZE)?;
        // At first two of three were with web1 and web3, which were stopped and removed, but never failed.
        let veterans = crowd.count_veterans();
        ensure!(veterans > SIZE, "only {veterans} connections have seen it all");
        let served = crowd.disperse()?;
        println!("{served} connections were served, {veterans} of them from the first to the last");
        balancer.wait_until("all slots to settle and all backends to be gone", |status| {
            let settled = status.services.iter().all(|service| service.slots_unsettled == 0);
            settled && status.backends("web5").next().is_none()
        })?;
        for reason in ["not_remembered", "no_backend"] {
            ensure!(balancer.counted(reason)? == 0, "{reason} is counted");
        }
        Ok(())
    }

    fn change(&mut self, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        change(self)?;
        self.crowd.wait_for_answers()?;
        self.crowd.expect_nothing_broken()
    }

    fn reload(&mut self, backends: &[(u8, u16)]) -> Result<()> {
        self.balancer.reconfigure(&configuration(backends))
    }

    /// `foobar-lb backend COMMAND SERVICE WORDS` for both services.
    fn command(&mut self, command: &[&str], words: &[&str]) -> Result<()> {
        for family in Family::BOTH {
            let service = service_name(family, Protocol::Tcp);
            self.balancer.backend(&[command, &[&service], words].concat())?.expect(0, &[])?;
        }
        Ok(())
    }

    fn retire(&mut self, number: u8) -> Result<()> {
        let mut echo = self.echoes.remove(&number).context("it runs")?;
        echo.retire();
        self.retired.push(echo);
        Ok(())
    }

    fn restart(&mut self, number: u8) -> Result<()> {
        let echo = Echo::start(&self.hosts[&number], &format!("web{number}"), BACKEND_PORT)?;
        self.echoes.insert(number, echo);
        Ok(())
    }

    /// New connections must go to exactly these.
    fn expect_newcomers_at(&self, backends: &[&str]) -> Result<()> {
        for family in Family::BOTH {
            expect_newcomers_at(&self.network.client, Protocol::Tcp, vip(family), backends)?;
        }
        self.crowd.expect_nothing_broken()
    }

    /// The flows that are remembered on a draining backend are the connections that are open to it.
    fn expect_all_seen(&self, backend: &str) -> Result<()> {
        for family in Family::BOTH {
            let service = service_name(family, Protocol::Tcp);
            let what = format!("all of the crowd at {backend} of {service} to be seen");
            self.balancer.wait_until(&what, |status| {
                let open = self.crowd.count(vip(family), backend);
                let drain = status.drain(&service, backend);
                open > 0 && drain.is_some_and(|drain| drain.seen == Some(open))
            })?;
        }
        self.crowd.expect_nothing_broken()
    }

    fn wait_for_drain(&self, backend: &str, what: &str, holds: impl Fn(&Drain) -> bool) -> Result<()> {
        self.balancer.wait_until(&format!("{backend} {what}"), |status| {
            let drains = |backend: &Backend| backend.drain.as_ref().is_some_and(&holds);
            status.backends(backend).all(drains)
        })?;
        self.crowd.expect_nothing_broken()
    }

    fn wait_until_gone(&self, backends: &[&str]) -> Result<()> {
        self.balancer.wait_until(&format!("{backends:?} to be gone"), |status| {
            backends.iter().all(|backend| status.backends(backend).next().is_none())
        })
    }

    fn expect_shares(&self, shares: &[(&str, f64)]) -> Result<()> {
        let status = self.balancer.status()?;
        for service in &status.services {
            for &(backend, wanted) in shares {
                let share = service.share(backend)?;
                ensure!((share - wanted).abs() < 0.01, "{backend} has {share} of {}", service.name);
            }
        }
        Ok(())
    }
}

fn vip(family: Family) -> SocketAddr {
    VIP.port(family, VIP_PORT)
}

fn configuration(backends: &[(u8, u16)]) -> String {
    tcp_before_with(backends, |service| service.health(&HEALTH).key(TRANSITION).key(IDLE))
}
