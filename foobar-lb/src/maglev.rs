//! The Maglev table of a service: which backend owns which slot, from addresses and weights alone. Pure: the
//! same input gives the same table on every node and in every release. Who is a member is left to the caller.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4.

use std::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr},
};

use siphasher::sip128::SipHasher13;

/// Second half of the hash key; the seed is the first. Another value is another table for everyone.
const HASH_KEY: u64 = 0x6d61_676c_6576_0001;

/// A slot that has no owner yet.
const FREE: u32 = u32::MAX;

/// One who may own slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its identity, distinct among the members: all that decides which slots it prefers.
    pub address: SocketAddr,
    /// Its share relative to the others; 0 owns nothing.
    pub weight: u16,
}

/// Owners of the `size` slots, as indexes into `members`; empty if no member has a weight. The order of
/// members does not matter to who owns what. Every member with a weight owns at least one slot; those who are
/// worth one by their weight own their share, exact to a slot.
///
/// `size` is a prime, so that every slot is in every member's reach, and no less than the members with a
/// weight.
pub fn table(members: &[Member], size: u32, seed: u64) -> Vec<u32> {
    let mut heirs = heirs(members, size, seed);
    apportion(&mut heirs, size);
    fill(&mut heirs, size)
}

/// A member with a weight, on its way to its slots.
struct Heir {
    index: u32,
    weight: u64,
    /// How many slots it is due.
    target: u32,
    /// The slots in the order it prefers them: `next`, `next + skip`, ... modulo the size.
    next: u32,
    skip: u32,
}

impl Heir {
    /// Turns to the slot it prefers next.
    fn advance(&mut self, size: u32) {
        let to_the_end = size - self.next;
        self.next = if self.skip < to_the_end { self.next + self.skip } else { self.skip - to_the_end };
    }
}

/// The members with a weight in the order of their addresses, each with its permutation of the slots.
fn heirs(members: &[Member], size: u32, seed: u64) -> Vec<Heir> {
    let mut sorted: Vec<_> = (0u32..).zip(members).filter(|(_, member)| member.weight > 0).collect();
    sorted.sort_by_key(|(_, member)| member.address);
    sorted
        .into_iter()
        .map(|(index, member)| {
            let (offset, skip) = hash(member.address, seed);
            let reduce = |hash: u64, modulus: u32| (hash % u64::from(modulus)) as u32;
            Heir {
                index,
                weight: member.weight.into(),
                target: 0,
                next: reduce(offset, size),
                skip: 1 + reduce(skip, (size - 1).max(1)),
            }
        })
        .collect()
}

/// Two independent hashes of an address, the same on every machine and in every release.
fn hash(address: SocketAddr, seed: u64) -> (u64, u64) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&address.port().to_be_bytes());
    SipHasher13::new_with_keys(seed, HASH_KEY).hash(&bytes).as_u64()
}

/// Decides how many slots each is due. Whoever is worth less than a slot gets one; the others share what is
/// left by largest remainder, ties to the lesser weight and then in the order of addresses.
fn apportion(heirs: &mut [Heir], size: u32) {
    let mut slots = u64::from(size);
    let mut weights: u64 = heirs.iter().map(|heir| heir.weight).sum();
    let mut by_weight: Vec<&mut Heir> = heirs.iter_mut().collect();
    by_weight.sort_by_key(|heir| heir.weight);

    // Giving a whole slot to one who is worth less leaves less for the others, so the next one may now be
    // worth less too; but once one is not, no heavier one is.
    let mut least = 0;
    for heir in &mut by_weight {
        if slots * heir.weight >= weights {
            break;
        }
        heir.target = 1;
        slots = slots.saturating_sub(1);
        weights -= heir.weight;
        least += 1;
    }

    let rest = &mut by_weight[least..];
    let mut left = slots;
    for heir in &mut *rest {
        heir.target = (slots * heir.weight / weights) as u32;
        left -= u64::from(heir.target);
    }
    rest.sort_by_key(|heir| Reverse(slots * heir.weight % weights));
    for heir in rest.iter_mut().take(left as usize) {
        heir.target += 1;
    }
}

