//! The engine's source over the client: identifies, plans and fetches, and hands each kind to its room.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use dhis2::{
    Client, Error, SystemInfo,
    metadata::{IdAt, MetadataList},
};
use futures_util::future::LocalBoxFuture;
use harvester_actors::{
    failure::{Failure, FailureClass, Weight},
    follow::{Followed, StreamFacts},
    page::Page,
    partition::{Partition, Position, SourceIdentity, StreamId},
    plan::PlanBuilder,
    rate_limiter::SourceProbe,
    retry::{RetryPolicy, retry_cause},
    source::Source,
};
use harvester_pacing::{Retry, RetryAnswer};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::{
    classify::{Contact, classify},
    denials::Denials,
    gate::SourceGate,
    kind::{Extract, Selection},
    reconcile::Recount,
    server_clock,
};

/// How often a request of the plan is repeated before the whole plan is made anew, later. A plan may need 64 of them: where
/// one in five is refused, less would often be too little.
const PLAN_RETRIES: u32 = 5;

/// How often it is asked who answers, besides at the end: a restored backup or another server behind the same url need not
/// show as an outage.
const IDENTITY_INTERVAL: Duration = Duration::from_secs(180);

/// What every request that is no page is called, where refusals of one question are counted.
const PLAN: &str = "";

/// How long a ping may take that tells a page which is too heavy from a source that is gone.
const PING_MAX: Duration = Duration::from_secs(5);

/// What has been found out about a stream by this process, beyond what a checkpoint keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct FollowNotes {
    /// The number that the server was asked for after the last row.
    pub(super) recount: Recount,
    /// Listings beyond the first.
    pub(super) relistings: u32,
}

impl Default for FollowNotes {
    fn default() -> Self {
        FollowNotes { recount: Recount::NotAsked, relistings: 0 }
    }
}

/// [`FollowNotes`] of each stream.
type Notes = Mutex<BTreeMap<StreamId, FollowNotes>>;

/// What the rooms of the kinds work with.
pub(crate) struct SourceContext<'a> {
    /// The client.
    pub(crate) client: &'a Client,
    /// Requests at once, at most.
    pub(crate) in_flight: u32,
    /// From when on each stream's changes are wanted.
    pub(crate) watermarks: &'a BTreeMap<String, String>,
    /// Whether the source has ever answered.
    contact: Contact,
    /// Who knows what a refusal of the credentials means.
    denials: &'a Denials,
    /// Who remembers what was last in the way.
    gate: &'a SourceGate,
    /// What requests of the plan have found.
    found: &'a Found,
    /// What has been found out about each stream.
    notes: &'a Notes,
}

/// What requests of the plan have found: kept while it is made, so that one request that fails late costs no other.
type Found = Mutex<BTreeMap<String, IdAt>>;

