//! The `[[vip]]` sections: what the balancer does for a VIP apart from the services on it.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde_spanned::Spanned;

use super::{
    conflicts::repeated,
    report::{Problem, Problems},
    service::Draft,
    shape,
    values::{self, nearest},
};
use crate::{
    model::{Unmatched, Vip, is_host},
    wide::PrefixMap,
};

/// Of a VIP that does not say.
pub const DEFAULT_UNMATCHED: Unmatched = Unmatched::Pass;
/// Of a VIP that does not say.
pub const DEFAULT_PING: bool = true;
/// Of a VIP that no section describes.
pub(super) const DEFAULT_VIP: Vip = Vip { unmatched: DEFAULT_UNMATCHED, ping: DEFAULT_PING };

/// With more VIPs, which of them was meant is not worth the search.
const MOST_COMPARED: usize = 100;

/// Reads all sections; absent if something in one of them is wrong. Each is about a VIP of `services`.
pub(super) fn read(
    sections: Vec<Spanned<shape::Vip>>,
    services: &[Draft],
    problems: &mut Problems,
) -> Option<Sections> {
    let vips: Vec<_> = sections.into_iter().map(|section| read_vip(section, problems)).collect();
    let addresses = vips.iter().flat_map(|(address, _)| address);
    for (address, first, again) in
        repeated(addresses.clone().map(|address| (*address.get_ref(), address.span())))
    {
        let message = format!("{} already has a section at line {}", shown(&address), problems.line(&first));
        let help = "say everything about a VIP in one `[[vip]]`";
        problems.error(Problem::new(again, message).help(help).related(first, "the first"));
    }
    let known: BTreeMap<IpNet, String> = services
        .iter()
        .flat_map(|service| &service.address)
        .map(|address| address.get_ref().vip)
        .map(|vip| (vip, shown(&vip)))
        .collect();
    for address in addresses.filter(|address| !known.contains_key(address.get_ref())) {
        let message = format!("{} is the VIP of no service", shown(address.get_ref()));
        problems.error(Problem::new(address.span(), message).help(meant(address.get_ref(), &known)));
    }
    let mut read = PrefixMap::new();
    for (address, vip) in vips {
        *read.entry(address?.into_inner()) = Some(vip?);
    }
    Some(read)
}

/// What the sections say of a VIP: its own, else that of the longest prefix that it is in.
pub(super) fn of(vip: IpNet, sections: &Sections) -> Vip {
    sections.around(vip).find_map(|(_, section)| *section).unwrap_or(DEFAULT_VIP)
}

/// What the sections say.
pub(super) type Sections = PrefixMap<Option<Vip>>;

fn shown(vip: &IpNet) -> String {
    if is_host(vip) { vip.addr().to_string() } else { vip.to_string() }
}

fn read_vip(section: Spanned<shape::Vip>, problems: &mut Problems) -> (Option<Spanned<IpNet>>, Option<Vip>) {
    let place = section.span();
    let shape::Vip { address, unmatched, ping } = section.into_inner();
    let address = problems.read_required(address, ("vip", &place), "address = \"203.0.113.80\"", values::vip);
    let choices = [("pass", Unmatched::Pass), ("drop", Unmatched::Drop), ("reject", Unmatched::Reject)];
    let unmatched = problems
        .read_or(unmatched, DEFAULT_UNMATCHED, |text| values::choice(text, "behaviour", &choices, &[]));
    let ping = ping.unwrap_or(DEFAULT_PING);
    (address, unmatched.map(|unmatched| Vip { unmatched, ping }))
}

fn meant(address: &IpNet, known: &BTreeMap<IpNet, String>) -> String {
    match known.len() {
        1..=MOST_COMPARED => {
            let known: Vec<&str> = known.values().map(String::as_str).collect();
            nearest(&shown(address), &known)
        }
        _ => "the address of a `[[service]]`, without its port".to_owned(),
    }
}
