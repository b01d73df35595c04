//! Going on from what the maps hold, as the daemon before left it: which services there are, who owns their slots, which
//! backends they have and how these were. Then the configuration takes the place of what was recalled, as in any reload,
//! so a restart is no case of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use foobar_lb_ebpf::layout::{self, Endpoint, Member, VLAN_DEVICE, member_health};

use super::{
    Backend, Groups, Refusal, Room, Service, State,
    render::{affinity_mask, mode_number},
    vips::find_vip,
};
use crate::{
    health::{Report, Target},
    image::{Image, endpoint, range_prefixes},
    model::{self, Down, Health, Place},
    neighbour,
    slots::Table,
};

/// What a daemon that takes over begins with.
pub struct Recalled {
    /// The state, in which nothing but the network is unknown.
    pub state: State,
    /// Names of services that have another mode, affinity or table size now: their flows begin anew.
    pub begun_anew: Vec<String>,
}

impl State {
    /// Goes on from what the maps hold. The clocks of moves and drains begin anew.
    ///
    /// # Errors
    /// When there is no room for what is new beside what has to linger.
    pub fn take_over(
        services: Vec<model::Service>,
        seed: u64,
        image: &Image,
        room: Room,
        now: Instant,
    ) -> Result<Recalled, Refusal> {
        let mut state = Self::empty(seed);
        let mut tables = tables(image);
        let mut begun_anew = Vec::new();
        for config in &services {
            let Some(record) = find_record(config, image) else { continue };
            if !goes_on(config, &record) {
                begun_anew.push(config.name.clone());
            } else if let Some(table) = tables.remove(&record.first_slot) {
                state.services.push(Service::recalled(config, &record, &table, image, now));
            }
        }
        state.groups = Groups::recalled(services.iter().map(|config| config.key.address.vip), image);
        let known: BTreeSet<u32> = state.backends().map(|backend| backend.id).collect();
        let unknown = image.members.keys().chain(image.backends.keys()).filter(|id| !known.contains(id));
        state.retired = unknown.map(|id| (*id, None)).collect();
        let regions = tables.into_iter().map(|(first, slots)| first..first + slots.len() as u32);
        state.left = regions.map(|region| (region, None)).collect();
        state.reconfigure(services, room)?;
        // Of the network nothing has been seen yet.
        for backend in state.backends_mut() {
            let record = image.backends.get(&backend.id);
            backend.next_hop = record.and_then(|record| recalled_next_hop(backend.id, record, image));
        }
        Ok(Recalled { state, begun_anew })
    }
}

/// The slots of all tables that a service has, by the index of the first.
fn tables(image: &Image) -> BTreeMap<u32, std::sync::Arc<[layout::Slot]>> {
    let records = image.services.values().chain(image.ranges.values());
    records
        .filter_map(|record| Some((record.first_slot, image.tables.get(&record.first_slot)?.clone())))
        .collect()
}

fn find_record(config: &model::Service, image: &Image) -> Option<layout::Service> {
    let destination = config.key.address;
    if let Some(exact) = destination.exact() {
        return image.services.get(&endpoint(exact, config.key.protocol)).copied();
    }
    let group = find_vip(&destination.vip, image)?.group;
    let mut prefixes = range_prefixes(group, config.key.protocol, destination.ports);
    prefixes.find_map(|prefix| image.ranges.get(&prefix).copied())
}

/// Whether flows that the record's table has are at home in the configured service.
fn goes_on(config: &model::Service, record: &layout::Service) -> bool {
    record.slots == config.table_size
        && record.mode == mode_number(&config.mode)
        && record.affinity == affinity_mask(config.affinity, config.key.address.is_ipv6())
}

