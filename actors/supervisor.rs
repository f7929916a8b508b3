//! The supervisor hires fetchers, hears of every death, hires again, and decides whether the run can go on.
//!
//! ```text
//!             ┌─hires──▶ Fetcher (one arbiter per core) ──FetcherExited (also as a last will)──▶ Supervisor
//! Supervisor ─┤
//!             ├─StopLeasing──▶ Planner ──EndRun──▶ Supervisor ◀──EndRun── Checkpointer
//!             └─each second: CurrentLimiter──▶ RateLimiter, what it says──▶ Reporter
//! ```
//!
//! It owns the fetchers and the fate of the run. The first reason to end is the one that is reported; a stop that a
//! person asked for gives way to a failure. It is the only actor that talks in both directions, and only in trifles.
//!
//! It lives as long as the run, before and behind all fetching too, and the pace that it tells each second is the heartbeat by
//! which a service manager sees that the run is supervised.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::prelude::*;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use crate::{
    events::Event,
    failure::{Failure, FailureClass},
    fetcher::{Fetcher, FetcherParts, ShutdownPhase},
    planner::{FetcherDied, FetcherId, Planner, StopLeasing},
    rate_limiter::{CurrentLimiter, RateLimiter},
    report::Outcome,
    reporter::EventSender,
    source::Source,
};

/// How long pages in hand may take after a stop was asked for.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// How often the supervisor tells the pace, and looks whether the source has been gone for too long: often enough for a
/// bar, too rarely to cost anything.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Why a run is to stop although nothing failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StopRequest {
    /// As a fragment for people: `SIGINT`, `--max-seconds`.
    pub reason: String,
    /// What the stop makes of the run: `Interrupted` or `Limit`.
    pub outcome: Outcome,
}

/// Tells that the run cannot go on.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct EndRun(pub Failure);

/// Tells that a fetcher has ended.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct FetcherExited {
    /// Which.
    pub fetcher: FetcherId,
    /// Whether it died of a panic; a peaceful end came because there was no work.
    pub died: bool,
}

/// Tells an actor with a clock of its own that the run is over. (actix keeps an actor alive while it has a timer.)
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Shutdown;

/// Asks for everything the planner has to be fetched. The reply comes when all fetchers have left.
#[derive(Message)]
#[rtype(result = "FetchEnd")]
pub struct StartFetching {
    /// What each of them works with.
    pub planner: Addr<Planner>,
    /// Who takes pages.
    pub writer: Addr<crate::writer::Writer>,
    /// Who answers at the source.
    pub identity: Arc<crate::partition::SourceIdentity>,
    /// How many to spawn_fetcher.
    pub fetchers: u32,
    /// Where they live; none means: on the arbiter of everybody else.
    pub arbiters: Vec<ArbiterHandle>,
}

/// Why fetching ended: neither means that all partitions are settled.
#[derive(Clone, Debug, Default, MessageResponse)]
pub struct FetchEnd {
    /// What failed.
    pub failure: Option<Failure>,
    /// Who asked for a stop.
    pub stop: Option<StopRequest>,
}

/// What the supervisor needs from the start.
pub struct SupervisorParts {
    /// Where pages come from.
    pub source: Arc<dyn Source>,
    /// Who knows the pace, and how long the source has been gone; `None` where a test has no limiter.
    pub limiter: Option<Addr<RateLimiter>>,
    /// Who shows what happens.
    pub events: EventSender,
    /// Tells when somebody asks for a stop.
    pub stop: watch::Receiver<Option<StopRequest>>,
    /// How long the source may be gone.
    pub outage: Duration,
}

/// See the module.
pub struct Supervisor {
    /// What it was born with.
    parts: SupervisorParts,
    /// What fetchers see of a stop.
    stopping: watch::Sender<ShutdownPhase>,
    /// What is being fetched, while it is.
    work: Option<Work>,
    /// Who works.
    alive: BTreeMap<FetcherId, Option<ArbiterHandle>>,
    /// Why the run ends, if it does.
    ending: FetchEnd,
    /// The next fetcher's name.
    next_id: u32,
}

/// One call of [`StartFetching`].
struct Work {
    /// What a new fetcher gets.
    parts: FetcherParts,
    /// Who waits for the end.
    done: oneshot::Sender<FetchEnd>,
}

impl Supervisor {
    /// A supervisor that has nothing to do yet.
    pub fn new(parts: SupervisorParts) -> Self {
        Supervisor {
            parts,
            stopping: watch::Sender::new(ShutdownPhase::Running),
            work: None,
            alive: BTreeMap::new(),
            ending: FetchEnd::default(),
            next_id: 0,
        }
    }

    /// Hires one fetcher, on this arbiter if one is named.
    fn spawn_fetcher(&mut self, arbiter: Option<ArbiterHandle>) {
        let Some(work) = &self.work else { return };
        let id = FetcherId(self.next_id);
        self.next_id += 1;
        let fetcher = Fetcher::new(id, work.parts.clone());
        match &arbiter {
            Some(handle) => {
                Fetcher::start_in_arbiter(handle, move |_| fetcher);
            }
            None => {
                fetcher.start();
            }
        }
        self.alive.insert(id, arbiter);
    }

    /// Ends the run because of `failure`, unless an earlier one already has.
    fn end(&mut self, failure: Failure, ctx: &mut Context<Self>) {
        self.ending.failure.get_or_insert(failure);
        self.drain(ctx);
    }

