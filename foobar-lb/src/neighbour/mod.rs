//! Where packets for a backend or a client go next: the interface and the two MAC addresses, kept current by
//! following what the kernel announces. `routes` and `mirror` are about clients. Only this directory speaks netlink.
//! It changes nothing in the kernel but to ask for a neighbour to be resolved; what becomes of a view is the
//! daemon's matter.

mod mirror;
mod netlink;
mod routes;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};

use self::{
    netlink::Kernel,
    tables::{Neighbour, NeighbourKey, Tables},
};

/// Changes come in bursts: the view is renewed once they pause for this long ...
const QUIET: Duration = Duration::from_millis(20);
/// ... and at the latest this long after the first one.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often a neighbour that is not resolved is asked for.
const RETRY: Duration = Duration::from_secs(1);
/// How often a stale neighbour is asked for. XDP traffic does not count as use, so without this nobody would
/// notice a new MAC, and the kernel drops entries that were unused for 60 s when it has many.
const REFRESH: Duration = Duration::from_secs(45);
/// How often everything is read again: the kernel removes some IPv4 routes (those of a link that goes
/// down) and learns exceptions (path MTU) without announcing it.
const REREAD: Duration = Duration::from_secs(15);

/// Where a packet for a target leaves, and the Ethernet header it leaves with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the interface it leaves by.
    pub interface: u32,
    /// MAC address of that interface.
    pub source: [u8; 6],
    /// MAC address of the neighbour: the target itself or the gateway on the way to it.
    pub destination: [u8; 6],
    /// Largest IP packet in bytes that fits: the interface's MTU, or the route's where that is smaller.
    pub mtu: u32,
    /// The neighbour is the target itself, not a gateway.
    pub on_link: bool,
    /// The address of this machine that the kernel would send from.
    pub local: Option<IpAddr>,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name, as the operator knows it.
    pub name: String,
    /// Its MAC address; none where it is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Switched on and with a carrier.
    pub up: bool,
    /// Largest IP packet in bytes it carries.
    pub mtu: u32,
    /// This machine's addresses on it that others may answer to, the preferred ones first.
    pub addresses: Vec<IpAddr>,
    /// What makes it a VLAN device.
    pub vlan: Option<Vlan>,
    /// The kernel forwards the IPv4 packets that arrive on it.
    pub forwards_v4: bool,
    /// The kernel forwards the IPv6 packets that arrive on it.
    pub forwards_v6: bool,
    /// Largest IPv6 packet in bytes, where that is smaller than the largest of all.
    pub mtu_v6: Option<u32>,
}

/// Where the frames of a VLAN device go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the interface below it.
    pub parent: u32,
    /// The ether type of their tags there.
    pub protocol: u16,
    /// The VLAN's id.
    pub id: u16,
}

/// What the data path needs to know of the machine's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The targets that can be reached now. A target that is an address of this machine, that has no route
    /// (or a blackhole or unreachable one), whose link is down or not Ethernet, or whose neighbour is not
    /// resolved is missing.
    pub next_hops: BTreeMap<IpAddr, NextHop>,
    /// This machine's own addresses.
    pub locals: BTreeSet<IpAddr>,
    /// The prefixes whose hosts are reached without a gateway, each with its interface's index; sorted.
    pub connected: Vec<(IpNet, u32)>,
    /// The routes to clients that are known for sure: a prefix and where all of its packets go, or none where only
    /// the kernel can tell. Longer prefixes come first; of each family there are at most
    /// [`Routes::MOST`](foobar_lb_ebpf::layout::Routes::MOST).
    pub routes: Vec<(IpNet, Option<NextHop>)>,
    /// All interfaces, by index.
    pub links: BTreeMap<u32, Link>,
}

/// An interface as `attach` finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes it carries.
    pub mtu: u32,
    /// The XDP program that runs on it, if any; of several, the first that sees a packet.
    pub xdp: Option<XdpAttachment>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAttachment {
    /// The kernel's id of the program, as `bpftool prog show id` takes it.
    pub program_id: u32,
    /// Where it runs.
    pub mode: XdpMode,
}

/// Where an XDP program runs, in the order a packet comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum XdpMode {
    /// On the network card.
    Offloaded,
    /// In the driver.
    Native,
    /// In the network stack, on socket buffers.
    Generic,
}

