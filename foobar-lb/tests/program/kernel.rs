//! The program in this machine's kernel, in a network namespace of its own in which the kernel knows the hosts of the
//! packet table and the ways to them.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    include_bytes_aligned,
    maps::{HashMap, Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuValues},
    programs::{TestRun, TestRunOptions},
    util::nr_cpus,
};
use foobar_lb::{
    bpf::{self, Bpf, Capacities, Frames},
    image::Image,
    plan::diff,
    sweep::{RememberedFlow, Store, monotonic},
};
use foobar_lb_ebpf::{
    layout::{Count, Ends, FlowKey, FragmentKey, Mapping, Traffic, name},
    reason::{Reason, Verdict},
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};
use zerocopy::{IntoBytes, transmute};

use crate::{
    mapping::{to_bytes, to_mapping},
    packet::{
        DataPath, list,
        world::{self, CLOSED, Family, NEIGHBOURS, PORTS, Port, ROUTER, SEED},
    },
};

/// The loaded program.
pub struct Kernel {
    pub bpf: Bpf,
    pub flows: FlowMaps,
    mappings: HashMap<MapData, Key, [u8; size_of::<Mapping>()]>,
    datagrams: HashMap<MapData, [u8; size_of::<FragmentKey>()], [u8; size_of::<Ends>()]>,
    limit: PerCpuArray<MapData, [u64; 2]>,
    image: Image,
}

/// Its maps of remembered flows, to write into them as the program does.
pub struct FlowMaps(BTreeMap<&'static str, HashMap<MapData, Key, [u64; 2]>>);

type Key = [u8; size_of::<FlowKey>()];

/// More than a frame grows by.
const ROOM: usize = 128;

impl Kernel {
    /// The program of the daemon.
    pub fn new(capacities: Capacities) -> Result<Self> {
        Self::load_with(|| Bpf::load(Frames::All, capacities, SEED))
    }

    /// The program that tracks all flows.
    pub fn tracking_all(capacities: Capacities) -> Result<Self> {
        let object = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/foobar-lb-full-tracking"));
        Self::load_with(|| Bpf::load_object(object, capacities, SEED))
    }

    fn load_with(load: impl FnOnce() -> Result<Bpf, bpf::Error>) -> Result<Self> {
        ensure!(geteuid().is_root(), "only root may load the program: run `cargo xtask test program`");
        enter_network()?;
        let mut bpf = load().context("the program does not load")?;
        let flows = FlowMaps::open(&mut bpf)?;
        let mappings = open_map(&mut bpf, name::MAPPINGS)?.context("it maps no flows")?;
        let mappings = HashMap::try_from(Map::HashMap(mappings))?;
        let datagrams = open_map(&mut bpf, name::FRAGMENTS)?.context("it remembers no fragments")?;
        let limit = open_map(&mut bpf, name::LIMIT)?.context("it has no limit of complaints")?;
        let datagrams = HashMap::try_from(Map::LruHashMap(datagrams))?;
        let limit = PerCpuArray::try_from(Map::PerCpuArray(limit))?;
        Ok(Self { bpf, flows, mappings, datagrams, limit, image: Image::default() })
    }

    /// Puts these in the maps, from where a daemon that takes over must be able to read them; what is remembered stays.
    pub fn change(&mut self, image: &Image) -> Result<()> {
        for step in diff(&self.image, image) {
            self.bpf.apply(&step)?;
        }
        let read = self.bpf.read()?;
        ensure!(read == *image, "written:\n{image}\nread:\n{read}");
        self.image = image.clone();
        Ok(())
    }

    /// Forgets mappings, fragments, and how much was complained of late.
    fn forget_packets(&mut self) -> Result<()> {
        let mapped: Vec<_> = self.mappings.keys().collect::<Result<_, _>>()?;
        for flow in mapped {
            self.mappings.remove(&flow)?;
        }
        let known: Vec<_> = self.datagrams.keys().collect::<Result<_, _>>()?;
        for datagram in known {
            self.datagrams.remove(&datagram)?;
        }
        let nothing = vec![[0; 2]; nr_cpus().map_err(|(_, error)| error)?];
        Ok(self.limit.set(0, PerCpuValues::try_from(nothing)?, 0)?)
    }

    fn try_run(&mut self, frame: &mut Vec<u8>, ingress: u32) -> Result<Verdict> {
        let (verdict, out) = self.run_behind(0, frame, ingress)?;
        *frame = out;
        Ok(verdict)
    }

    /// Hands it a frame before which a driver has put so many bytes of metadata. Returns what goes on, too.
    pub fn run_behind(&mut self, metadata: usize, frame: &[u8], ingress: u32) -> Result<(Verdict, Vec<u8>)> {
        let given = [&vec![0; metadata], frame].concat();
        // A `struct xdp_md`: where data begins, ends and is preceded by metadata, and where it arrived.
        let context: [u32; 6] = [metadata as u32, given.len() as u32, 0, ingress, 0, 0];
        let mut out = vec![0; given.len() + ROOM];
        let options = TestRunOptions {
            data_in: Some(&given),
            data_out: Some(&mut out),
            ctx_in: Some(context.as_bytes()),
            ..TestRunOptions::default()
        };
        let run = self.bpf.program().test_run(options)?;
        out.truncate(run.data_size_out as usize);
        let out = out.split_off(metadata);
        Ok((self.to_verdict(run.return_value, &out)?, out))
    }
}

impl Kernel {
    /// A test run does not tell which interface a frame is redirected to, but each has a MAC of its own. The frames of a
    /// VLAN device leave by another interface.
    fn to_verdict(&self, returned: u32, frame: &[u8]) -> Result<Verdict> {
        Ok(match returned {
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 => Verdict::Transmit,
            4 => {
                let port = PORTS.iter().find(|port| frame[6..12] == port.balancer.mac);
                let index = port.context("redirected by no interface of the table")?.index;
                let physical = self.image.interfaces.get(&index).map_or(0, |interface| interface.physical);
                Verdict::Redirect(if physical == 0 { index } else { physical })
            }
            other => bail!("the program returned {other}"),
        })
    }
}

impl DataPath for Kernel {
    fn load(&mut self, image: &Image) {
        self.change(image).expect("the image fits into the maps");
        assert!(self.bpf.retain(|_| false).expect("the maps are there"), "somebody else changes them");
        self.forget_packets().expect("the maps are there");
    }

    fn now(&self) -> u64 {
        monotonic().as_nanos() as u64
    }

    fn remember(&mut self, flow: &RememberedFlow) -> bool {
        self.flows.remember(flow)
    }

    fn map(&mut self, flow: &FlowKey, mapping: &Mapping) {
        let key: Key = transmute!(*flow);
        self.mappings.insert(key, to_bytes(mapping), 0).expect("there is room");
    }

    fn mappings(&mut self) -> Vec<(FlowKey, Mapping)> {
        let read = |entry: Result<(Key, _), MapError>| {
            let (flow, mapping) = entry.expect("the map is there");
            (transmute!(flow), to_mapping(&mapping))
        };
        self.mappings.iter().map(read).collect()
    }

    fn run(&mut self, frame: &mut Vec<u8>, ingress: u32) -> Verdict {
        self.try_run(frame, ingress).expect("the program runs")
    }

    fn remembered(&mut self) -> Vec<RememberedFlow> {
        list(&mut self.bpf).expect("the maps are there").expect("nobody else changes them")
    }

    fn reasons(&self) -> Vec<(Reason, Count)> {
        self.bpf.reasons().expect("the map is there")
    }

    fn traffic(&self, backend: u32) -> Traffic {
        self.bpf.traffic(backend).expect("the map is there")
    }
}

impl FlowMaps {
    fn open(bpf: &mut Bpf) -> Result<Self> {
        let mut maps = BTreeMap::new();
        for name in [name::HALF_OPEN, name::ESTABLISHED, name::ADOPTED, name::FLOWS] {
            if let Some(map) = open_map(bpf, name)? {
                maps.insert(name, HashMap::try_from(Map::HashMap(map))?);
            }
        }
        ensure!(!maps.is_empty(), "the program remembers no flows");
        Ok(Self(maps))
    }

    /// Remembers a flow; false where there is no room.
    pub fn remember(&mut self, flow: &RememberedFlow) -> bool {
        let key: Key = transmute!(flow.flow);
        match self.map(flow).insert(key, [flow.remembered.to_word(), flow.seen], 0) {
            Ok(()) => true,
            Err(MapError::SyscallError(error)) if is_full(&error.io_error) => false,
            Err(error) => panic!("{}: {error}", flow.map),
        }
    }

    /// Forgets a flow, which has to be there.
    pub fn forget(&mut self, flow: &RememberedFlow) {
        let key: Key = transmute!(flow.flow);
        self.map(flow).remove(&key).expect("the flow is remembered");
    }

    fn map(&mut self, flow: &RememberedFlow) -> &mut HashMap<MapData, Key, [u64; 2]> {
        self.0.get_mut(flow.map).expect("the program has this map")
    }
}

/// A map of the program.
fn open_map(bpf: &mut Bpf, name: &str) -> Result<Option<MapData>> {
    for id in bpf.program().info()?.map_ids()?.context("this kernel does not tell a program's maps")? {
        if MapInfo::from_id(id)?.name_as_str() == Some(name) {
            return Ok(Some(MapData::from_id(id)?));
        }
    }
    Ok(None)
}

fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::E2BIG as i32)
}

