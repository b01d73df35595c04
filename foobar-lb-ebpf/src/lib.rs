//! The data path of foobar-lb, written once and built twice: for the kernel, where `shell.rs` lends it real
//! maps and packets, and for the host, where tests, the fuzzer and `explain` lend it ordinary memory.
//!
//! Start at [`balance::balance`]: the whole path is on that screen.

#![cfg_attr(not(test), no_std)]

#[cfg(not(target_arch = "bpf"))]
extern crate alloc;

pub mod announce;
pub mod balance;
pub mod checksum;
pub mod complain;
pub mod conntrack;
pub mod decap;
pub mod echo;
pub mod extension;
pub mod flow;
pub mod forward;
pub mod fragment;
pub mod headers;
pub mod ip;
pub mod layout;
pub mod mss;
pub mod nat64;
pub mod packet;
pub mod quic;
pub mod reason;
pub mod reset;
pub mod snat;
pub mod tables;
pub mod translate;
pub mod tunnel;
pub mod unmatched;
pub mod vlan;
pub mod word;
