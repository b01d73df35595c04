//! Fingerprints of services: equal on balancers with another past, and others for any difference that flows would meet.

use std::{collections::BTreeMap, time::Instant};

use foobar_lb::{
    config,
    fingerprint::{Fingerprint, fingerprints},
    image::Image,
    model,
    neighbour::{Link, NextHop, View},
    state::{Room, State},
};
use foobar_lb_ebpf::{
    flow::hash_key,
    layout::{Slot, backend_flag, mode},
};

const SEED: u64 = 7;

/// One of each kind of service.
const WEB: &str = r#"
[[service]]
name = "web"
address = "203.0.113.80:80"
protocol = "tcp"
mode = "nat"
direct = ["192.0.2.0/24"]
health = { kind = "none" }
[[service.backend]]
name = "web1"
address = "10.0.1.11:80"
[[service.backend]]
name = "web2"
address = "10.0.1.12:80"
"#;
const OTHERS: &str = r#"
[[service]]
name = "media"
address = "203.0.113.80:5000-5100"
protocol = "udp"
mode = "nat"
health = { kind = "none" }
[[service.backend]]
name = "media1"
address = "10.0.1.11"
[[service.backend]]
name = "media2"
address = "10.0.1.12"

[[service]]
name = "h3"
address = "203.0.113.80:443"
protocol = "udp"
mode = "tunnel"
quic = { server_id_length = 2, config_rotation = 0 }
health = { kind = "none" }
[[service.backend]]
name = "h3-1"
address = "10.0.5.11:443"
quic_id = "0a01"
[[service.backend]]
name = "h3-2"
address = "10.0.5.12:443"
quic_id = "0a02"
"#;

#[test]
fn balancers_with_another_past_have_the_same() {
    let fresh = named(&mut State::new(parse(&[WEB, OTHERS]), SEED));
    assert_eq!(fresh.len(), 3, "{fresh:?}");
    let room = Room { slots: u32::MAX, backends: u32::MAX };
    let mut experienced = State::new(parse(&[&OTHERS.replace("10.0.5.11", "10.0.5.13")]), SEED);
    render(&mut experienced);
    for past in [&[OTHERS][..], &[WEB], &[OTHERS, WEB]] {
        experienced.reconfigure(parse(past), room).expect("there is room");
        render(&mut experienced);
    }
    let experienced = named(&mut experienced);
    assert_eq!(fresh, experienced);
}

/// What is done to an image.
type Change = fn(&mut Image);

#[test]
fn each_difference_that_flows_would_meet_is_seen() {
    let mut state = State::new(parse(&[WEB, OTHERS]), SEED);
    let image = render(&mut state);
    let before = fingerprints(&image, &hash_key(SEED));
    let firsts: Vec<u32> = state.services.iter().map(|service| service.table.first()).collect();
    let changes: [(&str, usize, Change); 7] = [
        ("a slot", 0, |image| {
            let mut slots = image.tables[&0].to_vec();
            slots[5] = Slot::settled(1 - slots[5].owner);
            image.tables.insert(0, slots.into());
        }),
        ("a move", 0, |image| {
            let mut slots = image.tables[&0].to_vec();
            slots[5].previous = 1 - slots[5].owner;
            image.tables.insert(0, slots.into());
        }),
        ("a mode", 0, |image| image.services.values_mut().next().expect("it is there").mode = mode::SNAT),
        ("a reply", 0, |image| image.replies.clear()),
        ("a direct client", 0, |image| image.direct.clear()),
        ("a reply of a range", 1, |image| image.reply_ranges.clear()),
        ("a connection id", 2, |image| image.server_ids.clear()),
    ];
    for (what, place, change) in changes {
        let mut changed = image.clone();
        change(&mut changed);
        let after = fingerprints(&changed, &hash_key(SEED));
        for (other, first) in firsts.iter().enumerate() {
            assert_eq!(before.get(first) != after.get(first), other == place, "{what}, service {other}");
        }
    }
    let mut silent = image.clone();
    silent.backends.get_mut(&0).expect("it is there").flags ^= backend_flag::SERVES;
    assert_ne!(before[&0], fingerprints(&silent, &hash_key(SEED))[&0]);
    let reseeded = fingerprints(&image, &hash_key(SEED + 1));
    assert!(firsts.iter().all(|first| before[first] != reseeded[first]), "the seed is in all of them");
}

fn parse(services: &[&str]) -> Vec<model::Service> {
    let config = config::parse(&services.concat(), "test").unwrap_or_else(|error| panic!("{error}"));
    config.services
}

/// Every backend has a next hop.
fn render(state: &mut State) -> Image {
    let link = Link { name: "eth1".to_owned(), up: true, mtu: 1500, ..Link::default() };
    let hop = NextHop {
        interface: 2,
        source: [2; 6],
        destination: [3; 6],
        mtu: 1500,
        on_link: true,
        local: Some([10, 0, 1, 1].into()),
    };
    let next_hops = state.backends().map(|backend| (backend.config.address.ip(), hop)).collect();
    state.observe_network(View { links: [(2, link)].into(), next_hops, ..View::default() });
    state.render(Instant::now())
}

fn named(state: &mut State) -> BTreeMap<String, Fingerprint> {
    let image = render(state);
    let prints = fingerprints(&image, &state.hash_key());
    let of =
        |service: &foobar_lb::state::Service| (service.config.name.clone(), prints[&service.table.first()]);
    state.services.iter().map(of).collect()
}
