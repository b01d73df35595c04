//! Frames that are sent by an interface as they are, past the kernel's own stack.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{LinkAddr, MsgFlags, sendto},
};

/// Every host on a link.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interfaces cannot be listed.
    #[error("cannot list the network interfaces")]
    List(#[source] Errno),
    /// An interface is gone, or is not Ethernet.
    #[error("there is no Ethernet interface {0:?}")]
    NoInterface(String),
}

/// An interface that frames are sent by.
pub struct Link<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its MAC address.
    pub mac: [u8; 6],
    address: LinkAddr,
}

impl Link<'_> {
    /// Sends a frame by it, or not, if there is no room for it now.
    pub fn send(&self, socket: &OwnedFd, frame: &[u8]) -> Result<(), Errno> {
        sendto(socket.as_raw_fd(), frame, &self.address, MsgFlags::MSG_DONTWAIT).map(|_| ())
    }
}

/// The interfaces of these names.
pub fn find_links<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Vec<Link<'a>>, Error> {
    let addresses = Vec::from_iter(getifaddrs().map_err(Error::List)?);
    let find = |name| {
        let named = addresses.iter().filter(|address| address.interface_name == name);
        let mut links = named.filter_map(|address| address.address.as_ref()?.as_link_addr());
        let address = *links.find(|link| link.hatype() == nix::libc::ARPHRD_ETHER)?;
        Some(Link { name, address, mac: address.addr()? })
    };
    names.into_iter().map(|name| find(name).ok_or_else(|| Error::NoInterface(name.to_owned()))).collect()
}