/// Why the network could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refused a request that does not depend on a target.
    #[error("the kernel refused a netlink request")]
    Refused(#[source] rtnetlink::Error),
    /// A netlink socket failed.
    #[error("the netlink connection was lost")]
    Lost,
    /// No interface has that name.
    #[error("there is no interface {name:?}; there are {}", available.join(", "))]
    NoInterface {
        /// The name asked for.
        name: String,
        /// The names that exist.
        available: Vec<String>,
    },
    /// The interface carries no Ethernet frames.
    #[error("interface {name:?} is not Ethernet: it has no MAC address to send from")]
    NotEthernet {
        /// The name asked for.
        name: String,
    },
}

/// Sends a [`View`] of the next hops of `targets` at once and again whenever it changed, until `events` is
/// closed. Neighbours are resolved as long as they are not; nothing is started that outlives the future.
///
/// # Errors
/// When netlink cannot be used (any more): the last view sent is then no longer followed.
pub async fn watch<E>(targets: Vec<IpAddr>, events: mpsc::Sender<E>) -> Result<(), Error>
where
    E: From<View> + Send + 'static,
{
    let targets = BTreeSet::from_iter(targets);
    let mut kernel = Kernel::connect()?;
    let mut tables = kernel.read(&targets).await?;
    let mut read_at = Instant::now();
    let mut asked = Asked::default();
    let mut sent = None;
    loop {
        let view = tables.view();
        if sent.as_ref() != Some(&view) {
            if events.send(E::from(view.clone())).await.is_err() {
                return Ok(());
            }
            sent = Some(view);
        }
        let wake = asked.resolve_unsettled(&kernel, &tables).await?.min(read_at + REREAD);
        let first = tokio::select! {
            () = events.closed() => return Ok(()),
            () = sleep_until(wake) => None,
            change = kernel.next_change() => Some(change?),
        };
        let due = read_at.elapsed() >= REREAD;
        if apply_burst(&mut kernel, &mut tables, first).await? || due {
            tables = kernel.read(&targets).await?;
            read_at = Instant::now();
        }
    }
}

/// What `attach` must know of the interface called `name`.
///
/// # Errors
/// When there is none (the error names those that exist), when it is not Ethernet, and when netlink fails.
pub async fn interface(name: &str) -> Result<Interface, Error> {
    Kernel::connect()?.interface(name).await
}

/// Something the kernel announced.
enum Change {
    /// A neighbour entry is new, different or gone.
    Neighbour(NeighbourKey, Option<Neighbour>),
    /// A link, an address, a route or a rule changed, or announcements were lost: the tables are out of date.
    Other,
}

/// Applies `first` and what follows it closely. Returns whether the tables must be read again.
async fn apply_burst(kernel: &mut Kernel, tables: &mut Tables, first: Option<Change>) -> Result<bool, Error> {
    let Some(mut change) = first else { return Ok(false) };
    let patience = Instant::now() + PATIENCE;
    let mut outdated = false;
    loop {
        match change {
            Change::Neighbour(key, Some(neighbour)) => {
                tables.neighbours.insert(key, neighbour);
            }
            Change::Neighbour(key, None) => {
                tables.neighbours.remove(&key);
            }
            Change::Other => outdated = true,
        }
        let now = Instant::now();
        // A timeout alone does not end a burst in which the next change is always there already.
        if now >= patience {
            return Ok(outdated);
        }
        match timeout_at(patience.min(now + QUIET), kernel.next_change()).await {
            Ok(next) => change = next?,
            Err(_) => return Ok(outdated),
        }
    }
}

/// When each neighbour was last asked for.
#[derive(Default)]
struct Asked(BTreeMap<NeighbourKey, Instant>);

impl Asked {
    /// Asks for every neighbour in use whose entry is not settled and whose turn it is; returns when the
    /// next one's turn comes.
    async fn resolve_unsettled(&mut self, kernel: &Kernel, tables: &Tables) -> Result<Instant, Error> {
        let now = Instant::now();
        let mut wake = now + REREAD;
        let mut asked = BTreeMap::new();
        for (key, resolved) in tables.unsettled() {
            let interval = if resolved { REFRESH } else { RETRY };
            let last = match self.0.get(&key) {
                Some(&last) if now < last + interval => last,
                _ => {
                    kernel.resolve(key).await?;
                    now
                }
            };
            asked.insert(key, last);
            wake = wake.min(last + interval);
        }
        // A neighbour that settled keeps its time: else one that turns stale often is asked for as often.
        self.0.retain(|_, last| now < *last + REFRESH);
        self.0.append(&mut asked);
        Ok(wake)
    }
}
