//! The XDP program in this machine's kernel: loading it is the verifier's test, then it runs the packet table and is
//! compared with its twin on the host. Needs root; it works in network namespaces of its own.

mod packet;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    io::Write,
    ops::Range,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::{
    maps::{HashMap, Map, MapData, MapError, MapInfo},
    programs::{TestRun, TestRunOptions},
};
use foobar_lb::{
    bpf::{Bpf, Capacities, RememberedFlow},
    image::Image,
    plan::diff,
};
use foobar_lb_ebpf::{
    layout::{Count, FlowKey, Traffic, name},
    reason::{Reason, Verdict},
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
    unistd::geteuid,
};
use packet::{
    DataPath, Memory,
    frame::ETHERNET,
    hex,
    host::Host,
    increase, memories,
    noise::{Arrival, arrivals, images},
    world::{self, CLOSED, Family, NEIGHBOURS, PORTS, Port, ROUTER, SEED},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};
use zerocopy::{IntoBytes, transmute};

const CAPACITIES: Capacities = Capacities { slots: 1024, backends: 64 };
/// Frames of the comparison; the kernel takes none that ends before its Ethernet header.
const LENGTHS: Range<usize> = ETHERNET..300;
const COMPARISONS: u32 = 2_000;

#[test]
fn every_row_of_the_table_holds() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let rows = packet::all();
    let wrong: Vec<String> = rows
        .iter()
        .filter(|row| row.frame.len() >= ETHERNET)
        .filter_map(|row| row.check(&mut kernel).err())
        .collect();
    ensure!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn kernel_and_host_agree_on_any_frames() -> Result<()> {
    let kernel = RefCell::new(Kernel::new()?);
    let config = Config {
        cases: COMPARISONS,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..Config::default()
    };
    let arrivals = prop::collection::vec(arrivals(&packet::all(), LENGTHS), 1..5);
    let compared = TestRunner::new(config).run(&(images(), arrivals), |(image, arrivals)| {
        let in_kernel = tell(&mut *kernel.borrow_mut(), &image, &arrivals);
        let on_host = tell(&mut Host::new(Image::default()), &image, &arrivals);
        prop_assert_eq!(in_kernel, on_host);
        Ok(())
    });
    compared.map_err(|error| anyhow!("{error}"))
}

/// What becomes of frames that arrive one after the other, in words.
fn tell(path: &mut impl DataPath, image: &Image, arrivals: &[Arrival]) -> Vec<String> {
    path.load(image);
    let mut told = Vec::new();
    for Arrival { ingress, frame } in arrivals {
        let reasons = path.reasons();
        let mut frame = frame.clone();
        let verdict = path.run(&mut frame, *ingress);
        told.push(format!("{verdict:?} {} {:?}", hex(&frame), increase(&reasons, &path.reasons())));
    }
    let mut memories = memories(path, path.now());
    memories.sort_by_key(|memory| (memory.map, memory.flow));
    told.extend(memories.into_iter().map(|memory| format!("{:?}", Memory { age: Duration::ZERO, ..memory })));
    told
}

/// The loaded program, in a network namespace in which the kernel knows the ways of the table.
struct Kernel {
    bpf: Bpf,
    image: Image,
    flows: BTreeMap<&'static str, Flows>,
}

type Flows = HashMap<MapData, Bytes, [u64; 2]>;
type Bytes = [u8; size_of::<FlowKey>()];

impl Kernel {
    fn new() -> Result<Self> {
        ensure!(geteuid().is_root(), "only root may load the program: run `cargo xtask test program`");
        unshare(CloneFlags::CLONE_NEWNET).context("no network namespace of its own")?;
        build_network()?;
        let mut bpf = Bpf::load(CAPACITIES, SEED).context("the program does not load")?;
        let flows = open_flows(&mut bpf)?;
        Ok(Self { bpf, image: Image::default(), flows })
    }

    fn try_load(&mut self, image: &Image) -> Result<()> {
        for step in diff(&self.image, image) {
            self.bpf.apply(&step)?;
        }
        self.image = image.clone();
        for flow in self.bpf.remembered()?.context("the flows changed under way")? {
            self.bpf.forget(&flow)?;
        }
        Ok(())
    }

