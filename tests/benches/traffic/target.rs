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
    /// Met or not, once the ratio is resolved.
    pub fn verdict(&self, ratio: Option<Ratio>) -> &'static str {
        match ratio {
            None => "not measured",
            Some(ratio) if !ratio.is_resolved() => "not resolved",
            Some(ratio) if ratio.median >= self.least => "met",
            Some(_) => "not met",
        }
    }
}
