//! What QUIC packets show of themselves to those between their ends (RFC 8999).

/// Bytes behind the headers of the shortest packets: a tag, and what is needed to take off their protection
/// (RFC 9001, 5.4.2).
const PROTECTED: usize = 20;
/// Of a datagram that begins a connection (RFC 9000, 14.1).
const INITIAL: usize = 1200;

/// Which of the two headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Of packets in mid-connection: the receiver knows how long its ids are.
    Short,
    /// Of packets that begin a connection: it says how long the id is.
    Long,
}

impl Header {
    pub const BOTH: [Self; 2] = [Self::Short, Self::Long];

    /// A packet to this connection id.
    pub fn packet(self, id: &[u8]) -> Vec<u8> {
        match self {
            Self::Short => [&[0x43], id, &[0x5a; PROTECTED]].concat(),
            Self::Long => {
                let no_source = 0;
                let mut packet = [&[0xc3, 0, 0, 0, 1, id.len() as u8], id, &[no_source]].concat();
                packet.resize(INITIAL, 0x5a);
                packet
            }
        }
    }
}
