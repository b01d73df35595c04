//! The rows, by what they are about.

mod announce;
mod errors;
mod foreign;
mod forward;
mod refuse;
mod remember;
mod reply;

use super::{
    Row,
    frame::{Datagram, Transport},
    world::Family,
};

/// The whole table.
pub fn all() -> Vec<Row> {
    [
        forward::rows(),
        reply::rows(),
        refuse::rows(),
        foreign::rows(),
        errors::rows(),
        announce::rows(),
        remember::rows(),
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
