//! The rate limiter owns the budget of one origin: no request leaves without a permit, and permits keep every limit at once.
//!
//! ```text
//! sender ──NextPermit──▶ RateLimiter ──Permit──▶ sender ──PermitUpdate: sent, ended (at the latest when dropped)──▶ RateLimiter
//!                            │
//!                            └── outage: SourceProbe, whose own request asks for NextPermit { probe: true }
//! ```
//!
//! A permit is granted when the first waiter in the queue has passed all gates, in this order:
//!
//! ```text
//! pause         none before a `Retry-After` is over, or in the first 1.05 s after an unclean end
//! breaker       during an outage only the probe
//! concurrency   as many at once as the source answers well; not for the probe
//! bucket        leaky-bucket: a few every 50 ms rather than all at once
//! window        never more than N in 1.05 s, evenly spread; a send counts from its grant until 1.05 s after it was sent
//! ```
//!
//! The waiter sends at once when it gets its permit, and says how it ended. Retries, probes and polls are requests like any
//! other. First come, first served; a waiter that is gone when its permit comes takes nothing with it.
//!
//! It owns the window, the bucket, the concurrency controller and the breaker (all in `harvester-pacing`), and shares
//! nothing: two jobs of one origin in one process share the *actor* ([`RateLimiter::for_origin`]), each for as long as it holds
//! its [`Share`]. The limits in force are the lowest of those that live. It does not retry, does not
//! know what a request is for, and never ends a run: how long an outage may last is the supervisor's to say.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actix::{
    WeakAddr,
    dev::{MessageResponse, OneshotSender},
    prelude::*,
};
use futures_core::future::LocalBoxFuture;
use harvester_pacing::{
    Breaker, BreakerState, BucketSettings, COLD_START_WAIT, Concurrency, RequestOutcome, Started, Window,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{sync::oneshot, time::Instant};

use crate::{events, last_will::LastWill};

/// Timeout of a probe, the wait for its permit included. As long as the breaker's longest opening, so that a probe that
/// hangs in a black hole delays the next one by nothing.
const PROBE_MAX: Duration = harvester_pacing::breaker::OPEN_MAX;

/// After an outage this long, what was learnt about concurrency is forgotten: the source that comes back is another one. A
/// shorter one may have been a few refusals in a row, and has lowered the concurrency like any other.
const OUTAGE_FORGETS: Duration = Duration::from_secs(10);

/// How much longer than asked a `Retry-After` is waited for, at random, so that many clients of one server do not return
/// together: at most this part of it,
const RETRY_AFTER_JITTER: f64 = 0.1;

/// and at most this long.
const RETRY_AFTER_JITTER_MAX: Duration = Duration::from_secs(2);

/// Asks to send one request. The reply comes when it may leave, which is then at once.
///
/// To give up waiting, drop the future of the reply.
#[derive(Clone, Copy, Debug, Default, Message)]
#[rtype(result = "Result<Permit, LimiterClosed>")]
pub struct NextPermit {
    /// Whether this is the request of a [`SourceProbe`], the only one that passes the breaker during an outage.
    pub probe: bool,
}

/// Asks for the state of the limiter.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "LimiterSnapshot")]
pub struct CurrentLimiter;

/// Progress of a permit. Sent by [`Permit`].
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct PermitUpdate {
    permit: u64,
    event: PermitEvent,
}

/// Progress of a permit.
#[derive(Clone, Copy, Debug)]
enum PermitEvent {
    /// The first byte of its request was sent at this time.
    Sent(Instant),
    /// Its request ended; sent once for each, at the latest when it is dropped.
    Ended { class: u64, outcome: RequestOutcome, elapsed: Duration },
}

/// Another job wants to share this budget. Sent before the job gets the address.
#[derive(Message)]
#[rtype(result = "()")]
struct ShareBudget(Sharer);

/// A job's share has ended. Sent by [`Share`] when it is dropped.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
struct ShareEnded(ShareId);

/// Which share; unique in this process.
type ShareId = u64;

/// A job's part in the budget of an origin, for as long as it is held: when it is dropped, also by a panic, the job's limits are
/// no longer in force, and its probe is never asked again.
#[must_use = "a share that is dropped has ended"]
pub struct Share {
    limiter: Addr<RateLimiter>,
    _ends: LastWill<ShareEnded>,
}

impl Share {
    /// The limiter of the origin.
    pub fn limiter(&self) -> &Addr<RateLimiter> {
        &self.limiter
    }
}

/// The limiter is gone: the run is ending.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no more requests are let through: the run is ending")]
pub struct LimiterClosed;

/// Finds out during an outage whether the source is back.
///
/// Called by the limiter when the breaker wants to know, never twice at a time, and given up after eight seconds.
pub trait SourceProbe: Send + Sync {
    /// Sends something cheap, in a permit of `NextPermit { probe: true }`: an ordinary permit would wait for the end of the outage.
    ///
    /// `true` lets all requests go on. Whatever must be known before they do (is it still the same source?) may be asked
    /// here too, each request in a probe's permit.
    fn probe(&self) -> LocalBoxFuture<'_, bool>;
}

/// The limits of one job.
#[derive(Clone, Copy, Debug)]
pub struct RateLimiterSettings {
    /// No 1.05 s hold more requests than this; at least 1.
    pub requests_per_second: u32,
    /// Never more requests at once than this; at least 1. The controller works below it.
    pub in_flight: u32,
    /// It is unknown what was sent in the last second, for instance after a kill: send nothing for 1.05 s.
    pub cold_start: bool,
    /// Seed of the jitter. Equal seeds, equal runs.
    pub seed: u64,
}

/// A permit to send one request, now.
///
/// Dropped without [`Permit::end`], also by a panic, it counts as abandoned: its place is free again, and its send stays in the
/// window, since it may have been sent.
#[must_use = "a permit that is not used still counts as a request"]
pub struct Permit {
    id: u64,
    class: u64,
    will: LastWill<PermitUpdate>,
}

/// State of the limiter.
#[derive(Clone, Copy, Debug, MessageResponse)]
pub struct LimiterSnapshot {
    /// N: what no 1.05 s exceed.
    pub limit_per_second: u32,
    /// Permits that have not ended.
    pub in_flight: u32,
    /// Permits that may be in use at the moment.
    pub concurrency_limit: u32,
    /// Waiters in the queue.
    pub waiting: u32,
    /// What blocks the first of them, or would if there were one; `None` when nothing does, and when the queue is empty while
    /// requests are in flight.
    pub waiting_for: Option<WaitReason>,
    /// When that ends, if known.
    pub until: Option<Instant>,
    /// State of the breaker.
    pub breaker: BreakerState,
    /// Since when nothing but probes was sent; `None` while requests are.
    pub open_since: Option<Instant>,
    /// The most permits granted in any one second so far.
    pub peak_requests_per_second: u32,
    /// Permits granted so far.
    pub sent: u64,
}

/// Why the first waiter has no permit yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WaitReason {
    /// The server sent `Retry-After`.
    RetryAfter,
    /// The first 1.05 s after an unclean end.
    ColdStart,
    /// The source does not answer; a probe will tell when it does.
    Outage,
    /// As many requests are out as the source answers well.
    Concurrency,
    /// The next few are due in some milliseconds.
    Pace,
    /// The last second is full.
    Window,
}

