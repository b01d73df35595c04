//! The `[daemon]` and `[metrics]` sections, and whether what they make room for is enough for the services.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
};

use foobar_lb_ebpf::layout::capacity;
use serde_spanned::Spanned;

use super::{
    report::{Problem, Problems, Span},
    service::Draft,
    shape,
    values::{self, Fault},
};
use crate::{
    model::{ServiceKey, Share, is_host},
    wide::{Stretch, Wide, port_prefixes},
};

/// The socket of commands and API.
pub const DEFAULT_SOCKET: &str = "/run/foobar-lb/foobar-lb.sock";
/// What must outlive the daemon and the host's memory.
pub const DEFAULT_STATE_PATH: &str = "/var/lib/foobar-lb";
/// Where maps and links are pinned.
pub const DEFAULT_PIN_PATH: &str = "/sys/fs/bpf/foobar-lb";
/// 64 MiB: 127 services of 65,537 slots.
pub const DEFAULT_SLOTS: u32 = 8 << 20;
/// Backends of all services together.
pub const DEFAULT_BACKENDS: u32 = 1 << 16;
/// Remembered flows, half of them for those first seen in mid-flow.
pub const DEFAULT_FLOWS: u32 = 1 << 18;
/// Remembered flows that have only sent a SYN.
pub const DEFAULT_HALF_OPEN: u32 = 1 << 16;
/// Flows whose source is replaced.
pub const DEFAULT_MAPPINGS: u32 = 1 << 18;
/// Ports that flows get whose source is replaced: below those that Linux gives its own sockets
/// (`net.ipv4.ip_local_port_range`), above those of well-known services.
pub const DEFAULT_SNAT_PORTS: RangeInclusive<u16> = 1024..=32_767;
/// Whether the configuration is reloaded when its file changes.
pub const DEFAULT_WATCH: bool = false;
/// Only where there is a `[metrics]` section.
pub const DEFAULT_METRICS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9466);

/// 2 GiB of slots.
const MAX_SLOTS: u32 = 1 << 28;
const MAX_BACKENDS: u32 = 1 << 20;
/// 16 million, about 2 GiB; with fewer than the least, the kernel's own batches would be a large part of a map.
const FLOWS: RangeInclusive<u32> = 1 << 10..=1 << 24;

/// So many remembered flows should find room for each slot-owning backend: a table has at least that many slots for
/// it, and a change can set all of them moving.
const FLOWS_PER_BACKEND: u32 = 100;

/// `sun_path` of unix(7) less its closing NUL, in bytes.
const MAX_SOCKET_PATH: usize = 107;

/// The settings of the daemon itself. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// The Unix socket of commands and API.
    pub socket: PathBuf,
    /// The group whose members may use it, beside root; that of the daemon's process if absent.
    pub socket_group: Option<String>,
    /// A socket at which everybody may read and nobody change anything.
    pub read_only_socket: Option<PathBuf>,
    /// The directory of what outlives a reboot.
    pub state_path: PathBuf,
    /// The directory of bpffs that holds maps and links.
    pub pin_path: PathBuf,
    /// Key of the flow hash and of the Maglev tables; made once and kept where absent.
    pub seed: Option<u64>,
    /// Capacity in slots, of 8 bytes each, of the tables of all services together.
    pub slots: u32,
    /// Capacity in backends of all services together.
    pub backends: u32,
    /// Capacity in remembered flows that have answered or were first seen in mid-flow, half for each.
    pub flows: u32,
    /// Capacity in remembered flows that have only sent a SYN.
    pub half_open: u32,
    /// Capacity in flows whose source is replaced.
    pub mappings: u32,
    /// Ports that flows get whose source is replaced.
    pub snat_ports: RangeInclusive<u16>,
    /// The largest share of the slots of a service that a reload may move, where the service says nothing else.
    pub max_moved: Option<Share>,
    /// Whether the configuration is reloaded when its file changes.
    pub watch: bool,
}

impl Daemon {
    /// Whether another section can take its place only by a restart.
    pub fn needs_restart(&self, other: &Self) -> bool {
        *self != Self { max_moved: self.max_moved, watch: self.watch, ..other.clone() }
    }
}

