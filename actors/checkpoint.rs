//! What survives a death: the run's header, and how far each partition has durably come.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    failure::{Failure, FailureClass},
    page::{PageCounts, Span},
    partition::{Partition, PartitionId, Plan, Position, SourceIdentity},
};

/// What a run is: written once, first of all, into spool and store.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RunHeader {
    /// Start of the run, `20260101T000000Z`: also the value of `{run}`. A resume keeps it.
    pub run_id: String,
    /// The job's name.
    pub job: String,
    /// When the run began, RFC 3339, UTC.
    pub started_at: String,
    /// The parts of the job that decide about rows, as a flat map of key and value; a resume compares them.
    pub fingerprint: BTreeMap<String, String>,
    /// Who answered.
    pub source: SourceIdentity,
    /// What is fetched.
    pub plan: Plan,
}

/// How far one partition has durably come.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PartitionState {
    /// Where it goes on.
    pub position: Position,
    /// The sum over its pages.
    pub counts: PageCounts,
}

/// A run as the store and the spool know it together.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What the run is; its plan includes the partitions gained since.
    pub header: RunHeader,
    /// Partitions that have begun.
    pub partitions: BTreeMap<PartitionId, PartitionState>,
    /// How many bytes of the spool this describes.
    pub spool_len: u64,
}

impl Checkpoint {
    /// A run of which nothing has been fetched.
    pub fn begun(header: RunHeader, spool_len: u64) -> Self {
        Checkpoint { header, partitions: BTreeMap::new(), spool_len }
    }

    /// Takes one page into account; the live run and the recovery go through this function alone.
    ///
    /// # Errors
    /// `Damaged` when the page does not follow the one before it.
    pub fn apply(&mut self, span: &Span) -> Result<(), Failure> {
        if span.partition.0 as usize >= self.header.plan.partitions.len() {
            return Err(damaged(format!("a page names partition {}, which the plan does not have", span.partition)));
        }
        let state = self.partitions.entry(span.partition).or_default();
        if state.position.is_finished() || span.seq != state.position.seq {
            return Err(damaged(format!(
                "page {} of partition {} follows page {} in the spool",
                span.seq, span.partition, state.position.seq
            )));
        }
        state.position = Position { seq: span.seq + 1, next: span.next.clone() };
        state.counts.add(&span.counts);
        self.spool_len = self.spool_len.max(span.frame.to);
        Ok(())
    }

    /// Takes partitions into account that the plan gained.
    ///
    /// # Errors
    /// `Damaged` when their places do not follow those of the plan.
    pub fn grow(&mut self, partitions: &[Partition], spool_len: u64) -> Result<(), Failure> {
        self.header.plan.partitions.extend_from_slice(partitions);
        self.spool_len = self.spool_len.max(spool_len);
        self.header.plan.fault().map_or(Ok(()), |fault| Err(damaged(fault)))
    }
}

/// One durable step of the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Pages that are durable in the spool.
    pub spans: Vec<Span>,
    /// Partitions the plan gained, durable in the spool.
    pub grown: Vec<Partition>,
    /// How many bytes of the spool the store knows after this batch.
    pub spool_len: u64,
}

/// A checkpoint that contradicts itself.
fn damaged(message: String) -> Failure {
    Failure::new(FailureClass::Damaged, message)
}
