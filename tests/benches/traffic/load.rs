//! What clients do: loads that wrk puts on servers, and what comes of them.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use lab::Namespace;

use super::counters::busy_seconds;

const MEBIBYTE: usize = 1 << 20;
const SCRIPT: &str = "wrk.lua";

/// wrk's threads, one for each server that may be asked.
const THREADS: u8 = 2;

/// Has each thread ask a server of its own, and prints what there is to know in one line (wrk's SCRIPTING): times are in
/// microseconds.
const LUA: &str = r#"
local servers = { SERVERS }
local threads = 0

function setup(thread)
   threads = threads + 1
   thread.addr = wrk.lookup(servers[threads], PORT)[1]
end

function done(summary, latency)
   local errors = summary.errors
   print("measured", summary.requests, summary.duration, summary.bytes,
      latency:percentile(50), latency:percentile(99),
      errors.connect + errors.read + errors.write + errors.status + errors.timeout)
end
"#;

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// A few bytes, again and again on the same connections.
    KeepAlive,
    /// A few bytes on a connection of their own.
    NewConnections,
    /// A mebibyte, again and again on few connections.
    Downloads,
}

/// What a turn was worth.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Answers, all of them good.
    pub operations: u64,
    pub seconds: f64,
    /// That clients received.
    pub bytes: u64,
    /// Microseconds that half of all answers took at most.
    pub p50: f64,
    /// And 99 of 100.
    pub p99: f64,
    /// That all CPUs of the machine were busy, for clients and servers too.
    pub cpu_seconds: f64,
}

impl Load {
    pub const ALL: [Self; 3] = [Self::KeepAlive, Self::NewConnections, Self::Downloads];

    /// Its key in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep_alive",
            Self::NewConnections => "new_connections",
            Self::Downloads => "downloads",
        }
    }

    /// What is asked for.
    pub fn path(self) -> &'static str {
        match self {
            Self::KeepAlive | Self::NewConnections => "/few",
            Self::Downloads => "/mebibyte",
        }
    }

    /// What servers are asked for, into the directory that they serve.
    pub fn write_files(directory: &Path) -> Result<()> {
        fs::write(directory.join("few"), "as short as an answer may be\n")?;
        fs::write(directory.join("mebibyte"), vec![b'.'; MEBIBYTE])?;
        Ok(())
    }

    /// Asks both servers, each by half of the connections, for so many seconds. All answers have to be good.
    pub fn run(self, client: &Namespace, servers: [SocketAddr; 2], seconds: u64) -> Result<Sample> {
        let script = client.directory().join(SCRIPT);
        fs::write(&script, lua(servers))?;
        let before = busy_seconds()?;
        let output = client.run(self.words(&script, servers[0], seconds))?;
        let cpu_seconds = busy_seconds()? - before;
        let line = output.lines().find_map(|line| line.strip_prefix("measured"));
        let measured = line.and_then(read_numbers).with_context(|| format!("wrk printed:\n{output}"))?;
        let [operations, microseconds, bytes, p50, p99, errors] = measured[..] else {
            bail!("wrk printed:\n{output}");
        };
        ensure!(errors == 0.0 && operations > 0.0, "clients met errors; wrk printed:\n{output}");
        let seconds = microseconds / 1e6;
        Ok(Sample { operations: operations as u64, seconds, bytes: bytes as u64, p50, p99, cpu_seconds })
    }

    fn words(self, script: &Path, server: SocketAddr, seconds: u64) -> Vec<String> {
        let connections = match self {
            Self::KeepAlive | Self::NewConnections => 32,
            Self::Downloads => 4,
        };
        let mut words = vec![
            "wrk".to_owned(),
            format!("--threads={THREADS}"),
            format!("--connections={connections}"),
            format!("--duration={seconds}s"),
            format!("--script={}", script.display()),
        ];
        if self == Self::NewConnections {
            words.push("--header=Connection: close".to_owned());
        }
        words.push(format!("http://{server}{}", self.path()));
        words
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::KeepAlive => "keep-alive requests",
            Self::NewConnections => "new connections",
            Self::Downloads => "1 MiB downloads",
        })
    }
}

impl Sample {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    /// CPU seconds per operation.
    pub fn cost(&self) -> f64 {
        self.cpu_seconds / self.operations as f64
    }
}

fn lua(servers: [SocketAddr; 2]) -> String {
    let hosts = servers.map(|server| format!("\"{}\"", server.ip())).join(", ");
    LUA.replace("SERVERS", &hosts).replace("PORT", &servers[0].port().to_string())
}

fn read_numbers(line: &str) -> Option<Vec<f64>> {
    line.split_whitespace().map(|number| number.parse().ok()).collect()
}
