//! The planner owns the leases: which partition is whose, which waits, which is lost, and when all are settled.
//!
//! ```text
//! Fetcher ──NextPartition──▶ Planner ──Lease──▶ Fetcher
//!    └──PageArrived, PartitionFinished, PartitionReturned──▶ Planner ──EndRun──▶ Supervisor
//! ```
//!
//! It decides the fate of a page that failed ([`fate`], pure): again and when, smaller, lost, or the end of the run. It
//! knows nothing of rows, and not how far a partition has come: the writer knows that.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;
use harvester_pacing::Backoff;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    events::Event,
    failure::{Failure, FailureClass, Weight},
    partition::{Partition, PartitionId},
    reporter::Teller,
    source::{PageSize, Source},
    supervisor::EndRun,
};

/// Attempts at one page, however well the rest of the source answers, before its partition is given up.
pub const ATTEMPTS_MAX: u32 = 30;

/// Times a page may come whole but wrong before it counts as refused.
pub const GARBLED_MAX: u32 = 3;

/// Deaths of fetchers over one partition before the run ends as a bug.
pub const DEATHS_MAX: u32 = 3;

/// Halvings of a page before it counts as refused: 1,000 rows are then one.
pub const HALVINGS_MAX: u32 = 10;

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

/// How patient the planner is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Further attempts at a page before it may be given up at all.
    pub retries: u32,
    /// How long the source may be silent before the run gives up.
    pub outage: Duration,
    /// What makes waits reproducible in tests.
    pub seed: u64,
}

/// What one page has already suffered.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Failed attempts at the present page.
    pub attempts: u32,
    /// Of these, answers that were whole but wrong.
    pub garbled: u32,
    /// Since when it has failed in a way that can mean too much weight when repeated.
    pub heavy_since: Option<Instant>,
    /// How often its pages have been halved.
    pub size: PageSize,
    /// Its waits.
    backoff: Backoff,
}

impl Trouble {
    /// No trouble yet. `seed` makes its waits its own.
    pub fn new(seed: u64) -> Self {
        Trouble { attempts: 0, garbled: 0, heavy_since: None, size: PageSize::default(), backoff: Backoff::new(seed) }
    }

    /// A page has come: what the one before it suffered no longer matters. Its size does.
    fn forget(&mut self) {
        self.attempts = 0;
        self.garbled = 0;
        self.heavy_since = None;
        self.backoff.reset();
    }
}

/// What becomes of a partition whose page failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fate {
    /// The page is asked for again after this delay.
    Again(Duration),
    /// Nothing more of it can be had, ever.
    Lost(Failure),
    /// It was only taken because everything was, and this user does not get it.
    LeftOut(Failure),
    /// Nothing more of it can be had for now.
    Unavailable(Failure),
    /// Nothing more of anything can be had.
    EndRun(Failure),
}

/// How the source has been lately.
#[derive(Clone, Copy, Debug)]
pub struct Lately {
    /// The present moment.
    pub now: Instant,
    /// When it last gave a page.
    pub last_page: Instant,
    /// How long it has answered nothing at all.
    pub silence: Duration,
}

