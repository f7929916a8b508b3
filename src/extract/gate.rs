//! The client's gate: permits of the origin's rate limiter.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix::Addr;
use dhis2::gate::{Gate, GateClosed, Permit, RequestOutcome};
use futures_util::future::LocalBoxFuture;
use harvester_actors::{
    failure::Failure,
    rate_limiter::{self, RateLimiter, next_permit},
};
use tokio::{sync::watch, time::Instant};

/// What all requests of one run pass: closed once and for all when it stops, and witness of every answer.
#[derive(Clone)]
pub(crate) struct SourceGate {
    closed: watch::Sender<bool>,
    last_answer: Arc<Mutex<Option<Instant>>>,
    last_trouble: Arc<Mutex<Option<String>>>,
}

impl SourceGate {
    /// An open gate.
    pub(crate) fn new() -> Self {
        SourceGate { closed: watch::Sender::new(false), last_answer: Arc::default(), last_trouble: Arc::default() }
    }

    /// Lets nothing through any more; waits for a permit fail at once.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Waits for so long, or until nothing is let through any more; whether it still is.
    pub(crate) async fn rests(&self, wait: Duration) -> bool {
        let mut closed = self.closed.subscribe();
        tokio::time::timeout(wait, closed.wait_for(|closed| *closed)).await.is_err()
    }

    /// Remembers what a request failed of.
    pub(crate) fn in_trouble(&self, failure: &Failure) {
        *self.last_trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.message.clone());
    }

    /// What a request last failed of.
    pub(crate) fn last_trouble(&self) -> Option<String> {
        self.last_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the source last answered anything it meant to say.
    pub(crate) fn last_answer(&self) -> Option<Instant> {
        *self.last_answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's gate that asks the rate limiter.
pub(crate) struct LimiterGate {
    /// Who owns the budget.
    limiter: Addr<RateLimiter>,
    /// Whether its requests are the probe of an outage, which pass while others wait.
    probe: bool,
    /// Whether anything may leave.
    closed: watch::Receiver<bool>,
    /// When the source last answered.
    last_answer: Arc<Mutex<Option<Instant>>>,
}

impl LimiterGate {
    /// A gate for ordinary requests, or for those of a probe.
    pub(crate) fn new(limiter: Addr<RateLimiter>, probe: bool, gate: &SourceGate) -> Self {
        LimiterGate { limiter, probe, closed: gate.closed.subscribe(), last_answer: Arc::clone(&gate.last_answer) }
    }
}

/// One permit of the limiter.
struct LimiterPermit {
    permit: rate_limiter::Permit,
    last_answer: Arc<Mutex<Option<Instant>>>,
    /// What kind of request it is for.
    class: u64,
}

impl Permit for LimiterPermit {
    fn of_class(&mut self, class: u64) {
        self.class = class;
    }

    fn mark_sent(&self) {
        self.permit.mark_sent();
    }

    fn end(self: Box<Self>, outcome: RequestOutcome, elapsed: Duration) {
        if outcome == RequestOutcome::Answered {
            *self.last_answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        self.permit.of_class(self.class).end(outcome, elapsed);
    }
}

impl Gate for LimiterGate {
    fn permit(&self) -> LocalBoxFuture<'_, Result<Box<dyn Permit>, GateClosed>> {
        let mut closed = self.closed.clone();
        Box::pin(async move {
            tokio::select! {
                biased;
                // A gate whose owner is gone is closed as well.
                _ = closed.wait_for(|closed| *closed) => Err(GateClosed),
                permit = next_permit(&self.limiter, self.probe) => match permit {
                    Ok(permit) => {
                        let permit = LimiterPermit { permit, class: 0, last_answer: Arc::clone(&self.last_answer) };
                        Ok(Box::new(permit) as Box<dyn Permit>)
                    }
                    Err(_) => Err(GateClosed),
                },
            }
        })
    }
}