pub(super) fn validate(section: shape::Daemon, problems: &mut Problems) -> Option<Daemon> {
    let shape::Daemon {
        socket,
        socket_group,
        read_only_socket,
        state_path,
        pin_path,
        seed,
        slots,
        backends,
        flows,
        half_open,
        mappings,
        snat_ports,
        max_moved,
        watch,
    } = section;
    let socket = problems.read_or(socket, DEFAULT_SOCKET.into(), socket_path);
    let socket_group = problems.read_or(socket_group, None, |name| group_name(name).map(Some));
    let read_only_place = read_only_socket.as_ref().map(Spanned::span);
    let read_only_socket = problems.read_or(read_only_socket, None, |text| socket_path(text).map(Some));
    if let (Some(place), Some(Some(path)), Some(other)) = (read_only_place, &read_only_socket, &socket)
        && path == other
    {
        let message = "this is the socket at which everything can be changed, too";
        problems.error(Problem::new(place, message.to_owned()).help("another path than that of `socket`"));
    }
    let state_path = problems.read_or(state_path, DEFAULT_STATE_PATH.into(), values::path);
    let pin_path = problems.read_or(pin_path, DEFAULT_PIN_PATH.into(), values::path);
    let seed = problems.read_or(seed, None, |text| values::seed(text).map(Some));
    let slots =
        problems.read_or(slots, DEFAULT_SLOTS, |&value| values::integer(value, "slots", 2..=MAX_SLOTS));
    let backends = problems
        .read_or(backends, DEFAULT_BACKENDS, |&value| values::integer(value, "backends", 1..=MAX_BACKENDS));
    let flows = problems.read_or(flows, DEFAULT_FLOWS, |&value| values::integer(value, "flows", FLOWS));
    let half_open =
        problems.read_or(half_open, DEFAULT_HALF_OPEN, |&value| values::integer(value, "half_open", FLOWS));
    let mappings =
        problems.read_or(mappings, DEFAULT_MAPPINGS, |&value| values::integer(value, "mappings", FLOWS));
    let snat_ports = problems.read_or(snat_ports, DEFAULT_SNAT_PORTS, values::ports);
    let max_moved = problems.read_or(max_moved, None, |text| values::share(text).map(Some));
    Some(Daemon {
        socket: socket?,
        socket_group: socket_group?,
        read_only_socket: read_only_socket?,
        state_path: state_path?,
        pin_path: pin_path?,
        seed: seed?,
        slots: slots?,
        backends: backends?,
        flows: flows?,
        half_open: half_open?,
        mappings: mappings?,
        snat_ports: snat_ports?,
        max_moved: max_moved?,
        watch: watch.unwrap_or(DEFAULT_WATCH),
    })
}

pub(super) fn validate_metrics(section: shape::Metrics, problems: &mut Problems) -> Option<SocketAddr> {
    let shape::Metrics { listen } = section;
    problems.read_or(listen, DEFAULT_METRICS_LISTEN, values::listen_address)
}

fn group_name(text: &str) -> Result<String, Fault> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == ':';
    if text.is_empty() || text.contains(odd) {
        return Err(Fault::new(
            "this is not the name of a group",
            "a name as in /etc/group, such as \"adm\"",
        ));
    }
    Ok(text.to_owned())
}

fn socket_path(text: &str) -> Result<PathBuf, Fault> {
    let path = values::path(text)?;
    if text.len() > MAX_SOCKET_PATH {
        let message =
            format!("the path of a socket has at most {MAX_SOCKET_PATH} bytes, this has {}", text.len());
        return Err(Fault::new(message, "a directory with a shorter name"));
    }
    Ok(path)
}

/// Where the file says how much there is room for, if it does.
pub(super) struct Capacity {
    slots: Option<Span>,
    backends: Option<Span>,
    flows: Option<Span>,
    half_open: Option<Span>,
}

impl Capacity {
    pub(super) fn of(section: &shape::Daemon) -> Self {
        let place = |number: &shape::Number| number.as_ref().map(Spanned::span);
        let shape::Daemon { slots, backends, flows, half_open, .. } = section;
        Self {
            slots: place(slots),
            backends: place(backends),
            flows: place(flows),
            half_open: place(half_open),
        }
    }

