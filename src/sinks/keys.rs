//! Compares the keys of passes: every key once, in the order of its bytes, with the sets of passes that have it.
//!
//! All keys go through one external sort, so memory does not grow with them.

use harvester_actors::{
    checkpoint_store::PageIndex,
    failure::Failure,
    sink::{Cancel, KeyMask, KeySet},
};

use super::{reader::SpoolReader, sorter::Sorter, spool::SpoolLog};

/// See `Spool::each_key`.
pub(super) fn each_key(
    spool: &SpoolLog,
    pages: &dyn PageIndex,
    sets: &[KeySet],
    cancel: &Cancel,
    mut visit: impl FnMut(&[u8], KeyMask),
) -> Result<(), Failure> {
    let reader: SpoolReader = spool.reader()?;
    let mut sorter = Sorter::new(spool.dir(), cancel);
    let mut buffer = Vec::new();
    for (bit, set) in sets.iter().enumerate() {
        let mask: [KeyMask; 1] = [1 << bit];
        for page in set.0.iter().flat_map(|pass| pages.pages_of(*pass)) {
            let page = page?;
            reader.page(&page, &mut buffer, |record| sorter.push(record.key, &mask))?;
            if page.counts.rejected > 0 {
                // What was refused once would be refused again.
                for id in spool.rejects(page.frame)?.iter().filter_map(|reject| reject.id.as_ref()) {
                    sorter.push(id.as_bytes(), &mask)?;
                }
            }
        }
    }
    let mut last: Option<(Vec<u8>, KeyMask)> = None;
    sorter.finish(|key, row| {
        let mask = row.first().copied().unwrap_or(0);
        match &mut last {
            Some((same, masks)) if same == key => *masks |= mask,
            last => {
                if let Some((key, masks)) = last.replace((key.to_vec(), mask)) {
                    visit(&key, masks);
                }
            }
        }
        Ok(())
    })?;
    if let Some((key, masks)) = last {
        visit(&key, masks);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use harvester_actors::{
        page::{PageCounts, Reject},
        partition::{PartitionId, PassId, Yield},
    };
    use proptest::prelude::*;

    use super::{
        super::conformance::{Pages, header, page_of, plan, spilled},
        *,
    };

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a map: pages of `(pass, keys, ids of refused rows)`, and sets of passes.
        #[test]
        fn what_is_handed_out_is_what_a_map_of_all_keys_would_hold(
            pages in prop::collection::vec(
                (0u32..4, prop::collection::vec("[a-cA-C]{0,2}", 0..6), prop::collection::vec(prop::option::of("[a-c]"), 0..3)),
                0..12,
            ),
            sets in prop::collection::vec(prop::collection::vec(0u32..5, 0..4), 0..8),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let spool = SpoolLog::new(dir.path().to_path_buf());
            spool.begin(&header("20260101T000000Z")).unwrap();
            spool.extend_plan(&plan(&["s"], &[(0, Yield::Rows, 1); 4])).unwrap();
            spool.commit_plan().unwrap();
            let (mut index, mut expected) = (Pages::default(), BTreeMap::<Vec<u8>, KeyMask>::new());
            for (seq, (pass, keys, refused)) in (0..).zip(&pages) {
                let rows: Vec<_> = keys.iter().map(|key| (key.as_str(), "{}")).collect();
                let mut page = page_of(*pass, *pass, seq, &rows);
                page.counts = PageCounts { rejected: refused.len() as u64, ..page.counts };
                page.rejects = refused
                    .iter()
                    .map(|id| Reject {
                        partition: "p".to_owned(),
                        class: "rejected".to_owned(),
                        message: "m".to_owned(),
                        id: id.clone(),
                        bytes: None,
                    })
                    .collect();
                index.0.push(spool.append(if seq % 2 == 0 { page } else { spilled(page) }, PartitionId(4)).unwrap());
                for (bit, _) in sets.iter().enumerate().filter(|(_, set)| set.contains(pass)) {
                    for key in keys.iter().chain(refused.iter().flatten()) {
                        *expected.entry(key.clone().into_bytes()).or_default() |= 1 << bit;
                    }
                }
            }
            let sets: Vec<_> = sets.into_iter().map(|set| KeySet(set.into_iter().map(PassId).collect())).collect();
            let mut found = Vec::new();
            each_key(&spool, &index, &sets, &Cancel::default(), |key, mask| found.push((key.to_vec(), mask))).unwrap();
            prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
