//! What survives a death: the run's header, its plan, and how far each partition has durably come.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    failure::{Failure, FailureClass},
    page::{FrameRange, PageCounts, Span},
    partition::{Cursor, PartitionId, PassId, PlanPiece, Position, SourceIdentity, StreamId, Yield},
    plan::{PartitionSet, PlanIndex},
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
}

/// How far each partition has come.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Positions {
    /// Partitions that have ended.
    pub finished: PartitionSet,
    /// Partitions that have begun and not ended.
    pub open: BTreeMap<PartitionId, Position>,
}

impl Positions {
    /// How far a partition has come.
    pub fn of(&self, partition: PartitionId) -> Position {
        if self.finished.contains(partition) {
            return Position { next: Cursor::End, ..Position::default() };
        }
        self.open.get(&partition).cloned().unwrap_or_default()
    }

    /// Takes a page into account.
    pub fn advance(&mut self, span: &Span) {
        let position = span.position();
        if position.is_finished() {
            self.open.remove(&span.partition);
            self.finished.insert(span.partition);
        } else {
            self.open.insert(span.partition, position);
        }
    }
}

/// The sums over a pass.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PassTotals {
    /// Pages.
    pub pages: u64,
    /// Their numbers.
    pub counts: PageCounts,
}

/// A run as the store and the spool know it together.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What the run is.
    pub header: RunHeader,
    /// What is fetched, partitions gained since included.
    pub plan: PlanIndex,
    /// How far each partition has durably come.
    pub positions: Positions,
    /// By [`PassId`], what has been fetched; passes at the end that gave no page may be absent.
    pub totals: Vec<PassTotals>,
    /// How many bytes of the spool this describes.
    pub spool_len: u64,
}

impl Checkpoint {
    /// A run that has no plan yet.
    pub fn new(header: RunHeader, spool_len: u64) -> Self {
        Checkpoint {
            header,
            plan: PlanIndex::default(),
            positions: Positions::default(),
            totals: Vec::new(),
            spool_len,
        }
    }

    /// Takes one entry of the spool into account; the live run and the recovery go through this function alone.
    ///
    /// # Errors
    /// `Damaged` when it does not follow the one before it.
    pub fn apply(&mut self, entry: &SpoolEntry) -> Result<(), Failure> {
        match entry {
            SpoolEntry::Begun { .. } => return Err(damaged("the spool begins twice".to_owned())),
            SpoolEntry::Planned { piece, frame } => self.plan.extend(piece, *frame)?,
            SpoolEntry::Page(span) => self.apply_page(span)?,
        }
        self.spool_len = self.spool_len.max(entry.frame().to);
        Ok(())
    }

    fn apply_page(&mut self, span: &Span) -> Result<(), Failure> {
        if span.partition.0 >= self.plan.partitions() || span.pass.0 as usize >= self.plan.passes.len() {
            return Err(damaged(format!("a page names partition {}, which the plan does not have", span.partition)));
        }
        let before = self.positions.of(span.partition);
        if before.is_finished() || span.seq != before.seq {
            return Err(damaged(format!(
                "page {} of partition {} follows page {} in the spool",
                span.seq, span.partition, before.seq
            )));
        }
        self.plan.add_partitions(&span.children, span.frame)?;
        self.positions.advance(span);
        let place = span.pass.0 as usize;
        if place >= self.totals.len() {
            self.totals.resize(place + 1, PassTotals::default());
        }
        self.totals[place].pages += 1;
        self.totals[place].counts.add(&span.counts);
        Ok(())
    }

    /// What has been fetched of a pass.
    pub fn totals_of(&self, pass: PassId) -> PassTotals {
        self.totals.get(pass.0 as usize).copied().unwrap_or_default()
    }

    /// What has been fetched of the rows of a stream.
    pub fn row_totals(&self, stream: StreamId) -> PassTotals {
        let mut sum = PassTotals::default();
        for (id, _) in self.plan.passes_of(stream).filter(|(_, pass)| pass.yields == Yield::Rows) {
            let totals = self.totals_of(id);
            sum.pages += totals.pages;
            sum.counts.add(&totals.counts);
        }
        sum
    }
}

/// One entry of the spool.
#[derive(Clone, Debug, PartialEq)]
pub enum SpoolEntry {
    /// The first one: what the run is.
    Begun {
        /// Job and source.
        header: RunHeader,
        /// Where it lies.
        frame: FrameRange,
    },
    /// A piece of the plan.
    Planned {
        /// The piece.
        piece: PlanPiece,
        /// Where it lies.
        frame: FrameRange,
    },
    /// A page, with the partitions that it brought.
    Page(Span),
}

impl SpoolEntry {
    /// Where it lies.
    pub fn frame(&self) -> FrameRange {
        match self {
            SpoolEntry::Begun { frame, .. } | SpoolEntry::Planned { frame, .. } => *frame,
            SpoolEntry::Page(span) => span.frame,
        }
    }

    /// The page, if it is one.
    pub fn page(&self) -> Option<&Span> {
        match self {
            SpoolEntry::Page(span) => Some(span),
            SpoolEntry::Begun { .. } | SpoolEntry::Planned { .. } => None,
        }
    }
}

/// A checkpoint that contradicts itself.
fn damaged(message: String) -> Failure {
    Failure::new(FailureClass::Damaged, message)
}
