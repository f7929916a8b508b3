//! A harvest is one run from its recovery to its last file: the phases, in order, and the verdict.
//!
//! ```text
//! recover ─▶ identify ─▶ plan ─▶ fetch ─▶ reconcile ─▶ prepare ─▶ publish ─▶ report
//! ```
//!
//! Fetching is done by the actors; everything else happens once, in order, and reads as such.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
    sync::Arc,
};

use actix::prelude::*;
use actix_rt::Arbiter;
use futures_util::stream::{self, StreamExt};
use tokio::{sync::watch, time::Instant};

use crate::{
    checkpoint::{Checkpoint, RunHeader},
    checkpoint_store::CheckpointStore,
    checkpointer::{Checkpointer, CommitAll, CurrentCheckpoint},
    crash_point,
    events::{Committed, Event, Listener},
    failure::{Failure, FailureClass},
    outage::{Wait, retry_until_outage},
    page::Reject,
    partition::{Partition, PartitionId, PartitionRole, Plan, Position, SourceIdentity, StreamId},
    planner::{AddPartitions, CurrentSettlement, Planner, Settlement},
    rate_limiter::{CurrentPace, RateLimiter},
    reconcile::{self, Known, Proof, Recount, Step},
    recovery,
    report::{Manifest, ManifestSource, ManifestStream, Outcome, Report, ReportError, StreamReport},
    reporter::{CurrentTold, Reporter, Teller},
    retry::RetryPolicy,
    sink::{Comparison, PreparedStream, Sink},
    source::Source,
    supervisor::{EndRun, Ending, RunOver, StartFetching, Stop, Supervisor, SupervisorParts},
    writer::{GrowPlan, Writer},
};

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
    /// The present time, RFC 3339, UTC: the engine has no clock on the wall.
    pub now: fn() -> String,
    /// The parts of the job that decide about rows.
    pub fingerprint: Fingerprint,
    /// Says in sentences what differs between two fingerprints.
    pub differences: Differences,
    /// Where rows come from.
    pub source: Arc<dyn Source>,
    /// Where they go.
    pub sink: Arc<dyn Sink>,
    /// What remembers.
    pub store: Arc<dyn CheckpointStore>,
    /// Who owns the budget; `None` where a test has none.
    pub limiter: Option<Addr<RateLimiter>>,
    /// Who shows what happens.
    pub listener: Arc<dyn Listener>,
    /// Tells when somebody asks for a stop.
    pub stop: watch::Receiver<Option<Stop>>,
    /// How many fetchers work at once: the ceiling of requests in flight.
    pub fetchers: u32,
    /// Over how many arbiters they are spread; 0 keeps everything on one, which paused time needs.
    pub arbiters: usize,
    /// How patient it is with a source that fails.
    pub patience: RetryPolicy,
}

/// Runs it to its end. Never fails: what went wrong is in the report. `exit_code` is left 0 for the caller.
pub async fn run(harvest: Harvest) -> Report {
    let began = Instant::now();
    let reporter = Reporter::new(Arc::clone(&harvest.listener)).start();
    let teller = Teller::new(&reporter);
    let supervisor = Supervisor::new(SupervisorParts {
        source: Arc::clone(&harvest.source),
        limiter: harvest.limiter.clone(),
        teller: teller.clone(),
        stop: harvest.stop.clone(),
        outage: harvest.patience.outage,
    })
    .start();
    let mut run = Run {
        teller,
        supervisor: supervisor.clone(),
        resumed: false,
        checkpoint: None,
        finished: BTreeMap::new(),
        accounts: BTreeMap::new(),
        settlement: Settlement::default(),
        watermarks: BTreeMap::new(),
        harvest,
    };
    let ended = run.go().await;
    // Who is gone already needs no telling, and has counted nothing.
    let _ = supervisor.send(RunOver).await;
    let told = reporter.send(CurrentTold).await.unwrap_or_default();
    let pace = match &run.harvest.limiter {
        Some(limiter) => limiter.send(CurrentPace).await.ok(),
        None => None,
    };
    let mut report = run.report(ended);
    report.retries = told.retries;
    report.peak_requests_per_second = pace.map_or(0, |pace| pace.peak_requests_per_second);
    report.warnings = told.warnings;
    report.warnings.extend(run.unseen());
    report.seconds = began.elapsed().as_secs_f64();
    report
}

/// How a run ended, before it is put into words.
enum End {
    /// All files are published.
    Published,
    /// It failed.
    Failed(Failure),
    /// It was asked to stop.
    Stopped(Stop),
    /// Fetched, but some streams do not add up.
    Mismatch(String),
    /// Partitions were refused, and no stream is complete.
    Refused(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        End::Failed(failure)
    }
}

/// How a stream stands with the server's numbers.
#[derive(Clone, Debug, Default)]
struct Account {
    /// Whether its numbers agree only because a row came twice.
    is_distrusted: bool,
    /// What the server counts now.
    recount: Option<Recount>,
    /// What the last comparison with a listing found, where there is one.
    listed: Option<Listed>,
    /// Listings beyond the first, made by this process.
    relistings: u32,
    /// What became of it; `None` as long as something may still follow.
    verdict: Option<Step>,
    /// Why it could not be compared.
    unproved: Option<Failure>,
}

