//! One order out of several that agree: how a keyset stream is put together when its partitions overlap.
//!
//! A partition of a keyset stream fetches the rows behind one id up to its cut id, in the server's order, which is a
//! collation that is not known here: keys are compared for being equal, never for being less. When its cut id is
//! deleted before the partition gets there, it does not see its end and runs on into the rows of the partitions behind
//! it, up to the end of the collection. What it reads there, others read too, earlier or later; rows may be born and
//! deleted in between, so that each of the two may have rows that the other has not.
//!
//! All lists follow the server's order, so each is a chain: its first row comes before its second, and so on. A key
//! that several lists have is one link of several chains, and its row has one place. The result keeps all chains
//! (their topological order); where they leave a choice, the row that comes first in plan order comes first. So:
//!
//! - lists without a common key are concatenated in plan order;
//! - where a list ran on, its own part comes first; from the first common row on, the rows of both lists are
//!   interlaced: between two common rows first those that only the earlier list has, then those that only the later has;
//! - every row that any list has is there once, and rows that lived through the run are in the server's order: of two of
//!   them either some list has both, or the lists of the one all come before the lists of the other.
//!
//! A listing of all keys, made for a repair, is one more chain. Repaired rows are in no other: they are placed as soon as
//! the listing lets them, that is right behind their neighbour in it, and those that it does not have come last.
//!
//! Chains that contradict each other (a server that changed its collation meanwhile) lose what does not fit: the row
//! that comes first in plan order is placed without regard to the rest, and it goes on from there.

use std::{cmp::Reverse, collections::BinaryHeap, ops::Range};

/// No further link.
const END: u32 = u32::MAX;

/// More rows than this cannot be woven: their numbers must differ from [`END`].
pub(crate) const ROWS_MAX: usize = (u32::MAX - 1) as usize;

/// When a row is placed, of those that may be.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Turn {
    /// As soon as it may: repaired rows that are listed, and keys that are only listed.
    AtOnce,
    /// In plan order.
    InPlanOrder,
    /// When nothing else is left.
    AtLast,
}

/// Hands each key's first row to `place`, in the woven order.
///
/// - `same`: by row, the first row with the same key;
/// - `chains`: which rows follow each other; disjoint and ascending. Rows in none of them are free;
/// - `turn`: of a key's first row.
///
/// Takes 12 bytes a row. Stops at the first error of `place`.
pub(crate) fn weave<E>(
    same: &[u32],
    chains: &[Range<usize>],
    turn: impl Fn(u32) -> Turn,
    mut place: impl FnMut(u32) -> Result<(), E>,
) -> Result<(), E> {
    debug_assert!(same.len() <= ROWS_MAX);
    let links = Links::of(same, chains);
    // How many links of a key still have an unplaced one before them; END once it is placed.
    let mut waits = links.count_waits(same);
    let mut ready = BinaryHeap::new();
    for (row, first) in same.iter().enumerate() {
        if *first as usize == row && waits[row] == 0 {
            ready.push(Reverse((turn(*first), *first)));
        }
    }
    let mut unplaced = 0..same.len();
    loop {
        let next = match ready.pop() {
            Some(Reverse((_, next))) => next,
            // Everything is placed, or the chains contradict each other.
            None => match unplaced.find(|row| same[*row] as usize == *row && waits[*row] != END) {
                Some(row) => same[row],
                None => return Ok(()),
            },
        };
        waits[next as usize] = END;
        place(next)?;
        let mut link = next;
        while link != END {
            if let Some(behind) = links.behind(link) {
                let behind = same[behind as usize];
                if waits[behind as usize] != END {
                    waits[behind as usize] -= 1;
                    if waits[behind as usize] == 0 {
                        ready.push(Reverse((turn(behind), behind)));
                    }
                }
            }
            link = links.twin[link as usize];
        }
    }
}

/// How rows hang together.
struct Links {
    /// By row: another row with its key, further on.
    twin: Vec<u32>,
    /// By row: the one behind it in its chain.
    next: Vec<u32>,
}

impl Links {
    fn of(same: &[u32], chains: &[Range<usize>]) -> Self {
        let mut twin = vec![END; same.len()];
        for (row, first) in (0..).zip(same) {
            if *first != row {
                twin[row as usize] = twin[*first as usize];
                twin[*first as usize] = row;
            }
        }
        let mut next = vec![END; same.len()];
        // In which chain a key was seen last: a key that comes twice in one is a link of it once.
        let mut seen = vec![END; same.len()];
        for (number, chain) in (0..).zip(chains) {
            let mut last: Option<usize> = None;
            for row in chain.clone() {
                let first = same[row] as usize;
                if seen[first] != number {
                    seen[first] = number;
                    if let Some(last) = last.replace(row) {
                        // Below ROWS_MAX.
                        next[last] = u32::try_from(row).unwrap_or(END);
                    }
                }
            }
        }
        Links { twin, next }
    }

