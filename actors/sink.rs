//! The ports to where rows go: a spool that takes pages in arrival order, and a target where all of them appear at the end.

use std::sync::Arc;

use futures_core::future::BoxFuture;

use crate::{
    checkpoint::{PassTotals, RunHeader, SpoolEntry},
    checkpoint_store::PageIndex,
    failure::Failure,
    page::{FrameRange, Page, Reject, Span},
    partition::{Partition, PartitionId, PassId, PlanPiece, Stream},
    report::Manifest,
};

/// Where pages are kept until all are there: one append-only log per run, which decides what has been fetched.
///
/// `append` and `sync` are separate: an append promises nothing but its place, a sync promises that everything
/// appended before it was called survives a power cut. A failed sync is final: it is never called again.
/// All failures are `Local`, or `Damaged` where stored bytes are wrong.
pub trait Spool: Send + Sync {
    /// Reads the entries that begin at byte `from_offset` or later, in order, and hands each to `visit`; cuts
    /// a torn tail; leaves the spool ready for `append`. What it hands out is durable by then: the store may know it.
    ///
    /// Called first of all, and again once a plan has been committed. Returns `None` when there is no spool. `from_offset` is how far the checkpoint
    /// store knows the spool; 0 reads all of it. `Damaged` when an entry before `from_offset` is missing, or when bytes
    /// are wrong that were durable before a later valid entry was written; wrong bytes after the last sync are a torn
    /// tail, also when a power cut kept younger entries and lost older ones.
    fn recover(
        self: Arc<Self>,
        from_offset: u64,
        visit: Box<dyn FnMut(SpoolEntry) -> Result<(), Failure> + Send>,
    ) -> BoxFuture<'static, Result<Option<Recovered>, Failure>>;

    /// Starts the spool of a new run, whose plan is appended next. It has no name yet: nobody finds it after a death.
    fn begin(self: Arc<Self>, header: RunHeader) -> BoxFuture<'static, Result<FrameRange, Failure>>;

    /// Appends a piece of the plan.
    fn extend_plan(self: Arc<Self>, piece: PlanPiece) -> BoxFuture<'static, Result<FrameRange, Failure>>;

    /// Gives the spool its name, now that the plan is complete; once it returns, header and plan are durable, and a spool
    /// of an earlier run is gone.
    fn commit_plan(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>>;

    /// Appends one page; the partitions that it brings get places from `first_child` on. Once it returns, the page has a
    /// place, and nothing more.
    fn append(self: Arc<Self>, page: Page, first_child: PartitionId) -> BoxFuture<'static, Result<Span, Failure>>;

    /// Makes everything appended so far durable. Appends may go on meanwhile.
    fn sync(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>>;

    /// Reads the partitions that an entry holds: a piece of the plan, or the children of a page.
    fn partitions(self: Arc<Self>, frame: FrameRange) -> BoxFuture<'static, Result<Vec<Partition>, Failure>>;

    /// Reads what could not be taken of a page.
    fn rejects(self: Arc<Self>, frame: FrameRange) -> BoxFuture<'static, Result<Vec<Reject>, Failure>>;

    /// Hands every key of `sets` to `visit`, in the order of their bytes, each once, with the sets that have it. Ends soon
    /// with an error once `cancel` says so.
    fn each_key(
        self: Arc<Self>,
        pages: Arc<dyn PageIndex>,
        sets: Vec<KeySet>,
        cancel: Cancel,
        visit: KeyVisitor,
    ) -> BoxFuture<'static, Result<(), Failure>>;

    /// Forgets the spool of a run that is published and recorded as complete.
    fn discard(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>>;
}

/// The keys of some passes, those of rejected rows included where they could be read.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeySet(pub Vec<PassId>);

/// Which of the sets of [`Spool::each_key`] have a key: bit 0 stands for the first of them.
pub type KeyMask = u8;

/// Takes a key with the sets that have it.
pub type KeyVisitor = Box<dyn FnMut(&[u8], KeyMask) + Send>;

/// Where the rows of finished streams go.
///
/// All failures are `Local`, or `Damaged` where stored bytes are wrong.
pub trait Target: Send + Sync {
    /// Looks whether what these streams will need is free, before the first row is asked for.
    fn check(self: Arc<Self>, run_id: String, streams: Vec<String>) -> BoxFuture<'static, Result<(), Failure>>;

    /// Takes the target for this run, as far as that is possible before anything is written. Called at every start.
    fn claim(self: Arc<Self>, run_id: String) -> BoxFuture<'static, Result<(), Failure>>;

    /// Writes one stream in its order in a form that is not final, hashed and durable.
    ///
    /// May be repeated after a crash; the result is the same bytes. Ends soon with an error once `cancel` says so.
    fn prepare(self: Arc<Self>, work: Prepare) -> BoxFuture<'static, Result<PreparedStream, Failure>>;

    /// Makes all prepared streams final, and the manifest last; `rejects` become `rejects.ndjson`.
    ///
    /// May be repeated after a crash at any point of it. Refuses with `Local`, touching nothing, when a file that is
    /// not of this job has one of the names.
    fn publish(self: Arc<Self>, manifest: Manifest, rejects: Vec<Reject>) -> BoxFuture<'static, Result<(), Failure>>;

    /// Lets go of the target, now that the run is over.
    fn release(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>>;
}

/// What [`Target::prepare`] is to do.
pub struct Prepare {
    /// The run.
    pub run_id: String,
    /// The stream.
    pub stream: Stream,
    /// The passes that give its rows.
    pub passes: Vec<PassId>,
    /// What they gave together.
    pub totals: PassTotals,
    /// Where their pages are.
    pub pages: Arc<dyn PageIndex>,
    /// Says when to give up.
    pub cancel: Cancel,
}

/// Tells work on a blocking thread that nobody waits for it any more. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<std::sync::atomic::AtomicBool>);

impl Cancel {
    /// Asks the work to end.
    pub fn cancel(&self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Ends the work with an error once it has been asked to end.
    ///
    /// # Errors
    /// `Local`; nobody sees it.
    pub fn check(&self) -> Result<(), Failure> {
        if self.0.load(std::sync::atomic::Ordering::Relaxed) && harvester_pacing::control!("cancel") {
            Err(Failure::local("cancelled"))
        } else {
            Ok(())
        }
    }
}

/// What a recovery found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Recovered {
    /// Length of the spool after the cut.
    pub len: u64,
    /// Bytes of the torn tail that was cut off.
    pub cut_bytes: u64,
}

/// One stream that only lacks its final form.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PreparedStream {
    /// Final name relative to the sink's directory.
    pub file: String,
    /// Lines.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 as lower-case hex.
    pub sha256: String,
    /// Rows dropped because another row had their key.
    pub duplicates: u64,
    /// The latest time at which a row says that it was changed, local to the server and without a zone; `None` where none
    /// says it, and for streams without a watermark, where nobody looks.
    pub newest: Option<String>,
}