/// What a comparison with a listing found.
#[derive(Clone, Copy, Debug, Default)]
struct Listed {
    /// Rows that came into being meanwhile.
    appeared: u64,
    /// Rows that went away meanwhile.
    vanished: u64,
}

impl Account {
    /// Whether nothing more can be found out.
    fn is_closed(&self) -> bool {
        self.unproved.is_some() || self.verdict.is_some_and(Step::is_last)
    }

    /// What showed that nothing is missing.
    fn proof(&self) -> Proof {
        match self.verdict {
            Some(Step::Proved(proof)) => proof,
            _ => Proof::None,
        }
    }
}

/// A run under way.
struct Run {
    /// What it was given.
    harvest: Harvest,
    /// Who shows what happens.
    teller: Teller,
    /// Who lets it be fetched.
    supervisor: Addr<Supervisor>,
    /// Whether it goes on from a checkpoint.
    resumed: bool,
    /// The durable truth as last seen.
    checkpoint: Option<Checkpoint>,
    /// Files that are prepared.
    finished: BTreeMap<StreamId, PreparedStream>,
    /// How each stream stands with the server's numbers.
    accounts: BTreeMap<StreamId, Account>,
    /// What became of partitions that did not finish.
    settlement: Settlement,
    /// From where the next incremental run goes on, once this one is published.
    watermarks: BTreeMap<String, String>,
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

impl Run {
    /// Goes through the phases.
    async fn go(&mut self) -> Result<(), End> {
        let recovery = recovery::recover(&self.harvest.sink, &self.harvest.store).await?;
        self.resumed = recovery.checkpoint.is_some();
        self.teller.tell(Event::Recovered {
            resumed_run: recovery.checkpoint.as_ref().map(|checkpoint| checkpoint.header.run_id.clone()),
            cut_bytes: recovery.cut_bytes,
            rebuilt: recovery.rebuilt,
        });
        self.checkpoint = recovery.checkpoint;
        self.same_job()?;

        let identity = self.patiently(|run| run.source.identify()).await?;
        self.teller.tell(Event::SourceIdentified(identity.clone()));
        self.begin(&identity).await?;

        loop {
            let pipeline = self.spawn(&identity)?;
            let fetched = self.fetch(&pipeline).await;
            pipeline.end().await;
            fetched?;

            let taken = self.prepare().await?;
            // A row that came twice may hide one that did not come. Only a listing tells.
            if self.distrust(&taken) {
                continue;
            }
            if let Some(mismatch) = self.first_mismatch(&taken)? {
                return Err(End::Mismatch(mismatch));
            }
            self.same_source().await?;
            return self.publish(&taken).await;
        }
    }

    /// Refuses to publish what another source may have sent: one that took the place of the first without an outage.
    async fn same_source(&self) -> Result<(), End> {
        let identity = self.patiently(|run| run.source.identify()).await?;
        self.is_source_of_run(&identity)
    }

    /// Refuses a source that is not the one the run began with.
    fn is_source_of_run(&self, identity: &SourceIdentity) -> Result<(), End> {
        match self.known()?.header.source.difference(identity) {
            None => Ok(()),
            Some(difference) => Err(End::Failed(
                Failure::new(FailureClass::Changed, difference)
                    .with_next("check the url; run again with --restart to begin anew with the source as it is now"),
            )),
        }
    }

    /// Refuses to go on with a job whose rows would be others.
    fn same_job(&self) -> Result<(), End> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        if checkpoint.header.fingerprint == self.harvest.fingerprint {
            return Ok(());
        }
        let differences = (self.harvest.differences)(&checkpoint.header.fingerprint, &self.harvest.fingerprint);
        let message = format!("the job has changed since run {}: {}", checkpoint.header.run_id, differences.join("; "));
        Err(End::Failed(
            Failure::new(FailureClass::Changed, message)
                .with_next("change it back to go on, or run again with --restart to begin anew"),
        ))
    }

    /// Fixes what the run is: reads it from the checkpoint, or plans it and makes the plan durable.
    async fn begin(&mut self, identity: &SourceIdentity) -> Result<(), End> {
        match &self.checkpoint {
            Some(_) => self.is_source_of_run(identity)?,
            None => {
                let plan = self.patiently(|run| run.source.plan(identity)).await?;
                if let Some(fault) = plan.fault() {
                    return Err(End::Failed(Failure::new(FailureClass::Bug, fault)));
                }
                let header = RunHeader {
                    run_id: self.harvest.run_id.clone(),
                    job: self.harvest.job.clone(),
                    started_at: (self.harvest.now)(),
                    fingerprint: self.harvest.fingerprint.clone(),
                    source: identity.clone(),
                    plan,
                };
                crash_point!("run.begin.before");
                let frame = Arc::clone(&self.harvest.sink).begin(header.clone()).await?;
                crash_point!("run.begin.spool");
                Arc::clone(&self.harvest.store).begin(header.clone(), frame.to).await?;
                crash_point!("run.begin.after");
                self.checkpoint = Some(Checkpoint::begun(header, frame.to));
            }
        }
        let checkpoint = self.known()?;
        self.teller.tell(Event::PlanMade {
            run_id: checkpoint.header.run_id.clone(),
            plan: Arc::new(checkpoint.header.plan.clone()),
            committed: checkpoint
                .partitions
                .iter()
                .map(|(id, state)| Committed {
                    partition: *id,
                    pages: u64::from(state.position.seq),
                    counts: state.counts,
                    is_finished: state.position.is_finished(),
                })
                .collect(),
        });
        Ok(())
    }