    /// The row behind another in its chain.
    fn behind(&self, row: u32) -> Option<u32> {
        Some(self.next[row as usize]).filter(|next| *next != END)
    }

    /// By a key's first row: in how many chains another comes before it.
    fn count_waits(&self, same: &[u32]) -> Vec<u32> {
        let mut waits = vec![0; same.len()];
        for next in self.next.iter().filter(|next| **next != END) {
            waits[same[*next as usize] as usize] += 1;
        }
        waits
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::{prelude::*, sample::Index};

    use super::*;

    /// Weaves lists of keys; repaired keys and a listing besides.
    fn woven(lists: &[Vec<u32>], repaired: &[u32], listing: &[u32]) -> Vec<u32> {
        let mut keys: Vec<u32> = Vec::new();
        let mut chains = Vec::new();
        for list in lists {
            chains.push(keys.len()..keys.len() + list.len());
            keys.extend(list);
        }
        let repaired_from = keys.len();
        keys.extend(repaired);
        let listed_from = keys.len();
        keys.extend(listing);
        chains.push(listed_from..keys.len());
        let first = |key: &u32| u32::try_from(keys.iter().position(|other| other == key).unwrap()).unwrap();
        let same: Vec<u32> = keys.iter().map(first).collect();
        let turn = |row: u32| match row as usize {
            row if row < repaired_from => Turn::InPlanOrder,
            row if row >= listed_from || listing.contains(&keys[row]) => Turn::AtOnce,
            _ => Turn::AtLast,
        };
        let mut out = Vec::new();
        let done = weave(&same, &chains, turn, |row| {
            if (row as usize) < listed_from {
                out.push(keys[row as usize]);
            }
            Ok::<_, Infallible>(())
        });
        assert_eq!(done, Ok(()));
        out
    }

    #[test]
    fn known_overlaps_are_woven_as_the_rule_says() {
        /// What it shows, the lists, the result.
        type Case<'a> = (&'a str, &'a [&'a [u32]], &'a [u32]);
        let cases: &[Case<'_>] = &[
            ("no overlap: plan order", &[&[9, 4], &[1, 7], &[3]], &[9, 4, 1, 7, 3]),
            ("empty partitions", &[&[], &[5], &[], &[2], &[]], &[5, 2]),
            ("ran on to the end", &[&[9, 4, 1, 7, 3], &[1, 7], &[3]], &[9, 4, 1, 7, 3]),
            ("the first row behind the cut was deleted in between", &[&[9, 7, 3], &[1, 7], &[3]], &[9, 1, 7, 3]),
            ("born behind the tail's back", &[&[9, 1, 3], &[1, 7, 3]], &[9, 1, 7, 3]),
            ("deleted before the others came", &[&[9, 1, 7, 3], &[1, 3]], &[9, 1, 7, 3]),
            ("each saw what the other did not", &[&[9, 1, 7, 3], &[1, 8, 3]], &[9, 1, 7, 8, 3]),
            ("a last row that only the tail saw", &[&[9, 1, 2], &[1], &[3]], &[9, 1, 2, 3]),
            ("two ran on", &[&[9, 4, 1, 3], &[4, 1, 3], &[1, 3]], &[9, 4, 1, 3]),
            ("a third list knows what two do not", &[&[9, 1, 2], &[2], &[1]], &[9, 1, 2]),
            ("and so does a last one", &[&[9, 2], &[1], &[1, 2]], &[9, 1, 2]),
            ("a list of twins", &[&[5, 5, 5], &[5]], &[5]),
            ("a list that comes back to a key", &[&[5, 6, 5, 7]], &[5, 6, 7]),
            ("a contradiction", &[&[1, 2], &[2, 1, 3]], &[1, 2, 3]),
        ];
        for (what, lists, expected) in cases {
            let lists: Vec<Vec<u32>> = lists.iter().map(|list| list.to_vec()).collect();
            assert_eq!(woven(&lists, &[], &[]), *expected, "{what}");
        }
    }

