//! The data path of foobar-lb, written once and built twice: for the kernel, where `shell.rs` lends it real
//! maps and packets, and for the host, where tests, the fuzzer and `explain` lend it ordinary memory.
//!
//! Start at [`balance::balance`]: the whole path is on that screen.

#![cfg_attr(not(test), no_std)]

pub mod announce;
pub mod balance;
pub mod checksum;
pub mod conntrack;
pub mod flow;
pub mod forward;
pub mod headers;
pub mod layout;
pub mod packet;
pub mod reason;
pub mod word;
