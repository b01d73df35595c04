//! Shows what tests print, as they print it, and counts their results.

use std::fmt;
use std::io::{BufRead, BufReader, Write, stdout};
use std::ops::AddAssign;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result};

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
}

impl Tally {
    /// What is counted for a check that is no test, or for tests that ended without a word.
    const FAILURE: Self = Self { passed: 0, failed: 1, skipped: 0 };

    /// Runs a command that prints results of tests, or none. One that fails without any is one failure.
    pub fn of(command: &mut Command) -> Result<Self> {
        Self::show_and_count(command, &mut stdout())
    }

    fn show_and_count(command: &mut Command, shown: &mut impl Write) -> Result<Self> {
        let mut tally = Self::default();
        let status = show_lines(command, shown, |line| {
            if let Some(results) = Self::read(line) {
                tally += results;
            }
        })?;
        if !status.success() && tally.failed == 0 {
            eprintln!("{command:?}: {status}");
            tally += Self::FAILURE;
        }
        Ok(tally)
    }

    /// Counts a check that is no test: nothing if it holds.
    pub fn of_check(holds: bool) -> Self {
        if holds { Self::default() } else { Self::FAILURE }
    }

    /// Whether nothing failed and, where skipping is no excuse, nothing was skipped.
    pub fn is_good(self, may_skip: bool) -> bool {
        self.failed == 0 && (may_skip || self.skipped == 0)
    }

    /// Reads the last line of a test executable: "test result: ok. 12 passed; 0 failed; 1 ignored; ...".
    fn read(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what: &str| {
            let of_that_kind = |part: &str| part.trim().strip_suffix(what)?.trim().parse().ok();
            counts.split(';').find_map(of_that_kind)
        };
        Some(Self { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Runs a command to its end and passes its output on line by line, each also to `see`.
fn show_lines(
    command: &mut Command,
    shown: &mut impl Write,
    mut see: impl FnMut(&str),
) -> Result<ExitStatus> {
    command.stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let mut output = BufReader::new(child.stdout.take().expect("it was asked for above"));
    let mut line = Vec::new();
    // Bytes, because a test may print what is no UTF-8.
    while output.read_until(b'\n', &mut line)? > 0 {
        shown.write_all(&line)?;
        see(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    child.wait().with_context(|| format!("cannot wait for {command:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_results_of_tests() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s";
        assert_eq!(Tally::read(line), Some(Tally { passed: 12, failed: 2, skipped: 1 }));
        assert_eq!(Tally::read("test balance::passes_what_is_not_ours ... ok"), None);
    }

    #[test]
    fn sums_the_results_of_a_command() {
        let line = "test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out";
        let mut command = Command::new("printf");
        command.arg(format!("{line}\\nnoise\\n{line}\\n"));
        let mut shown = Vec::new();
        let tally = Tally::show_and_count(&mut command, &mut shown).unwrap();
        assert_eq!(tally, Tally { passed: 2, failed: 0, skipped: 2 });
        assert_eq!(shown, format!("{line}\nnoise\n{line}\n").into_bytes());
    }

    #[test]
    fn counts_a_command_that_fails_without_results() {
        assert_eq!(Tally::of(&mut Command::new("false")).unwrap(), Tally::FAILURE);
    }

    #[test]
    fn forgives_skipped_tests_only_where_that_is_allowed() {
        let tally = Tally { skipped: 1, ..Tally::default() };
        assert!(tally.is_good(true));
        assert!(!tally.is_good(false));
        assert!(!Tally::FAILURE.is_good(true));
    }
}
