//! The port to the checkpoint store: an index of the spool that is cheap to open.

use std::sync::Arc;

use futures_core::future::BoxFuture;

use crate::{
    checkpoint::{Checkpoint, RunHeader, SpoolEntry},
    failure::Failure,
    page::PageRef,
    partition::PassId,
};

/// Keeps what the spool's entries say, so that a resume need not read all of them.
///
/// The spool decides: whatever this store says about bytes that the spool does not have is wrong, and a store that
/// is empty, damaged or late is rebuilt from the spool. Only one process has it open.
pub trait CheckpointStore: Send + Sync {
    /// Reads the unfinished run. Called once, first. `None` when there is none (never begun, or complete).
    ///
    /// # Errors
    /// `Damaged` when what is stored does not fit its checksum or contradicts itself, which a rebuild cures;
    /// `Damaged` with `next` set when it was written by a newer program, which it does not; `Local` otherwise.
    fn load(self: Arc<Self>) -> BoxFuture<'static, Result<Option<Checkpoint>, Failure>>;

    /// Forgets everything about runs and begins this one, whose plan follows. Once it returns, that is durable.
    fn begin(self: Arc<Self>, header: RunHeader, spool_len: u64) -> BoxFuture<'static, Result<(), Failure>>;

    /// Applies entries in their order, all of them or none. Once it returns, they survive a power cut.
    ///
    /// Called only for entries that the spool has made durable before.
    fn commit(self: Arc<Self>, entries: Vec<Arc<SpoolEntry>>) -> BoxFuture<'static, Result<(), Failure>>;

    /// Records that the run is published; from here on there is no unfinished run. Once it returns, that is durable.
    fn complete_run(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>>;

    /// The id of the last run that [`complete_run`](CheckpointStore::complete_run) recorded, if this store remembers one: a
    /// spool of that run is a left-over, not work to do. Called after `load`.
    fn last_completed_run(self: Arc<Self>) -> BoxFuture<'static, Result<Option<String>, Failure>>;

    /// Reads what is known of committed pages while their rows are read.
    fn pages(self: Arc<Self>) -> Arc<dyn PageIndex>;
}

/// The committed pages of a pass, in the order of the spool.
pub trait PageIndex: Send + Sync {
    /// An iterator that holds a bounded number of them in memory.
    fn pages_of(&self, pass: PassId) -> PageIterator;
}

/// What [`PageIndex::pages_of`] gives.
pub type PageIterator = Box<dyn Iterator<Item = Result<PageRef, Failure>> + Send>;
