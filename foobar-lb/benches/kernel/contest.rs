//! A suite, measured: all programs loaded and checked, then rounds in which all of them take turns, then checked again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramFd, ProgramInfo};
use nix::time::{ClockId, clock_gettime};

use crate::{
    balancer::Balancer,
    frame::Packet,
    generator::{ENDLESS, Generator},
    path::{Kind, Path},
    place::Place,
    report::{Measurement, Program},
    setup::{Mode, Setup, Slots},
    suite::{Case, Subject, Suite},
};

/// Packets of a round: few long runs, because to start one costs microseconds.
const PACKETS: u32 = 1_000_000;

/// Measures all cases of a suite.
pub fn measure(suite: &Suite, rounds: usize, place: &mut Place) -> Result<Vec<Measurement>> {
    let mut balancers = vec![];
    let mut contestants = vec![];
    for case in &suite.cases {
        let contestant = Contestant::new(*case, place, &mut balancers);
        contestants.push(contestant.with_context(|| case.subject.name())?);
    }
    for _ in 0..rounds {
        contestants.iter_mut().try_for_each(Contestant::run)?;
    }
    for (position, balancer) in balancers.iter_mut().enumerate() {
        check(balancer, contestants.iter().filter(|contestant| contestant.balancer == Some(position)))?;
    }
    let measurement = |Contestant { case, program, generator_alone, both, .. }: Contestant| Measurement {
        suite: suite.name,
        subject: case.subject,
        flows: case.flows,
        program: program.facts,
        generator: generator_alone,
        both,
    };
    Ok(contestants.into_iter().map(measurement).collect())
}

/// All packets must have been counted as what they were, and none of settled slots be remembered.
fn check<'c>(
    balancer: &mut Balancer,
    contestants: impl Iterator<Item = &'c Contestant> + Clone,
) -> Result<()> {
    for kind in [Kind::Forward, Kind::Reply, Kind::Pass] {
        let sent: u64 = contestants.clone().filter(|one| one.kind() == Some(kind)).map(|one| one.sent).sum();
        let counted = balancer.counted(kind)?;
        ensure!(
            counted == sent,
            "{:?}: {counted} of {sent} packets were counted as {kind:?}",
            balancer.setup
        );
    }
    if balancer.setup.slots == Slots::Settled {
        let remembered = balancer.remembered()?;
        ensure!(remembered == 0, "{:?}: {remembered} flows are remembered", balancer.setup);
    }
    Ok(())
}

/// A case, ready to be run.
struct Contestant {
    case: Case,
    program: Loaded,
    /// Position of the balancer, if it is one.
    balancer: Option<usize>,
    generator: Generator,
    /// How many packets it has been sent.
    sent: u64,
    /// Nanoseconds per packet, round by round.
    generator_alone: Vec<f64>,
    both: Vec<f64>,
}

/// A program in the kernel.
struct Loaded {
    fd: ProgramFd,
    facts: Program,
}

impl Contestant {
    /// Loads what is not loaded yet, and checks what becomes of the first packet.
    fn new(case: Case, place: &mut Place, balancers: &mut Vec<Balancer>) -> Result<Self> {
        let Case { subject, flows } = case;
        let (info, balancer) = match subject {
            Subject::Transmit => (place.baseline("transmit")?, None),
            Subject::Parse(_) => (place.baseline("parse")?, None),
            Subject::Balancer(setup, ..) => {
                let position = find(balancers, setup, place.interface)?;
                (balancers[position].program()?, Some(position))
            }
        };
        let path = subject.path();
        let generator = Generator::load(&path.template, flows, place.interface)?;
        let program = Loaded::new(&info)?;
        let (generator_alone, both) = (vec![], vec![]);
        let mut contestant = Self { case, program, balancer, generator, sent: 0, generator_alone, both };
        contestant.open_flows(place)?;
        contestant.warm_up(&path)?;
        Ok(contestant)
    }

    /// In mode `snat` only a SYN begins a flow.
    fn open_flows(&mut self, place: &Place) -> Result<()> {
        if let Subject::Balancer(setup @ Setup { mode: Mode::Snat, .. }, kind, Packet::Ack) =
            self.case.subject
        {
            let path = Path::of(setup, kind, Packet::Syn);
            let mut generator = Generator::load(&path.template, self.case.flows, place.interface)?;
            generator.send(self.case.flows as u32, Some(&self.program.fd))?;
            self.sent += self.case.flows;
        }
        Ok(())
    }

    /// Every flow is seen once, but for those that are to be new.
    fn warm_up(&mut self, path: &Path) -> Result<()> {
        let (verdict, frame) = self.generator.send(1, Some(&self.program.fd))?;
        path.check(verdict, &frame)?;
        self.sent += 1;
        if (2..ENDLESS).contains(&self.case.flows) {
            let others = self.case.flows - 1;
            self.generator.send(others as u32, Some(&self.program.fd))?;
            self.sent += others;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        self.generator_alone.push(time(&mut self.generator, None)?);
        self.both.push(time(&mut self.generator, Some(&self.program.fd))?);
        self.sent += u64::from(PACKETS);
        Ok(())
    }

    fn kind(&self) -> Option<Kind> {
        match self.case.subject {
            Subject::Balancer(_, kind, _) => Some(kind),
            Subject::Transmit | Subject::Parse(_) => None,
        }
    }
}

impl Loaded {
    fn new(info: &ProgramInfo) -> Result<Self> {
        Ok(Self { fd: info.fd()?, facts: Program::new(info)? })
    }
}

/// Position of the balancer with this setup, which is loaded if there is none yet.
fn find(balancers: &mut Vec<Balancer>, setup: Setup, interface: u32) -> Result<usize> {
    if let Some(position) = balancers.iter().position(|balancer| balancer.setup == setup) {
        return Ok(position);
    }
    balancers.push(Balancer::load(setup, interface)?);
    Ok(balancers.len() - 1)
}

/// Nanoseconds per packet of generator and program, or of the generator alone.
fn time(generator: &mut Generator, program: Option<&ProgramFd>) -> Result<f64> {
    // The kernel's own measurement is rounded to whole nanoseconds. This thread's clock stands while others run.
    let clock = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    let start = clock()?;
    generator.send(PACKETS, program)?;
    let took = Duration::from(clock()? - start);
    Ok(took.as_nanos() as f64 / f64::from(PACKETS))
}
