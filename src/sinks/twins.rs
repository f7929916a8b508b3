//! Whether any key comes twice among many, told in flat memory.
//!
//! Keeps 64-bit hashes, sorted in runs on an unlinked file once there are many. Equal keys have equal hashes, so no
//! twin is overlooked; two different keys with one hash (once in 10⁷ streams of a million rows) make it say yes where
//! no would be true, which costs its owner a second look and nothing else.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    hash::{DefaultHasher, Hasher},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use harvester_actors::failure::Failure;

use super::disk::local;

/// Hashes that stay in memory: 4 MiB.
const RUN_HASHES: usize = 512 * 1024;

/// Hashes that a merge reads at a time from each run.
const READ_HASHES: usize = 1024;

/// 64-bit hash of a key, the same in every process.
pub(crate) fn hash_of(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(key);
    hasher.finish()
}

/// The keys seen so far.
#[derive(Debug)]
pub(crate) struct Twins {
    /// Where a temporary file may be.
    dir: PathBuf,
    /// Hashes since the last run.
    hashes: Vec<u64>,
    /// Hashes of a run.
    run_hashes: usize,
    /// Sorted runs, one behind the other.
    runs: Option<(File, Vec<usize>)>,
    /// Whether a run already holds twins.
    found: bool,
}

impl Twins {
    /// Nothing seen; temporary files go to `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Twins { dir: dir.to_path_buf(), hashes: Vec::new(), run_hashes: RUN_HASHES, runs: None, found: false }
    }

    /// Sees a key.
    ///
    /// # Errors
    /// `Local` when the temporary file cannot be written.
    pub(crate) fn add(&mut self, key: &[u8]) -> Result<(), Failure> {
        self.hashes.push(hash_of(key));
        if self.hashes.len() == self.run_hashes {
            self.spill().map_err(|error| local("write a temporary file in", &self.dir, &error))?;
        }
        Ok(())
    }

    /// Whether two of the keys may be equal; never `false` when they are.
    ///
    /// # Errors
    /// `Local` when the temporary file cannot be read.
    pub(crate) fn found(mut self) -> Result<bool, Failure> {
        self.sort();
        if self.found || self.runs.is_none() {
            return Ok(self.found);
        }
        let dir = self.dir.clone();
        self.merge().map_err(|error| local("read a temporary file in", &dir, &error))
    }

    /// Sorts what is in memory.
    fn sort(&mut self) {
        self.hashes.sort_unstable();
        self.found |= self.hashes.windows(2).any(|pair| pair[0] == pair[1]);
    }

    /// Moves what is in memory to the file.
    fn spill(&mut self) -> io::Result<()> {
        self.sort();
        let (file, runs) = match &mut self.runs {
            Some(runs) => runs,
            none => none.insert((tempfile::tempfile_in(&self.dir)?, Vec::new())),
        };
        let bytes: Vec<u8> = self.hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
        file.write_all_at(&bytes, (runs.iter().sum::<usize>() * size_of::<u64>()) as u64)?;
        runs.push(self.hashes.len());
        self.hashes.clear();
        Ok(())
    }

    /// Reads all runs in order, side by side.
    fn merge(mut self) -> io::Result<bool> {
        if !self.hashes.is_empty() {
            self.spill()?;
        }
        let Some((file, lens)) = self.runs else { return Ok(self.found) };
        let mut begin = 0;
        let mut runs = Vec::new();
        let mut heap = BinaryHeap::new();
        for len in lens {
            let mut run = Run { at: begin, left: len, hashes: Vec::new() };
            begin += len;
            if let Some(hash) = run.next(&file)? {
                heap.push(Reverse((hash, runs.len())));
            }
            runs.push(run);
        }
        let mut last = None;
        while let Some(Reverse((hash, run))) = heap.pop() {
            if last.replace(hash) == Some(hash) {
                return Ok(true);
            }
            if let Some(next) = runs[run].next(&file)? {
                heap.push(Reverse((next, run)));
            }
        }
        Ok(false)
    }
}

/// One run while it is read: `left` hashes from place `at` on, and some that have been read, in reverse.
struct Run {
    at: usize,
    left: usize,
    hashes: Vec<u64>,
}

impl Run {
    /// Its next hash.
    fn next(&mut self, file: &File) -> io::Result<Option<u64>> {
        if self.hashes.is_empty() && self.left > 0 {
            let count = self.left.min(READ_HASHES);
            let mut bytes = vec![0; count * size_of::<u64>()];
            file.read_exact_at(&mut bytes, (self.at * size_of::<u64>()) as u64)?;
            let (hashes, _) = bytes.as_chunks();
            self.hashes.extend(hashes.iter().rev().map(|hash| u64::from_le_bytes(*hash)));
            (self.at, self.left) = (self.at + count, self.left - count);
        }
        Ok(self.hashes.pop())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_twin_is_found_wherever_its_runs_end(keys in prop::collection::vec(0u16..200, 0..60), run_hashes in 1usize..20) {
            let dir = tempfile::tempdir().unwrap();
            let mut twins = Twins::new(dir.path());
            twins.run_hashes = run_hashes;
            for key in &keys {
                twins.add(&key.to_le_bytes()).unwrap();
            }
            let mut distinct = keys.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(twins.found().unwrap(), distinct.len() < keys.len());
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file has a name");
        }
    }

    #[test]
    fn runs_longer_than_one_read_are_merged_whole() {
        let dir = tempfile::tempdir().unwrap();
        for twin in [false, true] {
            let mut twins = Twins::new(dir.path());
            twins.run_hashes = READ_HASHES * 3 + 1;
            for key in 0..READ_HASHES as u64 * 10 {
                twins.add(&key.to_le_bytes()).unwrap();
            }
            if twin {
                twins.add(&7u64.to_le_bytes()).unwrap();
            }
            assert_eq!(twins.found().unwrap(), twin);
        }
    }
}
