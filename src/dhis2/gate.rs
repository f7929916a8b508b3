//! The gate is where every request asks for leave, so that one budget holds for all of them.
//!
//! In the service the gate is the rate limiter of the origin. A client alone owns one: an exact window, no more than 200
//! requests in any 1.05 s. Repeats pass it again; nothing goes round it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_core::future::LocalBoxFuture;
pub use harvester_pacing::TurnOutcome;
use harvester_pacing::Window;
use tokio::time::Instant;

/// The gate grants no more turns: the run is ending.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no more requests are let through: the run is ending")]
pub struct GateClosed;

/// Leave to send one request now.
///
/// Dropped without [`Turn::end`], it counts as abandoned.
pub trait Turn {
    /// Says what kind of request it is, at once when the turn is granted: what answers take is compared only within one class.
    ///
    /// - `class`: made of the kind of path, the page size and whether only ids are asked for; never 0.
    fn of_class(&mut self, _class: u64) {}

    /// Says that the request leaves now: its first byte is being written. Between grant and this lie a wake-up and sometimes
    /// a new connection. Not called for a request that never left.
    fn left(&self) {}

    /// Says what came of the request, and how long the server took: waiting for the head and for each piece of the
    /// body, without the time the caller spent on them.
    fn end(self: Box<Self>, outcome: TurnOutcome, elapsed: Duration);
}

/// Grants turns. Called once for every request that leaves, from any thread that runs an actix arbiter.
pub trait Gate: Send + Sync {
    /// Waits for a turn. The request is sent at once when it is granted; dropping the future gives up the wait.
    fn turn(&self) -> LocalBoxFuture<'_, Result<Box<dyn Turn>, GateClosed>>;
}

/// Requests per second of a client's own gate, unless the builder sets them.
pub(crate) const DEFAULT_REQUESTS_PER_SECOND: u32 = 200;

/// The gate of a client that is given none.
#[derive(Debug)]
pub(crate) struct DefaultGate {
    window: Mutex<Window>,
}

impl DefaultGate {
    pub(crate) fn new(requests_per_second: u32) -> Self {
        DefaultGate { window: Mutex::new(Window::new(requests_per_second)) }
    }
}

struct DefaultTurn;

impl Turn for DefaultTurn {
    fn end(self: Box<Self>, _: TurnOutcome, _: Duration) {}
}

impl Gate for DefaultGate {
    fn turn(&self) -> LocalBoxFuture<'_, Result<Box<dyn Turn>, GateClosed>> {
        Box::pin(async {
            loop {
                let wait = {
                    // Nothing can panic while it is held.
                    let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
                    let now = Instant::now();
                    let wait = window.wait(now);
                    if wait.is_zero() {
                        window.record(now);
                        return Ok(Box::new(DefaultTurn) as Box<dyn Turn>);
                    }
                    wait
                };
                tokio::time::sleep(wait).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_alone_sends_no_more_than_its_limit_in_any_window() {
        let gate = DefaultGate::new(20);
        let mut sent = Vec::new();
        for _ in 0..100 {
            gate.turn().await.unwrap().end(TurnOutcome::Answered, Duration::ZERO);
            sent.push(Instant::now());
        }
        for pair in sent.windows(21) {
            assert!(pair[20] - pair[0] >= Duration::from_millis(1050));
        }
        assert!(sent[99] - sent[0] < Duration::from_secs(6));
    }
}
