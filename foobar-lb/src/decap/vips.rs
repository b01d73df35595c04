//! The VIPs on `lo`. They are marked as ours in the kernel, by the protocol of an address (Linux 5.18), so that those a
//! crash left are known from those that somebody else put there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use futures::TryStreamExt;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use nix::errno::Errno;
use rtnetlink::Handle;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

/// Every network namespace has it under this index.
const LOOPBACK: u32 = 1;

/// Whoever lists addresses sees this number: `ip` calls it `proto 0xfb`.
const OURS: AddressProtocol = AddressProtocol::Other(0xfb);

/// How the kernel says that there is no such address.
const NOT_THERE: i32 = -(Errno::EADDRNOTAVAIL as i32);

/// Why a VIP is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] std::io::Error),
    /// The addresses could not be listed.
    #[error("cannot list the addresses of lo")]
    List(#[source] rtnetlink::Error),
    /// The kernel refused.
    #[error("cannot {what} the VIP {vip} on lo")]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// The VIP.
        vip: IpAddr,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
}

/// The VIPs that this process answers for. Those that it put on `lo` stay until [`Vips::remove`].
pub struct Vips {
    requests: Handle,
    /// The task that drives the socket; dropping the set ends it.
    _connection: JoinSet<()>,
}

impl Vips {
    /// Changes nothing yet.
    ///
    /// # Errors
    /// When there is no netlink socket.
    pub fn connect() -> Result<Self, Error> {
        let (connection, requests, _) = rtnetlink::new_connection().map_err(Error::Open)?;
        let mut connections = JoinSet::new();
        connections.spawn(connection);
        Ok(Self { requests, _connection: connections })
    }

    /// Puts the VIPs on `lo` that are not there, and removes others that a crash left.
    ///
    /// # Errors
    /// When the kernel refuses; some may be there then.
    pub async fn put(&self, vips: &BTreeSet<IpAddr>) -> Result<(), Error> {
        let present = self.list().await?;
        for (&left, _) in present.iter().filter(|&(vip, &ours)| ours && !vips.contains(vip)) {
            self.delete(left).await?;
        }
        for &vip in vips {
            match present.get(&vip) {
                None => self.add(vip).await?,
                Some(true) => info!(%vip, "the VIP is on lo from a run that crashed"),
                Some(false) => info!(%vip, "the VIP is on lo already, and stays there at the end"),
            }
        }
        Ok(())
    }

    /// Removes what [`Vips::put`] put there, in this run or in one that crashed.
    ///
    /// # Errors
    /// The first refusal of the kernel; the other VIPs are removed all the same.
    pub async fn remove(&self) -> Result<(), Error> {
        let mut outcome = Ok(());
        for (vip, _) in self.list().await?.into_iter().filter(|&(_, ours)| ours) {
            outcome = outcome.and(self.delete(vip).await);
        }
        outcome
    }

    /// The addresses of `lo`, and whether they are ours.
    async fn list(&self) -> Result<BTreeMap<IpAddr, bool>, Error> {
        let dump = self.requests.address().get().set_link_index_filter(LOOPBACK).execute();
        let messages: Vec<AddressMessage> = dump.try_collect().await.map_err(Error::List)?;
        Ok(messages.iter().filter_map(decode).collect())
    }

    async fn add(&self, vip: IpAddr) -> Result<(), Error> {
        let mut request = self.requests.address().add(LOOPBACK, vip, host_prefix(vip));
        let message = request.message_mut();
        message.header.scope = AddressScope::Host;
        message.attributes.push(AddressAttribute::Protocol(OURS));
        message.attributes.push(AddressAttribute::CacheInfo(never_a_source()));
        // Others have the VIP too, and until the kernel has looked for them no server can bind to it.
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        let refused = |source| Error::Refused { what: "put", vip, source };
        request.execute().await.map_err(refused)?;
        debug!(%vip, "the VIP is on lo");
        Ok(())
    }

    async fn delete(&self, vip: IpAddr) -> Result<(), Error> {
        let message = self.requests.address().add(LOOPBACK, vip, host_prefix(vip)).message_mut().clone();
        match self.requests.address().del(message).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == NOT_THERE => {
                warn!(%vip, "somebody else has removed the VIP from lo");
                Ok(())
            }
            deleted => deleted.map_err(|source| Error::Refused { what: "remove", vip, source }),
        }
    }
}

/// Valid for ever, preferred never: it is not chosen as the source of a connection to elsewhere (RFC 6724, 5, rule 3).
fn never_a_source() -> CacheInfo {
    let mut lifetime = CacheInfo::default();
    lifetime.ifa_valid = u32::MAX;
    lifetime
}

fn host_prefix(vip: IpAddr) -> u8 {
    if vip.is_ipv4() { 32 } else { 128 }
}

fn decode(message: &AddressMessage) -> Option<(IpAddr, bool)> {
    let ours = message.attributes.contains(&AddressAttribute::Protocol(OURS));
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })?;
    Some((address, ours))
}
