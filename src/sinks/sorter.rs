//! External merge sort: rows in any order come out ordered by key, in bounded memory.
//!
//! Rows are collected up to [`RUN_BYTES`] or [`RUN_ROWS`], sorted by key as bytes, and written as a run to an unlinked file
//! in the spool's folder; up to [`FAN_IN`] runs are merged at a time, in as many levels as it takes. Rows with equal keys come out side
//! by side in no particular order: what to do about them is decided by their content, by who takes them.
//!
//! It ends with the next row once it is cancelled, also while runs are merged: that may take minutes.
//!
//! Memory: one run, and while merging what [`merge`](super::merge) takes for [`FAN_IN`] runs.

use std::{
    io,
    path::{Path, PathBuf},
};

use harvester_actors::{
    failure::Failure,
    page::{RECORD_HEADER_BYTES, push_record, record_lengths},
    sink::Cancel,
};

use super::{
    disk::io_failure,
    merge::{Merge, Run, RunWriter},
};

/// Bytes of rows that are sorted at a time; a longer row is a run of its own.
const RUN_BYTES: usize = 12 * 1024 * 1024;

/// Rows that are sorted at a time: 4 MiB of index.
const RUN_ROWS: usize = 256 * 1024;

/// Runs that are merged at a time.
pub(crate) const FAN_IN: usize = 64;

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
    /// Says when to give up.
    cancel: Cancel,
}

impl Sorter {
    /// Nothing yet; temporary files go to `dir`.
    pub(crate) fn new(dir: &Path, cancel: &Cancel) -> Self {
        Sorter::with_run_bytes(dir, cancel, RUN_BYTES)
    }

    /// One that sorts less at a time.
    pub(crate) fn with_run_bytes(dir: &Path, cancel: &Cancel, run_bytes: usize) -> Self {
        Sorter {
            dir: dir.to_path_buf(),
            records: Vec::new(),
            entries: Vec::new(),
            run_bytes,
            levels: Vec::new(),
            cancel: cancel.clone(),
        }
    }

