//! The program of a backend in this machine's kernel, on the same rows as on the host.

#[path = "../decap/host.rs"]
mod host;
#[path = "../decap/packets.rs"]
mod packets;
#[path = "../decap/rows.rs"]
mod rows;

use std::cell::RefCell;

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::programs::{TestRun, TestRunOptions};
use foobar_lb::bpf::{Attach, Decap};
use foobar_lb_ebpf::{decap::Outcome, reason::Verdict};
use packets::{ETHERNET, GUE_PORT};
use proptest::{
    prop_assert_eq,
    test_runner::{Config, RngSeed, TestRunner},
};
use rows::Told;

const COMPARISONS: u32 = 2_000;

#[test]
fn every_row_of_the_table_holds() -> Result<()> {
    let mut kernel = load()?;
    let mut run = |frame: &[u8]| run(&mut kernel, frame).expect("the program runs");
    let rows = rows::all();
    let wrong: Vec<String> = rows
        .iter()
        .filter(|row| row.frame.len() >= ETHERNET)
        .filter_map(|row| row.check(&mut run).err())
        .collect();
    ensure!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn kernel_and_host_agree_on_any_frame() -> Result<()> {
    let kernel = RefCell::new(load()?);
    let config = Config {
        cases: COMPARISONS,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..Config::default()
    };
    let compared = TestRunner::new(config).run(&rows::noise(ETHERNET), |frame| {
        let in_kernel = run(&mut kernel.borrow_mut(), &frame).expect("the program runs");
        prop_assert_eq!(in_kernel, host::run(&frame));
        Ok(())
    });
    compared.map_err(|error| anyhow!("{error}"))
}

fn load() -> Result<Decap> {
    Decap::load(&rows::vips().into(), GUE_PORT).context("the program does not load")
}

fn run(kernel: &mut Decap, frame: &[u8]) -> Result<Told> {
    let before = kernel.outcomes()?;
    let mut left = vec![0; frame.len()];
    let options =
        TestRunOptions { data_in: Some(frame), data_out: Some(&mut left), ..TestRunOptions::default() };
    let run = kernel.xdp().test_run(options)?;
    left.truncate(run.data_size_out as usize);
    let verdict = match run.return_value {
        1 => Verdict::Drop,
        2 => Verdict::Pass,
        other => bail!("the program returned {other}"),
    };
    Ok(Told { verdict, frame: left, outcome: counted(&before, &kernel.outcomes()?)? })
}

/// The one outcome that counts one packet more.
fn counted(before: &[(Outcome, u64)], after: &[(Outcome, u64)]) -> Result<Outcome> {
    let mut more = before.iter().zip(after).filter(|((_, before), (_, after))| after > before);
    let (Some(((outcome, before), (_, after))), None) = (more.next(), more.next()) else {
        bail!("not one outcome counts more: {before:?} {after:?}");
    };
    ensure!(after - before == 1, "counted more than once as {outcome:?}");
    Ok(*outcome)
}
