//! What is to be fetched: a plan of streams, cut into partitions that one fetcher can carry.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Place of a partition in its plan, counted from 0.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct PartitionId(pub u32);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Place of a stream in its plan, counted from 0.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct StreamId(pub u32);

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
    /// From where the next incremental run goes on once this one is complete: the server's own date, as sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<String>,
}

/// What the rows of a partition are for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartitionRole {
    /// They are the stream's rows.
    #[default]
    Rows,
    /// They are the keys the server has now, in its order, without the rows: the other side of a comparison.
    Listing,
    /// They are rows that the comparison found missing.
    Repair,
}

/// One bounded piece of work with a key that stays the same from run to run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Its place in the plan.
    pub id: PartitionId,
    /// The stream its rows belong to.
    pub stream: StreamId,
    /// Stable name for people and logs: `organisationUnits/3`.
    pub key: String,
    /// What its rows are for.
    #[serde(default)]
    pub role: PartitionRole,
    /// What the source needs to fetch it; opaque to the engine.
    pub selection: serde_json::Value,
    /// Requests it will take, as far as the plan can tell.
    pub requests: Option<u64>,
    /// Rows it will give, as far as the plan can tell.
    pub expected_rows: Option<u64>,
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

/// Everything a run will fetch, fixed before the first row is asked for, so that a resume runs the same plan.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The streams, indexed by [`StreamId`].
    pub streams: Vec<Stream>,
    /// The partitions, indexed by [`PartitionId`]; those of one stream are neighbours, in its order.
    pub partitions: Vec<Partition>,
    /// What `["*"]` did not reach.
    pub left_out: Vec<LeftOut>,
}

impl Plan {
    /// The stream of a partition of this plan.
    pub fn stream_of(&self, partition: &Partition) -> &Stream {
        &self.streams[partition.stream.0 as usize]
    }

    /// The partitions of one stream, in plan order.
    pub fn partitions_of(&self, stream: StreamId) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().filter(move |partition| partition.stream == stream)
    }

    /// The listing of a stream that was made last; its older ones no longer count.
    pub fn newest_listing(&self, stream: StreamId) -> Option<&Partition> {
        self.partitions_of(stream).filter(|partition| partition.role == PartitionRole::Listing).last()
    }

    /// Why the plan cannot be run, if it cannot: an index out of place. A plan read from a disk is checked before use.
    pub fn fault(&self) -> Option<String> {
        for (index, partition) in self.partitions.iter().enumerate() {
            if partition.id.0 as usize != index {
                return Some(format!("partition {} stands at place {index}", partition.id));
            }
            if partition.stream.0 as usize >= self.streams.len() {
                return Some(format!("partition `{}` names a stream that the plan does not have", partition.key));
            }
        }
        None
    }
}

/// How far a partition has come. The writer is the one who knows.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Position {
    /// Number of the next page, counted from 0.
    pub seq: u32,
    /// Where the next page begins.
    pub next: Next,
}

/// Where a partition goes on.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Next {
    /// At its beginning.
    #[default]
    Start,
    /// Behind this place; opaque to the engine (for a keyset: the last id received).
    After(String),
    /// Nowhere: it is complete.
    End,
}

impl Position {
    /// Whether nothing is left to fetch.
    pub fn is_finished(&self) -> bool {
        self.next == Next::End
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