    /// Asks the source until it answers, or has been gone for too long, or somebody asks for a stop.
    async fn patiently<'a, T, F, Ask>(&'a self, ask: Ask) -> Result<T, End>
    where
        Ask: Fn(&'a Harvest) -> F,
        F: Future<Output = Result<T, Failure>>,
    {
        self.unless_stopped(self.asked(ask)).await?.map_err(|failure| match failure.class {
            FailureClass::Garbled => End::Refused(failure),
            _ => End::Failed(failure),
        })
    }

    /// Asks the source until it answers, or has been gone for too long.
    async fn asked<'a, T, F, Ask>(&'a self, ask: Ask) -> Result<T, Failure>
    where
        Ask: Fn(&'a Harvest) -> F,
        F: Future<Output = Result<T, Failure>>,
    {
        let harvest = &self.harvest;
        let tell = |Wait { failure, attempts, delay, patience_left }: Wait<'_>| {
            let Failure { class, message, .. } = failure.clone();
            self.teller.tell(Event::SourceWaitedFor { class, message, attempts, delay, patience_left });
        };
        let (last_answer, last_trouble) = (|| harvest.source.last_answer(), || harvest.source.last_trouble());
        retry_until_outage(harvest.patience, harvest.limiter.as_ref(), last_answer, last_trouble, tell, || ask(harvest))
            .await
    }

    /// Waits for `work`, or for somebody to ask for a stop.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, End> {
        let mut stop = self.harvest.stop.clone();
        let asked = async move {
            match stop.wait_for(Option::is_some).await {
                Ok(stop) => stop.clone(),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            done = work => Ok(done),
            Some(stop) = asked => {
                self.teller.tell(Event::Stopping { reason: stop.reason.clone() });
                Err(End::Stopped(stop))
            }
        }
    }

    /// Starts the actors, the last stage first, so that each is born with the address of the next.
    fn spawn(&self, identity: &SourceIdentity) -> Result<Pipeline, End> {
        let checkpoint = self.known()?.clone();
        let harvest = &self.harvest;
        let fetchers = harvest.fetchers.max(1);
        let arbiters: Vec<Arbiter> = (0..harvest.arbiters.min(fetchers as usize)).map(|_| Arbiter::new()).collect();
        let end_run: Recipient<EndRun> = self.supervisor.clone().recipient();

        let positions: HashMap<PartitionId, Position> =
            checkpoint.partitions.iter().map(|(id, state)| (*id, state.position.clone())).collect();
        let finished: BTreeSet<PartitionId> =
            positions.iter().filter(|(_, position)| position.is_finished()).map(|(id, _)| *id).collect();
        let plan = &checkpoint.header.plan;
        let optional = plan.partitions.iter().filter(|partition| plan.stream_of(partition).optional);
        let optional = optional.map(|partition| partition.id).collect();
        let partitions = plan.partitions.iter().cloned().map(Arc::new).collect();

        let planner = Planner::new(
            partitions,
            &finished,
            optional,
            harvest.patience,
            Arc::clone(&harvest.source),
            self.teller.clone(),
            end_run.clone(),
        )
        .start();
        let checkpointer = Checkpointer::new(
            Arc::clone(&harvest.sink),
            Arc::clone(&harvest.store),
            self.teller.clone(),
            end_run,
            checkpoint,
        )
        .start();
        let writer = Writer::new(Arc::clone(&harvest.sink), checkpointer.clone(), positions).start();
        Ok(Pipeline { planner, writer, checkpointer, arbiters, identity: Arc::new(identity.clone()), fetchers })
    }

    /// Fetches all partitions, and whatever it takes for their numbers to be explained.
    async fn fetch(&mut self, pipeline: &Pipeline) -> Result<(), End> {
        loop {
            self.fetch_all(pipeline).await?;
            let more = self.explain().await?;
            if more.is_empty() {
                return Ok(());
            }
            self.grow(pipeline, more).await?;
        }
    }

    /// Lets the fetchers work until all partitions are settled, and makes everything durable.
    async fn fetch_all(&mut self, pipeline: &Pipeline) -> Result<(), End> {
        let start = StartFetching {
            planner: pipeline.planner.clone(),
            writer: pipeline.writer.clone(),
            identity: Arc::clone(&pipeline.identity),
            fetchers: pipeline.fetchers,
            arbiters: pipeline.arbiters.iter().map(Arbiter::handle).collect(),
        };
        let Ending { failure, stop } = self.supervisor.send(start).await.map_err(|_| bug("the supervisor is gone"))?;
        let committed = pipeline.checkpointer.send(CommitAll).await.map_err(|_| bug("the checkpointer is gone"))?;
        let checkpoint = pipeline.checkpointer.send(CurrentCheckpoint).await;
        self.checkpoint = Some(checkpoint.map_err(|_| bug("the checkpointer is gone"))??);
        self.settlement = pipeline.planner.send(CurrentSettlement).await.map_err(|_| bug("the planner is gone"))?;
        self.set_unproved_apart();
        if let Some(failure) = failure {
            return Err(End::Failed(failure));
        }
        committed?;
        if let Some(stop) = stop {
            return Err(End::Stopped(stop));
        }
        if let Some(failure) = self.settlement.unavailable.values().next() {
            return Err(End::Failed(failure.clone()));
        }
        if self.settlement.open > 0 {
            return Err(bug("fetchers left before all partitions were settled"));
        }
        Ok(())
    }

    /// Makes partitions part of the plan, durably enough for a resume to know them.
    async fn grow(&mut self, pipeline: &Pipeline, partitions: Vec<Partition>) -> Result<(), End> {
        pipeline.writer.send(GrowPlan(partitions.clone())).await.map_err(|_| bug("the writer is gone"))??;
        pipeline.planner.send(AddPartitions(partitions.clone())).await.map_err(|_| bug("the planner is gone"))?;
        for partition in &partitions {
            self.finished.remove(&partition.stream);
        }
        let mut plan = self.known()?.header.plan.clone();
        plan.partitions.extend(partitions);
        self.teller.tell(Event::PlanGrown(Arc::new(plan)));
        Ok(())
    }

    /// A listing that cannot be had leaves rows unproved, not lost.
    fn set_unproved_apart(&mut self) {
        let Some(checkpoint) = &self.checkpoint else { return };
        let partitions = &checkpoint.header.plan.partitions;
        let is_row = |id: &PartitionId| partitions[id.0 as usize].role == PartitionRole::Rows;
        for (id, failure) in self.settlement.lost.extract_if(.., |id, _| !is_row(id)) {
            self.accounts.entry(partitions[id.0 as usize].stream).or_default().unproved.get_or_insert(failure);
        }
    }

    /// What is to be fetched for each stream to be proved complete: see [`reconcile`].
    async fn explain(&mut self) -> Result<Vec<Partition>, End> {
        loop {
            let (more, to_count) = self.next_partitions().await?;
            if !more.is_empty() || to_count.is_empty() {
                return Ok(more);
            }
            let plan = self.known()?.header.plan.clone();
            self.recount(&plan, &to_count).await?;
        }
    }

    /// One step of that for each stream: what is to be fetched, and which streams are to be counted.
    async fn next_partitions(&mut self) -> Result<(Vec<Partition>, Vec<StreamId>), End> {
        let plan = Arc::new(self.known()?.header.plan.clone());
        let mut more: Vec<Partition> = Vec::new();
        let mut to_count = Vec::new();
        for (stream, of_plan) in streams_in(&plan) {
            let Some(first) = plan.partitions_of(stream).next() else { continue };
            if !self.is_whole(stream) || self.accounts.get(&stream).is_some_and(Account::is_closed) {
                continue;
            }
            let comparison = match plan.newest_listing(stream) {
                Some(_) => Some(self.compare(&plan, stream).await?),
                None => None,
            };
            let step = reconcile::next_step(&self.facts(&plan, stream, comparison.as_ref()));
            let rows = self.stream_counts(stream).rows.max(of_plan.expected_rows.unwrap_or(0));
            let account = self.accounts.entry(stream).or_default();
            account.verdict = Some(step);
            if let Some(Comparison { missing, relisted, vanished, nameless, .. }) = &comparison {
                let listed = account.listed.get_or_insert_default();
                listed.vanished = *vanished;
                if step == Step::Ask {
                    listed.appeared += (missing.len() as u64).saturating_sub(nameless + relisted);
                }
                let Listed { appeared, vanished } = *listed;
                self.teller.tell(Event::Reconciled { stream, appeared, vanished });
            }
            let source = &self.harvest.source;
            let (role, selections) = match (step, &comparison) {
                (Step::Ask, Some(Comparison { missing, vanished_keys, .. })) => {
                    (PartitionRole::Repair, source.repair(&first.selection, missing, vanished_keys))
                }
                (Step::Recount, _) => {
                    to_count.push(stream);
                    continue;
                }
                (Step::List, _) => {
                    // What is counted counts behind the newest listing.
                    account.recount = None;
                    account.relistings += u32::from(comparison.is_some());
                    (PartitionRole::Listing, Vec::from_iter(source.listing(&first.selection, rows)))
                }
                _ => continue,
            };
            let word = if role == PartitionRole::Listing { "listing" } else { "repair" };
            for selection in selections {
                let id = PartitionId((plan.partitions.len() + more.len()) as u32);
                let key = format!("{}/{word}-{id}", of_plan.name);
                more.push(Partition { id, stream, key, role, selection, requests: None, expected_rows: None });
            }
        }
        Ok((more, to_count))
    }

    /// What is known of a stream.
    fn facts<'a>(&self, plan: &Plan, stream: StreamId, comparison: Option<&'a Comparison>) -> Known<'a> {
        let counts = self.stream_counts(stream);
        let account = self.accounts.get(&stream);
        let of_stream = || plan.partitions_of(stream);
        let newest_repair = of_stream().filter(|partition| partition.role == PartitionRole::Repair).last();
        let newest_listing = plan.newest_listing(stream).map(|listing| listing.id);
        let source = &self.harvest.source;
        Known {
            expected: plan.streams[stream.0 as usize].expected_rows,
            rows: counts.rows + counts.rejected,
            miscounted: self.partition_states(stream).map(|state| state.counts.miscounted).sum(),
            is_distrusted: account.is_some_and(|account| account.is_distrusted),
            recount: account.and_then(|account| account.recount).unwrap_or(Recount::NotAsked),
            can_list: of_stream().next().is_some_and(|first| source.listing(&first.selection, 0).is_some()),
            comparison,
            is_asked: newest_repair.map(|repair| repair.id) > newest_listing,
            relistings: account.map_or(0, |account| account.relistings),
        }
    }

    /// Asks how many rows there are now, of these streams.
    async fn recount(&mut self, plan: &Plan, streams: &[StreamId]) -> Result<(), End> {
        let asked = streams.iter().filter_map(|stream| {
            let first = plan.partitions_of(*stream).next()?;
            let is_listed = plan.newest_listing(*stream).is_some();
            Some((*stream, &first.selection, if is_listed { reconcile::HIDDEN_COUNTS } else { 1 }))
        });
        let asked: Vec<_> = asked.collect();
        let run = &*self;
        let counting = |(stream, selection, times)| async move {
            match run.asked(move |harvest| harvest.source.count(selection, times)).await {
                Ok(recount) => Ok((stream, recount)),
                // What cannot be counted is listed.
                Err(failure) if outcome_of(failure.class) == Outcome::Refused => Ok((stream, Recount::Refused)),
                Err(failure) => Err(failure),
            }
        };
        let at_once = self.harvest.fetchers.max(1) as usize;
        let counting = stream::iter(asked).map(counting).buffer_unordered(at_once).collect::<Vec<_>>();
        let counted = self.unless_stopped(counting).await?;
        for counted in counted {
            let (stream, recount) = counted?;
            self.accounts.entry(stream).or_default().recount = Some(recount);
        }
        Ok(())
    }

    /// Compares a stream with its newest listing.
    async fn compare(&self, plan: &Arc<Plan>, stream: StreamId) -> Result<Comparison, End> {
        let spans = Arc::clone(&self.harvest.store).reader();
        let comparing = Arc::clone(&self.harvest.sink).compare(stream, Arc::clone(plan), spans);
        Ok(self.unless_stopped(comparing).await??)
    }

    /// Whether nothing of a stream was given up.
    fn is_whole(&self, stream: StreamId) -> bool {
        let Some(checkpoint) = &self.checkpoint else { return false };
        checkpoint.header.plan.partitions_of(stream).all(|partition| {
            !self.settlement.lost.contains_key(&partition.id) && !self.settlement.left_out.contains_key(&partition.id)
        })
    }

    /// Whether a stream is left out as a whole.
    fn is_left_out(&self, stream: StreamId) -> bool {
        let Some(checkpoint) = &self.checkpoint else { return false };
        let mut of_stream = checkpoint.header.plan.partitions_of(stream);
        of_stream.any(|partition| self.settlement.left_out.contains_key(&partition.id))
    }

    /// Prepares the files of all streams that there are, and says which.
    async fn prepare(&mut self) -> Result<Vec<StreamId>, End> {
        let plan = Arc::new(self.known()?.header.plan.clone());
        let taken: Vec<StreamId> = streams_in(&plan).map(|(id, _)| id).filter(|id| !self.is_left_out(*id)).collect();
        if let Some(lost) = self.settlement.lost.values().next()
            && !taken.iter().any(|stream| self.is_whole(*stream))
        {
            return Err(End::Refused(lost.clone()));
        }
        for stream in taken.iter().filter(|stream| !self.finished.contains_key(stream)).copied().collect::<Vec<_>>() {
            self.teller.tell(Event::Finishing { stream });
            let spans = Arc::clone(&self.harvest.store).reader();
            let preparing = Arc::clone(&self.harvest.sink).prepare(stream, Arc::clone(&plan), spans);
            let prepared = self.unless_stopped(preparing).await??;
            crash_point!("finish.prepared");
            self.finished.insert(stream, prepared);
        }
        Ok(taken)
    }

    /// Publishes what is prepared.
    async fn publish(&mut self, taken: &[StreamId]) -> Result<(), End> {
        let plan = self.known()?.header.plan.clone();
        let rejects = self.rejects(&plan).await?;
        let manifest = self.manifest(&plan, taken)?;
        let watermarks = manifest.watermarks.clone();
        crash_point!("publish.before");
        Arc::clone(&self.harvest.sink).publish(manifest, rejects).await?;
        crash_point!("publish.after");
        Arc::clone(&self.harvest.store).end().await?;
        crash_point!("end.after");
        Arc::clone(&self.harvest.sink).discard().await?;
        self.watermarks = watermarks;
        Ok(())
    }

    /// Whether there are streams whose total proves nothing, since a row came twice. They are listed, and prepared again.
    fn distrust(&mut self, taken: &[StreamId]) -> bool {
        let mut found = false;
        for stream in taken {
            let account = self.accounts.entry(*stream).or_default();
            let is_doubled = self.finished.get(stream).is_some_and(|prepared| prepared.duplicates > 0);
            if is_doubled && account.proof() == Proof::Total && !account.is_distrusted {
                account.is_distrusted = true;
                account.verdict = None;
                self.finished.remove(stream);
                found = true;
            }
        }
        found
    }

    /// The first stream that does not add up, as a sentence.
    fn first_mismatch(&self, taken: &[StreamId]) -> Result<Option<String>, End> {
        let plan = &self.known()?.header.plan;
        Ok(taken.iter().find_map(|stream| self.mismatch(plan, *stream)))
    }

    /// What does not add up in a stream, as a sentence.
    fn mismatch(&self, plan: &Plan, stream: StreamId) -> Option<String> {
        let name = &plan.streams[stream.0 as usize].name;
        let counts = self.stream_counts(stream);
        let fetched = self.fetched_rows(stream);
        let prepared = self.finished.get(&stream)?;
        let accounted = prepared.rows + counts.rejected + prepared.duplicates + counts.filtered;
        if fetched != accounted {
            return Some(format!("{fetched} rows of {name} were fetched, {accounted} are accounted for"));
        }
        let account = self.accounts.get(&stream)?;
        if let Some(failure) = &account.unproved {
            return Some(format!("whether all rows of {name} are there cannot be shown: {failure}"));
        }
        match account.verdict? {
            Step::Proved(_) => None,
            Step::Missing(rows) => Some(format!("{rows} of the rows of {name} that the server lists it does not send")),
            Step::Contradicted(rows) => Some(format!(
                "the server contradicts itself: it sends {rows} rows of {name} that it did not list, so other rows may be \
                 missing; perhaps several servers answer at this url, and not all of them are up to date"
            )),
            Step::Hidden(rows) => Some(format!(
                "the server contradicts itself: it counts {rows} rows of {name} that it neither lists nor sends; perhaps several \
                 servers answer at this url, and not all of them are up to date"
            )),
            Step::Recount | Step::List | Step::Ask => {
                Some(format!("whether all rows of {name} are there cannot be shown: the server does not list them"))
            }
        }
    }

    /// How many rows fewer than the server had counted there are, as sentences: its listing is believed, but not silently.
    fn unseen(&self) -> Vec<String> {
        let Some(checkpoint) = &self.checkpoint else { return Vec::new() };
        let sentence = |(stream, of_plan): (StreamId, &crate::partition::Stream)| {
            let prepared = self.finished.get(&stream)?;
            self.accounts.get(&stream)?.listed?;
            let unseen = of_plan.expected_rows?.checked_sub(prepared.rows + self.stream_counts(stream).rejected)?;
            (unseen > 0).then(|| {
                format!(
                    "the server had counted {unseen} rows more in {} than it lists and sends: they are deleted by now, came \
                     twice, or are not for this user",
                    of_plan.name
                )
            })
        };
        streams_in(&checkpoint.header.plan).filter_map(sentence).collect()
    }

    /// Rows of a stream that the server sent, listings aside.
    fn fetched_rows(&self, stream: StreamId) -> u64 {
        self.partition_states(stream).map(|state| state.counts.fetched).sum()
    }

    /// The states of a stream's partitions that hold rows.
    fn partition_states(&self, stream: StreamId) -> impl Iterator<Item = &crate::checkpoint::PartitionState> {
        self.checkpoint.iter().flat_map(move |checkpoint| {
            checkpoint
                .header
                .plan
                .partitions_of(stream)
                .filter(|partition| partition.role != PartitionRole::Listing)
                .filter_map(|partition| checkpoint.partitions.get(&partition.id))
        })
    }

    /// The numbers of a stream as far as they are durable.
    fn stream_counts(&self, stream: StreamId) -> StreamReport {
        let mut report = StreamReport::default();
        for state in self.partition_states(stream) {
            report.rows += state.counts.kept;
            report.bytes += state.counts.bytes;
            report.pages += u64::from(state.position.seq);
            report.filtered += state.counts.filtered;
            report.rejected += state.counts.rejected;
        }
        report
    }

    /// Everything that could not be taken, partition by partition.
    async fn rejects(&self, plan: &Plan) -> Result<Vec<Reject>, End> {
        let partitions = &self.known()?.partitions;
        let with_rejects: Vec<PartitionId> =
            partitions.iter().filter(|(_, state)| state.counts.rejected > 0).map(|(id, _)| *id).collect();
        let reader = Arc::clone(&self.harvest.store).reader();
        // The store blocks, and this is the arbiter of all actors but the fetchers.
        let reading = tokio::task::spawn_blocking(move || {
            let mut rejects = Vec::new();
            for span in with_rejects.into_iter().flat_map(|id| reader.spans(id)) {
                rejects.extend(span?.rejects);
            }
            Ok::<_, Failure>(rejects)
        });
        let mut rejects = reading.await.map_err(|_| bug("reading the rejects panicked"))??;
        for (id, failure) in &self.settlement.lost {
            rejects.push(Reject {
                partition: plan.partitions[id.0 as usize].key.clone(),
                class: failure.class.as_str().to_owned(),
                message: failure.message.clone(),
                id: None,
                bytes: None,
            });
        }
        Ok(rejects)
    }

    /// The manifest of the files that are prepared.
    fn manifest(&self, plan: &Plan, taken: &[StreamId]) -> Result<Manifest, End> {
        let header = &self.known()?.header;
        let mut streams = BTreeMap::new();
        let mut watermarks = BTreeMap::new();
        for stream in taken {
            let Some(prepared) = self.finished.get(stream) else { continue };
            let of_plan = &plan.streams[stream.0 as usize];
            let counts = self.stream_counts(*stream);
            let complete = self.is_whole(*stream) && counts.rejected == 0;
            if let (Some(watermark), true) = (watermark(of_plan, prepared), complete) {
                watermarks.insert(of_plan.name.clone(), watermark.to_owned());
            }
            streams.insert(
                of_plan.name.clone(),
                ManifestStream {
                    file: prepared.file.clone(),
                    rows: prepared.rows,
                    bytes: prepared.bytes,
                    sha256: prepared.sha256.clone(),
                    duplicates: prepared.duplicates,
                    filtered: counts.filtered,
                    rejected: counts.rejected,
                    expected: of_plan.expected_rows,
                    proof: self.accounts.get(stream).map_or(Proof::None, Account::proof),
                    complete,
                },
            );
        }
        Ok(Manifest {
            version: 1,
            job: header.job.clone(),
            run_id: header.run_id.clone(),
            source: ManifestSource {
                url: header.source.url.clone(),
                system_id: header.source.system_id.clone(),
                version: header.source.version.clone(),
            },
            started_at: header.started_at.clone(),
            finished_at: (self.harvest.now)(),
            complete: streams.values().all(|stream| stream.complete),
            watermarks,
            streams,
        })
    }

    /// The checkpoint, which exists from `begin` on.
    fn known(&self) -> Result<&Checkpoint, End> {
        self.checkpoint.as_ref().ok_or_else(|| bug("the run has no checkpoint"))
    }

    /// Puts the end into words and numbers.
    fn report(&self, ended: Result<(), End>) -> Report {
        let mut streams = BTreeMap::new();
        let mut left_out = BTreeMap::new();
        let mut rejected = !self.settlement.lost.is_empty();
        if let Some(checkpoint) = &self.checkpoint {
            let plan = &checkpoint.header.plan;
            left_out.extend(plan.left_out.iter().map(|left| (left.stream.clone(), left.reason.clone())));
            for (id, failure) in &self.settlement.left_out {
                let partition = &plan.partitions[id.0 as usize];
                left_out.insert(plan.stream_of(partition).name.clone(), failure.message.clone());
            }
            for (stream, of_plan) in streams_in(plan) {
                if self.is_left_out(stream) {
                    continue;
                }
                let mut report = self.stream_counts(stream);
                report.expected = of_plan.expected_rows;
                if let Some(prepared) = self.finished.get(&stream) {
                    report.rows = prepared.rows;
                    report.bytes = prepared.bytes;
                    report.duplicates = prepared.duplicates;
                }
                if let Some(listed) = self.accounts.get(&stream).and_then(|account| account.listed) {
                    report.appeared = Some(listed.appeared);
                    report.vanished = Some(listed.vanished);
                }
                rejected |= report.rejected > 0;
                streams.insert(of_plan.name.clone(), report);
            }
        }
        let (outcome, error) = match ended.err().unwrap_or(End::Published) {
            End::Published if rejected => (Outcome::Rejected, self.rejected_error()),
            End::Published => (Outcome::Complete, None),
            End::Failed(failure) => {
                let outcome = outcome_of(failure.class);
                (outcome, Some(self.error(failure.class.as_str(), failure.message, failure.next, outcome)))
            }
            End::Stopped(stop) => {
                let message = format!("stopped by {}", stop.reason);
                (stop.outcome, Some(self.error("stopped", message, None, stop.outcome)))
            }
            End::Mismatch(message) => {
                (Outcome::Mismatch, Some(self.error("mismatch", message, None, Outcome::Mismatch)))
            }
            End::Refused(failure) => {
                let error = self.error(failure.class.as_str(), failure.message, failure.next, Outcome::Refused);
                (Outcome::Refused, Some(error))
            }
        };
        let run_id = self.checkpoint.as_ref().map(|checkpoint| checkpoint.header.run_id.clone());
        Report {
            outcome,
            exit_code: 0,
            resumed: self.resumed,
            job: self.harvest.job.clone(),
            run_id: run_id.unwrap_or_default(),
            streams,
            requests: self.harvest.source.requests(),
            retries: 0,
            seconds: 0.0,
            peak_requests_per_second: 0,
            error,
            left_out,
            watermarks: self.watermarks.clone(),
            warnings: Vec::new(),
        }
    }

    /// What to say of a run that is published but not complete.
    fn rejected_error(&self) -> Option<ReportError> {
        let message = match self.settlement.lost.values().next() {
            Some(failure) => failure.message.clone(),
            None => "some rows could not be taken".to_owned(),
        };
        Some(self.error("rejected", message, None, Outcome::Rejected))
    }

    /// An error with the next step that fits its outcome, unless the room that failed knows a better one.
    fn error(&self, class: &str, message: String, next: Option<String>, outcome: Outcome) -> ReportError {
        let next = next.unwrap_or_else(|| next_step(outcome).to_owned());
        ReportError { class: class.to_owned(), message, next }
    }
}

