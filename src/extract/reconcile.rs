//! What shows that a stream whose keys can be listed is complete, and what is to be fetched until something does: decisions,
//! pure.
//!
//! ```text
//!                ┌─ the numbers agree, before and after ───────────────▶ proved by its total
//! rows fetched ──┤
//!                └─ they do not ─▶ List ─▶ Ask for what differs ─┬─────▶ proved by its listing
//!                                   ▲                            ├─────▶ rows that are listed and do not come: 4
//!                                   └─ once, what did not come ──┴─────▶ a server that contradicts itself: 4
//! ```
//!
//! A number proves only as much as the server meant by it: a page that its own pager contradicts, a second count that differs
//! from the first, a row that came twice, each leads to a listing of all keys. What is listed and was not fetched is asked for
//! by its key. What was fetched and is not listed is asked for as well: a row that has gone does not come, and one that comes
//! all the same was hidden by an answer that stood for the whole, as that of a replica which lags behind.
//!
//! It ends under steady change: only a key that was listed, asked for by itself, and is listed again afterwards is missing.
//! Keys that appear later are asked for once more, and otherwise have come and gone.

use harvester_actors::follow::Proof;

/// How often rows are counted that may be hidden: a replica that lags behind answers all of it once in 4,096 times.
pub(crate) const HIDDEN_COUNTS: u32 = 12;

/// Listings that one process makes because what an earlier one listed did not come.
pub(crate) const RELISTINGS_MAX: u32 = 1;

/// A number that the server was asked for behind the last row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Recount {
    /// It has not been asked yet.
    NotAsked,
    /// It does not count this, or did all of it in one answer, which a second count could not make any truer.
    NotOffered,
    /// It would not say.
    Refused,
    /// So many rows.
    Rows(u64),
}

/// The difference between what was fetched and what the server lists.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Comparison {
    /// How many keys the newest listing has that were not fetched.
    pub(crate) missing: u64,
    /// How many keys the newest listing has.
    pub(crate) listed: u64,
    /// How many of the missing ones an earlier listing had as well: they have been asked for before, and are listed again.
    pub(crate) relisted: u64,
    /// How many rows were fetched before the newest listing and are not in it.
    pub(crate) vanished: u64,
    /// How many of these came again since, when they were asked for by their keys: the listing was not the truth.
    pub(crate) returned: u64,
    /// How many rows were rejected that do not say which they are: so many of the missing ones are known after all.
    pub(crate) nameless: u64,
}

/// What is known of a stream of which nothing is left to be fetched.
#[derive(Clone, Debug)]
pub(crate) struct Known<'a> {
    /// Rows that the server counted when the plan was made.
    pub(crate) expected: Option<u64>,
    /// Rows that came, those that could not be taken included.
    pub(crate) rows: u64,
    /// By how many rows the server's answers contradicted each other.
    pub(crate) miscounted: u64,
    /// Whether its numbers agree only because a row came twice.
    pub(crate) is_distrusted: bool,
    /// What it counts now: behind the last row, or behind the newest listing where there is one.
    pub(crate) recount: Recount,
    /// Whether all its keys can be listed.
    pub(crate) can_list: bool,
    /// How its rows differ from the newest listing, where there is one.
    pub(crate) comparison: Option<&'a Comparison>,
    /// Whether what differs has been asked for since that listing.
    pub(crate) is_asked: bool,
    /// Listings of this process beyond the first.
    pub(crate) relistings: u32,
}

/// What is to be done about a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Nothing: it is complete, as this shows.
    Proved(Proof),
    /// Ask how many rows there are now.
    Recount,
    /// List all its keys.
    List,
    /// Ask for the rows that differ, by their keys.
    Ask,
    /// Nothing more: so many rows are listed and do not come.
    Missing(u64),
    /// Nothing more: so many rows come that a listing did not have.
    Contradicted(u64),
    /// Nothing more: so many rows are counted, before and after, that are neither listed nor sent.
    Hidden(u64),
}

/// Decides what is to be done about a stream.
pub(crate) fn next_step(known: &Known<'_>) -> Step {
    let Some(comparison) = known.comparison else {
        let agrees = known.expected == Some(known.rows) && known.miscounted == 0 && !known.is_distrusted;
        return match known.recount {
            _ if !known.can_list => Step::Proved(if agrees { Proof::Total } else { Proof::None }),
            _ if !agrees && known.expected.is_some() => Step::List,
            Recount::NotAsked => Step::Recount,
            Recount::NotOffered if agrees => Step::Proved(Proof::Total),
            Recount::Rows(rows) if rows == known.rows && !known.is_distrusted && known.miscounted == 0 => {
                Step::Proved(Proof::Total)
            }
            Recount::Rows(_) | Recount::Refused | Recount::NotOffered => Step::List,
        };
    };
    if comparison.returned > 0 && harvester_pacing::control!("contradiction") {
        return Step::Contradicted(comparison.returned);
    }
    let missing = comparison.missing.saturating_sub(comparison.nameless);
    if !known.is_asked {
        let differs = missing > 0 || comparison.vanished > 0;
        return if differs { Step::Ask } else { listed(known, comparison) };
    }
    let still_missing = comparison.relisted.min(missing);
    if missing > 0 && known.relistings < RELISTINGS_MAX {
        Step::List
    } else if still_missing > 0 {
        Step::Missing(still_missing)
    } else {
        listed(known, comparison)
    }
}

