//! What no service says by itself: names, VIPs and backend addresses that get in each other's way.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde_spanned::Spanned;

use super::{
    report::{Problem, Problems, Span},
    service::{BackendDraft, Draft},
};
use crate::{
    model::{Destination, Place, Ports, Protocol, is_host},
    wide::PrefixMap,
};

/// Hosts that share so many bits are taken for neighbours on one link, as most networks are laid out.
const SUBNET_V4: u8 = 24;
const SUBNET_V6: u8 = 64;

/// Reports every conflict, at the later of the two places.
pub(super) fn check(drafts: &[Draft], problems: &mut Problems) {
    check_names(drafts, problems);
    check_keys(drafts, problems);
    for draft in drafts {
        check_siblings(&draft.backends, problems);
    }
    check_shared_backends(drafts, problems);
    check_vips(drafts, problems);
    warn_of_shared_subnets(drafts, problems);
}

fn check_names(drafts: &[Draft], problems: &mut Problems) {
    let names = drafts.iter().flat_map(|draft| &draft.name).map(|name| (name.get_ref(), name.span()));
    for (name, first, again) in repeated(names) {
        let message = format!("service `{name}` is already defined at line {}", problems.line(&first));
        let problem = Problem::new(again, message).help("give it another name").related(first, "the first");
        problems.error(problem);
    }
}

fn check_keys(drafts: &[Draft], problems: &mut Problems) {
    let keys = || {
        drafts.iter().filter_map(|draft| {
            let address = draft.address.as_ref()?;
            Some(((draft.protocol?, *address.get_ref()), address.span()))
        })
    };
    for ((protocol, address), first, again) in repeated(keys()) {
        let message = format!("{protocol} {address} is already a service at line {}", problems.line(&first));
        let help = "give it another address or port, or add its backends to the first";
        problems.error(Problem::new(again, message).help(help).related(first, "the first"));
    }
    check_ranges(keys(), problems);
}

/// Of two ranges on one VIP the narrower wins, if the other has all of it: else nobody could tell which is meant.
fn check_ranges(keys: impl Iterator<Item = ((Protocol, Destination), Span)>, problems: &mut Problems) {
    let mut ranges: HashMap<(Protocol, IpNet), Vec<(Ports, Span)>> = HashMap::new();
    for ((protocol, Destination { vip, ports }), place) in keys.filter(|((_, address), _)| is_wide(address)) {
        let others = ranges.entry((protocol, vip)).or_default();
        let crosses = |(other, _): &&(Ports, Span)| {
            ports.overlaps(*other) && !ports.contains(*other) && !other.contains(ports)
        };
        if let Some((other, first)) = others.iter().find(crosses) {
            let both = Ports { first: ports.first.max(other.first), last: ports.last.min(other.last) };
            let message = format!(
                "ports {both} are also in {protocol} {} at line {}, which has others besides",
                Destination { vip, ports: *other },
                problems.line(first)
            );
            let help = "let the ranges be apart, or one of them within the other: it has its ports then";
            let problem = Problem::new(place.clone(), message).help(help);
            problems.error(problem.related(first.clone(), "the first"));
        }
        others.push((ports, place));
    }
}

fn is_wide(address: &Destination) -> bool {
    address.exact().is_none()
}

fn check_siblings(backends: &[BackendDraft], problems: &mut Problems) {
    let names = backends.iter().flat_map(|backend| &backend.name).map(|name| (name.get_ref(), name.span()));
    for (name, first, again) in repeated(names) {
        let message =
            format!("backend `{name}` of this service is already defined at line {}", problems.line(&first));
        let problem = Problem::new(again, message).help("give it another name").related(first, "the first");
        problems.error(problem);
    }
    let addresses = backends.iter().flat_map(|backend| &backend.address).map(|a| (a.get_ref(), a.span()));
    for (address, first, again) in repeated(addresses) {
        let message = format!(
            "{} is already a backend of this service at line {}",
            Place(*address),
            problems.line(&first)
        );
        let help = "remove one of them; a larger share is a larger `weight`";
        problems.error(Problem::new(again, message).help(help).related(first, "the first"));
    }
}

/// Replies of `nat` say nothing but where they come from, and that must name one VIP. Those of other modes come from
/// the VIP, so their backends may serve many, and a `nat` service as well.
fn check_shared_backends(drafts: &[Draft], problems: &mut Problems) {
    let mut users: HashMap<(Protocol, IpAddr), Vec<User<'_>>> = HashMap::new();
    for draft in drafts.iter().filter(|draft| draft.rewrites_replies()) {
        for address in draft.backends.iter().flat_map(|backend| &backend.address) {
            let (Some(protocol), Some(service)) = (draft.protocol, &draft.address) else { continue };
            let user = User { draft, destination: *service.get_ref(), address };
            let others = users.entry((protocol, address.get_ref().ip())).or_default();
            if let Some(other) = others.iter().find(|other| user.is_mistaken_for(other)) {
                let first = other.address.span();
                let message = format!(
                    "{protocol} {} is already a backend of service `{}` at line {}",
                    Place(*address.get_ref()),
                    other.draft.title(),
                    problems.line(&first)
                );
                let help = "in mode `nat` a reply is known by the backend's address and port alone: \
                    let the server listen on another port for this service";
                problems.error(Problem::new(address.span(), message).help(help).related(first, "the first"));
            }
            others.push(user);
        }
    }
}

