//! One stream of the spool becomes one file: in the order of its keys' bytes, each key once, hashed, durable, under a name
//! that is not final.
//!
//! Of two rows with one key the one with the later `updatedAt` or `lastUpdated` stays, as text; then the greater bytes.
//! The file depends on its rows alone: neither the server's order nor page size nor order of arrival shows in it.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use harvester_actors::{
    failure::Failure,
    sink::{Prepare, PreparedStream},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{
    disk::{self, io_failure},
    names,
    order::in_key_order,
    reader::SpoolReader,
};

/// Bytes that are hashed and written at a time.
const WRITE_BYTES: usize = 256 * 1024;

/// What is read, and where things go.
pub(crate) struct StreamFinisher<'a> {
    /// The spool.
    pub(crate) reader: SpoolReader,
    /// Where temporary files go.
    pub(crate) scratch_dir: &'a Path,
    /// Where the file appears.
    pub(crate) out_dir: &'a Path,
    /// What is to be done.
    pub(crate) work: &'a Prepare,
}

impl StreamFinisher<'_> {
    /// See `Target::prepare`.
    pub(crate) fn prepare(&self) -> Result<PreparedStream, Failure> {
        let Prepare { stream, passes, pages, cancel, .. } = self.work;
        harvester_actors::crash_point!("finish.before");
        let file = names::file_name(&stream.name);
        let path = self.out_dir.join(format!("{file}{PART_SUFFIX}"));
        let mut part = PartFile::create(path, stream.watermark.is_some().then(Newest::default))?;
        let pages = passes.iter().flat_map(|pass| pages.pages_of(*pass)).map(|page| {
            // A page may be without rows.
            cancel.check()?;
            page
        });
        in_key_order(&self.reader, self.scratch_dir, cancel, pages, |key, row| part.put(key, row))?;
        let FinishedFile { hasher, rows, bytes, duplicates, newest } = part.finish()?;
        let sha256 = names::hex(&hasher.finalize());
        Ok(PreparedStream { file, rows, bytes, sha256, duplicates, newest })
    }
}

/// What follows a file's final name while it lacks it.
pub(crate) const PART_SUFFIX: &str = ".part";

/// Whether a row takes the place of another with the same key.
pub(crate) fn replaces(new: &[u8], old: &[u8]) -> bool {
    if new == old {
        return false;
    }
    let (new_time, old_time) = (last_updated(new), last_updated(old));
    new_time.cmp(&old_time).then_with(|| new.cmp(old)).is_gt()
}

/// When a row was last changed, as the server writes it; `None` for rows that do not say.
fn last_updated(row: &[u8]) -> Option<&str> {
    #[derive(Deserialize)]
    struct Times<'a> {
        #[serde(borrow, default, rename = "lastUpdated")]
        last_updated: Option<&'a RawValue>,
        #[serde(borrow, default, rename = "updatedAt")]
        updated_at: Option<&'a RawValue>,
    }
    let times: Times<'_> = serde_json::from_slice(row).ok()?;
    times.updated_at.or(times.last_updated).map(RawValue::get).filter(|text| text.starts_with('"'))
}

/// The latest of the times at which rows were changed or deleted.
#[derive(Debug, Default)]
struct Newest(Option<String>);

impl Newest {
    /// Takes a row into account.
    fn see(&mut self, row: &[u8]) {
        #[derive(Deserialize)]
        struct Times<'a> {
            #[serde(borrow, default, rename = "lastUpdated")]
            last_updated: Option<&'a RawValue>,
            #[serde(borrow, default, rename = "updatedAt")]
            updated_at: Option<&'a RawValue>,
            #[serde(borrow, default, rename = "deletedAt")]
            deleted_at: Option<&'a RawValue>,
        }
        let Ok(times) = serde_json::from_slice::<Times<'_>>(row) else { return };
        let time = times.deleted_at.or(times.updated_at).or(times.last_updated).map(RawValue::get);
        let Some(time) = time.and_then(|text| text.strip_prefix('"')?.strip_suffix('"')) else { return };
        let is_later = self.0.as_deref().is_none_or(|newest| newest < time);
        if is_later && is_local_time(time) {
            self.0 = Some(time.to_owned());
        }
    }
}

