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
    path::Path,
};

use harvester_actors::{
    failure::{Failure, FailureClass},
    page::Reject,
    report::{Manifest, ManifestStream},
};
use tracing::warn;

use super::{
    disk::{self, io_failure},
    encode::FileFormat,
    finish::PART_SUFFIX,
};

/// Name of the manifest.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Name of the manifest of a run that is being published.
pub(crate) const MANIFEST_PART: &str = "manifest.json.part";

/// Name of the same while it is being written.
const MANIFEST_NEW: &str = "manifest.json.part.new";

/// Name of the list of what could not be taken.
pub(crate) const REJECTS: &str = "rejects.ndjson";

/// A manifest is a list of files; nothing of ours is longer.
const MANIFEST_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The manifests of a folder, as far as they are of one job.
struct OwnManifests {
    /// The finished one.
    present: Option<Manifest>,
    /// One that is being published, or was when something ended it.
    half: Option<Manifest>,
}

impl OwnManifests {
    /// Reads what stands in the folder.
    ///
    /// # Errors
    /// `Local` when a manifest is not this job's, or cannot be read.
    fn read(dir: &Path, job: &str) -> Result<Self, Failure> {
        let of_job = |name| match read_manifest(&dir.join(name)) {
            Ok(Some(manifest)) if manifest.job == job => Ok(Some(manifest)),
            Ok(None) => Ok(None),
            Ok(Some(_)) | Err(ManifestError::Unreadable(_)) => Err(foreign(&dir.join(name))),
            Err(ManifestError::Io(error)) => Err(io_failure("read", &dir.join(name), &error)),
        };
        Ok(OwnManifests { present: of_job(MANIFEST)?, half: of_job(MANIFEST_PART)? })
    }

    /// Whether this job has been here before.
    fn any(&self) -> bool {
        self.present.is_some() || self.half.is_some()
    }

    /// Whether one of the manifests lists this file.
    fn lists(&self, file: &str) -> bool {
        self.streams().any(|one| one.file == file)
    }

    /// Every file that one of the manifests lists.
    fn streams(&self) -> impl Iterator<Item = &ManifestStream> {
        [&self.present, &self.half].into_iter().flatten().flat_map(|one| one.streams.values())
    }

    /// Whether this very run has given this very file its final name already, or was about to.
    fn is_published(&self, run_id: &str, stream: &ManifestStream) -> bool {
        let of_run = [&self.present, &self.half].into_iter().flatten().filter(|one| one.run_id == run_id);
        of_run
            .flat_map(|one| one.streams.values())
            .any(|one| (&one.file, &one.sha256) == (&stream.file, &stream.sha256))
    }
}

/// Why a manifest cannot be used.
pub(crate) enum ManifestError {
    /// It could not be read.
    Io(io::Error),
    /// It is no manifest of a format that is known here; what is wrong with it.
    Unreadable(String),
}

/// The manifest in this file; `None` when there is no file.
pub(crate) fn read_manifest(path: &Path) -> Result<Option<Manifest>, ManifestError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(ManifestError::Unreadable("it is not a regular file".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ManifestError::Io(error)),
    }
    let mut text = Vec::new();
    let file = disk::open_to_read(path).map_err(ManifestError::Io)?;
    file.take(MANIFEST_BYTES_MAX).read_to_end(&mut text).map_err(ManifestError::Io)?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| ManifestError::Unreadable(error.to_string()))?;
    if manifest.version != 1 {
        return Err(ManifestError::Unreadable(format!("its version is {}, this program knows 1", manifest.version)));
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
    format: FileFormat,
    streams: impl IntoIterator<Item = &'a str>,
) -> Result<(), Failure> {
    let ours = OwnManifests::read(dir, job)?;
    for stream in streams {
        let file = format.file_name(stream);
        check_file(dir, &file, &ours)?;
        check_scratch(&dir.join(part_of(&file)))?;
    }
    check_scratch(&dir.join(part_of(REJECTS)))?;
    check_scratch(&dir.join(MANIFEST_NEW))
}

/// Fails when something stands under a name of ours for unfinished files that is no file: a folder, a link, a pipe.
fn check_scratch(path: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(foreign(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_failure("look at", path, &error)),
    }
}