/// Lets the heirs take turns until every slot has an owner: whoever's turn it is takes the slot it prefers
/// among those still free.
fn fill(heirs: &mut [Heir], size: u32) -> Vec<u32> {
    let turns = turns(heirs);
    let mut owners = vec![FREE; if turns.is_empty() { 0 } else { size as usize }];
    for position in turns.into_iter().take(owners.len()) {
        let heir = &mut heirs[position as usize];
        while owners[heir.next as usize] != FREE {
            heir.advance(size);
        }
        owners[heir.next as usize] = heir.index;
        heir.advance(size);
    }
    owners
}

/// Who takes a slot after whom, as positions in `heirs`: in each round the heaviest takes one, the others as
/// often as their weight allows; nobody takes more than it is due.
fn turns(heirs: &[Heir]) -> Vec<u32> {
    let heaviest = heirs.iter().map(|heir| heir.weight).max().unwrap_or(0);
    if heirs.iter().all(|heir| heir.weight == heaviest) {
        return equal_turns(heirs);
    }
    let mut turns: Vec<(u64, u32)> = (0u32..)
        .zip(heirs)
        .flat_map(|(position, heir)| {
            (0..u64::from(heir.target)).map(move |turn| (turn * heaviest / heir.weight, position))
        })
        .collect();
    turns.sort_unstable();
    turns.into_iter().map(|(_, position)| position).collect()
}

