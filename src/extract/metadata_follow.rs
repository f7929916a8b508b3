//! Shows that a metadata collection is complete: by its total, or by a listing of its ids and a repair of what differs.
//!
//! A listing is a pass that gives keys, a repair one that gives rows. What is decided is in `reconcile`, pure.

use std::sync::{Arc, Mutex, PoisonError};

use dhis2::metadata::MetadataList;
use harvester_actors::{
    failure::{Failure, FailureClass},
    follow::{Follow, Followed, Reconciled, StreamFacts},
    partition::{NewPartition, PassId, Yield},
    sink::{KeyMask, KeySet},
};

use super::{
    kind::Selection,
    metadata::{MetadataSelection, Want},
    reconcile::{self, Comparison, Known, Recount, Step},
    source::{FollowNotes, SourceContext},
};

/// Ids in one request for missing rows: its url stays below 2,000 bytes.
const REPAIR_IDS_MAX: usize = 100;

/// Requests in which vanished rows are looked for: each may meet another server behind the same url. A replica that lags behind
/// answers all of them once in 4,096 times.
const VANISHED_REQUESTS: usize = 12;

/// The most keys of a listing in one answer. It is ids alone, and one answer cannot contradict itself.
const LISTING_ROWS_MAX: u32 = 50_000;

/// How many rows more than expected a listing has room for.
const LISTING_ROWS_SPARE: u64 = 1_000;

/// Missing rows that are asked for in one pass: what is missing beyond is listed again.
const MISSING_KEYS_MAX: usize = 100_000;

/// Keys of vanished rows that are looked at again: enough to find out a listing that left rows out.
const VANISHED_KEYS_MAX: usize = 600;

/// Decides what follows of what is known of a collection.
pub(super) async fn follow(
    source: &SourceContext<'_>,
    selection: &MetadataSelection,
    facts: &StreamFacts<'_>,
) -> Result<Followed, Failure> {
    let name = &facts.stream.name;
    let totals = facts.row_totals().counts;
    let newest_listing = facts.passes.iter().rfind(|pass| pass.pass.yields == Yield::Keys);
    if let Some(failure) = newest_listing.and_then(|listing| listing.failure) {
        let why = format!("whether all rows of {name} are there cannot be shown: {failure}");
        return Ok(Followed { step: Follow::Unproved(why), ..Followed::default() });
    }
    let newest_listing = newest_listing.map(|listing| listing.id);
    let compared = match newest_listing {
        Some(newest) => Some(compare(facts, newest).await?),
        None => None,
    };
    let comparison = compared.as_ref().map(|compared| &compared.comparison);
    let newest_rows = facts.passes.iter().rfind(|pass| pass.pass.yields == Yield::Rows).map(|pass| pass.id);
    let FollowNotes { mut recount, mut relistings } = source.notes_of(facts.id);
    let step = loop {
        let known = Known {
            expected: facts.stream.expected_rows,
            rows: totals.kept + totals.rejected,
            miscounted: totals.miscounted,
            is_distrusted: facts.duplicates.unwrap_or(0) > 0,
            recount,
            can_list: true,
            comparison,
            is_asked: newest_rows > newest_listing,
            relistings,
        };
        match reconcile::next_step(&known) {
            Step::Recount => {
                let times = if comparison.is_some() { reconcile::HIDDEN_COUNTS } else { 1 };
                recount = count(source, selection, times).await?;
            }
            step => break step,
        }
    };
    if step == Step::List {
        // What is counted counts behind the newest listing.
        recount = Recount::NotAsked;
        relistings += u32::from(comparison.is_some());
    }
    source.keep_notes(facts.id, FollowNotes { recount, relistings });

    let further = |word: &str, yields, selections: Vec<MetadataSelection>| {
        let pass = facts.next_pass;
        let partition = |(place, selection): (usize, MetadataSelection)| NewPartition {
            pass,
            key: format!("{name}/{word}-{}.{place}", pass.0),
            selection: Selection::Metadata(selection).to_value(),
            requests: None,
            expected_rows: None,
        };
        let selection = Selection::Metadata(selection.clone()).to_value();
        let partitions = selections.into_iter().enumerate().map(partition).collect();
        Follow::Pass { yields, selection, partitions }
    };
    let mut warnings = Vec::new();
    let step = match (step, &compared) {
        (Step::Ask, Some(compared)) => {
            further("repair", Yield::Rows, repair(selection, &compared.missing_keys, &compared.vanished_keys))
        }
        (Step::List, _) => {
            let rows = totals.kept.max(facts.stream.expected_rows.unwrap_or(0));
            further("listing", Yield::Keys, vec![listing(selection, rows)])
        }
        (Step::Proved(proof), _) => {
            warnings.extend(comparison.and_then(|comparison| unseen(facts, comparison)));
            Follow::Satisfied(proof)
        }
        (Step::Missing(rows), _) => {
            Follow::Unproved(format!("{rows} of the rows of {name} that the server lists it does not send"))
        }
        (Step::Contradicted(rows), _) => Follow::Unproved(format!(
            "the server contradicts itself: it sends {rows} rows of {name} that it did not list, so other rows may be \
             missing; perhaps several servers answer at this url, and not all of them are up to date"
        )),
        (Step::Hidden(rows), _) => Follow::Unproved(format!(
            "the server contradicts itself: it counts {rows} rows of {name} that it neither lists nor sends; perhaps several \
             servers answer at this url, and not all of them are up to date"
        )),
        (Step::Recount | Step::Ask, _) => Follow::Unproved(format!(
            "whether all rows of {name} are there cannot be shown: the server does not list them"
        )),
    };
    let reconciled = compared
        .as_ref()
        .map(|Compared { appeared, comparison, .. }| Reconciled { appeared: *appeared, vanished: comparison.vanished });
    Ok(Followed { step, reconciled, warnings })
}