/// Owner of one origin's budget; see the module.
pub struct RateLimiter {
    /// N in any 1.05 s.
    window: Window,
    /// Spreads the sends inside the window.
    bucket: Arc<leaky_bucket::RateLimiter>,
    /// The bucket's permit for the next send.
    bucket_permit: BucketPermit,
    /// Limits the number at once.
    concurrency: Concurrency,
    /// Whether at all.
    breaker: Breaker,
    /// The jobs that share the budget; first the one whose probe is asked next whether the source is back.
    sharers: VecDeque<Sharer>,
    /// End of the server's `Retry-After`.
    retry_after: Option<Instant>,
    /// Until when a predecessor's requests may count.
    cold_until: Option<Instant>,
    /// Requests for a permit, first come first.
    waiting: VecDeque<Waiter>,
    /// Probes that wait; before all others.
    waiting_probes: VecDeque<Waiter>,
    /// Permits that have not ended.
    in_flight: HashMap<u64, InFlight>,
    /// Permits granted; the next one's name.
    sent: u64,
    /// The timer that looks at the queue again.
    alarm: Option<(Instant, SpawnHandle)>,
    /// Source of the jitter.
    random: SmallRng,
}

/// A job that shares the budget.
struct Sharer {
    id: ShareId,
    settings: RateLimiterSettings,
    /// Finds out whether the source is back.
    probe: Arc<dyn SourceProbe>,
}

impl Sharer {
    /// A sharer with a name of its own.
    fn new(settings: RateLimiterSettings, probe: Arc<dyn SourceProbe>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Sharer { id: NEXT.fetch_add(1, Ordering::Relaxed), settings, probe }
    }
}

/// A request for a permit.
struct Waiter {
    /// When it was made.
    asked: Instant,
    /// Receives the permit.
    answer: oneshot::Sender<Result<Permit, LimiterClosed>>,
}

impl Waiter {
    /// Whether it has gone away.
    fn is_closed(&self) -> bool {
        self.answer.is_closed()
    }
}

/// A permit that has not ended.
struct InFlight {
    started: Started,
    probe: bool,
}

/// The bucket's permit for one send. It keeps until it is used.
enum BucketPermit {
    /// Not asked for.
    None,
    /// Asked for.
    Awaited(SpawnHandle),
    /// Given.
    InHand,
}

impl RateLimiter {
    /// A limiter of its own. Two for one origin would send twice as much: see [`RateLimiter::for_origin`].
    pub fn new(settings: RateLimiterSettings, probe: Arc<dyn SourceProbe>) -> Self {
        Self::of(Sharer::new(settings, probe))
    }

    /// The limiter of one job.
    fn of(sharer: Sharer) -> Self {
        let settings = sharer.settings;
        RateLimiter {
            window: Window::new(settings.requests_per_second),
            bucket: bucket(settings.requests_per_second),
            bucket_permit: BucketPermit::None,
            concurrency: Concurrency::new(settings.in_flight),
            breaker: Breaker::default(),
            sharers: VecDeque::from([sharer]),
            retry_after: None,
            cold_until: settings.cold_start.then(|| Instant::now() + COLD_START_WAIT),
            waiting: VecDeque::new(),
            waiting_probes: VecDeque::new(),
            in_flight: HashMap::new(),
            sent: 0,
            alarm: None,
            random: SmallRng::seed_from_u64(settings.seed),
        }
    }

