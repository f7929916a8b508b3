//! What a failure means for a harvest: its class, decided once, by the module that knows the port.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// What is to be done about a failure.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// It may work the next time: connect, reset, cut or stalled transfer, 429, 5xx, a passing 409.
    Transient,
    /// It will not work at this size: halve the page or the partition.
    TooHeavy,
    /// The server refuses this query for good (other 400, 404, 409).
    Rejected,
    /// The server refuses this user one collection (403).
    Forbidden,
    /// The server refuses this user (401, login page): the run ends.
    Denied,
    /// Whole, but wrong type, JSON or dialect: three times transient, then rejected.
    Garbled,
    /// The source is not the one the run began with.
    Changed,
    /// This machine failed: disk, memory, permissions. Never retried.
    Local,
    /// The checkpoint is damaged beyond rebuilding, or newer than this program.
    Damaged,
    /// A bug of ours.
    Bug,
}

impl FailureClass {
    /// The word that reports, rejects and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureClass::Transient => "transient",
            FailureClass::TooHeavy => "too_heavy",
            FailureClass::Rejected => "rejected",
            FailureClass::Forbidden => "forbidden",
            FailureClass::Denied => "denied",
            FailureClass::Garbled => "garbled",
            FailureClass::Changed => "changed",
            FailureClass::Local => "local",
            FailureClass::Damaged => "damaged",
            FailureClass::Bug => "bug",
        }
    }
}

/// One failure: its class, and what a person needs to know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// What is to be done about it.
    pub class: FailureClass,
    /// What happened to what, with its causes, as a lower-case fragment without secrets or rows.
    pub message: String,
    /// What a person should do or type next, where the room that failed knows better than the exit code does.
    pub next: Option<String>,
    /// How long the server asked to be left alone.
    pub retry_after: Option<Duration>,
    /// What the same failure of the same page a second time says about the page's weight.
    pub weight: Weight,
    /// Whether the request was as small as it can be made: then it is not too heavy for this size, but for any.
    pub is_smallest: bool,
}

/// Whether a failure that repeats means that the page is too heavy: proxies give up on what DHIS2 would still have finished.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Weight {
    /// No.
    #[default]
    Unsaid,
    /// Only where other pages came in between (500; 504 or no first byte where the source may be gone): an outage, which fails
    /// all pages alike, makes none of them smaller.
    HeavyIfOthersCome,
    /// Yes (504, no first byte, from a source that answers otherwise).
    HeavyIfRepeated,
}

impl Failure {
    /// A failure of `class` with its message.
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Failure {
            class,
            message: message.into(),
            next: None,
            retry_after: None,
            weight: Weight::Unsaid,
            is_smallest: false,
        }
    }

    /// A failure of this machine.
    pub fn local(message: impl Into<String>) -> Self {
        Failure::new(FailureClass::Local, message)
    }

    /// Says what to do next.
    #[must_use]
    pub fn with_next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Says what it means for the page's weight when it repeats.
    #[must_use]
    pub fn with_weight(mut self, weight: Weight) -> Self {
        self.weight = weight;
        self
    }

    /// Attaches the server's `Retry-After`.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
