//! The rows of many pages in the order of their keys' bytes, whatever order they came in.
//!
//! ```text
//! pages ─▶ read once, checked ─┬─ keys ascend ─▶ first and last key ─▶ do too many overlap? ─┬─ no ─▶ merged from where it is ─┐
//!                              └─ they do not ────────▶ sorter ◀─────────────── yes ──────────┘                                 ├─▶ rows
//!                                                         └──────────────────────▶ sorted runs, merged ─────────────────────────┘
//! ```
//!
//! A page is opened when the merge comes to its first key and closed after its last one, so that pages which follow each other
//! cost no comparison, in whatever order they arrived: a stream that its server sorts by bytes is read twice and never copied.
//! Only where more than [`PAGES_OPEN_MAX`] pages have keys in common, or where a server sorts by a collation, are rows written
//! to temporary files.
//!
//! The first reading proves every page by its checksum; the second one believes it.
//! Reading, sorting and merging each end with the next row once they are cancelled.
//!
//! Memory: one [`Sorter`] with rows and a small one with the keys of pages; then [`PAGES_OPEN_MAX`] pages and
//! [`FAN_IN`](super::sorter::FAN_IN) runs, of each of which [`merge`](super::merge) holds one buffer: about 22 MiB at most.

use std::{cmp::Reverse, collections::BinaryHeap, io, path::Path, sync::Arc};

use harvester_actors::{failure::Failure, page::PageRef, sink::Cancel};

use super::{
    disk::io_failure,
    frame::TRAILER_BYTES,
    merge::{Merge, Run, RunWriter},
    reader::{Record, SpoolReader},
    sorter::{Sorter, temporary},
};

/// Pages that are merged at a time.
const PAGES_OPEN_MAX: usize = 64;

/// Bytes of the keys of pages that are sorted at a time.
const PAGE_KEYS_BYTES: usize = 1024 * 1024;

/// Hands the rows of pages to `take`, ordered by key; rows with equal keys in no particular order.
///
/// # Errors
/// `Damaged` when the spool does not hold a page; `Local` when it cannot be read, a temporary file in `scratch_dir` fails, or
/// the work is cancelled; what `take` returns.
pub(crate) fn in_key_order(
    reader: &SpoolReader,
    scratch_dir: &Path,
    cancel: &Cancel,
    pages: impl Iterator<Item = Result<PageRef, Failure>>,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (pages, runs) = sorted(reader, scratch_dir, cancel, pages)?;
    let read = |error: io::Error| io_failure("read the rows of", &reader.path, &error);
    let mut pages = Merge::of(vec![pages]).map_err(read)?;
    let mut rows = Merge::of(runs).map_err(read)?;
    loop {
        while pages.first_key().is_some_and(|page| rows.first_key().is_none_or(|row| page <= row)) {
            if let Some((_, page)) = pages.first().map_err(read)? {
                rows.add(Bytes::decode(page).0.of(reader)).map_err(read)?;
            }
            pages.advance().map_err(read)?;
        }
        let Some((key, row)) = rows.first().map_err(read)? else { return Ok(()) };
        cancel.check()?;
        take(key, row)?;
        rows.advance().map_err(read)?;
    }
}

/// Everything in sorted pieces: the pages that can be merged where they are, by first key, and runs of all other rows.
fn sorted(
    reader: &SpoolReader,
    scratch_dir: &Path,
    cancel: &Cancel,
    pages: impl Iterator<Item = Result<PageRef, Failure>>,
) -> Result<(Run, Vec<Run>), Failure> {
    let mut rows = Rows { reader, scratch_dir, cancel, sorter: Sorter::new(scratch_dir, cancel) };
    let ascending = rows.survey(pages)?;
    let pages = rows.choose(ascending)?;
    Ok((pages, rows.sorter.into_runs()?))
}

/// The rows that cannot be merged where they are.
struct Rows<'a> {
    reader: &'a SpoolReader,
    scratch_dir: &'a Path,
    cancel: &'a Cancel,
    sorter: Sorter,
}

