//! `job.json`: what one job remembers between its runs, outside of any checkpoint.
//!
//! The owner of the state folder (two job files of one name are an error), how the last process ended (after an unclean end
//! nobody knows what it sent in its last second), the last run id, and from where incremental streams go on, as long as job
//! and source are those that they come from. A run that fails leaves the watermarks, and what they belong to, as they were:
//! both change when a run completes. Replaced atomically; a damaged one is as good as none, but for the watermarks, whose
//! loss makes the next incremental run a full one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};
use serde::{Deserialize, Serialize};

use crate::{
    job::{Job, differences},
    sinks,
};

/// The file's name within the job's state folder.
pub(crate) const FILE: &str = "job.json";

/// Format of a run id: the start of the run, UTC.
const RUN_ID: &str = "%Y%m%dT%H%M%SZ";

/// The record, as stored in `job.json`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct JobRecord {
    /// Version of this format: 1.
    version: u32,
    /// The job file.
    pub(crate) path: PathBuf,
    /// When the last process ended after having drained and said goodbye, RFC 3339; absent while one runs, and after one
    /// that was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clean_end_at: Option<String>,
    /// The latest run id that was given out, whatever became of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_run_id: Option<String>,
    /// Per stream, the watermark of the last complete run.
    #[serde(default)]
    watermarks: BTreeMap<String, String>,
    /// What the job said when the run of the watermarks completed, see `Job::fingerprint`; without watermarks, when it last
    /// began.
    #[serde(default)]
    fingerprint: BTreeMap<String, String>,
    /// The database that the watermarks come from, where it says which it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) system_id: Option<String>,
}

/// Why a job may not use a state directory.
#[derive(Debug)]
pub(crate) struct StateConflict {
    /// The error.
    pub(crate) message: String,
    /// The next step.
    pub(crate) next: &'static str,
}

impl JobRecord {
    /// The record of a job that has never run.
    pub(crate) fn new(job: &Job) -> Self {
        JobRecord { version: 1, path: own_path(job), ..JobRecord::default() }
    }

    /// Why this is not the record of `job`, if it is not: neither of its file, nor of one that is gone and said the same,
    /// which then was moved here.
    pub(crate) fn conflict(&self, job: &Job, folder: &Path) -> Option<StateConflict> {
        let path = own_path(job);
        if self.path == path {
            return None;
        }
        let (name, folder, recorded, path) = (&job.name, folder.display(), self.path.display(), path.display());
        if !matches!(self.path.try_exists(), Ok(false)) {
            return Some(StateConflict {
                message: format!(
                    "two job files are named `{name}`: the state in `{folder}` belongs to `{recorded}`, this is `{path}`"
                ),
                next: "give one of them another name = \"…\"",
            });
        }
        let differences = differences(&self.fingerprint, &job.fingerprint());
        (!differences.is_empty()).then(|| StateConflict {
            message: format!(
                "the state in `{folder}` belongs to `{recorded}`, which was deleted, and `{path}` says something else: {}",
                differences.join("; ")
            ),
            next: "give it another name = \"…\", or run it with --restart to start over in that state",
        })
    }

    /// Makes it the record of a start of `job`, which has no conflict with it. What differs is returned where there are
    /// watermarks that therefore do not count: rows that the other job did not fetch, this one would leave out.
    pub(crate) fn start(&mut self, job: &Job, is_restart: bool) -> Option<String> {
        self.clean_end_at = None;
        if is_restart {
            self.watermarks.clear();
        }
        let fingerprint = job.fingerprint();
        let differences = differences(&self.fingerprint, &fingerprint);
        if !differences.is_empty()
            && !self.watermarks.is_empty()
            && harvester_pacing::control!("watermarks-until-complete")
        {
            return Some(differences.join("; "));
        }
        self.path = own_path(job);
        self.fingerprint = fingerprint;
        if !differences.is_empty() {
            self.watermarks.clear();
        }
        None
    }

    /// The watermarks that count for `job`.
    pub(crate) fn watermarks_for(&self, job: &Job) -> BTreeMap<String, String> {
        if self.fingerprint == job.fingerprint() { self.watermarks.clone() } else { BTreeMap::new() }
    }

    /// Notes that a run of `job` is complete, and from where the next one goes on. A stream that this run says nothing of
    /// keeps its older watermark, as long as job and database are the same.
    pub(crate) fn complete(&mut self, job: &Job, system_id: Option<String>, watermarks: BTreeMap<String, String>) {
        let fingerprint = job.fingerprint();
        if self.fingerprint != fingerprint || self.system_id != system_id {
            self.watermarks.clear();
        }
        self.watermarks.extend(watermarks);
        self.path = own_path(job);
        self.fingerprint = fingerprint;
        self.system_id = system_id;
    }

