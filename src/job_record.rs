//! `job.json`: what one job remembers between its runs, outside of any checkpoint.
//!
//! Who owns the state folder (two job files of one name are a mistake), how the last process ended (after an unclean end
//! nobody knows what it sent in its last second), and from where incremental streams go on, as long as job and source are
//! those that they come from. Replaced atomically; a damaged one is as good as none, but for the watermarks, whose loss makes
//! the next incremental run a full one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    job::{Job, differences},
    sinks,
};

/// The file's name within the job's state folder.
pub(crate) const FILE: &str = "job.json";

/// See the module.
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
    /// Per stream, the watermark of the last complete run.
    #[serde(default)]
    pub(crate) watermarks: BTreeMap<String, String>,
    /// What the job said when a run of it last began, see `Job::fingerprint`.
    #[serde(default)]
    fingerprint: BTreeMap<String, String>,
    /// The database that the watermarks come from, where it says which it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) system_id: Option<String>,
}

/// Why a job may not use a state folder.
#[derive(Debug)]
pub(crate) struct Conflict {
    /// What is wrong.
    pub(crate) message: String,
    /// What to do.
    pub(crate) next: &'static str,
}

impl JobRecord {
    /// The record of a job that has never run.
    pub(crate) fn new(job: &Job) -> Self {
        JobRecord { version: 1, path: own_path(job), ..JobRecord::default() }
    }

    /// Why this is not the record of `job`, if it is not: neither of its file, nor of one that is gone and said the same,
    /// which then was moved here.
    pub(crate) fn conflict(&self, job: &Job, folder: &Path) -> Option<Conflict> {
        let path = own_path(job);
        if self.path == path {
            return None;
        }
        let (name, folder, recorded, path) = (&job.name, folder.display(), self.path.display(), path.display());
        if !matches!(self.path.try_exists(), Ok(false)) {
            return Some(Conflict {
                message: format!(
                    "two job files are named `{name}`: the state in `{folder}` belongs to `{recorded}`, this is `{path}`"
                ),
                next: "give one of them another name = \"…\"",
            });
        }
        let differences = differences(&self.fingerprint, &job.fingerprint());
        (!differences.is_empty()).then(|| Conflict {
            message: format!(
                "the state in `{folder}` belongs to `{recorded}`, which is gone, and `{path}` says something else: {}",
                differences.join("; ")
            ),
            next: "give it another name = \"…\", or run it with --restart to begin anew in that state",
        })
    }

    /// Makes it the record of `job`. Watermarks of a job that said something else are dropped, and why is returned: rows that
    /// it did not fetch, this one would leave out.
    pub(crate) fn take_over(&mut self, job: &Job) -> Option<String> {
        let fingerprint = job.fingerprint();
        let differences = differences(&self.fingerprint, &fingerprint);
        self.path = own_path(job);
        self.fingerprint = fingerprint;
        let dropped = std::mem::take(&mut self.watermarks);
        if differences.is_empty() {
            self.watermarks = dropped;
            return None;
        }
        (!dropped.is_empty()).then(|| differences.join("; "))
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
        let mut file = sinks::create_anew(&part)?;
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
