//! The planner owns the leases: which partition is whose, which waits, which has failed, and when all are done.
//!
//! ```text
//! Fetcher ──NextPartition──▶ Planner ──Lease──▶ Fetcher
//!    └──PageArrived, PartitionFinished, PartitionReturned──▶ Planner ──EndRun──▶ Supervisor
//!                       Writer ──PlanExtended──▶ Planner
//! ```
//!
//! It decides what becomes of a page that failed ([`decide_retry`], pure): again and when, smaller, given up, or the end of
//! the run. It knows nothing of rows, and not how far a partition has come: the writer knows that. It holds the partitions
//! that are leased, waiting, or about to be leased; the others are in the spool, and of them it knows where.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use actix::prelude::*;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    checkpoint::Checkpoint,
    events::Event,
    failure::{Failure, FailureClass},
    last_will::send_now,
    partition::{Partition, PartitionId, Pass, PassId, StreamId},
    plan::{PartitionSet, PlanChunk},
    reporter::EventSender,
    retry::{RetryDecision, RetryPolicy, RetryState, SourceState, decide_retry},
    sink::Spool,
    source::Source,
    supervisor::EndRun,
};

/// Deaths of fetchers over one partition before the run ends as a bug.
pub const DEATHS_MAX: u32 = 3;

/// Ready partitions below which the next ones are read: a fetcher then rarely waits for the disk.
const READY_MIN: usize = 128;

/// Names one fetcher of this process.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FetcherId(pub u32);

/// Asks for work. The reply comes when there is some; `None` means that there will be none.
#[derive(Debug, Message)]
#[rtype(result = "Option<Lease>")]
pub struct NextPartition(pub FetcherId);

/// One partition, for one fetcher, until it says how that ended.
#[derive(Clone, Debug)]
pub struct Lease {
    /// What to fetch.
    pub partition: Arc<Partition>,
    /// How often its next page is to be halved, where that follows from a failure; else its position says it.
    pub halvings: Option<u32>,
}

/// A page of a leased partition has come and has its place.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PageArrived {
    /// Whose page.
    pub partition: PartitionId,
    /// When it was asked for.
    pub asked_at: Instant,
}

/// A leased partition has reached its end.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PartitionFinished(pub PartitionId);

/// Hands a partition back. `failure` is `None` when its fetcher leaves because the run stops.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PartitionReturned {
    /// Which.
    pub partition: PartitionId,
    /// How its last page failed.
    pub failure: Option<Failure>,
    /// Whether nothing of it has been written in any start of the run.
    pub untouched: bool,
    /// How often the page that failed was halved.
    pub halvings: u32,
}

/// A fetcher is dead. The reply is what it held, and whether another may be spawned.
#[derive(Debug, Message)]
#[rtype(result = "ReclaimedLease")]
pub struct FetcherDied(pub FetcherId);

/// What the death of a fetcher means.
#[derive(Debug, MessageResponse)]
pub struct ReclaimedLease {
    /// What it held.
    pub partition: Option<PartitionId>,
    /// The run's end, if this partition has killed too many.
    pub end: Option<Failure>,
}

/// Asks for no further leases to be given: everybody who asks is told that there is no work.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StopLeasing;

/// The plan has gained partitions.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PlanExtended(pub PlanChunk);

/// A further pass of a stream may be fetched; its partitions follow.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct PassAdded {
    /// The stream that it is of.
    pub stream: StreamId,
}

/// Asks what became of the partitions that did not finish.
#[derive(Debug, Message)]
#[rtype(result = "PartitionOutcomes")]
pub struct CurrentOutcomes;

/// What became of the partitions that did not finish.
#[derive(Clone, Debug, Default, MessageResponse)]
pub struct PartitionOutcomes {
    /// Given up for good, with the reason.
    pub failed: BTreeMap<PartitionId, PartitionOutcome>,
    /// Optional ones that the server does not offer to this user.
    pub left_out: BTreeMap<PartitionId, PartitionOutcome>,
    /// Given up for now: a later start may succeed.
    pub unavailable: BTreeMap<PartitionId, PartitionOutcome>,
    /// How many are neither finished nor given up.
    pub open: usize,
}