/// How many rows fewer than the server had counted there are, as a sentence: its listing is believed, but not silently.
fn unseen(facts: &StreamFacts<'_>, comparison: &Comparison) -> Option<String> {
    let unseen = facts.stream.expected_rows?.checked_sub(comparison.listed + comparison.vanished)?;
    (unseen > 0).then(|| {
        format!(
            "the server had counted {unseen} rows more in {} than it lists and sends: they are deleted by now, came \
             twice, or are not for this user",
            facts.stream.name
        )
    })
}

/// How a stream differs from its newest listing.
#[derive(Debug, Default)]
struct Compared {
    comparison: Comparison,
    /// Missing keys, at most [`MISSING_KEYS_MAX`].
    missing_keys: Vec<String>,
    /// Vanished keys, at most [`VANISHED_KEYS_MAX`].
    vanished_keys: Vec<String>,
    /// Rows that came into being while the run went on.
    appeared: u64,
}

/// The sets of keys that are compared, by their bit.
const FIRST: KeyMask = 1;
const EARLIER: KeyMask = 2;
const SINCE: KeyMask = 4;
const NEWEST: KeyMask = 8;
const OLDER: KeyMask = 16;

impl Compared {
    /// Takes a key that some of the sets have.
    fn take(&mut self, key: &[u8], mask: KeyMask) {
        let has = |sets: KeyMask| mask & sets != 0;
        let text = || String::from_utf8_lossy(key).into_owned();
        let comparison = &mut self.comparison;
        comparison.listed += u64::from(has(NEWEST));
        self.appeared += u64::from(has(EARLIER | SINCE) && !has(FIRST));
        match (has(NEWEST), has(FIRST | EARLIER), has(SINCE)) {
            (true, false, false) => {
                comparison.missing += 1;
                comparison.relisted += u64::from(has(OLDER));
                if self.missing_keys.len() < MISSING_KEYS_MAX {
                    self.missing_keys.push(text());
                }
            }
            (false, true, is_since) => {
                comparison.vanished += 1;
                comparison.returned += u64::from(is_since);
                if self.vanished_keys.len() < VANISHED_KEYS_MAX {
                    self.vanished_keys.push(text());
                }
            }
            _ => {}
        }
    }
}

