//! A harvest is one run from its recovery to its last file: the phases, in order.
//!
//! ```text
//! recover ─▶ identify ─▶ plan ─▶ fetch ─▶ follow ─▶ prepare ─▶ follow ─▶ publish ─▶ report
//!                                  ▲         │                    │
//!                                  └─────────┴── further passes ──┘
//! ```
//!
//! Fetching is done by the actors; everything else happens once, in order, and reads as such. What the numbers of the streams
//! mean is decided in `accounts`.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use actix::prelude::*;
use actix_rt::Arbiter;
use futures_core::future::LocalBoxFuture;
use futures_util::stream::{self, StreamExt};
use tokio::{sync::watch, time::Instant};

use crate::{
    accounts::{Accounts, Verdict},
    checkpoint::{Checkpoint, RunHeader},
    checkpoint_store::CheckpointStore,
    checkpointer::{Checkpointer, CommitAll, CurrentCheckpoint},
    crash_point,
    events::{Event, Listener},
    failure::{Failure, FailureClass},
    follow::{Follow, Followed, Keys, PassFacts, StreamFacts},
    outage::{Wait, retry_until_outage},
    page::Reject,
    partition::{NewPartition, PartitionId, Pass, PassId, PlanPiece, SourceIdentity, StreamId, Yield},
    plan::{PlanBuilder, PlanOutlet},
    planner::{CurrentOutcomes, PassAdded, Planner, PlannerParts},
    rate_limiter::{CurrentLimiter, RateLimiter},
    recovery,
    report::Report,
    reporter::{CurrentCounters, EventSender, Reporter},
    retry::RetryPolicy,
    sink::{Cancel, Prepare, Spool, Target},
    source::Source,
    supervisor::{EndRun, FetchEnd, Shutdown, StartFetching, StopRequest, Supervisor, SupervisorParts},
    writer::{ExtendPlan, Writer},
};

/// How long a stop waits for what follows of a stream: keys that are being compared end with the next one, a request need not.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(2);

/// The parts of a job that decide about rows, as a flat map of key and value.
pub type Fingerprint = BTreeMap<String, String>;

/// Says in sentences what differs between the fingerprint a run began with and the present one.
pub type Differences = fn(&Fingerprint, &Fingerprint) -> Vec<String>;

/// Everything a run needs. Built by `src/assemble.rs`, or by a test out of fakes.
pub struct Harvest {
    /// The job's name.
    pub job: String,
    /// The id that a new run gets; a resumed one keeps its own.
    pub run_id: String,
    /// The present time, RFC 3339, UTC: the engine has no wall clock.
    pub now: fn() -> String,
    /// The parts of the job that decide about rows.
    pub fingerprint: Fingerprint,
    /// Says in sentences what differs between two fingerprints.
    pub differences: Differences,
    /// Where rows come from.
    pub source: Arc<dyn Source>,
    /// Where pages are kept.
    pub spool: Arc<dyn Spool>,
    /// Where rows go.
    pub target: Arc<dyn Target>,
    /// Indexes the spool.
    pub store: Arc<dyn CheckpointStore>,
    /// Owns the budget; `None` where a test has none.
    pub limiter: Option<Addr<RateLimiter>>,
    /// Shows what happens.
    pub listener: Arc<dyn Listener>,
    /// Changes when a stop is asked for.
    pub stop: watch::Receiver<Option<StopRequest>>,
    /// How many fetchers work at once: the ceiling of requests in flight.
    pub fetchers: u32,
    /// Over how many arbiters they are spread; 0 keeps everything on one, which paused time needs.
    pub arbiters: usize,
    /// How long a source that fails is asked again.
    pub retry: RetryPolicy,
}

