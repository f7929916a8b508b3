//! Pure timing decisions, given `now`: no I/O, no sleeping, no hidden clock.
//!
//! ```text
//! window        how many sends a second, exactly
//! bucket        how to spread them inside the window
//! concurrency   how many at once, learnt from the responses
//! breaker       whether to send at all
//! backoff       how long one failed thing waits
//! retry         whether one failed thing is asked for again
//! retry_after   what the server asked for
//! ```
//!
//! The waiting is done elsewhere: the rate-limiter actor in `actors/`, the gate of a client by itself in `src/dhis2/`.
//! The same decisions serve both, so they cannot disagree about what a limit means.

use std::time::Duration;

pub mod backoff;
pub mod breaker;
pub mod bucket;
pub mod concurrency;
pub mod control;
pub mod retry;
pub mod retry_after;
pub mod window;

pub use backoff::Backoff;
pub use breaker::{Breaker, BreakerState};
pub use bucket::BucketSettings;
pub use concurrency::{Concurrency, Started};
pub use retry::{Retry, RetryAnswer, RetryCause, RetryPolicy};
pub use window::{COLD_START_WAIT, Window};

/// How a request ended, as far as pace and concurrency depend on it.
///
/// Whose fault a failure is matters more here than what it was: only signs of load may slow the harvest down.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RequestOutcome {
    /// The server answered with something it meant to say, a refusal (other 4xx) included.
    ///
    /// Only these teach how quick the server is.
    Answered,
    /// Refused connection, timeout, 429, 502, 503 or 504: the server cannot take this much now.
    ///
    /// Counts for the breaker and lowers the concurrency.
    Overloaded {
        /// The server's `Retry-After`, which holds for the whole host.
        retry_after: Option<Duration>,
    },
    /// Reset, cut, other 5xx, garbled: wrong, but no sign of load.
    ///
    /// Ends a run of overloads for the breaker, and is otherwise without effect.
    Failed {
        /// The server's `Retry-After`, which holds for the whole host.
        retry_after: Option<Duration>,
    },
    /// The permit was dropped without an outcome. Frees the place and teaches nothing.
    Abandoned,
}

impl RequestOutcome {
    /// The server's `Retry-After`.
    #[must_use]
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            RequestOutcome::Overloaded { retry_after } | RequestOutcome::Failed { retry_after } => retry_after,
            RequestOutcome::Answered | RequestOutcome::Abandoned => None,
        }
    }
}
