//! One stream of the spool becomes one file: in the order of its keys' bytes, each key once, hashed, durable, under a name
//! that is not final.
//!
//! The file depends on its rows alone: neither the server's order nor page size nor order of arrival shows in it.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use harvester_actors::{
    failure::Failure,
    sink::{Prepare, PreparedStream},
};
use sha2::{Digest, Sha256};

use super::{
    disk::{self, io_failure},
    duplicates::{Deduplicator, Newest},
    encode::{Encode, FileFormat},
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
    /// What it is written as.
    pub(crate) format: FileFormat,
    /// What is to be done.
    pub(crate) work: &'a Prepare,
}

impl StreamFinisher<'_> {
    /// See `Target::prepare`.
    pub(crate) fn prepare(&self) -> Result<PreparedStream, Failure> {
        let Prepare { stream, passes, pages, cancel, .. } = self.work;
        harvester_actors::crash_point!("finish.before");
        let file = self.format.file_name(&stream.name);
        let path = self.out_dir.join(format!("{file}{PART_SUFFIX}"));
        let mut part = PartFile::create(path, self.format.encoder(), stream.watermark.is_some())?;
        let mut rows = Deduplicator::default();
        let pages = passes.iter().flat_map(|pass| pages.pages_of(*pass)).map(|page| {
            // A page may be without rows.
            cancel.check()?;
            page
        });
        in_key_order(&self.reader, self.scratch_dir, cancel, pages, |key, row| {
            rows.take(key, row, |row| part.put(row))
        })?;
        rows.finish(|row| part.put(row))?;
        let FinishedFile { sha256, rows: lines, bytes, newest } = part.finish()?;
        Ok(PreparedStream { file, rows: lines, bytes, sha256, duplicates: rows.duplicates, newest })
    }
}

/// What follows a file's final name while it lacks it.
pub(crate) const PART_SUFFIX: &str = ".part";

/// A file that is being written.
struct PartFile {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    encoder: Box<dyn Encode>,
    /// Bytes that are not written yet.
    buffer: Vec<u8>,
    rows: u64,
    bytes: u64,
    /// When its newest row was changed, where that is asked.
    newest: Option<Newest>,
}

/// A file that is complete.
struct FinishedFile {
    sha256: String,
    rows: u64,
    bytes: u64,
    newest: Option<String>,
}

impl PartFile {
    /// Begins the file, in place of an older one.
    fn create(path: PathBuf, encoder: Box<dyn Encode>, has_watermark: bool) -> Result<Self, Failure> {
        let dir = disk::parent_of(&path);
        disk::create_dirs(dir).map_err(|error| io_failure("create", dir, &error))?;
        let file = disk::recreate(&path).map_err(|error| io_failure("create", &path, &error))?;
        Ok(PartFile {
            path,
            file,
            hasher: Sha256::new(),
            encoder,
            buffer: Vec::with_capacity(WRITE_BYTES + WRITE_BYTES / 8),
            rows: 0,
            bytes: 0,
            newest: has_watermark.then(Newest::default),
        })
    }

    /// Takes the next row.
    fn put(&mut self, row: &[u8]) -> Result<(), Failure> {
        if let Some(newest) = &mut self.newest {
            newest.see(row);
        }
        self.encoder.row(row, &mut self.buffer)?;
        self.rows += 1;
        if self.buffer.len() >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    /// Hashes and writes what is in the buffer.
    fn write(&mut self) -> Result<(), Failure> {
        self.hasher.update(&self.buffer);
        self.file.write_all(&self.buffer).map_err(|error| io_failure("write", &self.path, &error))?;
        self.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left and makes it durable.
    fn finish(mut self) -> Result<FinishedFile, Failure> {
        self.encoder.finish(&mut self.buffer)?;
        self.write()?;
        harvester_actors::crash_point!("finish.written");
        self.file.sync_all().map_err(|error| io_failure("sync", &self.path, &error))?;
        harvester_actors::crash_point!("finish.synced");
        let newest = self.newest.and_then(|newest| newest.0);
        Ok(FinishedFile { sha256: names::hex(&self.hasher.finalize()), rows: self.rows, bytes: self.bytes, newest })
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
            duplicates::replaces,
            spool::SpoolLog,
        },
        *,
    };

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
        let finisher = StreamFinisher {
            reader,
            scratch_dir: &spool_dir,
            out_dir: &out_dir,
            format: FileFormat::Ndjson,
            work: &work,
        };
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
        let finisher = StreamFinisher {
            reader,
            scratch_dir: dir.path(),
            out_dir: dir.path(),
            format: FileFormat::Ndjson,
            work: &work,
        };
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