impl Rows<'_> {
    /// Reads all pages; those whose keys ascend are returned by first key, the rows of the others go to the sorter.
    fn survey(&mut self, pages: impl Iterator<Item = Result<PageRef, Failure>>) -> Result<Sorter, Failure> {
        let mut ascending = Sorter::with_run_bytes(self.scratch_dir, self.cancel, PAGE_KEYS_BYTES);
        let (mut buffer, mut keys) = (Vec::new(), PageKeys::default());
        for page in pages {
            let page = page?;
            keys.clear();
            // A page may be a whole table.
            self.reader.page(&page, &mut buffer, |record| {
                keys.see(record);
                self.cancel.check()
            })?;
            let bytes = Bytes { from: keys.from, to: page.frame.to.saturating_sub(TRAILER_BYTES as u64) };
            match keys.rows {
                0 => {}
                _ if keys.ascend => ascending.push(&keys.first, &bytes.encode(&keys.last))?,
                _ => self.sort(bytes)?,
            }
        }
        Ok(ascending)
    }

    /// Keeps as many of the ascending pages as can be merged at a time, and sends the rows of the others to the sorter.
    fn choose(&mut self, ascending: Sorter) -> Result<Run, Failure> {
        let scratch_dir = self.scratch_dir;
        let temporary = |error: io::Error| temporary(scratch_dir, &error);
        let mut kept = RunWriter::new(scratch_dir).map_err(temporary)?;
        // Last keys of the pages that are open where the merge comes to this page's first key.
        let mut open = BinaryHeap::new();
        ascending.finish(|first, page| {
            let (bytes, last) = Bytes::decode(page);
            while open.peek().is_some_and(|Reverse(last): &Reverse<Vec<u8>>| last.as_slice() < first) {
                open.pop();
            }
            if open.len() == PAGES_OPEN_MAX {
                return self.sort(bytes);
            }
            open.push(Reverse(last.to_vec()));
            kept.push(first, page).map_err(temporary)
        })?;
        kept.finish().map_err(temporary)
    }

    /// Sends the rows of a page that has been read before to the sorter.
    fn sort(&mut self, bytes: Bytes) -> Result<(), Failure> {
        // One run by itself is read as it is, whatever its order.
        let read = |error: io::Error| io_failure("read", &self.reader.path, &error);
        let mut page = Merge::of(vec![bytes.of(self.reader)]).map_err(read)?;
        while let Some((key, row)) = page.first().map_err(read)? {
            self.sorter.push(key, row)?;
            page.advance().map_err(read)?;
        }
        Ok(())
    }
}

/// What the keys of one page are like.
#[derive(Debug, Default)]
struct PageKeys {
    rows: u64,
    /// Where its first record begins.
    from: u64,
    first: Vec<u8>,
    last: Vec<u8>,
    /// Whether no key is less than the one before it.
    ascend: bool,
}

impl PageKeys {
    /// Begins with a page.
    fn clear(&mut self) {
        (self.rows, self.ascend) = (0, true);
        self.last.clear();
    }

    /// Sees its next record.
    fn see(&mut self, record: Record<'_>) {
        if self.rows == 0 {
            self.from = record.at;
            self.first.clear();
            self.first.extend_from_slice(record.key);
        }
        self.rows += 1;
        self.ascend &= self.last.as_slice() <= record.key;
        self.last.clear();
        self.last.extend_from_slice(record.key);
    }
}

/// Where the records of a page are in the spool.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Bytes {
    from: u64,
    to: u64,
}

impl Bytes {
    /// The records as a run.
    fn of(self, reader: &SpoolReader) -> Run {
        Run { file: Arc::clone(&reader.file), from: self.from, to: self.to }
    }

    /// With the page's last key, as a record of the pages' sorter.
    fn encode(self, last: &[u8]) -> Vec<u8> {
        [&self.from.to_le_bytes(), &self.to.to_le_bytes(), last].concat()
    }

