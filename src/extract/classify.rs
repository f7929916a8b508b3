//! What an error of the wire means for a harvest: one match, so that a new kind does not compile undecided.
//!
//! Source: `dhis2-api.md` §8.2; the classes are those of `design.md` §4, Failures.

use std::error::Error as StdError;

use dhis2::{Error, Kind, ServerMessage};
use harvester_actors::failure::{Failure, FailureClass, Weight};

/// Whether the source has ever answered this process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Contact {
    /// It has not: a name that does not resolve or a path that is not there is a mistake in the job.
    First,
    /// It has: the same is an outage.
    Later,
}

/// Error codes of DHIS2 that come with 409 and pass: query timed out, table being rebuilt, table absent.
const PASSING_CODES: [&str; 3] = ["E7131", "E7136", "E7144"];

/// Words in the message of a 409 that tell of a database in trouble rather than of a wrong query.
const PASSING_WORDS: [&str; 9] =
    ["timeout", "timed out", "connection", "deadlock", "lock ", "locked", "sqlstate", "could not", "unable to acquire"];

/// Decides what `error` means.
pub(crate) fn classify(error: &Error, contact: Contact) -> Failure {
    use FailureClass::{Denied, Garbled, Rejected, Transient};
    let first = contact == Contact::First;
    let (class, next) = match error.kind() {
        Kind::UnknownHost if first => (Rejected, Some("check the host in source.url")),
        Kind::Tls if first => (
            Rejected,
            Some(
                "name the authority of its certificate in source.ca_file; where there is no TLS, source.url begins with http://",
            ),
        ),
        Kind::Redirect if first => (Rejected, Some("set source.url to the address the server names")),
        Kind::UnknownHost | Kind::Resolver | Kind::Connect | Kind::Refused | Kind::ConnectTimeout | Kind::Tls => {
            (Transient, None)
        }
        Kind::Reset | Kind::FirstByteTimeout | Kind::Stalled | Kind::Cut | Kind::Encoding => (Transient, None),
        Kind::GateClosed | Kind::HandleClosed => (Transient, None),
        Kind::Status => status(error, contact),
        Kind::Auth => (Denied, Some("check user name, password or token")),
        Kind::Redirect | Kind::Html | Kind::NotJson | Kind::Empty | Kind::Garbled | Kind::NoLength | Kind::TooLarge => {
            (Garbled, None)
        }
        Kind::Settings | Kind::InvalidUrl | Kind::Stopped => (Rejected, None),
        // The client's kinds may grow; what we do not know we do not repeat.
        _ => (Rejected, None),
    };
    let mut failure = Failure::new(class, chain(error)).with_retry_after(error.retry_after());
    if let Some(next) = next {
        failure = failure.with_next(next);
    } else if let (Transient, Some(wait)) = (class, error.retry_after())
        && let Ok(until) = jiff::Timestamp::now().checked_add(wait)
    {
        failure =
            failure.with_next(format!("the server asks to be left alone until {until:.0}; run the same command then"));
    }
    if class != Transient {
        failure
    } else if error.kind() == Kind::FirstByteTimeout || error.status() == Some(504) {
        failure.with_weight(Weight::HeavyIfRepeated)
    } else if error.status() == Some(500) {
        failure.with_weight(Weight::HeavyIfOthersCome)
    } else {
        failure
    }
}

/// Decides what the status of a refusal means.
fn status(error: &Error, contact: Contact) -> (FailureClass, Option<&'static str>) {
    use FailureClass::{Denied, Forbidden, Rejected, TooHeavy, Transient};
    let said = error.server_message();
    match error.status().unwrap_or(0) {
        401 => (Denied, Some("check user name, password or token")),
        403 => (Forbidden, Some("ask the server's administrator for access, or take it out of the job")),
        // A servlet container answers so while DHIS2 is being deployed; DHIS2 itself says it in JSON.
        404 if said.is_none() && contact == Contact::Later => (Transient, None),
        404 => (Rejected, Some("check source.url and the names in the job")),
        407 => (Denied, Some("the proxy wants credentials, which are never sent to it")),
        408 | 425 | 429 => (Transient, None),
        409 if said.is_some_and(is_heavy) => (TooHeavy, None),
        409 if said.is_some_and(is_passing) => (Transient, None),
        413 | 414 | 431 => (TooHeavy, None),
        500.. => (Transient, None),
        _ => (Rejected, None),
    }
}

/// Whether a 409 says that the query would give too many rows.
fn is_heavy(said: &ServerMessage) -> bool {
    said.error_code.as_deref() == Some("E7128")
}

/// Whether a 409 tells of a passing trouble.
fn is_passing(said: &ServerMessage) -> bool {
    let code = said.error_code.as_deref().unwrap_or_default();
    let message = said.message.as_deref().unwrap_or_default().to_lowercase();
    PASSING_CODES.contains(&code) || PASSING_WORDS.iter().any(|word| message.contains(word))
}

/// The error with its causes, each said once.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