/// Runs it to its end. Never fails: what went wrong is in the report. `exit_code` is left 0 for the caller.
pub async fn run(harvest: Harvest) -> Report {
    let began = Instant::now();
    let reporter = Reporter::new(Arc::clone(&harvest.listener)).start();
    let events = EventSender::new(&reporter);
    let supervisor = Supervisor::new(SupervisorParts {
        source: Arc::clone(&harvest.source),
        limiter: harvest.limiter.clone(),
        events: events.clone(),
        stop: harvest.stop.clone(),
        outage: harvest.retry.outage,
    })
    .start();
    let mut run =
        Run { events, supervisor: supervisor.clone(), resumed: false, accounts: Accounts::default(), harvest };
    let ended = run.run_phases().await;
    // The receivers may already have ended, and have counted nothing then.
    let _ = supervisor.send(Shutdown).await;
    let counters = reporter.send(CurrentCounters).await.unwrap_or_default();
    let pace = match &run.harvest.limiter {
        Some(limiter) => limiter.send(CurrentLimiter).await.ok(),
        None => None,
    };
    let mut report = run.accounts.report(&run.harvest.job, ended);
    report.resumed = run.resumed;
    report.requests = run.harvest.source.requests();
    report.retries = counters.retries;
    report.peak_requests_per_second = pace.map_or(0, |pace| pace.peak_requests_per_second);
    report.warnings = counters.warnings;
    report.warnings.extend(run.accounts.warnings());
    report.seconds = began.elapsed().as_secs_f64();
    report
}

/// How a run ended that did not publish all files, before it is put into words.
pub enum RunError {
    /// It failed.
    Failed(Failure),
    /// It was asked to stop.
    Stopped(StopRequest),
    /// Fetched, but some streams do not add up.
    Mismatch(String),
    /// Partitions were refused, and no stream is complete.
    Refused(Failure),
}

impl From<Failure> for RunError {
    fn from(failure: Failure) -> Self {
        RunError::Failed(failure)
    }
}

/// A run under way.
struct Run {
    /// What it was given.
    harvest: Harvest,
    /// Emits what happens.
    events: EventSender,
    /// Lets it be fetched.
    supervisor: Addr<Supervisor>,
    /// Whether it resumes from a checkpoint.
    resumed: bool,
    /// What is known of it.
    accounts: Accounts,
}

/// The actors that take part in fetching.
struct Pipeline {
    planner: Addr<Planner>,
    writer: Addr<Writer>,
    checkpointer: Addr<Checkpointer>,
    arbiters: Vec<Arbiter>,
    identity: Arc<SourceIdentity>,
    fetchers: u32,
}

/// Takes the pieces of a plan to the spool.
struct SpoolOutlet {
    spool: Arc<dyn Spool>,
    /// Names of the streams so far.
    streams: Vec<String>,
}

impl PlanOutlet for SpoolOutlet {
    fn take(&mut self, piece: PlanPiece) -> LocalBoxFuture<'_, Result<(), Failure>> {
        self.streams.extend(piece.streams.iter().map(|stream| stream.name.clone()));
        Box::pin(async move { Arc::clone(&self.spool).extend_plan(piece).await.map(drop) })
    }
}

impl Run {
    /// Goes through the phases.
    async fn run_phases(&mut self) -> Result<(), RunError> {
        let recovery = recovery::recover(&self.harvest.spool, &self.harvest.store).await?;
        self.resumed = recovery.checkpoint.is_some();
        self.events.emit(Event::Recovered {
            resumed_run: recovery.checkpoint.as_ref().map(|checkpoint| checkpoint.header.run_id.clone()),
            cut_bytes: recovery.cut_bytes,
            rebuilt: recovery.rebuilt,
        });
        self.accounts.checkpoint = recovery.checkpoint;
        self.check_fingerprint()?;
        let run_id = self.accounts.checkpoint.as_ref().map_or(&self.harvest.run_id, |known| &known.header.run_id);
        Arc::clone(&self.harvest.target).claim(run_id.clone()).await?;

        let identity = self.retry(|run| run.source.identify()).await?;
        self.events.emit(Event::SourceIdentified(identity.clone()));
        match &self.accounts.checkpoint {
            Some(_) => self.check_source(&identity)?,
            None => self.begin(&identity).await?,
        }
        self.announce_plan()?;

        let pipeline = self.spawn(&identity)?;
        let fetched = self.fetch(&pipeline).await;
        pipeline.end().await;
        fetched?;
        if let Some(mismatch) = self.accounts.first_mismatch()? {
            return Err(RunError::Mismatch(mismatch));
        }
        // Another source may have taken the place of the first without an outage.
        let identity = self.retry(|run| run.source.identify()).await?;
        self.check_source(&identity)?;
        self.publish().await
    }

