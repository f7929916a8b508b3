//! The spool as the engine's port: a log on disk, touched on threads that may block.

use std::{path::PathBuf, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use harvester_actors::{
    checkpoint::{RunHeader, SpoolEntry},
    checkpoint_store::PageIndex,
    failure::{Failure, FailureClass},
    page::{FrameRange, Page, Reject, Span},
    partition::{Partition, PartitionId, PlanPiece},
    sink::{Cancel, KeySet, KeyVisitor, Recovered, Spool},
};
use tokio::task::spawn_blocking;

use super::{keys, spool::SpoolLog};

/// A [`Spool`] in a directory.
#[derive(Debug)]
pub struct FileSpool {
    /// The log.
    pub(super) log: SpoolLog,
}

impl FileSpool {
    /// The spool in this directory, which need not exist yet; touches nothing.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        FileSpool { log: SpoolLog::new(dir.into()) }
    }
}

/// Does `work` on a thread that may block.
pub(super) fn blocking<S: Send + Sync + 'static, T: Send + 'static>(
    state: Arc<S>,
    work: impl FnOnce(&S) -> Result<T, Failure> + Send + 'static,
) -> BoxFuture<'static, Result<T, Failure>> {
    async move {
        // A panic's own text stays with the panic hook: it could quote anything.
        let panicked = |_| Err(Failure::new(FailureClass::Bug, "writing files panicked"));
        spawn_blocking(move || work(&state)).await.unwrap_or_else(panicked)
    }
    .boxed()
}

impl Spool for FileSpool {
    fn recover(
        self: Arc<Self>,
        from_offset: u64,
        mut visit: Box<dyn FnMut(SpoolEntry) -> Result<(), Failure> + Send>,
    ) -> BoxFuture<'static, Result<Option<Recovered>, Failure>> {
        blocking(self, move |spool| spool.log.recover(from_offset, &mut *visit))
    }

    fn begin(self: Arc<Self>, header: RunHeader) -> BoxFuture<'static, Result<FrameRange, Failure>> {
        blocking(self, move |spool| spool.log.begin(&header))
    }

    fn extend_plan(self: Arc<Self>, piece: PlanPiece) -> BoxFuture<'static, Result<FrameRange, Failure>> {
        blocking(self, move |spool| spool.log.extend_plan(&piece))
    }

    fn commit_plan(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, |spool| spool.log.commit_plan())
    }

    fn append(self: Arc<Self>, page: Page, first_child: PartitionId) -> BoxFuture<'static, Result<Span, Failure>> {
        blocking(self, move |spool| spool.log.append(page, first_child))
    }

    fn sync(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, |spool| spool.log.sync())
    }

    fn partitions(self: Arc<Self>, frame: FrameRange) -> BoxFuture<'static, Result<Vec<Partition>, Failure>> {
        blocking(self, move |spool| spool.log.partitions(frame))
    }

    fn rejects(self: Arc<Self>, frame: FrameRange) -> BoxFuture<'static, Result<Vec<Reject>, Failure>> {
        blocking(self, move |spool| spool.log.rejects(frame))
    }

    fn each_key(
        self: Arc<Self>,
        pages: Arc<dyn PageIndex>,
        sets: Vec<KeySet>,
        cancel: Cancel,
        visit: KeyVisitor,
    ) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, move |spool| keys::each_key(&spool.log, &*pages, &sets, &cancel, visit))
    }

    fn discard(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, |spool| spool.log.discard())
    }
}