impl<'a> SourceContext<'a> {
    /// What has been found out about a stream.
    pub(super) fn notes_of(&self, stream: StreamId) -> FollowNotes {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).get(&stream).copied().unwrap_or_default()
    }

    /// Remembers it.
    pub(super) fn keep_notes(&self, stream: StreamId, notes: FollowNotes) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).insert(stream, notes);
    }

    /// What an error means now.
    pub(crate) fn failure(&self, error: &Error) -> Failure {
        classify(error, self.contact)
    }

    /// Makes one request, and finds out what its failure means.
    async fn asked<T, F>(&self, request: impl Fn(&'a Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.denials.settled().await?;
        let asked_at = Instant::now();
        match request(self.client).await {
            Ok(answer) => {
                self.denials.accepted(PLAN);
                Ok(answer)
            }
            Err(error) => {
                let failure =
                    self.denials.judge(self.client, self.gate, PLAN, &error, self.failure(&error), asked_at).await;
                self.gate.in_trouble(&failure);
                Err(failure)
            }
        }
    }

    /// Makes a small request of the plan, and repeats it a few times where that may help.
    pub(crate) async fn with_retries<T, F>(&self, request: impl Fn(&'a Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        // How long the server wants to be left alone is a matter of the whole plan.
        let policy = RetryPolicy::new(PLAN_RETRIES, Duration::ZERO, seed());
        let mut retry = Retry::new(policy.seed);
        loop {
            let failure = match self.asked(&request).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            match retry.failed(retry_cause(&failure), Duration::ZERO, &policy) {
                RetryAnswer::RetryIn(delay) => tokio::time::sleep(delay).await,
                RetryAnswer::GiveUp | RetryAnswer::Outage | RetryAnswer::Exhausted => return Err(failure),
            }
        }
    }

    /// The id at one place of a collection and how many there are; from memory, where it has been asked before.
    pub(crate) async fn id_at(&self, list: &MetadataList<'_>, place: u64) -> Result<IdAt, Failure> {
        let MetadataList { collection, endpoint, filters, .. } = list;
        let key = format!("{collection} {endpoint:?} {filters:?} {place}");
        let found = || self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let known = found().get(&key).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let at = self.with_retries(|client| async move { client.id_at(list, place).await }).await?;
        found().insert(key, at.clone());
        Ok(at)
    }
}

/// What makes the waits differ, of several processes and of requests that failed together.
fn seed() -> u64 {
    static DRAWN: AtomicU32 = AtomicU32::new(0);
    u64::from(std::process::id()) << 32 | u64::from(DRAWN.fetch_add(1, Ordering::Relaxed))
}

/// From when on changes are wanted, as of the last complete run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watermarks {
    /// The database of that run, where it said which it was.
    pub(crate) system_id: Option<String>,
    /// Per stream.
    pub(crate) of_streams: BTreeMap<String, String>,
}

impl Watermarks {
    /// Whether they say nothing about this source.
    fn are_of_another(&self, source: &SourceIdentity) -> bool {
        !self.of_streams.is_empty() && self.system_id != source.system_id
    }
}

/// See the module.
pub(crate) struct Dhis2Source {
    /// The client, whose gate is the limiter.
    client: Client,
    /// What closes that gate.
    gate: SourceGate,
    /// What is wanted.
    extracts: Vec<Extract>,
    /// Requests at once, at most.
    in_flight: u32,
    /// From when on each stream's changes are wanted.
    watermarks: Watermarks,
    /// Whether it has ever answered.
    answered: AtomicBool,
    /// Who knows what a refusal of the credentials means.
    denials: Denials,
    /// What requests of the plan have found.
    found: Found,
    /// What has been found out about each stream.
    notes: Notes,
    /// When it was last asked who answers.
    identified_at: Mutex<Option<Instant>>,
    /// By how much its clock was ahead of ours when it was identified, where that is too much for a watermark.
    ahead: Mutex<Option<SignedDuration>>,
    /// Who looks after it during an outage.
    probe: Arc<OutageProbe>,
}

impl Dhis2Source {
    /// A source that fetches `extracts`. `probe_client` is the same client behind the gate of probes.
    pub(crate) fn new(
        client: Client,
        probe_client: Client,
        gate: SourceGate,
        extracts: Vec<Extract>,
        in_flight: u32,
        watermarks: Watermarks,
        probe: Arc<OutageProbe>,
    ) -> Self {
        // A probe serves one source; a second client for it would be a mistake of ours without effect.
        let _ = probe.client.set(probe_client);
        Dhis2Source {
            client,
            gate,
            extracts,
            in_flight,
            watermarks,
            answered: AtomicBool::new(false),
            denials: Denials::default(),
            found: Found::default(),
            notes: Notes::default(),
            identified_at: Mutex::default(),
            ahead: Mutex::default(),
            probe,
        }
    }

    fn contact(&self) -> Contact {
        if self.answered.load(Ordering::Relaxed) { Contact::Later } else { Contact::First }
    }

