//! The Maglev table of a service over time: who owns each slot, who owned it before, and for how long that
//! still counts. Every change of a table goes through [`Table::assign`]. What a slot's state means for a packet
//! is said in `foobar_lb_ebpf::conntrack`.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use foobar_lb_ebpf::layout::{NO_BACKEND, SETTLED, Slot, TRACES};

use crate::model::Remember;

/// A table in its region of the slot arena.
#[derive(Clone, Debug)]
pub struct Table {
    first: u32,
    /// Shared with the images that show them as they are, until one of them changes.
    slots: Arc<[Slot]>,
    /// Since when each moving slot moves, by its place in the table.
    moving: BTreeMap<u32, Instant>,
    /// Since when each slot only carries traces.
    traces: BTreeMap<u32, Instant>,
}

impl Table {
    /// A settled table that nobody owns yet, `size` slots from index `first` of the arena.
    pub fn new(first: u32, size: u32) -> Self {
        let slots = vec![Slot::settled(NO_BACKEND); size as usize].into();
        Self { first, slots, moving: BTreeMap::new(), traces: BTreeMap::new() }
    }

    /// A table as the data path has it. Its clocks begin now. Where all flows were remembered, every slot moves from its
    /// owner to that same owner, and flows may be remembered for it.
    pub fn recalled(first: u32, slots: &[Slot], now: Instant) -> Self {
        let recall = |slot: &Slot| match slot {
            Slot { owner, previous } if owner == previous && *owner != NO_BACKEND => {
                Slot { previous: TRACES, ..*slot }
            }
            _ => *slot,
        };
        let slots: Arc<[Slot]> = slots.iter().map(recall).collect();
        let (mut moving, mut traces) = (BTreeMap::new(), BTreeMap::new());
        for (place, slot) in (0u32..).zip(&*slots) {
            match slot.previous {
                SETTLED => None,
                TRACES => traces.insert(place, now),
                _ => moving.insert(place, now),
            };
        }
        Self { first, slots, moving, traces }
    }

    /// Index of its first slot in the arena.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// Its slots.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Its slots as the data path is to see them. Where all flows are remembered, a slot that is not moving moves
    /// from its owner to that same owner, for good: what begins is remembered there, and so is what is not known.
    pub fn render(&self, remember: Remember) -> Arc<[Slot]> {
        let remembering = |slot: &Slot| match slot.previous {
            // Nobody takes new flows, and known ones are recalled.
            SETTLED | TRACES if slot.owner == NO_BACKEND => Slot { previous: TRACES, ..*slot },
            SETTLED | TRACES => Slot { previous: slot.owner, ..*slot },
            _ => *slot,
        };
        match remember {
            Remember::Needed => Arc::clone(&self.slots),
            Remember::All => self.slots.iter().map(remembering).collect(),
        }
    }

    /// How many slots of the table each backend owns, by backend id.
    pub fn owned(&self) -> BTreeMap<u32, u32> {
        let mut owned = BTreeMap::new();
        for slot in &*self.slots {
            *owned.entry(slot.owner).or_default() += 1;
        }
        owned
    }

    /// How many slots are not settled.
    pub fn unsettled(&self) -> usize {
        self.moving.len() + self.traces.len()
    }

    /// Whether a slot names the backend, as owner or as previous owner.
    pub fn names(&self, backend: u32) -> bool {
        self.slots.iter().any(|slot| slot.owner == backend || slot.previous == backend)
    }

    /// Gives every slot its new owner. `holds` tells whether flows that are not remembered may stay on a backend.
    pub fn assign(&mut self, owners: &[u32], holds: impl Fn(u32) -> bool, now: Instant) {
        assert_eq!(owners.len(), self.slots.len(), "a table keeps its size");
        for (place, &owner) in (0u32..).zip(owners) {
            let next = next(self.slots[place as usize], owner, &holds);
            self.replace(place, next, now);
        }
    }

    /// Flows may be remembered whatever their slot: from now on every slot that is not moving carries traces until it
    /// is swept.
    pub fn distrust(&mut self, now: Instant) {
        for (place, slot) in (0u32..).zip(Arc::make_mut(&mut self.slots)) {
            if matches!(slot.previous, SETTLED | TRACES) {
                slot.previous = TRACES;
                self.traces.insert(place, now);
            }
        }
    }

    /// Lets the traces of all slots begin now.
    pub fn renew_traces(&mut self, now: Instant) {
        self.traces.values_mut().for_each(|since| *since = now);
    }

