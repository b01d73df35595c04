//! The kernel's routes and policy rules, as it dumps them. A route is plain if all packets of its prefix go to one
//! gateway whatever else they are; what is not sure to be is not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use super::tables::NeighbourKey;

const LOCAL: u32 = 255;
const MAIN: u32 = 254;
const DEFAULT: u32 = 253;

/// A route that packets may go by while nobody has added policy rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub prefix: IpNet,
    /// It is in the table `main`: those of the others have another rank than by their length.
    pub is_main: bool,
    /// Where all of its packets go, if it is plain.
    pub gateway: Option<NeighbourKey>,
}

/// Whether these are the rules that the kernel begins with: all routes that count are in the tables that it knows.
pub(super) fn are_default(rules: &[RuleMessage]) -> bool {
    let known: Option<Vec<(u32, u32)>> = rules.iter().map(decode_rule).collect();
    known.is_some_and(|mut known| {
        known.sort_unstable();
        // IPv6 has no table `default`.
        let expected = [(0, LOCAL), (32766, MAIN), (32767, DEFAULT)];
        known == expected || known == expected[..2]
    })
}

/// The priority of a rule that asks one table for every packet, and the table.
fn decode_rule(message: &RuleMessage) -> Option<(u32, u32)> {
    let header = &message.header;
    let for_all = header.dst_len == 0 && header.src_len == 0 && header.tos == 0;
    let plain = header.action == RuleAction::ToTable && (header.flags - RuleFlags::Permanent).is_empty();
    let (mut priority, mut table) = (0, header.table.into());
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            // No prefix is too short.
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Protocol(_) => {}
            _ => return None,
        }
    }
    (for_all && plain).then_some((priority, table))
}

/// None for one in a table that no packet's route is looked up in.
pub(super) fn decode_route(message: &RouteMessage) -> Option<Route> {
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let table = table.unwrap_or(message.header.table.into());
    let is_main = table == MAIN;
    let gateway = if is_main { decode_gateway(message) } else { None };
    [LOCAL, MAIN, DEFAULT].contains(&table).then_some(Route {
        prefix: decode_prefix(message)?,
        is_main,
        gateway,
    })
}

fn decode_prefix(message: &RouteMessage) -> Option<IpNet> {
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    IpNet::new(destination.unwrap_or(any), message.header.destination_prefix_length).ok()
}

/// None where it has no gateway, and where anything is said of it that is not known to mean nothing.
fn decode_gateway(message: &RouteMessage) -> Option<NeighbourKey> {
    let header = &message.header;
    let for_all = header.source_prefix_length == 0 && header.tos == 0;
    if header.kind != RouteType::Unicast || !for_all || !(header.flags - RouteFlags::Onlink).is_empty() {
        return None;
    }
    let (mut interface, mut gateway) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(via)) => gateway = Some(IpAddr::from(*via)),
            RouteAttribute::Gateway(RouteAddress::Inet6(via)) => gateway = Some(IpAddr::from(*via)),
            // An IPv4 prefix behind an IPv6 gateway (RFC 5549).
            RouteAttribute::Via(RouteVia::Inet6(via)) => gateway = Some(IpAddr::from(*via)),
            // One that will be gone some day is gone before the kernel says so.
            RouteAttribute::CacheInfo(info) if info.expires == 0 => {}
            RouteAttribute::Metrics(metrics) if metrics.iter().all(is_of_no_matter) => {}
            RouteAttribute::Table(_)
            | RouteAttribute::Destination(_)
            | RouteAttribute::PrefSource(_)
            | RouteAttribute::Priority(_)
            | RouteAttribute::Preference(_)
            | RouteAttribute::NhId(_) => {}
            _ => return None,
        }
    }
    Some((interface?, gateway?))
}

/// Whether it is about connections of this machine only.
fn is_of_no_matter(metric: &RouteMetric) -> bool {
    !matches!(metric, RouteMetric::Mtu(_) | RouteMetric::Lock(_) | RouteMetric::Other(_))
}
