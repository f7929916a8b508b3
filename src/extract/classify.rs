//! What an error of the wire means for a harvest: one match, so that a new kind does not compile undecided.
//!
//! Source: answers of 2.40, 2.42 and 2.43 (`recorded.rs`), and what proxies do. A status, or the message of a 409, that is not
//! named here is refused for good.

use std::error::Error as StdError;

use dhis2::{Error, ErrorKind, ServerMessage};
use harvester_actors::failure::{Failure, FailureClass, Weight};

/// Whether the source has ever answered this process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Contact {
    /// It has not: a name that does not resolve or a path that is not there is a mistake in the job.
    First,
    /// It has: the same is an outage.
    Later,
}

/// Error codes of DHIS2 that come with 409 and pass: query timed out, program without a table yet, table being rebuilt.
const PASSING_CODES: [&str; 3] = ["E7131", "E7136", "E7144"];

/// Words in the message of a 409 that tell of a database in trouble rather than of a wrong query.
const PASSING_WORDS: [&str; 14] = [
    "timeout",
    "timed out",
    "connection",
    "connections",
    "too many clients",
    "deadlock",
    "lock",
    "locks",
    "locked",
    "unable to acquire",
    "transaction",
    "database system",
    "i/o error",
    "sqlstate",
];

/// What comes after `could not` where the query is at fault and not the database (`could not execute query`).
const COULD_NOT_FOR_GOOD: [&str; 10] =
    ["find", "resolve", "parse", "convert", "be", "understand", "read", "deserialize", "recognize", "match"];

/// A request line may be refused as too long from here on, with a page for people that does not say so: servlet containers
/// and proxies stop at 8 KiB, headers included.
const LONG_URL_BYTES: usize = 4096;

/// Decides what `error` means.
pub(crate) fn classify(error: &Error, contact: Contact) -> Failure {
    use FailureClass::{Bug, Denied, Garbled, Local, Rejected, Transient};
    let first = contact == Contact::First;
    let (class, next) = match error.kind() {
        ErrorKind::UnknownHost if first => (Rejected, Some("check the host in source.url")),
        ErrorKind::Tls if first => (
            Rejected,
            Some(
                "name the authority of its certificate in source.ca_file; where there is no TLS, source.url begins with http://",
            ),
        ),
        ErrorKind::Redirect if first => (Rejected, Some("set source.url to the address the server names")),
        ErrorKind::UnknownHost
        | ErrorKind::DnsUnavailable
        | ErrorKind::Connect
        | ErrorKind::ConnectionRefused
        | ErrorKind::ConnectTimeout
        | ErrorKind::Tls
        | ErrorKind::ConnectionReset
        | ErrorKind::FirstByteTimeout
        | ErrorKind::Stalled
        | ErrorKind::Truncated
        | ErrorKind::Encoding => (Transient, None),
        // Nothing is asked through a gate that a run has closed, except while it stops, when nobody looks at it.
        ErrorKind::GateClosed | ErrorKind::HandleClosed => (Bug, None),
        ErrorKind::OutOfFiles => {
            (Local, Some("raise the limit of open files: `ulimit -n`, or LimitNOFILE= in the unit file"))
        }
        ErrorKind::Status => status(error, contact),
        ErrorKind::Auth => (Denied, Some("check user name, password or token")),
        // An empty success is no "0 rows": DHIS2 answers so where a user may not see a unit (data values until 2.42).
        ErrorKind::Redirect
        | ErrorKind::Html
        | ErrorKind::NotJson
        | ErrorKind::EmptyBody
        | ErrorKind::Garbled
        | ErrorKind::UnknownLength
        | ErrorKind::TooLarge => (Garbled, None),
        ErrorKind::InvalidConfig | ErrorKind::InvalidUrl | ErrorKind::Cancelled => (Rejected, None),
    };
    let mut failure = Failure::new(class, chain(error)).with_retry_after(error.retry_after());
    if let Some(next) = next {
        failure = failure.with_next(next);
    } else if let (Transient, Some(wait)) = (class, error.retry_after())
        && let Ok(until) = jiff::Timestamp::now().checked_add(wait)
    {
        failure =
            failure.with_next(format!("the server asked clients to wait until {until:.0}; run the same command then"));
    }
    if class != Transient {
        failure
    } else if error.kind() == ErrorKind::FirstByteTimeout || error.status() == Some(504) {
        failure.with_weight(Weight::HeavyIfRepeated)
    } else if error.status() == Some(500) {
        failure.with_weight(Weight::HeavyIfOthersCome)
    } else {
        failure
    }
}

/// Decides what the status of a refusal means. Each line was seen on a server, or is what a proxy does.
fn status(error: &Error, contact: Contact) -> (FailureClass, Option<&'static str>) {
    use FailureClass::{Denied, Forbidden, Rejected, TooHeavy, Transient};
    let said = error.server_message();
    match error.status().unwrap_or(0) {
        // Tomcat's answer to a request line that is too long; Jetty and nginx say 414.
        400 if said.is_none() && error.url().is_some_and(|url| url.len() > LONG_URL_BYTES) => (TooHeavy, None),
        // 401, and 400 with `WWW-Authenticate` (a wrong token), come as `ErrorKind::Auth`; here only if the client changes.
        401 => (Denied, Some("check user name, password or token")),
        403 => (Forbidden, Some("ask the server's administrator for access, or take it out of the job")),
        // A servlet container answers so while DHIS2 is being deployed; DHIS2 itself, and Jetty for a path that DHIS2 does
        // not know, say it in JSON.
        404 if said.is_none() && contact == Contact::Later => (Transient, None),
        404 => (Rejected, Some("check source.url and the names in the job")),
        407 => (Denied, Some("the proxy wants credentials, which are never sent to it")),
        408 | 425 | 429 => (Transient, None),
        409 => said.map_or((Rejected, None), conflict),
        413 | 414 | 431 => (TooHeavy, None),
        500.. => (Transient, None),
        // 405 (JSON), 406 (a page, or nothing), 415 and other 4xx: mistakes of ours, which stay.
        _ => (Rejected, None),
    }
}

/// Decides what a 409 means, which is DHIS2's answer to nearly everything.
fn conflict(said: &ServerMessage) -> (FailureClass, Option<&'static str>) {
    use FailureClass::{Rejected, TooHeavy, Transient};
    let code = said.error_code.as_deref().unwrap_or_default();
    let message = said.whole_message().to_lowercase();
    if code == "E7128" {
        // The query would give too many rows.
        (TooHeavy, None)
    } else if said.is_query_error() {
        // Before the words: such a message names its SQL state, too.
        (Rejected, Some("this version of DHIS2 cannot run such a query: ask without order, totals or deleted rows"))
    } else if PASSING_CODES.contains(&code) || tells_of_database_trouble(&message) {
        (Transient, None)
    } else {
        (Rejected, None)
    }
}

/// Whether a message, in lower case, tells of a database in trouble.
fn tells_of_database_trouble(message: &str) -> bool {
    let could_not = |rest: &str| {
        let next = rest.trim_start().split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        !next.is_empty() && !COULD_NOT_FOR_GOOD.contains(&next)
    };
    PASSING_WORDS.iter().any(|word| behind_word(message, word).next().is_some())
        || behind_word(message, "could not").any(could_not)
}

/// What stands behind each occurrence of `word` that is not a part of a longer one.
fn behind_word<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    let is_part = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(word).filter_map(move |(at, _)| {
        let (before, behind) = (&text[..at], &text[at + word.len()..]);
        (!is_part(before.chars().next_back()) && !is_part(behind.chars().next())).then_some(behind)
    })
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