/// Fails when another run than `run_id` has published into a folder that is to be one run's own; with `None`, when any has.
///
/// # Errors
/// `Local`; nothing is touched.
pub(crate) fn check_own_folder(dir: &Path, job: &str, run_id: Option<&str>) -> Result<(), Failure> {
    let ours = OwnManifests::read(dir, job)?;
    let mut others = [&ours.present, &ours.half].into_iter().flatten().filter(|one| run_id != Some(&one.run_id));
    match others.next() {
        Some(other) if harvester_pacing::control!("own-folder") => Err(Failure::local(format!(
            "run {} has been published into `{}`, and no other run is published there",
            other.run_id,
            dir.display()
        ))
        .with_next("move that folder away, then run the same command")),
        _ => Ok(()),
    }
}

/// Fails when a foreign file stands under this name; whether one of ours does.
fn check_file(dir: &Path, file: &str, ours: &OwnManifests) -> Result<bool, Failure> {
    let path = dir.join(file);
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() && ours.lists(file) => Ok(true),
        Ok(_) => Err(foreign(&path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_failure("look at", &path, &error)),
    }
}

/// See `Target::publish`.
pub(crate) fn publish(dir: &Path, format: FileFormat, manifest: &Manifest, rejects: &[Reject]) -> Result<(), Failure> {
    disk::create_dirs(dir).map_err(|error| io_failure("create", dir, &error))?;
    let ours = OwnManifests::read(dir, &manifest.job)?;
    let files: BTreeSet<&str> = manifest.streams.values().map(|stream| stream.file.as_str()).collect();
    if files.len() != manifest.streams.len() {
        return Err(Failure::new(FailureClass::Bug, "two streams of the manifest share a file"));
    }
    for stream in manifest.streams.values() {
        check_prepared(dir, &manifest.run_id, format, stream, &ours)?;
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
    let new = dir.join(MANIFEST_NEW);
    let mut text = serde_json::to_vec_pretty(manifest)
        .map_err(|error| Failure::new(FailureClass::Bug, format!("cannot be written as JSON: {error}")))?;
    text.push(b'\n');
    write_durably(&new, &text).map_err(|error| io_failure("write", &new, &error))?;
    harvester_actors::crash_point!("publish.manifest_part");
    rename(&new, &part)?;
    sync(dir)?;
    harvester_actors::crash_point!("publish.begun");

    for file in &files {
        let prepared = dir.join(part_of(file));
        if prepared.exists() {
            rename(&prepared, &dir.join(file))?;
            harvester_actors::crash_point!("publish.rename");
        }
    }
    match (rejects.is_empty(), old_rejects) {
        (false, _) => rename(&dir.join(part_of(REJECTS)), &dir.join(REJECTS))?,
        (true, true) => {
            let path = dir.join(REJECTS);
            disk::remove_if_exists(&path).map_err(|error| io_failure("remove", &path, &error))?;
        }
        (true, false) => {}
    }
    harvester_actors::crash_point!("publish.rejects");
    sync(dir)?;
    harvester_actors::crash_point!("publish.dir");
    rename(&part, &dir.join(MANIFEST))?;
    harvester_actors::crash_point!("publish.manifest");
    // What earlier runs had prepared and never published, of streams that this one does not have.
    let unfinished = ours.streams().map(|old| old.file.as_str()).filter(|file| !files.contains(file));
    for file in unfinished.chain(rejects.is_empty().then_some(REJECTS)) {
        remove_scratch(&dir.join(part_of(file)));
    }
    sync(dir)?;
    harvester_actors::crash_point!("publish.after");
    Ok(())
}

/// Removes an unfinished file that nobody needs any more. The run is published: what cannot be removed is only spoken of.
fn remove_scratch(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
        && let Err(error) = fs::remove_file(path)
    {
        warn!(%error, file = %path.display(), "cannot remove an unfinished file of an earlier run");
    }
}

/// A name without its final form.
fn part_of(file: &str) -> String {
    format!("{file}{PART_SUFFIX}")
}

/// Fails unless a stream's file can be published, or has been.
fn check_prepared(
    dir: &Path,
    run_id: &str,
    format: FileFormat,
    stream: &ManifestStream,
    ours: &OwnManifests,
) -> Result<(), Failure> {
    if !stream.file.ends_with(format.suffix()) || stream.file.contains(['/', '\0']) {
        return Err(Failure::new(FailureClass::Bug, "a file of the manifest has no name that a stream can have"));
    }
    // An older run's file may have the same length.
    let is_final = check_file(dir, &stream.file, ours)? && ours.is_published(run_id, stream);
    let prepared = dir.join(part_of(&stream.file));
    let path = match fs::symlink_metadata(&prepared) {
        Ok(_) => prepared,
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_final => dir.join(&stream.file),
        Err(error) => return Err(io_failure("look at", &prepared, &error)),
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
        Err(error) => Err(io_failure("look at", &path, &error)),
    }
}

/// Whether there is an old `rejects.ndjson` of ours; fails when there is a foreign one and a new one is `wanted`.
fn check_rejects(dir: &Path, wanted: bool, ours: &OwnManifests) -> Result<bool, Failure> {
    let path = dir.join(REJECTS);
    let found = match fs::symlink_metadata(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io_failure("look at", &path, &error)),
    };
    let is_ours = ours.any() && found.is_file() && {
        let mut line = String::new();
        let file = disk::open_to_read(&path).map_err(|error| io_failure("read", &path, &error))?;
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
        let mut out = BufWriter::new(disk::recreate(path)?);
        for reject in rejects {
            serde_json::to_writer(&mut out, reject)?;
            out.write_all(b"\n")?;
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(|error| io_failure("write", path, &error))
}

/// Writes a small file whole and makes its bytes durable.
fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = disk::recreate(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Renames within the folder.
fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::rename(from, to).map_err(|error| io_failure("rename", from, &error))
}

/// Makes the folder's names durable.
fn sync(dir: &Path) -> Result<(), Failure> {
    disk::sync_dir(dir).map_err(|error| io_failure("sync", dir, &error))
}

/// Creates and removes one file where the run will write; where the folder does not exist yet, in the nearest one above
/// it. Leaves nothing behind.
///
/// # Errors
/// `Local` when files cannot be created there.
pub(crate) fn probe_directory(dir: &Path) -> Result<(), Failure> {
    let is_there = |at: &&Path| !at.as_os_str().is_empty() && at.exists();
    let at = dir.ancestors().find(is_there).unwrap_or(Path::new("."));
    disk::probe(at).map_err(|error| io_failure("write to", at, &error))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::symlink};

    use harvester_actors::{failure::FailureClass, sink::PreparedStream};
    use sha2::{Digest, Sha256};
    use url::Url;

    use super::{
        super::{Problem, Verification, Whose, conformance},
        *,
    };

    const JOB: &str = "sierra-leone";
    const OLD: &str = "20260101T000000Z";
    const NEW: &str = "20260102T000000Z";

    /// What a look at the folder finds, for the job of the manifests.
    fn verify(dir: &Path) -> Result<Verification, Failure> {
        super::super::verify(dir, Whose { job: JOB, url: &Url::parse("http://x").unwrap() })
    }

    /// Prepares files `(stream, content)` as a run would, and the manifest that lists them.
    fn prepare(dir: &Path, run_id: &str, streams: &[(&str, &str)]) -> Manifest {
        let prepared: Vec<(&str, PreparedStream)> = streams
            .iter()
            .map(|(name, content)| {
                let file = FileFormat::Ndjson.file_name(name);
                fs::write(dir.join(part_of(&file)), content).unwrap();
                let sha256 = super::super::names::hex(&Sha256::digest(content.as_bytes()));
                let rows = content.lines().count() as u64;
                (*name, PreparedStream { file, rows, bytes: content.len() as u64, sha256, duplicates: 0, newest: None })
            })
            .collect();
        conformance::manifest(run_id, &prepared)
    }

    const OLD_STREAMS: &[(&str, &str)] = &[("a", "old a\n"), ("b", "old b\n"), ("gone", "old gone\n")];
    const NEW_STREAMS: &[(&str, &str)] = &[("a", "new a\n"), ("b", "new bb\n"), ("c", "")];

    fn reject() -> Reject {
        Reject { partition: "a/1".into(), class: "rejected".into(), message: "E2000".into(), id: None, bytes: None }
    }

    /// A folder in which an older run was published, with rejects.
    fn published_before() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let manifest = prepare(dir.path(), OLD, OLD_STREAMS);
        publish(dir.path(), FileFormat::Ndjson, &manifest, &[reject()]).unwrap();
        dir
    }

    /// Every name in a folder, with what it holds.
    fn contents(dir: &Path) -> BTreeMap<String, String> {
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let kind = entry.file_type().unwrap();
                let text = if kind.is_symlink() {
                    fs::read_link(entry.path()).unwrap().display().to_string()
                } else if kind.is_dir() {
                    "a folder".to_owned()
                } else {
                    fs::read_to_string(entry.path()).unwrap()
                };
                (entry.file_name().into_string().unwrap(), text)
            })
            .collect()
    }

    fn assert_is_new(dir: &Path, what: &str) {
        let verification = verify(dir).unwrap();
        assert!(verification.is_good(), "{what}: {verification:?}");
        assert_eq!(verification.manifest.unwrap().run_id, NEW, "{what}");
        let mut found = contents(dir);
        found.remove(MANIFEST);
        let expected =
            [("a.ndjson", "new a\n"), ("b.ndjson", "new bb\n"), ("c.ndjson", ""), ("gone.ndjson", "old gone\n")];
        assert_eq!(found, expected.map(|(name, text)| (name.to_owned(), text.to_owned())).into(), "{what}");
    }

    #[test]
    fn a_crash_at_any_step_of_publishing_is_cured_by_doing_it_again() {
        for prepared_again in [false, true] {
            for renamed in 0..=NEW_STREAMS.len() {
                let dir = published_before();
                let manifest = prepare(dir.path(), NEW, NEW_STREAMS);
                // What the steps leave that came before the crash.
                fs::write(dir.path().join(MANIFEST_PART), serde_json::to_vec(&manifest).unwrap()).unwrap();
                fs::write(dir.path().join("manifest.json.part.new"), b"{").unwrap();
                for (name, _) in &NEW_STREAMS[..renamed] {
                    let file = FileFormat::Ndjson.file_name(name);
                    fs::rename(dir.path().join(part_of(&file)), dir.path().join(file)).unwrap();
                }
                let half = Problem::HalfPublished { run_id: NEW.to_owned() };
                let found = verify(dir.path()).unwrap().findings;
                assert!(found.iter().any(|finding| finding.problem == half), "{found:?}");
                if prepared_again {
                    prepare(dir.path(), NEW, NEW_STREAMS);
                }
                publish(dir.path(), FileFormat::Ndjson, &manifest, &[]).unwrap();
                assert_is_new(dir.path(), &format!("{renamed} renamed, prepared again: {prepared_again}"));
                publish(dir.path(), FileFormat::Ndjson, &manifest, &[]).unwrap();
                assert_is_new(dir.path(), "published twice");
            }
        }
    }

    #[test]
    fn a_half_published_run_does_not_stand_in_the_way_of_a_newer_one() {
        let dir = published_before();
        let manifest = prepare(dir.path(), "20260101T120000Z", NEW_STREAMS);
        fs::write(dir.path().join(MANIFEST_PART), serde_json::to_vec(&manifest).unwrap()).unwrap();
        for name in ["a", "c"] {
            let file = FileFormat::Ndjson.file_name(name);
            fs::rename(dir.path().join(part_of(&file)), dir.path().join(file)).unwrap();
        }
        let manifest = prepare(dir.path(), NEW, NEW_STREAMS);
        publish(dir.path(), FileFormat::Ndjson, &manifest, &[]).unwrap();
        assert_is_new(dir.path(), "after --restart");
    }

    #[test]
    fn a_foreign_file_under_any_of_the_names_stops_it_before_anything_is_touched() {
        type Intrusion = fn(&Path);
        let intrusions: &[(&str, &str, Intrusion)] = &[
            ("a file", "c.ndjson", |dir| fs::write(dir.join("c.ndjson"), "theirs").unwrap()),
            ("a link", "c.ndjson", |dir| symlink("/etc/passwd", dir.join("c.ndjson")).unwrap()),
            ("a folder", "c.ndjson", |dir| fs::create_dir(dir.join("c.ndjson")).unwrap()),
            ("a link in place of ours", "a.ndjson", |dir| {
                fs::remove_file(dir.join("a.ndjson")).unwrap();
                symlink("elsewhere", dir.join("a.ndjson")).unwrap();
            }),
            ("another job's manifest", "manifest.json", |dir| {
                let text = fs::read_to_string(dir.join(MANIFEST)).unwrap();
                fs::write(dir.join(MANIFEST), text.replace(JOB, "another-job")).unwrap();
            }),
            ("some manifest", "manifest.json", |dir| fs::write(dir.join(MANIFEST), "{\"name\":\"pwa\"}").unwrap()),
            ("rejects of somebody", "rejects.ndjson", |dir| fs::write(dir.join(REJECTS), "{\"a\":1}\n").unwrap()),
        ];
        for (what, file, intrude) in intrusions {
            let dir = published_before();
            let manifest = prepare(dir.path(), NEW, NEW_STREAMS);
            intrude(dir.path());
            let before = contents(dir.path());
            let failure = publish(dir.path(), FileFormat::Ndjson, &manifest, &[reject()]).unwrap_err();
            assert_eq!(failure.class, FailureClass::Local, "{what}");
            let message = format!("`{}` was not written by this job", dir.path().join(file).display());
            assert_eq!((failure.message, failure.next.is_some()), (message, true), "{what}");
            assert_eq!(contents(dir.path()), before, "{what}");
            let streams = NEW_STREAMS.iter().map(|(name, _)| *name);
            let early = check_foreign(dir.path(), JOB, FileFormat::Ndjson, streams);
            assert_eq!(early.is_err(), *file != REJECTS, "{what}, seen when the run starts");
        }
    }

    #[test]
    fn a_free_or_missing_folder_is_not_foreign() {
        let dir = published_before();
        check_foreign(dir.path(), JOB, FileFormat::Ndjson, ["a", "b", "c"]).unwrap();
        check_foreign(&dir.path().join("missing"), JOB, FileFormat::Ndjson, ["a"]).unwrap();
        assert!(check_foreign(dir.path(), "another-job", FileFormat::Ndjson, ["x"]).is_err());
    }

    #[test]
    fn rejects_that_somebody_else_wrote_stay_when_the_run_has_none() {
        let dir = published_before();
        fs::write(dir.path().join(REJECTS), "mine\n").unwrap();
        let manifest = prepare(dir.path(), NEW, NEW_STREAMS);
        publish(dir.path(), FileFormat::Ndjson, &manifest, &[]).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(REJECTS)).unwrap(), "mine\n");
    }

    #[test]
    fn a_prepared_file_that_is_gone_or_has_another_length_is_not_published() {
        for cut in [None, Some(3)] {
            let dir = published_before();
            let manifest = prepare(dir.path(), NEW, NEW_STREAMS);
            let part = dir.path().join("b.ndjson.part");
            match cut {
                None => fs::remove_file(part).unwrap(),
                Some(len) => fs::OpenOptions::new().write(true).open(part).unwrap().set_len(len).unwrap(),
            }
            let before = contents(dir.path());
            let failure = publish(dir.path(), FileFormat::Ndjson, &manifest, &[]).unwrap_err();
            assert_eq!(failure.class, FailureClass::Local);
            assert_eq!(contents(dir.path()), before);
            assert!(verify(dir.path()).unwrap().is_good(), "the older run is whole");
        }
    }

    #[test]
    fn an_older_file_of_the_same_length_never_stands_in_for_one_that_is_gone() {
        let dir = published_before();
        let same_length: &[(&str, &str)] = &[("a", "new a\n"), ("b", "new b\n")];
        let manifest = prepare(dir.path(), NEW, same_length);
        fs::remove_file(dir.path().join("a.ndjson.part")).unwrap();
        let before = contents(dir.path());
        assert_eq!(publish(dir.path(), FileFormat::Ndjson, &manifest, &[]).unwrap_err().class, FailureClass::Local);
        assert_eq!(contents(dir.path()), before);
    }

    #[test]
    fn nothing_unfinished_of_an_earlier_run_is_left_once_a_run_is_published() {
        let dir = published_before();
        // A run that had rejects and a stream more was ended within its publishing.
        let half =
            prepare(dir.path(), "20260101T120000Z", &[("a", "half\n"), ("gone", "half gone\n"), ("more", "half\n")]);
        fs::write(dir.path().join(MANIFEST_PART), serde_json::to_vec(&half).unwrap()).unwrap();
        fs::write(dir.path().join(MANIFEST_NEW), b"{").unwrap();
        fs::write(dir.path().join(part_of(REJECTS)), b"{").unwrap();
        fs::write(dir.path().join("theirs.part"), b"kept").unwrap();
        let manifest = prepare(dir.path(), NEW, NEW_STREAMS);
        publish(dir.path(), FileFormat::Ndjson, &manifest, &[]).unwrap();
        assert_eq!(contents(dir.path()).remove("theirs.part").unwrap(), "kept");
        fs::remove_file(dir.path().join("theirs.part")).unwrap();
        assert_is_new(dir.path(), "after a half published run");
    }

    #[test]
    fn what_is_no_file_under_an_unfinished_name_is_seen_before_a_row_is_fetched() {
        for name in ["c.ndjson.part", "rejects.ndjson.part", "manifest.json.part", "manifest.json.part.new"] {
            for is_link in [true, false] {
                let dir = published_before();
                let path = dir.path().join(name);
                if is_link {
                    symlink("nowhere", &path).unwrap()
                } else {
                    fs::create_dir(&path).unwrap()
                }
                let before = contents(dir.path());
                let failure =
                    check_foreign(dir.path(), JOB, FileFormat::Ndjson, NEW_STREAMS.iter().map(|(name, _)| *name))
                        .unwrap_err();
                assert!(failure.message.contains(name), "{name}: {failure}");
                assert_eq!(contents(dir.path()), before);
            }
        }
    }

    #[test]
    fn a_manifest_cannot_name_a_file_outside_of_its_folder() {
        let dir = published_before();
        let mut manifest = prepare(dir.path(), NEW, NEW_STREAMS);
        manifest.streams.get_mut("a").unwrap().file = "../a.ndjson".to_owned();
        assert_eq!(publish(dir.path(), FileFormat::Ndjson, &manifest, &[]).unwrap_err().class, FailureClass::Bug);
        fs::write(dir.path().join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
        let problem = verify(dir.path()).unwrap().findings.remove(0).problem;
        assert_eq!(problem, Problem::NotAFile);
    }

    #[test]
    fn every_way_in_which_a_file_can_differ_is_found() {
        type Change = fn(&Path);
        let cases: &[(&str, Change, &str)] = &[
            ("missing", |dir| fs::remove_file(dir.join("a.ndjson")).unwrap(), "is missing"),
            ("longer", |dir| fs::write(dir.join("a.ndjson"), "old a\n\n").unwrap(), "has 7 bytes, should have 6"),
            ("other", |dir| fs::write(dir.join("a.ndjson"), "new a\n").unwrap(), "has SHA-256 "),
            (
                "link",
                |dir| {
                    fs::rename(dir.join("a.ndjson"), dir.join("x")).unwrap();
                    symlink("x", dir.join("a.ndjson")).unwrap();
                },
                "is not a regular file",
            ),
            ("no manifest", |dir| fs::remove_file(dir.join(MANIFEST)).unwrap(), "is missing"),
            ("no JSON", |dir| fs::write(dir.join(MANIFEST), "{").unwrap(), "cannot be read: EOF"),
            (
                "newer",
                |dir| {
                    fs::write(
                        dir.join(MANIFEST),
                        fs::read_to_string(dir.join(MANIFEST)).unwrap().replace("\"version\": 1", "\"version\": 2"),
                    )
                    .unwrap()
                },
                "cannot be read: its version is 2",
            ),
            ("another job's", |dir| say(dir, JOB, "an\u{1b}other"), "belongs to the job `an\\u{1b}other`"),
            ("of another server", |dir| say(dir, "http://x", "http://y"), "comes from another source, http://y/"),
            ("of the same server", |dir| say(dir, "http://x", "HTTP://X:80/"), ""),
        ];
        /// Replaces a text of the manifest.
        fn say(dir: &Path, text: &str, other: &str) {
            let manifest = fs::read_to_string(dir.join(MANIFEST)).unwrap();
            let other = serde_json::to_string(other).unwrap();
            fs::write(dir.join(MANIFEST), manifest.replace(&format!("\"{text}\""), &other)).unwrap();
        }
        assert!(verify(published_before().path()).unwrap().is_good());
        for (what, change, expected) in cases {
            let dir = published_before();
            change(dir.path());
            let verification = verify(dir.path()).unwrap();
            if expected.is_empty() {
                assert!(verification.is_good(), "{what}: {verification:?}");
                continue;
            }
            assert_eq!(verification.findings.len(), 1, "{what}: {verification:?}");
            let text = verification.findings[0].problem.to_string();
            assert!(text.starts_with(expected), "{what}: {text}");
        }
    }

    #[test]
    fn probing_a_folder_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        probe_directory(dir.path()).unwrap();
        probe_directory(&dir.path().join("not/yet/there")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(probe_directory(&dir.path().join("file")).unwrap_err().class, FailureClass::Local);
    }
}