/// Whether a text is a date and time without a zone; one with a zone cannot be compared with the server's own date.
fn is_local_time(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || b"-:.T".contains(&byte))
        && text.parse::<jiff::civil::DateTime>().is_ok()
}

/// A file that is being written. Of neighbours with one key one stays.
struct PartFile {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    /// Lines that are not written yet; the last one may still be replaced.
    buffer: Vec<u8>,
    /// Where the last line begins.
    last_line: usize,
    /// Key of the last line.
    last_key: Vec<u8>,
    rows: u64,
    bytes: u64,
    duplicates: u64,
    /// When its newest row was changed, where somebody wants to know.
    newest: Option<Newest>,
}

/// A file that is complete.
struct FinishedFile {
    hasher: Sha256,
    rows: u64,
    bytes: u64,
    duplicates: u64,
    newest: Option<String>,
}

impl PartFile {
    /// Begins the file, in place of an older one.
    fn create(path: PathBuf, newest: Option<Newest>) -> Result<Self, Failure> {
        disk::create_dirs(disk::parent_of(&path))
            .map_err(|error| io_failure("create", disk::parent_of(&path), &error))?;
        let file = disk::recreate(&path).map_err(|error| io_failure("create", &path, &error))?;
        Ok(PartFile {
            path,
            file,
            hasher: Sha256::new(),
            buffer: Vec::with_capacity(WRITE_BYTES + WRITE_BYTES / 8),
            last_line: 0,
            last_key: Vec::new(),
            rows: 0,
            bytes: 0,
            duplicates: 0,
            newest,
        })
    }

    /// Takes the next row: a further line, or one that has the key of the line before it, so that one of the two stays.
    fn put(&mut self, key: &[u8], row: &[u8]) -> Result<(), Failure> {
        if self.rows > 0 && self.last_key == key {
            self.duplicates += 1;
            let last = &self.buffer[self.last_line..self.buffer.len() - 1];
            if replaces(row, last) {
                self.buffer.truncate(self.last_line);
                self.push_line(row);
            }
            return Ok(());
        }
        if self.buffer.len() >= WRITE_BYTES {
            self.write().map_err(|error| io_failure("write", &self.path, &error))?;
        }
        self.last_line = self.buffer.len();
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.push_line(row);
        self.rows += 1;
        Ok(())
    }

    fn push_line(&mut self, row: &[u8]) {
        if let Some(newest) = &mut self.newest {
            newest.see(row);
        }
        self.buffer.extend_from_slice(row);
        self.buffer.push(b'\n');
    }

