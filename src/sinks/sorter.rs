//! External merge sort: rows in any order come out ordered by key, in bounded memory.
//!
//! Rows are collected up to [`RUN_BYTES`] or [`RUN_ROWS`], sorted by key as bytes, and written as a run to an unlinked file
//! in the spool's folder; up to [`FAN_IN`] runs are merged at a time, in as many levels as it takes. Rows with equal keys come out side
//! by side in no particular order: what to do about them is decided by their content, by who takes them.
//!
//! Memory: one run, or while merging [`FAN_IN`] × [`READ_BYTES`] and the longest row of each run that is being read.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use harvester_actors::{
    failure::Failure,
    page::{RECORD_HEADER_BYTES, push_record, record_lengths},
};

use super::disk::local;

/// Bytes of rows that are sorted at a time; a longer row is a run of its own.
const RUN_BYTES: usize = 12 * 1024 * 1024;

/// Rows that are sorted at a time: 4 MiB of index.
const RUN_ROWS: usize = 256 * 1024;

/// Runs that are merged at a time.
const FAN_IN: usize = 32;

/// Bytes that are read at a time from a run that is being merged.
const READ_BYTES: usize = 64 * 1024;

/// Bytes that are written at a time.
const WRITE_BYTES: usize = 256 * 1024;

/// Where a row lies in the buffer, with the first bytes of its key beside it so that most comparisons end there.
#[derive(Clone, Copy, Debug)]
struct Entry {
    prefix: u64,
    at: u32,
}

/// Rows on their way into order.
#[derive(Debug)]
pub(crate) struct Sorter {
    /// Where temporary files go.
    dir: PathBuf,
    /// Records as in a page.
    records: Vec<u8>,
    /// Where they begin.
    entries: Vec<Entry>,
    /// Size of a run.
    run_bytes: usize,
    /// Sorted runs by level; a run of level n has been merged n times.
    levels: Vec<Vec<Run>>,
}

impl Sorter {
    /// Nothing yet; temporary files go to `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Sorter {
            dir: dir.to_path_buf(),
            records: Vec::new(),
            entries: Vec::new(),
            run_bytes: RUN_BYTES,
            levels: Vec::new(),
        }
    }

    /// Takes a row.
    ///
    /// # Errors
    /// `Local` when a temporary file cannot be written.
    pub(crate) fn push(&mut self, key: &[u8], row: &[u8]) -> Result<(), Failure> {
        let mut prefix = [0; 8];
        let len = key.len().min(8);
        prefix[..len].copy_from_slice(&key[..len]);
        let bytes = self.records.len() + RECORD_HEADER_BYTES + key.len() + row.len();
        if !self.entries.is_empty() && (bytes > self.run_bytes || self.entries.len() == RUN_ROWS) {
            self.spill().map_err(|error| local("write a temporary file in", &self.dir, &error))?;
        }
        if self.records.capacity() == 0 {
            // Once and for all: growing by doubling would take half as much again. Pages that are not used cost nothing.
            self.records.reserve_exact(self.run_bytes);
        }
        // Behind at most RUN_BYTES, so it fits.
        let at = u32::try_from(self.records.len()).unwrap_or(u32::MAX);
        self.entries.push(Entry { prefix: u64::from_be_bytes(prefix), at });
        push_record(&mut self.records, key, row);
        Ok(())
    }

    /// Hands all rows to `take`, ordered by key.
    ///
    /// # Errors
    /// `Local` when a temporary file fails; what `take` returns.
    pub(crate) fn finish(mut self, mut take: impl FnMut(&[u8], &[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        let dir = self.dir.clone();
        let io = |error: io::Error| local("use a temporary file in", &dir, &error);
        if self.levels.is_empty() {
            self.sort();
            for entry in &self.entries {
                let (key, row) = record_at(&self.records, entry.at as usize);
                take(key, row)?;
            }
            return Ok(());
        }
        if !self.entries.is_empty() {
            self.spill().map_err(io)?;
        }
        (self.records, self.entries) = (Vec::new(), Vec::new());
        let mut runs: Vec<Run> = self.levels.drain(..).flatten().collect();
        // The shortest first, so that no byte is copied more often than needed.
        runs.sort_by_key(|run| std::cmp::Reverse(run.len));
        while runs.len() > FAN_IN {
            let some = runs.split_off(runs.len() - FAN_IN.min(runs.len() - FAN_IN + 1));
            let merged = merge_to_file(&dir, some).map_err(io)?;
            let place = runs.partition_point(|run| run.len > merged.len);
            runs.insert(place, merged);
        }
        let mut merge = Merge::of(runs).map_err(io)?;
        while let Some((key, row)) = merge.first() {
            take(key, row)?;
            merge.advance().map_err(io)?;
        }
        Ok(())
    }

    /// Sorts the index of what is in memory.
    fn sort(&mut self) {
        let records = &self.records;
        let key = |entry: &Entry| record_at(records, entry.at as usize).0;
        self.entries.sort_unstable_by(|a, b| a.prefix.cmp(&b.prefix).then_with(|| key(a).cmp(key(b))));
    }

    /// Writes what is in memory as a run.
    fn spill(&mut self) -> io::Result<()> {
        self.sort();
        let mut out = RunWriter::new(&self.dir)?;
        for entry in &self.entries {
            let (key, row) = record_at(&self.records, entry.at as usize);
            out.push(key, row)?;
        }
        self.records.clear();
        self.entries.clear();
        let mut run = out.finish()?;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            self.levels[level].push(run);
            if self.levels[level].len() < FAN_IN {
                break;
            }
            run = merge_to_file(&self.dir, std::mem::take(&mut self.levels[level]))?;
        }
        Ok(())
    }
}