    /// Asks who is there, and remembers when.
    async fn identified<'a>(&'a self) -> Result<SourceIdentity, Failure> {
        *self.identified_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let asked_at = Timestamp::now();
        let ask = |client: &'a Client| client.system_info();
        let info = self.context().asked(ask).await?;
        let (date, zone) = (info.server_date.as_deref(), info.server_time_zone_id.as_deref());
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) =
            date.and_then(|date| server_clock::too_far_ahead(date, zone, asked_at));
        Ok(identity(&self.client, info))
    }

    /// Refuses to go on with a source that has become another. Asks from time to time.
    async fn same_source(&self) -> Result<(), Failure> {
        let is_due = {
            let mut identified_at = self.identified_at.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = identified_at.is_none_or(|at| at.elapsed() >= IDENTITY_INTERVAL);
            // One of the fetchers asks; the others go on meanwhile.
            if is_due {
                *identified_at = Some(Instant::now());
            }
            is_due
        };
        if is_due && let Ok(identity) = self.identified().await {
            self.probe.compare(&identity);
        }
        self.probe.changed.get().map_or(Ok(()), |changed| Err(changed.clone()))
    }

    /// What a failure says about the weight of its page. A source that does not even answer a ping is gone, and no page of it
    /// is too heavy.
    async fn weighed(&self, mut failure: Failure) -> Failure {
        if failure.weight == Weight::HeavyIfRepeated {
            let ping = tokio::time::timeout(PING_MAX, self.client.ping()).await;
            if !matches!(ping, Ok(Ok(()))) {
                failure.weight = Weight::HeavyIfOthersCome;
            }
        }
        failure
    }

    fn context(&self) -> SourceContext<'_> {
        SourceContext {
            client: &self.client,
            in_flight: self.in_flight,
            watermarks: &self.watermarks.of_streams,
            contact: self.contact(),
            denials: &self.denials,
            gate: &self.gate,
            found: &self.found,
            notes: &self.notes,
        }
    }
}

impl Source for Dhis2Source {
    fn identify(&self) -> LocalBoxFuture<'_, Result<SourceIdentity, Failure>> {
        Box::pin(async move {
            let identity = self.identified().await?;
            if self.answered.swap(true, Ordering::Relaxed) {
                return Ok(identity);
            }
            *self.probe.expected.lock().unwrap_or_else(PoisonError::into_inner) = Some(identity.clone());
            match self.client.me().await {
                Ok(me) if me.is_superuser() == Some(false) => tracing::info!(
                    user = me.username,
                    "this user is no superuser: objects it may not see are missing, and are not counted"
                ),
                Ok(_) => {}
                Err(error) => {
                    let failure = self.context().failure(&error);
                    if failure.class == FailureClass::Denied {
                        return Err(failure);
                    }
                    tracing::debug!(error = %failure, "cannot read /api/me");
                }
            }
            Ok(identity)
        })
    }

    fn plan<'a>(
        &'a self,
        identity: &'a SourceIdentity,
        mut plan: PlanBuilder<'a>,
    ) -> LocalBoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let mut context = self.context();
            let none = BTreeMap::new();
            if self.watermarks.are_of_another(identity) {
                tracing::warn!(
                    "another database answers than at the last complete run, so everything is fetched again"
                );
                context.watermarks = &none;
            } else if server_clock::was_ahead(context.watermarks, identity.server_date.as_deref())
                && harvester_pacing::control!("watermark-bounds")
            {
                tracing::warn!(
                    server_date = identity.server_date,
                    "the server's clock was ahead at the last complete run, so everything is fetched again"
                );
                context.watermarks = &none;
            }
            let mut identity = Cow::Borrowed(identity);
            let ahead = *self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
            let is_incremental = self.extracts.iter().any(Extract::is_incremental);
            if let Some(ahead) = ahead.filter(|_| is_incremental && harvester_pacing::control!("watermark-bounds")) {
                tracing::warn!(
                    ahead_h = ahead.as_hours(),
                    "the server's clock is ahead of this machine's: the next incremental run does not continue from this one; \
                     set the wrong clock right"
                );
                identity.to_mut().server_date = None;
            }
            for extract in &self.extracts {
                extract.plan(&context, &identity, &mut plan).await?;
            }
            plan.finish().await
        })
    }

    fn fetch<'a>(
        &'a self,
        _: &'a SourceIdentity,
        partition: &'a Partition,
        position: &'a Position,
    ) -> LocalBoxFuture<'a, Result<Page, Failure>> {
        Box::pin(async move {
            self.denials.settled().await?;
            self.same_source().await?;
            let context = self.context();
            let asked_at = Instant::now();
            let selection = Selection::of(&partition.selection)?;
            let page = selection.fetch(&context, partition, position).await;
            // What came while the source turned into another one is not of this run.
            if let Some(changed) = self.probe.changed.get() {
                return Err(changed.clone());
            }
            match page {
                Ok(page) => {
                    self.denials.accepted(&partition.key);
                    Ok(page)
                }
                Err(Unfetched::Failed(failure)) => Err(failure),
                Err(Unfetched::Wire(error)) => {
                    let mut failure = self.weighed(context.failure(&error)).await;
                    failure.is_smallest = selection.is_smallest(position.halvings);
                    let failure =
                        self.denials.judge(&self.client, &self.gate, &partition.key, &error, failure, asked_at).await;
                    self.gate.in_trouble(&failure);
                    Err(failure)
                }
            }
        })
    }

    fn follow<'a>(&'a self, facts: StreamFacts<'a>) -> LocalBoxFuture<'a, Result<Followed, Failure>> {
        Box::pin(async move {
            let Some(first) = facts.passes.first() else { return Ok(Followed::default()) };
            Selection::of(&first.pass.selection)?.follow(&self.context(), &facts).await
        })
    }

    fn last_answer(&self) -> Option<Instant> {
        self.gate.last_answer()
    }

    fn last_trouble(&self) -> Option<String> {
        self.gate.last_trouble()
    }

    fn close(&self) {
        self.gate.close();
    }

    fn requests(&self) -> u64 {
        self.client.requests_sent()
    }
}

