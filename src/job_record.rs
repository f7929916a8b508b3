//! `job.json`: what one job remembers between its runs, outside of any checkpoint.
//!
//! Who owns the state folder (two job files of one name are a mistake), how the last process ended (after an unclean end
//! nobody knows what it sent in its last second), and from where incremental streams go on. Replaced atomically; a
//! damaged one is as good as none, but for the watermarks, whose loss makes the next incremental run a full one.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

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
}

impl JobRecord {
    /// The record of a job that has never run.
    pub(crate) fn new(path: PathBuf) -> Self {
        JobRecord { version: 1, path, clean_end_at: None, watermarks: BTreeMap::new() }
    }

    /// Whether this is the record of the job file at `path`: of this one, or of one that is gone, which then was moved here.
    /// Whether a moved one still says the same is for the fingerprint to tell.
    pub(crate) fn belongs_to(&self, path: &Path) -> bool {
        self.path == path || matches!(self.path.try_exists(), Ok(false))
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
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&part, folder.join(FILE))?;
        File::open(folder)?.sync_all()
    }
}