    /// A share of the limiter of `origin` in this process: of the one that lives, or of a new one on the caller's arbiter.
    ///
    /// Where one lives, the lower of each limit holds from now on, and as long as both shares are held. It lives as long as
    /// its address is held, and no longer than its arbiter: call this on an arbiter that outlives the jobs.
    ///
    /// - `origin`: scheme, host and port, in one spelling.
    pub fn for_origin(origin: &str, settings: RateLimiterSettings, probe: Arc<dyn SourceProbe>) -> Share {
        static LIMITERS: Mutex<BTreeMap<String, WeakAddr<RateLimiter>>> = Mutex::new(BTreeMap::new());
        // Nothing in here panics half way; a poisoned map is a whole one.
        let mut limiters = LIMITERS.lock().unwrap_or_else(PoisonError::into_inner);
        limiters.retain(|_, limiter| limiter.upgrade().is_some_and(|limiter| limiter.connected()));
        if let Some(limiter) = limiters.get(origin).and_then(WeakAddr::upgrade) {
            let sharer = Sharer::new(settings, Arc::clone(&probe));
            let id = sharer.id;
            // An address that is new has a place in the mailbox; a refusal means that the limiter has just died.
            if limiter.try_send(ShareBudget(sharer)).is_ok() {
                return share(limiter, id);
            }
        }
        let sharer = Sharer::new(settings, probe);
        let id = sharer.id;
        let limiter = RateLimiter::of(sharer).start();
        limiters.insert(origin.to_owned(), limiter.downgrade());
        share(limiter, id)
    }

    /// Puts the lowest limits of all sharers in force; without any, those that were.
    fn keep_limits(&mut self, ctx: &mut Context<Self>) {
        let limits = self.sharers.iter().map(|sharer| sharer.settings);
        let Some(lowest) = limits.reduce(|one, other| RateLimiterSettings {
            requests_per_second: one.requests_per_second.min(other.requests_per_second),
            in_flight: one.in_flight.min(other.in_flight),
            ..one
        }) else {
            return;
        };
        self.concurrency.change_ceiling(lowest.in_flight);
        if self.window.requests_per_second() != lowest.requests_per_second.max(1) {
            self.window.change(lowest.requests_per_second);
            self.bucket = bucket(self.window.requests_per_second());
            if let BucketPermit::Awaited(asked) = std::mem::replace(&mut self.bucket_permit, BucketPermit::None) {
                ctx.cancel_future(asked);
            }
        }
    }

    /// Grants as many permits as the gates let through, and arranges to be called when they let through more.
    ///
    /// Called after everything that happens.
    fn grant_permits(&mut self, ctx: &mut Context<Self>) {
        self.waiting.retain(|waiter| !waiter.is_closed());
        self.waiting_probes.retain(|waiter| !waiter.is_closed());
        loop {
            let now = Instant::now();
            let probe = !self.waiting_probes.is_empty();
            if !probe && self.waiting.is_empty() {
                return;
            }
            self.begin_probe(now, ctx);
            match self.blocked_by(now, probe) {
                None => self.grant(now, probe, ctx),
                Some((WaitReason::Pace, _)) => {
                    if !self.ask_bucket(ctx) {
                        return;
                    }
                }
                Some((_, until)) => {
                    if let Some(until) = until {
                        self.wake_at(now, until, ctx);
                    }
                    return;
                }
            }
        }
    }

    /// The first closed gate before the next waiter, and until when, if known.
    fn blocked_by(&self, now: Instant, probe: bool) -> Option<(WaitReason, Option<Instant>)> {
        if let Some(until) = self.retry_after.filter(|until| *until > now) {
            return Some((WaitReason::RetryAfter, Some(until)));
        }
        if let Some(until) = self.cold_until.filter(|until| *until > now) {
            return Some((WaitReason::ColdStart, Some(until)));
        }
        if !probe && !self.breaker.allows() {
            let until = match self.breaker.state() {
                BreakerState::Open { until } => Some(until),
                BreakerState::Closed | BreakerState::HalfOpen => None,
            };
            return Some((WaitReason::Outage, until));
        }
        if !probe && !self.concurrency.has_room() {
            return Some((WaitReason::Concurrency, None));
        }
        if !matches!(self.bucket_permit, BucketPermit::InHand) {
            return Some((WaitReason::Pace, None));
        }
        let wait = self.window.wait(now);
        if !wait.is_zero() {
            return Some((WaitReason::Window, Some(now + wait)));
        }
        None
    }

    /// Grants the first waiter its permit.
    fn grant(&mut self, now: Instant, probe: bool, ctx: &mut Context<Self>) {
        let queue = if probe { &mut self.waiting_probes } else { &mut self.waiting };
        let Some(waiter) = queue.pop_front() else { return };
        if waiter.is_closed() {
            return;
        }
        let id = self.sent;
        self.sent += 1;
        self.bucket_permit = BucketPermit::None;
        self.window.record_grant(id, waiter.asked, now);
        self.in_flight.insert(id, InFlight { started: self.concurrency.started(now), probe });
        let event = PermitEvent::Ended { class: 0, outcome: RequestOutcome::Abandoned, elapsed: Duration::ZERO };
        let permit =
            Permit { id, class: 0, will: LastWill::new(ctx.address().recipient(), PermitUpdate { permit: id, event }) };
        // A receiver that is dropped at this very moment gives the permit back by dropping it.
        let _ = waiter.answer.send(Ok(permit));
    }

    /// Asks the bucket for a permit; `true` when it gives it at once.
    fn ask_bucket(&mut self, ctx: &mut Context<Self>) -> bool {
        if let BucketPermit::Awaited(_) = self.bucket_permit {
            return false;
        }
        if self.bucket.try_acquire(1) {
            self.bucket_permit = BucketPermit::InHand;
            return true;
        }
        let given = Arc::clone(&self.bucket).acquire_owned(1).into_actor(self).map(|(), limiter, ctx| {
            limiter.bucket_permit = BucketPermit::InHand;
            limiter.grant_permits(ctx);
        });
        self.bucket_permit = BucketPermit::Awaited(ctx.spawn(given));
        false
    }

