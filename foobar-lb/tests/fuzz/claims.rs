//! What has to be true of every frame, whatever it is and whatever the maps hold.

use std::{collections::HashMap, net::IpAddr};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{IpNumber, NetSlice, SlicedPacket, TransportSlice};
use foobar_lb::image::address;
use foobar_lb_ebpf::{
    headers::Side,
    ip::Family,
    layout::{NextHop, mode},
    reason::{Action, Reason, Verdict},
};

use super::{
    Outcome, Stage, families, mapped,
    seen::{ICMP, Seen, right_checksums},
    translation::{
        declared_length, take_out, with_end, with_ends, with_hop_less, with_segment_size, without_checksums,
    },
};
use crate::packet::{Arrival, frame::ETHERNET, hex, way::Way, world::routes};

/// Bytes that a frame begins with.
const MACS: usize = 12;

/// All that can be said of one frame.
pub fn check(stage: &Stage, arrival: &Arrival, outcome: &Outcome) -> Result<()> {
    check_counts(outcome)?;
    mapped::check(&stage.image, &stage.twin.mappings())?;
    let Outcome { verdict, out, carried, .. } = outcome;
    let handed = outcome.is(Reason::HandedToKernel);
    match (verdict, carried.first(), outcome.action()) {
        (Verdict::Drop, ..) => Ok(()),
        (Verdict::Pass, _, _) if !handed => {
            ensure!(*out == arrival.frame, "it goes to the kernel and is not what it was");
            Ok(())
        }
        (_, Some((id, side)), _) => check_forwarded(stage, arrival, outcome, *id, *side).context("forwarded"),
        (Verdict::Transmit, None, Some(Action::Answer)) => check_answer(arrival, outcome).context("answered"),
        (Verdict::Transmit, None, Some(Action::Complain)) => {
            check_complaint(arrival, outcome).context("complained of")
        }
        _ => bail!("nothing leads to this verdict"),
    }
}

/// Why a packet is lost that is already on its way to the other IP.
const UNSAID: [Reason; 3] = [Reason::Untranslatable, Reason::NoChecksum, Reason::NoRoom];

/// A frame is counted once: to or from a backend, or under a reason that says what becomes of it.
fn check_counts(outcome: &Outcome) -> Result<()> {
    let times = |action| -> u64 {
        let counts = outcome.reasons.iter().filter(|(reason, _)| reason.action() == action);
        counts.map(|(_, count)| count).sum()
    };
    let [pass, drop, answer, complain] =
        [Action::Pass, Action::Drop, Action::Answer, Action::Complain].map(times);
    let handed = u64::from(outcome.is(Reason::HandedToKernel));
    // Of whom nobody is told it is also counted why.
    let untold = u64::from(complain > 0 && drop > 0);
    let carried = outcome.carried.len() as u64;
    // What cannot be said in the other IP is found after all else.
    let lost = u64::from(carried > 0 && UNSAID.iter().any(|reason| outcome.is(*reason)));
    ensure!(
        carried + pass + drop + answer + complain == 1 + handed + untold + lost,
        "it is not counted once"
    );
    ensure!(
        pass == u64::from(outcome.verdict == Verdict::Pass),
        "it is counted as passed and is not, or is not"
    );
    ensure!(handed <= carried, "it is handed to the kernel for no backend");
    if outcome.verdict == Verdict::Drop {
        ensure!(drop + complain == 1 + untold, "it is dropped for no reason");
    }
    Ok(())
}

impl Outcome {
    pub fn is(&self, reason: Reason) -> bool {
        self.reasons.iter().any(|(counted, _)| *counted == reason)
    }

    /// What the reason means that it was counted under.
    fn action(&self) -> Option<Action> {
        let mut actions = self.reasons.iter().map(|(reason, _)| reason.action());
        actions.find(|action| *action != Action::Forward)
    }
}

/// A frame that arrives twice in a row goes the same way twice, unless nobody is told of it any more.
pub fn check_again(first: &Outcome, second: &Outcome) -> Result<()> {
    let same = first == second || second.is(Reason::ErrorLimit);
    ensure!(same, "the first time: {:?}, {:?}, out: {}", first.verdict, first.carried, hex(&first.out));
    Ok(())
}