    fn try_run(&mut self, frame: &mut [u8], ingress: u32) -> Result<Verdict> {
        // A `struct xdp_md`: where data begins, ends and is preceded by metadata, and where it arrived.
        let context: [u32; 6] = [0, frame.len() as u32, 0, ingress, 0, 0];
        let given = frame.to_vec();
        let options = TestRunOptions {
            data_in: Some(&given),
            data_out: Some(frame),
            ctx_in: Some(context.as_bytes()),
            ..TestRunOptions::default()
        };
        let run = self.bpf.program().test_run(options)?;
        ensure!(run.data_size_out as usize == given.len(), "the frame has another length");
        to_verdict(run.return_value, frame)
    }
}

impl DataPath for Kernel {
    fn load(&mut self, image: &Image) {
        self.try_load(image).expect("the image fits into the maps");
    }

    fn now(&self) -> u64 {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
    }

    fn remember(&mut self, flow: &RememberedFlow) -> bool {
        let value = [flow.remembered.to_word(), flow.seen];
        let flows = self.flows.get_mut(flow.map).expect("one of the three maps");
        match flows.insert(transmute_flow(flow.flow), value, 0) {
            Ok(()) => true,
            Err(MapError::SyscallError(error)) if is_full(&error.io_error) => false,
            Err(error) => panic!("{}: {error}", flow.map),
        }
    }

    fn run(&mut self, frame: &mut [u8], ingress: u32) -> Verdict {
        self.try_run(frame, ingress).expect("the program runs")
    }

    fn remembered(&self) -> Vec<RememberedFlow> {
        self.bpf.remembered().expect("the maps are there").expect("nobody else changes them")
    }

    fn reasons(&self) -> Vec<(Reason, Count)> {
        self.bpf.reasons().expect("the map is there")
    }

    fn traffic(&self, backend: u32) -> Traffic {
        self.bpf.traffic(backend).expect("the map is there")
    }
}

fn transmute_flow(flow: FlowKey) -> Bytes {
    transmute!(flow)
}

fn is_full(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::E2BIG as i32)
}

/// A test run does not tell which interface a frame is redirected to, but each has a MAC of its own.
fn to_verdict(returned: u32, frame: &[u8]) -> Result<Verdict> {
    Ok(match returned {
        1 => Verdict::Drop,
        2 => Verdict::Pass,
        3 => Verdict::Transmit,
        4 => {
            let port = PORTS.iter().find(|port| frame[6..12] == port.balancer.mac);
            Verdict::Redirect(port.context("redirected by no interface of the table")?.index)
        }
        other => bail!("the program returned {other}"),
    })
}

/// The maps of remembered flows, to write into them.
fn open_flows(bpf: &mut Bpf) -> Result<BTreeMap<&'static str, Flows>> {
    let mut flows = BTreeMap::new();
    for id in bpf.program().info()?.map_ids()?.context("this kernel does not tell a program's maps")? {
        let info = MapInfo::from_id(id)?;
        let map = match info.name_as_str() {
            Some("HALF_OPEN") => (name::HALF_OPEN, Map::LruHashMap(MapData::from_id(id)?)),
            Some("ESTABLISHED") => (name::ESTABLISHED, Map::HashMap(MapData::from_id(id)?)),
            Some("ADOPTED") => (name::ADOPTED, Map::HashMap(MapData::from_id(id)?)),
            _ => continue,
        };
        flows.insert(map.0, HashMap::try_from(map.1)?);
    }
    ensure!(flows.len() == 3, "the program has {} of the three maps of flows", flows.len());
    Ok(flows)
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

fn mac(mac: [u8; 6]) -> String {
    foobar_lb::image::Mac(mac).to_string()
}

fn run_ip(commands: &[String]) -> Result<()> {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    ip.stdin.take().context("no input")?.write_all(commands.join("\n").as_bytes())?;
    ensure!(ip.wait()?.success(), "the network cannot be built");
    Ok(())
}
