//! What the stories share: the usual networks, the balancer under test, servers to balance, clients that
//! ask them, and a look at the wire. What is expected of them is left to the stories.

pub mod balancer;
pub mod bpffs;
pub mod config;
pub mod conversation;
pub mod crowd;
pub mod decap;
pub mod digest;
pub mod echo;
pub mod frames;
pub mod http;
pub mod load;
pub mod network;
pub mod nginx;
pub mod quic;
pub mod site;
pub mod traces;
pub mod tshark;
pub mod wire;

use std::time::Duration;

/// Long enough for anything that should happen at once, even on a loaded machine.
pub const SOON: Duration = Duration::from_secs(5);

/// Long enough for what takes probes, timeouts or a start.
pub const EVENTUALLY: Duration = Duration::from_secs(30);