fn check_forwarded(stage: &Stage, arrival: &Arrival, outcome: &Outcome, id: u32, side: Side) -> Result<()> {
    let Outcome { verdict, out, .. } = outcome;
    let frame = &arrival.frame;
    let handed = *verdict == Verdict::Pass;
    let backend = stage.image.backends.get(&id).context("no such backend")?;
    if handed {
        ensure!(out[..MACS] == frame[..MACS], "the kernel gets another Ethernet header");
    } else {
        let hops = match side {
            Side::Destination => vec![backend.next_hop],
            Side::Source => routes(arrival.ingress).into_iter().filter_map(|(_, route)| route.ok()).collect(),
        };
        ensure!(hops.iter().any(|hop| leaves_by(hop, arrival.ingress, outcome)), "it leaves by no known way");
    }
    let Some(seen) = Seen::of(frame) else { return Ok(()) };
    let ends = mapped::ends(&stage.twin.mappings(), frame, &seen, id, side);
    if !ends.is_empty() {
        return mapped::check_any(&ends, |to| {
            if Family::of(&to.source.address) != Family::of(&address(seen.source)) {
                return families::check(frame, &seen, out, to, handed);
            }
            check_translation(stage, frame, &seen, with_ends(frame, &seen, to), out.clone(), handed)
        });
    }
    let needs_mapping = stage.image.services.values().any(|service| service.mode == mode::SNAT);
    ensure!(!needs_mapping, "it has no mapping");
    let (translated, inner) = match (side, stage.way) {
        (Side::Source, _) => {
            let reply = stage.image.replies.values().find(|reply| reply.backend == id);
            (with_end(frame, &seen, side, &reply.context("no such reply")?.service), out.clone())
        }
        (Side::Destination, Way::Nat) => (with_end(frame, &seen, side, &backend.endpoint), out.clone()),
        (Side::Destination, Way::Dsr) => (frame.clone(), out.clone()),
        (Side::Destination, Way::IpIn(_) | Way::GueIn(_)) => {
            let tunnel = stage.image.tunnels.get(&id).context("no such tunnel")?;
            (frame.clone(), take_out(out, frame, &seen, tunnel, &backend.endpoint)?)
        }
    };
    check_translation(stage, frame, &seen, translated, inner, handed)
}

/// Whether the frame has the MACs and the verdict of this next hop.
fn leaves_by(hop: &NextHop, ingress: u32, outcome: &Outcome) -> bool {
    let verdict = if hop.interface == ingress { Verdict::Transmit } else { Verdict::Redirect(hop.interface) };
    outcome.verdict == verdict && outcome.out[..MACS] == [hop.destination, hop.source].concat()
}

fn check_translation(
    stage: &Stage,
    frame: &[u8],
    seen: &Seen,
    translated: Vec<u8>,
    out: Vec<u8>,
    handed: bool,
) -> Result<()> {
    let kept: Vec<_> = right_checksums(frame).difference(&right_checksums(&out)).copied().collect();
    ensure!(kept.is_empty(), "checksums that were right are not: {kept:?}");
    let image = &stage.image;
    let sizes = image.services.values().map(|service| service.mss);
    let sizes: Vec<_> = sizes.chain(image.replies.values().map(|reply| reply.mss)).collect();
    let translated = if handed { translated } else { with_hop_less(translated, seen) };
    let translated = with_segment_size(translated, seen, &out, &sizes);
    let [expected, actual] = [translated, out].map(|frame| without_checksums(frame, seen));
    ensure!(
        expected.get(12..) == actual.get(12..),
        "expected, without MACs and checksums: {}",
        hex(&expected)
    );
    Ok(())
}

/// An answer in place: to its sender, as long as the question, its checksums right where they were.
fn check_answer(arrival: &Arrival, outcome: &Outcome) -> Result<()> {
    let (frame, out) = (&arrival.frame, &outcome.out);
    ensure!(out.len() == frame.len(), "its length changed");
    ensure!(out[..6] == frame[6..12], "it does not go to who asked");
    let wrong: Vec<_> = right_checksums(frame).difference(&right_checksums(out)).copied().collect();
    ensure!(wrong.is_empty(), "checksums that were right are not: {wrong:?}");
    if let (Some(seen), Some(answer)) = (Seen::of(frame), Seen::of(out)) {
        ensure!(answer.destination == seen.source, "to {}", answer.destination);
    }
    Ok(())
}

