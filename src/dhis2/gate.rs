//! The gate grants every request its permit, so that one budget holds for all of them.
//!
//! In the service the gate is the rate limiter of the origin. A client alone owns one: an exact window, no more than 200
//! requests in any 1.05 s. Repeats pass it again; nothing goes round it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_core::future::LocalBoxFuture;
pub use harvester_pacing::RequestOutcome;
use harvester_pacing::Window;
use tokio::time::Instant;

/// The gate grants no more permits: the run is ending.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no more requests are let through: the run is ending")]
pub struct GateClosed;

/// A permit to send one request now.
///
/// Dropped without [`Permit::end`], it counts as abandoned.
pub trait Permit {
    /// Sets the class of the request, at once when the permit is granted: latencies are compared within one class only.
    ///
    /// - `class`: made of the kind of path, the page size and whether only ids are asked for; never 0.
    fn of_class(&mut self, _class: u64) {}

    /// Marks the request as sent: its first byte is being written. Between grant and this lie a wake-up and sometimes a new
    /// connection. Not called for a request that is never sent.
    fn mark_sent(&self) {}

    /// Reports the outcome of the request, and how long the server took: waiting for the head and for each piece of the
    /// body, without the time the caller spent on them.
    fn end(self: Box<Self>, outcome: RequestOutcome, elapsed: Duration);
}

/// Grants permits. Called once for every request that leaves, from any thread that runs an actix arbiter.
pub trait Gate: Send + Sync {
    /// Waits for a permit. The request is sent at once when it is granted; dropping the future gives up the wait.
    fn permit(&self) -> LocalBoxFuture<'_, Result<Box<dyn Permit>, GateClosed>>;
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

struct DefaultPermit;

impl Permit for DefaultPermit {
    fn end(self: Box<Self>, _: RequestOutcome, _: Duration) {}
}

impl Gate for DefaultGate {
    fn permit(&self) -> LocalBoxFuture<'_, Result<Box<dyn Permit>, GateClosed>> {
        Box::pin(async {
            loop {
                let wait = {
                    // Nothing can panic while it is held.
                    let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
                    let now = Instant::now();
                    let wait = window.wait(now);
                    if wait.is_zero() {
                        window.record(now);
                        return Ok(Box::new(DefaultPermit) as Box<dyn Permit>);
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
            gate.permit().await.unwrap().end(RequestOutcome::Answered, Duration::ZERO);
            sent.push(Instant::now());
        }
        for pair in sent.windows(21) {
            assert!(pair[20] - pair[0] >= Duration::from_millis(1050));
        }
        assert!(sent[99] - sent[0] < Duration::from_secs(6));
    }
}
