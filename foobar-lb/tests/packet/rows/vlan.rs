//! Frames with VLAN tags that nobody serves. All other rows are run with tags too, see `wiring`.

use foobar_lb_ebpf::{layout::Tags, reason::Reason};

use crate::packet::{
    Row,
    frame::{Datagram, Transport},
    wiring::{WIRINGS, tagged},
    world::{CLIENT_SIDE, Family, Story, TRUNK},
};

const DOT1Q: u32 = 0x8100 << 16;
const DOT1AD: u32 = 0x88a8 << 16;
/// Of the VLAN that is served.
const KNOWN: Tags = Tags { outer: DOT1Q | 10, inner: 0 };

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for family in Family::BOTH {
        let frame = Datagram::request(family, Transport::Syn).frame();
        let unknown =
            |what: &str, outer, inner| unknown(&format!("{what} ({family:?})"), &frame, outer, inner);
        rows.extend([
            unknown("another VLAN", DOT1Q | 11, 0),
            unknown("the same VLAN of another protocol", DOT1AD | 10, 0),
            unknown("a VLAN within a known one", DOT1Q | 10, DOT1Q | 11),
            unknown("a known VLAN within another", DOT1Q | 11, DOT1Q | 10),
        ]);
        rows.push(on_another_interface(&frame, family));
        rows.push(three_tags(&frame, family));
    }
    rows.extend((14..22).map(cut_short));
    rows
}

/// It goes to the kernel byte for byte.
fn passes(name: String, ingress: u32, frame: Vec<u8>, why: Reason) -> Row {
    let image = WIRINGS[0].image(Story::settled().image());
    let row = Row::passes(name, image, ingress, frame, why);
    assert_eq!(row.image.vlans.len(), 1, "there is a VLAN");
    row
}

fn unknown(what: &str, frame: &[u8], outer: u32, inner: u32) -> Row {
    let frame = tagged(frame, Tags { outer, inner });
    passes(format!("a request in {what}"), TRUNK.index, frame, Reason::UnknownVlan)
}

fn on_another_interface(frame: &[u8], family: Family) -> Row {
    let frame = tagged(frame, KNOWN);
    let name = format!("a request in a VLAN of another interface ({family:?})");
    passes(name, CLIENT_SIDE.index, frame, Reason::UnknownVlan)
}

/// The two outer ones are those of a VLAN device.
fn three_tags(frame: &[u8], family: Family) -> Row {
    let within = WIRINGS.into_iter().find(|wiring| wiring.name().starts_with("clients in a VLAN in a VLAN"));
    let tags = Tags { outer: DOT1Q | 100, inner: DOT1Q | 10 };
    let frame = tagged(&tagged(frame, KNOWN), tags);
    let image = within.expect("it is there").image(Story::settled().image());
    let row = passes(format!("three tags ({family:?})"), TRUNK.index, frame, Reason::UnknownVlan);
    Row { image, ..row }
}

/// The beginning of a request in a VLAN that is served.
fn cut_short(length: usize) -> Row {
    let frame = tagged(&Datagram::request(Family::V4, Transport::Syn).frame(), KNOWN)[..length].to_vec();
    let row = passes(
        format!("the first {length} bytes of a tagged request"),
        TRUNK.index,
        frame,
        Reason::Malformed,
    );
    // Those that go beyond the tag come off it first.
    Row { tags: if length < 18 { 0 } else { 4 }, ..row }
}
