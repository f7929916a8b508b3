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
    checkpoint::{Checkpoint, SpoolEntry},
    checkpoint_store::CheckpointStore,
    crash_point,
    events::Event,
    failure::{Failure, FailureClass},
    last_will::send_now,
    page::Span,
    partition::{StreamId, Yield},
    reporter::EventSender,
    sink::Spool,
    supervisor::{EndRun, Shutdown},
};

/// How long a page may wait for its commit: little enough to lose, long enough to share one sync among many pages
/// (100 ms costs 4 to 12 % of the CPU, a sync per page 73 %).
pub const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// Bytes in the spool that start a commit before its time.
pub const COMMIT_BYTES: u64 = 32 * 1024 * 1024;

/// A page, or a piece of the plan, has its place in the spool.
#[derive(Message)]
#[rtype(result = "()")]
pub struct EntryWritten(pub Arc<SpoolEntry>);

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
    spool: Arc<dyn Spool>,
    /// What indexes it.
    store: Arc<dyn CheckpointStore>,
    /// Emits commits.
    events: EventSender,
    /// Ends the run when a commit fails.
    supervisor: Recipient<EndRun>,
    /// The durable truth.
    checkpoint: Checkpoint,
    /// Stream and yield of each pass, as soon as the spool has it.
    passes: Vec<(StreamId, Yield)>,
    /// What the spool has and the store does not yet know.
    pending: Vec<Arc<SpoolEntry>>,
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
    /// A checkpointer that resumes from `checkpoint`.
    pub fn new(
        spool: Arc<dyn Spool>,
        store: Arc<dyn CheckpointStore>,
        events: EventSender,
        supervisor: Recipient<EndRun>,
        checkpoint: Checkpoint,
    ) -> Self {
        let passes = checkpoint.plan.passes.iter().map(|pass| (pass.stream, pass.yields)).collect();
        Checkpointer {
            spool,
            store,
            events,
            supervisor,
            checkpoint,
            passes,
            pending: Vec::new(),
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
        if self.pending.is_empty() {
            self.answer(&Ok(()));
            return;
        }
        self.committing = true;
        self.pending_bytes = 0;
        let batch = std::mem::take(&mut self.pending);
        let spool = Arc::clone(&self.spool);
        let store = Arc::clone(&self.store);
        let commit = async move {
            crash_point!("commit.sync.before");
            if harvester_pacing::control!("data-sync") {
                spool.sync().await?;
            }
            crash_point!("commit.sync.after");
            store.commit(batch.clone()).await?;
            crash_point!("commit.store.after");
            Ok(batch)
        };
        ctx.spawn(commit.into_actor(self).map(|committed, checkpointer, ctx| checkpointer.committed(committed, ctx)));
    }

    /// Takes a commit into account that has ended.
    fn committed(&mut self, committed: Result<Vec<Arc<SpoolEntry>>, Failure>, ctx: &mut Context<Self>) {
        self.committing = false;
        let applied = committed.and_then(|batch| {
            batch.iter().try_for_each(|entry| self.checkpoint.apply(entry))?;
            Ok(batch)
        });
        match applied {
            Ok(batch) => {
                let pages = || batch.iter().filter_map(|entry| entry.page());
                self.events.emit(Event::SpanCommitted {
                    pages: pages().count() as u64,
                    rows: pages().map(|span| span.counts.kept).sum(),
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

    /// Answers all who wait.
    fn answer(&mut self, result: &Result<(), Failure>) {
        for waiting in self.waiting.drain(..) {
            // The receiver may already be dropped.
            let _ = waiting.send(result.clone());
        }
    }

    /// Emits an entry for those who show it.
    fn emit(&mut self, entry: &SpoolEntry) {
        match entry {
            SpoolEntry::Begun { .. } => {}
            SpoolEntry::Planned { piece, .. } => {
                self.passes.extend(piece.passes.iter().map(|pass| (pass.stream, pass.yields)));
                self.events.emit(Event::PlanExtended { partitions: piece.partitions.len() as u64 });
            }
            SpoolEntry::Page(Span { partition, pass, counts, children, .. }) => {
                let Some(&(stream, yields)) = self.passes.get(pass.0 as usize) else { return };
                let (partition, counts) = (*partition, *counts);
                self.events.emit(Event::PageWritten { stream, yields, partition, counts });
                if !children.is_empty() {
                    self.events.emit(Event::PlanExtended { partitions: children.len() as u64 });
                }
            }
        }
    }
}

impl Actor for Checkpointer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(COMMIT_INTERVAL, |checkpointer, ctx| checkpointer.commit(ctx));
    }
}

impl Handler<EntryWritten> for Checkpointer {
    type Result = ();

    fn handle(&mut self, EntryWritten(entry): EntryWritten, ctx: &mut Self::Context) {
        self.emit(&entry);
        self.pending_bytes += entry.frame().to - entry.frame().from;
        self.pending.push(entry);
        if self.pending_bytes >= COMMIT_BYTES {
            self.commit(ctx);
        }
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

impl Handler<Shutdown> for Checkpointer {
    type Result = ();

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
