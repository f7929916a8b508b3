//! What the engine tells: one enum of facts. Listeners turn each into a log line, a bar, a status file.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use crate::{
    failure::FailureClass,
    page::{PageCounts, Span},
    partition::{PartitionId, Plan, SourceIdentity, StreamId},
    report::Report,
};

/// One fact, told in the order things happened. Carries counts and ids, never rows and never secrets.
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
    /// The plan is ready and durable (or was read from the checkpoint); what is already done is said per stream.
    PlanMade {
        /// The run's id.
        run_id: String,
        /// The plan.
        plan: Arc<Plan>,
        /// What earlier starts of this run have committed, per partition.
        committed: Vec<Committed>,
    },
    /// The plan has gained partitions.
    PlanGrown(Arc<Plan>),
    /// A page is in the spool, not yet durable.
    PageWritten(Arc<Span>),
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
        partition: PartitionId,
        /// What kind of failure.
        class: FailureClass,
        /// What happened.
        message: String,
        /// Which attempt at this page failed, counted from 1.
        attempt: u32,
        /// How long it waits before the next attempt.
        delay: Duration,
    },
    /// A partition is given up; the run continues without it.
    PartitionLost {
        /// Which.
        partition: PartitionId,
        /// Whether it was merely optional (`["*"]`) and is left out.
        left_out: bool,
        /// What kind of failure.
        class: FailureClass,
        /// What happened.
        message: String,
    },
    /// A fetcher died of a panic; its partition was handed back.
    FetcherDied {
        /// What it was working on.
        partition: Option<PartitionId>,
    },
    /// A stream's numbers were compared with the server's.
    Reconciled {
        /// Which stream.
        stream: StreamId,
        /// Rows that came into being while the run went on.
        appeared: u64,
        /// Rows that went away.
        vanished: u64,
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

/// What earlier starts of a run have committed of one partition.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// Which.
    pub partition: PartitionId,
    /// Pages.
    pub pages: u64,
    /// Their numbers together.
    pub counts: PageCounts,
    /// Whether its end is reached.
    pub is_finished: bool,
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

/// Who hears the engine's facts. Called on the reporter's arbiter: must not block for long.
pub trait Listener: Send + Sync {
    /// Hears one fact.
    fn hear(&self, event: &Event);
}