    /// Refuses a source that is not the one the run began with.
    fn check_source(&self, identity: &SourceIdentity) -> Result<(), RunError> {
        match self.accounts.known()?.header.source.difference(identity) {
            None => Ok(()),
            Some(difference) => {
                Err(RunError::Failed(Failure::new(FailureClass::Changed, difference).with_next("check the url")))
            }
        }
    }

    /// Refuses to resume with a job whose rows would be others.
    fn check_fingerprint(&self) -> Result<(), RunError> {
        let Some(checkpoint) = &self.accounts.checkpoint else { return Ok(()) };
        if checkpoint.header.fingerprint == self.harvest.fingerprint {
            return Ok(());
        }
        let differences = (self.harvest.differences)(&checkpoint.header.fingerprint, &self.harvest.fingerprint);
        let message = format!("the job has changed since run {}: {}", checkpoint.header.run_id, differences.join("; "));
        Err(RunError::Failed(Failure::new(FailureClass::Changed, message).with_next("change it back to resume")))
    }

    /// Plans the run, and makes the plan durable. The store then learns it from the spool, as after a death.
    async fn begin(&mut self, identity: &SourceIdentity) -> Result<(), RunError> {
        let header = RunHeader {
            run_id: self.harvest.run_id.clone(),
            job: self.harvest.job.clone(),
            started_at: (self.harvest.now)(),
            fingerprint: self.harvest.fingerprint.clone(),
            source: identity.clone(),
        };
        let header = &header;
        let planned = self.retry(|run| async move {
            Arc::clone(&run.spool).begin(header.clone()).await?;
            let mut outlet = SpoolOutlet { spool: Arc::clone(&run.spool), streams: Vec::new() };
            run.source.plan(identity, PlanBuilder::new(&mut outlet)).await?;
            Ok(outlet.streams)
        });
        let streams = planned.await?;
        // Only now is it known which streams there are, where the job asks for all.
        Arc::clone(&self.harvest.target).check(header.run_id.clone(), streams).await?;
        crash_point!("run.begin.before");
        Arc::clone(&self.harvest.spool).commit_plan().await?;
        crash_point!("run.begin.spool");
        let planned = recovery::rebuild(&self.harvest.spool, &self.harvest.store).await?;
        crash_point!("run.begin.after");
        self.accounts.checkpoint = Some(planned);
        Ok(())
    }

    /// Emits what is to be fetched and what has been.
    fn announce_plan(&self) -> Result<(), RunError> {
        let checkpoint = self.accounts.known()?;
        let plan = &checkpoint.plan;
        self.events.emit(Event::PlanReady {
            run_id: checkpoint.header.run_id.clone(),
            streams: plan.streams.clone().into(),
            left_out: plan.left_out.clone(),
            partitions: u64::from(plan.partitions()),
            finished: u64::from(checkpoint.positions.finished.len()),
            committed: plan.streams().map(|(id, _)| checkpoint.row_totals(id)).collect(),
        });
        Ok(())
    }

