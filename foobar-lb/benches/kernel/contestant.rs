//! A case, ready to be run: its program is loaded, its flows are open, and its first packet has become what it should.

use std::net::SocketAddr;

use anyhow::Result;
use aya::programs::{ProgramFd, ProgramInfo};

use crate::{
    clock::{Clock, PACKETS, Rounds},
    frame::{Packet, ends_of},
    generator::{ENDLESS, Flows, Generator},
    path::{Kind, Path},
    report::Program,
    setup::{Mode, Setup},
    suite::{Case, Subject},
};

/// A program in the kernel.
pub struct Loaded {
    pub fd: ProgramFd,
    pub facts: Program,
}

/// A case, ready to be run.
pub struct Contestant {
    pub case: Case,
    pub program: Loaded,
    /// BPF instructions that a packet takes, where they are counted.
    pub executed: Option<u64>,
    path: Path,
    generator: Generator,
    /// How many packets it has been sent.
    sent: u64,
    /// How many it has been sent before, to open its flows.
    opened: u64,
    /// Of the generator alone.
    pub alone: Rounds,
    /// Of the generator and the program.
    pub both: Rounds,
}

impl Loaded {
    pub fn new(info: &ProgramInfo) -> Result<Self> {
        Ok(Self { fd: info.fd()?, facts: Program::new(info) })
    }
}

impl Contestant {
    /// Opens flows where only a SYN does, and checks what becomes of the first packet. Packets come by `interface`.
    pub fn prepare(case: Case, program: Loaded, mut path: Path, interface: u32) -> Result<Self> {
        let (mut opened, mut list) = (0, vec![]);
        if let Subject::Balancer(setup @ Setup { mode: Mode::Snat, .. }, kind, packet @ Packet::Ack) =
            case.subject
        {
            let sent = open_flows(setup, case.flows, &program.fd, interface)?;
            opened = case.flows;
            if kind == Kind::Reply {
                (path, list) = Path::of_replies(&sent, packet);
            }
        }
        let flows = if list.is_empty() { Flows::Numbered(case.flows) } else { Flows::Listed(&list) };
        let generator = Generator::load(&path.template, flows, interface)?;
        let mut contestant = Self { opened, ..Self::given(case, program, path, generator) };
        contestant.warm_up()?;
        Ok(contestant)
    }

    /// One that has nothing to be opened or checked any more.
    pub fn given(case: Case, program: Loaded, path: Path, generator: Generator) -> Self {
        let (alone, both) = (Rounds::default(), Rounds::default());
        Self { case, program, executed: None, path, generator, sent: 0, opened: 0, alone, both }
    }

    /// Whether it is one of the balancer with this setup.
    pub fn is_of(&self, setup: Setup) -> bool {
        matches!(self.case.subject, Subject::Balancer(its, ..) if its == setup)
    }

    /// How many packets of a kind the balancer with this setup has been sent for it.
    pub fn sent_to(&self, setup: Setup, kind: Kind) -> u64 {
        match self.case.subject {
            Subject::Balancer(its, its_kind, _) if its == setup => {
                let sent = if its_kind == kind { self.sent } else { 0 };
                sent + if kind == Kind::Forward { self.opened } else { 0 }
            }
            _ => 0,
        }
    }

    /// Every flow is seen once, but for those that are to be new.
    fn warm_up(&mut self) -> Result<()> {
        let (verdict, frame) = self.generator.send(1, Some(&self.program.fd))?;
        self.path.check(verdict, &frame)?;
        self.sent += 1;
        if (2..ENDLESS).contains(&self.case.flows) {
            let others = self.case.flows - 1;
            self.generator.send(others as u32, Some(&self.program.fd))?;
            self.sent += others;
        }
        Ok(())
    }

    /// One more round.
    pub fn run(&mut self, clock: &mut Clock) -> Result<()> {
        clock.add_round(&mut self.alone, &mut self.generator, None)?;
        let verdict = clock.add_round(&mut self.both, &mut self.generator, Some(&self.program.fd))?;
        self.sent += u64::from(PACKETS);
        self.path.check_verdict(verdict)
    }
}

/// Opens flows one by one. Returns where each was sent from and to.
fn open_flows(setup: Setup, flows: u64, program: &ProgramFd, interface: u32) -> Result<Vec<[SocketAddr; 2]>> {
    let path = Path::of_beginnings(setup);
    let mut generator = Generator::load(&path.template, Flows::Numbered(flows), interface)?;
    (0..flows).map(|_| ends_of(&generator.send(1, Some(program))?.1)).collect()
}
