//! Several sorted runs of records become one, read side by side in bounded memory.
//!
//! A run is a piece of a file: pages of the spool are merged where they are, besides the temporary files of a sort.
//! Records with equal keys come out side by side in no particular order.
//!
//! Memory: [`READ_BYTES`] for each run, or its longest key, and the longest row of all.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use harvester_actors::page::{RECORD_HEADER_BYTES, push_record, record_lengths};

/// Bytes that are read at a time from a run.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// Bytes that are written at a time.
const WRITE_BYTES: usize = 256 * 1024;

/// Records in key order, at `from..to` of a file.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Where they are.
    pub(crate) file: Arc<File>,
    /// First byte.
    pub(crate) from: u64,
    /// End offset, exclusive.
    pub(crate) to: u64,
}

impl Run {
    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.to - self.from
    }
}

/// Writes a run to a file without a name.
#[derive(Debug)]
pub(crate) struct RunWriter {
    /// What has been written.
    run: Run,
    buffer: Vec<u8>,
}

impl RunWriter {
    /// A run in a file of its own in `dir`.
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        let file = Arc::new(tempfile::tempfile_in(dir)?);
        Ok(RunWriter { run: Run { file, from: 0, to: 0 }, buffer: Vec::new() })
    }

    /// A run in the file of another, the last one there.
    pub(crate) fn after(other: &Run) -> Self {
        RunWriter { run: Run { from: other.to, ..other.clone() }, buffer: Vec::new() }
    }

    /// Takes the next record.
    pub(crate) fn push(&mut self, key: &[u8], row: &[u8]) -> io::Result<()> {
        push_record(&mut self.buffer, key, row);
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.run.file.write_all_at(&self.buffer, self.run.to)?;
        self.run.to += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// The run.
    pub(crate) fn finish(mut self) -> io::Result<Run> {
        self.flush()?;
        Ok(self.run)
    }
}

/// Reads a run: `buffer[pos..filled]` is what has been read and not used; the current record begins at `pos`, and its key is
/// in the buffer.
#[derive(Debug)]
struct RunReader {
    run: Run,
    buffer: Vec<u8>,
    pos: usize,
    filled: usize,
    key_len: usize,
    record_len: usize,
}

impl RunReader {
    /// Begins with the first record; `None` for an empty run.
    fn new(run: Run) -> io::Result<Option<Self>> {
        let mut reader = RunReader { run, buffer: Vec::new(), pos: 0, filled: 0, key_len: 0, record_len: 0 };
        Ok(reader.load()?.then_some(reader))
    }

    /// Brings the key of the record at `pos` into the buffer; whether there is one.
    fn load(&mut self) -> io::Result<bool> {
        if self.pos == self.filled && self.run.len() == 0 {
            return Ok(false);
        }
        self.ensure_buffered(RECORD_HEADER_BYTES)?;
        let mut lengths = [0; RECORD_HEADER_BYTES];
        lengths.copy_from_slice(&self.buffer[self.pos..self.pos + RECORD_HEADER_BYTES]);
        let (row_len, key_len) = record_lengths(lengths);
        (self.key_len, self.record_len) = (key_len, RECORD_HEADER_BYTES + key_len + row_len);
        self.ensure_buffered(RECORD_HEADER_BYTES + key_len)?;
        Ok(true)
    }

    /// Makes the buffer hold `len` bytes from `pos` on. It is no longer than it has to be: one long row must not keep its room
    /// until the run ends.
    fn ensure_buffered(&mut self, len: usize) -> io::Result<()> {
        let ready = self.filled - self.pos;
        if ready >= len {
            return Ok(());
        }
        let left = usize::try_from(self.run.len()).unwrap_or(usize::MAX);
        let part = (READ_BYTES.max(len) - ready).min(left);
        if ready + part < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.copy_within(self.pos..self.filled, 0);
        self.buffer.resize(ready + part, 0);
        self.buffer.shrink_to(READ_BYTES);
        self.run.file.read_exact_at(&mut self.buffer[ready..], self.run.from)?;
        self.run.from += part as u64;
        (self.pos, self.filled) = (0, ready + part);
        Ok(())
    }