impl Service {
    fn recalled(
        config: &model::Service,
        record: &layout::Service,
        slots: &[layout::Slot],
        image: &Image,
        now: Instant,
    ) -> Self {
        let of_table = |(_, member): &(&u32, &Member)| member.table == record.first_slot;
        let members = image.members.iter().filter(of_table);
        let recall = |(id, member): (&u32, &Member)| {
            let record = image.backends.get(id)?;
            Some(Backend::recalled(config, *id, *member, record, image, now))
        };
        let backends: Vec<Backend> = members.filter_map(recall).collect();
        let is_listed = |backend: &Backend| {
            let replies = image.replies.values().chain(image.reply_ranges.values());
            replies
                .filter(|reply| reply.backend == backend.id)
                .map(|reply| reply.direct)
                .find(|list| *list != 0)
        };
        let list = backends.iter().find_map(is_listed).unwrap_or(record.quic.list);
        let owners: BTreeSet<u32> = slots.iter().map(|slot| slot.owner).collect();
        let cold_start =
            backends.iter().any(|backend| backend.is_unmeasured() && owners.contains(&backend.id));
        let known = backends.iter().map(|backend| backend.config.clone()).collect();
        Self {
            table: Table::recalled(record.first_slot, slots, now),
            backends,
            members: Vec::new(),
            holding: BTreeSet::new(),
            remembering: config.remember,
            cold_start,
            list,
            disabled: None,
            config: model::Service { backends: known, ..config.clone() },
        }
    }
}

impl Backend {
    fn recalled(
        config: &model::Service,
        id: u32,
        member: Member,
        record: &layout::Backend,
        image: &Image,
        now: Instant,
    ) -> Self {
        let address = socket(&record.endpoint);
        let configured = config.backends.iter().find(|backend| backend.address == address);
        let quic_id = image.server_ids.iter().find(|(_, backend)| **backend == id);
        let quic_id = quic_id.map(|(server, _)| server.id[..server.length as usize].to_vec());
        // Of one that the configuration has no more, nothing but this is known.
        let unknown = model::Backend { name: Place(address).to_string(), address, weight: 1, quic_id };
        let backend = Self::new(configured.unwrap_or(&unknown), id);
        let target = Target { service: config.key, backend: address };
        Self { report: recalled_report(member, target, now), ..backend }
    }

    /// What the daemon that takes over is to know of its health.
    pub(super) fn measured(&self) -> u32 {
        match self.report.as_ref().map(|report| report.health) {
            None | Some(Health::Unknown) => member_health::UNKNOWN,
            Some(Health::Up) => member_health::UP,
            Some(Health::Down(Down::Answers)) => member_health::ANSWERS,
            Some(Health::Down(Down::Silent)) => member_health::SILENT,
        }
    }
}

fn recalled_report(member: Member, target: Target, now: Instant) -> Option<Report> {
    let health = match member.health {
        member_health::UP => Health::Up,
        member_health::ANSWERS => Health::Down(Down::Answers),
        member_health::SILENT => Health::Down(Down::Silent),
        _ => return None,
    };
    Some(Report {
        target,
        health,
        transition: None,
        since: now,
        transitions: 0,
        inconclusive: 0,
        reason: "as before the restart, not probed since".to_owned(),
        latency: None,
    })
}

/// It counts while no neighbour answers, as before the restart.
fn recalled_next_hop(id: u32, record: &layout::Backend, image: &Image) -> Option<neighbour::NextHop> {
    let layout::NextHop { interface, mtu, source, destination } = record.next_hop;
    let of_tunnel = image.tunnels.get(&id).map(|tunnel| tunnel.source);
    let local = of_tunnel.or_else(|| Some(image.sources.get(&id)?.addresses[0]));
    (interface != 0).then(|| neighbour::NextHop {
        interface: interface & !VLAN_DEVICE,
        source,
        destination,
        mtu,
        on_link: record.subnet.0 != [u8::MAX; 16],
        local: local.map(|address| Ipv6Addr::from(address.0).to_canonical()),
    })
}

fn socket(end: &Endpoint) -> SocketAddr {
    let ip: IpAddr = Ipv6Addr::from(end.address.0).to_canonical();
    SocketAddr::new(ip, u16::from_be_bytes(end.port))
}
