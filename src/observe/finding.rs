//! One thing that `harvester check` looked at.

use harvester_actors::report::Outcome;

/// How it looks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Grade {
    /// Good.
    Good,
    /// A run would work, but somebody should know.
    Note,
    /// A run would fail.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was looked at, in one word: `login`, `clock`.
    pub subject: &'static str,
    /// How it looks.
    pub grade: Grade,
    /// What was seen, as a lower-case fragment.
    pub message: String,
    /// What to do; empty where nothing is to be done.
    pub next: String,
    /// What a run would end with, if it is bad.
    pub outcome: Outcome,
}

impl Finding {
    /// Something good.
    pub fn good(subject: &'static str, message: impl Into<String>) -> Self {
        Finding {
            subject,
            grade: Grade::Good,
            message: message.into(),
            next: String::new(),
            outcome: Outcome::Complete,
        }
    }

    /// Something that somebody should know.
    pub fn note(subject: &'static str, message: impl Into<String>, next: impl Into<String>) -> Self {
        Finding { subject, grade: Grade::Note, message: message.into(), next: next.into(), outcome: Outcome::Complete }
    }

    /// Something that would make a run fail.
    pub fn bad(subject: &'static str, outcome: Outcome, message: impl Into<String>, next: impl Into<String>) -> Self {
        Finding { subject, grade: Grade::Bad, message: message.into(), next: next.into(), outcome }
    }
}