/// What became of one partition.
#[derive(Clone, Debug)]
pub struct PartitionOutcome {
    /// Which.
    pub partition: Arc<Partition>,
    /// Why.
    pub failure: Failure,
}

/// What the planner works with.
pub struct PlannerParts {
    /// Where partitions are read.
    pub spool: Arc<dyn Spool>,
    /// Knows when the source last answered anything.
    pub source: Arc<dyn Source>,
    /// How long failing pages are asked for again.
    pub policy: RetryPolicy,
    /// Emits what becomes of partitions.
    pub events: EventSender,
    /// Ends the run.
    pub supervisor: Recipient<EndRun>,
}

/// See the module.
pub struct Planner {
    /// What it works with.
    parts: PlannerParts,
    /// By pass, its stream and whether partitions of it may be left out. Grows with the plan.
    streams: Vec<(StreamId, bool)>,
    /// Where the partitions are that have not been read, in order.
    unread: VecDeque<PlanChunk>,
    /// Whether some are being read.
    reading: bool,
    /// Those that were finished at the start.
    finished: PartitionSet,
    /// Ready to be leased, in plan order.
    ready: BTreeMap<PartitionId, Arc<Partition>>,
    /// Waiting for their time.
    waiting: usize,
    /// Leased.
    leased: HashMap<PartitionId, (FetcherId, Arc<Partition>)>,
    /// The failures of pages that have not come since.
    retries: HashMap<PartitionId, RetryState>,
    /// How many fetchers each partition has killed.
    deaths: HashMap<PartitionId, u32>,
    /// Those who wait for work.
    waiters: VecDeque<(FetcherId, oneshot::Sender<Option<Lease>>)>,
    /// What became of those that did not finish.
    outcomes: PartitionOutcomes,
    /// When a page last came.
    last_page: Instant,
    /// When the latest of the pages that came was asked for.
    last_asked: Instant,
    /// Whether no more leases are given.
    stopped: bool,
}

impl Planner {
    /// A planner for what is left of a plan.
    pub fn new(parts: PlannerParts, checkpoint: &Checkpoint) -> Self {
        let plan = &checkpoint.plan;
        // What follows from rows that came is not optional any more.
        let is_optional = |id: PassId, pass: &Pass| {
            plan.stream(pass.stream).optional
                && plan.passes_of(pass.stream).next().is_some_and(|(first, _)| first == id)
        };
        let is_done = |chunk: &PlanChunk| {
            (chunk.first.0..chunk.first.0 + chunk.count)
                .all(|id| checkpoint.positions.finished.contains(PartitionId(id)))
        };
        Planner {
            parts,
            streams: (0..)
                .map(PassId)
                .zip(&plan.passes)
                .map(|(id, pass)| (pass.stream, is_optional(id, pass)))
                .collect(),
            unread: plan.chunks.iter().filter(|chunk| !is_done(chunk)).copied().collect(),
            reading: false,
            finished: checkpoint.positions.finished.clone(),
            ready: BTreeMap::new(),
            waiting: 0,
            leased: HashMap::new(),
            retries: HashMap::new(),
            deaths: HashMap::new(),
            waiters: VecDeque::new(),
            outcomes: PartitionOutcomes::default(),
            last_page: Instant::now(),
            last_asked: Instant::now(),
            stopped: false,
        }
    }

    /// Whether nothing is left to be leased, now or later.
    fn is_done(&self) -> bool {
        self.ready.is_empty() && self.waiting == 0 && self.leased.is_empty() && self.unread.is_empty() && !self.reading
    }

