//! VLAN tags (IEEE 802.1Q; two of them, the outer one often of 802.1ad): taken off a frame before anything else looks at it,
//! and put on when it leaves. So all the rest of the data path knows of interfaces only: a frame with tags comes in by the
//! VLAN device that the kernel has for them, and leaves by such a device with the tags of that one.

use core::mem::offset_of;

use crate::{
    headers::{EtherType, Ethernet, Word, ether_type},
    layout::{Tags, VLAN_DEVICE, VlanKey},
    packet::{Frame, Packet},
    reason::{Reason, Verdict},
    tables::Tables,
};

/// Where the first tag of a frame begins, and the second.
const OUTER: u32 = offset_of!(Ethernet, ether_type) as u32;
const INNER: u32 = OUTER + TAG;
/// Bytes of a tag.
const TAG: u32 = size_of::<Word>() as u32;

/// Whether a frame has tags.
#[inline(always)]
pub fn is_tagged(frame: &Frame<'_>) -> bool {
    frame.at::<Ethernet>(0).is_ok_and(|ethernet| is_vlan(ethernet.ether_type))
}

#[inline(always)]
fn is_vlan(ether_type: EtherType) -> bool {
    matches!(ether_type, ether_type::VLAN | ether_type::SERVICE_VLAN)
}

/// The tags of a frame that has some. Of more than two, `UnknownVlan`.
#[inline(always)]
pub fn read(frame: &Frame<'_>) -> Result<Tags, Reason> {
    let outer = read_tag(frame, OUTER)?;
    let inner = read_tag(frame, INNER)?;
    if inner != 0 && read_tag(frame, INNER + TAG)? != 0 {
        return Err(Reason::UnknownVlan);
    }
    Ok(Tags { outer, inner })
}

/// A tag as a number; 0 where there is another ether type.
#[inline(always)]
fn read_tag(frame: &Frame<'_>, at: u32) -> Result<u32, Reason> {
    match is_vlan(*frame.at(at)?) {
        true => Ok(u32::from_be_bytes(*frame.at::<Word>(at)?)),
        false => Ok(0),
    }
}

/// Takes its tags off a frame; the index of the interface that it counts as come in by from now on. `UnknownVlan` where there
/// is none for these tags, and the frame keeps them.
#[inline(always)]
pub fn enter<P: Packet, T: Tables>(packet: &mut P, tables: &T, tags: Tags) -> Result<u32, Reason> {
    let (interface, names) = (packet.ingress(), tags.names());
    let ingress = match names.is_none() {
        true => interface,
        false => tables.vlan(&VlanKey { interface, tags: names }).ok_or(Reason::UnknownVlan)?,
    };
    let macs = packet.frame().at::<Ethernet>(0)?.macs();
    packet.move_start(tags.length()).map_err(|_| Reason::Malformed)?;
    packet.frame().at_mut::<Ethernet>(0)?.set_macs(macs);
    Ok(ingress)
}

/// Gives a frame of which a verdict has been reached the tags that it leaves with: those that it came with where it goes to
/// the kernel or back, else those of the interface that it is sent by. `physical` is the index of the interface that it
/// really came in by: what leaves in another VLAN of that one goes back, too.
#[inline(always)]
pub fn leave<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    physical: u32,
    tags: Tags,
    verdict: Verdict,
) -> Verdict {
    match try_leave(packet, tables, physical, tags, verdict) {
        Ok(verdict) => verdict,
        Err(reason) => {
            tables.count(reason, packet.length().into());
            Verdict::Drop
        }
    }
}

#[inline(always)]
fn try_leave<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    physical: u32,
    tags: Tags,
    verdict: Verdict,
) -> Result<Verdict, Reason> {
    let egress = match verdict {
        Verdict::Drop => return Ok(Verdict::Drop),
        Verdict::Pass | Verdict::Transmit => {
            put_on(packet, tags)?;
            return Ok(verdict);
        }
        Verdict::Redirect(egress) if egress & VLAN_DEVICE == 0 => egress,
        Verdict::Redirect(egress) => {
            let device = tables.interface(egress & !VLAN_DEVICE).ok_or(Reason::Unresolved)?;
            let below = device.physical;
            put_on(packet, device.tags)?;
            below
        }
    };
    Ok(if egress == physical { Verdict::Transmit } else { Verdict::Redirect(egress) })
}

#[inline(always)]
fn put_on<P: Packet>(packet: &mut P, tags: Tags) -> Result<(), Reason> {
    if tags.is_none() {
        return Ok(());
    }
    let macs = packet.frame().at::<Ethernet>(0)?.macs();
    packet.move_start(-tags.length())?;
    let mut frame = packet.frame();
    frame.at_mut::<Ethernet>(0)?.set_macs(macs);
    *frame.at_mut::<Word>(OUTER)? = tags.outer.to_be_bytes();
    if tags.inner != 0 {
        *frame.at_mut::<Word>(INNER)? = tags.inner.to_be_bytes();
    }
    Ok(())
}
