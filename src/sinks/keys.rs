//! Compares the keys of passes: every key once, in the order of its bytes, with the sets of passes that have it.
//!
//! All keys go through one external sort, so memory does not grow with them.

use harvester_actors::{
    checkpoint_store::PageIndex,
    failure::Failure,
    sink::{KeyMask, KeySet},
};

use super::{reader::SpoolReader, sorter::Sorter, spool::SpoolLog};

/// See `Spool::each_key`.
pub(super) fn each_key(
    spool: &SpoolLog,
    pages: &dyn PageIndex,
    sets: &[KeySet],
    mut visit: impl FnMut(&[u8], KeyMask),
) -> Result<(), Failure> {
    let reader: SpoolReader = spool.reader()?;
    let mut sorter = Sorter::new(spool.dir());
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
