//! The `[[service]]` and `[[service.backend]]` sections -> [`Draft`], what one service says by itself. How
//! services get on with each other is left to `conflicts`.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use ipnet::IpNet;
use serde_spanned::Spanned;

use super::{
    health,
    report::{Problem, Problems, Span},
    shape::{self, Integer},
    values::{self, Fault, count, is_prime, next_prime},
};
use crate::{
    health::Settings,
    model::{Backend, Mode, Protocol, Remember, Service, ServiceKey, UdpDrain, WhenEmpty},
};

/// Of a service that does not say.
pub const DEFAULT_PROTOCOL: Protocol = Protocol::Tcp;
/// Of a service that does not say.
pub const DEFAULT_MODE: Mode = Mode::Nat;
/// In slots; good for 655 backends at 100 slots each.
pub const DEFAULT_TABLE_SIZE: u32 = 65_537;
/// How long TCP flows that are silent meanwhile outlive a change of their slot.
pub const DEFAULT_TCP_TRANSITION: Duration = Duration::from_secs(15 * 60);
/// The same for UDP.
pub const DEFAULT_UDP_TRANSITION: Duration = Duration::from_secs(3 * 60);
/// Silence after which a remembered TCP flow is forgotten, unless the transition is longer.
pub const DEFAULT_TCP_IDLE: Duration = Duration::from_secs(3600);
/// The same for UDP.
pub const DEFAULT_UDP_IDLE: Duration = Duration::from_secs(3 * 60);
/// How long known flows may stay on a draining backend.
pub const DEFAULT_DRAIN_TIME: Duration = Duration::from_secs(3600);
/// What becomes of UDP flows that are not remembered.
pub const DEFAULT_UDP_DRAIN: UdpDrain = UdpDrain::Keep;
/// Which flows are remembered.
pub const DEFAULT_REMEMBER: Remember = Remember::Needed;
/// Whether the balancer answers for the VIP on the link.
pub const DEFAULT_ANNOUNCE: bool = false;
/// What new flows get when no backend is eligible.
pub const DEFAULT_WHEN_EMPTY: WhenEmpty = WhenEmpty::FailOpen;
/// Of a backend that does not say.
pub const DEFAULT_WEIGHT: u16 = 1;

const TRANSITIONS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const LONGEST_IDLE: Duration = Duration::from_secs(7 * 24 * 3600);
const DRAIN_TIMES: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(30 * 24 * 3600);
/// The largest share of new flows.
pub const MAX_WEIGHT: u16 = 1000;

/// Up to the largest prime for which there can be room.
const TABLE_SIZES: RangeInclusive<u32> = 2..=268_435_399;

/// With fewer slots each, shares may be off their weights by more than a percent.
const SLOTS_PER_BACKEND: u32 = 100;

/// A service as far as it could be read: what is absent was reported.
pub(super) struct Draft {
    /// The `[[service]]` header.
    pub(super) place: Span,
    pub(super) name: Option<Spanned<String>>,
    pub(super) address: Option<Spanned<SocketAddr>>,
    pub(super) protocol: Option<Protocol>,
    pub(super) table_size: Option<u32>,
    pub(super) backends: Vec<BackendDraft>,
    mode: Option<Mode>,
    transition: Option<Duration>,
    idle: Option<Duration>,
    drain_time: Option<Duration>,
    udp_drain: Option<UdpDrain>,
    remember: Option<Remember>,
    direct: Option<Vec<IpNet>>,
    announce: bool,
    when_empty: Option<WhenEmpty>,
    health: Option<Settings>,
}

/// A backend as far as it could be read: what is absent was reported.
pub(super) struct BackendDraft {
    pub(super) name: Option<Spanned<String>>,
    pub(super) address: Option<Spanned<SocketAddr>>,
    weight: Option<u16>,
}

impl Draft {
    /// What messages call it.
    pub(super) fn title(&self) -> &str {
        self.name.as_ref().map_or("?", |name| name.get_ref())
    }

    /// How many prefixes of direct clients it has.
    pub(super) fn direct_prefixes(&self) -> usize {
        self.direct.as_ref().map_or(0, Vec::len)
    }

    /// The service, if nothing is absent.
    pub(super) fn build(self) -> Option<Service> {
        Some(Service {
            name: self.name?.into_inner(),
            key: ServiceKey { address: self.address?.into_inner(), protocol: self.protocol? },
            mode: self.mode?,
            table_size: self.table_size?,
            transition: self.transition?,
            idle: self.idle?,
            drain_time: self.drain_time.map(|time| (!time.is_zero()).then_some(time))?,
            udp_drain: self.udp_drain?,
            remember: self.remember?,
            direct: self.direct?,
            announce: self.announce,
            when_empty: self.when_empty?,
            health: self.health?,
            backends: self.backends.into_iter().map(BackendDraft::build).collect::<Option<_>>()?,
        })
    }
}

