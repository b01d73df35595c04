//! What comes of the probes that the daemon sends through the data path. Where replies pass through the balancer, its
//! counters tell; where they go past it, they are addressed to this machine, and a packet socket sees them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use etherparse::{
    Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice,
    icmpv4::DestUnreachableHeader,
    icmpv6::{DestUnreachableCode, ParameterProblemCode},
};
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
/// How long probes are sent at most; what is left after that is not probed.
const SENDING: Duration = Duration::from_secs(10);
/// How often it is looked whether an answer has come, at most; and no more than a fourth of the time.
const INTERVAL: Duration = Duration::from_millis(20);
const SHARE: u32 = 3;
/// No answer is longer.
const LONGEST: usize = 2048;

/// Has every backend that takes new flows probed, and tells whose answer does not come as it should.
pub async fn examine(socket: &Path, before: &Status) -> Vec<Finding> {
    let mut watch = match Watch::open() {
        Ok(watch) => watch,
        Err(error) => return vec![unseen("probes", &error)],
    };
    let services: Vec<&Service> =
        before.services.iter().filter(|service| service.protocol == "tcp").collect();
    let Sent { mut waiting, services: probed, mut findings } = send(socket, &services).await;
    if probed < services.len() {
        let seen = format!(
            "of {} TCP services only the first {probed} were probed, which took {} s",
            services.len(),
            SENDING.as_secs()
        );
        findings.push(Finding::new(Kind::CannotTell, "probes", seen));
    }
    let deadline = Instant::now() + PATIENCE;
    while !waiting.is_empty() && Instant::now() < deadline {
        let asked = Instant::now();
        watch.look();
        match client::status(socket).await {
            Ok(now) => waiting.retain(|wait| !wait.is_over(&now, &watch)),
            Err(error) => return vec![unseen("probes", &error)],
        }
        sleep(INTERVAL.max(asked.elapsed() * SHARE)).await;
    }
    for service in &services[..probed] {
        // What is not ended so ends by itself, a minute later.
        client::probe(socket, &service.name, true).await.ok();
    }
    let is_generic = before.interfaces.iter().any(|interface| interface.mode == "generic");
    findings.extend(waiting.iter().map(|wait| wait.judge(is_generic, &watch)));
    findings
}

/// Probes that are under way.
struct Sent<'s> {
    waiting: Vec<Wait<'s>>,
    /// To so many of the services.
    services: usize,
    findings: Vec<Finding>,
}