    /// Gives work to those who wait for it, or tells them that there is none; reads on where little is ready.
    fn serve(&mut self, ctx: &mut Context<Self>) {
        while !self.waiters.is_empty() {
            if self.stopped || self.is_done() {
                for (_, waiter) in self.waiters.drain(..) {
                    // The receiver may already be dropped.
                    let _ = waiter.send(None);
                }
                return;
            }
            let Some((id, partition)) = self.ready.first_key_value() else { break };
            let (id, partition) = (*id, Arc::clone(partition));
            let Some((fetcher, waiter)) = self.waiters.pop_front() else { break };
            let halvings = self.retries.get(&id).map(|state| state.size.halvings);
            if waiter.send(Some(Lease { partition: Arc::clone(&partition), halvings })).is_ok() {
                self.ready.remove(&id);
                self.leased.insert(id, (fetcher, partition));
            }
        }
        self.read_on(ctx);
    }

    /// Reads the next partitions from the spool.
    fn read_on(&mut self, ctx: &mut Context<Self>) {
        if self.reading || self.stopped || self.ready.len() >= READY_MIN {
            return;
        }
        let Some(chunk) = self.unread.pop_front() else { return };
        self.reading = true;
        let read = Arc::clone(&self.parts.spool).partitions(chunk.frame).into_actor(self);
        ctx.spawn(read.map(move |read, planner, ctx| {
            planner.reading = false;
            match read {
                Ok(partitions) => {
                    let left = partitions.into_iter().filter(|partition| !planner.finished.contains(partition.id));
                    planner.ready.extend(left.map(|partition| (partition.id, Arc::new(partition))));
                }
                Err(failure) => {
                    planner.unread.push_front(chunk);
                    planner.end_run(failure);
                }
            }
            planner.serve(ctx);
        }));
    }

    /// Leases nothing more and ends the run.
    fn end_run(&mut self, failure: Failure) {
        self.stopped = true;
        send_now(&self.parts.supervisor, EndRun(failure));
    }

    /// Decides about a partition that failed, and emits what was decided.
    fn handle_failure(&mut self, returned: &PartitionReturned, failure: Failure, ctx: &mut Context<Self>) {
        let id = returned.partition;
        let Some((_, partition)) = self.leased.remove(&id) else { return };
        let (stream, optional) = self.streams.get(partition.pass.0 as usize).copied().unwrap_or_default();
        let seed = self.parts.policy.seed ^ (u64::from(id.0) << 32);
        let state = self.retries.entry(id).or_insert_with(|| RetryState::new(seed));
        state.size.halvings = returned.halvings;
        let last_answer = self.parts.source.last_answer().map_or(self.last_page, |answer| answer.max(self.last_page));
        let source = SourceState { now: Instant::now(), last_asked: self.last_asked, silence: last_answer.elapsed() };
        let class = failure.class;
        let message = failure.message.clone();
        let give_up = |planner: &mut Self, failure: Failure, left_out: bool| {
            planner.retries.remove(&id);
            let event = Event::PartitionFailed {
                partition: Arc::clone(&partition),
                stream,
                left_out,
                class,
                message: message.clone(),
            };
            planner.parts.events.emit(event);
            PartitionOutcome { partition: Arc::clone(&partition), failure }
        };
        match decide_retry(state, failure, source, optional && returned.untouched, self.parts.policy) {
            RetryDecision::Retry(delay) => {
                let attempt = state.attempts();
                let partition_of_event = Arc::clone(&partition);
                let partition_returned =
                    Event::PartitionReturned { partition: partition_of_event, class, message, attempt, delay };
                self.parts.events.emit(partition_returned);
                self.waiting += 1;
                ctx.run_later(delay, move |planner, ctx| {
                    planner.waiting -= 1;
                    planner.ready.insert(id, partition);
                    planner.serve(ctx);
                });
            }
            RetryDecision::Failed(failure) => {
                let outcome = give_up(self, failure, false);
                self.outcomes.failed.insert(id, outcome);
            }
            RetryDecision::LeftOut(failure) => {
                let outcome = give_up(self, failure, true);
                self.outcomes.left_out.insert(id, outcome);
            }
            RetryDecision::Unavailable(failure) => {
                let outcome = give_up(self, failure, false);
                self.outcomes.unavailable.insert(id, outcome);
            }
            RetryDecision::EndRun(failure) => {
                self.ready.insert(id, partition);
                self.end_run(failure);
            }
        }
    }
}

