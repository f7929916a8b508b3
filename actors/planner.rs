//! The planner owns the leases: which partition is whose, which waits, which is lost, and when all are settled.
//!
//! ```text
//! Fetcher ──NextPartition──▶ Planner ──Lease──▶ Fetcher
//!    └──PageArrived, PartitionFinished, PartitionReturned──▶ Planner ──EndRun──▶ Supervisor
//! ```
//!
//! What becomes of a page that failed is [`decide_retry`]'s. It knows nothing of rows, and not how far a partition has come:
//! the writer knows that.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    events::Event,
    failure::{Failure, FailureClass},
    last_will::send_now,
    partition::{Partition, PartitionId},
    reporter::Teller,
    retry::{RetryDecision, RetryPolicy, RetryState, SourceState, decide_retry},
    source::{PageSize, Source},
    supervisor::EndRun,
};

/// Deaths of fetchers over one partition before the run ends as a bug.
pub const DEATHS_MAX: u32 = 3;

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
    /// How large its pages should be.
    pub size: PageSize,
}

/// Tells that a page of a leased partition has come and has its place.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PageArrived(pub PartitionId);

/// Tells that a leased partition has reached its end.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PartitionFinished(pub PartitionId);

/// Hands a partition back. `failure` is `None` when its fetcher leaves because the run stops.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PartitionReturned {
    /// Which.
    pub partition: PartitionId,
    /// What its last page failed of.
    pub failure: Option<Failure>,
    /// Whether nothing of it has been written in any start of the run.
    pub untouched: bool,
}

/// Tells that a fetcher is dead. The reply is what it held, and whether another may be hired.
#[derive(Debug, Message)]
#[rtype(result = "FetcherLoss")]
pub struct FetcherLost(pub FetcherId);

/// What the death of a fetcher means.
#[derive(Debug, MessageResponse)]
pub struct FetcherLoss {
    /// What it held.
    pub partition: Option<PartitionId>,
    /// The run's end, if this partition has killed too many.
    pub end: Option<Failure>,
}

/// Asks for no further leases to be given: everybody who asks is told that there is no work.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StopLeasing;

/// Adds partitions that the plan gained.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AddPartitions(pub Vec<Partition>);

/// Asks how things stand.
#[derive(Debug, Message)]
#[rtype(result = "Settlement")]
pub struct CurrentSettlement;

/// What became of the partitions.
#[derive(Clone, Debug, Default, MessageResponse)]
pub struct Settlement {
    /// Given up for good, with the reason.
    pub lost: BTreeMap<PartitionId, Failure>,
    /// Optional ones that the server does not offer to this user.
    pub left_out: BTreeMap<PartitionId, Failure>,
    /// Given up for now: a later start may succeed.
    pub unavailable: BTreeMap<PartitionId, Failure>,
    /// Neither finished nor given up.
    pub open: usize,
}

/// See the module.
pub struct Planner {
    /// Everything to fetch, by place.
    partitions: Vec<Arc<Partition>>,
    /// Which of them may be left out.
    optional: BTreeSet<PartitionId>,
    /// Ready to be leased, in plan order.
    ready: BTreeSet<PartitionId>,
    /// Waiting for their time.
    waiting: usize,
    /// Leased.
    leased: HashMap<PartitionId, FetcherId>,
    /// What failing pages have suffered.
    trouble: HashMap<PartitionId, RetryState>,
    /// How many fetchers each partition has killed.
    deaths: HashMap<PartitionId, u32>,
    /// Who waits for work.
    askers: VecDeque<(FetcherId, oneshot::Sender<Option<Lease>>)>,
    /// What became of those that did not finish.
    settlement: Settlement,
    /// When a page last came.
    last_page: Instant,
    /// Who knows when it last answered anything.
    source: Arc<dyn Source>,
    /// Whether no more leases are given.
    stopped: bool,
    /// How patient it is.
    patience: RetryPolicy,
    /// Who shows what happens.
    teller: Teller,
    /// Who ends the run.
    supervisor: Recipient<EndRun>,
}

impl Planner {
    /// A planner for `partitions`, of which those in `finished` need nothing more and those in `optional` may be left out.
    pub fn new(
        partitions: Vec<Arc<Partition>>,
        finished: &BTreeSet<PartitionId>,
        optional: BTreeSet<PartitionId>,
        patience: RetryPolicy,
        source: Arc<dyn Source>,
        teller: Teller,
        supervisor: Recipient<EndRun>,
    ) -> Self {
        let ready = partitions.iter().map(|partition| partition.id).filter(|id| !finished.contains(id)).collect();
        Planner {
            partitions,
            optional,
            ready,
            waiting: 0,
            leased: HashMap::new(),
            trouble: HashMap::new(),
            deaths: HashMap::new(),
            askers: VecDeque::new(),
            settlement: Settlement::default(),
            last_page: Instant::now(),
            source,
            stopped: false,
            patience,
            teller,
            supervisor,
        }
    }

    /// Whether nothing is left to be leased, now or later.
    fn is_settled(&self) -> bool {
        self.ready.is_empty() && self.waiting == 0 && self.leased.is_empty()
    }

    /// Gives work to those who wait for it, or tells them that there is none.
    fn serve(&mut self) {
        while !self.askers.is_empty() {
            if self.stopped || self.is_settled() {
                for (_, asker) in self.askers.drain(..) {
                    // Who no longer waits needs no answer.
                    let _ = asker.send(None);
                }
                return;
            }
            let Some(id) = self.ready.first().copied() else { return };
            let Some((fetcher, asker)) = self.askers.pop_front() else { return };
            let size = self.trouble.get(&id).map(|trouble| trouble.size).unwrap_or_default();
            let lease = Lease { partition: Arc::clone(&self.partitions[id.0 as usize]), size };
            if asker.send(Some(lease)).is_ok() {
                self.ready.remove(&id);
                self.leased.insert(id, fetcher);
            }
        }
    }

