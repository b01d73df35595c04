//! Which routes to clients are learnt from this machine's kernel, and which are left to it.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use foobar_lb::neighbour::{self, NextHop, View};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::{runtime, sync::mpsc, time::timeout};

use crate::{
    kernel::{enter_network, mac, run_ip},
    packet::world::{BACKEND_SIDE, CLIENT, FAR, Family, MTU, ROUTER, WEB1, far_network, subnet},
};

const EVENTUALLY: Duration = Duration::from_secs(30);
/// More than are looked at.
const MANY: u32 = 1001;

#[test]
fn a_route_is_known_while_its_answer_is_sure() -> Result<()> {
    enter_network()?;
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (events, views) = mpsc::channel(1);
        let watch = neighbour::watch::<View>(vec![], events);
        let check = async {
            let mut kernel = Kernel { views, seen: View::default() };
            for family in Family::BOTH {
                kernel.check_changes(family).await.with_context(|| format!("{family:?}"))?;
            }
            Ok(())
        };
        tokio::select! {
            ended = watch => Err(ended.err().context("nobody ended it")?.into()),
            checked = check => checked,
        }
    })
}

/// What the kernel is seen to have.
struct Kernel {
    views: mpsc::Receiver<View>,
    seen: View,
}

impl Kernel {
    /// The route to the far network is known, and is not after each of the changes.
    async fn check_changes(&mut self, family: Family) -> Result<()> {
        let (far, router, other) = (far_network(family), ROUTER.ip(family), WEB1.ip(family));
        self.expect_known(family).await?;
        let usual = format!("route replace {far} via {router}");
        for change in [
            format!("route replace {far} nexthop via {router} nexthop via {other}"),
            format!("route replace blackhole {far}"),
            format!("route replace {far} dev eth{}", BACKEND_SIDE.index),
            format!("route replace {far} via {router} mtu 1400"),
            format!(
                "route replace {far} via {}",
                subnet(BACKEND_SIDE, family).hosts().nth(99).context("hosts")?
            ),
        ] {
            self.check_change(family, &change, &usual).await?;
        }
        let around = far.supernet().context("it has one")?;
        let backends = format!("dev eth{}", BACKEND_SIDE.index);
        for [change, undo] in [
            ["add", "del"].map(|verb| format!("route {verb} {far} via {other} metric 5000")),
            ["add", "del"].map(|verb| format!("route {verb} {around} via {other} table local")),
            ["add", "del"].map(|verb| format!("rule {verb} from {} lookup 100", CLIENT.ip(family))),
            [
                format!("neighbour del {router} {backends}"),
                format!("neighbour replace {router} lladdr {} nud permanent {backends}", mac(ROUTER.mac)),
            ],
        ] {
            self.check_change(family, &change, &undo).await?;
        }
        let many = (0..MANY).map(|number| format!("route add blackhole {}", numbered(family, number)));
        run_ip(&many.collect::<Vec<_>>())?;
        self.expect_unknown(family).await.context("many routes")
    }

    async fn check_change(&mut self, family: Family, change: &str, undo: &str) -> Result<()> {
        ip(family, change)?;
        self.expect_unknown(family).await.with_context(|| change.to_owned())?;
        ip(family, undo)?;
        self.expect_known(family).await.with_context(|| undo.to_owned())
    }

    async fn expect_known(&mut self, family: Family) -> Result<()> {
        let expected = NextHop {
            interface: BACKEND_SIDE.index,
            source: BACKEND_SIDE.balancer.mac,
            destination: ROUTER.mac,
            mtu: MTU,
            on_link: false,
            local: None,
        };
        let known = |view: &View| {
            let subnet = view.routes.iter().find(|(prefix, _)| *prefix == subnet(BACKEND_SIDE, family));
            way(view, family) == Some(expected) && subnet.is_none_or(|(_, way)| way.is_none())
        };
        self.wait_until(known).await.context("the route is not known")
    }

    async fn expect_unknown(&mut self, family: Family) -> Result<()> {
        self.wait_until(|view| way(view, family).is_none()).await.context("the route is still known")
    }

    async fn wait_until(&mut self, holds: impl Fn(&View) -> bool) -> Result<()> {
        let wait = async {
            while !holds(&self.seen) {
                self.seen = self.views.recv().await.context("nobody watches any more")?;
            }
            Ok(())
        };
        let waited = timeout(EVENTUALLY, wait).await;
        waited.with_context(|| format!("last seen: {:?}", self.seen.routes))?
    }
}

/// The way to the far client, where it is known.
fn way(view: &View, family: Family) -> Option<NextHop> {
    let (_, way) = view.routes.iter().find(|(prefix, _)| prefix.contains(&FAR.ip(family)))?;
    *way
}

/// One of many prefixes, each of another address.
fn numbered(family: Family, number: u32) -> IpNet {
    let number = number << 8;
    match family {
        Family::V4 => Ipv4Net::from(Ipv4Addr::from(0x0b00_0000 | number)).into(),
        Family::V6 => Ipv6Net::from(Ipv6Addr::from(0xfd11 << 112 | u128::from(number))).into(),
    }
}

fn ip(family: Family, words: &str) -> Result<()> {
    let option = if family == Family::V4 { "-4" } else { "-6" };
    let status = Command::new("ip").arg(option).args(words.split(' ')).status()?;
    ensure!(status.success(), "`ip {words}` failed");
    Ok(())
}