impl Actor for Planner {
    type Context = Context<Self>;
}

impl Handler<NextPartition> for Planner {
    type Result = ResponseFuture<Option<Lease>>;

    fn handle(&mut self, NextPartition(fetcher): NextPartition, ctx: &mut Self::Context) -> Self::Result {
        let (waiter, lease) = oneshot::channel();
        self.waiters.push_back((fetcher, waiter));
        self.serve(ctx);
        Box::pin(async move { lease.await.unwrap_or(None) })
    }
}

impl Handler<PageArrived> for Planner {
    type Result = ();

    fn handle(&mut self, PageArrived { partition: id, asked_at }: PageArrived, _: &mut Self::Context) {
        self.last_page = Instant::now();
        self.last_asked = self.last_asked.max(asked_at);
        // The failures of the page before no longer matter; the size that came of them is in the partition's position.
        self.retries.remove(&id);
    }
}

impl Handler<PartitionFinished> for Planner {
    type Result = ();

    fn handle(&mut self, PartitionFinished(id): PartitionFinished, ctx: &mut Self::Context) {
        self.last_page = Instant::now();
        self.leased.remove(&id);
        self.retries.remove(&id);
        self.parts.events.emit(Event::PartitionFinished(id));
        self.serve(ctx);
    }
}

impl Handler<PartitionReturned> for Planner {
    type Result = ();

    fn handle(&mut self, mut returned: PartitionReturned, ctx: &mut Self::Context) {
        match returned.failure.take() {
            Some(failure) => self.handle_failure(&returned, failure, ctx),
            None => {
                if let Some((_, partition)) = self.leased.remove(&returned.partition) {
                    self.ready.insert(partition.id, partition);
                }
            }
        }
        self.serve(ctx);
    }
}

impl Handler<FetcherDied> for Planner {
    type Result = ReclaimedLease;

    fn handle(&mut self, FetcherDied(fetcher): FetcherDied, ctx: &mut Self::Context) -> Self::Result {
        let held = self.leased.iter().find(|(_, (holder, _))| *holder == fetcher).map(|(id, _)| *id);
        let held = held.and_then(|id| self.leased.remove(&id)).map(|(_, partition)| partition);
        let mut end = None;
        if let Some(partition) = &held {
            self.ready.insert(partition.id, Arc::clone(partition));
            let deaths = self.deaths.entry(partition.id).or_default();
            *deaths += 1;
            if *deaths > DEATHS_MAX {
                let message = format!("{deaths} fetchers died over partition `{}`", partition.key);
                end = Some(Failure::new(FailureClass::Bug, message));
                self.stopped = true;
            }
        }
        let partition = held.as_ref().map(|partition| partition.id);
        self.parts.events.emit(Event::FetcherDied { partition: held });
        self.serve(ctx);
        ReclaimedLease { partition, end }
    }
}

impl Handler<StopLeasing> for Planner {
    type Result = ();

    fn handle(&mut self, _: StopLeasing, ctx: &mut Self::Context) {
        self.stopped = true;
        self.serve(ctx);
    }
}

impl Handler<PlanExtended> for Planner {
    type Result = ();

    fn handle(&mut self, PlanExtended(chunk): PlanExtended, ctx: &mut Self::Context) {
        self.unread.push_back(chunk);
        self.serve(ctx);
    }
}

impl Handler<PassAdded> for Planner {
    type Result = ();

    fn handle(&mut self, PassAdded { stream }: PassAdded, _: &mut Self::Context) {
        self.streams.push((stream, false));
    }
}

impl Handler<CurrentOutcomes> for Planner {
    type Result = PartitionOutcomes;

    fn handle(&mut self, _: CurrentOutcomes, _: &mut Self::Context) -> Self::Result {
        let unread: usize = self.unread.iter().map(|chunk| chunk.count as usize).sum();
        let open = self.ready.len() + self.waiting + self.leased.len() + unread + usize::from(self.reading);
        PartitionOutcomes { open, ..self.outcomes.clone() }
    }
}
