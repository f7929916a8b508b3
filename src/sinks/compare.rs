//! What a stream has and its server does not list any more, and the other way round.

use std::path::Path;

use harvester_actors::{
    failure::Failure,
    partition::{PartitionRole, Plan, StreamId},
    sink::{Comparison, SpanReader, VANISHED_KEYS_MAX},
};

use super::{
    keys::{KeyMask, each_key},
    reader::SpoolReader,
};

/// Keys of rows that were fetched before the newest listing.
const BEFORE: KeyMask = 1;
/// Keys of rows that were fetched since.
const SINCE: KeyMask = 2;
/// Keys of the newest listing.
const LISTED: KeyMask = 4;
/// Keys of earlier listings.
const LISTED_BEFORE: KeyMask = 8;

/// See `Sink::compare`. Fetched are the keys of all partitions that are no listings, rejected ones included.
pub(crate) fn compare(
    reader: &SpoolReader,
    scratch_dir: &Path,
    stream: StreamId,
    plan: &Plan,
    spans: &dyn SpanReader,
) -> Result<Comparison, Failure> {
    let Some(newest) = plan.newest_listing(stream) else { return Ok(Comparison::default()) };
    let mut nameless = 0;
    let pages = plan.partitions_of(stream).flat_map(|partition| {
        let set = match (partition.role == PartitionRole::Listing, partition.id < newest.id) {
            (false, true) => BEFORE,
            (false, false) => SINCE,
            (true, true) => LISTED_BEFORE,
            (true, false) => LISTED,
        };
        spans.spans(partition.id).map(move |span| Ok((set, span?)))
    });
    let pages = pages.inspect(|page| {
        if let Ok((BEFORE | SINCE, span)) = page {
            nameless += span.rejects.iter().filter(|reject| reject.id.is_none()).count() as u64;
        }
    });
    let mut comparison = Comparison::default();
    each_key(reader, scratch_dir, pages, |key, sets| count(&mut comparison, key, sets))?;
    Ok(Comparison { nameless, ..comparison })
}

/// Takes the next key into account.
fn count(comparison: &mut Comparison, key: &[u8], sets: KeyMask) {
    let is_in = |some: KeyMask| sets & some != 0;
    let text = || String::from_utf8_lossy(key).into_owned();
    comparison.listed += u64::from(is_in(LISTED));
    if is_in(LISTED) && !is_in(BEFORE | SINCE) {
        comparison.missing.push(text());
        comparison.relisted += u64::from(is_in(LISTED_BEFORE));
    }
    if is_in(BEFORE) && !is_in(LISTED) {
        comparison.vanished += 1;
        comparison.returned += u64::from(is_in(SINCE));
        if comparison.vanished_keys.len() < VANISHED_KEYS_MAX {
            comparison.vanished_keys.push(text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_counts_for_what_the_sets_say_that_have_it() {
        // (sets, listed, missing, relisted, vanished, returned)
        for (sets, listed, missing, relisted, vanished, returned) in [
            (BEFORE, 0, 0, 0, 1, 0),
            (BEFORE | LISTED, 1, 0, 0, 0, 0),
            (BEFORE | LISTED_BEFORE, 0, 0, 0, 1, 0),
            (BEFORE | SINCE, 0, 0, 0, 1, 1),
            (BEFORE | SINCE | LISTED_BEFORE, 0, 0, 0, 1, 1),
            (BEFORE | SINCE | LISTED, 1, 0, 0, 0, 0),
            (BEFORE | SINCE | LISTED | LISTED_BEFORE, 1, 0, 0, 0, 0),
            (SINCE, 0, 0, 0, 0, 0),
            (SINCE | LISTED_BEFORE, 0, 0, 0, 0, 0),
            (SINCE | LISTED, 1, 0, 0, 0, 0),
            (LISTED, 1, 1, 0, 0, 0),
            (LISTED | LISTED_BEFORE, 1, 1, 1, 0, 0),
            (LISTED_BEFORE, 0, 0, 0, 0, 0),
        ] {
            let mut found = Comparison::default();
            count(&mut found, b"key", sets);
            assert_eq!(
                (found.listed, found.missing.len(), found.relisted, found.vanished, found.returned),
                (listed, missing, relisted, vanished, returned),
                "{sets:04b}"
            );
            assert_eq!(found.vanished_keys.len() as u64, found.vanished, "{sets:04b}");
        }
        let mut found = Comparison::default();
        (0..VANISHED_KEYS_MAX + 7).for_each(|_| count(&mut found, b"key", BEFORE));
        assert_eq!((found.vanished_keys.len(), found.vanished), (VANISHED_KEYS_MAX, VANISHED_KEYS_MAX as u64 + 7));
    }
}