/// A service that sends packets to a backend.
struct User<'d> {
    draft: &'d Draft,
    destination: Destination,
    address: &'d Spanned<SocketAddr>,
}

impl User<'_> {
    /// The ports that the backend gets its packets on, and replies from.
    fn ports(&self) -> Ports {
        match self.address.get_ref().port() {
            0 => self.destination.ports,
            port => Ports::one(port),
        }
    }

    /// Whether replies could be those of another service. Packets to one VIP that keep their ports are told apart by them.
    fn is_mistaken_for(&self, other: &Self) -> bool {
        let keeps_ports = |user: &Self| user.ports() == user.destination.ports;
        let apart = self.destination.vip == other.destination.vip
            && self.destination != other.destination
            && keeps_ports(self)
            && keeps_ports(other);
        !std::ptr::eq(self.draft, other.draft) && !apart && self.ports().overlaps(other.ports())
    }
}

/// A packet to a VIP must not be sent to a VIP: it would come back.
fn check_vips(drafts: &[Draft], problems: &mut Problems) {
    let mut vips = PrefixMap::<Option<(&Draft, Span)>>::new();
    for draft in drafts {
        if let Some(address) = &draft.address {
            vips.entry(address.get_ref().vip).get_or_insert((draft, address.span()));
        }
    }
    for address in drafts.iter().flat_map(|draft| &draft.backends).flat_map(|backend| &backend.address) {
        let ip = address.get_ref().ip();
        if let Some((vip, Some((draft, place)))) = vips.around(ip.into()).next() {
            let message = format!(
                "backend {ip} is {} of service `{}` at line {}",
                if is_host(vip) { "the VIP" } else { "one of the VIPs" },
                draft.title(),
                problems.line(place)
            );
            let help = "write the server's own address here, or another VIP there";
            problems
                .error(Problem::new(address.span(), message).help(help).related(place.clone(), "the VIP"));
        }
    }
}

/// The hosts of one subnet that are backends, and of which services.
#[derive(Default)]
struct Subnet<'a> {
    /// By service, as its place in the file.
    hosts: Vec<(usize, BTreeSet<IpAddr>)>,
    /// The first backend of each of the services.
    places: Vec<&'a Spanned<SocketAddr>>,
}

/// Where one service's backends are clients of another, as web servers are of application servers, replies
/// within a subnet take the short way. Services on the very same hosts are likely ports of the same servers.
fn warn_of_shared_subnets(drafts: &[Draft], problems: &mut Problems) {
    for (subnet, Subnet { hosts, places }) in subnets(drafts) {
        if hosts.iter().all(|(service, _)| drafts[*service].serves_neighbours()) {
            continue;
        }
        let Some(other) = hosts.iter().position(|(_, set)| *set != hosts[0].1) else { continue };
        let (first, second) = (&drafts[hosts[0].0], &drafts[hosts[other].0]);
        let message = format!(
            "services `{}` and `{}` both have backends in {subnet}: if these are on one link and a backend \
             of one is a client of the other, replies pass the balancer by and the connection fails",
            first.title(),
            second.title(),
        );
        let problem = Problem::new(places[other].span(), message)
            .help(
                "set `snat` to `hairpin` in both, or put the backends of one into another subnet, unless neither connects \
                 to the other",
            )
            .related(places[0].span(), "the first");
        problems.warn(problem);
    }
}

fn subnets(drafts: &[Draft]) -> HashMap<IpNet, Subnet<'_>> {
    let mut subnets: HashMap<IpNet, Subnet<'_>> = HashMap::new();
    for (index, draft) in drafts.iter().enumerate().filter(|(_, draft)| draft.rewrites_replies()) {
        for address in draft.backends.iter().flat_map(|backend| &backend.address) {
            let ip = address.get_ref().ip();
            let subnet = subnets.entry(subnet_of(ip)).or_default();
            if subnet.hosts.last().is_none_or(|(service, _)| *service != index) {
                subnet.hosts.push((index, BTreeSet::new()));
                subnet.places.push(address);
            }
            if let Some((_, hosts)) = subnet.hosts.last_mut() {
                hosts.insert(ip);
            }
        }
    }
    subnets
}

fn subnet_of(ip: IpAddr) -> IpNet {
    let length = if ip.is_ipv4() { SUBNET_V4 } else { SUBNET_V6 };
    IpNet::new(ip, length).expect("the length fits the family").trunc()
}

/// What occurs more than once: the value, where first, and where again.
pub(super) fn repeated<T: Copy + Eq + Hash>(values: impl Iterator<Item = (T, Span)>) -> Vec<(T, Span, Span)> {
    let mut firsts: HashMap<T, Span> = HashMap::new();
    let mut repeated = Vec::new();
    for (value, place) in values {
        match firsts.get(&value) {
            Some(first) => repeated.push((value, first.clone(), place)),
            None => {
                firsts.insert(value, place);
            }
        }
    }
    repeated
}
