//! The program of a backend, on the host: what it takes off and what it leaves alone. Needs neither root nor a network;
//! the same rows run in the kernel, in `program/decap.rs`.

#[path = "decap/host.rs"]
mod host;
#[path = "decap/packets.rs"]
mod packets;
#[path = "decap/rows.rs"]
mod rows;

use foobar_lb_ebpf::{decap::Outcome, reason::Verdict};
use host::run;
use proptest::prelude::*;

#[test]
fn every_row_of_the_table_holds() {
    let wrong: Vec<String> = rows::all().iter().filter_map(|row| row.check(&mut run).err()).collect();
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_outcome_has_a_row() {
    let rows = rows::all();
    for outcome in Outcome::ALL {
        assert!(rows.iter().any(|row| row.expected.outcome == *outcome), "{outcome:?}");
    }
}

/// A frame may end anywhere. What is cut behind the inner header is for the kernel to find.
#[test]
fn what_is_cut_short_is_taken_off_whole_or_not_at_all() {
    for row in rows::all() {
        for length in 0..row.frame.len() {
            let frame = &row.frame[..length];
            let told = run(frame);
            match told.outcome {
                Outcome::Decapsulated => {
                    let kept = row.expected.frame.len() - (row.frame.len() - length);
                    assert_eq!(told.frame, row.expected.frame[..kept], "{}, {length} bytes", row.name);
                }
                _ => assert_eq!(told.frame, frame, "{}, {length} bytes", row.name),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_frame_panics_and_none_is_half_changed(frame in rows::noise(0)) {
        let told = run(&frame);
        match told.outcome {
            Outcome::Decapsulated => {
                prop_assert!(told.frame.len() < frame.len());
                prop_assert_eq!(&told.frame[..12], &frame[..12], "the MACs stay");
            }
            Outcome::EcnDropped => prop_assert_eq!(told.verdict, Verdict::Drop),
            _ => prop_assert_eq!((told.verdict, told.frame), (Verdict::Pass, frame)),
        }
    }
}
