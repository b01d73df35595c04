//! The packet table and the properties of the data path, on the host: needs neither root nor a network.

mod packet;

use std::{
    collections::HashSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
};

use foobar_lb::image::Image;
use foobar_lb_ebpf::{
    layout::Traffic,
    reason::{Action, Reason, Verdict},
};
use packet::{
    DataPath,
    frame::{Datagram, Transport},
    hex,
    host::Host,
    noise::{Arrival, arrivals, images},
    world::{BACKEND_SIDE, CLIENT_SIDE, Family, Story, WEB1},
};
use proptest::prelude::*;

const LENGTHS: Range<usize> = 0..200;

#[test]
fn every_row_of_the_table_holds() {
    let mut host = Host::new(Image::default());
    let wrong: Vec<String> = packet::all().iter().filter_map(|row| row.check(&mut host).err()).collect();
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_reason_is_produced_by_a_row() {
    let produced: HashSet<Reason> = packet::all().into_iter().flat_map(|row| row.reasons).collect();
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !produced.contains(reason)).collect();
    assert!(missing.is_empty(), "no row produces {missing:?}");
}

#[test]
fn every_row_has_a_name_of_its_own() {
    let mut names = HashSet::new();
    for row in packet::all() {
        assert!(names.insert(row.name.clone()), "{}", row.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// A frame is either translated or answered, or it stays as it is; and it is counted once.
    #[test]
    fn what_is_not_translated_stays_as_it_is(
        image in images(),
        Arrival { ingress, frame } in arrivals(&packet::all(), LENGTHS),
    ) {
        let backends: Vec<u32> = image.backends.keys().copied().collect();
        let mut host = Host::new(image);
        let mut out = frame.clone();
        let verdict = host.run(&mut out, ingress);
        let carried: u64 = backends.iter().map(|id| host.traffic(*id)).map(frames).sum();
        let counted = |action| -> u64 {
            let counts = host.reasons().into_iter().filter(|(reason, _)| reason.action() == action);
            counts.map(|(_, count)| count.packets).sum()
        };
        let handed = packets(&host, Reason::HandedToKernel);
        prop_assert_eq!(counted(Action::Drop), u64::from(verdict == Verdict::Drop));
        prop_assert_eq!(counted(Action::Pass), u64::from(verdict == Verdict::Pass));
        let decided: u64 = [Action::Drop, Action::Pass, Action::Answer].map(counted).iter().sum();
        prop_assert_eq!(carried + decided, 1 + handed);
        prop_assert!(handed <= carried);
        if carried + counted(Action::Answer) == 0 {
            prop_assert_eq!(hex(&out), hex(&frame), "{:?}", verdict);
        }
    }

    /// Whatever a client sends, the backend gets as if it had been sent there.
    #[test]
    fn forwarding_is_as_if_sent_to_the_backend(datagram in requests()) {
        let expected = datagram.clone().reaching(WEB1).frame();
        let mut host = Host::new(Story::settled().image());
        let mut frame = datagram.frame();
        let verdict = host.run(&mut frame, CLIENT_SIDE.index);
        prop_assert_eq!(verdict, Verdict::Redirect(BACKEND_SIDE.index));
        prop_assert_eq!(hex(&frame), hex(&expected));
    }
}

fn frames(traffic: Traffic) -> u64 {
    traffic.forward.packets + traffic.reply.packets
}

fn packets(host: &Host, reason: Reason) -> u64 {
    host.reasons().iter().filter(|(known, _)| *known == reason).map(|(_, count)| count.packets).sum()
}

/// Requests of any client outside the backends' subnet, with any payload.
fn requests() -> impl Strategy<Value = Datagram> {
    let transports = [Transport::Syn, Transport::Ack, Transport::Fin, Transport::Rst, Transport::Udp];
    let family = prop::sample::select(Family::BOTH.to_vec());
    let transport = prop::sample::select(transports.to_vec());
    let payload = prop::collection::vec(any::<u8>(), 0..64);
    (family, transport, any::<[u8; 16]>(), any::<u16>(), 2u8.., payload).prop_map(
        |(family, transport, address, port, hops, payload)| {
            let ip = match family {
                Family::V4 => Ipv4Addr::new(198, 51, address[0], address[1]).into(),
                Family::V6 => {
                    let mut address = address;
                    address[0] = 0x20;
                    Ipv6Addr::from(address).into()
                }
            };
            let from = SocketAddr::new(ip, port);
            Datagram { from, hops, payload, ..Datagram::request(family, transport) }
        },
    )
}
