//! The writer gives every page its place in the spool, one at a time, and knows how far each partition has come.
//!
//! ```text
//! Fetcher ──WritePage──▶ Writer ──PageWritten──▶ Checkpointer
//!                           └──PlanExtended──▶ Planner
//! ```
//!
//! It owns the spool: nobody else appends. Its reply means *appended*, not durable; awaiting it is the back-pressure,
//! and the one page that each fetcher holds until then is the bound. A page that it already has (its fetcher died
//! between append and reply) is not appended again: the reply says how far the partition really has come. Partitions
//! that a page brings are in the same entry, so that a split is atomic.

use std::sync::Arc;

use actix::prelude::*;

use crate::{
    checkpoint::{Checkpoint, Positions, SpoolEntry},
    checkpointer::{Checkpointer, EntryWritten},
    crash_point,
    failure::{Failure, FailureClass},
    last_will::send_now,
    page::{Page, Span},
    partition::{PartitionId, PlanPiece, Position},
    plan::PlanChunk,
    planner::PlanExtended,
    sink::Spool,
};

/// Asks for one page to be appended. The reply means that it is, and says where its partition resumes.
#[derive(Debug, Message)]
#[rtype(result = "Result<Position, Failure>")]
pub struct WritePage(pub Page);

/// Asks how far a partition has come, whoever fetched it.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Position, Failure>")]
pub struct CurrentPosition(pub PartitionId);

/// Asks for partitions to be added to the plan, in places from the next free one on. The reply means that they are in the
/// spool.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Failure>")]
pub struct ExtendPlan(pub PlanPiece);

/// See the module.
pub struct Writer {
    /// Where pages go.
    spool: Arc<dyn Spool>,
    /// Makes them durable.
    checkpointer: Addr<Checkpointer>,
    /// Leases the partitions that pages bring.
    planner: Recipient<PlanExtended>,
    /// How far each partition has come.
    positions: Positions,
    /// The place of the next partition.
    next_partition: PartitionId,
}

impl Writer {
    /// A writer that resumes where `checkpoint` says.
    pub fn new(
        spool: Arc<dyn Spool>,
        checkpointer: Addr<Checkpointer>,
        planner: Recipient<PlanExtended>,
        checkpoint: &Checkpoint,
    ) -> Self {
        let next_partition = PartitionId(checkpoint.plan.partitions());
        Writer { spool, checkpointer, planner, positions: checkpoint.positions.clone(), next_partition }
    }

    /// Takes a page into account that has its place; what it brought may be leased from now on.
    fn written(&mut self, span: &Span) {
        self.positions.advance(span);
        self.extended(span.children.len(), span.frame);
    }

    /// Takes partitions into account that have their place.
    fn extended(&mut self, count: usize, frame: crate::page::FrameRange) {
        if count == 0 {
            return;
        }
        let chunk = PlanChunk { first: self.next_partition, count: count as u32, frame };
        self.next_partition.0 += chunk.count;
        send_now(&self.planner, PlanExtended(chunk));
    }
}

impl Actor for Writer {
    type Context = Context<Self>;
}

impl Handler<WritePage> for Writer {
    // Atomic: the next page waits until this one has its place, so order and positions cannot be torn apart.
    type Result = AtomicResponse<Self, Result<Position, Failure>>;

    fn handle(&mut self, WritePage(page): WritePage, _: &mut Self::Context) -> Self::Result {
        let here = self.positions.of(page.partition);
        if page.seq != here.seq || here.is_finished() {
            return AtomicResponse::new(Box::pin(actix::fut::ready(Ok(here))));
        }
        let spool = Arc::clone(&self.spool);
        let checkpointer = self.checkpointer.clone();
        let first_child = self.next_partition;
        let write = async move {
            crash_point!("writer.append.before");
            let span = Arc::new(SpoolEntry::Page(spool.append(page, first_child).await?));
            crash_point!("writer.append.after");
            checkpointer.send(EntryWritten(Arc::clone(&span))).await.map_err(gone)?;
            Ok(span)
        };
        AtomicResponse::new(Box::pin(write.into_actor(self).map(|written, writer, _| match &*written? {
            SpoolEntry::Page(span) => {
                writer.written(span);
                Ok(span.position())
            }
            SpoolEntry::Begun { .. } | SpoolEntry::Planned { .. } => {
                Err(Failure::new(FailureClass::Bug, "a page was appended as something else"))
            }
        })))
    }
}

impl Handler<CurrentPosition> for Writer {
    type Result = Result<Position, Failure>;

    fn handle(&mut self, CurrentPosition(partition): CurrentPosition, _: &mut Self::Context) -> Self::Result {
        Ok(self.positions.of(partition))
    }
}

impl Handler<ExtendPlan> for Writer {
    type Result = AtomicResponse<Self, Result<(), Failure>>;

    fn handle(&mut self, ExtendPlan(piece): ExtendPlan, _: &mut Self::Context) -> Self::Result {
        let spool = Arc::clone(&self.spool);
        let checkpointer = self.checkpointer.clone();
        let extend = async move {
            let frame = spool.extend_plan(piece.clone()).await?;
            let count = piece.partitions.len();
            checkpointer.send(EntryWritten(Arc::new(SpoolEntry::Planned { piece, frame }))).await.map_err(gone)?;
            Ok((count, frame))
        };
        AtomicResponse::new(Box::pin(extend.into_actor(self).map(|extended, writer, _| {
            let (count, frame) = extended?;
            writer.extended(count, frame);
            Ok(())
        })))
    }
}

/// The checkpointer has ended: only a bug ends it before the writer.
fn gone(_: MailboxError) -> Failure {
    Failure::new(FailureClass::Bug, "the checkpointer is gone")
}