    /// The id of a run that begins now: the present second, or the one behind the latest id, so that no id is given twice
    /// and each is later than the one before, also within a second and after the clock went back.
    pub(crate) fn next_run_id(&mut self, now: Timestamp) -> String {
        let last = self.last_run_id.as_deref().filter(|_| harvester_pacing::control!("run-ids"));
        let last = last.and_then(|last| DateTime::strptime(RUN_ID, last).ok());
        let last = last.and_then(|last| TimeZone::UTC.to_timestamp(last).ok());
        let after_last = last.and_then(|last| last.checked_add(SignedDuration::from_secs(1)).ok());
        let id = after_last.map_or(now, |after_last| after_last.max(now)).strftime(RUN_ID).to_string();
        self.last_run_id = Some(id.clone());
        id
    }

    /// Reads the record of a state folder; `None` when there is none that can be read.
    pub(crate) fn load(folder: &Path) -> Option<JobRecord> {
        let text = fs::read(folder.join(FILE)).ok()?;
        match serde_json::from_slice(&text) {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::warn!(%error, file = %folder.join(FILE).display(), "cannot read what is remembered of this job");
                None
            }
        }
    }

    /// Replaces the record of a state folder, durably.
    ///
    /// # Errors
    /// When the disk fails; the old record stays.
    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        let part = folder.join("job.json.part");
        let mut file = sinks::recreate(&part)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&part, folder.join(FILE))?;
        File::open(folder)?.sync_all()
    }
}

/// The job file, without links and `..`.
fn own_path(job: &Job) -> PathBuf {
    fs::canonicalize(&job.path).unwrap_or_else(|_| job.path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_id_is_later_than_the_one_before() {
        let mut record = JobRecord::default();
        for (now, id) in [
            ("2026-01-01T00:00:00Z", "20260101T000000Z"),
            ("2026-01-01T00:00:00.9Z", "20260101T000001Z"),
            ("2026-01-01T00:00:01.2Z", "20260101T000002Z"),
            ("2026-01-01T00:00:09Z", "20260101T000009Z"),
            // The clock goes back, over the end of a year.
            ("2025-12-31T23:59:59Z", "20260101T000010Z"),
            ("2026-03-01T12:00:00Z", "20260301T120000Z"),
        ] {
            assert_eq!(record.next_run_id(now.parse().unwrap()), id, "{now}");
        }
        record.last_run_id = Some("no id".to_owned());
        assert_eq!(record.next_run_id("2026-01-01T00:00:00Z".parse().unwrap()), "20260101T000000Z");
    }

    /// A job with this user.
    fn job(user: &str) -> Job {
        let text = format!(
            "version = 1\n[source]\nurl = \"https://h.example\"\nusername = \"{user}\"\npassword = {{ env = \"P\" }}\n\
             [[extract]]\nkind = \"metadata\"\ncollections = [\"sections\"]\n[sink]\nkind = \"files\"\ndirectory = \"o\"\n"
        );
        Job::parse(Path::new("/nonexistent/job.toml"), &text, true).unwrap()
    }

    fn marks(at: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("sections".to_owned(), at.to_owned())])
    }

    #[test]
    fn watermarks_and_what_they_belong_to_change_when_a_run_completes() {
        let (anna, typo) = (job("anna"), job("amna"));
        let mut record = JobRecord::new(&anna);
        assert_eq!(record.start(&anna, false), None);
        record.complete(&anna, None, marks("2024-05-01"));
        let known = record.clone();
        assert!(record.start(&typo, false).unwrap().contains("source.username was"));
        assert_eq!(record, known, "a start that may fail");
        assert!(record.watermarks_for(&typo).is_empty());
        assert_eq!(record.start(&anna, false), None);
        assert_eq!(record.watermarks_for(&anna), marks("2024-05-01"));

        record.complete(&typo, None, BTreeMap::new());
        assert!(record.watermarks_for(&typo).is_empty() && record.watermarks_for(&anna).is_empty());
        record.complete(&anna, None, marks("2024-05-02"));
        record.complete(&anna, None, BTreeMap::new());
        assert_eq!(record.watermarks_for(&anna), marks("2024-05-02"), "a run that has seen nothing of it");
        record.complete(&anna, Some("another".to_owned()), BTreeMap::new());
        assert!(record.watermarks_for(&anna).is_empty(), "of another database");
    }

    #[test]
    fn a_restart_forgets_watermarks_and_takes_the_folder_over_at_once() {
        let (anna, other) = (job("anna"), job("other"));
        let mut record = JobRecord::new(&anna);
        record.start(&anna, false);
        record.complete(&anna, None, marks("2024-05-01"));
        assert_eq!(record.start(&other, true), None);
        assert!(record.watermarks_for(&other).is_empty());
        assert_eq!(record.fingerprint, other.fingerprint());
    }
}
