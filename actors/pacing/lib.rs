//! Pure timing decisions, given `now`: no I/O, no sleeping.

use std::time::Duration;

/// What came of one turn, as far as pace and concurrency care.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TurnOutcome {
    /// The server answered usefully, a refusal (4xx) included.
    Answered,
    /// Refused connection, timeout, 429, 502, 503 or 504: the server cannot take this much now.
    Overloaded {
        /// How long the server asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// Reset, cut, other 5xx, garbled: wrong, but no sign of load.
    Failed {
        /// How long the server asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// The asker went away without saying how it ended.
    Abandoned,
}