/// Key and row of the record at this place of a buffer that `push_record` filled.
fn record_at(records: &[u8], at: usize) -> (&[u8], &[u8]) {
    let mut lengths = [0; RECORD_HEADER_BYTES];
    lengths.copy_from_slice(&records[at..at + RECORD_HEADER_BYTES]);
    let (row_len, key_len) = record_lengths(lengths);
    records[at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + key_len + row_len].split_at(key_len)
}

/// Merges runs into one.
fn merge_to_file(dir: &Path, runs: Vec<Run>) -> io::Result<Run> {
    let mut merge = Merge::of(runs)?;
    let mut out = RunWriter::new(dir)?;
    while let Some((key, row)) = merge.first() {
        out.push(key, row)?;
        merge.advance()?;
    }
    out.finish()
}

/// A sorted, unlinked file of records.
#[derive(Debug)]
struct Run {
    file: File,
    len: u64,
}

/// Writes a run.
struct RunWriter {
    file: File,
    len: u64,
    buffer: Vec<u8>,
}

impl RunWriter {
    fn new(dir: &Path) -> io::Result<Self> {
        Ok(RunWriter { file: tempfile::tempfile_in(dir)?, len: 0, buffer: Vec::with_capacity(WRITE_BYTES) })
    }

    fn push(&mut self, key: &[u8], row: &[u8]) -> io::Result<()> {
        push_record(&mut self.buffer, key, row);
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.len)?;
        self.len += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<Run> {
        self.flush()?;
        Ok(Run { file: self.file, len: self.len })
    }
}

/// Reads a run: `buffer[pos..filled]` is what has been read and not used; the record in hand begins at `pos`.
struct RunReader {
    run: Run,
    read: u64,
    buffer: Vec<u8>,
    pos: usize,
    filled: usize,
    key_len: usize,
    record_len: usize,
}

impl RunReader {
    /// Begins with the first record; `None` for an empty run.
    fn new(run: Run) -> io::Result<Option<Self>> {
        let buffer = vec![0; READ_BYTES];
        let mut reader = RunReader { run, read: 0, buffer, pos: 0, filled: 0, key_len: 0, record_len: 0 };
        Ok(reader.load()?.then_some(reader))
    }

    /// Makes the record at `pos` whole in the buffer; whether there is one.
    fn load(&mut self) -> io::Result<bool> {
        self.provide(RECORD_HEADER_BYTES)?;
        let Some(lengths) = self.buffer[self.pos..self.filled].first_chunk::<RECORD_HEADER_BYTES>() else {
            return Ok(false);
        };
        let (row_len, key_len) = record_lengths(*lengths);
        (self.key_len, self.record_len) = (key_len, RECORD_HEADER_BYTES + key_len + row_len);
        self.provide(self.record_len)?;
        if self.filled - self.pos < self.record_len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(true)
    }

