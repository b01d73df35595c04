//! How even tables are, and how much of them changes when backends fail, beside what Eisenbud et al. tell of theirs
//! ("Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, sections 3.4 and 5.3): with more than a
//! hundred slots for each backend shares differ by at most 1 %, while Karger's and Rendezvous hashing ask for 29.7 % and
//! 49.5 % more servers than needed with 65,537 slots, for 10.3 % and 12.3 % with 655,373, of 1,000 backends.

use foobar_lb::maglev;

use crate::{
    report::{Report, Unit},
    tables::{members, subject},
};

const BALANCE: &str = "balance";
const DISRUPTION: &str = "disruption";
const BACKENDS: u32 = 1_000;
/// The primes that the paper uses.
const SIZES: [u32; 2] = [65_537, 655_373];

/// Tells it of tables for 1,000 backends, whole and with 0.1, 1 and 5 % of them failed.
pub fn measure(report: &mut Report) {
    for size in SIZES {
        let subject = subject(size, BACKENDS);
        let before = maglev::table(&members(BACKENDS), size, 1);
        let mut owned = vec![0u32; BACKENDS as usize];
        before.iter().for_each(|owner| owned[*owner as usize] += 1);
        let mean = f64::from(size) / f64::from(BACKENDS);
        let off = |slots: Option<&u32>| (f64::from(*slots.expect("there are backends")) / mean - 1.0) * 100.0;
        report.add(BALANCE, &subject, "largest share over the mean", Unit::Percent, off(owned.iter().max()));
        report.add(BALANCE, &subject, "least share over the mean", Unit::Percent, off(owned.iter().min()));
    }
    for size in SIZES {
        for (failed, what) in [
            (1, "0.1 % failed: slots of others that change too"),
            (10, "1 % failed: slots of others that change too"),
            (50, "5 % failed: slots of others that change too"),
        ] {
            let share = disruption(size, failed);
            report.add(DISRUPTION, &subject(size, BACKENDS), what, Unit::Percent, share);
        }
    }
}

/// Percent of all slots that change their owner although it did not fail.
fn disruption(size: u32, failed: u32) -> f64 {
    let all = members(BACKENDS);
    let (before, after) = (maglev::table(&all, size, 1), maglev::table(&all[failed as usize..], size, 1));
    let needless = |(old, new): &(&u32, &u32)| **old >= failed && **old != **new + failed;
    100.0 * before.iter().zip(&after).filter(needless).count() as f64 / f64::from(size)
}