    /// Starts a probe when one is due. Called while there are waiters only.
    fn begin_probe(&mut self, now: Instant, ctx: &mut Context<Self>) {
        // A probe that may not be sent yet would only use up its time.
        let paused = self.retry_after.is_some_and(|until| until > now);
        let Some(probe) = self.sharers.front().map(|sharer| Arc::clone(&sharer.probe)) else { return };
        if paused || !self.breaker.try_start_probe(now) {
            return;
        }
        // A task of its own: a probe that panics is a probe that failed, not the end of the limiter.
        let answer = actix_rt::spawn(async move { tokio::time::timeout(PROBE_MAX, probe.probe()).await });
        let ended = async move { matches!(answer.await, Ok(Ok(true))) }.into_actor(self);
        ctx.spawn(ended.map(|answered, limiter, ctx| limiter.probe_ended(answered, ctx)));
    }

    /// Takes note of what a probe found.
    fn probe_ended(&mut self, answered: bool, ctx: &mut Context<Self>) {
        let now = Instant::now();
        if answered {
            let outage = self.breaker.open_since().map_or(Duration::ZERO, |since| now.duration_since(since));
            if outage >= OUTAGE_FORGETS {
                self.concurrency.restart(now);
            }
            tracing::debug!(outage_s = outage.as_secs(), "the source answers again");
        } else if !self.sharers.is_empty() {
            // Another job's probe may have the better connection, or still have one.
            self.sharers.rotate_left(1);
        }
        self.breaker.probe_ended(now, answered);
        self.grant_permits(ctx);
    }

    /// Grants nothing until `wait` is over, and a little longer.
    fn pause(&mut self, now: Instant, wait: Duration) {
        let jitter = wait.mul_f64(self.random.random_range(0.0..=RETRY_AFTER_JITTER)).min(RETRY_AFTER_JITTER_MAX);
        let until = now + wait + jitter;
        if wait > Duration::ZERO && self.retry_after.is_none_or(|known| known < until) {
            tracing::debug!(wait_s = wait.as_secs(), "the source asked clients to wait");
            self.retry_after = Some(until);
        }
    }

    /// Takes note of how a permit ended.
    fn permit_ended(&mut self, permit: u64, class: u64, outcome: RequestOutcome, elapsed: Duration) {
        let Some(out) = self.in_flight.remove(&permit) else { return };
        let now = Instant::now();
        // If it was not marked as sent, it may have been all the same.
        self.window.mark_sent(permit, now);
        if let Some(wait) = outcome.retry_after() {
            self.pause(now, wait);
        }
        // A ping tells nothing about how quick pages are; its answer comes from the probe itself.
        let outcome = if out.probe { RequestOutcome::Abandoned } else { outcome };
        self.concurrency.ended(now, out.started, class, outcome, elapsed);
        if self.breaker.record(now, out.started.at(), outcome) {
            tracing::debug!("the source does not answer");
        }
    }

    /// Looks at the queue again at `until`.
    fn wake_at(&mut self, now: Instant, until: Instant, ctx: &mut Context<Self>) {
        if let Some((at, alarm)) = self.alarm.take() {
            if at == until {
                self.alarm = Some((at, alarm));
                return;
            }
            ctx.cancel_future(alarm);
        }
        let alarm = ctx.run_later(until.saturating_duration_since(now), |limiter, ctx| {
            limiter.alarm = None;
            limiter.grant_permits(ctx);
        });
        self.alarm = Some((until, alarm));
    }
}

/// The bucket that paces this limit.
fn bucket(requests_per_second: u32) -> Arc<leaky_bucket::RateLimiter> {
    let settings = BucketSettings::of(requests_per_second);
    let permits = settings.permits as usize;
    let bucket = leaky_bucket::RateLimiter::builder()
        .refill(permits)
        .max(permits)
        .initial(0)
        .interval(settings.interval)
        .build();
    Arc::new(bucket)
}

impl Actor for RateLimiter {
    type Context = Context<Self>;
}

impl Handler<NextPermit> for RateLimiter {
    type Result = PendingPermit;

    fn handle(&mut self, NextPermit { probe }: NextPermit, ctx: &mut Self::Context) -> Self::Result {
        let (answer, permit) = oneshot::channel();
        let waiter = Waiter { asked: Instant::now(), answer };
        if probe {
            self.waiting_probes.push_back(waiter)
        } else {
            self.waiting.push_back(waiter)
        }
        self.grant_permits(ctx);
        PendingPermit(permit)
    }
}

impl Handler<PermitUpdate> for RateLimiter {
    type Result = ();

    fn handle(&mut self, PermitUpdate { permit, event }: PermitUpdate, ctx: &mut Self::Context) {
        match event {
            PermitEvent::Sent(at) => self.window.mark_sent(permit, at),
            PermitEvent::Ended { class, outcome, elapsed } => self.permit_ended(permit, class, outcome, elapsed),
        }
        self.grant_permits(ctx);
    }
}

impl Handler<CurrentLimiter> for RateLimiter {
    type Result = LimiterSnapshot;

    fn handle(&mut self, _: CurrentLimiter, _: &mut Self::Context) -> Self::Result {
        let waiting = self.waiting.iter().chain(&self.waiting_probes).filter(|waiter| !waiter.is_closed()).count();
        let ordinary = self.waiting.iter().any(|waiter| !waiter.is_closed());
        let only_probes = waiting > 0 && !ordinary;
        // With an empty queue and nothing in flight, all senders are waiting out what they were told.
        let is_told = waiting > 0 || self.in_flight.is_empty();
        let blocked_by = if is_told { self.blocked_by(Instant::now(), only_probes) } else { None };
        LimiterSnapshot {
            limit_per_second: self.window.requests_per_second(),
            in_flight: self.concurrency.in_flight(),
            concurrency_limit: self.concurrency.limit(),
            waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
            waiting_for: blocked_by.map(|(reason, _)| reason),
            until: blocked_by.and_then(|(_, until)| until),
            breaker: self.breaker.state(),
            open_since: self.breaker.open_since(),
            peak_requests_per_second: self.window.peak_requests_per_second(),
            sent: self.sent,
        }
    }
}

