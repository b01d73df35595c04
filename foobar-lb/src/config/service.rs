//! The `[[service]]` and `[[service.backend]]` sections -> [`Draft`], what one service says by itself. How
//! services get on with each other is left to `conflicts`.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use serde_spanned::Spanned;

use super::{
    Daemon,
    forwarding::{self, Forwarding, Keys},
    health, quic,
    report::{Problem, Problems, Span},
    shape::{self, Integer},
    values::{self, Fault, count},
    vip::{self, Sections},
};
use crate::{
    health::Settings,
    model::{
        Affinity, Backend, Destination, Mode, Mss, Protocol, Quic, Remember, Service, ServiceKey, Share,
        UdpDrain, WhenEmpty,
    },
    prime::{is_prime, next_prime},
};

/// Of a service that does not say.
pub const DEFAULT_PROTOCOL: Protocol = Protocol::Tcp;
/// Of a service that does not say.
pub const DEFAULT_AFFINITY: Affinity = Affinity::Flow;
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
    pub(super) address: Option<Spanned<Destination>>,
    pub(super) protocol: Option<Protocol>,
    pub(super) table_size: Option<u32>,
    pub(super) backends: Vec<BackendDraft>,
    forwarding: Forwarding,
    /// The inner option is absent where the section is.
    quic: Option<Option<Quic>>,
    affinity: Option<Affinity>,
    /// The inner option is absent where the key is.
    mss: Option<Option<Mss>>,
    transition: Option<Duration>,
    idle: Option<Duration>,
    drain_time: Option<Duration>,
    udp_drain: Option<UdpDrain>,
    remember: Option<Remember>,
    announce: bool,
    when_empty: Option<WhenEmpty>,
    /// The inner option is absent where the key is.
    max_moved: Option<Option<Share>>,
    health: Option<Settings>,
}

/// A backend as far as it could be read: what is absent was reported.
pub(super) struct BackendDraft {
    pub(super) name: Option<Spanned<String>>,
    pub(super) address: Option<Spanned<SocketAddr>>,
    weight: Option<u16>,
    /// The `[[service.backend]]` header.
    pub(super) place: Span,
    /// As it is written: what it means is said by the service.
    pub(super) quic_text: shape::Text,
    /// The inner option is absent where the key is.
    pub(super) quic_id: Option<Option<Vec<u8>>>,
}

impl Draft {
    /// What messages call it.
    pub(super) fn title(&self) -> &str {
        self.name.as_ref().map_or("?", |name| name.get_ref())
    }

    /// How many prefixes of direct clients it has.
    pub(super) fn direct_prefixes(&self) -> usize {
        self.forwarding.direct.as_ref().map_or(0, Vec::len)
    }

    /// Whether its backends' replies are known by where they come from.
    pub(super) fn rewrites_replies(&self) -> bool {
        self.forwarding.mode.as_ref().is_some_and(Mode::knows_replies_by_backend)
    }

    /// Whether a backend's neighbours get its replies.
    pub(super) fn serves_neighbours(&self) -> bool {
        matches!(self.forwarding.mode, Some(Mode::Hairpin(_)))
    }

    /// The service, if nothing is absent. `vips` have what their sections say, `daemon` what holds for all services.
    pub(super) fn build(self, vips: &Sections, daemon: &Daemon) -> Option<Service> {
        let Forwarding { mut mode, direct, .. } = self.forwarding;
        if let Some(Mode::Snat(pool) | Mode::Hairpin(pool)) = &mut mode {
            pool.ports = daemon.snat_ports.clone();
        }
        let address = self.address?.into_inner();
        Some(Service {
            name: self.name?.into_inner(),
            key: ServiceKey { address, protocol: self.protocol? },
            mode: mode?,
            table_size: self.table_size?,
            transition: self.transition?,
            idle: self.idle?,
            drain_time: self.drain_time.map(|time| (!time.is_zero()).then_some(time))?,
            udp_drain: self.udp_drain?,
            remember: self.remember?,
            direct: direct?.into_iter().map(Spanned::into_inner).collect(),
            affinity: self.affinity?,
            quic: self.quic?,
            mss: self.mss?,
            vip: vip::of(address.vip, vips),
            announce: self.announce,
            when_empty: self.when_empty?,
            max_moved: self.max_moved?.or(daemon.max_moved),
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
            quic_id: self.quic_id?,
        })
    }
}

