//! The program of a backend on the host.

use std::cell::Cell;

use foobar_lb::image::address;
use foobar_lb_ebpf::{
    decap::{Outcome, Tables, decapsulate},
    layout::Address,
    packet::Buffer,
};

use super::{
    packets::GUE_PORT,
    rows::{Told, vips},
};

/// What it makes of a frame.
pub fn run(frame: &[u8]) -> Told {
    let tables = Host { outcome: Cell::new(None) };
    let mut packet = Buffer { bytes: frame.to_vec(), ingress: 1 };
    let verdict = decapsulate(&mut packet, &tables);
    Told { verdict, frame: packet.bytes, outcome: tables.outcome.get().expect("every packet is counted") }
}

struct Host {
    /// Where the one packet is counted.
    outcome: Cell<Option<Outcome>>,
}

impl Tables for Host {
    fn is_vip(&self, destination: &Address) -> bool {
        vips().into_iter().any(|vip| address(vip) == *destination)
    }

    fn gue_port(&self) -> [u8; 2] {
        GUE_PORT.to_be_bytes()
    }

    fn count(&self, outcome: Outcome) {
        assert!(self.outcome.replace(Some(outcome)).is_none(), "counted twice");
    }
}
