//! What is to be fetched: streams, the passes over them, and partitions that one fetcher can carry.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Place of a partition in its plan, counted from 0. Partitions are leased in this order.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct PartitionId(pub u32);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Place of a stream in its plan, counted from 0.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct StreamId(pub u32);

/// Place of a pass in its plan, counted from 0. A later pass of a stream has a higher one.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct PassId(pub u32);

/// One finished file to be.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Name without suffix, not yet encoded for a file system: `organisationUnits`.
    pub name: String,
    /// Rows the server announced when the plan was made; `None` where it gives no total.
    pub expected_rows: Option<u64>,
    /// Reached by `["*"]`: a 403 or 404 leaves it out instead of failing the run.
    pub optional: bool,
    /// Where the next incremental run resumes once this one is complete: the server's own date, as sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<String>,
}

/// What the partitions of a pass give.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Yield {
    /// Rows of the stream: they end up in its file.
    #[default]
    Rows,
    /// Evidence: keys that are compared with those of the rows, and end up nowhere.
    Keys,
}

/// One reading of a stream, or of a part of it. The first pass of a stream is planned; the others follow from what is known.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pass {
    /// The stream that is read.
    pub stream: StreamId,
    /// What it gives.
    #[serde(rename = "yield")]
    pub yields: Yield,
    /// What the source needs to know of it; opaque to the engine.
    pub selection: serde_json::Value,
}

/// One bounded piece of work with a key that stays the same from run to run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Its place in the plan.
    pub id: PartitionId,
    /// The pass that it is a part of.
    pub pass: PassId,
    /// Stable name for people and logs: `organisationUnits/3`.
    pub key: String,
    /// What the source needs to fetch it; opaque to the engine.
    pub selection: serde_json::Value,
    /// Requests it will take, as far as the plan can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Rows it will give, as far as the plan can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_rows: Option<u64>,
}

/// A partition that has no place in the plan yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewPartition {
    /// The pass that it will be a part of.
    pub pass: PassId,
    /// See [`Partition::key`].
    pub key: String,
    /// See [`Partition::selection`].
    pub selection: serde_json::Value,
    /// See [`Partition::requests`].
    pub requests: Option<u64>,
    /// See [`Partition::expected_rows`].
    pub expected_rows: Option<u64>,
}

impl NewPartition {
    /// The partition at this place.
    pub fn at(self, id: PartitionId) -> Partition {
        let NewPartition { pass, key, selection, requests, expected_rows } = self;
        Partition { id, pass, key, selection, requests, expected_rows }
    }
}

/// A stream that was asked for by `["*"]` and is not taken, with the reason.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// The stream's name.
    pub stream: String,
    /// Why, as a lower-case fragment.
    pub reason: String,
}

/// What a plan is made of, as it is written down: pieces follow each other, while it is made and later, as it grows.
///
/// Every piece takes up where the one before it ended: its first stream, pass and partition have the next free place.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PlanPiece {
    /// Further streams.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<Stream>,
    /// Further passes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<Pass>,
    /// Further partitions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<Partition>,
    /// What `["*"]` did not reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

impl PlanPiece {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self == &PlanPiece::default()
    }
}

/// How far a partition has come. The writer is the one who knows.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Position {
    /// Number of the next page, counted from 0.
    pub seq: u32,
    /// Where the next page begins.
    pub next: Cursor,
    /// How often its pages have been halved because they proved too heavy; see [`PageSize`](crate::source::PageSize).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub halvings: u32,
}

/// Whether nothing need be written.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Where a partition resumes.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cursor {
    /// At its beginning.
    #[default]
    Start,
    /// After this place; opaque to the engine (for a keyset: the last id received).
    After(String),
    /// Nowhere: it is complete.
    End,
}

impl Position {
    /// Whether nothing is left to fetch.
    pub fn is_finished(&self) -> bool {
        self.next == Cursor::End
    }
}

/// Who answered: what must not change between two starts of one run.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SourceIdentity {
    /// The base url, without secrets.
    pub url: String,
    /// `systemId`; hidden from ordinary users in 2.25 and 2.26.
    pub system_id: Option<String>,
    /// Version as the server writes it.
    pub version: String,
    /// The minor version, 25 to 43: what the dialect depends on.
    pub minor: u16,
    /// `serverDate` at the first contact of the run, as sent (zone-less); the base of watermarks.
    pub server_date: Option<String>,
}

impl SourceIdentity {
    /// What makes `other` a different source, as a sentence; a patch release of the same minor is no difference.
    pub fn difference(&self, other: &SourceIdentity) -> Option<String> {
        match (&self.system_id, &other.system_id) {
            (Some(before), Some(now)) if before != now && harvester_pacing::control!("identity") => {
                return Some(format!("another database answers at {} (systemId was {before}, is {now})", other.url));
            }
            _ => {}
        }
        if self.minor != other.minor {
            return Some(format!("the server at {} was version 2.{}, is 2.{}", other.url, self.minor, other.minor));
        }
        None
    }
}
