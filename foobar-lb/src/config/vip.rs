//! The `[[vip]]` sections: what the balancer does for a VIP apart from the services on it.

use std::{collections::BTreeMap, net::IpAddr};

use serde_spanned::Spanned;

use super::{
    conflicts::repeated,
    report::{Problem, Problems},
    service::Draft,
    shape,
    values::{self, nearest},
};
use crate::model::{Unmatched, Vip};

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
) -> Option<BTreeMap<IpAddr, Vip>> {
    let vips: Vec<_> = sections.into_iter().map(|section| read_vip(section, problems)).collect();
    let addresses = vips.iter().flat_map(|(address, _)| address);
    for (address, first, again) in
        repeated(addresses.clone().map(|address| (*address.get_ref(), address.span())))
    {
        let message = format!("{address} already has a section at line {}", problems.line(&first));
        let help = "say everything about a VIP in one `[[vip]]`";
        problems.error(Problem::new(again, message).help(help).related(first, "the first"));
    }
    let known: BTreeMap<IpAddr, String> = services
        .iter()
        .flat_map(|service| &service.address)
        .map(|address| address.get_ref().ip())
        .map(|vip| (vip, vip.to_string()))
        .collect();
    for address in addresses.filter(|address| !known.contains_key(address.get_ref())) {
        let message = format!("{} is the VIP of no service", address.get_ref());
        problems.error(Problem::new(address.span(), message).help(meant(address.get_ref(), &known)));
    }
    vips.into_iter().map(|(address, vip)| Some((address?.into_inner(), vip?))).collect()
}

fn read_vip(section: Spanned<shape::Vip>, problems: &mut Problems) -> (Option<Spanned<IpAddr>>, Option<Vip>) {
    let place = section.span();
    let shape::Vip { address, unmatched, ping } = section.into_inner();
    let address = problems.read_required(address, ("vip", &place), "address = \"203.0.113.80\"", values::ip);
    let choices = [("pass", Unmatched::Pass), ("drop", Unmatched::Drop), ("reject", Unmatched::Reject)];
    let unmatched = problems
        .read_or(unmatched, DEFAULT_UNMATCHED, |text| values::choice(text, "behaviour", &choices, &[]));
    let ping = ping.unwrap_or(DEFAULT_PING);
    (address, unmatched.map(|unmatched| Vip { unmatched, ping }))
}

fn meant(address: &IpAddr, known: &BTreeMap<IpAddr, String>) -> String {
    match known.len() {
        1..=MOST_COMPARED => {
            let known: Vec<&str> = known.values().map(String::as_str).collect();
            nearest(&address.to_string(), &known)
        }
        _ => "the address of a `[[service]]`, without its port".to_owned(),
    }
}
