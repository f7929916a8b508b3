//! What `harvester check` says of a job's checkpoint: whether the next run would go on from it. Changes nothing.
//!
//! sled cannot open a database without writing to it, so a copy is opened and thrown away. Of the spool only its length
//! is looked at: reading all of it may take as long as a recovery.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use harvester_actors::{
    checkpoint::Checkpoint,
    checkpoint_store::CheckpointStore as _,
    failure::{Failure, FailureClass},
    report::{Outcome, outcome_of},
};

use crate::{
    checkpoints::SledStore,
    job::{Job, differences},
    job_record::JobRecord,
    observe::{
        Finding,
        numbers::{bytes, count, plural},
    },
    service::lock::{LockError, StateLock},
};

/// What was looked at.
const SUBJECT: &str = "checkpoint";
/// A store that is larger is not copied: a store holds some hundred bytes a page, so that is a run of many days.
const STORE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Looks at the checkpoint in a job's state folder.
pub(crate) fn look(job: &Job, folder: &Path) -> Finding {
    let file = job.path.display();
    if !folder.is_dir() {
        return Finding::ok(SUBJECT, "none yet: the next run is the first");
    }
    // Held until the end: a run that began meanwhile would change what is being copied.
    let _lock = match StateLock::acquire(folder) {
        Ok(lock) => lock,
        Err(error @ LockError::Held { .. }) => {
            return Finding::warning(SUBJECT, format!("in use: {error}"), format!("harvester status {file}"));
        }
        Err(error @ LockError::Storage { .. }) => {
            return Finding::error(
                SUBJECT,
                Outcome::Storage,
                error.to_string(),
                "change the folder's permissions, or say where else with --state-dir DIR",
            );
        }
    };
    if let Some(conflict) = JobRecord::load(folder).and_then(|record| record.conflict(job, folder)) {
        return Finding::error(SUBJECT, Outcome::Changed, conflict.message, conflict.next);
    }
    let spool = match spool(&folder.join("spool")) {
        Ok(spool) => spool,
        Err(error) => return unreadable(&folder.join("spool"), &error),
    };
    let loaded = match load_copy(&folder.join("checkpoint")) {
        Ok(loaded) => loaded,
        Err(error) => return unreadable(&folder.join("checkpoint"), &error),
    };
    judge(job, spool.as_ref(), loaded)
}

/// The newest spool: its run and its length.
#[derive(Debug)]
struct SpoolFile {
    run_id: String,
    len: u64,
}

/// What the store says.
#[derive(Debug)]
enum Loaded {
    /// It has an unfinished run.
    Unfinished(Box<Checkpoint>),
    /// It has none; the run that it saw through, if it knows one.
    Ended(Option<String>),
    /// It cannot be used.
    Failed(Failure),
    /// It is too large to be copied for a look.
    TooLarge(u64),
}

