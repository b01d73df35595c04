//! Refusing a TCP connection: a RST in the packet's place (RFC 9293, 3.5.2).

use network_types::tcp::TcpHdr;

use crate::{
    flow::{IP, Parsed},
    headers::{Ethernet, Ports, Word},
    ip::Fresh,
    layout::TCP,
    packet::Packet,
    reason::Reason,
};

/// What a TCP header says of where a segment stands in its connection.
struct Segment {
    sequence: u32,
    acknowledges: Option<u32>,
    /// Bytes of sequence that it takes: its data, and one for a SYN or a FIN.
    length: u32,
}

/// Answers any segment; a RST must not be answered.
#[inline(always)]
pub fn reset<P: Packet>(packet: &mut P, parsed: &Parsed) -> Result<(), Reason> {
    let family = parsed.family;
    let segment = read(packet, parsed)?;
    packet.cut(IP + family.header_length() + TcpHdr::LEN as u32)?;
    let mut frame = packet.frame();
    frame.at_mut::<Ethernet>(0)?.turn_back();
    let fresh = Fresh {
        source: &parsed.flow.destination.address,
        destination: &parsed.flow.source.address,
        protocol: TCP,
        length: (family.header_length() + TcpHdr::LEN as u32) as u16,
        traffic_class: 0,
    };
    family.write(&mut frame, IP, &fresh)?;
    let tcp = IP + family.header_length();
    let (source, destination) = (parsed.flow.destination.port, parsed.flow.source.port);
    *frame.at_mut::<Ports>(tcp)? = Ports { source, destination };
    let words = segment.answer();
    let mut check = family.pseudo_header(&fresh).word([0; 2], source).word([0; 2], destination);
    for (place, word) in words.iter().enumerate() {
        *frame.at_mut::<Word>(tcp + PORTS + place as u32 * PORTS)? = *word;
        check = check.added(*word);
    }
    frame.at_mut::<TcpHdr>(tcp)?.check = check.finish();
    Ok(())
}

const PORTS: u32 = size_of::<Ports>() as u32;

#[inline(always)]
fn read<P: Packet>(packet: &mut P, parsed: &Parsed) -> Result<Segment, Reason> {
    let frame = packet.frame();
    let tcp = frame.at::<TcpHdr>(parsed.ip.next)?;
    let headers = parsed.ip.next - IP + u32::from(tcp.doff()) * size_of::<Word>() as u32;
    let data = u32::from(parsed.ip.length).saturating_sub(headers);
    Ok(Segment {
        sequence: u32::from_be_bytes(tcp.seq),
        acknowledges: (tcp.ack() != 0).then(|| u32::from_be_bytes(tcp.ack_seq)),
        length: data + u32::from(tcp.syn() != 0) + u32::from(tcp.fin() != 0),
    })
}

impl Segment {
    /// All of the answer's header but the ports.
    #[inline(always)]
    fn answer(&self) -> [Word; 4] {
        /// Five words of header, no options.
        const OFFSET: u8 = 5 << 4;
        const RST: u8 = 0x04;
        const ACK: u8 = 0x10;
        let (sequence, acknowledgement, flags) = match self.acknowledges {
            Some(expected) => (expected, 0, RST),
            None => (0, self.sequence.wrapping_add(self.length), RST | ACK),
        };
        [sequence.to_be_bytes(), acknowledgement.to_be_bytes(), [OFFSET, flags, 0, 0], [0; 4]]
    }
}