impl BackendDraft {
    fn build(self) -> Option<Backend> {
        Some(Backend {
            name: self.name?.into_inner(),
            address: self.address?.into_inner(),
            weight: self.weight?,
        })
    }
}

/// Reads one service.
pub(super) fn draft(section: Spanned<shape::Service>, problems: &mut Problems) -> Draft {
    let place = section.span();
    let service = section.into_inner();
    let header = ("service", &place);
    let address =
        problems.read_required(service.address, header, "address = \"203.0.113.80:80\"", values::address);
    let protocol = problems.read_or(service.protocol, DEFAULT_PROTOCOL, protocol);
    let known_protocol = protocol.unwrap_or(DEFAULT_PROTOCOL);
    let backends = read_backends(service.backend, &place, address.as_ref(), problems);
    let transition = problems.read_or(service.transition, default_transition(known_protocol), transition);
    let udp_drain = read_udp_drain(service.udp_drain, known_protocol, problems);
    Draft {
        name: problems.read_required(service.name, header, "name = \"www\"", values::name),
        mode: problems.read_or(service.mode, DEFAULT_MODE, mode),
        table_size: read_table_size(service.table_size, &backends, &place, problems),
        idle: problems
            .read_or(service.idle, default_idle(known_protocol, transition), |text| idle(text, transition)),
        transition,
        drain_time: problems.read_or(service.drain_time, DEFAULT_DRAIN_TIME, |text| {
            values::duration(text, "drain_time", DRAIN_TIMES)
        }),
        udp_drain,
        remember: problems.read_or(service.remember, DEFAULT_REMEMBER, remember),
        direct: read_direct(service.direct, address.as_ref(), problems),
        announce: service.announce.unwrap_or(DEFAULT_ANNOUNCE),
        when_empty: problems.read_or(service.when_empty, DEFAULT_WHEN_EMPTY, when_empty),
        health: health::validate(service.health, known_protocol, &place, problems),
        address,
        protocol,
        backends,
        place,
    }
}

fn protocol(text: &str) -> Result<Protocol, Fault> {
    values::choice(text, "protocol", &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)], &[])
}

fn mode(text: &str) -> Result<Mode, Fault> {
    values::choice(text, "mode", &[("nat", Mode::Nat)], &["snat", "dsr", "tunnel"])
}

fn when_empty(text: &str) -> Result<WhenEmpty, Fault> {
    let choices = [("fail-open", WhenEmpty::FailOpen), ("refuse", WhenEmpty::Refuse)];
    values::choice(text, "behaviour", &choices, &[])
}

fn read_udp_drain(section: shape::Text, protocol: Protocol, problems: &mut Problems) -> Option<UdpDrain> {
    let place = section.as_ref().map(Spanned::span);
    let choices = [("keep", UdpDrain::Keep), ("switch", UdpDrain::Switch)];
    let udp_drain = problems
        .read_or(section, DEFAULT_UDP_DRAIN, |text| values::choice(text, "way to drain", &choices, &[]));
    if let (Protocol::Tcp, Some(UdpDrain::Switch), Some(place)) = (protocol, udp_drain, place) {
        let problem = Problem::new(place, "`udp_drain` has no effect on a tcp service")
            .help("leave it out: the SYN of a TCP flow shows that it is new");
        problems.warn(problem);
    }
    udp_drain
}

fn remember(text: &str) -> Result<Remember, Fault> {
    values::choice(text, "choice", &[("needed", Remember::Needed), ("all", Remember::All)], &[])
}

fn transition(text: &str) -> Result<Duration, Fault> {
    let consequence = match humantime::parse_duration(text) {
        Ok(duration) if duration < *TRANSITIONS.start() => {
            ": every change of the table would break the flows of the slots that change"
        }
        Ok(duration) if duration > *TRANSITIONS.end() => {
            ": a slot that changes would remember its flows for all that time"
        }
        _ => "",
    };
    values::duration(text, "transition", TRANSITIONS)
        .map_err(|fault| Fault { message: fault.message + consequence, ..fault })
}

fn idle(text: &str, transition: Option<Duration>) -> Result<Duration, Fault> {
    let least = transition.unwrap_or(*TRANSITIONS.start());
    let consequence = match humantime::parse_duration(text) {
        Ok(duration) if duration < least => ": a flow would be forgotten while its slot still moves",
        _ => "",
    };
    values::duration(text, "idle", least..=LONGEST_IDLE)
        .map_err(|fault| Fault { message: fault.message + consequence, ..fault })
}

/// No flow is forgotten while its slot moves.
fn default_idle(protocol: Protocol, transition: Option<Duration>) -> Duration {
    let idle = match protocol {
        Protocol::Tcp => DEFAULT_TCP_IDLE,
        Protocol::Udp => DEFAULT_UDP_IDLE,
    };
    transition.map_or(idle, |transition| idle.max(transition))
}

