//! Floods of a million flows through the real program: what they may fill, and whom they must not harm. All flows of
//! the service move from the first backend to the second, or are settled on the first.

use anyhow::{Context, Result, ensure};
use aya::programs::ProgramFd;
use foobar_lb::{
    bpf::Capacities,
    image::Image,
    model::{Protocol, Remember},
    sweep::RememberedFlow,
};
use foobar_lb_ebpf::{layout::name, reason::Reason};

use crate::{
    generator::{Flows, Frame, Generator, Template},
    kernel::Kernel,
    packet::{
        DataPath,
        frame::{Datagram, Transport},
        world::{CLIENT_SIDE, Family, Host, Story, WEB1, WEB2, id},
    },
};

/// Packets of a flood, each of another flow.
const FLOOD: u32 = 1 << 20;
/// Clients that are meant well, and open a connection each.
const CLIENTS: u32 = 1 << 10;
const ROOM: Capacities =
    Capacities { slots: 1024, backends: 64, flows: 8_192, half_open: 16_384, mappings: 1 };
const ROOM_OF_EACH: u32 = ROOM.flows / 2;

const CLIENTS_NETWORK: [u8; 4] = [198, 18, 0, 0];
const FLOOD_NETWORK: [u8; 4] = [198, 19, 0, 0];

#[test]
fn a_syn_flood_on_settled_slots_leaves_nothing_behind() -> Result<()> {
    let mut stage = Stage::new(Kernel::new(ROOM)?, &Story::settled().image())?;
    stage.hear(&mut crowd(Transport::Syn, FLOOD_NETWORK, FLOOD)?, FLOOD)?;
    let owner = stage.forwarded(WEB1);
    ensure!(owner == u64::from(FLOOD), "{owner} packets reached their owner");
    let remembered = stage.kernel.remembered();
    ensure!(remembered.is_empty(), "{} flows are remembered", remembered.len());
    Ok(())
}

#[test]
fn a_syn_flood_on_moving_slots_pushes_no_established_flow_out() -> Result<()> {
    let mut stage = Stage::new(Kernel::new(ROOM)?, &Story::moving().image())?;
    stage.open(CLIENTS)?;
    stage.hear(&mut crowd(Transport::Syn, FLOOD_NETWORK, FLOOD)?, FLOOD)?;
    let half_open = stage.remembered(name::HALF_OPEN).len();
    ensure!((1..=ROOM.half_open as usize).contains(&half_open), "{half_open} flows are half-open");
    stage.check_clients(name::ESTABLISHED, WEB2)?;
    let previous = stage.forwarded(WEB1);
    ensure!(previous == 0, "{previous} packets of flows that had just begun reached the previous owner");
    Ok(())
}

#[test]
fn an_ack_flood_on_moving_slots_leaves_room_for_newborn_flows() -> Result<()> {
    let mut stage = Stage::new(Kernel::new(ROOM)?, &Story::moving().image())?;
    stage.open(CLIENTS / 4)?;
    let mut flood = crowd(Transport::Ack, FLOOD_NETWORK, FLOOD)?;
    stage.hear(&mut flood, FLOOD / 2)?;
    stage.open(CLIENTS / 2)?;
    stage.hear(&mut flood, FLOOD / 2)?;
    stage.open(CLIENTS / 4)?;
    let previous = stage.forwarded(WEB1);
    ensure!(previous == u64::from(FLOOD), "{previous} packets of unknown flows reached the previous owner");
    let adopted = stage.remembered(name::ADOPTED);
    ensure!(adopted.len() == ROOM_OF_EACH as usize, "{} unknown flows are remembered", adopted.len());
    let refused = stage.counted(Reason::NotRemembered);
    ensure!(refused == u64::from(FLOOD - ROOM_OF_EACH), "{refused} flows were counted as not remembered");
    stage.check_clients(name::ESTABLISHED, WEB2)
}

