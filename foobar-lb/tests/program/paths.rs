//! What the way of a packet through the program takes: the instructions are counted that it executes, by an
//! interpreter, which needs no root. `golden/paths.txt` has the counts, which grow only with a reason in the commit;
//! `UPDATE=1` rewrites it. They are those of one compiler: what another makes is only shown.

use std::{env, fs, path::Path};

use anyhow::{Context, Result, anyhow, ensure};
use foobar_lb::image::Image;
use foobar_lb_ebpf::reason::Verdict;

use crate::{
    interpreted::Interpreted,
    interpreter::Cost,
    packet::{self, DataPath, Row, frame::ETHERNET, hex, host::Host},
};

/// What a path is called, and the row of the packet table that takes it.
const PATHS: [(&str, &str); 42] = [
    ("pass v4, to another address", "to another address (tcp V4)"),
    ("pass v6, to another address", "to another address (tcp V6)"),
    ("pass v4, to the balancer", "to the balancer (tcp V4)"),
    ("drop v4, no service", "Drop a request to another port (tcp V4)"),
    ("nat forward v4, SYN", "Nat: a SYN with data (Syn V4)"),
    ("nat forward v4, mid-flow", "Nat: a request (Ack V4)"),
    ("nat forward v4, UDP", "Nat: a request (Udp V4)"),
    ("nat forward v6, SYN", "Nat: a SYN with data (Syn V6)"),
    ("nat forward v6, mid-flow", "Nat: a request (Ack V6)"),
    ("nat reply v4", "a reply (tcp V4)"),
    ("nat reply v6", "a reply (tcp V6)"),
    ("nat reply v4, route known", "a reply as large as may be (tcp V4), by routes known by default"),
    ("nat reply v6, route known", "a reply as large as may be (tcp V6), by routes known by default"),
    ("dsr forward v4", "Dsr: a request (Ack V4)"),
    ("dsr forward v6", "Dsr: a request (Ack V6)"),
    ("tunnel ipip v4 in v4", "IpIn(V4): a request (Ack V4)"),
    ("tunnel ipip v6 in v6", "IpIn(V6): a request (Ack V6)"),
    ("tunnel gue v4 in v4", "GueIn(V4): a request (Ack V4)"),
    ("tunnel gue v6 in v6", "GueIn(V6): a request (Ack V6)"),
    ("snat forward v4, mapped", "snat: a request of a mapped flow (tcp V4)"),
    ("snat forward v6, mapped", "snat: a request of a mapped flow (tcp V6)"),
    ("snat reply v4", "snat: a reply (tcp V4)"),
    ("snat reply v6", "snat: a reply (tcp V6)"),
    ("nat forward v4, affinity, settled", "Nat: affinity, settled: a source (Ack V4)"),
    (
        "nat forward v4, affinity, moving, remembered",
        "Nat: affinity, moving: a source that is remembered (Ack V4)",
    ),
    ("nat forward v4, moving, SYN", "moving: a new SYN"),
    ("nat forward v4, moving, mid-flow, remembered", "moving: a packet of an established flow"),
    ("nat forward v4, moving, mid-flow, not remembered", "moving: a packet out of the blue"),
    ("nat forward v4, moving, UDP, not remembered", "moving: a UDP packet out of the blue"),
    ("nat forward v4, leaving traces, SYN", "traces: a new SYN"),
    ("nat forward v4, leaving traces, mid-flow, remembered", "traces: a packet of an established flow"),
    ("nat forward v4, leaving traces, mid-flow, not remembered", "traces: a packet out of the blue"),
    ("nat forward v4, first fragment", "Nat: the first fragment (Udp V4)"),
    ("nat forward v4, last fragment", "Nat: the last fragment (Udp V4)"),
    ("nat forward v6, first fragment", "Nat: the first fragment (Udp V6)"),
    ("nat forward v6, last fragment", "Nat: the last fragment (Udp V6)"),
    ("nat forward v4, range of ports", "Nat: amid a range: port 5064 of 203.0.113.80 (Ack V4)"),
    ("nat forward v4, ICMP error about a reply", "Nat: PortUnreachable about a reply (Ack V4)"),
    ("nat forward v4, QUIC that names a backend", "Nat: QUIC, Short header that names a backend (Udp V4)"),
    ("snat opening v4, SYN", "snat: a SYN (tcp V4)"),
    ("nat forward v4, SYN that is clamped", "Nat: clamp a SYN behind nothing (V4) (Syn V4)"),
    ("nat forward v4, VLANs on both sides", "Nat: a request (Ack V4), both in VLANs of one interface"),
];

