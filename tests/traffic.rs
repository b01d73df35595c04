//! The traffic tests: the real `foobar-lb` between real sockets, in networks of namespaces. One module per
//! story; they need root and the sandbox that `cargo xtask test traffic` makes.

mod support;

mod affinity;
mod api;
mod attach;
mod bulk;
mod checksums;
mod consistency;
mod decap;
mod direct;
mod download;
mod drain;
mod failure;
mod first_reply;
mod forward;
mod fragments;
mod graceful;
mod icmp;
mod keepalived;
mod leaving;
mod lifecycle;
mod maintain;
mod mysql;
mod one_arm;
mod passthrough;
mod path_mtu;
mod ping;
mod plan;
mod quic;
mod reload;
mod reload_under_load;
mod restart;
mod rights;
mod routes;
mod same_subnet;
mod snat;
mod spread;
mod traceroute;
mod tunnel;
mod unmatched;
mod vip;
mod waiting;
mod watch;
mod wide;
mod word;
