//! One process at a time holds a state folder.
//!
//! The lock is an advisory lock of the kernel on the folder itself, which no deleting and no replacing of a file in it
//! undoes; it ends with the process, however that ends, so there is no stale lock to remove. The file `lock` is locked as
//! well: earlier versions look at nothing else, and some network file systems lock no folders. What stands in it (pid, start
//! time) is only for people.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use rustix::fs::OFlags;

/// Name of the lock file within a state folder.
pub const LOCK_FILE: &str = "lock";

/// How often a held lock is tried again, and the pause between: between fork and exec, a child process holds a copy of every
/// lock of its parent. A real holder keeps it longer.
const ASKED_MAX: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// Holds a state folder until it is dropped.
#[derive(Debug)]
pub struct StateLock {
    /// Keeps the kernel's lock of the folder; `None` where the file system locks no folders.
    _folder: Option<File>,
    /// Keeps that of the file.
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
    /// Acquires the lock of an existing state directory; waits 200 ms at most.
    ///
    /// # Errors
    /// `Held` when another process has it; `Storage` when the folder or the file cannot be opened or locked, or when what
    /// stands under the file's name is none.
    pub fn acquire(folder: &Path) -> Result<StateLock, LockError> {
        let path = folder.join(LOCK_FILE);
        let storage = |source| LockError::Storage { path: path.clone(), source };
        let held = || LockError::Held { folder: folder.to_owned(), holder: holder(&path) };
        let of_folder = if harvester_pacing::control!("folder-lock") { lock_folder(folder, held)? } else { None };
        let mut file = open(&path, true).map_err(storage)?;
        match try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held()),
            Err(TryLockError::Error(source)) => return Err(storage(source)),
        }
        // A file that is no longer there is a lock that nobody else will meet.
        if of_folder.is_none() && !is_still_there(&file, &path) && harvester_pacing::control!("folder-lock") {
            return Err(held());
        }
        // A full disk must not keep a run from going on: what stands in the file is only for people.
        let _ = describe(&mut file);
        Ok(StateLock { _folder: of_folder, _file: file })
    }
}

/// Locks the folder; `None` where its file system cannot do that.
fn lock_folder(folder: &Path, held: impl Fn() -> LockError) -> Result<Option<File>, LockError> {
    let storage = |source| LockError::Storage { path: folder.to_owned(), source };
    let opened = OpenOptions::new().read(true).custom_flags(flags(OFlags::DIRECTORY)).open(folder).map_err(storage)?;
    match try_lock(&opened) {
        Ok(()) => Ok(Some(opened)),
        Err(TryLockError::WouldBlock) => Err(held()),
        // NFS wants a file that is open for writing, which a folder never is.
        Err(TryLockError::Error(error)) => {
            tracing::debug!(%error, "the state folder cannot be locked, its file `{LOCK_FILE}` is");
            Ok(None)
        }
    }
}

/// Locks a file or folder, or finds it locked by somebody who stays.
fn try_lock(file: &File) -> Result<(), TryLockError> {
    let mut asked = 0;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if asked < ASKED_MAX => asked += 1,
            tried => return tried,
        }
        thread::park_timeout(PAUSE);
    }
}

/// Opens the lock file, which is made where it is `wanted`. Follows no link, and waits for nobody at the other end of a pipe.
fn open(path: &Path, wanted: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(wanted).create(wanted).truncate(false).mode(0o600);
    let file = match options.custom_flags(flags(OFlags::NOFOLLOW | OFlags::NONBLOCK)).open(path) {
        Err(_) if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) => {
            return Err(io::Error::other("it is a symbolic link, which is not followed; remove it"));
        }
        opened => opened?,
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file; remove it")) }
}

/// Flags as the standard library takes them.
fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

/// Whether the name still leads to this file.
fn is_still_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Writes who holds the lock.
fn describe(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "process {}, started {:.0}", process::id(), jiff::Timestamp::now())
}

/// Reads who holds the lock.
fn holder(path: &Path) -> String {
    let mut text = String::new();
    // Bounded: somebody else's file might lie under our name.
    let _ = open(path, false).and_then(|file| file.take(200).read_to_string(&mut text));
    let line = text.lines().next().unwrap_or("").trim();
    if line.is_empty() { "another process".to_owned() } else { line.chars().filter(|c| !c.is_control()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_learns_pid_and_start_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateLock::acquire(folder.path()).unwrap();
        let error = StateLock::acquire(folder.path()).unwrap_err();
        let LockError::Held { holder, .. } = &error else { panic!("{error}") };
        assert!(holder.starts_with(&format!("process {}, started 2", process::id())), "{holder}");
        assert!(error.to_string().contains(&folder.path().display().to_string()));
        drop(first);
        StateLock::acquire(folder.path()).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_a_storage_failure_that_names_the_file() {
        let error = StateLock::acquire(Path::new("/nonexistent/state")).unwrap_err();
        assert!(matches!(error, LockError::Storage { .. }));
        assert!(error.to_string().contains("/nonexistent/state"), "{error}");
    }

    #[test]
    fn deleting_or_replacing_the_file_lets_nobody_in() {
        type Meddle = fn(&Path);
        let meddling: [(&str, Meddle); 3] = [
            ("deleted", |file| fs::remove_file(file).unwrap()),
            ("replaced", |file| {
                fs::remove_file(file).unwrap();
                fs::write(file, "").unwrap();
            }),
            ("renamed", |file| fs::rename(file, file.with_extension("old")).unwrap()),
        ];
        for (what, meddle) in meddling {
            let folder = tempfile::tempdir().unwrap();
            let first = StateLock::acquire(folder.path()).unwrap();
            meddle(&folder.path().join(LOCK_FILE));
            let error = StateLock::acquire(folder.path()).unwrap_err();
            assert!(matches!(&error, LockError::Held { holder, .. } if holder == "another process"), "{what}: {error}");
            drop(first);
            StateLock::acquire(folder.path()).unwrap();
        }
    }

    #[test]
    fn a_process_of_an_earlier_version_that_locks_the_file_alone_is_respected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK_FILE);
        fs::write(&path, "process 7, started 2026-01-01T00:00:00Z\n").unwrap();
        let theirs = File::open(&path).unwrap();
        theirs.try_lock().unwrap();
        let error = StateLock::acquire(folder.path()).unwrap_err();
        assert!(matches!(&error, LockError::Held { holder, .. } if holder.starts_with("process 7")), "{error}");
        drop(theirs);
        StateLock::acquire(folder.path()).unwrap();
    }

    #[test]
    fn what_is_no_file_under_the_name_is_neither_followed_nor_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK_FILE);
        let theirs = folder.path().join("theirs");
        fs::write(&theirs, "kept").unwrap();
        for target in [&theirs, &folder.path().join("nowhere")] {
            std::os::unix::fs::symlink(target, &path).unwrap();
            let error = StateLock::acquire(folder.path()).unwrap_err();
            assert!(matches!(error, LockError::Storage { .. }), "{error}");
            assert!(error.to_string().contains("lock: it is a symbolic link"), "{error}");
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(fs::read_to_string(&theirs).unwrap(), "kept");
        assert!(!folder.path().join("nowhere").exists());

        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let error = StateLock::acquire(folder.path()).unwrap_err();
        assert!(error.to_string().contains("it is not a regular file"), "{error}");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(StateLock::acquire(folder.path()).unwrap_err(), LockError::Storage { .. }));
    }
}
