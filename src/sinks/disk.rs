//! Files and folders that are private, and whose names survive a power cut.
//!
//! A new file needs two syncs: one for its bytes, one for the folder that holds its name. A new folder needs that of
//! the folder above it. Nothing here follows a symbolic link at the last part of a path.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use harvester_actors::failure::{Failure, FailureClass};

/// A failure of this machine: what could not be done to which path, and why.
pub(crate) fn local(action: &str, path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::local(format!("cannot {action} `{}`: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            failure.with_next("free some space, then run the same command: it goes on where it stopped")
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
pub(crate) fn create_anew(path: &Path) -> io::Result<File> {
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
pub(crate) fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
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
        create_anew(&deep.join("f")).unwrap();
        assert_eq!(fs::metadata(deep.join("f")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(create_dirs(&deep.join("f")).is_err(), "a file is no folder");
    }

    #[test]
    fn creating_anew_never_writes_through_a_link() {
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
            create_anew(&ours).unwrap();
            assert_eq!(fs::read_to_string(&theirs).unwrap(), "kept");
            assert_eq!(fs::metadata(&ours).unwrap().len(), 0);
        }
    }
}
