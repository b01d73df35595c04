//! Replays what the fuzzer found worth keeping, and what it found to be wrong: needs neither root nor a network.
//! `cargo xtask fuzz` looks for more.

mod fuzz;
#[expect(dead_code, unused_imports, reason = "the table's rows are run by other tests")]
mod packet;

use std::{collections::BTreeSet, fs, ops::Range};

use anyhow::{Context, Result, ensure};
use arbitrary::{Arbitrary, Unstructured};
use foobar_lb::model::{Health, Mode, Pool};
use foobar_lb_ebpf::reason::{Reason, Verdict};
use fuzz::{Scene, Stage};
use packet::{
    Arrival,
    frame::{Complaint, Datagram, ETHERNET, IcmpError, Transport, ip_header},
    rows::nat64,
    way::Way,
    world::{CLIENT_SIDE, Family, Story, TRANSITION, WEB1, WEB2},
};

/// Where the fuzzer keeps its corpus.
const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/balance");

#[test]
fn every_scene_of_the_corpus_is_as_it_has_to_be() -> Result<()> {
    let mut scenes = 0;
    for entry in fs::read_dir(CORPUS).with_context(|| format!("no corpus in {CORPUS}"))? {
        let path = entry?.path();
        println!("{}", path.display());
        let bytes = fs::read(&path)?;
        let scene = Scene::arbitrary_take_rest(Unstructured::new(&bytes));
        fuzz::check(&scene.with_context(|| format!("no scene in {}", path.display()))?);
        scenes += 1;
    }
    ensure!(scenes > 10, "only {scenes} scenes in {CORPUS}");
    Ok(())
}

/// Two of them were rewritten as if they were the quoted packet's checksum, and so spoilt that of the error.
#[test]
fn bytes_behind_an_error_are_no_part_of_it() {
    for family in Family::BOTH {
        let request = Datagram::request(family, Transport::Ack);
        let Datagram { link, from, to, hops, .. } = request.clone();
        let mut quoted = Datagram { from: to, to: from, ..request }.packet();
        quoted.truncate(ip_header(family) + 8);
        let complaint = Complaint::HopLimit;
        let error = IcmpError { link, from: from.ip(), to: to.ip(), hops, complaint, quoted };
        let frame = [error.frame(), vec![0x5a; 32]].concat();
        Stage::new(Way::Nat, Story::settled().image()).check(&Arrival { ingress: CLIENT_SIDE.index, frame });
    }
}

/// It was balanced, and an error about it quoted none of it.
#[test]
fn a_packet_that_ends_within_its_header_is_none() {
    const LENGTH: usize = ETHERNET + 2;
    for length in [0, 19] {
        let mut frame = Datagram { hops: 1, ..Datagram::request(Family::V4, Transport::Udp) }.frame();
        frame[LENGTH..LENGTH + 2].copy_from_slice(&u16::to_be_bytes(length));
        let mut stage = Stage::new(Way::Nat, Story::settled().image());
        let outcome = stage.check(&Arrival { ingress: CLIENT_SIDE.index, frame });
        assert!(outcome.verdict == Verdict::Pass && outcome.is(Reason::Malformed), "{length}");
    }
}

/// What lay behind it was taken for its end, and was balanced with it.
#[test]
fn an_error_that_quotes_what_lies_behind_it_quotes_nothing() {
    const PAYLOAD_LENGTH: usize = ETHERNET + 4;
    let request = Datagram::request(Family::V6, Transport::Ack);
    let Datagram { link, from, to, hops, .. } = request.clone();
    let quoted = Datagram { from: to, to: from, ..request }.packet();
    let complaint = Complaint::PortUnreachable;
    let error = IcmpError { link, from: from.ip(), to: to.ip(), hops, complaint, quoted };
    let mut frame = error.frame();
    frame[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 2].copy_from_slice(&[0, 0]);
    let mut stage = Stage::new(Way::Nat, Story::settled().image());
    let outcome = stage.check(&Arrival { ingress: CLIENT_SIDE.index, frame });
    assert!(outcome.verdict == Verdict::Drop && outcome.is(Reason::NoService));
}