    /// Keeps a partition for `delay`, then makes it ready.
    fn hold(&mut self, id: PartitionId, delay: Duration, ctx: &mut Context<Self>) {
        self.waiting += 1;
        ctx.run_later(delay, move |planner, _| {
            planner.waiting -= 1;
            planner.ready.insert(id);
            planner.serve();
        });
    }

    /// Decides about a partition that failed, and tells what was decided.
    fn settle(&mut self, id: PartitionId, failure: Failure, untouched: bool, ctx: &mut Context<Self>) {
        let seed = self.patience.seed ^ (u64::from(id.0) << 32);
        let trouble = self.trouble.entry(id).or_insert_with(|| RetryState::new(seed));
        let last_answer = self.source.last_answer().map_or(self.last_page, |answer| answer.max(self.last_page));
        let lately = SourceState { now: Instant::now(), last_page: self.last_page, silence: last_answer.elapsed() };
        let optional = untouched && self.optional.contains(&id);
        let class = failure.class;
        let message = failure.message.clone();
        match decide_retry(trouble, failure, lately, optional, self.patience) {
            RetryDecision::Retry(delay) => {
                let attempt = trouble.attempts();
                self.teller.tell(Event::PartitionReturned { partition: id, class, message, attempt, delay });
                self.hold(id, delay, ctx);
            }
            RetryDecision::Failed(failure) => {
                self.settlement.lost.insert(id, failure);
                self.teller.tell(Event::PartitionLost { partition: id, left_out: false, class, message });
            }
            RetryDecision::LeftOut(failure) => {
                self.settlement.left_out.insert(id, failure);
                self.teller.tell(Event::PartitionLost { partition: id, left_out: true, class, message });
            }
            RetryDecision::Unavailable(failure) => {
                self.settlement.unavailable.insert(id, failure);
                self.teller.tell(Event::PartitionLost { partition: id, left_out: false, class, message });
            }
            RetryDecision::EndRun(failure) => {
                self.ready.insert(id);
                self.stopped = true;
                send_now(&self.supervisor, EndRun(failure));
            }
        }
    }
}

impl Actor for Planner {
    type Context = Context<Self>;
}

impl Handler<NextPartition> for Planner {
    type Result = ResponseFuture<Option<Lease>>;

    fn handle(&mut self, NextPartition(fetcher): NextPartition, _: &mut Self::Context) -> Self::Result {
        let (asker, lease) = oneshot::channel();
        self.askers.push_back((fetcher, asker));
        self.serve();
        Box::pin(async move { lease.await.unwrap_or(None) })
    }
}

impl Handler<PageArrived> for Planner {
    type Result = ();

    fn handle(&mut self, PageArrived(id): PageArrived, _: &mut Self::Context) {
        self.last_page = Instant::now();
        if let Some(trouble) = self.trouble.get_mut(&id) {
            trouble.forget();
        }
    }
}

impl Handler<PartitionFinished> for Planner {
    type Result = ();

    fn handle(&mut self, PartitionFinished(id): PartitionFinished, _: &mut Self::Context) {
        self.last_page = Instant::now();
        self.leased.remove(&id);
        self.trouble.remove(&id);
        self.teller.tell(Event::PartitionFinished(id));
        self.serve();
    }
}

impl Handler<PartitionReturned> for Planner {
    type Result = ();

    fn handle(&mut self, returned: PartitionReturned, ctx: &mut Self::Context) {
        self.leased.remove(&returned.partition);
        match returned.failure {
            Some(failure) => self.settle(returned.partition, failure, returned.untouched, ctx),
            None => {
                self.ready.insert(returned.partition);
            }
        }
        self.serve();
    }
}

impl Handler<FetcherLost> for Planner {
    type Result = FetcherLoss;

    fn handle(&mut self, FetcherLost(fetcher): FetcherLost, _: &mut Self::Context) -> Self::Result {
        let held = self.leased.iter().find(|(_, holder)| **holder == fetcher).map(|(id, _)| *id);
        let mut end = None;
        if let Some(id) = held {
            self.leased.remove(&id);
            self.ready.insert(id);
            let deaths = self.deaths.entry(id).or_default();
            *deaths += 1;
            if *deaths > DEATHS_MAX {
                let key = &self.partitions[id.0 as usize].key;
                let message = format!("{deaths} fetchers died over partition `{key}`");
                end = Some(Failure::new(FailureClass::Bug, message));
                self.stopped = true;
            }
        }
        self.teller.tell(Event::FetcherDied { partition: held });
        self.serve();
        FetcherLoss { partition: held, end }
    }
}

impl Handler<StopLeasing> for Planner {
    type Result = ();

    fn handle(&mut self, _: StopLeasing, _: &mut Self::Context) {
        self.stopped = true;
        self.serve();
    }
}

impl Handler<AddPartitions> for Planner {
    type Result = ();

    fn handle(&mut self, AddPartitions(partitions): AddPartitions, _: &mut Self::Context) {
        for partition in partitions {
            self.ready.insert(partition.id);
            self.partitions.push(Arc::new(partition));
        }
        self.serve();
    }
}

impl Handler<CurrentSettlement> for Planner {
    type Result = Settlement;

    fn handle(&mut self, _: CurrentSettlement, _: &mut Self::Context) -> Self::Result {
        Settlement { open: self.ready.len() + self.waiting + self.leased.len(), ..self.settlement.clone() }
    }
}
