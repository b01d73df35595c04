//! What a configuration would do to slots and backends if it took the place of the one in force. Nothing changes: it is
//! tried on a copy, and as if all backends were up of which nothing else is known, so that what a new backend will take
//! over counts although it is measured only later.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::SocketAddr,
    time::Instant,
};

use foobar_lb_ebpf::layout::NO_BACKEND;

use super::{Backend, Refusal, Room, Service, State, services::predecessors};
use crate::{
    health::{Report, Target},
    model::{self, Health, ServiceKey, Share, percentage},
    neighbour::NextHop,
    slots::Table,
};

/// So many services are named that would move too much; whoever has more sees the rest in the plan.
const MOST_NAMED: usize = 5;

/// The next hop of a backend of which nothing else is known.
const SUPPOSED: NextHop =
    NextHop { interface: 0, source: [0; 6], destination: [0; 6], mtu: 1500, on_link: true, local: None };

/// What a configuration would do.
pub struct Preview {
    /// For each of its services, the place of the one in force that it goes on from.
    pub predecessors: Vec<Option<usize>>,
    /// For each service in force, what moves; or why the configuration cannot come into force.
    pub moves: Result<Vec<Moves>, Refusal>,
}

/// What would move of a service in force.
#[derive(Debug, Default)]
pub struct Moves {
    /// The slots whose owner would change, by their index in the arena.
    pub slots: Vec<u32>,
    /// Backends that would be gone, or linger, by their id and address.
    pub leaving: HashMap<SocketAddr, u32>,
    /// Those of them that could not linger, as another service has their address then.
    pub displaced: Vec<SocketAddr>,
}

/// Services of which more slots would move than may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooMuch(Vec<Excess>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Excess {
    service: String,
    moved: u32,
    slots: u32,
    most: Share,
}

impl std::error::Error for TooMuch {}

impl fmt::Display for TooMuch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.0.iter().take(MOST_NAMED).map(|Excess { service, moved, slots, most }| {
            let share = percentage(*moved, *slots);
            format!("service `{service}`: {moved} of {slots} slots ({share}) would move, max_moved is {most}")
        });
        f.write_str(&named.collect::<Vec<_>>().join("; "))?;
        if self.0.len() > MOST_NAMED {
            write!(f, "; and {} services more", self.0.len() - MOST_NAMED)?;
        }
        f.write_str("; `foobar-lb plan FILE` shows why, and `foobar-lb reload --max-moved SHARE` or --force allows it")
    }
}

impl State {
    /// Tells what the configuration would do if it took the place of the one in force.
    pub fn preview(&self, services: &[model::Service], room: Room, now: Instant) -> Preview {
        let places: HashMap<ServiceKey, usize> =
            self.services.iter().map(|service| service.config.key).zip(0..).collect();
        let predecessors = predecessors(&self.services, services);
        let predecessors = predecessors.into_iter().map(|key| places.get(&key?).copied()).collect();
        Preview { moves: self.preview_moves(services, room, &predecessors, now), predecessors }
    }

    fn preview_moves(
        &self,
        services: &[model::Service],
        room: Room,
        predecessors: &Vec<Option<usize>>,
        now: Instant,
    ) -> Result<Vec<Moves>, Refusal> {
        let is_known = |backend: &&Backend| backend.next_hop != Some(SUPPOSED);
        let known: HashSet<u32> = self.backends().filter(is_known).map(|backend| backend.id).collect();
        let mut state = self.clone();
        state.suppose_up(|backend| known.contains(&backend.id), now);
        let before: Vec<Table> = state.services.iter().map(|service| service.table.clone()).collect();
        let displaced = state.reconfigure(services.to_vec(), room)?;
        state.suppose_up(|backend| known.contains(&backend.id), now);
        let mut successors: Vec<Option<&Service>> = vec![None; before.len()];
        for (service, predecessor) in state.services.iter().zip(predecessors) {
            if let Some(place) = predecessor {
                successors[*place] = Some(service);
            }
        }
        let moves = self.services.iter().zip(&before).zip(successors).map(|((service, table), successor)| {
            let mut moves = match successor {
                Some(after) => service.moves_to(after, table),
                None => service.ended(table),
            };
            let is_displaced = |address: &&SocketAddr| moves.leaving.contains_key(address);
            moves.displaced = displaced.iter().filter(is_displaced).copied().collect();
            moves
        });
        Ok(moves.collect())
    }

