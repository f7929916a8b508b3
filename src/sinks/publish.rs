//! All files of a run appear together, the manifest last; a person's file under one of the names is never touched.
//!
//! ```text
//! out/                             0700 when made here
//!   organisationUnits.ndjson       final; 0600
//!   organisationUnits.ndjson.part  prepared, or being so
//!   rejects.ndjson                 what could not be taken, if anything
//!   manifest.json                  names every final file; its `job` says whose folder this is
//!   manifest.json.part             publishing has begun; names every file that may be final already
//! ```
//!
//! 1. Nothing foreign stands under a name that will be used, and every prepared file is there.
//! 2. `rejects.ndjson.part` and then `manifest.json.part` appear, durably.
//! 3. Each prepared file gets its final name; durable.
//! 4. `manifest.json.part` becomes `manifest.json`; durable.
//!
//! A crash anywhere is cured by doing it again: `manifest.json.part` tells that files which carry their final name
//! already are ours. A file of an earlier run that this run does not have stays as it is, and is spoken of.
//!
//! Ours is a file that a `manifest.json` or `manifest.json.part` of the same job lists. `rejects.ndjson` is listed by none: it is ours
//! where the folder is and its first line reads like one of ours.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use harvester_actors::{
    failure::{Failure, FailureClass},
    page::Reject,
    report::Manifest,
};
use tracing::warn;

use super::{
    disk::{self, local},
    finish::PART_SUFFIX,
    names,
};

/// Name of the manifest.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Name of the manifest of a run that is being published.
pub(crate) const MANIFEST_PART: &str = "manifest.json.part";

/// Name of the list of what could not be taken.
pub(crate) const REJECTS: &str = "rejects.ndjson";

/// A manifest is a list of files; nothing of ours is longer.
const MANIFEST_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The manifests of a folder, as far as they are of one job.
struct Ours {
    /// The finished one.
    present: Option<Manifest>,
    /// One that is being published, or was when something ended it.
    half: Option<Manifest>,
}

impl Ours {
    /// Reads what stands in the folder.
    ///
    /// # Errors
    /// `Local` when a manifest is not this job's, or cannot be read.
    fn read(dir: &Path, job: &str) -> Result<Self, Failure> {
        let of_job = |name| match read_manifest(&dir.join(name)) {
            Ok(Some(manifest)) if manifest.job == job => Ok(Some(manifest)),
            Ok(None) => Ok(None),
            Ok(Some(_)) | Err(ManifestFault::Unreadable(_)) => Err(foreign(&dir.join(name))),
            Err(ManifestFault::Io(error)) => Err(local("read", &dir.join(name), &error)),
        };
        Ok(Ours { present: of_job(MANIFEST)?, half: of_job(MANIFEST_PART)? })
    }

    /// Whether this job has been here before.
    fn any(&self) -> bool {
        self.present.is_some() || self.half.is_some()
    }

    /// Whether one of the manifests lists this file.
    fn lists(&self, file: &str) -> bool {
        [&self.present, &self.half]
            .into_iter()
            .flatten()
            .flat_map(|one| one.streams.values())
            .any(|one| one.file == file)
    }
}

/// Why a manifest cannot be used.
pub(crate) enum ManifestFault {
    /// It could not be read.
    Io(io::Error),
    /// It is no manifest of a format that is known here; what is wrong with it.
    Unreadable(String),
}

/// The manifest in this file; `None` when there is no file.
pub(crate) fn read_manifest(path: &Path) -> Result<Option<Manifest>, ManifestFault> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(ManifestFault::Unreadable("it is not a regular file".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ManifestFault::Io(error)),
    }
    let mut text = Vec::new();
    let file = disk::open_to_read(path).map_err(ManifestFault::Io)?;
    file.take(MANIFEST_BYTES_MAX).read_to_end(&mut text).map_err(ManifestFault::Io)?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| ManifestFault::Unreadable(error.to_string()))?;
    if manifest.version != 1 {
        return Err(ManifestFault::Unreadable(format!("its version is {}, this program knows 1", manifest.version)));
    }
    Ok(Some(manifest))
}

/// Something that this job did not write stands where it has to write.
fn foreign(path: &Path) -> Failure {
    Failure::local(format!("`{}` was not written by this job", path.display()))
        .with_next("move it away, or set another `sink.directory`, then run the same command")
}

/// Fails when a file that this job did not write stands under a name that these streams will need.
///
/// # Errors
/// `Local`; nothing is touched.
pub(crate) fn check_foreign<'a>(
    dir: &Path,
    job: &str,
    streams: impl IntoIterator<Item = &'a str>,
) -> Result<(), Failure> {
    let ours = Ours::read(dir, job)?;
    for stream in streams {
        check_file(dir, &names::file_name(stream), &ours)?;
    }
    Ok(())
}