impl Pipeline {
    /// Ends all actors; returns once their arbiters are gone.
    async fn end(self) {
        let Pipeline { planner, writer, checkpointer, arbiters, .. } = self;
        // Who is gone already needs no telling.
        let _ = checkpointer.send(RunOver).await;
        drop((planner, writer));
        for arbiter in &arbiters {
            arbiter.stop();
        }
        // Joining blocks for as long as an arbiter needs to drop its tasks, so it happens on a thread for blocking.
        let joined = tokio::task::spawn_blocking(move || {
            for arbiter in arbiters {
                // An arbiter whose thread panicked is gone as well.
                let _ = arbiter.join();
            }
        });
        let _ = joined.await;
    }
}

/// The outcome of a run that ended with a failure of this class.
pub fn outcome_of(class: FailureClass) -> Outcome {
    match class {
        FailureClass::Transient => Outcome::Unavailable,
        FailureClass::TooHeavy | FailureClass::Rejected | FailureClass::Forbidden | FailureClass::Garbled => {
            Outcome::Refused
        }
        FailureClass::Denied => Outcome::Denied,
        FailureClass::Changed => Outcome::Changed,
        FailureClass::Local => Outcome::Storage,
        FailureClass::Damaged => Outcome::Damaged,
        FailureClass::Bug => Outcome::Bug,
    }
}

