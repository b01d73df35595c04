//! The control plane of foobar-lb. `ARCHITECTURE.md` has the map; [`daemon`] is the heart.

pub mod announce;
pub mod api;
pub mod attach;
pub mod bpf;
pub mod client;
pub mod config;
pub mod daemon;
pub mod decap;
pub mod health;
pub mod image;
pub mod maglev;
pub mod metrics;
pub mod model;
pub mod neighbour;
pub mod plan;
pub mod prime;
pub mod reload;
pub mod seed;
pub mod slots;
pub mod start;
pub mod state;
pub mod status;
pub mod sweep;
pub mod sysctl;
pub mod tasks;
pub mod twin;
