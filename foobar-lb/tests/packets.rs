//! The packet table and the properties of the data path, on the host: needs neither root nor a network.

mod packet;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use foobar_lb::{
    image::Image,
    model::{Affinity, Health, Mode},
    twin::Twin,
};
use foobar_lb_ebpf::{
    balance::balance,
    layout::{Count, Traffic},
    packet::{Buffer, Frame, Packet},
    reason::{Action, Reason, Verdict},
};
use packet::{
    Arrival, DataPath,
    frame::{Datagram, Transport},
    hex,
    host::Host,
    increase,
    noise::{arrivals, images},
    way::{TUNNELS, WAYS, Way},
    wiring::untagged,
    world::{BACKEND_SIDE, CLIENT_SIDE, Family, SEED, Story, WEB1, WEBS, id},
};
use proptest::{prelude::*, sample::select};

/// Of the twin's clock.
const MILLISECOND: u64 = 1_000_000;

#[test]
fn every_row_of_the_table_holds() {
    let mut host = Host::new(Image::default());
    let wrong: Vec<String> = packet::all().iter().filter_map(|row| row.check(&mut host).err()).collect();
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

/// But for those that have a test of their own below.
#[test]
fn every_reason_is_produced_by_a_row() {
    let rows = packet::all().into_iter().flat_map(|row| row.reasons);
    let produced: HashSet<Reason> = rows.chain([Reason::ErrorLimit, Reason::NoRoom]).collect();
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

/// Fifty in a row are told, and then one in a millisecond.
#[test]
fn so_many_are_told_and_no_more() {
    let mut twin = Twin::new(Story::settled().image(), SEED);
    twin.now = 1_000 * MILLISECOND;
    let told = (Verdict::Transmit, vec![Reason::HopLimit]);
    let silent = (Verdict::Drop, vec![Reason::HopLimit, Reason::ErrorLimit]);
    for _ in 0..50 {
        assert_eq!(hear_last_hop(&twin), told);
    }
    assert_eq!(hear_last_hop(&twin), silent);
    twin.now += MILLISECOND;
    assert_eq!(hear_last_hop(&twin), told);
    assert_eq!(hear_last_hop(&twin), silent);
}

/// What becomes of a request with one hop left, and what it is counted as.
fn hear_last_hop(twin: &Twin) -> (Verdict, Vec<Reason>) {
    let mut frame = Datagram { hops: 1, ..Datagram::request(Family::V4, Transport::Udp) }.frame();
    let before = twin.reasons();
    let verdict = twin.run(&mut frame, CLIENT_SIDE.index);
    let counted = increase(&before, &twin.reasons());
    (verdict, counted.into_iter().map(|(reason, _)| reason).collect())
}

/// A driver need not leave room for outer headers, or for what quotes the packet.
#[test]
fn a_packet_that_finds_no_room_is_dropped() {
    let request = |hops| Datagram { hops, ..Datagram::request(Family::V4, Transport::Udp) }.frame();
    for (way, hops) in TUNNELS.into_iter().map(|way| (way, 64)).chain([(Way::Nat, 1)]) {
        let mut twin = Twin::new(way.story().image(), SEED);
        twin.now = 1_000 * MILLISECOND;
        let mut packet = Cramped(Buffer { bytes: request(hops), ingress: CLIENT_SIDE.index });
        assert_eq!(balance(&mut packet, &twin), Verdict::Drop, "{way:?}");
        assert_eq!(packets(&twin.reasons(), Reason::NoRoom), 1, "{way:?}");
    }
}

/// A packet whose driver leaves no room before it.
struct Cramped(Buffer);

impl Packet for Cramped {
    fn frame(&mut self) -> Frame<'_> {
        self.0.frame()
    }

    fn length(&mut self) -> u32 {
        self.0.length()
    }

    fn ingress(&self) -> u32 {
        self.0.ingress()
    }

    fn set_ingress(&mut self, interface: u32) {
        self.0.set_ingress(interface);
    }

    fn move_start(&mut self, bytes: i32) -> Result<(), Reason> {
        if bytes < 0 { Err(Reason::NoRoom) } else { self.0.move_start(bytes) }
    }

    fn move_end(&mut self, bytes: i32) -> Result<(), Reason> {
        self.0.move_end(bytes)
    }
}

/// A backend's network card chooses a queue by what is outside.
#[test]
fn flows_differ_outside_and_packets_of_a_flow_do_not() {
    const FLOWS: u16 = 1000;
    for way in TUNNELS {
        let image = way.story().configured(|service| match &mut service.mode {
            Mode::Tunnel(tunnel) => {
                tunnel.sources = SOURCES.map(|prefix| prefix.parse().expect("a prefix")).to_vec()
            }
            _ => unreachable!("it is a tunnel"),
        });
        let mut host = Host::new(image.image());
        let mut seen = HashMap::new();
        for _ in 0..3 {
            for port in 1..=FLOWS {
                let outside = outside(&mut host, port);
                assert_eq!(*seen.entry(port).or_insert(outside), outside, "{way:?}, port {port}");
            }
        }
        let sources: HashSet<_> = seen.values().map(|(source, _)| source).collect();
        let ports: HashSet<_> = seen.values().filter_map(|(_, port)| *port).collect();
        // Of the 256 addresses nearly all are used.
        assert!(sources.len() > 200, "{way:?}: {} sources", sources.len());
        assert!(ports.iter().all(|port| *port >= 49_152), "{way:?}: {ports:?}");
        let expected = if matches!(way, Way::GueIn(_)) { 900 } else { 0 };
        assert!(ports.len() >= expected, "{way:?}: {} ports", ports.len());
    }
}

const SOURCES: [&str; 2] = ["100.64.7.0/24", "2001:db8:64::/120"];

/// The outer source, and its port where there is one, of what a backend gets.
fn outside(host: &mut Host, port: u16) -> (IpAddr, Option<u16>) {
    let mut request = Datagram::request(Family::V4, Transport::Ack);
    request.from.set_port(port);
    let mut frame = request.frame();
    host.run(&mut frame, CLIENT_SIDE.index);
    let sliced = SlicedPacket::from_ethernet(&frame).expect("it is a frame");
    let source: IpAddr = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => ip.header().source_addr().into(),
        Some(NetSlice::Ipv6(ip)) => ip.header().source_addr().into(),
        _ => panic!("no IP: {}", hex(&frame)),
    };
    let known = SOURCES.map(|prefix| prefix.parse::<ipnet::IpNet>().expect("a prefix"));
    assert!(known.iter().any(|prefix| prefix.contains(&source)), "{source}");
    match sliced.transport {
        Some(TransportSlice::Udp(udp)) => (source, Some(udp.source_port())),
        _ => (source, None),
    }
}

