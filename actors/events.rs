//! What the engine emits: one enum of facts. Listeners turn each into a log line, a bar, a status file.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use crate::{
    checkpoint::PassTotals,
    failure::FailureClass,
    follow::Reconciled,
    page::PageCounts,
    partition::{LeftOut, Partition, PartitionId, SourceIdentity, Stream, StreamId, Yield},
    report::Report,
};

/// One fact, emitted in the order things happened. Carries counts and ids, never rows and never secrets.
#[derive(Clone, Debug)]
pub enum Event {
    /// The checkpoint has been read.
    Recovered {
        /// The run that goes on; `None` when a new one begins.
        resumed_run: Option<String>,
        /// Bytes of a torn tail cut off the spool.
        cut_bytes: u64,
        /// The store was damaged, empty or behind and has been rebuilt from the spool; why.
        rebuilt: Option<String>,
    },
    /// The source did not answer a question that comes before or between all fetching, and is asked again.
    SourceWaitedFor {
        /// What kind of failure.
        class: FailureClass,
        /// What happened.
        message: String,
        /// How often it has been asked, counted from 1.
        attempts: u32,
        /// How long until it is asked again.
        delay: Duration,
        /// How long until nobody asks any more and the run ends.
        patience_left: Duration,
    },
    /// The source has answered.
    SourceIdentified(SourceIdentity),
    /// The plan is complete and durable (or was read from the checkpoint).
    PlanReady {
        /// The run's id.
        run_id: String,
        /// The streams, by [`StreamId`].
        streams: Arc<[Stream]>,
        /// What `["*"]` did not reach.
        left_out: Vec<LeftOut>,
        /// How many partitions there are.
        partitions: u64,
        /// How many of them earlier starts of this run have finished.
        finished: u64,
        /// What earlier starts of this run have committed of the rows of each stream.
        committed: Vec<PassTotals>,
    },
    /// The plan has gained so many partitions.
    PlanExtended {
        /// How many.
        partitions: u64,
    },
    /// A page is in the spool, not yet durable.
    PageWritten {
        /// The stream that it is of.
        stream: StreamId,
        /// What it gives.
        yields: Yield,
        /// Whose page.
        partition: PartitionId,
        /// Its numbers.
        counts: PageCounts,
    },
    /// Everything up to these pages is durable.
    SpanCommitted {
        /// Pages of this commit.
        pages: u64,
        /// Rows of this commit.
        rows: u64,
        /// Length of the spool that is now durable.
        spool_bytes: u64,
    },
    /// All pages of a partition have been fetched.
    PartitionFinished(PartitionId),
    /// A page failed and will be asked for again.
    PartitionReturned {
        /// Whose page.
        partition: Arc<Partition>,
        /// What kind of failure.
        class: FailureClass,
        /// What happened.
        message: String,
        /// Which attempt at this page failed, counted from 1.
        attempt: u32,
        /// How long it waits before the next attempt.
        delay: Duration,
    },
    /// A partition is given up; the run goes on without it.
    PartitionFailed {
        /// Which.
        partition: Arc<Partition>,
        /// Its stream.
        stream: StreamId,
        /// Whether it was merely optional (`["*"]`) and is left out.
        left_out: bool,
        /// What kind of failure.
        class: FailureClass,
        /// What happened.
        message: String,
    },
    /// A fetcher died of a panic; its partition was returned.
    FetcherDied {
        /// What it was working on.
        partition: Option<Arc<Partition>>,
    },
    /// A stream was compared with what the server has now.
    Reconciled {
        /// Which stream.
        stream: StreamId,
        /// How it changed while the run went on.
        reconciled: Reconciled,
    },
    /// About every second: how fast it goes and what it waits for.
    Pace(Pace),
    /// Files are being prepared.
    Finishing {
        /// Which stream is being written.
        stream: StreamId,
    },
    /// A stop was asked for; in-flight pages are being finished and committed.
    Stopping {
        /// Why, as a fragment: `SIGINT`, `--max-seconds`.
        reason: String,
    },
    /// The last event.
    RunEnded(Arc<Report>),
}

/// How fast it goes, and what it waits for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pace {
    /// Requests sent so far by this process.
    pub requests: u64,
    /// The job's limit.
    pub requests_per_second_limit: u32,
    /// The most requests sent within any one second so far.
    pub peak_requests_per_second: u32,
    /// Requests that are being answered now.
    pub in_flight: u32,
    /// How many the concurrency controller allows now.
    pub in_flight_limit: u32,
    /// What everything waits for, if everything waits.
    pub waiting: Option<Waiting>,
}

/// A wait that has a reason and, mostly, an end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Waiting {
    /// Why, as a fragment for people: `Retry-After`, `the source does not answer`.
    pub reason: String,
    /// How long it will still take; `None` where nobody knows.
    #[serde(serialize_with = "seconds")]
    pub remaining: Option<Duration>,
}

/// Writes a duration as seconds.
fn seconds<S: serde::Serializer>(remaining: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    remaining.map(|remaining| remaining.as_secs_f64()).serialize(serializer)
}

/// Receives the engine's facts. Called on the reporter's arbiter: must not block for long.
pub trait Listener: Send + Sync {
    /// Receives one fact.
    fn on_event(&self, event: &Event);
}