impl Handler<ShareBudget> for RateLimiter {
    type Result = ();

    fn handle(&mut self, ShareBudget(sharer): ShareBudget, ctx: &mut Self::Context) {
        if sharer.settings.cold_start {
            self.cold_until = Some(Instant::now() + COLD_START_WAIT);
        }
        // The newest first: the connections of the others are older.
        self.sharers.push_front(sharer);
        self.keep_limits(ctx);
        self.grant_permits(ctx);
    }
}

impl Handler<ShareEnded> for RateLimiter {
    type Result = ();

    fn handle(&mut self, ShareEnded(ended): ShareEnded, ctx: &mut Self::Context) {
        if harvester_pacing::control!("share-end") {
            self.sharers.retain(|sharer| sharer.id != ended);
        }
        self.keep_limits(ctx);
        self.grant_permits(ctx);
    }
}

/// A share by this name.
fn share(limiter: Addr<RateLimiter>, id: ShareId) -> Share {
    let ends = LastWill::new(limiter.clone().recipient(), ShareEnded(id));
    Share { limiter, _ends: ends }
}

/// The reply to [`NextPermit`]: gives up its place in the queue when the waiter is gone.
pub struct PendingPermit(oneshot::Receiver<Result<Permit, LimiterClosed>>);

impl MessageResponse<RateLimiter, NextPermit> for PendingPermit {
    fn handle(self, _: &mut Context<RateLimiter>, waiter: Option<OneshotSender<Result<Permit, LimiterClosed>>>) {
        let Some(mut waiter) = waiter else { return };
        actix_rt::spawn(async move {
            // Actix itself does not check whether the receiver still waits; the permit would be lost.
            let permit = tokio::select! {
                biased;
                () = waiter.closed() => return,
                permit = self.0 => permit.unwrap_or(Err(LimiterClosed)),
            };
            // A receiver that is dropped at this very moment gives the permit back by dropping it.
            let _ = waiter.send(permit);
        });
    }
}

impl Permit {
    /// Says what kind of request this is, for instance a hash of endpoint and page size: what answers took is compared only
    /// between requests of one class.
    pub fn of_class(mut self, class: u64) -> Self {
        self.class = class;
        self
    }

    /// Marks the request as sent: its first byte is being written. Without this it counts as about to be sent until it ends.
    pub fn mark_sent(&self) {
        self.will.tell(PermitUpdate { permit: self.id, event: PermitEvent::Sent(Instant::now()) });
    }

    /// Reports how the request ended.
    ///
    /// - `elapsed`: what the server took for it, without the waiter's own time; zero for "all the time since the permit".
    pub fn end(mut self, outcome: RequestOutcome, elapsed: Duration) {
        self.will.rewrite(PermitUpdate {
            permit: self.id,
            event: PermitEvent::Ended { class: self.class, outcome, elapsed },
        });
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Permit").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Waits for a permit at `limiter`, and treats one that is gone like one that is going. Dropping the future gives up the wait.
///
/// # Errors
/// [`LimiterClosed`] when the limiter's arbiter has ended or ends meanwhile.
pub async fn next_permit(limiter: &Addr<RateLimiter>, probe: bool) -> Result<Permit, LimiterClosed> {
    limiter.send(NextPermit { probe }).await.unwrap_or(Err(LimiterClosed))
}

impl LimiterSnapshot {
    /// The same for people and status files. Waits of milliseconds are not told: they are how a limit works.
    #[must_use]
    pub fn to_pace(&self) -> events::Pace {
        let reason = self.waiting_for.and_then(|reason| match reason {
            WaitReason::RetryAfter => Some("the source asked clients to wait (Retry-After)"),
            WaitReason::ColdStart => Some("the last run did not end cleanly and may have sent requests a moment ago"),
            WaitReason::Outage => Some("the source does not answer"),
            WaitReason::Concurrency | WaitReason::Pace | WaitReason::Window => None,
        });
        events::Pace {
            requests: self.sent,
            requests_per_second_limit: self.limit_per_second,
            peak_requests_per_second: self.peak_requests_per_second,
            in_flight: self.in_flight,
            in_flight_limit: self.concurrency_limit,
            waiting: reason.map(|reason| events::Waiting {
                reason: reason.to_owned(),
                remaining: self.until.map(|until| until.saturating_duration_since(Instant::now())),
            }),
        }
    }
}

#[cfg(test)]
#[path = "scenarios.rs"]
mod scenarios;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    const OVERLOADED: RequestOutcome = RequestOutcome::Overloaded { retry_after: None };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const SETTINGS: RateLimiterSettings =
        RateLimiterSettings { requests_per_second: 1000, in_flight: 8, cold_start: false, seed: 7 };

    /// Answers as told, and counts how often it was asked.
    #[derive(Default)]
    struct Scripted {
        answers: Mutex<VecDeque<Answer>>,
        asked: AtomicU32,
    }

    enum Answer {
        Yes,
        No,
        Panic,
        Never,
    }

    impl Scripted {
        fn with(answers: impl IntoIterator<Item = Answer>) -> Arc<Self> {
            Arc::new(Scripted { answers: Mutex::new(answers.into_iter().collect()), asked: AtomicU32::new(0) })
        }

        fn asked(&self) -> u32 {
            self.asked.load(Ordering::Relaxed)
        }
    }

    impl SourceProbe for Scripted {
        fn probe(&self) -> LocalBoxFuture<'_, bool> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let answer = self.answers.lock().unwrap().pop_front();
            Box::pin(async move {
                match answer {
                    Some(Answer::Yes) => true,
                    Some(Answer::No) | None => false,
                    Some(Answer::Panic) => panic!("as the test wants it"),
                    Some(Answer::Never) => std::future::pending().await,
                }
            })
        }
    }