    /// Asks the source until it answers, or has been unavailable for too long, or a stop is asked for.
    async fn retry<'a, T, F, Ask>(&'a self, ask: Ask) -> Result<T, RunError>
    where
        Ask: Fn(&'a Harvest) -> F,
        F: Future<Output = Result<T, Failure>>,
    {
        self.unless_stopped(self.asked(ask)).await?.map_err(RunError::Failed)
    }

    /// Asks the source until it answers, or has been unavailable for too long.
    async fn asked<'a, T, F, Ask>(&'a self, ask: Ask) -> Result<T, Failure>
    where
        Ask: Fn(&'a Harvest) -> F,
        F: Future<Output = Result<T, Failure>>,
    {
        let harvest = &self.harvest;
        let tell = |Wait { failure, attempts, delay, patience_left }: Wait<'_>| {
            let Failure { class, message, .. } = failure.clone();
            self.events.emit(Event::SourceWaitedFor { class, message, attempts, delay, patience_left });
        };
        let (last_answer, last_trouble) = (|| harvest.source.last_answer(), || harvest.source.last_trouble());
        retry_until_outage(harvest.retry, harvest.limiter.as_ref(), last_answer, last_trouble, tell, || ask(harvest))
            .await
    }

    /// Waits for a stop, and emits it.
    async fn stopped(&self) -> StopRequest {
        let mut stop = self.harvest.stop.clone();
        let asked = match stop.wait_for(Option::is_some).await {
            Ok(stop) => stop.clone(),
            Err(_) => None,
        };
        // A closed channel means that nobody can ask any more.
        let Some(stop) = asked else { return std::future::pending().await };
        self.events.emit(Event::Stopping { reason: stop.reason.clone() });
        stop
    }

    /// Waits for `work`, or for a stop.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, RunError> {
        tokio::select! {
            done = work => Ok(done),
            stop = self.stopped() => Err(RunError::Stopped(stop)),
        }
    }

    /// Waits for work on a blocking thread; a stop cancels it and waits until it is over, at most for `timeout`.
    async fn unless_cancelled<T>(
        &self,
        cancel: &Cancel,
        timeout: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, RunError> {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            done = &mut work => Ok(done),
            stop = self.stopped() => {
                cancel.cancel();
                self.harvest.source.close();
                // What it came to is found again by the next start.
                let _ = tokio::time::timeout(timeout, work).await;
                Err(RunError::Stopped(stop))
            }
        }
    }

    /// Starts the actors, the last stage first, so that each is born with the address of the next.
    fn spawn(&self, identity: &SourceIdentity) -> Result<Pipeline, RunError> {
        let checkpoint = self.accounts.known()?;
        let harvest = &self.harvest;
        let fetchers = harvest.fetchers.max(1);
        let arbiters: Vec<Arbiter> = (0..harvest.arbiters.min(fetchers as usize)).map(|_| Arbiter::new()).collect();
        let end_run: Recipient<EndRun> = self.supervisor.clone().recipient();
        let parts = PlannerParts {
            spool: Arc::clone(&harvest.spool),
            source: Arc::clone(&harvest.source),
            policy: harvest.retry,
            events: self.events.clone(),
            supervisor: end_run.clone(),
        };
        let planner = Planner::new(parts, checkpoint).start();
        let checkpointer = Checkpointer::new(
            Arc::clone(&harvest.spool),
            Arc::clone(&harvest.store),
            self.events.clone(),
            end_run,
            checkpoint.clone(),
        )
        .start();
        let spool = Arc::clone(&harvest.spool);
        let writer = Writer::new(spool, checkpointer.clone(), planner.clone().recipient(), checkpoint).start();
        Ok(Pipeline { planner, writer, checkpointer, arbiters, identity: Arc::new(identity.clone()), fetchers })
    }

    /// Fetches all partitions and whatever follows of them, and prepares what there is then.
    async fn fetch(&mut self, pipeline: &Pipeline) -> Result<(), RunError> {
        loop {
            self.fetch_all(pipeline).await?;
            if self.follow(pipeline).await? {
                continue;
            }
            self.prepare().await?;
            // What came twice is known only now.
            if !self.follow(pipeline).await? {
                return Ok(());
            }
        }
    }

    /// Lets the fetchers work until all partitions are done, and makes everything durable.
    async fn fetch_all(&mut self, pipeline: &Pipeline) -> Result<(), RunError> {
        let start = StartFetching {
            planner: pipeline.planner.clone(),
            writer: pipeline.writer.clone(),
            identity: Arc::clone(&pipeline.identity),
            fetchers: pipeline.fetchers,
            arbiters: pipeline.arbiters.iter().map(Arbiter::handle).collect(),
        };
        let FetchEnd { failure, stop } =
            self.supervisor.send(start).await.map_err(|_| bug("the supervisor is gone"))?;
        let committed = pipeline.checkpointer.send(CommitAll).await.map_err(|_| bug("the checkpointer is gone"))?;
        let checkpoint = pipeline.checkpointer.send(CurrentCheckpoint).await;
        self.accounts.checkpoint = Some(checkpoint.map_err(|_| bug("the checkpointer is gone"))??);
        let outcomes = pipeline.planner.send(CurrentOutcomes).await.map_err(|_| bug("the planner is gone"))?;
        let open = outcomes.open;
        self.accounts.take_outcomes(outcomes);
        if let Some(failure) = failure {
            return Err(RunError::Failed(failure));
        }
        committed?;
        if let Some(stop) = stop {
            return Err(RunError::Stopped(stop));
        }
        if let Some(unavailable) = self.accounts.outcomes.unavailable.values().next() {
            return Err(RunError::Failed(unavailable.failure.clone()));
        }
        if open > 0 {
            return Err(bug("fetchers left before all partitions were done"));
        }
        Ok(())
    }

    /// Asks what follows of what is known of each stream that may still need something. Whether anything does.
    async fn follow(&mut self, pipeline: &Pipeline) -> Result<bool, RunError> {
        let asked = self.accounts.ask_about()?;
        let (run, cancel) = (&*self, Cancel::default());
        let checkpoint = run.accounts.known()?;
        let facts = &|harvest, id| run.facts(harvest, checkpoint, id, cancel.clone());
        let following = stream::iter(asked).map(|id| async move {
            let followed = run.asked(move |harvest| harvest.source.follow(facts(harvest, id))).await;
            (id, followed)
        });
        let at_once = self.harvest.fetchers.max(1) as usize;
        let mut followed: Vec<(StreamId, Result<Followed, Failure>)> =
            self.unless_cancelled(&cancel, FOLLOW_TIMEOUT, following.buffer_unordered(at_once).collect()).await?;
        followed.sort_by_key(|(id, _)| *id);
        let plan = &self.accounts.known()?.plan;
        let (mut next_pass, mut next_partition) = (PassId(plan.passes.len() as u32), plan.partitions());
        let mut pieces = Vec::new();
        for (id, followed) in followed {
            let Followed { step, reconciled, warnings } = followed?;
            let duplicates = self.accounts.duplicates(id);
            let account = self.accounts.streams.entry(id).or_default();
            account.warnings = warnings;
            account.asked_with = Some(duplicates);
            if let Some(reconciled) = reconciled {
                account.reconciled = Some(reconciled);
                self.events.emit(Event::Reconciled { stream: id, reconciled });
            }
            match step {
                Follow::Satisfied(proof) => account.verdict = Some(Verdict::Proved(proof)),
                Follow::Unproved(why) => account.verdict = Some(Verdict::Unproved(why)),
                Follow::Pass { yields, selection, partitions } => {
                    account.verdict = None;
                    account.asked_with = None;
                    self.accounts.prepared.remove(&id);
                    // Each kind is asked as if its pass were the only one.
                    let partitions = (next_partition..)
                        .zip(partitions)
                        .map(|(id, partition)| NewPartition { pass: next_pass, ..partition }.at(PartitionId(id)));
                    let (passes, partitions) = (vec![Pass { stream: id, yields, selection }], partitions.collect());
                    let piece = PlanPiece { passes, partitions, ..PlanPiece::default() };
                    next_pass.0 += 1;
                    next_partition += piece.partitions.len() as u32;
                    pieces.push(piece);
                }
            }
        }
        let is_more = !pieces.is_empty();
        for piece in pieces {
            extend_plan(pipeline, piece).await?;
        }
        Ok(is_more)
    }

    /// What is known of a stream.
    fn facts<'a>(
        &'a self,
        harvest: &'a Harvest,
        checkpoint: &'a Checkpoint,
        id: StreamId,
        cancel: Cancel,
    ) -> StreamFacts<'a> {
        let account = self.accounts.streams.get(&id);
        let passes = checkpoint.plan.passes_of(id).map(|(pass_id, pass)| PassFacts {
            id: pass_id,
            pass,
            totals: checkpoint.totals_of(pass_id),
            failure: account.and_then(|account| account.key_failures.get(&pass_id)),
        });
        StreamFacts {
            id,
            stream: checkpoint.plan.stream(id),
            passes: passes.collect(),
            next_pass: PassId(checkpoint.plan.passes.len() as u32),
            duplicates: self.accounts.duplicates(id),
            keys: Keys { spool: Arc::clone(&harvest.spool), pages: Arc::clone(&harvest.store).pages(), cancel },
        }
    }

    /// Prepares all streams that there are and that have not been prepared.
    async fn prepare(&mut self) -> Result<(), RunError> {
        self.accounts.check_any_complete()?;
        for id in self.accounts.taken()? {
            if self.accounts.prepared.contains_key(&id) {
                continue;
            }
            self.events.emit(Event::Finishing { stream: id });
            let checkpoint = self.accounts.known()?;
            let rows = checkpoint.plan.passes_of(id).filter(|(_, pass)| pass.yields == Yield::Rows);
            let cancel = Cancel::default();
            let work = Prepare {
                run_id: checkpoint.header.run_id.clone(),
                stream: checkpoint.plan.stream(id).clone(),
                passes: rows.map(|(pass, _)| pass).collect(),
                totals: checkpoint.row_totals(id),
                pages: Arc::clone(&self.harvest.store).pages(),
                cancel: cancel.clone(),
            };
            let preparing = Arc::clone(&self.harvest.target).prepare(work);
            // The lock of the state folder is held until the last write is over.
            let prepared = self.unless_cancelled(&cancel, Duration::MAX, preparing).await??;
            crash_point!("finish.prepared");
            self.accounts.prepared.insert(id, prepared);
        }
        Ok(())
    }

    /// Publishes what is prepared.
    async fn publish(&mut self) -> Result<(), RunError> {
        let rejects = self.rejects().await?;
        let manifest = self.accounts.manifest((self.harvest.now)())?;
        let watermarks = manifest.watermarks.clone();
        crash_point!("publish.before");
        Arc::clone(&self.harvest.target).publish(manifest, rejects).await?;
        crash_point!("publish.after");
        Arc::clone(&self.harvest.store).complete_run().await?;
        crash_point!("end.after");
        Arc::clone(&self.harvest.spool).discard().await?;
        Arc::clone(&self.harvest.target).release().await?;
        self.accounts.watermarks = watermarks;
        Ok(())
    }

    /// Everything that could not be taken, pass by pass.
    async fn rejects(&self) -> Result<Vec<Reject>, RunError> {
        let checkpoint = self.accounts.known()?;
        let mut rejects = Vec::new();
        for (place, pass) in (0..).zip(&checkpoint.plan.passes) {
            let id = PassId(place);
            if pass.yields != Yield::Rows || checkpoint.totals_of(id).counts.rejected == 0 {
                continue;
            }
            let pages = Arc::clone(&self.harvest.store).pages();
            // The store blocks, and this is the arbiter of all actors but the fetchers.
            let reading = tokio::task::spawn_blocking(move || {
                let rejecting =
                    pages.pages_of(id).filter(|page| !matches!(page, Ok(page) if page.counts.rejected == 0));
                rejecting.collect::<Result<Vec<_>, Failure>>()
            });
            for page in reading.await.map_err(|_| bug("reading the rejects panicked"))?? {
                rejects.extend(Arc::clone(&self.harvest.spool).rejects(page.frame).await?);
            }
        }
        rejects.extend(self.accounts.failed_partitions());
        Ok(rejects)
    }
}