/// Fails when a foreign file stands under this name; whether one of ours does.
fn check_file(dir: &Path, file: &str, ours: &Ours) -> Result<bool, Failure> {
    let path = dir.join(file);
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() && ours.lists(file) => Ok(true),
        Ok(_) => Err(foreign(&path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(local("look at", &path, &error)),
    }
}

/// See `Sink::publish`.
pub(crate) fn publish(dir: &Path, manifest: &Manifest, rejects: &[Reject]) -> Result<(), Failure> {
    disk::create_dirs(dir).map_err(|error| local("create", dir, &error))?;
    let ours = Ours::read(dir, &manifest.job)?;
    let files: BTreeSet<&str> = manifest.streams.values().map(|stream| stream.file.as_str()).collect();
    if files.len() != manifest.streams.len() {
        return Err(Failure::new(FailureClass::Bug, "two streams of the manifest share a file"));
    }
    for stream in manifest.streams.values() {
        check_prepared(dir, stream, &ours)?;
    }
    let old_rejects = check_rejects(dir, !rejects.is_empty(), &ours)?;
    for old in [&ours.present, &ours.half].into_iter().flatten().flat_map(|old| old.streams.values()) {
        if !files.contains(old.file.as_str()) && fs::symlink_metadata(dir.join(&old.file)).is_ok() {
            warn!(file = %dir.join(&old.file).display(), "left as it is: this run has no such stream");
        }
    }

    if !rejects.is_empty() {
        write_rejects(&dir.join(part_of(REJECTS)), rejects)?;
    }
    // A repeat must never find renamed files without the list that says they are ours: the old list is replaced at once.
    let part = dir.join(MANIFEST_PART);
    let new = dir.join(format!("{MANIFEST_PART}.new"));
    let mut text = serde_json::to_vec_pretty(manifest)
        .map_err(|error| Failure::new(FailureClass::Bug, format!("cannot be written as JSON: {error}")))?;
    text.push(b'\n');
    write_durably(&new, &text).map_err(|error| local("write", &new, &error))?;
    fail::fail_point!("publish.manifest_part");
    rename(&new, &part)?;
    sync(dir)?;
    fail::fail_point!("publish.begun");

    for file in &files {
        let prepared = dir.join(part_of(file));
        if prepared.exists() {
            rename(&prepared, &dir.join(file))?;
            fail::fail_point!("publish.rename");
        }
    }
    match (rejects.is_empty(), old_rejects) {
        (false, _) => rename(&dir.join(part_of(REJECTS)), &dir.join(REJECTS))?,
        (true, true) => {
            let path = dir.join(REJECTS);
            disk::remove_if_there(&path).map_err(|error| local("remove", &path, &error))?;
        }
        (true, false) => {}
    }
    fail::fail_point!("publish.rejects");
    sync(dir)?;
    fail::fail_point!("publish.dir");
    rename(&part, &dir.join(MANIFEST))?;
    fail::fail_point!("publish.manifest");
    sync(dir)?;
    fail::fail_point!("publish.after");
    Ok(())
}

/// A name without its final form.
fn part_of(file: &str) -> String {
    format!("{file}{PART_SUFFIX}")
}

/// Fails unless a stream's file can be published, or has been.
fn check_prepared(dir: &Path, stream: &harvester_actors::report::ManifestStream, ours: &Ours) -> Result<(), Failure> {
    if !stream.file.ends_with(names::SUFFIX) || stream.file.contains(['/', '\0']) {
        return Err(Failure::new(FailureClass::Bug, "a file of the manifest has no name that a stream can have"));
    }
    let is_final = check_file(dir, &stream.file, ours)?;
    let prepared = dir.join(part_of(&stream.file));
    let path = match fs::symlink_metadata(&prepared) {
        Ok(_) => prepared,
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_final => dir.join(&stream.file),
        Err(error) => return Err(local("look at", &prepared, &error)),
    };
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() && found.len() == stream.bytes => Ok(()),
        Ok(found) => Err(Failure::local(format!(
            "`{}` should have {} bytes and has {}",
            path.display(),
            stream.bytes,
            found.len()
        ))
        .with_next("something else writes there; run the same command: the file is prepared again")),
        Err(error) => Err(local("look at", &path, &error)),
    }
}

/// Whether there is an old `rejects.ndjson` of ours; fails when there is a foreign one and a new one is `wanted`.
fn check_rejects(dir: &Path, wanted: bool, ours: &Ours) -> Result<bool, Failure> {
    let path = dir.join(REJECTS);
    let found = match fs::symlink_metadata(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(local("look at", &path, &error)),
    };
    let is_ours = ours.any() && found.is_file() && {
        let mut line = String::new();
        let file = disk::open_to_read(&path).map_err(|error| local("read", &path, &error))?;
        // What cannot be read as text is not ours.
        BufReader::new(file.take(1 << 20)).read_line(&mut line).is_ok() && serde_json::from_str::<Reject>(&line).is_ok()
    };
    if wanted && !is_ours {
        return Err(foreign(&path));
    }
    Ok(is_ours)
}

/// Writes what could not be taken, a line each.
fn write_rejects(path: &Path, rejects: &[Reject]) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let mut out = BufWriter::new(disk::create_anew(path)?);
        for reject in rejects {
            serde_json::to_writer(&mut out, reject)?;
            out.write_all(b"\n")?;
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(|error| local("write", path, &error))
}

/// Writes a small file whole and makes its bytes durable.
fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = disk::create_anew(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Renames within the folder.
fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::rename(from, to).map_err(|error| local("rename", from, &error))
}

/// Makes the folder's names durable.
fn sync(dir: &Path) -> Result<(), Failure> {
    disk::sync_dir(dir).map_err(|error| local("sync", dir, &error))
}

/// Creates and removes one file where the run will write; where the folder does not exist yet, in the nearest one above
/// it. Leaves nothing behind.
///
/// # Errors
/// `Local` when files cannot be created there.
pub(crate) fn probe_directory(dir: &Path) -> Result<(), Failure> {
    let mut at: PathBuf = if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir.to_path_buf() };
    while !at.exists() {
        at = disk::parent_of(&at).to_path_buf();
    }
    let probe = tempfile::Builder::new().prefix(".harvester-check-").tempfile_in(&at);
    let write = |mut file: tempfile::NamedTempFile| {
        file.write_all(b"a file to see whether one can be written\n")?;
        file.as_file().sync_all()?;
        file.close()
    };
    probe.and_then(write).map_err(|error| local("write to", &at, &error))
}