    /// The other way round.
    fn decode(page: &[u8]) -> (Bytes, &[u8]) {
        let number = |at: usize| page.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |n| u64::from_le_bytes(*n));
        (Bytes { from: number(0), to: number(8) }, page.get(16..).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use harvester_actors::partition::{PartitionId, Yield};

    use super::{
        super::{
            conformance::{header, page, plan},
            spool::SpoolLog,
        },
        *,
    };

    /// A spool of partitions with these keys, whose pages have `page_rows` rows and arrive in turn; and the pages.
    fn appended(dir: &Path, partitions: &[Vec<String>], page_rows: usize) -> (SpoolReader, Vec<PageRef>) {
        let spool = SpoolLog::new(dir.to_path_buf());
        spool.begin(&header("20260101T000000Z")).unwrap();
        let end = PartitionId(u32::try_from(partitions.len()).unwrap());
        spool.extend_plan(&plan(&["s"], &[(0, Yield::Rows, end.0)])).unwrap();
        spool.commit_plan().unwrap();
        let mut pages = Vec::new();
        for turn in 0..partitions.iter().map(Vec::len).max().unwrap_or_default().div_ceil(page_rows) {
            for (partition, keys) in partitions.iter().enumerate() {
                let Some(keys) = keys.chunks(page_rows).nth(turn) else { continue };
                let rows: Vec<_> = keys.iter().map(|key| (key.as_str(), "{}")).collect();
                let (partition, turn) = (u32::try_from(partition).unwrap(), u32::try_from(turn).unwrap());
                pages.push(spool.append(page(partition, turn, &rows), end).unwrap().page_ref());
            }
        }
        (spool.reader().unwrap(), pages)
    }

    /// Their keys in key order, and how many runs it took besides the pages.
    fn ordered(partitions: &[Vec<String>], page_rows: usize) -> (Vec<String>, usize) {
        let dir = tempfile::tempdir().unwrap();
        let (reader, pages) = appended(dir.path(), partitions, page_rows);
        let (pages, go_on) = (|| pages.iter().copied().map(Ok), Cancel::default());
        let (_, runs) = sorted(&reader, dir.path(), &go_on, pages()).unwrap();
        let mut keys = Vec::new();
        in_key_order(&reader, dir.path(), &go_on, pages(), |key, _| {
            keys.push(String::from_utf8(key.to_vec()).unwrap());
            Ok(())
        })
        .unwrap();
        (keys, runs.len())
    }

    #[test]
    fn work_that_is_cancelled_ends_with_its_next_row_while_pages_are_read_sorted_and_merged() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<String> = (0..1000).map(|n| format!("k{n:04}")).collect();
        let hands = PAGES_OPEN_MAX + 1;
        let dealt: Vec<Vec<String>> =
            (0..hands).map(|hand| all.iter().skip(hand).step_by(hands).cloned().collect()).collect();
        let (reader, pages) = appended(dir.path(), &dealt, 100);
        // Cancelled as a page is asked for: nothing of that page is seen, and none after it is asked for. After the last of
        // them, the pages that cannot be merged where they are would be read once more.
        for last in [0, 3, pages.len() - 1, pages.len()] {
            let (cancel, mut asked) = (Cancel::default(), 0);
            let mut all = pages.iter().copied().map(Ok);
            let watched = std::iter::from_fn(|| {
                if asked == last {
                    cancel.cancel();
                }
                asked += 1;
                all.next()
            });
            assert!(sorted(&reader, dir.path(), &cancel, watched).is_err(), "cancelled at page {last}");
            assert_eq!(asked, last + 1);
        }
        let (cancel, mut taken) = (Cancel::default(), 0);
        let ended = in_key_order(&reader, dir.path(), &cancel, pages.iter().copied().map(Ok), |_, _| {
            taken += 1;
            if taken == 7 {
                cancel.cancel();
            }
            Ok(())
        });
        assert_eq!((ended.is_err(), taken), (true, 7));
    }

    #[test]
    fn rows_are_copied_only_where_their_pages_cannot_be_merged_where_they_are() {
        let all: Vec<String> = (0..2000).map(|n| format!("k{n:04}")).collect();
        let ranges: Vec<Vec<String>> = all.chunks(20).map(<[String]>::to_vec).collect();
        let dealt = |hands: usize| -> Vec<Vec<String>> {
            (0..hands).map(|hand| all.iter().skip(hand).step_by(hands).cloned().collect()).collect()
        };
        let backwards = || vec![all.iter().rev().cloned().collect::<Vec<_>>()];
        for (what, partitions, page_rows, runs) in [
            ("one after the other", vec![all.clone()], 10, 0),
            ("a hundred ranges at once", ranges.clone(), 3, 0),
            ("the last range first", ranges.into_iter().rev().collect(), 20, 0),
            ("as many walks over all of it as are merged at a time", dealt(PAGES_OPEN_MAX), 5, 0),
            ("one walk more", dealt(PAGES_OPEN_MAX + 1), 5, 1),
            ("backwards, a row a page", backwards(), 1, 0),
            ("backwards", backwards(), 10, 1),
        ] {
            assert_eq!(ordered(&partitions, page_rows), (all.clone(), runs), "{what}");
        }
    }
}
