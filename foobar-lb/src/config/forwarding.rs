//! How packets of a service reach its backends: `mode`, the keys that belong to one mode, `mss`, and what a mode
//! asks of the backends' addresses.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use foobar_lb_ebpf::layout::Sources;
use ipnet::IpNet;
use serde_spanned::Spanned;

use super::{
    daemon::DEFAULT_SNAT_PORTS,
    report::{Problem, Problems, Span},
    service::BackendDraft,
    shape::{self, Size},
    values::{self, Fault, family},
};
use crate::{
    decap::DEFAULT_GUE_PORT,
    model::{Destination, Encapsulation, Mode, Mss, Pool, Protocol, Tunnel, is_host},
};

/// Of a service that does not say.
pub const DEFAULT_MODE: Mode = Mode::Nat;

/// From what every host has to take (RFC 9293, 3.7.1) to what the largest IPv4 packet leaves.
const SEGMENTS: RangeInclusive<u32> = 536..=65_495;

/// What a service says of it.
pub(super) struct Keys {
    pub(super) mode: shape::Text,
    pub(super) encapsulation: shape::Text,
    pub(super) gue_port: shape::Number,
    pub(super) outer_source: shape::Texts,
    pub(super) snat: shape::Text,
    pub(super) snat_source: shape::Texts,
    pub(super) direct: shape::Texts,
}

/// What could be read of that: what is absent was reported.
pub(super) struct Forwarding {
    pub(super) mode: Option<Mode>,
    pub(super) direct: Option<Vec<Spanned<IpNet>>>,
    sources: Vec<Spanned<IpNet>>,
    pool: Vec<Spanned<IpAddr>>,
}

/// The values of `mode`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Nat,
    Dsr,
    Tunnel,
    Snat,
}

/// The values of `snat`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clients {
    Nobody,
    Neighbours,
}

/// The values of `encapsulation`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrapping {
    Ipip,
    Gue,
}

const MODES: [(&str, Word); 4] =
    [("nat", Word::Nat), ("dsr", Word::Dsr), ("tunnel", Word::Tunnel), ("snat", Word::Snat)];
const CLIENTS: [(&str, Clients); 2] = [("never", Clients::Nobody), ("hairpin", Clients::Neighbours)];
const WRAPPINGS: [(&str, Wrapping); 2] = [("ipip", Wrapping::Ipip), ("gue", Wrapping::Gue)];

/// Reads the mode and what belongs to it.
pub(super) fn read(keys: Keys, problems: &mut Problems) -> Forwarding {
    let word =
        problems.read_or(keys.mode.clone(), Word::Nat, |text| values::choice(text, "mode", &MODES, &[]));
    let clients = problems
        .read_or(keys.snat.clone(), Clients::Nobody, |text| values::choice(text, "choice", &CLIENTS, &[]));
    if let (Some(word), Some(clients)) = (word, clients) {
        check_use(&keys, word, clients, problems);
    }
    let Keys { mode: _, snat: _, encapsulation, gue_port, outer_source, snat_source, direct } = keys;
    let direct = read_list(direct, values::prefix, problems);
    let pool = read_pool(snat_source, problems);
    let taken = || {
        let addresses = pool.as_ref()?.iter().map(|address| *address.get_ref()).collect();
        Some(Pool { addresses, ports: DEFAULT_SNAT_PORTS })
    };
    let mut sources = Vec::new();
    let mode = word.and_then(|word| match word {
        Word::Nat if clients? == Clients::Neighbours => taken().map(Mode::Hairpin),
        Word::Nat => Some(Mode::Nat),
        Word::Snat => taken().map(Mode::Snat),
        Word::Dsr => Some(Mode::Dsr),
        Word::Tunnel => {
            let encapsulation = read_encapsulation(encapsulation, gue_port, problems);
            sources = read_sources(outer_source, problems)?;
            let sources = sources.iter().map(|source| *source.get_ref()).collect();
            Some(Mode::Tunnel(Tunnel { encapsulation: encapsulation?, sources }))
        }
    });
    Forwarding { mode, direct, sources, pool: pool.unwrap_or_default() }
}