    /// Ends the moves that began `transition` ago or earlier: from then on only what is remembered counts.
    pub fn end_moves(&mut self, transition: Duration, now: Instant) {
        let over: Vec<u32> = self
            .moving
            .iter()
            .filter(|(_, since)| now.duration_since(**since) >= transition)
            .map(|(place, _)| *place)
            .collect();
        for place in over {
            let slot = self.slots[place as usize];
            self.replace(place, Slot { previous: TRACES, ..slot }, now);
        }
    }

    /// When the next move will be over.
    pub fn next_end(&self, transition: Duration) -> Option<Instant> {
        self.moving.values().min().map(|since| *since + transition)
    }

    /// When the last of the moves away from a backend will be over.
    pub fn last_end(&self, previous: u32, transition: Duration) -> Option<Instant> {
        let from_it = |(place, _): &(&u32, _)| self.slots[**place as usize].previous == previous;
        self.moving.iter().filter(from_it).map(|(_, since)| *since + transition).max()
    }

    /// The slots that have carried nothing but traces for at least `grace`, and their owners.
    pub fn traced(&self, grace: Duration, now: Instant) -> impl Iterator<Item = (u32, u32)> {
        self.traces
            .iter()
            .filter(move |(_, since)| now.duration_since(**since) >= grace)
            .map(|(place, _)| (*place, self.slots[*place as usize].owner))
    }

    /// A slot whose traces are gone: no remembered flow belongs to it any more.
    pub fn settle(&mut self, place: u32, now: Instant) {
        let slot = self.slots[place as usize];
        if slot.previous == TRACES {
            self.replace(place, Slot::settled(slot.owner), now);
        }
    }

    fn replace(&mut self, place: u32, slot: Slot, now: Instant) {
        let before = self.slots[place as usize];
        if before == slot {
            return;
        }
        Arc::make_mut(&mut self.slots)[place as usize] = slot;
        // A packet under way may still go by the owner before, so the grace of traces begins anew with another.
        let other_owner = slot.previous == TRACES && before.owner != slot.owner;
        if before.previous == slot.previous && !other_owner {
            return;
        }
        self.moving.remove(&place);
        self.traces.remove(&place);
        match slot.previous {
            SETTLED => None,
            TRACES => self.traces.insert(place, now),
            _ => self.moving.insert(place, now),
        };
    }
}