    fn limiter(settings: RateLimiterSettings) -> Addr<RateLimiter> {
        RateLimiter::new(settings, Scripted::with([])).start()
    }

    async fn permit(limiter: &Addr<RateLimiter>) -> Permit {
        next_permit(limiter, false).await.unwrap()
    }

    async fn state_of(limiter: &Addr<RateLimiter>) -> LimiterSnapshot {
        limiter.send(CurrentLimiter).await.unwrap()
    }

    /// Five requests that are refused.
    async fn outage(limiter: &Addr<RateLimiter>) {
        for _ in 0..5 {
            permit(limiter).await.end(OVERLOADED, ms(1));
        }
        assert!(state_of(limiter).await.open_since.is_some());
    }

    #[actix::test]
    async fn permits_are_granted_in_the_order_they_were_asked_for() {
        tokio::time::pause();
        let limiter = limiter(RateLimiterSettings { in_flight: 1, ..SETTINGS });
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        for waiter in 0..20 {
            let (limiter, told) = (limiter.clone(), told.clone());
            actix_rt::spawn(async move {
                let permit = permit(&limiter).await;
                told.send(waiter).unwrap();
                tokio::time::sleep(ms(10)).await;
                permit.end(RequestOutcome::Answered, ms(10));
            });
        }
        for waiter in 0..20 {
            assert_eq!(heard.recv().await, Some(waiter));
        }
    }

    #[actix::test]
    async fn a_waiter_that_is_gone_takes_no_place_no_send_and_no_bucket_permit() {
        tokio::time::pause();
        let limiter = limiter(RateLimiterSettings { in_flight: 1, requests_per_second: 2, ..SETTINGS });
        let first = permit(&limiter).await;
        for _ in 0..50 {
            let gone = tokio::time::timeout(ms(5), permit(&limiter)).await;
            assert!(gone.is_err());
        }
        assert_eq!(state_of(&limiter).await.waiting, 0);
        first.end(RequestOutcome::Answered, ms(10));
        // Only the two that were granted count: two may leave within the first window.
        let began = Instant::now();
        permit(&limiter).await.end(RequestOutcome::Answered, ms(10));
        assert!(began.elapsed() < ms(1050), "{:?}", began.elapsed());
        assert_eq!(state_of(&limiter).await.sent, 2);
    }

    #[actix::test]
    async fn a_permit_that_is_dropped_frees_its_place_and_stays_in_the_window() {
        tokio::time::pause();
        let limiter = limiter(RateLimiterSettings { in_flight: 1, ..SETTINGS });
        drop(permit(&limiter).await);
        let task = permit(&limiter).await;
        let died = actix_rt::spawn(async move {
            let _task = task;
            panic!("as the test wants it");
        });
        assert!(died.await.is_err());
        let third = permit(&limiter).await;
        third.mark_sent();
        let pace = state_of(&limiter).await;
        assert_eq!((pace.in_flight, pace.sent, pace.peak_requests_per_second), (1, 3, 3));
        assert_eq!(pace.breaker, BreakerState::Closed);
        drop(third);
    }

