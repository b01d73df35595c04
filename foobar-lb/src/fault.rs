//! Failures on purpose, for the tests that prove what a failure midway does no harm to: writes to the maps that fail, or
//! that the daemon does not survive.

use std::{env, io, process};

use crate::bpf;

/// `fail:N` has the write after the first N fail, once; `kill:N` ends the process there, as `kill -9` does.
const VARIABLE: &str = "FOOBAR_LB_TEST_FAULT";

/// What is to go wrong, and before which write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The write fails.
    Fail(u64),
    /// The process ends.
    Kill(u64),
}

impl Fault {
    /// What the environment asks for: nothing, but in tests.
    pub fn asked_for() -> Self {
        env::var(VARIABLE).ok().and_then(|asked| Self::read(&asked)).unwrap_or(Self::None)
    }

    fn read(asked: &str) -> Option<Self> {
        let (what, after) = asked.split_once(':')?;
        let after = after.parse().ok()?;
        match what {
            "fail" => Some(Self::Fail(after)),
            "kill" => Some(Self::Kill(after)),
            _ => None,
        }
    }

    /// To be called before each write, with how many there were.
    ///
    /// # Errors
    /// When this is the write that is to fail.
    pub fn strike(&mut self, written: u64) -> Result<(), bpf::Error> {
        match *self {
            Self::Fail(after) if after == written => {
                *self = Self::None;
                Err(bpf::Error::Injected(io::Error::other("a failure on purpose")))
            }
            // Nothing is dropped, flushed or told.
            Self::Kill(after) if after == written => process::abort(),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strikes_once_and_where_it_is_asked_to() {
        let mut fault = Fault::read("fail:2").expect("it is read");
        assert!(fault.strike(1).is_ok());
        assert!(fault.strike(2).is_err());
        assert!(fault.strike(2).is_ok());
        assert_eq!(Fault::read("kill:7"), Some(Fault::Kill(7)));
        assert_eq!(Fault::read("nonsense"), None);
    }
}