/// Moves this thread into the network of the table.
pub fn enter_network() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("no network namespace of its own")?;
    build_network()
}

/// The balancer's interfaces, and all that its kernel has to know of the hosts around it.
fn build_network() -> Result<()> {
    let mut commands = Vec::new();
    for port in PORTS {
        let Port { index, balancer, .. } = port;
        let mac = mac(balancer.mac);
        commands
            .push(format!("link add eth{index} index {index} address {mac} type veth peer name peer{index}"));
        for link in [format!("eth{index}"), format!("peer{index}")] {
            commands.push(format!("link set {link} addrgenmode none up"));
        }
        for family in Family::BOTH {
            let prefix = world::subnet(port, family).prefix_len();
            commands.push(format!(
                "address add {}/{prefix} dev eth{index}{}",
                balancer.ip(family),
                nodad(family)
            ));
        }
    }
    for (host, Port { index, .. }) in NEIGHBOURS {
        for ip in Family::BOTH.map(|family| host.ip(family)) {
            commands.push(format!("neigh add {ip} lladdr {} nud permanent dev eth{index}", mac(host.mac)));
        }
    }
    for family in Family::BOTH {
        commands.push(format!("route add {} via {}", world::far_network(family), ROUTER.ip(family)));
    }
    run_ip(&commands)?;
    for family in ["ipv4", "ipv6"] {
        fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1")?;
        fs::write(format!("/proc/sys/net/{family}/conf/eth{}/forwarding", CLOSED.index), "0")?;
    }
    Ok(())
}

fn nodad(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " nodad",
    }
}

pub fn mac(mac: [u8; 6]) -> String {
    foobar_lb::image::Mac(mac).to_string()
}

/// Does all of these.
pub fn run_ip(commands: &[String]) -> Result<()> {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    ip.stdin.take().context("no input")?.write_all(commands.join("\n").as_bytes())?;
    ensure!(ip.wait()?.success(), "the network cannot be built");
    Ok(())
}