async fn send<'s>(socket: &Path, services: &[&'s Service]) -> Sent<'s> {
    let mut sent = Sent { waiting: Vec::new(), services: 0, findings: Vec::new() };
    let deadline = Instant::now() + SENDING;
    for service in services {
        if Instant::now() >= deadline {
            break;
        }
        sent.services += 1;
        match client::probe(socket, &service.name, false).await {
            Ok(probed) => {
                sent.waiting.extend(probed.sent.into_iter().filter_map(|sent| Wait::new(service, sent)));
            }
            Err(error) => sent.findings.push(unseen(&format!("service {}", service.name), &error)),
        }
    }
    sent
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
            return self.answer(watch) == Some(Answer::Accepts);
        }
        let services = now.services.iter().filter(|service| service.name == self.service.name);
        let mut backends = services.flat_map(|service| &service.backends);
        backends.any(|backend| {
            backend.name == self.backend.name && backend.reply_packets > self.backend.reply_packets
        })
    }

    fn answer(&self, watch: &Watch) -> Option<Answer> {
        watch.answers.get(&(self.sent.vip.clone(), self.sent.client.clone())).copied()
    }

    fn judge(&self, is_generic: bool, watch: &Watch) -> Finding {
        let place = place(&self.service.name, &self.backend.name);
        let SentProbe { client, vip, .. } = &self.sent;
        let sent = format!("the program sent it the first packet of a connection from {client} to {vip}");
        if is_generic {
            let seen =
                format!("{sent}, and no answer was seen; but in generic mode the packet may not have left");
            return Finding::new(Kind::CannotTell, place, seen);
        }
        if !self.backend.checked {
            let seen =
                format!("{sent}, and no answer was seen; but its health is not checked: it may be down");
            return Finding::new(Kind::CannotTell, place, seen);
        }
        if self.service.mode == "nat" {
            let seen = format!("{sent}, and its answer did not come back through the balancer");
            return Finding::new(Kind::ReplyPastBalancer, place, seen)
                .remedy("on the backend, ip route replace default via BALANCER; or mode = \"snat\"");
        }
        let (why, remedy) = self.explain(watch);
        let finding = Finding::new(Kind::ProbeUnanswered, place, format!("{sent}, and {why}"));
        match remedy {
            Some(remedy) => finding.remedy(remedy),
            None => finding,
        }
    }

    /// Its health check, which asks it at its own address, succeeds all the same.
    fn explain(&self, watch: &Watch) -> (&'static str, Option<String>) {
        let vip =
            self.sent.vip.parse::<SocketAddr>().map_or_else(|_| "VIP".to_owned(), |vip| vip.ip().to_string());
        let is_dsr = self.service.mode == "dsr";
        let ready = format!(
            "on the backend, foobar-lb decap{} IFACE --vip {vip}",
            if is_dsr { " --dsr" } else { "" }
        );
        if self.service.mode == "snat" {
            return ("it did not answer: something on the way drops packets from `snat_source`", None);
        }
        if self.answer(watch) == Some(Answer::Refuses) {
            let listen = format!("on the backend, have the server listen at {vip}, or at all addresses");
            return ("it refused the connection: it has the VIP, and nobody listens there", Some(listen));
        }
        let own = self.backend.address.parse::<SocketAddr>().map(|own| own.ip());
        if own.is_ok_and(|own| watch.refusing.contains(&own)) {
            return ("it refused the outer headers (ICMP): it lacks what takes them off", Some(ready));
        }
        match is_dsr {
            true => ("it did not answer: it lacks the VIP, or its way back leads elsewhere", Some(ready)),
            false => (
                "it did not answer, and did not refuse the outer headers either: it lacks the VIP or, if its firewall is \
                 silent, what takes them off",
                Some(ready),
            ),
        }
    }
}

/// What a server says to a connection that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Accepts,
    Refuses,
}

/// Sees the packets that come to this machine.
struct Watch {
    socket: OwnedFd,
    /// By source and destination, each an address and port.
    answers: BTreeMap<(String, String), Answer>,
    /// Hosts that have said by ICMP that they do not take what is in a packet, or that nobody listens at its UDP port.
    refusing: BTreeSet<IpAddr>,
}

impl Watch {
    fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        Ok(Self { socket, answers: BTreeMap::new(), refusing: BTreeSet::new() })
    }

    /// Takes in what has come since.
    fn look(&mut self) {
        let mut frame = [0; LONGEST];
        while let Ok(length) = recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            let Ok(packet) = SlicedPacket::from_ethernet(&frame[..length]) else { continue };
            self.answers.extend(answer(&packet));
            self.refusing.extend(refusing(&packet));
        }
    }
}

/// Where an answer comes from and goes to.
fn answer(packet: &SlicedPacket) -> Option<((String, String), Answer)> {
    let (source, destination) = addresses(packet)?;
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
    let answer = match (tcp.rst(), tcp.syn() && tcp.ack()) {
        (true, _) => Answer::Refuses,
        (_, true) => Answer::Accepts,
        _ => return None,
    };
    let end = |address, port| SocketAddr::new(address, port).to_string();
    Some(((end(source, tcp.source_port()), end(destination, tcp.destination_port())), answer))
}

/// Who refuses outer headers: an IP packet in another, or GUE's UDP port.
fn refusing(packet: &SlicedPacket) -> Option<IpAddr> {
    use DestUnreachableHeader::{Port, Protocol};
    let refuses = match packet.transport.as_ref()? {
        TransportSlice::Icmpv4(icmp) => {
            matches!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(Protocol | Port))
        }
        TransportSlice::Icmpv6(icmp) => match icmp.icmp_type() {
            Icmpv6Type::DestinationUnreachable(code) => code == DestUnreachableCode::Port,
            Icmpv6Type::ParameterProblem(problem) => {
                problem.code == ParameterProblemCode::UnrecognizedNextHeader
            }
            _ => false,
        },
        _ => false,
    };
    addresses(packet).map(|(source, _)| source).filter(|_| refuses)
}

fn addresses(packet: &SlicedPacket) -> Option<(IpAddr, IpAddr)> {
    Some(match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    })
}
