//! What is promised of foobar-lb beside others, and whether it was kept.

use super::contender::Contender;
use super::load::Load;
use super::statistics::Ratio;
use super::support::site::Mode;

/// Mode `nat` under this load does at least so many times what another contender does.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub load: Load,
    pub other: Contender,
    pub least: f64,
}

/// Whom targets are about.
pub const SUBJECT: Contender = Contender::FoobarLb(Mode::Nat);

pub const TARGETS: [Target; 8] = [
    Target { load: Load::KeepAlive, other: Contender::XdpRouter, least: 0.9 },
    Target { load: Load::NewConnections, other: Contender::XdpRouter, least: 0.9 },
    Target { load: Load::Downloads, other: Contender::XdpRouter, least: 0.9 },
    Target { load: Load::KeepAlive, other: Contender::Haproxy, least: 1.2 },
    Target { load: Load::NewConnections, other: Contender::Haproxy, least: 1.6 },
    Target { load: Load::Downloads, other: Contender::Haproxy, least: 1.4 },
    Target { load: Load::SmallPackets, other: Contender::XdpRouter, least: 0.9 },
    Target { load: Load::SmallPackets, other: Contender::NftablesDnat, least: 1.5 },
];

impl Target {
    /// Met or not, where a ratio is resolved or its whole interval is on one side of the target.
    pub fn verdict(&self, ratio: Option<Ratio>) -> &'static str {
        let Some(ratio) = ratio else { return "not measured" };
        let (low, high) = ratio.interval.unwrap_or((0.0, f64::INFINITY));
        if low >= self.least || ratio.is_resolved() && ratio.median >= self.least {
            "met"
        } else if high < self.least || ratio.is_resolved() {
            "not met"
        } else {
            "not resolved"
        }
    }
}