/// Refuses keys that would have no effect, so that nobody believes in them.
fn check_use(keys: &Keys, word: Word, clients: Clients, problems: &mut Problems) {
    let Keys { mode: _, encapsulation, gue_port, outer_source, snat, snat_source, direct } = keys;
    let name = MODES.iter().find(|(_, mode)| *mode == word).map_or("", |(name, _)| name);
    let listed =
        |list: &shape::Texts| list.as_ref().filter(|list| !list.get_ref().is_empty()).map(Spanned::span);
    let of_tunnel = [
        ("encapsulation", encapsulation.as_ref().map(Spanned::span)),
        ("gue_port", gue_port.as_ref().map(Spanned::span)),
        ("outer_source", outer_source.as_ref().map(Spanned::span)),
    ];
    let mut refuse = |key: &str, span: Option<Span>, help: &str| {
        if let Some(span) = span {
            let message = format!("`{key}` has no effect in mode `{name}`");
            problems.error(Problem::new(span, message).help(help));
        }
    };
    if word != Word::Tunnel {
        let help = "remove it, or set `mode` to `tunnel`";
        of_tunnel.into_iter().for_each(|(key, span)| refuse(key, span, help));
    }
    if word != Word::Nat {
        let why = match word {
            Word::Snat => "remove it: the balancer knows which replies are to its own packets",
            _ => "remove it: backends answer their clients past the balancer",
        };
        refuse("direct", listed(direct), why);
        let help = "remove it, or set `mode` to `nat`: it is about clients in the backends' own subnet";
        refuse("snat", snat.as_ref().map(Spanned::span), help);
    }
    if word != Word::Snat && clients == Clients::Nobody {
        let help = "remove it, or set `mode` to `snat`, or `snat` to `hairpin`";
        refuse("snat_source", listed(snat_source), help);
    }
}

fn read_encapsulation(
    section: shape::Text,
    port: shape::Number,
    problems: &mut Problems,
) -> Option<Encapsulation> {
    let wrapping = problems
        .read_or(section, Wrapping::Ipip, |text| values::choice(text, "encapsulation", &WRAPPINGS, &[]));
    let place = port.as_ref().map(Spanned::span);
    let port = problems.read_or(port, DEFAULT_GUE_PORT, |&value| values::port(value, "gue_port"));
    match (wrapping?, place) {
        (Wrapping::Gue, _) => Some(Encapsulation::Gue(port?)),
        (Wrapping::Ipip, None) => Some(Encapsulation::Ipip),
        (Wrapping::Ipip, Some(place)) => {
            let message = "`gue_port` has no effect on encapsulation `ipip`, which has no ports";
            let help = "remove it, or set `encapsulation` to `gue`";
            problems.error(Problem::new(place, message).help(help));
            None
        }
    }
}

fn read_list(
    list: shape::Texts,
    read: fn(&str) -> Result<IpNet, Fault>,
    problems: &mut Problems,
) -> Option<Vec<Spanned<IpNet>>> {
    let texts = list.map_or_else(Vec::new, Spanned::into_inner);
    // All are read before one that is wrong ends it.
    let prefixes: Vec<_> = texts.into_iter().map(|text| problems.read(text, read)).collect();
    prefixes.into_iter().collect()
}

/// No address twice, and of each family no more than there is room for.
fn read_pool(list: shape::Texts, problems: &mut Problems) -> Option<Vec<Spanned<IpAddr>>> {
    let texts = list.map_or_else(Vec::new, Spanned::into_inner);
    let addresses: Vec<_> = texts.into_iter().map(|text| problems.read(text, values::ip)).collect();
    let addresses = addresses.into_iter().collect::<Option<Vec<Spanned<IpAddr>>>>()?;
    for (index, address) in addresses.iter().enumerate() {
        let is_ipv6 = address.get_ref().is_ipv6();
        let before = || addresses[..index].iter();
        if let Some(first) = before().find(|first| first.get_ref() == address.get_ref()) {
            let message = format!("{} is already in this list", address.get_ref());
            let problem = Problem::new(address.span(), message).help("remove one of them");
            problems.error(problem.related(first.span(), "the first"));
        }
        if before().filter(|before| before.get_ref().is_ipv6() == is_ipv6).count() == Sources::MOST {
            let message = format!("more than {} {} sources", Sources::MOST, family(is_ipv6));
            let help = "remove the rest: each has tens of thousands of ports for every backend";
            problems.error(Problem::new(address.span(), message).help(help));
        }
    }
    Some(addresses)
}

