//! What the image has of VIPs and prefixes of them: their flags, and the ranges of ports on them.

use std::collections::BTreeMap;

use foobar_lb_ebpf::layout::{self, address_flag};
use ipnet::IpNet;

use super::State;
use crate::{
    image::{Image, address, range_prefixes, reply_prefixes, vip_prefix},
    model::{self, Unmatched, is_host},
    wide::{PrefixMap, Stretch, Wide},
};

/// The groups of the VIPs that have services of more than one address or port. A number is never given again: the map
/// of addresses may name the old group while the ranges of a new one are written.
#[derive(Clone, Default)]
pub(super) struct Groups {
    numbers: BTreeMap<IpNet, u32>,
    last: u32,
}

impl Groups {
    /// As the maps have them.
    pub(super) fn recalled(vips: impl Iterator<Item = IpNet>, image: &Image) -> Self {
        let numbers = vips.filter_map(|vip| {
            let group = find_vip(&vip, image)?.group;
            (group != 0).then_some((vip, group))
        });
        let all = image.addresses.values().chain(image.prefixes.values()).map(|vip| vip.group);
        let all = all.chain(image.ranges.keys().map(|(key, _)| key.group));
        Self { numbers: numbers.collect(), last: all.max().unwrap_or(0) }
    }

    /// Gives every VIP that has such services a group, and takes it from those that have none any more.
    pub(super) fn number<T: Copy>(&mut self, wide: &Wide<T>) {
        let Self { numbers, last } = self;
        let before = std::mem::take(numbers);
        let mut next = || {
            *last += 1;
            *last
        };
        let numbered = wide.iter().map(|(vip, _)| (*vip, before.get(vip).copied().unwrap_or_else(&mut next)));
        *numbers = numbered.collect();
    }

    /// The group of all addresses of a prefix; 0: it has no such services.
    fn of<T: Copy>(&self, prefix: IpNet, wide: &Wide<T>) -> u32 {
        wide.nearest(prefix).map_or(0, |vip| self.numbers[vip])
    }
}

/// What the image has of a VIP, or of a prefix of them.
pub(super) fn find_vip(vip: &IpNet, image: &Image) -> Option<layout::Vip> {
    match is_host(vip) {
        true => image.addresses.get(&address(vip.addr())).copied(),
        false => image.prefixes.get(&vip_prefix(vip)).copied(),
    }
}

impl State {
    /// Which of the services, by their place, has which ports of which VIPs.
    pub(super) fn wide(&self) -> Wide<usize> {
        Wide::new(self.services.iter().map(|service| service.config.key).zip(0..))
    }

    /// VIPs, prefixes of them, and the balancer's own addresses.
    pub(super) fn render_vips(&self, wide: &Wide<usize>, image: &mut Image) {
        let mut vips = PrefixMap::<Vec<&model::Service>>::new();
        for service in &self.services {
            vips.entry(service.config.key.address.vip).push(&service.config);
        }
        let locals = self.view.locals.iter().map(|local| (IpNet::from(*local), address_flag::LOCAL));
        let others = vips.iter().map(|(vip, _)| (*vip, 0));
        // What is local is so as a VIP, too.
        let all: BTreeMap<IpNet, u32> = others.chain(locals).collect();
        for (prefix, local) in all {
            let flags = local | flags(local, vips.around(prefix).map(|(_, services)| services));
            let vip = layout::Vip { flags, group: self.groups.of(prefix, wide) };
            if is_host(&prefix) {
                image.addresses.insert(address(prefix.addr()), vip);
            } else {
                image.prefixes.insert(vip_prefix(&prefix), vip);
            }
        }
    }

    /// The services of ranges of ports, and their replies.
    pub(super) fn render_ranges(&self, wide: &Wide<usize>, image: &mut Image) {
        for (vip, stretches) in wide.iter() {
            let group = self.groups.numbers[vip];
            for Stretch { protocol, ports, owner } in stretches {
                let service = &self.services[*owner];
                if service.disabled.is_none() {
                    let record = service.record();
                    let prefixes = range_prefixes(group, *protocol, *ports);
                    image.ranges.extend(prefixes.map(|prefix| (prefix, record)));
                }
                // Every VIP has the stretches of those around it as well.
                if !service.config.mode.knows_replies_by_backend() || service.config.key.address.vip != *vip {
                    continue;
                }
                for backend in &service.backends {
                    let reply = service.reply(backend);
                    let prefixes = reply_prefixes(backend.config.address.ip(), *protocol, *ports);
                    image.reply_ranges.extend(prefixes.map(|prefix| (prefix, reply)));
                }
            }
        }
    }
}

/// What the services on a VIP, and on those around it, want of its addresses: the nearest VIP has its own way with what
/// no service wants, and what one of them announces is announced.
fn flags<'s>(local: u32, mut around: impl Iterator<Item = &'s Vec<&'s model::Service>>) -> u32 {
    let Some(nearest) = around.next() else { return 0 };
    let announces = |services: &Vec<&model::Service>| services.iter().any(|service| service.announce);
    let announced = announces(nearest) || around.any(announces);
    let model::Vip { unmatched, ping } = nearest[0].vip;
    // An address of this machine is answered for by its kernel.
    let ours = local & address_flag::LOCAL == 0;
    let wanted = [
        (ours && announced, address_flag::ANNOUNCED),
        (ours && ping, address_flag::ECHO),
        (unmatched == Unmatched::Drop, address_flag::DROP),
        (unmatched == Unmatched::Reject, address_flag::REJECT),
    ];
    wanted.iter().filter(|(wanted, _)| *wanted).fold(address_flag::VIP, |flags, (_, flag)| flags | flag)
}