    /// Begins to stop: no more leases, no more turns; pages in hand may still come for [`DRAIN_TIMEOUT`].
    fn drain(&mut self, ctx: &mut Context<Self>) {
        if *self.stopping.borrow() != ShutdownPhase::Running {
            return;
        }
        self.stopping.send_replace(ShutdownPhase::Draining);
        self.parts.source.close();
        if let Some(work) = &self.work {
            let stop = work.parts.planner.send(StopLeasing).into_actor(self);
            ctx.spawn(stop.map(|_, _, _| ()));
        }
        ctx.run_later(DRAIN_TIMEOUT, |supervisor, _| {
            supervisor.stopping.send_replace(ShutdownPhase::Aborting);
        });
        self.finish_if_idle();
    }

    /// Answers who waits once the last fetcher has left.
    fn finish_if_idle(&mut self) {
        if !self.alive.is_empty() {
            return;
        }
        if let Some(work) = self.work.take() {
            // Who no longer waits needs no answer.
            let _ = work.done.send(self.ending.clone());
        }
    }

    /// Drains because somebody asks for a stop. Between two fetchings the run itself hears the same, tells it and ends.
    fn stop(&mut self, stop: StopRequest, ctx: &mut Context<Self>) {
        let reason = stop.reason.clone();
        self.ending.stop = Some(stop);
        if self.work.is_some() {
            self.parts.events.emit(Event::Stopping { reason });
            self.drain(ctx);
        } else {
            self.stopping.send_replace(ShutdownPhase::Draining);
        }
    }

    /// Tells the pace, and ends the run when the breaker has been open for longer than a source may be gone.
    fn heartbeat(&mut self, ctx: &mut Context<Self>) {
        let Some(limiter) = self.parts.limiter.clone() else { return };
        let ask = async move { limiter.send(CurrentLimiter).await.ok() }.into_actor(self);
        ctx.spawn(ask.map(|pace, supervisor, ctx| {
            let Some(pace) = pace else { return };
            supervisor.parts.events.emit(Event::Pace(pace.to_pace()));
            let gone = pace.open_since.map(|since| Instant::now().duration_since(since));
            if gone.is_some_and(|gone| gone >= supervisor.parts.outage) && supervisor.work.is_some() {
                let message = format!("the source has not answered for {} s", supervisor.parts.outage.as_secs());
                supervisor.end(Failure::new(FailureClass::Transient, message), ctx);
            }
        }));
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let mut stop = self.parts.stop.clone();
        let asked = async move {
            // A closed channel means that nobody can ask any more.
            stop.wait_for(Option::is_some).await.ok().and_then(|stop| stop.clone())
        };
        ctx.spawn(asked.into_actor(self).map(|stop, supervisor, ctx| {
            if let Some(stop) = stop {
                supervisor.stop(stop, ctx);
            }
        }));
        ctx.run_interval(HEARTBEAT_INTERVAL, |supervisor, ctx| supervisor.heartbeat(ctx));
    }
}

impl Handler<StartFetching> for Supervisor {
    type Result = ResponseFuture<FetchEnd>;

    fn handle(&mut self, start: StartFetching, ctx: &mut Self::Context) -> Self::Result {
        let (done, ended) = oneshot::channel();
        let parts = FetcherParts {
            source: Arc::clone(&self.parts.source),
            identity: start.identity,
            planner: start.planner,
            writer: start.writer,
            stopping: self.stopping.subscribe(),
            supervisor: ctx.address().recipient(),
        };
        self.work = Some(Work { parts, done });
        if let Some(stop) = &self.ending.stop {
            // It came just before, when nobody told it.
            self.parts.events.emit(Event::Stopping { reason: stop.reason.clone() });
        }
        if *self.stopping.borrow() == ShutdownPhase::Running {
            for place in 0..start.fetchers as usize {
                let arbiters = &start.arbiters;
                let arbiter = (!arbiters.is_empty()).then(|| arbiters[place % arbiters.len()].clone());
                self.spawn_fetcher(arbiter);
            }
        }
        self.finish_if_idle();
        Box::pin(async move {
            ended.await.unwrap_or_else(|_| FetchEnd {
                failure: Some(Failure::new(FailureClass::Bug, "the supervisor is gone")),
                stop: None,
            })
        })
    }
}

impl Handler<FetcherExited> for Supervisor {
    type Result = ();

    fn handle(&mut self, left: FetcherExited, ctx: &mut Self::Context) {
        let Some(arbiter) = self.alive.remove(&left.fetcher) else { return };
        let Some(work) = &self.work else { return };
        if !left.died {
            self.finish_if_idle();
            return;
        }
        // Until the planner has taken the partition back, nobody may believe that all work is done.
        self.alive.insert(left.fetcher, None);
        let lost = work.parts.planner.send(FetcherDied(left.fetcher)).into_actor(self);
        ctx.spawn(lost.map(move |loss, supervisor, ctx| {
            supervisor.alive.remove(&left.fetcher);
            match loss.map(|loss| loss.end) {
                Ok(Some(failure)) => supervisor.end(failure, ctx),
                Ok(None) if *supervisor.stopping.borrow() == ShutdownPhase::Running => {
                    supervisor.spawn_fetcher(arbiter)
                }
                Ok(None) => {}
                Err(_) => supervisor.end(Failure::new(FailureClass::Bug, "the planner is gone"), ctx),
            }
            supervisor.finish_if_idle();
        }));
    }
}

impl Handler<EndRun> for Supervisor {
    type Result = ();

    fn handle(&mut self, EndRun(failure): EndRun, ctx: &mut Self::Context) {
        self.end(failure, ctx);
    }
}

impl Handler<Shutdown> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