/// Reads one service.
pub(super) fn draft(section: Spanned<shape::Service>, problems: &mut Problems) -> Draft {
    let place = section.span();
    let service = section.into_inner();
    let header = ("service", &place);
    let address =
        problems.read_required(service.address, header, "address = \"203.0.113.80:80\"", values::destination);
    let protocol = problems.read_or(service.protocol, DEFAULT_PROTOCOL, protocol);
    let known_protocol = protocol.unwrap_or(DEFAULT_PROTOCOL);
    let is_exact = address.as_ref().is_some_and(|address| address.get_ref().exact().is_some());
    let read = if is_exact { values::address } else { values::host };
    let mut backends = read_backends(service.backend, read, &place, problems);
    let quic = quic::read(service.quic, known_protocol, &mut backends, problems);
    let shape::Service { mode, encapsulation, gue_port, outer_source, snat, snat_source, direct, .. } =
        service;
    let keys = Keys { mode, encapsulation, gue_port, outer_source, snat, snat_source, direct };
    let forwarding = forwarding::read(keys, problems);
    forwarding.check(address.as_ref(), &backends, problems);
    let transition = problems.read_or(service.transition, default_transition(known_protocol), transition);
    let udp_drain = read_udp_drain(service.udp_drain, known_protocol, problems);
    Draft {
        name: problems.read_required(service.name, header, "name = \"www\"", values::name),
        forwarding,
        quic,
        affinity: problems.read_or(service.affinity, DEFAULT_AFFINITY, |text| {
            affinity(text, address.as_ref().is_some_and(|address| address.get_ref().is_ipv6()))
        }),
        mss: forwarding::read_mss(service.mss, known_protocol, problems),
        table_size: read_table_size(service.table_size, &backends, &place, problems),
        idle: problems
            .read_or(service.idle, default_idle(known_protocol, transition), |text| idle(text, transition)),
        transition,
        drain_time: problems.read_or(service.drain_time, DEFAULT_DRAIN_TIME, |text| {
            values::duration(text, "drain_time", DRAIN_TIMES)
        }),
        udp_drain,
        remember: problems.read_or(service.remember, DEFAULT_REMEMBER, remember),
        announce: service.announce.unwrap_or(DEFAULT_ANNOUNCE),
        when_empty: problems.read_or(service.when_empty, DEFAULT_WHEN_EMPTY, when_empty),
        max_moved: problems.read_or(service.max_moved, None, |text| values::share(text).map(Some)),
        health: health::validate(
            service.health,
            known_protocol,
            health::Ports::of(address.as_ref(), &backends),
            &place,
            problems,
        ),
        address,
        protocol,
        backends,
        place,
    }
}

fn protocol(text: &str) -> Result<Protocol, Fault> {
    values::choice(text, "protocol", &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)], &[])
}

/// A prefix length alone is that of the VIP's family.
fn affinity(text: &str, is_ipv6: bool) -> Result<Affinity, Fault> {
    let longest = if is_ipv6 { 128 } else { 32 };
    let Some(length) = text.strip_prefix("source/") else {
        let choices = [("flow", Affinity::Flow), ("source", Affinity::Source(longest))];
        return values::choice(text, "affinity", &choices, &[]);
    };
    match length.parse() {
        Ok(length @ 1..) if length <= longest => Ok(Affinity::Source(length)),
        _ => Err(Fault::new(
            format!("{length:?} is not the length of a prefix"),
            format!("1 to {longest}, as in \"source/{}\"", if is_ipv6 { 64 } else { 24 }),
        )),
    }
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
    read: ReadAddress,
    service: &Span,
    problems: &mut Problems,
) -> Vec<BackendDraft> {
    if sections.is_empty() {
        problems.error(
            Problem::new(service.clone(), "this service has no backend")
                .help("add a `[[service.backend]]` with a `name` and an `address`"),
        );
    }
    let backends: Vec<_> =
        sections.into_iter().map(|section| read_backend(section, read, problems)).collect();
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

/// How the addresses of a service's backends are read.
type ReadAddress = fn(&str) -> Result<SocketAddr, Fault>;

fn read_backend(
    section: Spanned<shape::Backend>,
    read: ReadAddress,
    problems: &mut Problems,
) -> BackendDraft {
    let place = section.span();
    let header = ("backend", &place);
    let shape::Backend { name, address, weight, quic_id: quic_text } = section.into_inner();
    let name = problems.read_required(name, header, "name = \"web1\"", values::name);
    let address = problems.read_required(address, header, "address = \"10.0.1.11:80\"", read);
    let weight = problems.read_or(weight, DEFAULT_WEIGHT, |&value| {
        let weight = values::integer(value, "weight", 0..=u32::from(MAX_WEIGHT))?;
        Ok(weight.try_into().expect("the range fits"))
    });
    BackendDraft { name, address, weight, place, quic_text, quic_id: Some(None) }
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