    /// Moves on to the next record; whether there is one.
    fn advance(&mut self) -> io::Result<bool> {
        // The whole of it may not have been read.
        let skipped = self.pos + self.record_len;
        if skipped > self.filled {
            self.run.from += (skipped - self.filled) as u64;
        }
        self.pos = skipped.min(self.filled);
        if self.run.from > self.run.to {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.load()
    }

    fn key(&self) -> &[u8] {
        &self.buffer[self.pos + RECORD_HEADER_BYTES..][..self.key_len]
    }

    /// Key and row.
    fn record(&mut self) -> io::Result<(&[u8], &[u8])> {
        self.ensure_buffered(self.record_len)?;
        Ok(self.buffer[self.pos + RECORD_HEADER_BYTES..self.pos + self.record_len].split_at(self.key_len))
    }
}

/// Runs side by side: a heap of readers by their current key, which allocates nothing per record.
#[derive(Debug, Default)]
pub(crate) struct Merge {
    readers: Vec<RunReader>,
}

impl Merge {
    /// All of these runs.
    pub(crate) fn of(runs: Vec<Run>) -> io::Result<Self> {
        let mut merge = Merge::default();
        for run in runs {
            merge.add(run)?;
        }
        Ok(merge)
    }

    /// Adds a run. Its keys come in order only if none of them is less than those that have been passed.
    pub(crate) fn add(&mut self, run: Run) -> io::Result<()> {
        let Some(reader) = RunReader::new(run)? else { return Ok(()) };
        self.readers.push(reader);
        let mut place = self.readers.len() - 1;
        while place > 0 && self.readers[place].key() < self.readers[(place - 1) / 2].key() {
            self.readers.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
        Ok(())
    }

    /// The least key.
    pub(crate) fn first_key(&self) -> Option<&[u8]> {
        self.readers.first().map(RunReader::key)
    }

    /// A record with the least key.
    pub(crate) fn first(&mut self) -> io::Result<Option<(&[u8], &[u8])>> {
        self.readers.first_mut().map(RunReader::record).transpose()
    }

    /// Moves on to the record after it.
    pub(crate) fn advance(&mut self) -> io::Result<()> {
        if let Some(first) = self.readers.first_mut() {
            if !first.advance()? {
                self.readers.swap_remove(0);
            }
            self.sift_down();
        }
        Ok(())
    }

    /// Moves the first reader of the heap down to its place.
    fn sift_down(&mut self) {
        let mut place = 0;
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
    use super::*;

    fn run(dir: &Path, records: &[(&str, Vec<u8>)]) -> Run {
        let mut writer = RunWriter::new(dir).unwrap();
        for (key, row) in records {
            writer.push(key.as_bytes(), row).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn a_long_row_takes_room_only_while_it_is_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let long = || vec![b'x'; 5 * READ_BYTES];
        let runs = vec![
            run(dir.path(), &[("b", long()), ("d", vec![1]), ("f", long())]),
            run(dir.path(), &[("a", long()), ("c", long()), ("e", vec![2])]),
            run(dir.path(), &[]),
        ];
        let mut merge = Merge::of(runs).unwrap();
        let mut seen = Vec::new();
        loop {
            let room: usize = merge.readers.iter().map(|reader| reader.buffer.capacity()).sum();
            assert!(room <= 2 * READ_BYTES, "{room} bytes after {seen:?}");
            let Some((key, row)) = merge.first().unwrap() else { break };
            seen.push((key[0], row.len()));
            merge.advance().unwrap();
        }
        let long = long().len();
        assert_eq!(seen, [(b'a', long), (b'b', long), (b'c', long), (b'd', 1), (b'e', 1), (b'f', long)]);
    }

    #[test]
    fn keys_are_read_without_their_rows_and_a_cut_run_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let whole = run(dir.path(), &[("a", vec![b'x'; 3 * READ_BYTES]), ("b", vec![]), ("c", vec![b'y'; 100])]);
        let keys = |run: Run| {
            let mut merge = Merge::of(vec![run])?;
            let mut keys = Vec::new();
            while let Some(key) = merge.first_key() {
                keys.push(key[0]);
                merge.advance()?;
            }
            Ok::<_, io::Error>(keys)
        };
        assert_eq!(keys(whole.clone()).unwrap(), b"abc");
        for missing in [1, 99, 105, 115, 3 * READ_BYTES as u64] {
            let cut = Run { to: whole.to - missing, ..whole.clone() };
            assert_eq!(keys(cut).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{missing} bytes short");
        }
    }
}