/// What spool and store mean together.
fn judge(job: &Job, spool: Option<&SpoolFile>, loaded: Loaded) -> Finding {
    let file = job.path.display();
    let restart = format!("start over: harvester run {file} --restart");
    let damaged = |message: String, next: String| Finding::error(SUBJECT, Outcome::Damaged, message, next);
    let has_work = |run: &Option<String>| spool.filter(|spool| run.as_ref() != Some(&spool.run_id));
    match loaded {
        Loaded::Unfinished(checkpoint) => {
            let run = &checkpoint.header.run_id;
            let spool_len = spool.filter(|spool| spool.run_id == *run).map_or(0, |spool| spool.len);
            if spool_len < checkpoint.spool_len {
                return damaged(
                    format!(
                        "run {run} has committed {} to its spool, but {} are there",
                        bytes(checkpoint.spool_len),
                        bytes(spool_len)
                    ),
                    restart,
                );
            }
            let changes = differences(&checkpoint.header.fingerprint, &job.fingerprint());
            if !changes.is_empty() {
                return Finding::error(
                    SUBJECT,
                    Outcome::Changed,
                    format!("the job has changed since run {run} began: {}", changes.join("; ")),
                    format!("undo the change, or {restart}"),
                );
            }
            let rows = checkpoint.plan.streams().map(|(id, _)| checkpoint.row_totals(id).counts.kept).sum();
            Finding::ok(
                SUBJECT,
                format!(
                    "run {run} resumes: {} of {} and {} are there ({})",
                    count(u64::from(checkpoint.positions.finished.len())),
                    plural(u64::from(checkpoint.plan.partitions()), "partition"),
                    plural(rows, "row"),
                    bytes(spool_len)
                ),
            )
        }
        Loaded::Ended(run) => match has_work(&run) {
            None => Finding::ok(SUBJECT, "nothing unfinished: the next run is a new one"),
            Some(spool) => rebuilt(spool, "its store does not know it"),
        },
        Loaded::Failed(failure) if failure.class == FailureClass::Damaged && failure.next.is_none() => match spool {
            Some(spool) => rebuilt(spool, &failure.message),
            None => Finding::warning(
                SUBJECT,
                format!("{}; there is no spool either", failure.message),
                "nothing: the next run is a new one",
            ),
        },
        Loaded::Failed(failure) => {
            let next = failure.next.unwrap_or(restart);
            if failure.class == FailureClass::Damaged {
                damaged(failure.message, next)
            } else {
                Finding::error(SUBJECT, outcome_of(failure.class), failure.message, next)
            }
        }
        Loaded::TooLarge(len) => Finding::warning(
            SUBJECT,
            format!("its store has {}, too much to copy for a look; the spool has {}", bytes(len), {
                bytes(spool.map_or(0, |spool| spool.len))
            }),
            format!("harvester status {file}"),
        ),
    }
}

/// A store that the next run rebuilds from the spool.
fn rebuilt(spool: &SpoolFile, why: &str) -> Finding {
    Finding::warning(
        SUBJECT,
        format!("run {} has a spool of {}, but: {why}", spool.run_id, bytes(spool.len)),
        "nothing: the next run reads the spool and rebuilds the store",
    )
}

/// Something that is there and cannot be read.
fn unreadable(path: &Path, error: &io::Error) -> Finding {
    Finding::error(
        SUBJECT,
        Outcome::Storage,
        format!("cannot look into {}: {error}", path.display()),
        "run it as the user that runs the job",
    )
}

/// The log that a recovery would read: the one with the greatest name.
fn spool(dir: &Path) -> io::Result<Option<SpoolFile>> {
    let mut newest: Option<SpoolFile> = None;
    for entry in entries(dir)? {
        let Some(run_id) = entry.file_name().and_then(|name| name.to_str()?.strip_suffix(".log").map(str::to_owned))
        else {
            continue;
        };
        if newest.as_ref().is_none_or(|newest| newest.run_id < run_id) {
            newest = Some(SpoolFile { run_id, len: fs::metadata(&entry)?.len() });
        }
    }
    Ok(newest)
}

/// Reads a copy of the store.
fn load_copy(dir: &Path) -> io::Result<Loaded> {
    let len = size(dir)?;
    if len > STORE_BYTES_MAX {
        return Ok(Loaded::TooLarge(len));
    }
    let scratch = tempfile::tempdir()?;
    let copy = scratch.path().join("checkpoint");
    if dir.is_dir() {
        copy_folder(dir, &copy)?;
    }
    let store = Arc::new(SledStore::open(copy));
    Ok(actix::System::new().block_on(async {
        match Arc::clone(&store).load().await {
            Ok(Some(checkpoint)) => Loaded::Unfinished(Box::new(checkpoint)),
            Ok(None) => store.last_completed_run().await.map_or_else(Loaded::Failed, Loaded::Ended),
            Err(failure) => Loaded::Failed(in_place(failure, dir)),
        }
    }))
}

/// Says the store's own name where a failure says that of the copy.
fn in_place(failure: Failure, dir: &Path) -> Failure {
    let message = match failure.message.split_once('`').and_then(|(before, rest)| Some((before, rest.split_once('`')?)))
    {
        Some((before, (_, after))) => format!("{before}`{}`{after}", dir.display()),
        None => failure.message.clone(),
    };
    Failure { message, ..failure }
}