    /// Reads until the buffer holds `len` bytes from `pos` on, or the run ends.
    fn provide(&mut self, len: usize) -> io::Result<()> {
        if self.filled - self.pos >= len || self.read == self.run.len {
            return Ok(());
        }
        self.buffer.copy_within(self.pos..self.filled, 0);
        (self.pos, self.filled) = (0, self.filled - self.pos);
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        let left = usize::try_from(self.run.len - self.read).unwrap_or(usize::MAX);
        let part = (self.buffer.len() - self.filled).min(left);
        self.run.file.read_exact_at(&mut self.buffer[self.filled..self.filled + part], self.read)?;
        self.filled += part;
        self.read += part as u64;
        Ok(())
    }

    /// Goes on to the next record; whether there is one.
    fn advance(&mut self) -> io::Result<bool> {
        self.pos += self.record_len;
        self.load()
    }

    fn key(&self) -> &[u8] {
        &self.buffer[self.pos + RECORD_HEADER_BYTES..][..self.key_len]
    }

    fn record(&self) -> (&[u8], &[u8]) {
        self.buffer[self.pos + RECORD_HEADER_BYTES..self.pos + self.record_len].split_at(self.key_len)
    }
}

/// Several runs side by side: a heap of readers by the key in hand, which allocates nothing per row.
struct Merge {
    readers: Vec<RunReader>,
}

impl Merge {
    fn of(runs: Vec<Run>) -> io::Result<Self> {
        let mut readers = Vec::with_capacity(runs.len());
        for run in runs {
            readers.extend(RunReader::new(run)?);
        }
        let mut merge = Merge { readers };
        for place in (0..merge.readers.len() / 2).rev() {
            merge.sink(place);
        }
        Ok(merge)
    }

    /// The record with the least key.
    fn first(&self) -> Option<(&[u8], &[u8])> {
        self.readers.first().map(RunReader::record)
    }

    /// Goes on behind it.
    fn advance(&mut self) -> io::Result<()> {
        if let Some(first) = self.readers.first_mut() {
            if !first.advance()? {
                self.readers.swap_remove(0);
            }
            self.sink(0);
        }
        Ok(())
    }

    /// Moves the reader at this place of the heap down to where it belongs.
    fn sink(&mut self, mut place: usize) {
        loop {
            let mut least = place;
            for child in [2 * place + 1, 2 * place + 2] {
                if child < self.readers.len() && self.readers[child].key() < self.readers[least].key() {
                    least = child;
                }
            }
            if least == place {
                return;
            }
            self.readers.swap(place, least);
            place = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Rows = Vec<(Vec<u8>, Vec<u8>)>;

    fn sorted(rows: &Rows, run_bytes: usize) -> Rows {
        let dir = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(dir.path());
        sorter.run_bytes = run_bytes;
        for (key, row) in rows {
            sorter.push(key, row).unwrap();
        }
        let mut out = Rows::new();
        sorter
            .finish(|key, row| {
                out.push((key.to_vec(), row.to_vec()));
                Ok(())
            })
            .unwrap();
        out
    }

    proptest! {
        #[test]
        fn rows_come_out_by_key_whatever_the_size_of_a_run(
            rows in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..12), prop::collection::vec(any::<u8>(), 0..40)), 0..300),
            run_bytes in 1usize..6000,
        ) {
            let out = sorted(&rows, run_bytes);
            prop_assert!(out.windows(2).all(|pair| pair[0].0 <= pair[1].0));
            let (mut before, mut after) = (rows, out);
            before.sort();
            after.sort();
            prop_assert_eq!(before, after);
        }
    }

    #[test]
    fn more_runs_than_are_merged_at_once_take_several_levels() {
        // Runs of one row: 32² and more of them reach the third level.
        let rows: Rows = (0..1100u32)
            .map(|n| ((n.wrapping_mul(2_654_435_761)).to_be_bytes().to_vec(), n.to_le_bytes().to_vec()))
            .collect();
        let mut expected = rows.clone();
        expected.sort();
        assert_eq!(sorted(&rows, 1), expected);
    }

    #[test]
    fn a_row_longer_than_every_buffer_passes() {
        let rows = vec![
            (b"b".to_vec(), vec![b'x'; 3 * READ_BYTES]),
            (b"a".to_vec(), vec![b'y'; WRITE_BYTES + 1]),
            (b"c".to_vec(), b"z".to_vec()),
        ];
        let out = sorted(&rows, 1000);
        assert_eq!(
            out.iter().map(|(key, row)| (key[0], row.len())).collect::<Vec<_>>(),
            [(b'a', WRITE_BYTES + 1), (b'b', 3 * READ_BYTES), (b'c', 1)]
        );
    }
}