/// What to do after a run that ended so.
fn next_step(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Complete => "nothing",
        Outcome::Rejected => "look at rejects.ndjson",
        Outcome::Mismatch => "run the same command again to compare again, or with --restart to fetch everything anew",
        Outcome::Unavailable | Outcome::Limit | Outcome::Interrupted => "run the same command to go on",
        Outcome::Denied => "check user name, password or token, then run the same command",
        Outcome::Refused => "check url, collections, fields and filters of the job",
        Outcome::Locked => "wait for the other process, or stop it",
        Outcome::Damaged => "run again with --restart to begin anew",
        Outcome::Changed => "undo the change, or run again with --restart to begin anew",
        Outcome::Storage => "free space or repair the disk, then run the same command to go on",
        Outcome::Invalid => "correct the job file",
        Outcome::Bug => "run the same command to go on, and report the bug",
    }
}

/// The streams of a plan with their ids.
fn streams_in(plan: &Plan) -> impl Iterator<Item = (StreamId, &crate::partition::Stream)> {
    plan.streams.iter().enumerate().map(|(place, stream)| (StreamId(place as u32), stream))
}

/// From where the next incremental run of a stream goes on: the source's time when this run began or that of the newest
/// row, whichever is earlier. A clock that was ahead for a moment then hides no change. Both are the source's local time,
/// year first, so the earlier one is the lesser text. A stream without rows says nothing: what is known of it stays.
fn watermark<'a>(of_plan: &'a crate::partition::Stream, prepared: &'a PreparedStream) -> Option<&'a str> {
    let began = of_plan.watermark.as_deref()?;
    if !harvester_pacing::control!("watermark-bounds") {
        return Some(began);
    }
    let newest = prepared.newest.as_deref().unwrap_or(began);
    (prepared.rows > 0).then(|| newest.min(began))
}