/// Decides what becomes of a partition whose page failed, and keeps account in `trouble`.
///
/// `optional` says that the partition may be left out.
pub fn fate(trouble: &mut Trouble, failure: Failure, lately: Lately, optional: bool, patience: Patience) -> Fate {
    trouble.attempts += 1;
    let mut class = failure.class;
    if class == FailureClass::Transient && failure.weight != Weight::Unsaid {
        let since = *trouble.heavy_since.get_or_insert(lately.now);
        let others_came = lately.last_page > since || !harvester_pacing::control!("outage-weight");
        if since < lately.now && (failure.weight == Weight::HeavyIfRepeated || others_came) {
            class = FailureClass::TooHeavy;
        }
    }
    match class {
        FailureClass::Transient => {}
        FailureClass::TooHeavy if trouble.size.halvings < HALVINGS_MAX => {
            trouble.size.halvings += 1;
            trouble.heavy_since = None;
        }
        // As small as it gets, but a passing cause is still possible.
        FailureClass::TooHeavy if failure.class == FailureClass::Transient => {}
        FailureClass::Garbled => {
            trouble.garbled += 1;
            if trouble.garbled > GARBLED_MAX {
                return Fate::Lost(failure);
            }
        }
        FailureClass::TooHeavy => return Fate::Lost(failure),
        FailureClass::Rejected | FailureClass::Forbidden if optional => return Fate::LeftOut(failure),
        FailureClass::Rejected | FailureClass::Forbidden => return Fate::Lost(failure),
        FailureClass::Denied
        | FailureClass::Changed
        | FailureClass::Local
        | FailureClass::Damaged
        | FailureClass::Bug => return Fate::EndRun(failure),
    }
    if failure.retry_after.is_some_and(|wait| wait > patience.outage) {
        return Fate::EndRun(failure);
    }
    if trouble.attempts > patience.retries && lately.silence >= patience.outage {
        return Fate::EndRun(failure);
    }
    if trouble.attempts >= ATTEMPTS_MAX {
        return Fate::Unavailable(failure);
    }
    Fate::Again(trouble.backoff.next(failure.retry_after))
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
    trouble: HashMap<PartitionId, Trouble>,
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
    patience: Patience,
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
        patience: Patience,
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
        let trouble = self.trouble.entry(id).or_insert_with(|| Trouble::new(seed));
        let last_answer = self.source.last_answer().map_or(self.last_page, |answer| answer.max(self.last_page));
        let lately = Lately { now: Instant::now(), last_page: self.last_page, silence: last_answer.elapsed() };
        let optional = untouched && self.optional.contains(&id);
        let class = failure.class;
        let message = failure.message.clone();
        match fate(trouble, failure, lately, optional, self.patience) {
            Fate::Again(delay) => {
                let attempt = trouble.attempts;
                self.teller.tell(Event::PartitionReturned { partition: id, class, message, attempt, delay });
                self.hold(id, delay, ctx);
            }
            Fate::Lost(failure) => {
                self.settlement.lost.insert(id, failure);
                self.teller.tell(Event::PartitionLost { partition: id, left_out: false, class, message });
            }
            Fate::LeftOut(failure) => {
                self.settlement.left_out.insert(id, failure);
                self.teller.tell(Event::PartitionLost { partition: id, left_out: true, class, message });
            }
            Fate::Unavailable(failure) => {
                self.settlement.unavailable.insert(id, failure);
                self.teller.tell(Event::PartitionLost { partition: id, left_out: false, class, message });
            }
            Fate::EndRun(failure) => {
                self.ready.insert(id);
                self.stopped = true;
                self.supervisor.do_send(EndRun(failure));
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

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { retries: 6, outage: Duration::from_secs(600), seed: 1 };
    const LONG: Duration = Duration::from_secs(601);

    /// A source of which pages come.
    fn good() -> Lately {
        let now = Instant::now();
        Lately { now, last_page: now + LONG, silence: Duration::ZERO }
    }

    /// The fates of one page that fails in the same way again and again, until something other than `Again` comes.
    fn fates(failure: &Failure, silence: Duration, optional: bool) -> (u32, Fate, u32) {
        let mut lately = Lately { silence, ..good() };
        let mut trouble = Trouble::new(7);
        for attempt in 1.. {
            lately.now += Duration::from_secs(1);
            let fate = fate(&mut trouble, failure.clone(), lately, optional, PATIENCE);
            if !matches!(fate, Fate::Again(_)) {
                return (attempt, fate, trouble.size.halvings);
            }
        }
        unreachable!("the loop above has no end")
    }

    #[test]
    fn each_class_has_its_own_end() {
        use FailureClass as C;
        let short = Duration::ZERO;
        for (class, silence, optional, attempts, end) in [
            (C::Transient, short, false, 30, "unavailable"),
            (C::Transient, LONG, false, 7, "end"),
            (C::Garbled, short, false, 4, "lost"),
            (C::Garbled, LONG, false, 4, "lost"),
            (C::TooHeavy, short, false, 11, "lost"),
            (C::Rejected, short, false, 1, "lost"),
            (C::Rejected, short, true, 1, "left out"),
            (C::Forbidden, short, false, 1, "lost"),
            (C::Forbidden, short, true, 1, "left out"),
            (C::Denied, short, true, 1, "end"),
            (C::Changed, short, false, 1, "end"),
            (C::Local, short, false, 1, "end"),
            (C::Damaged, short, false, 1, "end"),
            (C::Bug, short, false, 1, "end"),
        ] {
            let (after, fate, _) = fates(&Failure::new(class, "it failed"), silence, optional);
            let word = match fate {
                Fate::Again(_) => "again",
                Fate::Lost(_) => "lost",
                Fate::LeftOut(_) => "left out",
                Fate::Unavailable(_) => "unavailable",
                Fate::EndRun(_) => "end",
            };
            assert_eq!((after, word), (attempts, end), "{class:?}, silent for {silence:?}, optional: {optional}");
        }
    }

    #[test]
    fn a_page_that_fails_twice_is_halved_where_it_is_the_pages_own_fault_and_then_has_new_luck() {
        let outage = Lately { last_page: good().now, silence: Duration::from_secs(9), ..good() };
        for (weight, mut lately, halvings) in [
            (Weight::HeavyIfRepeated, good(), [0, 1, 1, 2, 2, 3]),
            (Weight::HeavyIfRepeated, outage, [0, 1, 1, 2, 2, 3]),
            (Weight::HeavyIfOthersCome, good(), [0, 1, 1, 2, 2, 3]),
            (Weight::HeavyIfOthersCome, outage, [0; 6]),
            (Weight::Unsaid, good(), [0; 6]),
        ] {
            let failure = Failure::new(FailureClass::Transient, "504").with_weight(weight);
            let mut trouble = Trouble::new(7);
            let halved = halvings.map(|_| {
                lately.now += Duration::from_secs(1);
                assert!(matches!(fate(&mut trouble, failure.clone(), lately, false, PATIENCE), Fate::Again(_)));
                trouble.size.halvings
            });
            assert_eq!(halved, halvings, "{weight:?}, {lately:?}");
        }
    }

    #[test]
    fn a_wait_the_server_asks_for_is_kept_and_one_beyond_the_outage_ends_the_run() {
        let asked = |seconds| {
            let failure = Failure::new(FailureClass::Transient, "503");
            let failure = failure.with_retry_after(Some(Duration::from_secs(seconds)));
            fate(&mut Trouble::new(7), failure, good(), false, PATIENCE)
        };
        assert!(matches!(asked(90), Fate::Again(delay) if delay >= Duration::from_secs(90)));
        assert!(matches!(asked(601), Fate::EndRun(_)));
    }
}