/// The same where all are as heavy: each takes one in each round, and there is nothing to sort.
fn equal_turns(heirs: &[Heir]) -> Vec<u32> {
    let rounds = heirs.iter().map(|heir| heir.target).max().unwrap_or(0);
    let in_round = |round| {
        let due = (0u32..).zip(heirs).filter(move |(_, heir)| round < heir.target);
        due.map(|(position, _)| position)
    };
    (0..rounds).flat_map(in_round).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const SIZE: u32 = 65_537;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_slot_has_an_owner_with_a_weight(weights in weights(), seed: u64) {
            let members = members(&weights);
            let owners = table(&members, 10_007, seed);
            prop_assert_eq!(owners.len(), 10_007);
            prop_assert!(owners.iter().all(|&owner| weights[owner as usize] > 0));
        }

        #[test]
        fn who_is_as_heavy_as_all_takes_turns_in_the_same_order(count in 1usize..200, seed: u64) {
            let mut due = heirs(&members(&vec![1; count]), 10_007, seed);
            apportion(&mut due, 10_007);
            let mut sorted: Vec<(u32, u32)> = (0u32..).zip(&due)
                .flat_map(|(position, heir)| (0..heir.target).map(move |turn| (turn, position)))
                .collect();
            sorted.sort_unstable();
            let sorted: Vec<u32> = sorted.into_iter().map(|(_, position)| position).collect();
            prop_assert_eq!(turns(&due), sorted);
        }

        #[test]
        fn shares_follow_weights(weights in weights(), seed: u64) {
            let counts = counts(&table(&members(&weights), SIZE, seed), weights.len());
            let sum: f64 = weights.iter().copied().map(f64::from).sum();
            let everyone_is_worth_a_slot =
                weights.iter().all(|&weight| weight == 0 || f64::from(weight) * f64::from(SIZE) >= sum);
            for (&weight, &count) in weights.iter().zip(&counts) {
                let ideal = f64::from(SIZE) * f64::from(weight) / sum;
                let error = (f64::from(count) - ideal).abs();
                prop_assert!(weight == 0 || count >= 1);
                prop_assert!(!everyone_is_worth_a_slot || error < 1.0, "{count} slots, ideal {ideal}");
                prop_assert!(ideal < 100.0 || error <= ideal / 100.0, "{count} slots, ideal {ideal}");
            }
        }

        #[test]
        fn even_the_least_own_a_slot(heavy in 1u16.., many in 1usize..250) {
            let mut weights = vec![1; many];
            weights.push(heavy);
            let counts = counts(&table(&members(&weights), 251, 7), weights.len());
            prop_assert!(counts.iter().all(|&count| count >= 1));
        }

        #[test]
        fn the_order_of_members_does_not_matter(
            (weights, order) in weights().prop_flat_map(|weights| {
                let order = Just((0..weights.len()).collect::<Vec<_>>()).prop_shuffle();
                (Just(weights), order)
            }),
            seed: u64,
        ) {
            let members = members(&weights);
            let shuffled: Vec<Member> = order.iter().map(|&index| members[index]).collect();
            prop_assert_eq!(addresses(&members, 1_009, seed), addresses(&shuffled, 1_009, seed));
        }
    }

    #[test]
    fn nobody_owns_nothing() {
        assert!(table(&[], SIZE, 1).is_empty());
        assert!(table(&members(&[0, 0]), SIZE, 1).is_empty());
    }

    #[test]
    fn one_owns_everything() {
        assert_eq!(table(&members(&[0, 3]), 2, 1), [1, 1]);
    }

    /// Only the slots of the one who goes have to move; Maglev pays for its even shares with some more. The
    /// bounds are what was measured over these seeds, rounded up.
    #[test]
    fn removing_or_adding_one_of_many_moves_few_slots_of_the_others() {
        for (count, bound) in [(2, 0.0), (3, 0.002), (5, 0.003), (10, 0.006), (50, 0.007), (100, 0.015)] {
            let moved: Vec<f64> = (0..16).map(|seed| share_moved_between_survivors(count, seed)).collect();
            let mean = moved.iter().sum::<f64>() / moved.len() as f64;
            let worst = moved.iter().copied().fold(0.0, f64::max);
            println!(
                "one of {count}: {:.2} % of the others' slots move, {:.2} % at worst",
                mean * 100.0,
                worst * 100.0
            );
            assert!(worst <= bound, "one of {count}: {worst}");
        }
    }

    /// Releases must agree with each other: if this fails, a mixed fleet sends flows to two places.
    #[test]
    fn the_table_is_the_same_in_every_release() {
        let members = [
            Member { address: "10.0.1.11:80".parse().unwrap(), weight: 1 },
            Member { address: "10.0.1.12:80".parse().unwrap(), weight: 2 },
            Member { address: "[2001:db8::13]:80".parse().unwrap(), weight: 1000 },
            Member { address: "10.0.1.14:80".parse().unwrap(), weight: 0 },
        ];
        let owners = table(&members, SIZE, 0x0123_4567_89ab_cdef);
        let bytes: Vec<u8> = owners.iter().flat_map(|owner| owner.to_be_bytes()).collect();
        assert_eq!(counts(&owners, 4), [65, 131, 65_341, 0]);
        assert_eq!(SipHasher13::new().hash(&bytes).as_u128(), 0xc7cc_7144_96aa_752d_2073_9664_c267_bdcf);
    }

    /// Between tables with and without the first of `count` members, either way: the share of the others'
    /// slots that change their owner.
    fn share_moved_between_survivors(count: usize, seed: u64) -> f64 {
        let all = members(&vec![1; count]);
        let (with, without) = (addresses(&all, SIZE, seed), addresses(&all[1..], SIZE, seed));
        let survivors = with.iter().zip(&without).filter(|(before, _)| **before != all[0].address);
        let (moved, stayed): (Vec<_>, Vec<_>) = survivors.partition(|(before, after)| before != after);
        moved.len() as f64 / (moved.len() + stayed.len()) as f64
    }

    fn weights() -> impl Strategy<Value = Vec<u16>> {
        prop::collection::vec(0u16..=1_000, 1..100)
            .prop_filter("somebody has a weight", |weights| weights.iter().any(|&weight| weight > 0))
    }

    fn members(weights: &[u16]) -> Vec<Member> {
        (0u32..)
            .zip(weights)
            .map(|(number, &weight)| Member {
                address: (Ipv4Addr::from(0x0a00_0001 + number), 80).into(),
                weight,
            })
            .collect()
    }

    fn addresses(members: &[Member], size: u32, seed: u64) -> Vec<SocketAddr> {
        table(members, size, seed).into_iter().map(|owner| members[owner as usize].address).collect()
    }

    fn counts(owners: &[u32], members: usize) -> Vec<u32> {
        let mut counts = vec![0; members];
        for &owner in owners {
            counts[owner as usize] += 1;
        }
        counts
    }
}