/// What the daemon's program is compared with: there is always room, at the expense of somebody else.
#[test]
fn full_tracking_remembers_every_flow() -> Result<()> {
    let all = |story: Story| story.configured(|service| service.remember = Remember::All).image();
    let mut stage = Stage::new(Kernel::tracking_all(ROOM)?, &all(Story::settled()))?;
    stage.open(CLIENTS)?;
    stage.hear(&mut crowd(Transport::Ack, FLOOD_NETWORK, FLOOD)?, CLIENTS)?;
    let remembered = stage.remembered(name::FLOWS);
    ensure!(remembered.len() == 2 * CLIENTS as usize, "{} flows are remembered", remembered.len());
    ensure!(remembered.iter().all(|flow| flow.remembered.state == 0), "some seem to be half-open");

    stage.kernel.change(&all(Story::traces()))?;
    stage.check_clients(name::FLOWS, WEB1)?;
    stage.hear(&mut crowd(Transport::Syn, FLOOD_NETWORK, FLOOD)?, FLOOD)?;
    let remembered = stage.remembered(name::FLOWS).len();
    let room = (ROOM.flows + ROOM.half_open) as usize;
    ensure!((room / 2..=room).contains(&remembered), "{remembered} flows are remembered");
    let refused = stage.counted(Reason::NotRemembered);
    ensure!(refused == 0, "{refused} flows were counted as not remembered");
    Ok(())
}

/// A loaded program and its clients.
struct Stage {
    kernel: Kernel,
    program: ProgramFd,
    /// Clients' first packets, and all others.
    begin: Generator,
    go_on: Generator,
}

impl Stage {
    fn new(mut kernel: Kernel, image: &Image) -> Result<Self> {
        kernel.load(image);
        let program = kernel.bpf.program().fd()?.try_clone()?;
        let begin = crowd(Transport::Syn, CLIENTS_NETWORK, CLIENTS)?;
        let go_on = crowd(Transport::Ack, CLIENTS_NETWORK, CLIENTS)?;
        Ok(Self { kernel, program, begin, go_on })
    }

    /// The next clients open their connections.
    fn open(&mut self, clients: u32) -> Result<()> {
        self.begin.send(clients, Some(&self.program))?;
        self.go_on.send(clients, Some(&self.program))?;
        Ok(())
    }

    /// The next packets of others arrive.
    fn hear(&mut self, others: &mut Generator, packets: u32) -> Result<()> {
        others.send(packets, Some(&self.program))?;
        Ok(())
    }

    /// Every client sends once more. Returns how many of the packets reached the backend.
    fn hear_clients(&mut self, backend: Host) -> Result<u64> {
        let before = self.forwarded(backend);
        self.go_on.send(CLIENTS, Some(&self.program))?;
        Ok(self.forwarded(backend) - before)
    }

    /// Every client is remembered on the backend, in this map, and reaches it.
    fn check_clients(&mut self, map: &str, backend: Host) -> Result<()> {
        let is_client = |flow: &&RememberedFlow| flow.flow.source.address.0[12..14] == CLIENTS_NETWORK[..2];
        let on_backend = |flow: &&RememberedFlow| flow.remembered.backend == to_id(backend);
        let flows = self.remembered(map);
        let remembered = flows.iter().filter(is_client).filter(on_backend).count();
        ensure!(remembered == CLIENTS as usize, "{remembered} clients are remembered in {map}");
        let heard = self.hear_clients(backend)?;
        ensure!(heard == u64::from(CLIENTS), "{heard} clients reach their backend");
        Ok(())
    }

    fn remembered(&mut self, map: &str) -> Vec<RememberedFlow> {
        let mut flows = self.kernel.remembered();
        flows.retain(|flow| flow.map == map);
        flows
    }

    /// How many packets a backend was sent.
    fn forwarded(&self, backend: Host) -> u64 {
        self.kernel.traffic(to_id(backend)).forward.packets
    }

    fn counted(&self, reason: Reason) -> u64 {
        let reasons = self.kernel.reasons();
        reasons.iter().filter(|(known, _)| *known == reason).map(|(_, count)| count.packets).sum()
    }
}

fn to_id(backend: Host) -> u32 {
    id(backend, Family::V4, Protocol::Tcp)
}

/// Clients of one network, of `flows` flows together, that all send the same kind of packet.
fn crowd(transport: Transport, network: [u8; 4], flows: u32) -> Result<Generator> {
    let mut datagram =
        Datagram { from: (network, 40_000).into(), ..Datagram::request(Family::V4, transport) };
    let headers = datagram.frame().len() - datagram.payload.len();
    datagram.payload = vec![0; size_of::<Frame>() - headers];
    let frame = datagram.frame().try_into().ok().context("the payload fills the frame")?;
    Generator::load(&Template::new(frame, 28, 34), Flows::Numbered(flows.into()), CLIENT_SIDE.index)
}