    /// Whether all tables and all backends find room, and what a change of them makes us remember.
    pub(super) fn check(self, daemon: &Daemon, drafts: &[Draft], problems: &mut Problems) {
        let slots = |draft: &Draft| u64::from(draft.table_size.unwrap_or(0));
        check_room("slots", daemon.slots, self.slots, drafts, slots, problems);
        let backends = |draft: &Draft| draft.backends.len() as u64;
        check_room("backends", daemon.backends, self.backends, drafts, backends, problems);
        let services = |_: &Draft| 1;
        check_fixed_room("services", capacity::SERVICES, drafts, services, problems);
        let prefixes = |draft: &Draft| draft.direct_prefixes() as u64;
        check_fixed_room("prefixes in `direct`", capacity::DIRECT, drafts, prefixes, problems);
        check_wide_room(drafts, problems);
        let total = u32::try_from(drafts.iter().map(backends).sum::<u64>()).unwrap_or(u32::MAX);
        let enough = total.saturating_mul(FLOWS_PER_BACKEND).min(*FLOWS.end());
        warn_of_few("flows", daemon.flows, enough, self.flows, drafts, problems);
        warn_of_few("half_open", daemon.half_open, enough, self.half_open, drafts, problems);
    }
}

/// Whether prefixes of VIPs and ranges of ports find room, as the maps hold them.
fn check_wide_room(drafts: &[Draft], problems: &mut Problems) {
    let is_prefix = |draft: &Draft| {
        u64::from(draft.address.as_ref().is_some_and(|address| !is_host(&address.get_ref().vip)))
    };
    check_fixed_room("prefixes of VIPs", capacity::PREFIXES, drafts, is_prefix, problems);
    let keys = drafts.iter().zip(0..).filter_map(|(draft, place)| {
        Some((ServiceKey { address: *draft.address.as_ref()?.get_ref(), protocol: draft.protocol? }, place))
    });
    let mut ranges = vec![0; drafts.len()];
    let mut replies = vec![0; drafts.len()];
    for (vip, stretches) in Wide::new(keys).iter() {
        for Stretch { ports, owner, .. } in stretches {
            let draft: &Draft = &drafts[*owner];
            let prefixes = port_prefixes(*ports).len() as u64;
            ranges[*owner] += prefixes;
            let is_own = draft.address.as_ref().is_some_and(|address| address.get_ref().vip == *vip);
            if draft.rewrites_replies() && is_own {
                replies[*owner] += prefixes * draft.backends.len() as u64;
            }
        }
    }
    for (what, available, needs) in [
        ("prefixes of ports", capacity::RANGES, ranges),
        ("prefixes of backends' ports", capacity::REPLY_RANGES, replies),
    ] {
        let mut needs = needs.into_iter();
        check_fixed_room(what, available, drafts, |_| needs.next().unwrap_or(0), problems);
    }
}

/// Remembered flows that find no room break when their slot's move is over.
fn warn_of_few(
    key: &str,
    room: u32,
    enough: u32,
    place: Option<Span>,
    drafts: &[Draft],
    problems: &mut Problems,
) {
    let Some(place) = place.or_else(|| drafts.first().map(|draft| draft.place.clone())) else { return };
    if room < enough {
        let message = format!(
            "room for {room} flows in `{key}` is little for so many backends: when the tables change, flows that \
             find no room may break"
        );
        let help = format!("set `{key}` of `[daemon]` to {enough} or more");
        problems.warn(Problem::new(place, message).help(help));
    }
}

/// Blames the first service that finds no room where the room cannot be changed.
fn check_fixed_room(
    what: &str,
    available: u32,
    drafts: &[Draft],
    mut need: impl FnMut(&Draft) -> u64,
    problems: &mut Problems,
) {
    let mut needed = 0;
    let without = drafts.iter().find(|draft| {
        needed += need(draft);
        needed > u64::from(available)
    });
    if let Some(without) = without {
        let message = format!("there is room for {available} {what} in all, and here it ends");
        let help = "leave some out, or let another balancer have them";
        problems.error(Problem::new(without.place.clone(), message).help(help));
    }
}

/// Blames the key, or where it is absent the first service that finds no room.
fn check_room(
    key: &str,
    available: u32,
    place: Option<Span>,
    drafts: &[Draft],
    need: impl Fn(&Draft) -> u64,
    problems: &mut Problems,
) {
    let mut needed = 0;
    let mut first_without = None;
    for draft in drafts {
        needed += need(draft);
        if needed > u64::from(available) && first_without.is_none() {
            first_without = Some(draft.place.clone());
        }
    }
    if let Some(without) = first_without {
        let message = format!("the services need {needed} {key}, {available} are available");
        let help = format!("set `{key}` of `[daemon]` to {needed} or more");
        problems.error(Problem::new(place.unwrap_or(without), message).help(help));
    }
}
