//! What comes of the probes that the daemon sends through the data path. Where replies pass through the balancer, its
//! counters tell; where they go past it, they are addressed to this machine, and a packet socket sees them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket},
};
use tokio::time::{Instant, sleep};

use super::{Finding, Kind, network::place, unseen};
use crate::{
    api::{Backend, SentProbe, Service, Status},
    client,
};

/// How long a backend has to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether it has.
const INTERVAL: Duration = Duration::from_millis(20);
/// No answer is longer.
const LONGEST: usize = 2048;

/// Has every backend that takes new flows probed, and tells whose answer does not come as it should.
pub async fn examine(socket: &Path, before: &Status) -> Vec<Finding> {
    let mut watch = match Watch::open() {
        Ok(watch) => watch,
        Err(error) => return vec![unseen("probes", &error)],
    };
    let mut findings = Vec::new();
    let mut waiting = Vec::new();
    for service in before.services.iter().filter(|service| service.protocol == "tcp") {
        match client::probe(socket, &service.name, false).await {
            Ok(probed) => waiting.extend(probed.sent.into_iter().filter_map(|sent| Wait::new(service, sent))),
            Err(error) => findings.push(unseen(&format!("service {}", service.name), &error)),
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while !waiting.is_empty() && Instant::now() < deadline {
        sleep(INTERVAL).await;
        watch.look();
        match client::status(socket).await {
            Ok(now) => waiting.retain(|wait| !wait.is_over(&now, &watch)),
            Err(error) => return vec![unseen("probes", &error)],
        }
    }
    for service in before.services.iter().filter(|service| service.protocol == "tcp") {
        // What is not ended so ends by itself, a minute later.
        client::probe(socket, &service.name, true).await.ok();
    }
    let is_generic = before.interfaces.iter().any(|interface| interface.mode == "generic");
    findings.extend(waiting.iter().map(|wait| wait.judge(is_generic)));
    findings
}

/// A probe that is not answered yet.
struct Wait<'s> {
    service: &'s Service,
    backend: &'s Backend,
    sent: SentProbe,
}

impl<'s> Wait<'s> {
    /// None where no answer is to be expected.
    fn new(service: &'s Service, sent: SentProbe) -> Option<Self> {
        let backend = service.backends.iter().find(|backend| backend.name == sent.backend)?;
        (backend.eligible && backend.health == "up").then_some(Self { service, backend, sent })
    }

    fn is_over(&self, now: &Status, watch: &Watch) -> bool {
        if !self.service.passes_replies() {
            return watch.seen.contains(&(self.sent.vip.clone(), self.sent.client.clone()));
        }
        let services = now.services.iter().filter(|service| service.name == self.service.name);
        let mut backends = services.flat_map(|service| &service.backends);
        backends.any(|backend| {
            backend.name == self.backend.name && backend.reply_packets > self.backend.reply_packets
        })
    }

    fn judge(&self, is_generic: bool) -> Finding {
        let place = place(&self.service.name, &self.backend.name);
        let SentProbe { client, vip, .. } = &self.sent;
        let sent = format!("the program sent it the first packet of a connection from {client} to {vip}");
        if is_generic {
            let seen =
                format!("{sent}, and no answer was seen; but in generic mode the packet may not have left");
            return Finding::new(Kind::CannotTell, place, seen);
        }
        if self.service.mode == "nat" {
            let seen = format!("{sent}, and its answer did not come back through the balancer");
            return Finding::new(Kind::ReplyPastBalancer, place, seen)
                .remedy("on the backend, ip route replace default via BALANCER; or mode = \"snat\"");
        }
        let Ok(address) = vip.parse::<SocketAddr>() else {
            return Finding::new(Kind::CannotTell, place, sent);
        };
        let finding = Finding::new(Kind::ProbeUnanswered, place, format!("{sent}, and it did not answer"));
        match self.service.mode.as_str() {
            "dsr" => {
                finding.remedy(format!("on the backend, foobar-lb decap --dsr IFACE --vip {}", address.ip()))
            }
            "tunnel" => {
                finding.remedy(format!("on the backend, foobar-lb decap IFACE --vip {}", address.ip()))
            }
            _ => finding,
        }
    }
}

/// Sees the packets that come to this machine.
struct Watch {
    socket: OwnedFd,
    /// Sources and destinations of TCP packets, each an address and port.
    seen: BTreeSet<(String, String)>,
}

impl Watch {
    fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        Ok(Self { socket, seen: BTreeSet::new() })
    }

    /// Takes in what has come since.
    fn look(&mut self) {
        let mut frame = [0; LONGEST];
        while let Ok(length) = recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            self.seen.extend(ends(&frame[..length]));
        }
    }
}

/// Where a TCP packet comes from and goes to.
fn ends(frame: &[u8]) -> Option<(String, String)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let TransportSlice::Tcp(tcp) = packet.transport? else { return None };
    let end = |address, port| SocketAddr::new(address, port).to_string();
    Some((end(source, tcp.source_port()), end(destination, tcp.destination_port())))
}
