//! What a packet of a path takes in BPF instructions, counted by an interpreter: with whatever CPU, and without the
//! generator's.

use anyhow::Result;
use foobar_lb_ebpf::{layout::NextHop, reason::Verdict};

use crate::{
    address::{NEIGHBOUR_MAC, OWN_MAC},
    balancer::{Balancer, MTU},
    frame::{Packet, ends_of},
    interpreter::Interpreter,
    path::{Kind, Path},
    setup::{Mode, Setup, Slots},
};

/// How many instructions a packet takes whose flow the balancer has seen before.
pub fn count(balancer: &Balancer, kind: Kind, packet: Packet, interface: u32) -> Result<u64> {
    let setup = balancer.setup;
    let mut interpreter = balancer.interpreter()?;
    let next_hop = NextHop { interface, mtu: MTU, source: OWN_MAC, destination: NEIGHBOUR_MAC };
    interpreter.routes = vec![(setup.family.any(), Ok(next_hop))];
    let path = open(setup, kind, packet, &mut interpreter, interface)?;
    send(&path, &mut interpreter, interface)?;
    if setup.slots == Slots::Traces {
        interpreter.fill(&balancer.settling())?;
    }
    send(&path, &mut interpreter, interface)?;
    Ok(interpreter.cost().instructions)
}

/// Opens the flow of packets where only a SYN does. Returns the path of those.
fn open(
    setup: Setup,
    kind: Kind,
    packet: Packet,
    interpreter: &mut Interpreter,
    interface: u32,
) -> Result<Path> {
    if (setup.mode, packet) == (Mode::Snat, Packet::Ack) {
        let sent = send(&Path::of_beginnings(setup), interpreter, interface)?;
        if kind == Kind::Reply {
            return Ok(Path::of_replies(&[ends_of(&sent)?], packet).0);
        }
    }
    Ok(Path::of(setup, kind, packet))
}

/// Sends the first packet of a path, and returns what it has become.
fn send(path: &Path, interpreter: &mut Interpreter, interface: u32) -> Result<Vec<u8>> {
    let mut frame = path.template.frame.to_vec();
    let verdict = match interpreter.run(&mut frame, interface)? {
        Verdict::Drop => 1,
        Verdict::Pass => 2,
        Verdict::Transmit => 3,
        Verdict::Redirect(_) => 4,
    };
    path.check(verdict, &frame)?;
    Ok(frame)
}
