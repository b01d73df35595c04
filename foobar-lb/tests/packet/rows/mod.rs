//! The rows, by what they are about.

mod affinity;
mod announce;
mod clamp;
mod complain;
mod dsr;
mod echo;
mod errors;
mod extensions;
mod foreign;
mod forward;
mod fragments;
pub mod nat64;
pub mod quic;
mod refuse;
mod remember;
mod reply;
mod reset;
mod routes;
pub mod snat;
mod tunnel;
mod vlan;
mod ways;
pub mod wide;

use super::{
    Row,
    frame::{Datagram, Transport},
    wiring::WIRINGS,
    world::Family,
};

/// The whole table: every row as it is, and in every wiring that makes a difference to it.
pub fn all() -> Vec<Row> {
    let rows = plain();
    let wired = WIRINGS.iter().flat_map(|wiring| rows.iter().filter_map(|row| wiring.of(row)));
    let wired: Vec<_> = wired.collect();
    [rows, wired, vlan::rows()].concat()
}

/// The rows of frames without VLAN tags.
fn plain() -> Vec<Row> {
    [
        forward::rows(),
        reply::rows(),
        routes::rows(),
        ways::rows(),
        dsr::rows(),
        tunnel::rows(),
        fragments::rows(),
        extensions::rows(),
        clamp::rows(),
        refuse::rows(),
        reset::rows(),
        complain::rows(),
        echo::rows(),
        foreign::rows(),
        errors::rows(),
        announce::rows(),
        remember::rows(),
        affinity::rows(),
        wide::rows(),
        snat::rows(),
        nat64::rows(),
        quic::rows(),
    ]
    .concat()
}

/// One row for each family and transport protocol.
fn each(row: impl Fn(Family, Transport) -> Row) -> Vec<Row> {
    let families = Family::BOTH.into_iter();
    families
        .flat_map(|family| [Transport::Ack, Transport::Udp].map(|transport| row(family, transport)))
        .collect()
}

/// What a row of [`each`] is about.
fn called(what: &str, datagram: &Datagram) -> String {
    format!("{what} ({} {:?})", datagram.transport.protocol(), datagram.family())
}
