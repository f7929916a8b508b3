//! Remembers which streams of a run are prepared, so that a resume does not prepare them again.
//!
//! ```text
//! <state>/<job>/spool/20260101T000000Z.organisationUnits.ndjson.done   what was prepared of which pages; 0600
//! ```
//!
//! The spool only grows, so the same passes with the same totals are the same rows. What is not there, not readable or does not
//! fit is prepared again: the record saves time and decides nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use harvester_actors::{
    checkpoint::PassTotals,
    partition::PassId,
    sink::{Prepare, PreparedStream},
};
use serde::{Deserialize, Serialize};

use super::{disk, finish::PART_SUFFIX, names};

/// What the name of a record ends with.
pub(super) const SUFFIX: &str = ".done";

/// The record of one stream.
pub(super) struct PreparedRecord {
    /// Where it is.
    path: PathBuf,
    /// The file that it is about.
    part: PathBuf,
    /// What that file is to be made of.
    passes: Vec<PassId>,
    /// See `passes`.
    totals: PassTotals,
}

/// As it is written down.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Written {
    passes: Vec<PassId>,
    totals: PassTotals,
    file: String,
    rows: u64,
    bytes: u64,
    sha256: String,
    duplicates: u64,
    newest: Option<String>,
}

impl PreparedRecord {
    /// The record of what is to be prepared, in `dir`; the file itself is in `out_dir`.
    pub(super) fn of(dir: &Path, out_dir: &Path, work: &Prepare) -> Self {
        let file = names::file_name(&work.stream.name);
        PreparedRecord {
            path: dir.join(format!("{}.{file}{SUFFIX}", work.run_id)),
            part: out_dir.join(format!("{file}{PART_SUFFIX}")),
            passes: work.passes.clone(),
            totals: work.totals,
        }
    }

    /// What has been prepared already; `None` where it must be prepared.
    pub(super) fn load(&self) -> Option<PreparedStream> {
        let written: Written = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        let Written { passes, totals, file, rows, bytes, sha256, duplicates, newest } = written;
        let is_there = fs::symlink_metadata(&self.part).is_ok_and(|found| found.is_file() && found.len() == bytes);
        let is_same = passes == self.passes && totals == self.totals;
        (is_there && is_same).then_some(PreparedStream { file, rows, bytes, sha256, duplicates, newest })
    }

    /// Remembers what has been prepared; where that fails, it is prepared again after a death.
    pub(super) fn save(&self, prepared: &PreparedStream) {
        let PreparedStream { file, rows, bytes, sha256, duplicates, newest } = prepared.clone();
        let (passes, totals) = (self.passes.clone(), self.totals);
        let written = Written { passes, totals, file, rows, bytes, sha256, duplicates, newest };
        let write = || -> io::Result<()> {
            serde_json::to_writer(disk::recreate(&self.path)?, &written)?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!(%error, file = %self.path.display(), "cannot remember that a stream is prepared");
        }
    }
}
