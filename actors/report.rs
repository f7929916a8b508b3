//! What is said at the end: the manifest beside the files, the report, and the verdict derived from the numbers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    failure::{Failure, FailureClass},
    follow::Proof,
};

/// How a command ended. The exit code is a function of this alone (`src/exit_code.rs`).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All rows are there, and the numbers add up.
    Complete,
    /// Finished, but rows or partitions were rejected.
    Rejected,
    /// Fetched, but the numbers do not add up.
    Mismatch,
    /// The source was gone for too long; resumable.
    Unavailable,
    /// The source refuses this user.
    Denied,
    /// The source refuses this query for good.
    Refused,
    /// Stopped by `--max-seconds`; resumable.
    Limit,
    /// Stopped by a signal; resumable.
    Interrupted,
    /// Another process holds the state.
    Locked,
    /// The checkpoint is damaged beyond rebuilding, or newer than this program.
    Damaged,
    /// Job or source changed since the checkpoint.
    Changed,
    /// Local storage failed.
    Storage,
    /// The job file is invalid.
    Invalid,
    /// A bug.
    Bug,
}

impl Outcome {
    /// The word that reports use.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Complete => "complete",
            Outcome::Rejected => "rejected",
            Outcome::Mismatch => "mismatch",
            Outcome::Unavailable => "unavailable",
            Outcome::Denied => "denied",
            Outcome::Refused => "refused",
            Outcome::Limit => "limit",
            Outcome::Interrupted => "interrupted",
            Outcome::Locked => "locked",
            Outcome::Damaged => "damaged",
            Outcome::Changed => "changed",
            Outcome::Storage => "storage",
            Outcome::Invalid => "invalid",
            Outcome::Bug => "bug",
        }
    }
}

/// `manifest.json`: what a complete run left in the sink's directory.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Manifest {
    /// Version of this format: 1.
    pub version: u32,
    /// The job's name.
    pub job: String,
    /// The run's id.
    pub run_id: String,
    /// Who answered.
    pub source: ManifestSource,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub finished_at: String,
    /// Whether every stream is complete.
    pub complete: bool,
    /// Per stream, from where the next incremental run goes on.
    pub watermarks: BTreeMap<String, String>,
    /// Per stream, its file.
    pub streams: BTreeMap<String, ManifestStream>,
}

/// Who answered, in a manifest.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ManifestSource {
    /// Base url without secrets.
    pub url: String,
    /// `null` where the server hides it.
    #[serde(rename = "systemId")]
    pub system_id: Option<String>,
    /// As the server writes it.
    pub version: String,
}

/// One file of a manifest.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ManifestStream {
    /// Relative to the manifest.
    pub file: String,
    /// Lines.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
    /// Rows dropped because another row had their key.
    pub duplicates: u64,
    /// Rows dropped because they were not asked for.
    pub filtered: u64,
    /// Rows that could not be taken.
    pub rejected: u64,
    /// Rows the server announced.
    pub expected: Option<u64>,
    /// What showed that nothing is missing.
    #[serde(default)]
    pub proof: Proof,
    /// Whether nothing of it was rejected or lost.
    pub complete: bool,
}

/// `report.json` and `run --json`; with other types for the verdict, what a status says of a run that goes on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Report<O = Outcome, C = u8> {
    /// How it ended.
    pub outcome: O,
    /// The process's exit code.
    pub exit_code: C,
    /// Whether it went on from a checkpoint.
    pub resumed: bool,
    /// The job's name.
    pub job: String,
    /// The run's id; empty when none was begun.
    pub run_id: String,
    /// Per stream, over all starts of the run.
    pub streams: BTreeMap<String, StreamReport>,
    /// Requests sent by this process.
    pub requests: u64,
    /// Pages asked for again by this process.
    pub retries: u64,
    /// Duration of this process's part.
    pub seconds: f64,
    /// The most requests this process sent within any one second.
    pub peak_requests_per_second: u32,
    /// What went wrong, if anything did.
    pub error: Option<ReportError>,
    /// What `["*"]` did not reach, with the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, String>,
    /// Per stream, from where the next incremental run goes on; only when the run is complete.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub watermarks: BTreeMap<String, String>,
    /// Things a person should know although they changed nothing: a store rebuilt, rows that appeared or vanished.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl<O, C> Report<O, C> {
    /// The report of something that has done nothing yet.
    pub fn new(job: &str, outcome: O, exit_code: C) -> Self {
        Report {
            outcome,
            exit_code,
            resumed: false,
            job: job.to_owned(),
            run_id: String::new(),
            streams: BTreeMap::new(),
            requests: 0,
            retries: 0,
            seconds: 0.0,
            peak_requests_per_second: 0,
            error: None,
            left_out: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    /// The same with another verdict.
    pub fn with_verdict<P, D>(self, outcome: P, exit_code: D) -> Report<P, D> {
        Report {
            outcome,
            exit_code,
            resumed: self.resumed,
            job: self.job,
            run_id: self.run_id,
            streams: self.streams,
            requests: self.requests,
            retries: self.retries,
            seconds: self.seconds,
            peak_requests_per_second: self.peak_requests_per_second,
            error: self.error,
            left_out: self.left_out,
            watermarks: self.watermarks,
            warnings: self.warnings,
        }
    }
}

/// The numbers of one stream.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct StreamReport {
    /// Rows in the file once it is finished; before that, rows kept so far.
    pub rows: u64,
    /// Bytes likewise.
    pub bytes: u64,
    /// Pages.
    pub pages: u64,
    /// Rows dropped because another row had their key.
    pub duplicates: u64,
    /// Rows dropped because they were not asked for.
    pub filtered: u64,
    /// Rows that could not be taken.
    pub rejected: u64,
    /// Rows the server announced.
    pub expected: Option<u64>,
    /// Rows that came into being on the server while the run went on, as the reconciliation found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appeared: Option<u64>,
    /// Rows that went away likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vanished: Option<u64>,
}

/// Why a command did not end with 0.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReportError {
    /// Class of the failure, see `FailureClass::as_str`, or the outcome's name.
    pub class: String,
    /// What happened to what.
    pub message: String,
    /// What to do or type next; empty where what failed knows nothing better than what fits the outcome.
    pub next: String,
}

impl From<Failure> for ReportError {
    fn from(failure: Failure) -> Self {
        let next = failure.next.unwrap_or_default();
        ReportError { class: failure.class.as_str().to_owned(), message: failure.message, next }
    }
}

/// The outcome of a run that ended with a failure of this class.
pub fn outcome_of(class: FailureClass) -> Outcome {
    match class {
        FailureClass::Transient => Outcome::Unavailable,
        FailureClass::TooHeavy | FailureClass::Rejected | FailureClass::Forbidden | FailureClass::Garbled => {
            Outcome::Refused
        }
        FailureClass::Denied => Outcome::Denied,
        FailureClass::Changed => Outcome::Changed,
        FailureClass::Local => Outcome::Storage,
        FailureClass::Damaged => Outcome::Damaged,
        FailureClass::Bug => Outcome::Bug,
    }
}