/// What is in a folder; nothing where there is none.
fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(found) => found.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Bytes of all files below a folder.
fn size(dir: &Path) -> io::Result<u64> {
    entries(dir)?.iter().try_fold(0, |sum, path| {
        let found = fs::symlink_metadata(path)?;
        Ok(sum + if found.is_dir() { size(path)? } else { found.len() })
    })
}

/// Copies the files and folders below a folder.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for path in entries(from)? {
        let Some(name) = path.file_name() else { continue };
        let found = fs::symlink_metadata(&path)?;
        if found.is_dir() {
            copy_folder(&path, &to.join(name))?;
        } else if found.is_file() {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        let text = "version = 1\nname = \"x\"\n[source]\nurl = \"https://h.example\"\ntoken = { env = \"T\" }\n\
                    [[extract]]\nkind = \"metadata\"\ncollections = [\"users\"]\n\
                    [sink]\nkind = \"files\"\ndirectory = \"out\"\n";
        Job::parse(Path::new("x.toml"), text, true).unwrap()
    }

    fn checkpoint(job: &Job, spool_len: u64) -> Loaded {
        let header = serde_json::from_value(serde_json::json!({
            "run_id": "20260101T000000Z",
            "job": "x",
            "started_at": "2026-01-01T00:00:00Z",
            "fingerprint": job.fingerprint(),
            "source": { "url": "https://h.example", "system_id": null, "version": "2.40.1", "minor": 40, "server_date": null },
        }));
        Loaded::Unfinished(Box::new(Checkpoint::new(header.unwrap(), spool_len)))
    }

    #[test]
    fn every_state_of_store_and_spool_has_its_verdict() {
        let job = job();
        let spool = SpoolFile { run_id: "20260101T000000Z".to_owned(), len: 4_096 };
        let mut other = job.clone();
        other.sink.directory = "elsewhere".into();
        let lost = || Failure::new(FailureClass::Damaged, "the store is damaged: checksum");
        let table = [
            (&job, Some(&spool), checkpoint(&job, 4_000), Outcome::Complete, "resumes: 0 of 0 partitions"),
            (&job, Some(&spool), checkpoint(&job, 5_000), Outcome::Damaged, "has committed 4.9 KiB"),
            (&job, None, checkpoint(&job, 1), Outcome::Damaged, "0 B are there"),
            (&other, Some(&spool), checkpoint(&job, 0), Outcome::Changed, "sink.directory was `out`, is `elsewhere`"),
            (&job, None, Loaded::Ended(None), Outcome::Complete, "nothing unfinished"),
            (&job, Some(&spool), Loaded::Ended(Some(spool.run_id.clone())), Outcome::Complete, "nothing unfinished"),
            (&job, Some(&spool), Loaded::Ended(None), Outcome::Complete, "its store does not know it"),
            (&job, Some(&spool), Loaded::Failed(lost()), Outcome::Complete, "checksum"),
            (&job, None, Loaded::Failed(lost()), Outcome::Complete, "no spool either"),
            (&job, None, Loaded::Failed(lost().with_next("use it")), Outcome::Damaged, "checksum"),
            (&job, None, Loaded::Failed(Failure::local("no memory")), Outcome::Storage, "no memory"),
            (&job, Some(&spool), Loaded::TooLarge(1 << 40), Outcome::Complete, "too much to copy"),
        ];
        for (job, spool, loaded, outcome, words) in table {
            let finding = judge(job, spool, loaded);
            assert_eq!(finding.outcome, outcome, "{finding:?}");
            assert!(finding.message.contains(words), "{finding:?}");
            assert!(finding.severity == crate::observe::Severity::Ok || !finding.next.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn a_copy_is_as_large_as_what_it_was_made_of_and_a_failure_names_the_original() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("blobs")).unwrap();
        fs::write(from.join("db"), "12345").unwrap();
        fs::write(from.join("blobs/1"), "678").unwrap();
        copy_folder(&from, &to).unwrap();
        assert_eq!((size(&from).unwrap(), size(&to).unwrap()), (8, 8));
        assert_eq!(size(&folder.path().join("nothing")).unwrap(), 0);
        let failure = in_place(Failure::local("cannot use `/tmp/copy`: why"), Path::new("/state/checkpoint"));
        assert_eq!(failure.message, "cannot use `/state/checkpoint`: why");
    }
}