    #[actix::test]
    async fn nothing_leaves_in_the_first_1050_ms_after_an_unclean_end() {
        tokio::time::pause();
        let began = Instant::now();
        let limiter = limiter(RateLimiterSettings { cold_start: true, ..SETTINGS });
        let asked = actix_rt::spawn({
            let limiter = limiter.clone();
            async move { permit(&limiter).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(state_of(&limiter).await.waiting_for, Some(WaitReason::ColdStart));
        drop(asked.await.unwrap());
        assert!(began.elapsed() >= COLD_START_WAIT && began.elapsed() < ms(1200), "{:?}", began.elapsed());
    }

    #[actix::test]
    async fn retry_after_stops_everybody_never_too_short_and_hardly_longer() {
        tokio::time::pause();
        for seed in 0..10 {
            let limiter = limiter(RateLimiterSettings { seed, ..SETTINGS });
            let bystander = permit(&limiter).await;
            permit(&limiter).await.end(RequestOutcome::Failed { retry_after: Some(s(30)) }, ms(1));
            let said = Instant::now();
            // A shorter one does not shorten it, and a probe is no exception.
            bystander.end(RequestOutcome::Overloaded { retry_after: Some(s(1)) }, ms(1));
            let snapshot = state_of(&limiter).await;
            assert_eq!(snapshot.waiting_for, Some(WaitReason::RetryAfter), "nobody asks, nothing is out");
            let probe = actix_rt::spawn({
                let limiter = limiter.clone();
                async move { drop(next_permit(&limiter, true).await) }
            });
            tokio::task::yield_now().await;
            let snapshot = state_of(&limiter).await;
            assert_eq!(snapshot.waiting_for, Some(WaitReason::RetryAfter));
            let remaining = snapshot.to_pace().waiting.unwrap().remaining.unwrap();
            assert!(remaining >= s(30) && remaining <= s(32), "{remaining:?}");
            drop(permit(&limiter).await);
            probe.await.unwrap();
            assert!(said.elapsed() >= s(30) && said.elapsed() <= s(33), "{:?}", said.elapsed());
        }
    }

    #[actix::test]
    async fn during_an_outage_only_the_probe_leaves_and_its_yes_lets_all_go_on() {
        tokio::time::pause();
        let probe = Scripted::with([Answer::No, Answer::No, Answer::Yes]);
        let limiter = RateLimiter::new(SETTINGS, Arc::<Scripted>::clone(&probe)).start();
        outage(&limiter).await;
        let opened = Instant::now();
        let granted = permit(&limiter).await;
        // Probes after 1, 3 and 7 seconds.
        assert_eq!(probe.asked(), 3);
        assert!(opened.elapsed() >= ms(6900) && opened.elapsed() < ms(7200), "{:?}", opened.elapsed());
        let snapshot = state_of(&limiter).await;
        assert_eq!((snapshot.sent, snapshot.concurrency_limit), (6, 1), "gently again");
        assert_eq!(snapshot.open_since, None);
        drop(granted);
    }

    #[actix::test]
    async fn a_probe_that_panics_or_never_ends_has_failed_and_the_next_one_follows() {
        tokio::time::pause();
        let probe = Scripted::with([Answer::Panic, Answer::Never, Answer::Never, Answer::Yes]);
        let limiter = RateLimiter::new(SETTINGS, Arc::<Scripted>::clone(&probe)).start();
        outage(&limiter).await;
        let opened = Instant::now();
        drop(permit(&limiter).await);
        assert_eq!(probe.asked(), 4);
        // 1 s, 3 s; that one hangs for 8 s, and so does the next.
        assert!(opened.elapsed() >= s(18) && opened.elapsed() < s(20), "{:?}", opened.elapsed());
    }

    #[actix::test]
    async fn a_probes_own_request_passes_the_breaker_and_a_full_house() {
        tokio::time::pause();
        let limiter = limiter(RateLimiterSettings { in_flight: 1, ..SETTINGS });
        let stuck = permit(&limiter).await;
        let granted = tokio::time::timeout(s(1), next_permit(&limiter, true)).await;
        drop(granted.unwrap().unwrap());
        drop(stuck);
        outage(&limiter).await;
        let granted = tokio::time::timeout(s(1), next_permit(&limiter, true)).await;
        drop(granted.unwrap().unwrap());
        let ordinary = tokio::time::timeout(ms(900), permit(&limiter)).await;
        assert!(ordinary.is_err());
    }

    #[actix::test]
    async fn nobody_is_probed_for_nobody() {
        tokio::time::pause();
        let probe = Scripted::with([]);
        let limiter = RateLimiter::new(SETTINGS, Arc::<Scripted>::clone(&probe)).start();
        outage(&limiter).await;
        tokio::time::sleep(s(3600)).await;
        assert_eq!(probe.asked(), 0);
        let waiting = tokio::time::timeout(ms(100), permit(&limiter)).await;
        assert!(waiting.is_err());
        assert_eq!(probe.asked(), 1);
    }

    #[actix::test]
    async fn two_jobs_of_one_origin_share_one_budget_and_the_lower_limits_hold() {
        tokio::time::pause();
        let origin = "https://shared.example.org";
        let settings = RateLimiterSettings { requests_per_second: 50, in_flight: 8, ..SETTINGS };
        let one = RateLimiter::for_origin(origin, settings, Scripted::with([]));
        let lower = RateLimiterSettings { requests_per_second: 20, in_flight: 4, ..SETTINGS };
        let two = RateLimiter::for_origin(origin, lower, Scripted::with([]));
        let other = RateLimiter::for_origin("https://other.example.org", settings, Scripted::with([]));
        assert_eq!(one.limiter(), two.limiter());
        assert_ne!(one.limiter(), other.limiter());
        let (one, two) = (one.limiter(), two.limiter());

        let sends = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = [one, two, one, two, one, two]
            .map(|limiter| {
                let (limiter, sends) = (limiter.clone(), Arc::clone(&sends));
                actix_rt::spawn(async move {
                    for _ in 0..30 {
                        let permit = permit(&limiter).await;
                        sends.lock().unwrap().push(Instant::now());
                        tokio::time::sleep(ms(5)).await;
                        permit.end(RequestOutcome::Answered, ms(5));
                    }
                })
            })
            .into();
        for task in tasks {
            task.await.unwrap();
        }
        let sends = std::mem::take(&mut *sends.lock().unwrap());
        for pair in sends.windows(21) {
            assert!(pair[20] - pair[0] >= ms(1050));
        }
        let took = (*sends.last().unwrap() - sends[0]).as_secs_f64();
        assert!(180.0 / took >= 0.94 * 20.0, "{took}");
        let pace = state_of(one).await;
        assert_eq!((pace.limit_per_second, pace.sent, pace.peak_requests_per_second), (20, 180, 20));
        assert!(pace.concurrency_limit <= 4);
    }

    #[actix::test]
    async fn a_limiter_that_is_gone_is_replaced_and_its_waiters_learn_of_it() {
        let origin = "https://gone.example.org";
        let arbiter = Arbiter::new();
        let (told, heard) = oneshot::channel();
        arbiter.spawn(async move {
            let settings = RateLimiterSettings { in_flight: 1, ..SETTINGS };
            let _ = told.send(RateLimiter::for_origin(origin, settings, Scripted::with([])));
        });
        let share = heard.await.unwrap_or_else(|_| panic!("no share"));
        let first = share.limiter().clone();
        let held = permit(&first).await;
        let waiting = actix_rt::spawn({
            let first = first.clone();
            async move { next_permit(&first, false).await.map(drop) }
        });
        while state_of(&first).await.waiting == 0 {
            tokio::task::yield_now().await;
        }
        arbiter.stop();
        arbiter.join().unwrap();
        assert_eq!(waiting.await.unwrap(), Err(LimiterClosed));
        assert_eq!(next_permit(&first, false).await.map(drop), Err(LimiterClosed));
        drop(held);

        let second = RateLimiter::for_origin(origin, SETTINGS, Scripted::with([]));
        assert_ne!(&first, second.limiter());
        drop(permit(second.limiter()).await);
    }

    /// Sends as fast as the limiter lets it, eight at a time, each answered after `wait`; when each send left.
    async fn saturate(limiter: &Addr<RateLimiter>, sends: u32, wait: Duration) -> Vec<Instant> {
        let left = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (limiter, left) = (limiter.clone(), Arc::clone(&left));
                actix_rt::spawn(async move {
                    for _ in 0..sends / 8 {
                        let permit = permit(&limiter).await;
                        left.lock().unwrap().push(Instant::now());
                        tokio::time::sleep(wait).await;
                        permit.end(RequestOutcome::Answered, wait);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        std::mem::take(&mut *left.lock().unwrap())
    }

    #[actix::test]
    async fn a_limit_that_a_second_job_lowered_comes_back_when_that_job_ends() {
        tokio::time::pause();
        let origin = "https://raised.example.org";
        let settings = RateLimiterSettings { requests_per_second: 50, in_flight: 8, ..SETTINGS };
        let lower = RateLimiterSettings { requests_per_second: 10, in_flight: 2, ..SETTINGS };
        let one = RateLimiter::for_origin(origin, settings, Scripted::with([]));
        let two = RateLimiter::for_origin(origin, lower, Scripted::with([]));
        let three = RateLimiter::for_origin(origin, settings, Scripted::with([]));
        let mut sends = saturate(one.limiter(), 40, ms(10)).await;
        assert!(sends.windows(11).all(|ten| ten[10] - ten[0] >= ms(1050)), "the lower limit holds while both live");
        drop(three);
        let pace_of_both = state_of(one.limiter()).await;
        assert_eq!(pace_of_both.limit_per_second, 10, "the end of another one raises nothing");
        assert!(pace_of_both.concurrency_limit <= 2);
        drop(two);
        let after = saturate(one.limiter(), 400, ms(10)).await;
        let took = (*after.last().unwrap() - after[0]).as_secs_f64();
        sends.extend(after);
        assert!(sends.windows(51).all(|fifty| fifty[50] - fifty[0] >= ms(1050)), "never above the higher one");
        assert!(400.0 / took >= 0.94 * 50.0, "{took} s");
        saturate(one.limiter(), 400, ms(100)).await;
        let pace = state_of(one.limiter()).await;
        assert_eq!(pace.limit_per_second, 50);
        assert!(pace.concurrency_limit > 2, "{}", pace.concurrency_limit);
    }

    #[actix::test]
    async fn the_probe_of_a_job_that_has_ended_is_never_asked_and_nothing_keeps_it() {
        tokio::time::pause();
        let origin = "https://probed.example.org";
        let (of_one, of_two) = (Scripted::with([Answer::No, Answer::Yes]), Scripted::with([Answer::Yes]));
        let one = RateLimiter::for_origin(origin, SETTINGS, Arc::<Scripted>::clone(&of_one));
        let two = RateLimiter::for_origin(origin, SETTINGS, Arc::<Scripted>::clone(&of_two));
        // Ends as a job does that panics.
        let died = actix_rt::spawn(async move {
            let _two = two;
            panic!("as the test wants it");
        });
        assert!(died.await.is_err());
        outage(one.limiter()).await;
        drop(permit(one.limiter()).await);
        assert_eq!((of_one.asked(), of_two.asked()), (2, 0));
        assert_eq!(Arc::strong_count(&of_two), 1);
    }

    #[actix::test]
    async fn a_budget_without_jobs_keeps_its_limits_until_the_next_one_brings_its_own() {
        tokio::time::pause();
        let origin = "https://later.example.org";
        let slow = RateLimiterSettings { requests_per_second: 5, in_flight: 1, ..SETTINGS };
        let first = RateLimiter::for_origin(origin, slow, Scripted::with([]));
        let limiter = first.limiter().clone();
        drop(first);
        assert_eq!(state_of(&limiter).await.limit_per_second, 5);
        outage(&limiter).await;
        let probe = Scripted::with([Answer::Yes]);
        let fast = RateLimiter::for_origin(origin, SETTINGS, Arc::<Scripted>::clone(&probe));
        assert_eq!(fast.limiter(), &limiter);
        drop(permit(&limiter).await);
        assert_eq!((state_of(&limiter).await.limit_per_second, probe.asked()), (1000, 1));
    }

    #[actix::test]
    async fn what_is_waited_for_can_be_asked() {
        tokio::time::pause();
        let limiter = limiter(RateLimiterSettings { requests_per_second: 3, in_flight: 2, ..SETTINGS });
        let ask = || {
            let limiter = limiter.clone();
            actix_rt::spawn(async move { permit(&limiter).await })
        };
        let held = [ask().await.unwrap(), ask().await.unwrap()];
        let waiting = [ask(), ask()];
        tokio::task::yield_now().await;
        let snapshot = state_of(&limiter).await;
        assert_eq!((snapshot.waiting, snapshot.waiting_for), (2, Some(WaitReason::Concurrency)));
        assert_eq!((snapshot.in_flight, snapshot.concurrency_limit, snapshot.limit_per_second), (2, 2, 3));
        assert_eq!(snapshot.to_pace().waiting, None);
        drop(held);
        for permit in waiting {
            drop(permit.await.unwrap());
        }
        tokio::time::sleep(ms(900)).await;
        outage(&limiter).await;
        let waiting = ask();
        tokio::task::yield_now().await;
        let snapshot = state_of(&limiter).await;
        assert_eq!(snapshot.waiting_for, Some(WaitReason::Outage));
        assert_eq!(snapshot.to_pace().waiting.unwrap().reason, "the source does not answer");
        assert!(snapshot.until.unwrap() > Instant::now());
        waiting.abort();
    }
}