    /// Hashes and writes all lines; none of them can be replaced any more.
    fn write(&mut self) -> io::Result<()> {
        self.hasher.update(&self.buffer);
        self.file.write_all(&self.buffer)?;
        self.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left and makes it durable.
    fn finish(mut self) -> Result<FinishedFile, Failure> {
        self.write().map_err(|error| io_failure("write", &self.path, &error))?;
        harvester_actors::crash_point!("finish.written");
        self.file.sync_all().map_err(|error| io_failure("sync", &self.path, &error))?;
        harvester_actors::crash_point!("finish.synced");
        let newest = self.newest.and_then(|newest| newest.0);
        Ok(FinishedFile {
            hasher: self.hasher,
            rows: self.rows,
            bytes: self.bytes,
            duplicates: self.duplicates,
            newest,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::BTreeMap, sync::Arc};

    use harvester_actors::{
        checkpoint_store::{PageIndex, PageIterator},
        failure::FailureClass,
        partition::{PartitionId, PassId, Yield},
    };
    use proptest::{prelude::*, sample::Index as Place};

    use super::{
        super::{
            conformance::{Pages, header, page_of, plan, spilled, stream},
            spool::SpoolLog,
        },
        *,
    };

    #[test]
    fn the_newest_row_is_found_by_times_that_can_be_compared() {
        let mut newest = Newest::default();
        for (row, expected) in [
            (r#"{"id":"a"}"#, None),
            (r#"{"id":"a","lastUpdated":7}"#, None),
            (r#"{"id":"a","lastUpdated":"2024-01-02T00:00:00.000"}"#, Some("2024-01-02T00:00:00.000")),
            (r#"{"id":"a","lastUpdated":"2024-01-01T00:00:00.000"}"#, Some("2024-01-02T00:00:00.000")),
            (r#"{"id":"a","lastUpdated":"2024-01-03T00:00:00.000+0000"}"#, Some("2024-01-02T00:00:00.000")),
            (r#"{"id":"a","lastUpdated":"2024-99-03T00:00:00.000"}"#, Some("2024-01-02T00:00:00.000")),
            (r#"{"id":"a","lastUpdated":"zzz"}"#, Some("2024-01-02T00:00:00.000")),
            (r#"{"uid":"a","deletedAt":"2024-01-04T00:00:00.000"}"#, Some("2024-01-04T00:00:00.000")),
        ] {
            newest.see(row.as_bytes());
            assert_eq!(newest.0.as_deref(), expected, "{row}");
        }
    }

    /// A row whose key is its `id`.
    fn row(id: &str, time: u8) -> String {
        format!(r#"{{"id":"{id}","lastUpdated":"2024-01-{time:02}T00:00:00.000"}}"#)
    }

    /// The rows of partitions, each `(key, row)`.
    type Rows = Vec<(String, String)>;

    /// Sends the partitions of passes through a spool, in pages of `page_rows` that arrive as `arrival` says, and prepares what
    /// is rows of it: the file and what is said of it.
    fn finished(
        passes: &[(Yield, Vec<Rows>)],
        page_rows: usize,
        arrival: impl Fn(usize) -> usize,
    ) -> (String, PreparedStream) {
        let dir = tempfile::tempdir().unwrap();
        let spool_dir = dir.path().join("spool");
        let spool = SpoolLog::new(spool_dir.clone());
        spool.begin(&header("20260101T000000Z")).unwrap();
        let planned: Vec<_> =
            passes.iter().map(|(yields, lists)| (0, *yields, u32::try_from(lists.len()).unwrap())).collect();
        spool.extend_plan(&plan(&["s"], &planned)).unwrap();
        spool.commit_plan().unwrap();
        let mut arriving: Vec<std::vec::IntoIter<_>> = Vec::new();
        for (pass, list) in (0..).zip(passes).flat_map(|(pass, (_, lists))| lists.iter().map(move |list| (pass, list)))
        {
            let partition = u32::try_from(arriving.len()).unwrap();
            let chunks = (0..).zip(list.chunks(page_rows)).map(|(seq, rows)| {
                let rows: Vec<_> = rows.iter().map(|(key, row)| (key.as_str(), row.as_str())).collect();
                let page = page_of(pass, partition, seq, &rows);
                if seq % 2 == 0 { page } else { spilled(page) }
            });
            arriving.push(chunks.collect::<Vec<_>>().into_iter());
        }
        let end = PartitionId(u32::try_from(arriving.len()).unwrap());
        let mut pages = Pages::default();
        while !arriving.is_empty() {
            let chosen = arrival(pages.0.len()) % arriving.len();
            match arriving[chosen].next() {
                Some(page) => pages.0.push(spool.append(page, end).unwrap()),
                None => drop(arriving.remove(chosen)),
            }
        }
        let out_dir = dir.path().join("out");
        let rows: Vec<_> = (0..).map(PassId).zip(passes).filter(|(_, (yields, _))| *yields == Yield::Rows).collect();
        let ids: Vec<_> = rows.iter().map(|(id, _)| *id).collect();
        let work = pages.prepare("20260101T000000Z", stream("s"), &ids);
        let reader = spool.reader().unwrap();
        let finisher = StreamFinisher { reader, scratch_dir: &spool_dir, out_dir: &out_dir, work: &work };
        let done = finisher.prepare().unwrap();
        let text = std::fs::read_to_string(out_dir.join("s.ndjson.part")).unwrap();
        assert_eq!(done.sha256, names::hex(&Sha256::digest(text.as_bytes())));
        assert_eq!((done.bytes, done.rows), (text.len() as u64, text.lines().count() as u64));
        let sent: usize = rows.iter().flat_map(|(_, (_, lists))| lists).map(Vec::len).sum();
        assert_eq!(done.rows + done.duplicates, sent as u64, "the numbers add up");
        (text, done)
    }

    fn in_order(_: usize) -> usize {
        0
    }

    fn rows(rows: &[(&str, u8)]) -> Rows {
        rows.iter().map(|(id, time)| ((*id).to_owned(), row(id, *time))).collect()
    }

    fn lines(rows: &[(&str, u8)]) -> String {
        rows.iter().map(|(id, time)| row(id, *time) + "\n").collect()
    }

    #[test]
    fn a_partition_that_ran_on_costs_no_row_and_the_newer_state_of_each_stays() {
        let lists = vec![
            rows(&[("a", 1), ("b", 1), ("m", 5), ("n", 1), ("p", 1)]),
            rows(&[("h", 1), ("m", 2), ("p", 3)]),
            rows(&[("z", 1)]),
        ];
        let (text, done) = finished(&[(Yield::Rows, lists)], 2, in_order);
        let expected = [("a", 1), ("b", 1), ("h", 1), ("m", 5), ("n", 1), ("p", 3), ("z", 1)];
        assert_eq!((text, done.duplicates), (lines(&expected), 2));
    }

    #[test]
    fn rows_are_in_the_order_of_their_bytes_repaired_ones_too_and_a_listing_is_no_row() {
        let listed = |ids: &[&str]| vec![ids.iter().map(|id| ((*id).to_owned(), String::new())).collect()];
        // As a server writes them that ignores case.
        let planned = vec![rows(&[("a", 1), ("B", 1), ("c", 1)]), rows(&[("C", 1), ("d", 1), ("E", 1)])];
        let passes = [
            (Yield::Rows, planned),
            (Yield::Keys, listed(&["a", "B", "b", "c", "C", "d", "E", "never fetched"])),
            (Yield::Rows, vec![rows(&[("b", 2), ("unlisted", 1), ("E", 3)])]),
        ];
        for page_rows in [1, 2, 10] {
            let (text, done) = finished(&passes, page_rows, in_order);
            let expected = [("B", 1), ("C", 1), ("E", 3), ("a", 1), ("b", 2), ("c", 1), ("d", 1), ("unlisted", 1)];
            assert_eq!((text, done.duplicates), (lines(&expected), 1));
        }
    }

    #[test]
    fn rows_longer_than_every_buffer_pass() {
        let long = |id: &str| (id.to_owned(), format!(r#"{{"id":"{id}","x":"{}"}}"#, "y".repeat(3 * WRITE_BYTES)));
        let passes = [(Yield::Rows, vec![vec![long("b"), long("a")], vec![long("a"), long("c")]])];
        for page_rows in [1, 10] {
            let (text, done) = finished(&passes, page_rows, in_order);
            assert_eq!((done.rows, done.duplicates), (3, 1));
            let ids: Vec<_> = text.lines().map(|line| line.as_bytes()[7]).collect();
            assert_eq!(ids, b"abc");
        }
    }

    /// An index that fails.
    struct Broken;

    impl PageIndex for Broken {
        fn pages_of(&self, _: PassId) -> PageIterator {
            Box::new(std::iter::once(Err(disk::damaged("no page"))))
        }
    }

    #[test]
    fn a_stream_whose_pages_cannot_be_read_is_not_prepared() {
        let dir = tempfile::tempdir().unwrap();
        let spool = SpoolLog::new(dir.path().to_path_buf());
        spool.begin(&header("20260101T000000Z")).unwrap();
        let work = Pages::default().prepare("20260101T000000Z", stream("s"), &[PassId(0)]);
        let work = Prepare { pages: Arc::new(Broken), ..work };
        let reader = spool.reader().unwrap();
        let finisher = StreamFinisher { reader, scratch_dir: dir.path(), out_dir: dir.path(), work: &work };
        assert_eq!(finisher.prepare().unwrap_err().class, FailureClass::Damaged);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_file_depends_on_its_rows_alone(
            lists in prop::collection::vec(prop::collection::vec((0u8..30, 1u8..4), 0..25), 1..5),
            page_rows in 1usize..30,
            arrivals in prop::collection::vec(any::<Place>(), 1..40),
        ) {
            let lists: Vec<_> = lists
                .into_iter()
                .map(|list| {
                    let rows = list.into_iter().map(|(id, time)| (format!("k{id}"), row(&format!("k{id}"), time)));
                    rows.collect()
                })
                .collect();
            let passes = [(Yield::Rows, lists)];
            let undisturbed = finished(&passes, 1000, in_order);
            let calls = Cell::new(0);
            let disturbed = finished(&passes, page_rows, |_| {
                calls.set(calls.get() + 1);
                arrivals[calls.get() % arrivals.len()].index(100)
            });
            prop_assert_eq!(&undisturbed, &disturbed);

            let mut best: BTreeMap<&String, &String> = BTreeMap::new();
            for (key, row) in passes[0].1.iter().flatten() {
                let stays = best.entry(key).or_insert(row);
                if replaces(row.as_bytes(), stays.as_bytes()) {
                    *stays = row;
                }
            }
            let lines: Vec<&str> = disturbed.0.lines().collect();
            let expected: Vec<&str> = best.values().map(|row| row.as_str()).collect();
            prop_assert_eq!(lines, expected);
        }
    }

    #[test]
    fn of_two_rows_the_later_stays_then_the_greater_bytes() {
        // (old, new, whether the new one stays)
        let cases = [
            (
                r#"{"id":"a","lastUpdated":"2024-01-01T00:00:00.000"}"#,
                r#"{"id":"a","lastUpdated":"2024-01-02T00:00:00.000"}"#,
                true,
            ),
            (
                r#"{"id":"z","updatedAt":"2024-01-02T00:00:00.000"}"#,
                r#"{"id":"a","updatedAt":"2024-01-03T00:00:00.000"}"#,
                true,
            ),
            (r#"{"x":1,"updatedAt":"2024"}"#, r#"{"x":2,"updatedAt":"2024"}"#, true),
            (r#"{"x":1}"#, r#"{"x":2}"#, true),
            (r#"{"x":1}"#, r#"{"x":1}"#, false),
            (r#"{"x":2}"#, r#"{"x":1,"updatedAt":"2024"}"#, true),
            (r#"{"x":2,"lastUpdated":null}"#, r#"{"x":1,"lastUpdated":"2024"}"#, true),
            (r#"{"lastUpdated":7}"#, r#"{"lastUpdated":6}"#, false),
            ("no json", "no json either", true),
        ];
        for (old, new, stays) in cases {
            assert_eq!(replaces(new.as_bytes(), old.as_bytes()), stays, "{old} then {new}");
            if old != new {
                assert_eq!(replaces(old.as_bytes(), new.as_bytes()), !stays, "the other way round: {old}, {new}");
            }
        }
    }
}
