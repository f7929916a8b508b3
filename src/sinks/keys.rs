//! The keys of several sets of pages in the order of their bytes, each once, with the sets that have it: what two readings of
//! a stream, or a reading and a list, have in common is told by walking them side by side.
//!
//! Memory: one [`Sorter`], whatever the number of keys; they alone go to temporary files, not their rows.

use std::path::Path;

use harvester_actors::{failure::Failure, page::Span};

use super::{reader::SpoolReader, sorter::Sorter};

/// Which sets have a key, a bit for each.
pub(crate) type KeyMask = u8;

/// Hands every key of `pages`, each page with the bit of its set, to `visit`, with the bits of all sets that have it.
///
/// Keys of rejected rows are among them where they could be read: what was refused once would be refused again.
///
/// # Errors
/// `Damaged` when the spool does not hold a page; `Local` when it cannot be read, or a temporary file in `scratch_dir` fails.
pub(crate) fn each_key(
    reader: &SpoolReader,
    scratch_dir: &Path,
    pages: impl Iterator<Item = Result<(KeyMask, Span), Failure>>,
    mut visit: impl FnMut(&[u8], KeyMask),
) -> Result<(), Failure> {
    let (mut sorter, mut buffer) = (Sorter::new(scratch_dir), Vec::new());
    for page in pages {
        let (set, span) = page?;
        for id in span.rejects.iter().filter_map(|reject| reject.id.as_deref()) {
            sorter.push(id.as_bytes(), &[set])?;
        }
        reader.page(&span, &mut buffer, |record| sorter.push(record.key, &[set]))?;
    }
    // The key whose sets are not all known yet; no bit before the first one.
    let (mut key, mut sets) = (Vec::new(), 0);
    sorter.finish(|next, set| {
        if sets != 0 && key != next {
            visit(&key, sets);
            sets = 0;
        }
        if sets == 0 {
            key.clear();
            key.extend_from_slice(next);
        }
        sets |= set.first().copied().unwrap_or_default();
        Ok(())
    })?;
    if sets != 0 {
        visit(&key, sets);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use harvester_actors::{page::Reject, partition::PartitionRole};
    use proptest::prelude::*;

    use super::{
        super::{
            conformance::{header, page, plan, stream},
            spool::Spool,
        },
        *,
    };

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_key_comes_once_in_order_with_all_sets_that_have_it(
            // (set, whether the keys are those of rejected rows, keys)
            pages in prop::collection::vec((0u8..8, any::<bool>(), prop::collection::vec("[a-c]{0,3}", 0..12)), 0..8),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let spool = Spool::new(dir.path().to_path_buf());
            let plan = plan(vec![stream("s")], &[(0, PartitionRole::Rows)]);
            spool.begin(&header("20260101T000000Z", &plan)).unwrap();
            let (mut spans, mut expected) = (Vec::new(), BTreeMap::<Vec<u8>, KeyMask>::new());
            for (seq, (set, are_rejected, keys)) in (0..).zip(&pages) {
                let rows: Vec<_> = keys.iter().map(|key| (key.as_str(), "{}")).collect();
                let mut page = page(0, seq, if *are_rejected { &[] } else { &rows });
                let reject = |id| Reject {
                    partition: "p".to_owned(),
                    class: "too_large".to_owned(),
                    message: "m".to_owned(),
                    id,
                    bytes: None,
                };
                if *are_rejected {
                    page.rejects = keys.iter().map(|key| reject(Some(key.clone()))).chain([reject(None)]).collect();
                }
                spans.push(Ok((1 << set, spool.append(page).unwrap())));
                for key in keys {
                    *expected.entry(key.clone().into_bytes()).or_default() |= 1 << set;
                }
            }
            let mut seen = Vec::new();
            let reader = spool.reader().unwrap();
            each_key(&reader, dir.path(), spans.into_iter(), |key, sets| seen.push((key.to_vec(), sets))).unwrap();
            prop_assert_eq!(seen, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