/// What becomes of a slot whose owner is to be `owner`.
///
/// A slot that moves keeps its first previous owner, and its clock, whatever happens to its owner meanwhile:
/// flows that began since were remembered from their SYN.
fn next(slot: Slot, owner: u32, holds: &impl Fn(u32) -> bool) -> Slot {
    let Slot { owner: old, previous } = slot;
    let moves = owner != old && old != NO_BACKEND && holds(old);
    match previous {
        SETTLED if moves => Slot { owner, previous: old },
        SETTLED => Slot::settled(owner),
        // Flows of the old owner that are not remembered were settled on it.
        TRACES if moves => Slot { owner, previous: old },
        TRACES => Slot { owner, previous: TRACES },
        // Back to the first owner: its old flows are at home again, those begun meanwhile are remembered.
        first if first == owner => Slot { owner, previous: TRACES },
        first if holds(first) => Slot { owner, previous: first },
        _ => Slot { owner, previous: TRACES },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u32 = 1;
    const B: u32 = 2;
    const C: u32 = 3;
    const MINUTE: Duration = Duration::from_secs(60);

    fn all(_: u32) -> bool {
        true
    }

    fn owned_by(owner: u32) -> (Table, Instant) {
        let now = Instant::now();
        let mut table = Table::new(0, 1);
        table.assign(&[owner], all, now);
        (table, now)
    }

    #[test]
    fn what_nobody_owned_settles_at_once() {
        let (table, _) = owned_by(A);
        assert_eq!(table.slots(), [Slot::settled(A)]);
        assert_eq!(table.unsettled(), 0);
    }

    #[test]
    fn a_dead_owner_leaves_nothing_behind() {
        let (mut table, now) = owned_by(A);
        table.assign(&[B], |id| id != A, now);
        assert_eq!(table.slots(), [Slot::settled(B)]);
    }

    #[test]
    fn a_move_runs_its_course() {
        let (mut table, now) = owned_by(A);
        table.assign(&[B], all, now);
        assert_eq!(table.slots(), [Slot { owner: B, previous: A }]);
        assert_eq!(table.next_end(MINUTE), Some(now + MINUTE));
        table.end_moves(MINUTE, now + MINUTE / 2);
        assert_eq!(table.slots(), [Slot { owner: B, previous: A }]);
        table.end_moves(MINUTE, now + MINUTE);
        assert_eq!(table.slots(), [Slot { owner: B, previous: TRACES }]);
        assert_eq!(table.traced(MINUTE, now + MINUTE).count(), 0, "not before the grace period");
        assert_eq!(table.traced(MINUTE, now + 2 * MINUTE).collect::<Vec<_>>(), [(0, B)]);
        table.settle(0, now + 2 * MINUTE);
        assert_eq!(table.slots(), [Slot::settled(B)]);
    }

    #[test]
    fn a_second_change_keeps_the_first_previous_owner_and_the_clock() {
        let (mut table, now) = owned_by(A);
        table.assign(&[B], all, now);
        table.assign(&[C], all, now + MINUTE / 2);
        assert_eq!(table.slots(), [Slot { owner: C, previous: A }]);
        assert_eq!(table.next_end(MINUTE), Some(now + MINUTE));
    }

    #[test]
    fn coming_home_leaves_traces() {
        let (mut table, now) = owned_by(A);
        table.assign(&[B], all, now);
        table.assign(&[A], all, now);
        assert_eq!(table.slots(), [Slot { owner: A, previous: TRACES }]);
    }

    #[test]
    fn a_previous_owner_that_dies_leaves_traces() {
        let (mut table, now) = owned_by(A);
        table.assign(&[B], all, now);
        table.assign(&[B], |id| id != A, now);
        assert_eq!(table.slots(), [Slot { owner: B, previous: TRACES }]);
    }

    #[test]
    fn a_slot_with_traces_moves_anew() {
        let (mut table, now) = owned_by(A);
        table.assign(&[B], all, now);
        table.end_moves(MINUTE, now + MINUTE);
        table.assign(&[C], all, now + MINUTE);
        assert_eq!(table.slots(), [Slot { owner: C, previous: B }]);
        assert_eq!(table.next_end(MINUTE), Some(now + 2 * MINUTE), "the clock starts anew");
    }

    #[test]
    fn a_slot_with_traces_whose_owner_dies_keeps_them() {
        let (mut table, now) = owned_by(A);
        table.assign(&[B], all, now);
        table.end_moves(MINUTE, now + MINUTE);
        table.assign(&[C], |id| id != B, now + 2 * MINUTE);
        assert_eq!(table.slots(), [Slot { owner: C, previous: TRACES }]);
        assert_eq!(table.traced(MINUTE, now + 2 * MINUTE).count(), 0, "the grace begins anew");
    }

    #[test]
    fn where_all_flows_are_remembered_a_slot_moves_from_its_owner_to_itself() {
        let (mut table, now) = owned_by(A);
        assert_eq!(*table.render(Remember::Needed), [Slot::settled(A)]);
        assert_eq!(*table.render(Remember::All), [Slot { owner: A, previous: A }]);
        table.assign(&[B], all, now);
        assert_eq!(*table.render(Remember::All), [Slot { owner: B, previous: A }]);
        table.end_moves(MINUTE, now + MINUTE);
        assert_eq!(*table.render(Remember::All), [Slot { owner: B, previous: B }]);
        table.distrust(now + MINUTE);
        table.settle(0, now + MINUTE);
        table.assign(&[NO_BACKEND], |_| false, now + MINUTE);
        assert_eq!(table.slots(), [Slot::settled(NO_BACKEND)]);
        assert_eq!(*table.render(Remember::All), [Slot { owner: NO_BACKEND, previous: TRACES }]);
    }

    #[test]
    fn a_distrusted_slot_carries_traces_until_it_is_swept() {
        let (mut table, now) = owned_by(A);
        table.distrust(now);
        assert_eq!(table.slots(), [Slot { owner: A, previous: TRACES }]);
        assert_eq!(table.traced(MINUTE, now + MINUTE).collect::<Vec<_>>(), [(0, A)]);
    }

    #[test]
    fn the_last_move_away_from_a_backend_tells_how_long_it_may_have_unseen_flows() {
        let now = Instant::now();
        let mut table = Table::new(0, 3);
        table.assign(&[A, A, B], all, now);
        table.assign(&[B, A, B], all, now);
        table.assign(&[B, B, A], all, now + MINUTE / 2);
        assert_eq!(table.last_end(A, MINUTE), Some(now + MINUTE / 2 + MINUTE));
        assert_eq!(table.last_end(C, MINUTE), None);
    }
}
