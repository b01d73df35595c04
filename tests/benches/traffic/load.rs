//! What clients do, and what comes of it: loads that wrk puts on servers, and small packets one after the other.

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
    /// UDP in frames of 80 bytes, whom no server sees: they are counted where they leave the balancer, and go no further.
    SmallPackets,
}

/// What a turn was worth.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Answers, all of them good, or packets that arrived.
    pub operations: u64,
    pub seconds: f64,
    /// That clients received, or that packets had when they were sent.
    pub bytes: u64,
    /// Of answers.
    pub latency: Option<Latency>,
    /// That all CPUs of the machine were busy, for clients and servers too.
    pub cpu_seconds: f64,
}

/// Microseconds that answers took.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// Half of them at most.
    pub p50: f64,
    /// 99 of 100 at most.
    pub p99: f64,
}

impl Load {
    pub const ALL: [Self; 4] = [Self::KeepAlive, Self::NewConnections, Self::Downloads, Self::SmallPackets];

    /// What the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive requests",
            Self::NewConnections => "new connections",
            Self::Downloads => "1 MiB downloads",
            Self::SmallPackets => "small packets",
        }
    }

    /// Its key in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep_alive",
            Self::NewConnections => "new_connections",
            Self::Downloads => "downloads",
            Self::SmallPackets => "small_packets",
        }
    }

    /// What is asked for.
    pub fn path(self) -> &'static str {
        if self == Self::Downloads { "/mebibyte" } else { "/few" }
    }

    /// What servers are asked for, into the directory that they serve.
    pub fn write_files(directory: &Path) -> Result<()> {
        fs::write(directory.join("few"), "as short as an answer may be\n")?;
        fs::write(directory.join("mebibyte"), vec![b'.'; MEBIBYTE])?;
        Ok(())
    }

    /// Asks both servers, each by half of the connections, for so many seconds. All answers have to be good.
    pub fn ask(self, client: &Namespace, servers: [SocketAddr; 2], seconds: u64) -> Result<Sample> {
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
        let latency = Some(Latency { p50, p99 });
        Ok(Sample { operations: operations as u64, seconds, bytes: bytes as u64, latency, cpu_seconds })
    }

    fn words(self, script: &Path, server: SocketAddr, seconds: u64) -> Vec<String> {
        let connections = match self {
            // So many that a hash spreads them over two servers of one process each nearly as evenly as clients who know
            // both servers do, and proxies that take turns.
            Self::KeepAlive => 256,
            Self::Downloads => 4,
            _ => 32,
        };
        let mut words = vec![
            "wrk".to_owned(),
            format!("--threads={THREADS}"),
            format!("--connections={connections}"),
            format!("--duration={seconds}s"),
            "--timeout=30s".to_owned(),
            format!("--script={}", script.display()),
        ];
        if self == Self::NewConnections {
            words.push("--header=Connection: close".to_owned());
        }
        words.push(format!("http://{server}{}", self.path()));
        words
    }
}

impl Sample {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.seconds
    }
}

fn lua(servers: [SocketAddr; 2]) -> String {
    let hosts = servers.map(|server| format!("\"{}\"", server.ip())).join(", ");
    LUA.replace("SERVERS", &hosts).replace("PORT", &servers[0].port().to_string())
}

fn read_numbers(line: &str) -> Option<Vec<f64>> {
    line.split_whitespace().map(|number| number.parse().ok()).collect()
}