#[test]
fn every_row_of_the_table_holds_in_the_interpreter() -> Result<()> {
    let mut interpreted = Interpreted::new()?;
    let rows = packet::all();
    // A frame that ends before its Ethernet header reaches no program.
    let frames = rows.iter().filter(|row| row.frame.len() >= ETHERNET);
    let wrong: Vec<String> = frames.filter_map(|row| row.check(&mut interpreted).err()).collect();
    ensure!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn paths_take_what_they_took() -> Result<()> {
    let mut interpreted = Interpreted::new()?;
    let actual = tell(&mut interpreted)?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/paths.txt");
    if env::var_os("UPDATE").is_some() {
        return fs::write(&path, actual).context("the counts cannot be rewritten");
    }
    let expected = fs::read_to_string(&path)?;
    let same_compiler = expected.contains(interpreted.compiler());
    ensure!(
        !same_compiler || expected == actual,
        "not as before; UPDATE=1 accepts, with a reason:\n\n{actual}"
    );
    println!("{actual}");
    Ok(())
}

/// All counts.
fn tell(interpreted: &mut Interpreted) -> Result<String> {
    let rows = packet::all();
    let mut told = format!(
        "# What a packet takes in the program as made by {}: instructions, and calls of helpers among them,\n\
         # the first time and when the same packet comes again; the verdict; the maps that are looked into then.\n",
        interpreted.compiler()
    );
    for (path, name) in PATHS {
        let row = rows.iter().find(|row| row.name == name).with_context(|| format!("no row {name:?}"))?;
        told += &tell_path(path, row, interpreted)?;
    }
    Ok(told)
}

/// The counts of a row, twice in a row, if it becomes of the packet what becomes of it on the host.
fn tell_path(path: &str, row: &Row, interpreted: &mut Interpreted) -> Result<String> {
    row.check(interpreted).map_err(|wrong| anyhow!(wrong))?;
    let first = interpreted.cost().clone();
    let mut host = Host::new(Image::default());
    row.check(&mut host).map_err(|wrong| anyhow!(wrong))?;
    let verdict = run_again(row, interpreted, &mut host)?;
    let (first, again) = (&first, interpreted.cost());
    let look_ups = again.look_ups.join(" ");
    Ok(format!("{path:56} {} {} {:9} {look_ups}\n", in_words(first), in_words(again), name(verdict)))
}

fn run_again(row: &Row, interpreted: &mut Interpreted, host: &mut Host) -> Result<Verdict> {
    let [mut frame, mut expected] = [row.frame.clone(), row.frame.clone()];
    let verdict = interpreted.run(&mut frame, row.ingress);
    let expected_verdict = host.run(&mut expected, row.ingress);
    ensure!(
        (verdict, &frame) == (expected_verdict, &expected),
        "{}, again: {verdict:?} {}, on the host {expected_verdict:?} {}",
        row.name,
        hex(&frame),
        hex(&expected)
    );
    Ok(verdict)
}

fn in_words(cost: &Cost) -> String {
    format!("{:5} with {:2}", cost.instructions, cost.calls)
}

fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Drop => "drop",
        Verdict::Transmit => "transmit",
        Verdict::Redirect(_) => "redirect",
    }
}
