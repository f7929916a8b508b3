//! One process at a time holds a state folder.
//!
//! The lock is an advisory lock of the kernel on the file `lock`: it ends with the process, however that ends, so
//! there is no stale lock to remove. What stands in the file (pid, start time) is only for people.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process,
};

/// Name of the lock file within a state folder.
pub const LOCK_FILE: &str = "lock";

/// Holds a state folder until it is dropped.
#[derive(Debug)]
pub struct StateLock {
    /// Keeps the kernel's lock.
    _file: File,
}

/// Why a state folder cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it (exit 11).
    #[error("{} is held by {holder}", folder.display())]
    Held {
        /// The state folder.
        folder: PathBuf,
        /// What the holder wrote about itself: `process 4711, started 2026-01-01T00:00:00Z`.
        holder: String,
    },
    /// The lock file cannot be used (exit 14).
    #[error("cannot lock {}: {source}", path.display())]
    Storage {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StateLock {
    /// Takes the lock of an existing state folder, or says who has it. Never waits.
    ///
    /// # Errors
    /// `Held` when another process has it; `Storage` when the file cannot be made, locked or written.
    pub fn take(folder: &Path) -> Result<StateLock, LockError> {
        let path = folder.join(LOCK_FILE);
        let storage = |source| LockError::Storage { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(storage)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { folder: folder.to_owned(), holder: holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(storage(source)),
        }
        // A full disk must not keep a run from going on: what stands in the file is only for people.
        let _ = describe(&mut file);
        Ok(StateLock { _file: file })
    }
}

/// Writes who holds the lock.
fn describe(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "process {}, started {:.0}", process::id(), jiff::Timestamp::now())
}

/// Reads who holds the lock.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    // Bounded: somebody else's file might lie under our name.
    let _ = file.take(200).read_to_string(&mut text);
    let line = text.lines().next().unwrap_or("").trim();
    if line.is_empty() { "another process".to_owned() } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_learns_pid_and_start_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateLock::take(folder.path()).unwrap();
        let error = StateLock::take(folder.path()).unwrap_err();
        let LockError::Held { holder, .. } = &error else { panic!("{error}") };
        assert!(holder.starts_with(&format!("process {}, started 2", process::id())), "{holder}");
        assert!(error.to_string().contains(&folder.path().display().to_string()));
        drop(first);
        StateLock::take(folder.path()).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_a_storage_failure_that_names_the_file() {
        let error = StateLock::take(Path::new("/nonexistent/state")).unwrap_err();
        assert!(matches!(error, LockError::Storage { .. }));
        assert!(error.to_string().contains("/nonexistent/state/lock"), "{error}");
    }
}
