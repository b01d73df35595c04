//! What a packet has to be that leaves as one of the other IP (RFC 7915): of its ends, one hop less, with the same of
//! what it carries, and whole. How its header is made of the other is left to the packet table.

use anyhow::{Context, Result, ensure};
use etherparse::IpNumber;
use foobar_lb::image::address;
use foobar_lb_ebpf::layout::FlowKey;

use super::{
    seen::{Seen, right_checksums},
    translation::{declared_length, hops},
};

/// Bytes of ports, which TCP and UDP begin with.
const PORTS: usize = 4;

/// The packet of a frame went out as `out`, between these ends.
pub fn check(frame: &[u8], seen: &Seen, out: &[u8], to: &FlowKey, handed: bool) -> Result<()> {
    let left = Seen::of(out).context("etherparse reads no headers")?;
    let ends = (address(left.source), address(left.destination));
    ensure!(
        ends == (to.source.address, to.destination.address),
        "from {} to {}",
        left.source,
        left.destination
    );
    let hops = |frame: &[u8], seen: &Seen| frame[seen.at + hops(seen.family())];
    ensure!(hops(out, &left) == hops(frame, seen) - u8::from(!handed), "{} hops", hops(out, &left));
    ensure!(left.is_complete == seen.is_complete, "it says {} bytes", declared_length(out, &left));
    check_checksums(frame, out, &left)?;
    match (seen.quoted(frame), left.quoted(out)) {
        (Some(_), Some(quoted)) => check_quoted(out, &quoted, to),
        (None, None) => check_carried(frame, seen, out, &left, to),
        _ => anyhow::bail!("only one of both is an error"),
    }
}

/// Those that were right still are, and the new header's is.
fn check_checksums(frame: &[u8], out: &[u8], left: &Seen) -> Result<()> {
    let right = right_checksums(out);
    ensure!(left.header_checksum().is_none() || right.contains("of the IP header"), "the header's checksum");
    let name = "behind the IP header";
    ensure!(right.contains(name) || !right_checksums(frame).contains(name), "what was right {name} is not");
    Ok(())
}

/// The packet that an error quotes went the other way.
fn check_quoted(out: &[u8], quoted: &Seen, to: &FlowKey) -> Result<()> {
    let ends = (address(quoted.destination), address(quoted.source));
    ensure!(ends == (to.source.address, to.destination.address), "about one from {}", quoted.source);
    let ports = [to.destination.port, to.source.port].concat();
    ensure!(out.get(quoted.next..quoted.next + PORTS) == Some(&ports[..]), "about other ports");
    Ok(())
}

/// All but ports, checksums and the options of a SYN stays.
fn check_carried(frame: &[u8], seen: &Seen, out: &[u8], left: &Seen, to: &FlowKey) -> Result<()> {
    let carried = |frame: &[u8], seen: &Seen| frame[seen.next..seen.end].to_vec();
    let (mut expected, mut actual) = (carried(frame, seen), carried(out, left));
    ensure!(left.protocol == seen.protocol && left.is_first() == seen.is_first(), "it is another part");
    if seen.is_first() {
        expected[..PORTS].copy_from_slice(&[to.source.port, to.destination.port].concat());
        let checksum = if seen.protocol == IpNumber::TCP { 16..18 } else { 6..8 };
        for bytes in [&mut expected, &mut actual] {
            bytes[checksum.clone()].fill(0);
            let is_syn = seen.protocol == IpNumber::TCP && bytes[13] & 2 != 0;
            let options =
                if is_syn { 20..(usize::from(bytes[12] >> 4) * 4).clamp(20, bytes.len()) } else { 0..0 };
            bytes[options].fill(0);
        }
    }
    ensure!(expected == actual, "it carries something else");
    Ok(())
}
