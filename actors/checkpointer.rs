//! The checkpointer makes pages durable in groups: first the spool, then the store that indexes it.
//!
//! ```text
//! Writer ──PageWritten──▶ Checkpointer ──SpanCommitted──▶ Reporter
//!                              │ every 100 ms or 32 MiB: sync the spool (this is the commit), then one store batch
//! ```
//!
//! It owns the store and the durable truth about the run. One commit is under way at a time; appends go on meanwhile.
//! A failed sync or store write is final: it is never tried again, and the run ends.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use tokio::sync::oneshot;

use crate::{
    checkpoint::{Batch, Checkpoint},
    checkpoint_store::CheckpointStore,
    crash_point,
    events::Event,
    failure::{Failure, FailureClass},
    last_will::send_now,
    page::{FrameRange, Span},
    partition::Partition,
    reporter::Teller,
    sink::Sink,
    supervisor::{EndRun, RunOver},
};

/// How long a page may wait for its commit: little enough to lose, long enough to share one sync among many pages
/// (crates.md C8: 100 ms costs 4 to 12 % of the CPU, a sync per page 73 %).
pub const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// Bytes in the spool that start a commit before its time.
pub const COMMIT_BYTES: u64 = 32 * 1024 * 1024;

/// Tells that a page has its place in the spool.
#[derive(Message)]
#[rtype(result = "()")]
pub struct PageWritten(pub Arc<Span>);

/// Tells that the spool holds further partitions of the plan.
#[derive(Message)]
#[rtype(result = "()")]
pub struct PlanGrown {
    /// The new ones.
    pub partitions: Vec<Partition>,
    /// Where they lie.
    pub frame: FrameRange,
}

/// Asks for everything to be made durable. The reply means that it is.
#[derive(Message)]
#[rtype(result = "Result<(), Failure>")]
pub struct CommitAll;

/// Asks for the durable truth.
#[derive(Message)]
#[rtype(result = "Result<Checkpoint, Failure>")]
pub struct CurrentCheckpoint;

/// See the module.
pub struct Checkpointer {
    /// What is synced.
    sink: Arc<dyn Sink>,
    /// What indexes it.
    store: Arc<dyn CheckpointStore>,
    /// Who shows commits.
    teller: Teller,
    /// Who ends the run when a commit fails.
    supervisor: Recipient<EndRun>,
    /// The durable truth.
    checkpoint: Checkpoint,
    /// What the spool has and the store does not yet know.
    pending: Batch,
    /// Bytes of it.
    pending_bytes: u64,
    /// Whether a commit is under way.
    committing: bool,
    /// The failure that ended all commits.
    failed: Option<Failure>,
    /// Those who wait until everything is durable.
    waiting: Vec<oneshot::Sender<Result<(), Failure>>>,
}

impl Checkpointer {
    /// A checkpointer that goes on from `checkpoint`.
    pub fn new(
        sink: Arc<dyn Sink>,
        store: Arc<dyn CheckpointStore>,
        teller: Teller,
        supervisor: Recipient<EndRun>,
        checkpoint: Checkpoint,
    ) -> Self {
        Checkpointer {
            sink,
            store,
            teller,
            supervisor,
            checkpoint,
            pending: Batch::default(),
            pending_bytes: 0,
            committing: false,
            failed: None,
            waiting: Vec::new(),
        }
    }

    /// Begins a commit if there is something to commit and none is under way.
    fn commit(&mut self, ctx: &mut Context<Self>) {
        if self.committing || self.failed.is_some() {
            return;
        }
        if self.pending == Batch::default() {
            self.answer(&Ok(()));
            return;
        }
        self.committing = true;
        self.pending_bytes = 0;
        let batch = std::mem::take(&mut self.pending);
        let sink = Arc::clone(&self.sink);
        let store = Arc::clone(&self.store);
        let commit = async move {
            crash_point!("commit.sync.before");
            if harvester_pacing::control!("data-sync") {
                sink.sync().await?;
            }
            crash_point!("commit.sync.after");
            store.commit(batch.clone()).await?;
            crash_point!("commit.store.after");
            Ok(batch)
        };
        ctx.spawn(commit.into_actor(self).map(|committed, checkpointer, ctx| checkpointer.committed(committed, ctx)));
    }