/// Compares what was fetched of a stream with its newest listing.
async fn compare(facts: &StreamFacts<'_>, newest: PassId) -> Result<Compared, Failure> {
    let first = facts.passes.first().map(|pass| pass.id);
    let of = |yields: Yield, is_wanted: &dyn Fn(PassId) -> bool| {
        let passes = facts.passes.iter().filter(|pass| pass.pass.yields == yields).map(|pass| pass.id);
        KeySet(passes.filter(|id| is_wanted(*id)).collect())
    };
    let sets = vec![
        of(Yield::Rows, &|id| Some(id) == first),
        of(Yield::Rows, &|id| Some(id) != first && id < newest),
        of(Yield::Rows, &|id| id > newest),
        KeySet(vec![newest]),
        of(Yield::Keys, &|id| id < newest),
    ];
    let compared = Arc::new(Mutex::new(Compared::default()));
    let taking = Arc::clone(&compared);
    let take = move |key: &[u8], mask: KeyMask| {
        taking.lock().unwrap_or_else(PoisonError::into_inner).take(key, mask);
    };
    facts.keys.each(sets, take).await?;
    let mut compared = std::mem::take(&mut *compared.lock().unwrap_or_else(PoisonError::into_inner));
    compared.comparison.nameless = facts.row_totals().counts.nameless;
    Ok(compared)
}

/// Counts the rows of a collection now, and says the highest of so many answers. What came in one answer is not counted again:
/// the server would load it all once more.
async fn count(source: &SourceContext<'_>, selection: &MetadataSelection, times: u32) -> Result<Recount, Failure> {
    if selection.page_size.is_none() || !harvester_pacing::control!("recount") {
        return Ok(Recount::NotOffered);
    }
    let mut highest = 0;
    for _ in 0..times {
        let at = source.with_retries(|client| async move {
            let filters = selection.fresh_filters();
            let endpoint = selection.endpoint.as_deref();
            let list = MetadataList { endpoint, filters: &filters, ..MetadataList::new(&selection.collection) };
            client.id_at(&list, 1).await
        });
        let at = match at.await {
            Ok(at) => at,
            Err(failure) => {
                return match failure.class {
                    // What cannot be counted is listed.
                    FailureClass::TooHeavy
                    | FailureClass::Rejected
                    | FailureClass::Forbidden
                    | FailureClass::Garbled => Ok(Recount::Refused),
                    FailureClass::Transient
                    | FailureClass::Denied
                    | FailureClass::Changed
                    | FailureClass::Local
                    | FailureClass::Damaged
                    | FailureClass::Bug => Err(failure),
                };
            }
        };
        let Some(total) = at.pager.total else { return Ok(Recount::Refused) };
        highest = total.max(highest);
    }
    Ok(Recount::Rows(highest))
}

/// The selection of a listing of the same collection, of about `rows` keys: in one answer, where there are not too many.
fn listing(selection: &MetadataSelection, rows: u64) -> MetadataSelection {
    let room = u32::try_from(rows + rows / 4 + LISTING_ROWS_SPARE).unwrap_or(u32::MAX).min(LISTING_ROWS_MAX);
    let page_size = selection.page_size.map(|rows| rows.max(room));
    MetadataSelection { after: None, until: None, behind: None, page_size, want: Want::Listing, ..selection.clone() }
}

