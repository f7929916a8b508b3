//! The gate through which every request of the client leaves: a turn of the origin's rate limiter.

use std::time::Duration;

use actix::Addr;
use dhis2::gate::{Gate, GateClosed, Turn, TurnOutcome};
use futures_util::future::LocalBoxFuture;
use harvester_actors::rate_limiter::{self, RateLimiter, next_turn};
use tokio::sync::watch;

/// Whether requests may still leave; closed once and for all when a run stops.
#[derive(Clone)]
pub(crate) struct SourceGate(watch::Sender<bool>);

impl SourceGate {
    /// An open gate.
    pub(crate) fn new() -> Self {
        SourceGate(watch::Sender::new(false))
    }

    /// Lets nothing through any more; who waits for a turn fails at once.
    pub(crate) fn close(&self) {
        self.0.send_replace(true);
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
}

impl LimiterGate {
    /// A gate for ordinary requests, or for those of a probe.
    pub(crate) fn new(limiter: Addr<RateLimiter>, probe: bool, gate: &SourceGate) -> Self {
        LimiterGate { limiter, probe, closed: gate.0.subscribe() }
    }
}

/// One turn of the limiter.
struct LimiterTurn {
    turn: rate_limiter::Turn,
    /// What kind of request it is for.
    class: u64,
}

impl Turn for LimiterTurn {
    fn of_class(&mut self, class: u64) {
        self.class = class;
    }

    fn left(&self) {
        self.turn.left();
    }

    fn end(self: Box<Self>, outcome: TurnOutcome, elapsed: Duration) {
        self.turn.of_class(self.class).end(outcome, elapsed);
    }
}

impl Gate for LimiterGate {
    fn turn(&self) -> LocalBoxFuture<'_, Result<Box<dyn Turn>, GateClosed>> {
        let mut closed = self.closed.clone();
        Box::pin(async move {
            tokio::select! {
                biased;
                // A gate whose owner is gone is closed as well.
                _ = closed.wait_for(|closed| *closed) => Err(GateClosed),
                turn = next_turn(&self.limiter, self.probe) => match turn {
                    Ok(turn) => Ok(Box::new(LimiterTurn { turn, class: 0 }) as Box<dyn Turn>),
                    Err(_) => Err(GateClosed),
                },
            }
        })
    }
}