/// Asks who is there.
async fn identify(client: &Client) -> Result<SourceIdentity, Error> {
    let info = client.system_info().await?;
    Ok(identity(client, info))
}

/// Who that is.
fn identity(client: &Client, info: SystemInfo) -> SourceIdentity {
    SourceIdentity {
        url: client.url().to_owned(),
        system_id: info.system_id,
        version: info.version.raw().to_owned(),
        minor: info.version.minor(),
        server_date: info.server_date,
    }
}

/// Why there is no page.
pub(crate) enum Unfetched {
    /// A request failed.
    Wire(Error),
    /// It is decided what that means.
    Failed(Failure),
}

impl From<Error> for Unfetched {
    fn from(error: Error) -> Self {
        Unfetched::Wire(error)
    }
}

impl From<Failure> for Unfetched {
    fn from(failure: Failure) -> Self {
        Unfetched::Failed(failure)
    }
}

/// Finds out during an outage whether the source is back, and whether it is still the same.
#[derive(Default)]
pub(crate) struct OutageProbe {
    /// The client behind the gate of probes; set once, when there is a source.
    client: OnceLock<Client>,
    /// Who answered before the outage.
    expected: Mutex<Option<SourceIdentity>>,
    /// Set once another source has answered.
    changed: OnceLock<Failure>,
}

impl OutageProbe {
    /// The database that answered, if one did and said which it is.
    pub(crate) fn system_id(&self) -> Option<String> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.system_id.clone()
    }

    /// Takes note of who answers now.
    fn compare(&self, identity: &SourceIdentity) {
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(difference) = expected.as_ref().and_then(|expected| expected.difference(identity)) {
            let failure = Failure::new(FailureClass::Changed, difference);
            // The first difference is the one to report.
            let _ = self.changed.set(
                failure.with_next("check the server; run again with --restart to start over with it as it is now"),
            );
        }
    }
}

impl SourceProbe for OutageProbe {
    fn probe(&self) -> LocalBoxFuture<'_, bool> {
        Box::pin(async move {
            let Some(client) = self.client.get() else { return true };
            if client.ping().await.is_err() {
                return false;
            }
            let is_known = self.expected.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            if !is_known {
                return true;
            }
            // It pings, but does not say who it is: still starting.
            let Ok(identity) = identify(client).await else { return false };
            self.compare(&identity);
            true
        })
    }
}
