//! The port to the checkpoint store: an index of the spool that is cheap to open.

use std::sync::Arc;

use futures_core::future::BoxFuture;

use crate::{
    checkpoint::{Batch, Checkpoint, RunHeader},
    failure::Failure,
    sink::SpanReader,
};

/// Keeps what the spool's entries say, so that a resume need not read all of them.
///
/// The spool decides: whatever this store says about bytes that the spool does not have is wrong, and a store that
/// is empty, damaged or behind is rebuilt from the spool. Only one process has it open.
pub trait CheckpointStore: Send + Sync {
    /// Reads the unfinished run. Called once, first. `None` when there is none (never begun, or ended).
    ///
    /// # Errors
    /// `Damaged` when what is stored does not fit its checksum or contradicts itself, which a rebuild cures;
    /// `Damaged` with `next` set when it was written by a newer program, which it does not; `Local` otherwise.
    fn load(self: Arc<Self>) -> BoxFuture<'static, Result<Option<Checkpoint>, Failure>>;

    /// Forgets everything about runs and begins this one. Once it returns, that is durable.
    fn begin(self: Arc<Self>, header: RunHeader, spool_len: u64) -> BoxFuture<'static, Result<(), Failure>>;

    /// Applies one batch, all of it or nothing. Once it returns, the batch survives a power cut.
    ///
    /// Called only for pages that the spool has made durable before.
    fn commit(self: Arc<Self>, batch: Batch) -> BoxFuture<'static, Result<(), Failure>>;

    /// Records that the run is published; from here on there is no unfinished run. Once it returns, that is durable.
    fn end(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>>;

    /// The id of the last run that [`end`](CheckpointStore::end) recorded, if this store remembers one: a spool of that
    /// run is a left-over, not work to do. Called after `load`.
    fn ended_run(self: Arc<Self>) -> BoxFuture<'static, Result<Option<String>, Failure>>;

    /// Reads the spans of committed pages while files are prepared.
    fn reader(self: Arc<Self>) -> Arc<dyn SpanReader>;
}