/// At most one of each family.
fn read_sources(list: shape::Texts, problems: &mut Problems) -> Option<Vec<Spanned<IpNet>>> {
    let sources = read_list(list, values::source, problems)?;
    for (index, source) in sources.iter().enumerate() {
        let is_ipv6 = source.get_ref().addr().is_ipv6();
        let first = sources[..index].iter().find(|first| first.get_ref().addr().is_ipv6() == is_ipv6);
        if let Some(first) = first {
            let message = format!("a second {} source", family(is_ipv6));
            let help = "keep one prefix for each family; a shorter one has more addresses";
            problems
                .error(Problem::new(source.span(), message).help(help).related(first.span(), "the first"));
        }
    }
    Some(sources)
}

/// Reads `mss`; the inner option is absent where the key is.
pub(super) fn read_mss(
    section: Option<Spanned<Size>>,
    protocol: Protocol,
    problems: &mut Problems,
) -> Option<Option<Mss>> {
    if let (Some(section), Protocol::Udp) = (&section, protocol) {
        let message = "`mss` has no effect on a udp service: datagrams have no segments";
        let help = "remove it: who sends a datagram that does not fit is told so by an ICMP error";
        problems.error(Problem::new(section.span(), message).help(help));
    }
    problems.read_or(section, None, |size: &Size| mss(size).map(Some))
}

fn mss(size: &Size) -> Result<Mss, Fault> {
    match size {
        Size::Number(number) => {
            let bytes = values::integer(*number, "mss", SEGMENTS)
                .map_err(|fault| Fault { help: format!("{} bytes, or \"auto\"", fault.help), ..fault })?;
            Ok(Mss::Bytes(bytes.try_into().expect("the range fits")))
        }
        Size::Word(word) if word == "auto" => Ok(Mss::Auto),
        Size::Word(word) => {
            let help = "\"auto\", or a number of bytes without quotes, such as 1400";
            Err(Fault::new(format!("there is no mss {word:?}"), help))
        }
    }
}

impl Forwarding {
    /// Reports what cannot be reached this way, and outer sources that do not go with the backends.
    pub(super) fn check(
        &self,
        vip: Option<&Spanned<Destination>>,
        backends: &[BackendDraft],
        problems: &mut Problems,
    ) {
        let Some(vip) = vip else { return };
        for prefix in self.direct.iter().flatten() {
            let is_ipv6 = prefix.get_ref().addr().is_ipv6();
            check_family(vip, prefix.span(), is_ipv6, "prefix", "packets keep their family", problems);
        }
        let Some(mode) = &self.mode else { return };
        let why = match mode {
            Mode::Nat | Mode::Hairpin(_) => {
                Some("packets keep their family, except in modes `tunnel` and `snat`")
            }
            // Its MAC could be found by the other family, but not whether it takes the packets' own.
            Mode::Dsr => {
                Some("a backend's MAC is looked for, and its health checked, in the family of its packets")
            }
            Mode::Tunnel(_) | Mode::Snat(_) => None,
        };
        for address in backends.iter().flat_map(|backend| &backend.address) {
            if let Some(why) = why {
                check_family(vip, address.span(), address.get_ref().is_ipv6(), "backend", why, problems);
            }
            check_port(vip, address, mode, problems);
        }
        if mode.knows_replies_by_backend() && !is_host(&vip.get_ref().vip) {
            let message = format!("{} is a prefix, which mode `nat` cannot have as VIPs", vip.get_ref().vip);
            let help = "a backend's reply does not say which of the addresses its client asked for: use mode `snat`, or `dsr` or \
                        `tunnel`, in which backends have the addresses themselves, or a service for each address";
            problems.error(Problem::new(vip.span(), message).help(help));
        }
        self.check_sources(vip, backends, problems);
        self.check_pool(backends, problems);
    }