/// What is to be done about a stream of which everything that is listed is there.
///
/// Rows that were counted when the plan was made, never came and are not listed have been deleted since; unless they are counted
/// again, which a replica that has them does sooner or later.
fn listed(known: &Known<'_>, comparison: &Comparison) -> Step {
    let gone = known.expected.unwrap_or(0).saturating_sub(comparison.listed + comparison.vanished);
    match known.recount {
        _ if gone == 0 => Step::Proved(Proof::Listing),
        Recount::NotAsked => Step::Recount,
        Recount::Rows(rows) if rows >= comparison.listed + gone => Step::Hidden(gone),
        Recount::Rows(_) | Recount::Refused | Recount::NotOffered => Step::Proved(Proof::Listing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream whose numbers agree.
    fn agreeing() -> Known<'static> {
        Known {
            expected: Some(10),
            rows: 10,
            miscounted: 0,
            is_distrusted: false,
            recount: Recount::Rows(10),
            can_list: true,
            comparison: None,
            is_asked: false,
            relistings: 0,
        }
    }

    #[test]
    fn a_total_proves_a_stream_only_where_nothing_contradicts_it() {
        let proved = Step::Proved(Proof::Total);
        for (what, known, step) in [
            ("all agrees", agreeing(), proved),
            ("not counted again yet", Known { recount: Recount::NotAsked, ..agreeing() }, Step::Recount),
            ("a whole table in one answer", Known { recount: Recount::NotOffered, ..agreeing() }, proved),
            ("it counts otherwise now", Known { recount: Recount::Rows(11), ..agreeing() }, Step::List),
            ("it does not count any more", Known { recount: Recount::Refused, ..agreeing() }, Step::List),
            ("fewer rows came", Known { rows: 9, ..agreeing() }, Step::List),
            ("more rows came", Known { rows: 11, ..agreeing() }, Step::List),
            ("a pager contradicted its page", Known { miscounted: 1, ..agreeing() }, Step::List),
            ("a row came twice", Known { is_distrusted: true, ..agreeing() }, Step::List),
            ("never counted before", Known { expected: None, recount: Recount::NotAsked, ..agreeing() }, Step::Recount),
            ("counted only afterwards", Known { expected: None, ..agreeing() }, proved),
            ("never counted at all", Known { expected: None, recount: Recount::Refused, ..agreeing() }, Step::List),
            (
                "neither counted nor listed",
                Known { expected: None, can_list: false, ..agreeing() },
                Step::Proved(Proof::None),
            ),
            ("counted, not listed", Known { rows: 9, can_list: false, ..agreeing() }, Step::Proved(Proof::None)),
        ] {
            assert_eq!(next_step(&known), step, "{what}");
        }
    }

    #[test]
    fn a_listing_proves_a_stream_once_what_differs_has_been_asked_for() {
        let compared = |missing, vanished, relisted, returned| Comparison {
            missing,
            vanished,
            relisted,
            returned,
            listed: 10 - vanished,
            nameless: 0,
        };
        let proved = Step::Proved(Proof::Listing);
        // missing, vanished, relisted, returned; asked for, relistings.
        for (what, difference, is_asked, relistings, step) in [
            ("all that is listed came, and no more", (0, 0, 0, 0), false, 0, proved),
            ("one is missing", (1, 0, 0, 0), false, 0, Step::Ask),
            ("one has gone, perhaps", (0, 1, 0, 0), false, 0, Step::Ask),
            ("it has gone", (0, 1, 0, 0), true, 0, proved),
            ("it has not: a listing left it out", (0, 1, 0, 1), true, 0, Step::Contradicted(1)),
            ("one did not come", (1, 0, 0, 0), true, 0, Step::List),
            ("it is listed again, and asked for again", (1, 0, 1, 0), false, 1, Step::Ask),
            ("and does not come again", (1, 0, 1, 0), true, 1, Step::Missing(1)),
            ("others appeared meanwhile, and have gone", (3, 2, 0, 0), true, 1, proved),
            ("one of them was there before", (3, 2, 1, 0), true, 1, Step::Missing(1)),
        ] {
            let (missing, vanished, relisted, returned) = difference;
            let comparison = compared(missing, vanished, relisted, returned);
            let known = Known { comparison: Some(&comparison), is_asked, relistings, ..agreeing() };
            assert_eq!(next_step(&known), step, "{what}");
        }
        for (what, expected, recount, step) in [
            ("five of those that were counted at first are gone", 15, Recount::NotAsked, Step::Recount),
            ("they are", 15, Recount::Rows(10), proved),
            ("others came since", 15, Recount::Rows(12), proved),
            ("they are not", 15, Recount::Rows(15), Step::Hidden(5)),
            ("it does not count any more", 15, Recount::Refused, proved),
            ("none is", 10, Recount::NotAsked, proved),
        ] {
            let comparison = compared(0, 0, 0, 0);
            let known = Known { expected: Some(expected), recount, comparison: Some(&comparison), ..agreeing() };
            assert_eq!(next_step(&known), step, "{what}");
        }
        let nameless = Comparison { nameless: 1, ..compared(1, 0, 1, 0) };
        let known = Known { comparison: Some(&nameless), is_asked: true, relistings: 1, ..agreeing() };
        assert_eq!(next_step(&known), proved, "a rejected row that does not say which it is may be the missing one");
    }
}
