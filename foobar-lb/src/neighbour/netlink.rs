//! What is said to the kernel and heard from it: requests, announcements, and their translation into
//! plain tables.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::pin,
};

use futures::{StreamExt, TryStream, TryStreamExt, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{
        AfSpecInet, AfSpecInet6, AfSpecUnspec, InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage, LinkXdp, VlanProtocol,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
        NeighbourState::{self, Delay, Noarp, Permanent, Probe, Reachable, Stale},
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};
use rtnetlink::{
    Handle, IpVersion, MulticastGroup, RouteMessageBuilder,
    packet_core::{NetlinkMessage, NetlinkPayload},
    sys::SocketAddr,
};
use tokio::task::JoinSet;
use tracing::debug;

use super::{
    Change, Error, Interface, Link, Vlan, XdpAttachment, XdpMode,
    mirror::{Mirrored, mirror},
    routes,
    tables::{Neighbour, NeighbourKey, Route, Tables},
};

/// More routes than these are not looked at: only the kernel knows them.
const MOST_ROUTES: usize = 1000;

/// Everything that can change a next hop.
const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
];

/// Two sockets: one for requests, one for announcements. A burst of announcements overruns only its own
/// socket, so an answer is never lost.
pub(super) struct Kernel {
    requests: Handle,
    announcements: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// The IPs of which there were too many routes.
    crowded: Vec<IpVersion>,
    /// The tasks that drive the sockets; dropping the set ends them.
    _connections: JoinSet<()>,
}

impl Kernel {
    /// Announcements are collected from here on, so what is read later misses none.
    pub fn connect() -> Result<Self, Error> {
        let (announcing, _, announcements) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(Error::Open)?;
        let (answering, requests, _) = rtnetlink::new_connection().map_err(Error::Open)?;
        let mut connections = JoinSet::new();
        connections.spawn(announcing);
        connections.spawn(answering);
        Ok(Self { requests, announcements, crowded: Vec::new(), _connections: connections })
    }

    /// Waits for the next announcement. May be cancelled without losing one.
    pub async fn next_change(&mut self) -> Result<Change, Error> {
        loop {
            let (message, _) = self.announcements.next().await.ok_or(Error::Lost)?;
            if let Some(change) = decode_change(&message.payload) {
                return Ok(change);
            }
        }
    }

    /// Reads everything. Routes of targets come last: on a lost connection a dump just ends early, but a route request
    /// fails.
    pub async fn read(&mut self, targets: &BTreeSet<IpAddr>) -> Result<Tables, Error> {
        let mut tables = Tables::default();
        for message in collect(self.requests.link().get().execute()).await? {
            tables.links.insert(message.header.index, decode_link(message));
        }
        for message in collect(self.requests.address().get().execute()).await? {
            add_address(&mut tables, &message);
        }
        for message in collect(self.requests.neighbours().get().execute()).await? {
            tables.neighbours.extend(decode_neighbour(&message));
        }
        for version in [IpVersion::V4, IpVersion::V6] {
            tables.mirrored.extend(self.mirror(version).await?);
        }
        for &target in targets {
            let route = self.route(target).await?;
            tables.routes.extend(route.map(|route| (target, route)));
        }
        Ok(tables)
    }

    /// Makes the kernel resolve a neighbour, or check one that is stale, as if it had a packet for it. Must
    /// not be used on permanent entries: it would make them ordinary ones.
    pub async fn resolve(&self, (interface, address): NeighbourKey) -> Result<(), Error> {
        let request = self.requests.neighbours().add(interface, address);
        match request.state(NeighbourState::None).flags(NeighbourFlags::Use).replace().execute().await {
            Err(error @ rtnetlink::Error::NetlinkError(_)) => {
                // The link may just have gone; the announcement of that follows, or the next attempt does.
                debug!(%address, interface, %error, "the kernel does not resolve a neighbour");
                Ok(())
            }
            Err(_) => Err(Error::Lost),
            Ok(()) => Ok(()),
        }
    }