    /// Takes a commit into account that has ended.
    fn committed(&mut self, committed: Result<Batch, Failure>, ctx: &mut Context<Self>) {
        self.committing = false;
        match committed.and_then(|batch| self.apply(&batch).map(|()| batch)) {
            Ok(batch) => {
                self.teller.tell(Event::SpanCommitted {
                    pages: batch.spans.len() as u64,
                    rows: batch.spans.iter().map(|span| span.counts.kept).sum(),
                    spool_bytes: self.checkpoint.spool_len,
                });
                if !self.waiting.is_empty() || self.pending_bytes >= COMMIT_BYTES {
                    self.commit(ctx);
                }
            }
            Err(failure) => {
                self.answer(&Err(failure.clone()));
                send_now(&self.supervisor, EndRun(failure.clone()));
                self.failed = Some(failure);
            }
        }
    }

    /// Brings the durable truth up to `batch`.
    fn apply(&mut self, batch: &Batch) -> Result<(), Failure> {
        if !batch.grown.is_empty() {
            self.checkpoint.grow(&batch.grown, batch.spool_len)?;
        }
        batch.spans.iter().try_for_each(|span| self.checkpoint.apply(span))?;
        self.checkpoint.spool_len = self.checkpoint.spool_len.max(batch.spool_len);
        Ok(())
    }

    /// Answers all who wait.
    fn answer(&mut self, result: &Result<(), Failure>) {
        for waiting in self.waiting.drain(..) {
            // Who no longer waits needs no answer.
            let _ = waiting.send(result.clone());
        }
    }
}

impl Actor for Checkpointer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(COMMIT_INTERVAL, |checkpointer, ctx| checkpointer.commit(ctx));
    }
}

impl Handler<PageWritten> for Checkpointer {
    type Result = ();

    fn handle(&mut self, PageWritten(span): PageWritten, ctx: &mut Self::Context) {
        self.teller.tell(Event::PageWritten(Arc::clone(&span)));
        self.pending_bytes += span.frame.to - span.frame.from;
        self.pending.spool_len = self.pending.spool_len.max(span.frame.to);
        self.pending.spans.push(Span::clone(&span));
        if self.pending_bytes >= COMMIT_BYTES {
            self.commit(ctx);
        }
    }
}

impl Handler<PlanGrown> for Checkpointer {
    type Result = ();

    fn handle(&mut self, PlanGrown { partitions, frame }: PlanGrown, _: &mut Self::Context) {
        self.pending.spool_len = self.pending.spool_len.max(frame.to);
        self.pending.grown.extend(partitions);
    }
}

impl Handler<CommitAll> for Checkpointer {
    type Result = ResponseFuture<Result<(), Failure>>;

    fn handle(&mut self, _: CommitAll, ctx: &mut Self::Context) -> Self::Result {
        if let Some(failure) = self.failed.clone() {
            return Box::pin(async move { Err(failure) });
        }
        let (answer, durable) = oneshot::channel();
        self.waiting.push(answer);
        self.commit(ctx);
        Box::pin(async move {
            durable.await.unwrap_or_else(|_| Err(Failure::new(FailureClass::Bug, "the checkpointer died in a commit")))
        })
    }
}

impl Handler<CurrentCheckpoint> for Checkpointer {
    type Result = Result<Checkpoint, Failure>;

    fn handle(&mut self, _: CurrentCheckpoint, _: &mut Self::Context) -> Self::Result {
        Ok(self.checkpoint.clone())
    }
}

impl Handler<RunOver> for Checkpointer {
    type Result = ();

    fn handle(&mut self, _: RunOver, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