/// The selections that fetch the missing rows by their ids, or all rows where that is one request and the ids would be many:
/// each loads the whole table then. What comes twice is dropped with the files. Vanished rows are looked for in several
/// requests, as the port asks for.
fn repair(selection: &MetadataSelection, missing: &[String], vanished: &[String]) -> Vec<MetadataSelection> {
    let is_paged = selection.page_size.is_some();
    let by_ids = |ids: Vec<String>| MetadataSelection {
        after: None,
        until: None,
        behind: None,
        want: Want::Ids(ids),
        ..selection.clone()
    };
    let mut repairs: Vec<MetadataSelection> = if !is_paged && missing.len() > REPAIR_IDS_MAX {
        vec![selection.clone()]
    } else {
        missing.chunks(REPAIR_IDS_MAX).map(|ids| by_ids(ids.to_vec())).collect()
    };
    let requests = if is_paged { VANISHED_REQUESTS } else { 1 };
    for request in (0..requests).take_while(|_| !vanished.is_empty()) {
        let mut ids: Vec<String> =
            vanished.iter().skip(request).step_by(requests).take(REPAIR_IDS_MAX).cloned().collect();
        if ids.is_empty() {
            ids.push(vanished[request % vanished.len()].clone());
        }
        repairs.push(by_ids(ids));
    }
    repairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_rows_are_asked_for_once_and_vanished_ones_in_twelve_requests() {
        let selection = MetadataSelection {
            collection: "options".into(),
            endpoint: None,
            fields: ":owner".into(),
            filters: Vec::new(),
            page_size: Some(50),
            after: Some("x".into()),
            until: None,
            behind: Some(9),
            counts_afresh: false,
            want: Want::Rows,
        };
        let ids = |count: usize| (0..count).map(|id| format!("id{id}")).collect::<Vec<_>>();
        let asked = |selection: &MetadataSelection, missing, vanished| {
            let repairs = repair(selection, &ids(missing), &ids(vanished));
            let sizes = repairs.iter().map(|repair| match &repair.want {
                Want::Ids(ids) => ids.len(),
                Want::Rows | Want::Listing => 0,
            });
            sizes.collect::<Vec<_>>()
        };
        assert_eq!(asked(&selection, 250, 0), [100, 100, 50]);
        assert_eq!(asked(&selection, 1, 2), [&[1][..], &[1; 12]].concat());
        assert_eq!(asked(&selection, 0, 30), [3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2]);
        let whole = MetadataSelection { page_size: None, ..selection.clone() };
        assert_eq!(asked(&whole, 250, 30), [0, 30], "a whole table is asked for once");
        assert_eq!(listing(&selection, 2_000).page_size, Some(3_500));
        assert_eq!(listing(&selection, 1_000_000).page_size, Some(LISTING_ROWS_MAX));
    }

    #[test]
    fn a_key_is_missing_relisted_vanished_returned_or_appeared_by_the_passes_that_have_it() {
        // (sets, (missing, relisted, vanished, returned, appeared)): who has the key.
        let nothing = (0, 0, 0, 0, 0);
        for (mask, expected) in [
            (FIRST | NEWEST, nothing),
            (FIRST | NEWEST | OLDER | EARLIER | SINCE, nothing),
            // Listed and not there: to be asked for; by the second listing too, it was asked for before.
            (NEWEST, (1, 0, 0, 0, 0)),
            (NEWEST | OLDER, (1, 1, 0, 0, 0)),
            // Came into being while the run went on: an earlier repair brought it, or the newest one.
            (NEWEST | EARLIER, (0, 0, 0, 0, 1)),
            (NEWEST | OLDER | EARLIER, (0, 0, 0, 0, 1)),
            (NEWEST | SINCE, (0, 0, 0, 0, 1)),
            (SINCE, (0, 0, 0, 0, 1)),
            (SINCE | OLDER, (0, 0, 0, 0, 1)),
            // There and no longer listed: deleted, unless it comes when it is asked for.
            (FIRST, (0, 0, 1, 0, 0)),
            (FIRST | OLDER, (0, 0, 1, 0, 0)),
            (FIRST | EARLIER, (0, 0, 1, 0, 0)),
            (FIRST | SINCE, (0, 0, 1, 1, 0)),
            (EARLIER, (0, 0, 1, 0, 1)),
            (EARLIER | SINCE, (0, 0, 1, 1, 1)),
            // Only an older listing has it: deleted before it was fetched.
            (OLDER, nothing),
        ] {
            let mut compared = Compared::default();
            compared.take(b"key", mask);
            let Compared { comparison, missing_keys, vanished_keys, appeared } = compared;
            let Comparison { listed, missing, relisted, vanished, returned, .. } = comparison;
            assert_eq!((missing, relisted, vanished, returned, appeared), expected, "{mask:05b}");
            assert_eq!(listed, u64::from(mask & NEWEST != 0), "{mask:05b}");
            let keys = |count: u64| vec!["key".to_owned(); count.try_into().unwrap()];
            assert_eq!((missing_keys, vanished_keys), (keys(missing), keys(vanished)), "{mask:05b}");
        }
    }

    #[test]
    fn what_is_compared_is_counted_in_full_and_kept_up_to_a_bound() {
        let mut compared = Compared::default();
        for id in 0..MISSING_KEYS_MAX + 3 {
            compared.take(format!("{id:06}").as_bytes(), NEWEST);
        }
        for id in 0..VANISHED_KEYS_MAX + 3 {
            compared.take(format!("v{id:06}").as_bytes(), FIRST);
        }
        let Compared { comparison, missing_keys, vanished_keys, .. } = compared;
        assert_eq!((comparison.missing, missing_keys.len()), (MISSING_KEYS_MAX as u64 + 3, MISSING_KEYS_MAX));
        assert_eq!((comparison.vanished, vanished_keys.len()), (VANISHED_KEYS_MAX as u64 + 3, VANISHED_KEYS_MAX));
        assert_eq!((&*missing_keys[0], &*vanished_keys[0]), ("000000", "v000000"));
    }
}
