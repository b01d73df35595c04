//! Keeps the kernel from sending IPv6 redirects, which no kernel setting does: a packet filter's rule drops
//! them on their way out. The rule is in a table that nftables removes when its owner ends, so it outlives
//! neither this process nor its crash, unless it is meant to.

use std::{
    io::{self, Write},
    process::{Child, Command, Stdio, id},
    thread::sleep,
    time::Duration,
};

use thiserror::Error;

/// How often, and for how long each time, the rule is waited for.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

const RULE: &str = "chain redirects { type filter hook output priority 0; icmpv6 type nd-redirect drop; };";

/// Why IPv6 redirects go on being sent.
#[derive(Debug, Error)]
pub enum Error {
    /// The command is not installed or cannot be run.
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    /// It did not take the rule.
    #[error("nft did not take the rule")]
    Refused,
}

/// The table of the rule that outlives the daemon, as the data path does.
const LASTING: &str = "foobar_lb";

/// The owner of the rule: an nft that waits for more commands. The rule goes with it.
#[derive(Debug)]
pub struct NoRedirects(Child);

/// Adds the rule in this network namespace, for as long as [`allow_again`] is not called.
pub fn forbid_lastingly() -> Result<(), Error> {
    if is_there(LASTING)? { Ok(()) } else { command(&format!("table ip6 {LASTING} {{ {RULE} }}")) }
}

/// Removes what [`forbid_lastingly`] has added, if it was added.
pub fn allow_again() -> Result<(), Error> {
    if is_there(LASTING)? { command(&format!("delete table ip6 {LASTING}")) } else { Ok(()) }
}

fn command(words: &str) -> Result<(), Error> {
    let status = Command::new("nft").arg(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if status.map_err(Error::Run)?.success() { Ok(()) } else { Err(Error::Refused) }
}

impl NoRedirects {
    /// Adds the rule in this network namespace.
    pub fn enforce() -> Result<Self, Error> {
        let owner = Command::new("nft")
            .arg("--interactive")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::Run)?;
        let mut redirects = Self(owner);
        let table = format!("foobar_lb_{}", id());
        let rule = format!("table ip6 {table} {{ flags owner; {RULE} }}\n");
        let commands = redirects.0.stdin.as_mut().expect("it was spawned with a pipe");
        commands.write_all(rule.as_bytes()).map_err(Error::Run)?;
        for _ in 0..TRIES {
            if is_there(&table)? {
                return Ok(redirects);
            }
            sleep(PAUSE);
        }
        Err(Error::Refused)
    }
}

fn is_there(table: &str) -> Result<bool, Error> {
    let mut list = Command::new("nft");
    list.args(["list", "table", "ip6", table]).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(list.status().map_err(Error::Run)?.success())
}

impl Drop for NoRedirects {
    /// The end of its commands ends it.
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            tracing::warn!("the rule against IPv6 redirects may still be there: {error}");
        }
    }
}