fn default_transition(protocol: Protocol) -> Duration {
    match protocol {
        Protocol::Tcp => DEFAULT_TCP_TRANSITION,
        Protocol::Udp => DEFAULT_UDP_TRANSITION,
    }
}

fn read_backends(
    sections: Vec<Spanned<shape::Backend>>,
    service: &Span,
    vip: Option<&Spanned<SocketAddr>>,
    problems: &mut Problems,
) -> Vec<BackendDraft> {
    if sections.is_empty() {
        problems.error(
            Problem::new(service.clone(), "this service has no backend")
                .help("add a `[[service.backend]]` with a `name` and an `address`"),
        );
    }
    let backends: Vec<_> = sections.into_iter().map(|section| read_backend(section, vip, problems)).collect();
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == Some(0)) {
        problems.warn(
            Problem::new(
                service.clone(),
                "every backend of this service has weight 0: its new flows are dropped, known ones stay",
            )
            .help("give one of them a weight of 1 or more"),
        );
    }
    backends
}

fn read_backend(
    section: Spanned<shape::Backend>,
    vip: Option<&Spanned<SocketAddr>>,
    problems: &mut Problems,
) -> BackendDraft {
    let place = section.span();
    let header = ("backend", &place);
    let shape::Backend { name, address, weight } = section.into_inner();
    let name = problems.read_required(name, header, "name = \"web1\"", values::name);
    let address = problems.read_required(address, header, "address = \"10.0.1.11:80\"", values::address);
    if let (Some(vip), Some(address)) = (vip, &address) {
        check_family(vip, address.span(), address.get_ref().is_ipv6(), "backend", problems);
    }
    let weight = problems.read_or(weight, DEFAULT_WEIGHT, |&value| {
        let weight = values::integer(value, "weight", 0..=u32::from(MAX_WEIGHT))?;
        Ok(weight.try_into().expect("the range fits"))
    });
    BackendDraft { name, address, weight }
}

fn check_family(vip: &Spanned<SocketAddr>, place: Span, is_ipv6: bool, what: &str, problems: &mut Problems) {
    let family = |is_ipv6| if is_ipv6 { "IPv6" } else { "IPv4" };
    let vip_is_ipv6 = vip.get_ref().is_ipv6();
    if is_ipv6 != vip_is_ipv6 {
        let message = format!("an {} {what} in an {} service", family(is_ipv6), family(vip_is_ipv6));
        let help = format!(
            "packets keep their family: use {} here, or a second service for {}",
            family(vip_is_ipv6),
            family(is_ipv6)
        );
        problems.error(Problem::new(place, message).help(help).related(vip.span(), "the VIP"));
    }
}

fn read_direct(
    sections: Vec<Spanned<String>>,
    vip: Option<&Spanned<SocketAddr>>,
    problems: &mut Problems,
) -> Option<Vec<IpNet>> {
    let read = |section: Spanned<String>| {
        let place = section.span();
        let prefix = problems.read(section, values::prefix)?;
        if let Some(vip) = vip {
            check_family(vip, place, matches!(prefix.get_ref(), IpNet::V6(_)), "prefix", problems);
        }
        Some(prefix.into_inner())
    };
    let read: Vec<_> = sections.into_iter().map(read).collect();
    read.into_iter().collect()
}

/// The size of the table is a prime and has a slot for every backend that has a weight.
fn read_table_size(
    section: shape::Number,
    backends: &[BackendDraft],
    service: &Span,
    problems: &mut Problems,
) -> Option<u32> {
    let place = section.as_ref().map_or(service.clone(), Spanned::span);
    let size = problems.read_or(section, DEFAULT_TABLE_SIZE, table_size)?;
    // A weight of 0 may be changed while the daemon runs.
    let owners = u32::try_from(backends.len()).expect("a file has fewer bytes than that");
    let enough = owners * SLOTS_PER_BACKEND;
    let what = format!("a table of {} for {}", count(size, "slot"), count(owners, "backend"));
    let help = format!("set `table_size` to {} or a larger prime", next_prime(enough));
    if size < owners {
        problems.error(Problem::new(place, format!("{what}: each needs at least one")).help(help));
    } else if size < enough {
        let message = format!("{what}: shares may be off their weights by more than a percent");
        problems.warn(Problem::new(place, message).help(help));
    }
    Some(size)
}

fn table_size(value: &Integer) -> Result<u32, Fault> {
    let size = values::integer(*value, "table_size", TABLE_SIZES)?;
    if !is_prime(size) {
        let help = format!("the next prime is {}", next_prime(size));
        return Err(Fault::new(format!("table_size {size} is not a prime"), help));
    }
    Ok(size)
}
