//! Files and folders that are private, and whose names survive a power cut.
//!
//! A new file needs two syncs: one for its bytes, one for the folder that holds its name. A new folder needs that of
//! the folder above it. Nothing here follows a symbolic link at the last part of a path.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use harvester_actors::failure::{Failure, FailureClass};

/// A failure of this machine: what could not be done to which path, and why.
pub(crate) fn io_failure(action: &str, path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::local(format!("cannot {action} `{}`: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            failure.with_next("free some space, then run the same command: it resumes where it stopped")
        }
        io::ErrorKind::PermissionDenied => {
            failure.with_next(format!("let this user write to `{}`, then run the same command", path.display()))
        }
        _ => failure,
    }
}

/// Stored bytes that are not what was written.
pub(crate) fn damaged(message: impl Into<String>) -> Failure {
    Failure::new(FailureClass::Damaged, message)
}

/// Opening flags that refuse a symbolic link at the last part of the path.
fn no_follow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

/// Makes a new, empty file for reading and writing, 0600, whatever stood under that name before.
///
/// An older file is unlinked, never emptied: it may have another name too.
pub(crate) fn recreate(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).custom_flags(no_follow()).open(path)
}

/// Opens a file of ours for reading.
pub(crate) fn open_to_read(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(no_follow()).open(path)
}

/// Opens a file of ours for reading and writing.
pub(crate) fn open_to_write(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(no_follow()).open(path)
}

/// Makes the names inside a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes a folder, and those above it, 0700, durably; does nothing where it exists.
pub(crate) fn create_dirs(dir: &Path) -> io::Result<()> {
    let mut missing: Vec<PathBuf> = Vec::new();
    let mut at = dir;
    while !at.as_os_str().is_empty() && !at.exists() {
        missing.push(at.to_path_buf());
        match at.parent() {
            Some(parent) => at = parent,
            None => break,
        }
    }
    for dir in missing.iter().rev() {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        sync_dir(parent_of(dir))?;
    }
    if dir.as_os_str().is_empty() || dir.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

/// The folder that holds a path's name.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes a file; whether there was one.
pub(crate) fn remove_if_exists(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// How often a folder that is locked is asked for again, and how long between: a process that is being forked holds a copy of
/// every lock until it becomes another program.
const LOCK_ASKED_MAX: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Locks a folder for this process, as long as the file is open; `None` where its file system locks no folders.
///
/// # Errors
/// `WouldBlock` when another process has it.
pub(crate) fn lock_dir(dir: &Path) -> io::Result<Option<File>> {
    let folder = File::open(dir)?;
    let mut asked = 0;
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(Some(folder)),
            Err(TryLockError::WouldBlock) if asked < LOCK_ASKED_MAX => asked += 1,
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            // NFS wants a file that is open for writing, which a folder never is.
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, dir = %dir.display(), "this folder cannot be locked");
                return Ok(None);
            }
        }
        thread::park_timeout(LOCK_PAUSE);
    }
}

/// What a probe writes.
const PROBE_TEXT: &[u8] = b"a file to see whether one can be written\n";

/// What the names of probes begin with that have one; six letters or digits follow.
const PROBE_PREFIX: &str = ".harvester-check-";

/// From when on a probe is one that somebody ended before it was removed.
const PROBE_SECONDS_MAX: u64 = 60;

/// Makes a file in a folder and removes it, and those that earlier probes had to leave.
///
/// It has no name (`O_TMPFILE`), so nothing that ends the process leaves it behind; where the file system has no such
/// files, it has one for a moment.
pub(crate) fn probe(dir: &Path) -> io::Result<()> {
    let flags = rustix::fs::OFlags::TMPFILE.bits().cast_signed();
    let nameless = match OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(flags).open(dir) {
        Ok(file) if harvester_pacing::control!("probe-name") => Some(file),
        _ => None,
    };
    let mut file = match nameless {
        Some(file) => file,
        None => tempfile::Builder::new()
            .prefix(PROBE_PREFIX)
            .disable_cleanup(!harvester_pacing::control!("probe-name"))
            .tempfile_in(dir)?
            .into_file(),
    };
    file.write_all(PROBE_TEXT)?;
    file.sync_all()?;
    remove_old_probes(dir);
    Ok(())
}