    #[test]
    fn repaired_rows_go_behind_their_neighbours_in_the_listing() {
        let rows = [vec![10, 30, 50]];
        assert_eq!(woven(&rows, &[60, 20, 40], &[10, 20, 30, 40, 50, 60]), [10, 20, 30, 40, 50, 60]);
        assert_eq!(woven(&rows, &[5], &[5, 10, 30, 50]), [5, 10, 30, 50], "in front of everything");
        assert_eq!(woven(&rows, &[12, 11], &[10, 11, 12, 30, 50]), [10, 11, 12, 30, 50], "neighbours of each other");
        assert_eq!(woven(&rows, &[77], &[10, 30, 50]), [10, 30, 50, 77], "not listed");
        assert_eq!(woven(&rows, &[30], &[10, 30, 50]), [10, 30, 50], "fetched before");
        assert_eq!(woven(&rows, &[20], &[10, 99, 20, 50]), [10, 20, 30, 50], "behind one that is nowhere");
        assert_eq!(woven(&rows, &[20], &[]), [10, 30, 50, 20], "no listing");
    }

    /// A server whose order is arbitrary, read by partitions that may run on, while rows come and go.
    #[derive(Clone, Debug)]
    struct Reading {
        /// All keys there ever are, in the server's order.
        order: Vec<u32>,
        /// By partition, the keys it read.
        lists: Vec<Vec<u32>>,
        /// By place in the order, whether the row lived through the run.
        lives: Vec<bool>,
    }

    impl Reading {
        fn lived(&self) -> Vec<u32> {
            self.order.iter().zip(&self.lives).filter(|(_, lives)| **lives).map(|(key, _)| *key).collect()
        }
    }

    /// Draws a reading; each partition sees the rows that lived through the run, and others as it comes.
    fn readings() -> impl Strategy<Value = Reading> {
        (1usize..40, 1usize..6).prop_flat_map(|(rows, partitions)| {
            (
                Just((0..u32::try_from(rows).unwrap()).collect::<Vec<_>>()).prop_shuffle(),
                prop::collection::vec(any::<Index>(), partitions - 1),
                prop::collection::vec(any::<bool>(), partitions),
                prop::collection::vec(any::<bool>(), rows),
                prop::collection::vec(prop::collection::vec(any::<bool>(), rows), partitions),
            )
                .prop_map(move |(order, cuts, runs_on, lives, found)| {
                    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(rows + 1)).collect();
                    cuts.sort_unstable();
                    let mut lists = Vec::new();
                    for partition in 0..partitions {
                        let from = if partition == 0 { 0 } else { cuts[partition - 1] };
                        let to = if partition == partitions - 1 || runs_on[partition] { rows } else { cuts[partition] };
                        let sees = |place: &usize| lives[*place] || found[partition][*place];
                        lists.push((from..to).filter(sees).map(|place| order[place]).collect());
                    }
                    Reading { order, lists, lives }
                })
        })
    }

    /// The keys of `all` that `some` has, in the order of `all`.
    fn only(all: &[u32], some: &[u32]) -> Vec<u32> {
        all.iter().copied().filter(|key| some.contains(key)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_row_that_anyone_saw_is_there_once_and_every_list_keeps_its_order(reading in readings()) {
            let result = woven(&reading.lists, &[], &[]);
            let mut seen: Vec<u32> = reading.lists.iter().flatten().copied().collect();
            seen.sort_unstable();
            seen.dedup();
            let mut sorted = result.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &seen, "each row once");
            for list in &reading.lists {
                prop_assert_eq!(&only(&result, list), list, "a list's own order");
            }
            prop_assert_eq!(only(&result, &reading.lived()), reading.lived(), "the server's order");
        }

        #[test]
        fn a_repair_completes_the_servers_order(
            reading in readings(),
            lost in prop::collection::vec(any::<bool>(), 40),
            listed in prop::collection::vec(any::<bool>(), 40),
        ) {
            // Some rows that lived through the run were never fetched; the listing, made later, has all that live.
            let is = |flags: &[bool], key: &u32| flags[*key as usize];
            let mut lists = reading.lists.clone();
            for list in &mut lists {
                list.retain(|key| !is(&lost, key));
            }
            let lived = reading.lived();
            let listing: Vec<u32> =
                reading.order.iter().copied().filter(|key| lived.contains(key) || is(&listed, key)).collect();
            let mut repaired: Vec<u32> = listing.iter().copied().filter(|key| !lists.iter().flatten().any(|one| one == key)).collect();
            repaired.reverse();
            let result = woven(&lists, &repaired, &listing);
            prop_assert_eq!(only(&result, &listing), listing, "all that is listed, in the server's order");
            prop_assert_eq!(result.len(), lists.iter().flatten().chain(&repaired).collect::<std::collections::BTreeSet<_>>().len());
        }

        #[test]
        fn lists_in_any_order_lose_nothing(lists in prop::collection::vec(prop::collection::vec(0u32..12, 0..8), 0..6)) {
            let mut result = woven(&lists, &[], &[]);
            result.sort_unstable();
            let mut seen: Vec<u32> = lists.into_iter().flatten().collect();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(result, seen);
        }
    }
}