    /// Takes every backend for up that is not known to be what it is, and brings the tables up to date.
    pub fn suppose_up(&mut self, is_known: impl Fn(&Backend) -> bool, now: Instant) {
        let seed = self.seed;
        for service in &mut self.services {
            for backend in &mut service.backends {
                if !is_known(backend) || backend.health() == Health::Unknown {
                    backend.suppose_up(service.config.key, now);
                }
            }
            service.cold_start = false;
            service.assign(seed, now);
        }
    }

    /// Whether no more moves of any service in force than may: a share that is given counts for all of them, else each
    /// has its own.
    pub fn check_moves(&self, moves: &[Moves], most: Option<Share>) -> Result<(), TooMuch> {
        let excess = |(service, moves): (&Service, &Moves)| {
            let model::Service { name, table_size: slots, max_moved, .. } = &service.config;
            let (moved, slots) = (moves.slots.len() as u32, *slots);
            let most = most.or(*max_moved).filter(|most| most.is_exceeded_by(moved, slots))?;
            Some(Excess { service: name.clone(), moved, slots, most })
        };
        let excess: Vec<Excess> = self.services.iter().zip(moves).filter_map(excess).collect();
        if excess.is_empty() { Ok(()) } else { Err(TooMuch(excess)) }
    }

    /// Whether a service has a limit to what may move.
    pub fn limits_moves(&self) -> bool {
        self.services.iter().any(|service| service.config.max_moved.is_some())
    }
}

impl Service {
    /// All slots that somebody owns are of nobody any more.
    fn ended(&self, table: &Table) -> Moves {
        let leaving = self.backends.iter().map(|backend| (backend.config.address, backend.id));
        Moves { slots: moved(table, |_| NO_BACKEND), leaving: leaving.collect(), displaced: Vec::new() }
    }

    fn moves_to(&self, after: &Self, table: &Table) -> Moves {
        let owners = after.table.slots();
        let is_same = std::ptr::eq(table.slots(), owners);
        let slots = if is_same { Vec::new() } else { moved(table, |place| owners[place].owner) };
        let stays: HashSet<SocketAddr> =
            after.config.backends.iter().map(|backend| backend.address).collect();
        let leaving = self.backends.iter().filter(|backend| !backend.removed);
        let leaving = leaving.map(|backend| (backend.config.address, backend.id));
        let leaving = leaving.filter(|(address, _)| !stays.contains(address)).collect();
        Moves { slots, leaving, displaced: Vec::new() }
    }
}

/// The slots of a table that somebody owns and that then have another owner, by their index in the arena.
fn moved(table: &Table, owner: impl Fn(usize) -> u32) -> Vec<u32> {
    let slots = table.slots().iter().zip(0u32..);
    let moves =
        slots.filter(|(slot, place)| slot.owner != NO_BACKEND && slot.owner != owner(*place as usize));
    moves.map(|(_, place)| table.first() + place).collect()
}