/// Removes what killed probes have left in a folder. What cannot be removed does no harm.
fn remove_old_probes(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(is_probe_name) && is_old_probe(&entry.path()) {
            match fs::remove_file(entry.path()) {
                Ok(()) => tracing::debug!(file = %entry.path().display(), "removed what a killed probe had left"),
                Err(error) => tracing::debug!(%error, file = %entry.path().display(), "cannot remove an old probe"),
            }
        }
    }
}

/// Whether a probe can have had this name.
fn is_probe_name(name: &str) -> bool {
    let letters = name.strip_prefix(PROBE_PREFIX);
    letters.is_some_and(|letters| letters.len() == 6 && letters.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Whether a file is what a probe leaves, and not one of a process that is at it just now.
fn is_old_probe(path: &Path) -> bool {
    let Ok(found) = fs::symlink_metadata(path) else { return false };
    let is_old = found.modified().and_then(|at| at.elapsed().map_err(io::Error::other));
    if !found.is_file() || !is_old.is_ok_and(|age| age.as_secs() >= PROBE_SECONDS_MAX) {
        return false;
    }
    let mut text = Vec::new();
    let read = open_to_read(path).and_then(|file| file.take(PROBE_TEXT.len() as u64 + 1).read_to_end(&mut text));
    read.is_ok() && PROBE_TEXT.starts_with(&text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn new_folders_and_files_are_private_whatever_the_depth() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dirs(&deep).unwrap();
        create_dirs(&deep).unwrap();
        for made in ["a", "a/b", "a/b/c"] {
            assert_eq!(fs::metadata(dir.path().join(made)).unwrap().permissions().mode() & 0o777, 0o700, "{made}");
        }
        recreate(&deep.join("f")).unwrap();
        assert_eq!(fs::metadata(deep.join("f")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(create_dirs(&deep.join("f")).is_err(), "a file is no folder");
    }

    #[test]
    fn recreating_never_writes_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        fs::write(&theirs, "kept").unwrap();
        for (name, soft) in [("soft", true), ("hard", false)] {
            let ours = dir.path().join(name);
            if soft {
                std::os::unix::fs::symlink(&theirs, &ours).unwrap();
                assert!(open_to_read(&ours).is_err() && open_to_write(&ours).is_err());
            } else {
                fs::hard_link(&theirs, &ours).unwrap();
            }
            recreate(&ours).unwrap();
            assert_eq!(fs::read_to_string(&theirs).unwrap(), "kept");
            assert_eq!(fs::metadata(&ours).unwrap().len(), 0);
        }
    }

    #[test]
    fn only_what_a_probe_has_left_long_ago_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let hour = std::time::Duration::from_secs(3_600);
        // (name, content, age, whether it stays)
        let files = [
            (".harvester-check-aB3xY9", PROBE_TEXT, hour, false),
            (".harvester-check-000000", b"".as_slice(), hour, false),
            (".harvester-check-cut111", &PROBE_TEXT[..9], hour, false),
            (".harvester-check-young1", PROBE_TEXT, std::time::Duration::ZERO, true),
            (".harvester-check-theirs", b"something else", hour, true),
            (".harvester-check-longer", b"a file to see whether one can be written\nand more", hour, true),
            (".harvester-check-notes.txt", b"", hour, true),
            ("harvester-check-aB3xY9", b"", hour, true),
        ];
        for (name, content, age, _) in files {
            let mut file = File::create(dir.path().join(name)).unwrap();
            file.write_all(content).unwrap();
            file.set_modified(std::time::SystemTime::now() - age).unwrap();
        }
        fs::create_dir(dir.path().join(".harvester-check-folder")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join(".harvester-check-link00")).unwrap();
        probe(dir.path()).unwrap();
        for (name, _, _, stays) in files {
            assert_eq!(dir.path().join(name).exists(), stays, "{name}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 7, "the folder and the link stay, and nothing is new");
    }
}
