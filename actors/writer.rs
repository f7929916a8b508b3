//! The writer gives every page its place in the spool, one at a time, and knows how far each partition has come.
//!
//! ```text
//! Fetcher ──WritePage──▶ Writer ──PageWritten──▶ Checkpointer
//! ```
//!
//! It owns the spool: nobody else appends. Its reply means *appended*, not durable; awaiting it is the back-pressure,
//! and the one page that each fetcher holds until then is the bound. A page that it already has (its fetcher died
//! between append and reply) is not appended again: the reply says where the partition really stands.

use std::{collections::HashMap, sync::Arc};

use actix::prelude::*;

use crate::{
    checkpointer::{Checkpointer, PageWritten, PlanGrown},
    crash_point,
    failure::{Failure, FailureClass},
    page::Page,
    partition::{Partition, PartitionId, Position},
    sink::Sink,
};

/// Asks for one page to be appended. The reply means that it is, and says where its partition goes on.
#[derive(Debug, Message)]
#[rtype(result = "Result<Position, Failure>")]
pub struct WritePage(pub Page);

/// Asks how far a partition has come, whoever fetched it.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Position, Failure>")]
pub struct CurrentPosition(pub PartitionId);

/// Asks for partitions to be added to the plan. The reply means that they are in the spool.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Failure>")]
pub struct GrowPlan(pub Vec<Partition>);

/// See the module.
pub struct Writer {
    /// Where pages go.
    sink: Arc<dyn Sink>,
    /// Who makes them durable.
    checkpointer: Addr<Checkpointer>,
    /// How far each partition has come that has begun.
    positions: HashMap<PartitionId, Position>,
}

impl Writer {
    /// A writer that goes on where `positions` say.
    pub fn new(
        sink: Arc<dyn Sink>,
        checkpointer: Addr<Checkpointer>,
        positions: HashMap<PartitionId, Position>,
    ) -> Self {
        Writer { sink, checkpointer, positions }
    }
}

impl Actor for Writer {
    type Context = Context<Self>;
}

impl Handler<WritePage> for Writer {
    // Atomic: the next page waits until this one has its place, so order and positions cannot be torn apart.
    type Result = AtomicResponse<Self, Result<Position, Failure>>;

    fn handle(&mut self, WritePage(page): WritePage, _: &mut Self::Context) -> Self::Result {
        let partition = page.partition;
        let here = self.positions.get(&partition).cloned().unwrap_or_default();
        if page.seq != here.seq || here.is_finished() {
            return AtomicResponse::new(Box::pin(actix::fut::ready(Ok(here))));
        }
        let sink = Arc::clone(&self.sink);
        let checkpointer = self.checkpointer.clone();
        let write = async move {
            crash_point!("writer.append.before");
            let span = sink.append(page).await?;
            crash_point!("writer.append.after");
            let position = Position { seq: span.seq + 1, next: span.next.clone() };
            checkpointer.send(PageWritten(Arc::new(span))).await.map_err(gone)?;
            Ok(position)
        };
        AtomicResponse::new(Box::pin(write.into_actor(self).map(move |position, writer, _| {
            if let Ok(position) = &position {
                writer.positions.insert(partition, position.clone());
            }
            position
        })))
    }
}

impl Handler<CurrentPosition> for Writer {
    type Result = Result<Position, Failure>;

    fn handle(&mut self, CurrentPosition(partition): CurrentPosition, _: &mut Self::Context) -> Self::Result {
        Ok(self.positions.get(&partition).cloned().unwrap_or_default())
    }
}

impl Handler<GrowPlan> for Writer {
    type Result = AtomicResponse<Self, Result<(), Failure>>;

    fn handle(&mut self, GrowPlan(partitions): GrowPlan, _: &mut Self::Context) -> Self::Result {
        let sink = Arc::clone(&self.sink);
        let checkpointer = self.checkpointer.clone();
        let grow = async move {
            let frame = sink.grow(partitions.clone()).await?;
            checkpointer.send(PlanGrown { partitions, frame }).await.map_err(gone)
        };
        AtomicResponse::new(Box::pin(grow.into_actor(self)))
    }
}

/// The checkpointer is gone: only a bug ends it before the writer.
fn gone(_: MailboxError) -> Failure {
    Failure::new(FailureClass::Bug, "the checkpointer is gone")
}