impl Backend {
    fn suppose_up(&mut self, service: ServiceKey, now: Instant) {
        self.next_hop.get_or_insert(SUPPOSED);
        self.report = Some(Report {
            target: Target { service, backend: self.config.address },
            health: Health::Up,
            transition: None,
            since: now,
            transitions: 0,
            inconclusive: 0,
            reason: String::new(),
            latency: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const ROOM: Room = Room { slots: 10_000, backends: 20 };

    /// A service: its name, port, limit and backends, each of which is a host and its weight.
    type Written<'a> = (&'a str, u16, &'a str, &'a [(u8, u16)]);

    fn services(all: &[Written<'_>]) -> Vec<model::Service> {
        let text = all.iter().map(|(name, port, limit, backends)| {
            let backends = backends.iter().map(|(host, weight)| {
                format!("[[service.backend]]\nname = \"b{host}\"\naddress = \"10.0.0.{host}:{port}\"\nweight = {weight}\n")
            });
            let backends: String = backends.collect();
            format!("[[service]]\nname = \"{name}\"\naddress = \"203.0.113.1:{port}\"\ntable_size = 1009\n{limit}\n{backends}")
        });
        config::parse(&text.collect::<String>(), "test.toml")
            .unwrap_or_else(|error| panic!("{error}"))
            .services
    }

    fn up(services: Vec<model::Service>, now: Instant) -> State {
        let mut state = State::new(services, 1);
        state.suppose_up(|_| false, now);
        state
    }

    fn moved(state: &State, services: &[model::Service], now: Instant) -> Vec<usize> {
        let moves = state.preview(services, ROOM, now).moves.expect("nothing is refused");
        moves.iter().map(|moves| moves.slots.len()).collect()
    }

    #[test]
    fn nothing_moves_where_nothing_changes() {
        let now = Instant::now();
        let same = services(&[("a", 80, "", &[(1, 1), (2, 1)])]);
        let state = up(same.clone(), now);
        assert_eq!(moved(&state, &same, now), [0]);
    }

    #[test]
    fn a_new_backend_counts_with_what_it_will_take_over() {
        let now = Instant::now();
        let state = up(services(&[("a", 80, "", &[(1, 1), (2, 1)])]), now);
        let moved = moved(&state, &services(&[("a", 80, "", &[(1, 1), (2, 1), (3, 1)])]), now)[0];
        assert!((326..=346).contains(&moved), "a third of 1009 slots: {moved}");
        assert!(!state.backends().any(|backend| backend.config.name == "b3"), "nothing changes");
    }

    #[test]
    fn a_backend_that_is_down_has_nothing_to_leave() {
        let now = Instant::now();
        let mut state = up(services(&[("a", 80, "", &[(1, 1), (2, 1)])]), now);
        let target = state.services[0].backends[1].report.clone().expect("it is supposed to be up");
        state.observe_health(Report { health: Health::Down(model::Down::Silent), ..target });
        let found = NextHop { interface: 1, ..SUPPOSED };
        state.backends_mut().for_each(|backend| backend.next_hop = Some(found));
        state.suppose_up(|_| true, now);
        let preview = state.preview(&services(&[("a", 80, "", &[(1, 1)])]), ROOM, now);
        let moves = &preview.moves.expect("nothing is refused")[0];
        assert_eq!((moves.slots.len(), moves.leaving.len()), (0, 1));
    }

    #[test]
    fn all_of_a_service_that_goes_moves_and_nothing_of_one_that_comes() {
        let now = Instant::now();
        let state = up(services(&[("a", 80, "", &[(1, 1)]), ("b", 81, "", &[(1, 1)])]), now);
        let wanted = services(&[("c", 82, "", &[(1, 1)]), ("b", 81, "", &[(1, 1)])]);
        let preview = state.preview(&wanted, ROOM, now);
        assert_eq!(preview.predecessors, [None, Some(1)]);
        let moves = preview.moves.expect("nothing is refused");
        assert_eq!(moves.iter().map(|moves| moves.slots.len()).collect::<Vec<_>>(), [1009, 0]);
    }

    #[test]
    fn a_limit_holds_for_its_service_unless_another_is_given() {
        let now = Instant::now();
        let limit = "max_moved = \"20%\"";
        let state =
            up(services(&[("a", 80, limit, &[(1, 1), (2, 1)]), ("b", 81, "", &[(1, 1), (2, 1)])]), now);
        let wanted = services(&[
            ("a", 80, limit, &[(1, 1), (2, 1), (3, 1)]),
            ("b", 81, "", &[(1, 1), (2, 1), (3, 1)]),
        ]);
        let moves = state.preview(&wanted, ROOM, now).moves.expect("nothing is refused");
        let refused = state.check_moves(&moves, None).expect_err("a third of a moves").to_string();
        assert!(refused.contains("`a`") && refused.contains("max_moved is 20%"), "{refused}");
        assert!(!refused.contains("`b`"), "b has no limit: {refused}");
        assert_eq!(state.check_moves(&moves, "40%".parse().ok()), Ok(()));
        let refused = state.check_moves(&moves, "30%".parse().ok()).expect_err("a third of each moves");
        assert!(refused.to_string().contains("`b`"), "{refused}");
    }

    #[test]
    fn what_cannot_come_into_force_is_told() {
        let now = Instant::now();
        let state = up(services(&[("a", 80, "", &[(1, 1)])]), now);
        let mut wanted = services(&[("a", 80, "", &[(1, 1)])]);
        wanted[0].table_size = 2003;
        let preview = state.preview(&wanted, ROOM, now);
        assert_eq!(preview.predecessors, [Some(0)]);
        assert!(matches!(preview.moves, Err(Refusal::TableSize { .. })));
    }
}