    /// What the kernel knows of the interface called `name`.
    pub async fn interface(&self, name: &str) -> Result<Interface, Error> {
        let (mut found, mut available) = (None, Vec::new());
        for message in collect(self.requests.link().get().execute()).await? {
            let (index, xdp) = (message.header.index, decode_xdp(&message));
            let link = decode_link(message);
            if link.name == name {
                found = Some((index, xdp, link));
            } else {
                available.push(link.name);
            }
        }
        let name = name.to_owned();
        match found {
            None => Err(Error::NoInterface { name, available }),
            Some((_, _, Link { mac: None, .. })) => Err(Error::NotEthernet { name }),
            Some((index, xdp, Link { mac: Some(mac), mtu, .. })) => Ok(Interface { index, mac, mtu, xdp }),
        }
    }

    /// The routes to clients that are known for sure.
    async fn mirror(&mut self, version: IpVersion) -> Result<Vec<Mirrored>, Error> {
        // Whoever has so many has them change often, too, and each time they would all have to be read again.
        if self.crowded.contains(&version) {
            return Ok(Vec::new());
        }
        let rules = collect(pin!(self.requests.rule().get(version.clone()).execute())).await;
        // A kernel without policy rules refuses, and one without an IP has no routes of it either.
        if !rules.is_ok_and(|rules| routes::are_default(&rules)) {
            return Ok(Vec::new());
        }
        let request = match version {
            IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let mut dump = pin!(self.requests.route().get(request).execute());
        let mut routes = Vec::new();
        // To the end in any case: the socket has one dump at a time.
        while let Some(message) = dump.try_next().await.map_err(to_error)? {
            if routes.len() <= MOST_ROUTES {
                routes.extend(routes::decode_route(&message));
            }
        }
        if routes.len() > MOST_ROUTES {
            self.crowded.push(version);
            return Ok(Vec::new());
        }
        Ok(mirror(&routes))
    }

    /// The way to a target, as this machine's own packets would go: policy rules are respected.
    async fn route(&self, target: IpAddr) -> Result<Option<Route>, Error> {
        let request = match target {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
        };
        match pin!(self.requests.route().get(request).execute()).try_next().await {
            Ok(Some(message)) => Ok(decode_route(target, &message)),
            // So the kernel says blackhole, unreachable, prohibited, or that there is no route at all.
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Ok(None) | Err(_) => Err(Error::Lost),
        }
    }
}

async fn collect<S>(dump: S) -> Result<Vec<S::Ok>, Error>
where
    S: TryStream<Error = rtnetlink::Error>,
{
    dump.try_collect().await.map_err(to_error)
}

fn to_error(error: rtnetlink::Error) -> Error {
    match error {
        rtnetlink::Error::RequestFailed => Error::Lost,
        refused => Error::Refused(refused),
    }
}

/// None for what no next hop depends on.
fn decode_change(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    let (message, exists) = match payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => (message, true),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(message)) => (message, false),
        // Also an overrun: announcements were lost.
        _ => return Some(Change::Other),
    };
    let (key, neighbour) = decode_neighbour(message)?;
    Some(Change::Neighbour(key, exists.then_some(neighbour)))
}

fn decode_link(message: LinkMessage) -> Link {
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let up = message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    let vlan = decode_vlan(&message);
    let mut link = Link { up, vlan, ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) if ethernet => link.mac = mac.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::AfSpecUnspec(specific) => {
                specific.iter().for_each(|ip| set_forwarding(&mut link, ip))
            }
            _ => {}
        }
    }
    link
}