/// It was told to be for no service, where the mappings of its flow had gone.
#[test]
fn a_fragment_of_a_mapped_flow_that_is_over_is_unmapped() {
    let pool = || Pool { addresses: vec![], ports: 40_100..=40_100 };
    let image = Story::settled().configured(|service| service.mode = Mode::Snat(pool())).image();
    for family in Family::BOTH {
        let mut stage = Stage::new(Way::Nat, image.clone());
        let request = Datagram { id: 77, may_fragment: true, ..Datagram::request(family, Transport::Udp) };
        let parts = [0..8, 8..request.segment().len()].map(|part| request.carrying(request.part(part)));
        let [first, later] = parts.map(|frame| Arrival { ingress: CLIENT_SIDE.index, frame });
        assert!(!stage.check(&first).carried.is_empty());
        assert!(!stage.check(&later).carried.is_empty());
        stage.wait(2 * TRANSITION.as_nanos() as u64);
        let outcome = stage.check(&later);
        assert!(outcome.verdict == Verdict::Drop && outcome.is(Reason::Unmapped), "{family:?}");
    }
}

/// It was balanced, and could not be made a packet of the other IP.
#[test]
fn a_fragment_that_is_cut_short_within_its_header_is_none() {
    let request = Datagram { id: 77, may_fragment: true, ..Datagram::request(Family::V4, Transport::Udp) };
    let [first, mut later] = [0..8, 8..16].map(|part| request.carrying(request.part(part)));
    // It says to have 40 bytes of options, and 40 more behind them.
    later[ETHERNET] = 0x4f;
    later[ETHERNET + 2..][..2].copy_from_slice(&100u16.to_be_bytes());
    let mut stage = Stage::new(Way::Nat, nat64::mixed(Story::settled()).image());
    let [first, later] = [first, later].map(|frame| Arrival { ingress: CLIENT_SIDE.index, frame });
    assert!(!stage.check(&first).carried.is_empty());
    let outcome = stage.check(&later);
    assert!(outcome.verdict == Verdict::Pass && outcome.is(Reason::Malformed));
}

/// The same of IPv6, whose extension headers are a part of what the length counts.
#[test]
fn a_fragment_that_ends_before_its_fragment_header_is_none() {
    const PAYLOAD_LENGTH: usize = ETHERNET + 4;
    let request = Datagram { id: 77, may_fragment: true, ..Datagram::request(Family::V6, Transport::Udp) };
    let [first, mut later] = [0..8, 8..16].map(|part| request.carrying(request.part(part)));
    later[PAYLOAD_LENGTH..][..2].fill(0);
    let mut stage = Stage::new(Way::Nat, nat64::mixed(Story::settled()).image());
    let [first, later] = [first, later].map(|frame| Arrival { ingress: CLIENT_SIDE.index, frame });
    assert!(!stage.check(&first).carried.is_empty());
    let outcome = stage.check(&later);
    assert!(outcome.verdict == Verdict::Pass && outcome.is(Reason::Malformed));
}

/// The host's data path kept to the ports of the first.
#[test]
fn the_fragments_of_a_datagram_are_those_of_the_last_with_its_id() {
    const PORTS: Range<u16> = 40_000..40_020;
    let story = Story::new().health(WEB1, Health::Up).health(WEB2, Health::Up);
    let mut stage = Stage::new(Way::Nat, story.render().image());
    let mut backends = BTreeSet::new();
    for port in PORTS {
        let request =
            Datagram { id: 77, may_fragment: true, ..Datagram::request(Family::V4, Transport::Udp) };
        let request = Datagram { from: (request.from.ip(), port).into(), ..request };
        let parts = [0..8, 8..request.segment().len()].map(|part| request.carrying(request.part(part)));
        let [first, later] = parts.map(|frame| Arrival { ingress: CLIENT_SIDE.index, frame });
        backends.extend(stage.check(&first).carried.first().map(|(id, _)| *id));
        stage.check(&later);
    }
    assert!(backends.len() > 1);
}