/// A bug of ours, as an end.
fn bug(message: &str) -> End {
    End::Failed(Failure::new(FailureClass::Bug, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::StreamOrder;

    #[test]
    fn a_watermark_is_the_earlier_of_the_beginning_and_the_newest_row() {
        let began = "2024-05-01T08:00:00.000";
        for (planned, rows, newest, expected) in [
            (Some(began), 2, Some("2024-04-01T00:00:00.000"), Some("2024-04-01T00:00:00.000")),
            (Some(began), 2, Some("2024-05-01T08:00:00.001"), Some(began)),
            (Some(began), 2, Some("2034-05-01T08:00:00"), Some(began)),
            (Some(began), 2, None, Some(began)),
            (Some(began), 0, None, None),
            (None, 2, Some("2024-04-01T00:00:00.000"), None),
        ] {
            let stream = crate::partition::Stream {
                name: String::new(),
                order: StreamOrder::Keyset,
                expected_rows: None,
                optional: false,
                watermark: planned.map(str::to_owned),
            };
            let prepared = PreparedStream {
                file: String::new(),
                rows,
                bytes: 0,
                sha256: String::new(),
                duplicates: 0,
                newest: newest.map(str::to_owned),
            };
            assert_eq!(watermark(&stream, &prepared), expected, "{planned:?}, {rows} rows, {newest:?}");
        }
    }
}