/// No more of a packet is quoted, in bytes, however many headers it has.
const MOST_QUOTED: usize = 128;

/// An ICMP error that quotes the packet, or a RST, to a single host that sent no error itself.
fn check_complaint(arrival: &Arrival, outcome: &Outcome) -> Result<()> {
    let (frame, out) = (&arrival.frame, &outcome.out);
    ensure!(out[..6] == frame[6..12] && out[6..12] == frame[..6], "it does not go back");
    ensure!(frame[0] & 1 == 0, "it was sent to many");
    let sliced = SlicedPacket::from_ethernet(out).context("the complaint")?;
    let length = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => ip.header().total_len().into(),
        Some(NetSlice::Ipv6(ip)) => usize::from(ip.header().payload_length()) + 40,
        _ => bail!("it is not IP"),
    };
    ensure!(length + ETHERNET == out.len(), "it says {length} bytes");
    let answer = Seen::of(out).context("etherparse reads no headers")?;
    let right = right_checksums(out);
    ensure!(right.contains("behind the IP header"), "its checksum");
    ensure!(answer.source.is_ipv6() || right.contains("of the IP header"), "the checksum of its header");
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let refused = outcome.reasons.iter().any(|(reason, _)| reason.is_refusal());
            ensure!(refused && tcp.rst() && out.len() == answer.next + 20, "{tcp:?}");
        }
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) => {
            let quoted = &out[answer.next + ICMP..];
            ensure!(frame[ETHERNET..].starts_with(quoted), "it does not quote the packet");
            // RFC 792 asks for eight bytes behind the IP header.
            let least = Seen::of(frame).map_or(0, |seen| {
                (seen.next + 8 - ETHERNET).min(declared_length(frame, &seen)).min(MOST_QUOTED) & !3
            });
            ensure!(quoted.len() >= least, "it quotes {} bytes", quoted.len());
        }
        other => bail!("{other:?}"),
    }
    check_audience(frame, &answer)
}

/// Whom a complaint goes to (RFC 1812, 4.3.2.7).
fn check_audience(frame: &[u8], answer: &Seen) -> Result<()> {
    let Some(seen) = Seen::of(frame) else { return Ok(()) };
    ensure!(answer.destination == seen.source, "to {}", answer.destination);
    ensure!(!seen.source.is_multicast() && !seen.source.is_unspecified(), "to {}", seen.source);
    ensure!(seen.quoted(frame).is_none(), "about an ICMP error");
    ensure!(seen.is_first(), "about a fragment that is not the first");
    let is_reset =
        seen.protocol == IpNumber::TCP && frame.get(seen.next + 13).is_some_and(|flags| flags & 4 != 0);
    ensure!(!is_reset, "about a RST");
    Ok(())
}

/// Datagrams whose first fragment was forwarded, and where to: the others have to follow.
#[derive(Default)]
pub struct Datagrams {
    known: HashMap<(IpAddr, IpAddr, u8, u32), (u32, Side)>,
}

impl Datagrams {
    pub fn check(&mut self, arrival: &Arrival, outcome: &Outcome) -> Result<()> {
        const LOST: [Reason; 3] = [Reason::Fragment, Reason::NoService, Reason::NoBackend];
        let Some(seen) = Seen::of(&arrival.frame) else { return Ok(()) };
        let Some(part) = seen.part.filter(|_| matches!(seen.protocol, IpNumber::TCP | IpNumber::UDP)) else {
            return Ok(());
        };
        if !seen.is_within_reach() {
            return Ok(());
        }
        let datagram = (seen.source, seen.destination, seen.protocol.0, part.id);
        let carried = outcome.carried.first();
        if part.is_first {
            self.known.extend(carried.map(|way| (datagram, *way)));
        } else if let Some(first) = self.known.get(&datagram) {
            ensure!(carried.is_none_or(|way| way == first), "the first fragment went to {first:?}");
            ensure!(!LOST.iter().any(|reason| outcome.is(*reason)), "the first fragment went to {first:?}");
        }
        Ok(())
    }
}