/// Where a service says so, and nowhere else.
#[test]
fn clients_of_a_prefix_share_a_backend() {
    for affinity in [Affinity::Flow, Affinity::Source(24)] {
        let story = WEBS.into_iter().fold(Story::new(), |story, web| story.health(web, Health::Up));
        let mut host = Host::new(story.configured(|service| service.affinity = affinity).image());
        let mut reached = |network: u8| -> HashSet<[u8; 6]> {
            let clients = (1..=20)
                .map(|client| SocketAddr::from(([198, 51, network, client], 1000 + u16::from(client))));
            clients.map(|from| receiver(&mut host, from)).collect()
        };
        let backends: Vec<_> = (0..50).map(&mut reached).collect();
        assert_eq!(backends.iter().flatten().collect::<HashSet<_>>().len(), 3, "{affinity:?}");
        let together = backends.iter().all(|backends| backends.len() == 1);
        assert_eq!(together, affinity != Affinity::Flow, "{affinity:?}");
    }
}

/// The MAC of the backend that a client reaches.
fn receiver(host: &mut Host, from: SocketAddr) -> [u8; 6] {
    let mut frame = Datagram { from, ..Datagram::request(Family::V4, Transport::Udp) }.frame();
    assert_eq!(host.run(&mut frame, CLIENT_SIDE.index), Verdict::Redirect(BACKEND_SIDE.index));
    frame[..6].try_into().expect("a frame begins with a MAC")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// A frame is either translated or answered, or it stays as it is; and it is counted once.
    #[test]
    fn what_is_not_translated_stays_as_it_is(image in images(), arrivals in arrivals(&packet::all(), 0)) {
        let mut host = Host::new(image.clone());
        for Arrival { ingress, frame } in arrivals {
            let before = Counted::of(&host, &image);
            let mut out = frame.clone();
            let verdict = host.run(&mut out, ingress);
            let counted = Counted::of(&host, &image).since(&before);
            let [pass, drop, answer, complain] =
                [Action::Pass, Action::Drop, Action::Answer, Action::Complain].map(|action| counted.times(action));
            let handed = packets(&counted.reasons, Reason::HandedToKernel);
            // What cannot be said in the backend's IP is found last.
            let unsaid = [Reason::Untranslatable, Reason::NoChecksum].map(|reason| packets(&counted.reasons, reason));
            let unsaid = unsaid.iter().sum::<u64>();
            prop_assert!(handed <= counted.carried && unsaid <= counted.carried);
            prop_assert!(pass == u64::from(verdict == Verdict::Pass) || pass == handed && unsaid == 1);
            prop_assert_eq!(counted.carried + pass + answer + complain + drop, 1 + handed + unsaid + u64::from(complain > 0 && drop > 0));
            if verdict == Verdict::Drop {
                prop_assert!(drop + complain > 0);
            }
            if counted.carried + answer == 0 && (complain == 0 || verdict == Verdict::Drop) {
                // VLAN tags are not put on again where nobody gets the frame.
                let tags = if verdict == Verdict::Drop { frame.len() - out.len() } else { 0 };
                prop_assert!(tags <= 8);
                prop_assert_eq!(hex(&out), hex(&untagged(&frame, tags)), "{:?}", verdict);
            }
        }
    }

    /// Whatever a client sends, the backend gets as if it had been sent there.
    #[test]
    fn forwarding_is_as_if_sent_to_the_backend(way in select(WAYS.to_vec()), datagram in requests()) {
        let expected = way.carry(&datagram, WEB1, &Datagram::packet);
        let mut host = Host::new(way.story().image());
        let mut frame = datagram.frame();
        host.run(&mut frame, CLIENT_SIDE.index);
        prop_assert_eq!(hex(&frame), hex(&expected));
        let backend = id(WEB1, datagram.family(), datagram.transport.protocol());
        prop_assert_eq!(host.traffic(backend).forward.packets, 1);
    }
}

