//! The port to where rows go: a spool that takes pages in arrival order, and files that appear when all is there.

use std::sync::Arc;

use futures_core::future::BoxFuture;

use crate::{
    checkpoint::RunHeader,
    failure::Failure,
    page::{FrameRange, Page, Reject, Span},
    partition::{Partition, Plan, StreamId},
    report::Manifest,
};

/// Where rows go.
///
/// `append` and `sync` are separate: an append promises nothing but its place, a sync promises that everything
/// appended before it was called survives a power cut. A failed sync is final: it is never called again.
/// All failures are `Local`, or `Damaged` where stored bytes are wrong.
pub trait Sink: Send + Sync {
    /// Reads the entries of the spool that begin at byte `behind` or later, in order, and hands each to `visit`; cuts
    /// a torn tail; leaves the spool ready for `append`. What it hands out is durable by then: the store may know it.
    ///
    /// Called once, before anything else. Returns `None` when there is no spool. `behind` is how far the checkpoint
    /// store knows the spool; 0 reads all of it. `Damaged` when an entry before `behind` is missing, or when bytes
    /// are wrong that were durable before a later valid entry was written; wrong bytes behind the last sync are a torn
    /// tail, also when a power cut kept younger entries and lost older ones.
    fn recover(
        self: Arc<Self>,
        behind: u64,
        visit: Box<dyn FnMut(SpoolEntry) -> Result<(), Failure> + Send>,
    ) -> BoxFuture<'static, Result<Option<Recovered>, Failure>>;

    /// Starts the spool of a new run; once it returns, the header is durable, and a spool of an earlier run is gone.
    fn begin(self: Arc<Self>, header: RunHeader) -> BoxFuture<'static, Result<FrameRange, Failure>>;

    /// Appends one page. Once it returns, the page has a place, and nothing more.
    fn append(self: Arc<Self>, page: Page) -> BoxFuture<'static, Result<Span, Failure>>;

    /// Appends partitions that the plan gained while it ran.
    fn grow(self: Arc<Self>, partitions: Vec<Partition>) -> BoxFuture<'static, Result<FrameRange, Failure>>;

    /// Makes everything appended so far durable. Appends may go on meanwhile.
    fn sync(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>>;

    /// Compares the keys of a stream's rows with those of its listing, both read from the spool.
    fn compare(
        self: Arc<Self>,
        stream: StreamId,
        plan: Arc<Plan>,
        spans: Arc<dyn SpanReader>,
    ) -> BoxFuture<'static, Result<Comparison, Failure>>;

    /// Writes one stream in its order under a name that is not its final one, hashed and durable.
    ///
    /// May be repeated after a crash; the result is the same bytes.
    fn prepare(
        self: Arc<Self>,
        stream: StreamId,
        plan: Arc<Plan>,
        spans: Arc<dyn SpanReader>,
    ) -> BoxFuture<'static, Result<PreparedStream, Failure>>;

    /// Gives all prepared files their final names, and the manifest last; `rejects` become `rejects.ndjson`.
    ///
    /// May be repeated after a crash at any point of it. Refuses with `Local`, touching nothing, when a file that is
    /// not of this job stands under one of the names.
    fn publish(self: Arc<Self>, manifest: Manifest, rejects: Vec<Reject>) -> BoxFuture<'static, Result<(), Failure>>;

    /// Forgets the spool of a run that is published and recorded as complete.
    fn discard(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>>;
}

/// The spans of one partition, in the order of their numbers. Read while files are prepared.
pub trait SpanReader: Send + Sync {
    /// An iterator that holds a bounded number of spans in memory.
    fn spans(&self, partition: crate::partition::PartitionId) -> SpanIterator;
}

/// What [`SpanReader::spans`] gives.
pub type SpanIterator = Box<dyn Iterator<Item = Result<Span, Failure>> + Send>;

/// One entry of the spool.
#[derive(Clone, Debug, PartialEq)]
pub enum SpoolEntry {
    /// The first one: what the run is.
    Begun {
        /// Job, source and plan.
        header: RunHeader,
        /// Where it lies.
        frame: FrameRange,
    },
    /// A page.
    Page(Span),
    /// Partitions the plan gained.
    Grown {
        /// The new ones.
        partitions: Vec<Partition>,
        /// Where the entry lies.
        frame: FrameRange,
    },
}

/// What a recovery found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Recovered {
    /// Length of the spool after the cut.
    pub len: u64,
    /// Bytes of the torn tail that was cut off.
    pub cut_bytes: u64,
}

/// The difference between what was fetched and what the server lists.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Comparison {
    /// Keys that the newest listing has and that were not fetched, in the order of their bytes.
    pub missing: Vec<String>,
    /// How many keys the newest listing has.
    pub listed: u64,
    /// How many of the missing ones an earlier listing had as well: they have been asked for before, and are listed again.
    pub relisted: u64,
    /// How many rows were fetched before the newest listing and are not in it.
    pub vanished: u64,
    /// The first of these keys, at most [`VANISHED_KEYS_MAX`].
    pub vanished_keys: Vec<String>,
    /// How many of these came again since, when they were asked for by their keys: the listing was not the truth.
    pub returned: u64,
    /// How many rows were rejected that do not say which they are: so many of the missing ones are known after all.
    pub nameless: u64,
}

/// Keys of vanished rows that are looked at again: enough to find out a listing that left rows out.
pub const VANISHED_KEYS_MAX: usize = 600;

/// One file that only lacks its final name.
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
