//! The traffic tests: the real `foobar-lb` between real sockets, in networks of namespaces. One module per
//! story; they need root and the sandbox that `cargo xtask test traffic` makes.

mod support;

mod attach;
mod bulk;
mod consistency;
mod direct;
mod download;
mod drain;
mod failure;
mod first_reply;
mod forward;
mod graceful;
mod icmp;
mod keepalived;
mod lifecycle;
mod mysql;
mod one_arm;
mod passthrough;
mod reload;
mod same_subnet;
mod spread;
mod vip;