/// What was counted.
struct Counted {
    reasons: Vec<(Reason, Count)>,
    /// Packets to and from backends.
    carried: u64,
}

impl Counted {
    fn of(host: &Host, image: &Image) -> Self {
        let carried = image.backends.keys().map(|id| frames(host.traffic(*id))).sum();
        Self { reasons: host.reasons(), carried }
    }

    fn since(&self, before: &Self) -> Self {
        let reasons = increase(&before.reasons, &self.reasons);
        Self { reasons, carried: self.carried - before.carried }
    }

    fn times(&self, action: Action) -> u64 {
        let counts = self.reasons.iter().filter(|(reason, _)| reason.action() == action);
        counts.map(|(_, count)| count.packets).sum()
    }
}

fn packets(reasons: &[(Reason, Count)], reason: Reason) -> u64 {
    reasons.iter().filter(|(known, _)| *known == reason).map(|(_, count)| count.packets).sum()
}

fn frames(traffic: Traffic) -> u64 {
    traffic.forward.packets + traffic.reply.packets
}

/// Requests of any client outside the backends' subnet, with any payload.
fn requests() -> impl Strategy<Value = Datagram> {
    let transports = [Transport::Syn, Transport::Ack, Transport::Fin, Transport::Rst, Transport::Udp];
    let packet =
        (select(Family::BOTH.to_vec()), select(transports.to_vec()), any::<[u8; 16]>(), any::<u16>());
    let ip = (2u8.., any::<u8>(), any::<u16>(), any::<bool>());
    let payload = prop::collection::vec(any::<u8>(), 0..64);
    (packet, ip, payload).prop_map(|((family, transport, address, port), ip, payload)| {
        let source: IpAddr = match family {
            Family::V4 => Ipv4Addr::new(198, 51, address[0], address[1]).into(),
            Family::V6 => {
                let mut address = address;
                address[0] = 0x20;
                Ipv6Addr::from(address).into()
            }
        };
        let (hops, traffic_class, id, may_fragment) = ip;
        let from = SocketAddr::new(source, port);
        let request = Datagram { from, hops, traffic_class, id, ..Datagram::request(family, transport) };
        Datagram { may_fragment, payload, ..request }
    })
}
