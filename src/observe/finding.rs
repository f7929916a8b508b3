//! A finding of `harvester check`.

use harvester_actors::report::Outcome;

/// Severity of a finding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    /// Nothing to do.
    Ok,
    /// A run would work; the operator should know of it.
    Warning,
    /// A run would fail.
    Error,
}

/// One thing that was checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was checked, in one word: `login`, `clock`.
    pub subject: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The observation, as a lower-case fragment.
    pub message: String,
    /// Next step; empty if there is nothing to do.
    pub next: String,
    /// Outcome of a run, if the severity is `Error`.
    pub outcome: Outcome,
}

impl Finding {
    /// A finding of severity `Ok`.
    pub fn ok(subject: &'static str, message: impl Into<String>) -> Self {
        Finding {
            subject,
            severity: Severity::Ok,
            message: message.into(),
            next: String::new(),
            outcome: Outcome::Complete,
        }
    }

    /// A finding of severity `Warning`.
    pub fn warning(subject: &'static str, message: impl Into<String>, next: impl Into<String>) -> Self {
        Finding {
            subject,
            severity: Severity::Warning,
            message: message.into(),
            next: next.into(),
            outcome: Outcome::Complete,
        }
    }

    /// A finding of severity `Error`.
    pub fn error(subject: &'static str, outcome: Outcome, message: impl Into<String>, next: impl Into<String>) -> Self {
        Finding { subject, severity: Severity::Error, message: message.into(), next: next.into(), outcome }
    }
}
