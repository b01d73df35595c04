//! The image that follows from the state.

use std::{net::IpAddr, time::Instant};

use foobar_lb_ebpf::layout::{self, Address, DirectKey, NextHop, Reply, address_flag, backend_flag};
use ipnet::IpNet;

use super::{Backend, Service, Standing, State};
use crate::{
    image::{DirectPrefix, Image, address, endpoint},
    model, neighbour,
};

impl State {
    /// Brings all tables up to date and tells what the maps should hold.
    pub fn render(&mut self, now: Instant) -> Image {
        let seed = self.seed;
        self.services.iter_mut().for_each(|service| service.assign(seed, now));
        self.note_left(now);
        let mut image = Image { interfaces: self.attached.clone(), ..Image::default() };
        for local in &self.view.locals {
            image.addresses.insert(address(*local), address_flag::LOCAL);
        }
        for service in &self.services {
            self.render_service(service, &mut image);
        }
        image
    }

    /// From now on no packet reads the regions of services that are gone, nor finds their backends, but for those
    /// packets that are under way.
    fn note_left(&mut self, now: Instant) {
        for since in self.retired.values_mut().chain(self.left.iter_mut().map(|(_, since)| since)) {
            since.get_or_insert(now);
        }
    }

    fn render_service(&self, service: &Service, image: &mut Image) {
        let model::Service { idle, announce, remember, .. } = &service.config;
        let end = service.end();
        let flags = image.addresses.entry(end.address).or_default();
        *flags |= address_flag::VIP;
        // An address of this machine is answered for by its kernel.
        if *announce && *flags & address_flag::LOCAL == 0 {
            *flags |= address_flag::ANNOUNCED;
        }
        let first_slot = service.table.first();
        let slots = service.config.table_size;
        let idle = u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX);
        image.services.insert(end, layout::Service { first_slot, slots, idle });
        image.tables.insert(first_slot, service.table.render(*remember));
        for prefix in &service.config.direct {
            image.direct.insert(direct_prefix(service.direct_list, prefix), 1);
        }
        for (backend, standing) in service.backends.iter().zip(service.standings()) {
            let rendered = self.render_backend(service, backend, standing);
            let reply = Reply { service: end, backend: backend.id, direct: service.direct_list };
            image.replies.insert(rendered.endpoint, reply);
            image.backends.insert(backend.id, rendered);
        }
    }

    fn render_backend(&self, service: &Service, backend: &Backend, standing: Standing) -> layout::Backend {
        layout::Backend {
            endpoint: endpoint(backend.config.address, service.config.key.protocol),
            flags: if standing.serves { backend_flag::SERVES } else { 0 },
            next_hop: backend.next_hop.map_or_else(NextHop::default, |hop| self.render_next_hop(hop)),
            subnet: self.subnet(backend.config.address.ip()),
        }
    }

    /// The program can only send by interfaces it is attached to; the rest is left to the kernel.
    fn render_next_hop(&self, hop: neighbour::NextHop) -> NextHop {
        let neighbour::NextHop { interface, source, destination, mtu } = hop;
        if self.attached.contains_key(&interface) {
            NextHop { interface, mtu, source, destination }
        } else {
            NextHop::default()
        }
    }

    /// The mask of the subnet a backend is reached in without a gateway; all ones where there is a gateway.
    fn subnet(&self, backend: IpAddr) -> Address {
        let prefix = self
            .view
            .connected
            .iter()
            .filter(|(prefix, _)| prefix.contains(&backend))
            .map(|(prefix, _)| prefix)
            .max_by_key(|prefix| prefix.prefix_len());
        let bits = prefix.map_or(u128::BITS, |prefix| {
            u32::from(prefix.prefix_len()) + u128::BITS - u32::from(prefix.max_prefix_len())
        });
        Address(u128::MAX.checked_shl(u128::BITS - bits).unwrap_or(0).to_be_bytes())
    }
}

fn direct_prefix(list: u32, prefix: &IpNet) -> DirectPrefix {
    let mapped_bits = u128::BITS - u32::from(prefix.max_prefix_len());
    let bits = DirectKey::LIST_BITS + mapped_bits + u32::from(prefix.prefix_len());
    (DirectKey { list, client: address(prefix.network()).0 }, bits)
}