/// Makes a pass part of the plan. It is one entry with its partitions: a resume that found a listing without them would take
/// it for one that lists nothing.
async fn extend_plan(pipeline: &Pipeline, piece: PlanPiece) -> Result<(), RunError> {
    for pass in &piece.passes {
        let added = PassAdded { stream: pass.stream };
        pipeline.planner.send(added).await.map_err(|_| bug("the planner is gone"))?;
    }
    Ok(pipeline.writer.send(ExtendPlan(piece)).await.map_err(|_| bug("the writer is gone"))??)
}

impl Pipeline {
    /// Ends all actors; returns once their arbiters have ended.
    async fn end(self) {
        let Pipeline { planner, writer, checkpointer, arbiters, .. } = self;
        // It may already have ended.
        let _ = checkpointer.send(Shutdown).await;
        drop((planner, writer));
        for arbiter in &arbiters {
            arbiter.stop();
        }
        // Joining blocks for as long as an arbiter needs to drop its tasks, so it happens on a thread for blocking.
        let joined = tokio::task::spawn_blocking(move || {
            for arbiter in arbiters {
                // An arbiter whose thread panicked has ended as well.
                let _ = arbiter.join();
            }
        });
        let _ = joined.await;
    }
}

/// A bug of ours.
pub(crate) fn bug(message: &str) -> RunError {
    RunError::Failed(Failure::new(FailureClass::Bug, message))
}