/// What an IP has set for a link.
fn set_forwarding(link: &mut Link, ip: &AfSpecUnspec) {
    match ip {
        AfSpecUnspec::Inet(settings) => {
            link.forwards_v4 = settings.iter().any(|setting| match setting {
                AfSpecInet::DevConf(conf) => conf.forwarding != 0,
                _ => false,
            });
        }
        AfSpecUnspec::Inet6(settings) => {
            let conf = settings.iter().find_map(|setting| match setting {
                AfSpecInet6::DevConf(conf) => Some(conf),
                _ => None,
            });
            link.forwards_v6 = conf.is_some_and(|conf| conf.forwarding != 0);
            link.mtu_v6 = conf.and_then(|conf| conf.mtu6.try_into().ok());
        }
        _ => {}
    }
}

/// None for a link of another kind, and for one whose parent is in another network namespace.
fn decode_vlan(message: &LinkMessage) -> Option<Vlan> {
    let (mut parent, mut tag) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkNetNsId(_) => return None,
            LinkAttribute::LinkInfo(info) => {
                tag = info.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vlan(vlan)) => decode_tag(vlan),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let (protocol, id) = tag?;
    Some(Vlan { parent: parent?, protocol, id })
}

fn decode_tag(vlan: &[InfoVlan]) -> Option<(u16, u16)> {
    let (mut tag_protocol, mut tag_id) = (VlanProtocol::default(), None);
    for attribute in vlan {
        match attribute {
            InfoVlan::Protocol(protocol) => tag_protocol = *protocol,
            InfoVlan::Id(id) => tag_id = Some(*id),
            _ => {}
        }
    }
    Some((tag_protocol.into(), tag_id?))
}

fn decode_xdp(message: &LinkMessage) -> Option<XdpAttachment> {
    let attributes = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(attributes) => Some(attributes),
        _ => None,
    })?;
    let attachments = attributes.iter().filter_map(|attribute| match *attribute {
        LinkXdp::HwProgId(program_id) => Some(XdpAttachment { program_id, mode: XdpMode::Offloaded }),
        LinkXdp::DrvProgId(program_id) => Some(XdpAttachment { program_id, mode: XdpMode::Native }),
        LinkXdp::SkbProgId(program_id) => Some(XdpAttachment { program_id, mode: XdpMode::Generic }),
        _ => None,
    });
    attachments.min_by_key(|attachment| attachment.mode)
}

fn add_address(tables: &mut Tables, message: &AddressMessage) {
    let (mut local, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            _ => {}
        }
    }
    // The prefix is that of the peer where there is one; else IPv4 repeats the address, IPv6 has no local.
    let (Some(local), Some(peer)) = (local.or(peer), peer.or(local)) else { return };
    tables.locals.insert(local);
    let link = tables.links.get_mut(&message.header.index);
    if let Some(link) = link.filter(|_| message.header.scope == AddressScope::Universe) {
        link.addresses.push(local);
    }
    let Ok(prefix) = IpNet::new(peer, message.header.prefix_len) else { return };
    if prefix.prefix_len() < prefix.max_prefix_len() || peer != local {
        tables.connected.insert((prefix.trunc(), message.header.index));
    }
}

fn decode_route(target: IpAddr, message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut interface, mut via, mut mtu, mut local) = (None, target, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => via = (*gateway).into(),
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => via = (*gateway).into(),
            // An IPv4 target behind an IPv6 gateway (RFC 5549).
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => via = (*gateway).into(),
            RouteAttribute::PrefSource(RouteAddress::Inet(source)) => local = Some((*source).into()),
            RouteAttribute::PrefSource(RouteAddress::Inet6(source)) => local = Some((*source).into()),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(Route { interface: interface?, via, mtu, local })
}

/// None for entries of other protocols than IP (a bridge's forwarding table).
fn decode_neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::from(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::from(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    let neighbour = match (message.header.state, mac) {
        (Reachable | Delay | Probe | Permanent | Noarp, Some(mac)) => Neighbour::Fresh(mac),
        (Stale, Some(mac)) => Neighbour::Stale(mac),
        _ => Neighbour::Unresolved,
    };
    Some(((message.header.ifindex, address?), neighbour))
}