    /// Takes a row.
    ///
    /// # Errors
    /// `Local` when a temporary file cannot be written, or the work is cancelled.
    pub(crate) fn push(&mut self, key: &[u8], row: &[u8]) -> Result<(), Failure> {
        self.cancel.check()?;
        let mut prefix = [0; 8];
        let len = key.len().min(8);
        prefix[..len].copy_from_slice(&key[..len]);
        let bytes = self.records.len() + RECORD_HEADER_BYTES + key.len() + row.len();
        if !self.entries.is_empty() && (bytes > self.run_bytes || self.entries.len() == RUN_ROWS) {
            self.spill()?;
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
    /// `Local` when a temporary file fails, or the work is cancelled; what `take` returns.
    pub(crate) fn finish(mut self, mut take: impl FnMut(&[u8], &[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        if self.levels.is_empty() {
            self.sort();
            for entry in &self.entries {
                self.cancel.check()?;
                let (key, row) = record_at(&self.records, entry.at as usize);
                take(key, row)?;
            }
            return Ok(());
        }
        let (dir, cancel) = (self.dir.clone(), self.cancel.clone());
        let io = |error: io::Error| temporary(&dir, &error);
        let mut merge = Merge::of(self.into_runs()?).map_err(io)?;
        while let Some((key, row)) = merge.first().map_err(io)? {
            cancel.check()?;
            take(key, row)?;
            merge.advance().map_err(io)?;
        }
        Ok(())
    }

    /// All rows as sorted runs, at most [`FAN_IN`] of them.
    ///
    /// # Errors
    /// `Local` when a temporary file fails, or the work is cancelled.
    pub(crate) fn into_runs(mut self) -> Result<Vec<Run>, Failure> {
        let (dir, cancel) = (self.dir.clone(), self.cancel.clone());
        if !self.entries.is_empty() {
            self.spill()?;
        }
        let mut runs: Vec<Run> = self.levels.drain(..).flatten().collect();
        drop(self);
        // The shortest first, so that no byte is copied more often than needed.
        runs.sort_by_key(|run| std::cmp::Reverse(run.len()));
        while runs.len() > FAN_IN {
            let some = runs.split_off(runs.len() - FAN_IN.min(runs.len() - FAN_IN + 1));
            let out = RunWriter::new(&dir).map_err(|error| temporary(&dir, &error))?;
            let merged = merged(&dir, &cancel, some, out)?;
            let place = runs.partition_point(|run| run.len() > merged.len());
            runs.insert(place, merged);
        }
        Ok(runs)
    }

    /// Sorts the index of what is in memory.
    fn sort(&mut self) {
        let records = &self.records;
        let key = |entry: &Entry| record_at(records, entry.at as usize).0;
        self.entries.sort_unstable_by(|a, b| a.prefix.cmp(&b.prefix).then_with(|| key(a).cmp(key(b))));
    }

    /// Writes what is in memory as a run.
    fn spill(&mut self) -> Result<(), Failure> {
        self.sort();
        let mut out = self.run_writer(0).map_err(|error| temporary(&self.dir, &error))?;
        let io = |error: io::Error| temporary(&self.dir, &error);
        for entry in &self.entries {
            let (key, row) = record_at(&self.records, entry.at as usize);
            out.push(key, row).map_err(io)?;
        }
        let mut run = out.finish().map_err(io)?;
        self.records.clear();
        self.entries.clear();
        for level in 0.. {
            self.levels[level].push(run);
            if self.levels[level].len() < FAN_IN {
                break;
            }
            let runs = std::mem::take(&mut self.levels[level]);
            let out = self.run_writer(level + 1).map_err(|error| temporary(&self.dir, &error))?;
            run = merged(&self.dir, &self.cancel, runs, out)?;
        }
        Ok(())
    }

    /// Begins the next run of a level, in the file that its runs share: open files are scarcer than runs.
    fn run_writer(&mut self, level: usize) -> io::Result<RunWriter> {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        match self.levels[level].last() {
            Some(last) => Ok(RunWriter::after(last)),
            None => RunWriter::new(&self.dir),
        }
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
fn merged(dir: &Path, cancel: &Cancel, runs: Vec<Run>, mut out: RunWriter) -> Result<Run, Failure> {
    let io = |error: io::Error| temporary(dir, &error);
    let mut merge = Merge::of(runs).map_err(io)?;
    while let Some((key, row)) = merge.first().map_err(io)? {
        cancel.check()?;
        out.push(key, row).map_err(io)?;
        merge.advance().map_err(io)?;
    }
    out.finish().map_err(io)
}

/// A temporary file has failed.
pub(crate) fn temporary(dir: &Path, error: &io::Error) -> Failure {
    io_failure("use a temporary file in", dir, error)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use proptest::prelude::*;

    use super::{super::merge::READ_BYTES, *};

    type Rows = Vec<(Vec<u8>, Vec<u8>)>;

    fn sorted(rows: &Rows, run_bytes: usize) -> Rows {
        sorted_watched(rows, run_bytes, |_| {})
    }

    fn sorted_watched(rows: &Rows, run_bytes: usize, watch: impl Fn(&Sorter)) -> Rows {
        let dir = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::with_run_bytes(dir.path(), &Cancel::default(), run_bytes);
        for (key, row) in rows {
            sorter.push(key, row).unwrap();
            watch(&sorter);
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
        // Runs of one row: FAN_IN² and more of them reach the third level.
        let rows: Rows = (0..4200u32)
            .map(|n| ((n.wrapping_mul(2_654_435_761)).to_be_bytes().to_vec(), n.to_le_bytes().to_vec()))
            .collect();
        let mut expected = rows.clone();
        expected.sort();
        let files = Cell::new(0);
        let count = |sorter: &Sorter| {
            let files_of = |runs: &Vec<Run>| runs.chunk_by(|a, b| Arc::ptr_eq(&a.file, &b.file)).count();
            files.set(files.get().max(sorter.levels.iter().map(files_of).sum()));
        };
        assert_eq!(sorted_watched(&rows, 1, count), expected);
        assert_eq!(files.get(), 3, "open at once, one for each level");
    }

    #[test]
    fn a_sort_that_is_cancelled_ends_with_its_next_row_in_every_phase() {
        let dir = tempfile::tempdir().unwrap();
        let filled = |rows: u32, run_bytes: usize| {
            let cancel = Cancel::default();
            let mut sorter = Sorter::with_run_bytes(dir.path(), &cancel, run_bytes);
            for n in 0..rows {
                sorter.push(&n.to_be_bytes(), b"row").unwrap();
            }
            (sorter, cancel)
        };
        for run_bytes in [1, 1_000_000] {
            let (mut sorter, cancel) = filled(100, run_bytes);
            cancel.cancel();
            sorter.push(b"key", b"row").unwrap_err();
            let (sorter, cancel) = filled(100, run_bytes);
            let mut taken = 0;
            let ended = sorter.finish(|_, _| {
                taken += 1;
                cancel.cancel();
                Ok(())
            });
            assert_eq!((ended.is_err(), taken), (true, 1), "runs of {run_bytes} bytes");
        }
        // 70 runs are left: more than are merged at a time.
        let (sorter, cancel) = filled(60 * 64 + 10, 1);
        cancel.cancel();
        sorter.into_runs().unwrap_err();
    }

    #[test]
    fn a_row_longer_than_every_buffer_passes() {
        let rows = vec![
            (b"b".to_vec(), vec![b'x'; 3 * READ_BYTES]),
            (b"a".to_vec(), vec![b'y'; 4 * READ_BYTES + 1]),
            (b"c".to_vec(), b"z".to_vec()),
        ];
        let out = sorted(&rows, 1000);
        assert_eq!(
            out.iter().map(|(key, row)| (key[0], row.len())).collect::<Vec<_>>(),
            [(b'a', 4 * READ_BYTES + 1), (b'b', 3 * READ_BYTES), (b'c', 1)]
        );
    }
}