    /// A host drops what seems to come from itself.
    fn check_pool(&self, backends: &[BackendDraft], problems: &mut Problems) {
        let addresses = || backends.iter().flat_map(|backend| &backend.address);
        for source in &self.pool {
            let ip = *source.get_ref();
            if let Some(backend) = addresses().find(|backend| backend.get_ref().ip() == ip) {
                let message = format!("{ip} is an address of a backend");
                let help = "take an address of this machine, or one that no host has: a backend drops what seems to come \
                            from itself";
                let problem = Problem::new(source.span(), message).help(help);
                problems.error(problem.related(backend.span(), "the backend"));
            }
            if !addresses().any(|backend| backend.get_ref().is_ipv6() == ip.is_ipv6()) {
                let family = family(ip.is_ipv6());
                let message =
                    format!("no backend of this service has an {family} address, so this has no effect");
                let help =
                    "a source is of the family of the backend's address: remove it, or write one of that";
                problems.warn(Problem::new(source.span(), message).help(help));
            }
        }
    }

    /// A host drops what seems to come from itself.
    fn check_sources(&self, vip: &Spanned<Destination>, backends: &[BackendDraft], problems: &mut Problems) {
        let addresses = || backends.iter().flat_map(|backend| &backend.address);
        for source in &self.sources {
            let prefix = source.get_ref();
            let backends = addresses().map(|own| (IpNet::from(own.get_ref().ip()), own.span()));
            let mut own = backends.chain([(vip.get_ref().vip, vip.span())]);
            if let Some((own, place)) = own.find(|(own, _)| prefix.contains(own) || own.contains(prefix)) {
                let message = format!("{prefix} has {} in it, an address of a backend", own.addr());
                let help = "take a prefix that no host has addresses of, or this machine's own address: a backend drops \
                            what seems to come from itself";
                problems.error(Problem::new(source.span(), message).help(help).related(place, "the address"));
            }
            let is_ipv6 = prefix.addr().is_ipv6();
            if !addresses().any(|address| address.get_ref().is_ipv6() == is_ipv6) {
                let family = family(is_ipv6);
                let message =
                    format!("no backend of this service has an {family} address, so this has no effect");
                let help = "an outer source is of the family of the backend's address: remove it, or write one of that";
                problems.warn(Problem::new(source.span(), message).help(help));
            }
        }
    }
}

fn check_family(
    vip: &Spanned<Destination>,
    place: Span,
    is_ipv6: bool,
    what: &str,
    why: &str,
    problems: &mut Problems,
) {
    let vip_is_ipv6 = vip.get_ref().is_ipv6();
    if is_ipv6 != vip_is_ipv6 {
        let (here, there) = (family(is_ipv6), family(vip_is_ipv6));
        let message = format!("an {here} {what} in an {there} service");
        let help = format!("{why}: use {there} here, or a second service for {here}");
        problems.error(Problem::new(place, message).help(help).related(vip.span(), "the VIP"));
    }
}

/// The packet arrives with the port that the client sent it to, except in mode `nat` with one port for another.
fn check_port(
    vip: &Spanned<Destination>,
    backend: &Spanned<SocketAddr>,
    mode: &Mode,
    problems: &mut Problems,
) {
    let (port, destination) = (backend.get_ref().port(), vip.get_ref());
    let Some(exact) = destination.exact() else {
        if port != 0 && !matches!(mode, Mode::Snat(_)) {
            let message = format!("a backend with a port in a service of {destination}");
            let help = format!(
                "packets reach the backend on the port that the client sent them to: write \"{}\"",
                backend.get_ref().ip()
            );
            let problem = Problem::new(backend.span(), message).help(help);
            problems.error(problem.related(vip.span(), "the service's address"));
        }
        return;
    };
    let wanted = exact.port();
    if mode.keeps_destination() && port != wanted {
        let name = mode.name();
        let message = format!(
            "a backend on port {port} in a service on port {wanted}, which mode `{name}` cannot have"
        );
        let right = SocketAddr::new(backend.get_ref().ip(), wanted);
        let help = format!(
            "packets reach the backend as the client sent them: let it listen on port {wanted} and write \
             \"{right}\", or set `mode` to `nat`"
        );
        problems.error(
            Problem::new(backend.span(), message).help(help).related(vip.span(), "the service's port"),
        );
    }
}
