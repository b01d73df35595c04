//! A look at the frames that arrive at an interface, and a way to send any frame from it.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use lab::Namespace;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc::PACKET_OUTGOING;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, setsockopt,
    socket, sockopt::RcvBufForce,
};

/// Room for the frames that arrive between two looks.
const RECEIVE_BUFFER: usize = 64 << 20;

/// A packet socket at one interface.
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    /// From now on, frames that arrive at the interface are kept.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = namespace.enter(|| open_packet_socket(interface))?;
        let socket =
            socket.with_context(|| format!("no packet socket at {} {interface}", namespace.name()))?;
        Ok(Self { socket })
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).context("cannot send a frame")?;
        Ok(())
    }

    /// The frames that arrived since the last look.
    pub fn received(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((_, Some(from))) if from.pkttype() == PACKET_OUTGOING => {}
                Ok((length, _)) => frames.push(buffer[..length].to_vec()),
                Err(Errno::EAGAIN) => return Ok(frames),
                Err(error) => return Err(error).context("cannot receive frames"),
            }
        }
    }
}

fn open_packet_socket(interface: &str) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
    let mut links = getifaddrs()?.filter(|entry| entry.interface_name == interface);
    let address = links.find_map(|entry| entry.address?.as_link_addr().copied()).ok_or(Errno::ENODEV)?;
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}
