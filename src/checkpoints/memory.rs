//! A checkpoint store that lives as long as its process: for tests of everything else.
//!
//! It writes nothing, syncs nothing and survives no death; whoever keeps the value and loads again sees what was
//! committed. Each of its steps is all or nothing, like those of a real one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{FutureExt, future::BoxFuture};
use harvester_actors::{
    checkpoint::{Batch, Checkpoint, RunHeader},
    checkpoint_store::CheckpointStore,
    failure::{Failure, FailureClass},
    page::Span,
    partition::PartitionId,
    sink::{SpanIterator, SpanReader},
};

/// A [`CheckpointStore`] in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

/// What it knows.
#[derive(Clone, Debug, Default)]
struct State {
    run: Option<Checkpoint>,
    spans: BTreeMap<(PartitionId, u32), Span>,
    ended: Option<String>,
}

impl MemoryStore {
    /// A store that knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CheckpointStore for MemoryStore {
    fn load(self: Arc<Self>) -> BoxFuture<'static, Result<Option<Checkpoint>, Failure>> {
        async move { Ok(self.lock().run.clone()) }.boxed()
    }

    fn begin(self: Arc<Self>, header: RunHeader, spool_len: u64) -> BoxFuture<'static, Result<(), Failure>> {
        async move {
            *self.lock() = State { run: Some(Checkpoint::begun(header, spool_len)), ..State::default() };
            Ok(())
        }
        .boxed()
    }

    fn commit(self: Arc<Self>, batch: Batch) -> BoxFuture<'static, Result<(), Failure>> {
        async move {
            let mut state = self.lock();
            let mut after = state.clone();
            let run = after.run.as_mut().ok_or_else(no_run)?;
            if !batch.grown.is_empty() {
                run.grow(&batch.grown, batch.spool_len)?;
            }
            for span in batch.spans {
                run.apply(&span)?;
                after.spans.insert((span.partition, span.seq), span);
            }
            run.spool_len = run.spool_len.max(batch.spool_len);
            *state = after;
            Ok(())
        }
        .boxed()
    }

    fn end(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        async move {
            let mut state = self.lock();
            let ended = state.run.take().map(|run| run.header.run_id);
            let ended = ended.or_else(|| state.ended.take());
            *state = State { ended, ..State::default() };
            Ok(())
        }
        .boxed()
    }

    fn ended_run(self: Arc<Self>) -> BoxFuture<'static, Result<Option<String>, Failure>> {
        async move { Ok(self.lock().ended.clone()) }.boxed()
    }

    fn reader(self: Arc<Self>) -> Arc<dyn SpanReader> {
        self
    }
}

impl SpanReader for MemoryStore {
    fn spans(&self, partition: PartitionId) -> SpanIterator {
        let state = self.lock();
        let spans: Vec<Span> =
            state.spans.range((partition, 0)..=(partition, u32::MAX)).map(|(_, span)| span.clone()).collect();
        Box::new(spans.into_iter().map(Ok))
    }
}

/// A commit outside of a run.
fn no_run() -> Failure {
    Failure::new(FailureClass::Bug, "no run has begun in this store")
}
