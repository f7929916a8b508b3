//! Witnesses every request: when it arrived, what it asked, how many were being served, what it got.
//!
//! Arrival is stamped when the request's head is complete, before anything is decided. Secrets are not written down.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::clock::wall_ms;
use crate::request::Request;

/// One request as it was seen.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Seen {
    /// From 1, in the order of arrival.
    pub number: u64,
    /// When its head was complete.
    pub arrived: Instant,
    /// The same by the wall clock, milliseconds since the epoch.
    pub arrived_ms: i64,
    /// `GET`, …
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    /// Number of the connection it came on, from 1.
    pub connection: u64,
    /// Its place on that connection, from 1.
    pub turn_on_connection: u64,
    /// Whether it carried an `Authorization` header.
    pub has_credentials: bool,
    /// Whether it carried a session cookie.
    pub has_cookie: bool,
    /// `X-Requested-With`.
    pub requested_with: Option<String>,
    /// `User-Agent`.
    pub user_agent: Option<String>,
    /// `X-Request-ID`.
    pub request_id: Option<String>,
    /// `Accept-Encoding`.
    pub accept_encoding: Option<String>,
    /// `Cache-Control`.
    pub cache_control: Option<String>,
    /// `If-None-Match`.
    pub if_none_match: Option<String>,
    /// Who it was, once that was known.
    pub user: Option<String>,
    /// Requests being served when it arrived, itself included.
    pub in_flight: usize,
    /// Status sent; `None` while it is being served, or when no status line was sent.
    pub status: Option<u16>,
    /// The fault that was applied.
    pub fault: Option<String>,
    /// What of the server's quirks shows in the answer, e.g. `lagging replica`.
    pub quirks: Vec<&'static str>,
    /// Bytes of the body sent, as they were on the wire (with framing and compression).
    pub body_bytes: u64,
    /// When the answer was finished or given up.
    pub ended: Option<Instant>,
}

impl Seen {
    /// The path without its query.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(self.target.as_str(), |(path, _)| path)
    }
}

#[derive(Debug, Default)]
struct Book {
    seen: Vec<Seen>,
    /// Requests forgotten by [`Ledger::clear`]; numbers go on behind them.
    forgotten: u64,
    in_flight: usize,
    connections: u64,
    file: Option<std::fs::File>,
}

/// The book of requests. Cheap to clone; all clones read the same book.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    book: Arc<(Mutex<Book>, Condvar)>,
}

#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    number: u64,
    at_ms: i64,
    method: &'a str,
    target: &'a str,
    connection: u64,
    has_credentials: bool,
    has_cookie: bool,
    user_agent: Option<&'a str>,
    request_id: Option<&'a str>,
    in_flight: usize,
    status: Option<u16>,
    fault: Option<&'a str>,
    quirks: &'a [&'static str],
    body_bytes: u64,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// From now on every event is appended to this file too, as a JSON line, flushed at once.
    pub(crate) fn write_to(&self, file: std::fs::File) {
        self.lock().file = Some(file);
    }

    pub(crate) fn connection_opened(&self) -> u64 {
        let mut book = self.lock();
        book.connections += 1;
        book.connections
    }

    /// Writes a request down; its number. The counterpart is [`Ledger::ended`].
    pub(crate) fn arrived(&self, request: &Request) -> u64 {
        let arrived = Instant::now();
        let copy = |name: &str| request.header(name).map(str::to_owned);
        let mut book = self.lock();
        book.in_flight += 1;
        let number = book.forgotten + u64::try_from(book.seen.len()).unwrap_or(u64::MAX) + 1;
        let seen = Seen {
            number,
            arrived,
            arrived_ms: wall_ms(),
            method: request.method.clone(),
            target: request.target.clone(),
            connection: request.connection,
            turn_on_connection: request.turn_on_connection,
            has_credentials: request.header("authorization").is_some(),
            has_cookie: request.header("cookie").is_some_and(|cookie| cookie.contains("JSESSIONID=")),
            requested_with: copy("x-requested-with"),
            user_agent: copy("user-agent"),
            request_id: copy("x-request-id"),
            accept_encoding: copy("accept-encoding"),
            cache_control: copy("cache-control"),
            if_none_match: copy("if-none-match"),
            user: None,
            in_flight: book.in_flight,
            status: None,
            fault: None,
            quirks: Vec::new(),
            body_bytes: 0,
            ended: None,
        };
        book.append("arrived", &seen);
        book.seen.push(seen);
        self.book.1.notify_all();
        number
    }

    pub(crate) fn note(&self, number: u64, change: impl FnOnce(&mut Seen)) {
        if let Some(seen) = self.lock().find(number) {
            change(seen);
        }
    }

    pub(crate) fn ended(&self, number: u64) {
        let mut book = self.lock();
        book.in_flight = book.in_flight.saturating_sub(1);
        let ended = book.find(number).map(|seen| {
            seen.ended = Some(Instant::now());
            seen.clone()
        });
        if let Some(seen) = ended {
            book.append("ended", &seen);
        }
        self.book.1.notify_all();
    }

    /// Everything seen so far, in order of arrival.
    pub fn requests(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// How many requests were seen.
    pub fn count(&self) -> usize {
        self.lock().seen.len()
    }

    /// Requests that are being served now.
    pub fn in_flight(&self) -> usize {
        self.lock().in_flight
    }

    /// The most requests that were being served at one time.
    pub fn max_in_flight(&self) -> usize {
        self.lock().seen.iter().map(|seen| seen.in_flight).max().unwrap_or(0)
    }

    /// The most arrivals within any window of this length, its end excluded.
    pub fn max_in_window(&self, window: Duration) -> usize {
        let arrivals: Vec<Duration> = self.arrivals();
        max_in_window(&arrivals, window)
    }

    /// Arrivals in each whole second since the first one.
    pub fn per_second(&self) -> Vec<usize> {
        let mut seconds = Vec::new();
        for at in self.arrivals() {
            let second = usize::try_from(at.as_secs()).unwrap_or(usize::MAX);
            if seconds.len() <= second {
                seconds.resize(second + 1, 0);
            }
            seconds[second] += 1;
        }
        seconds
    }

    /// Path and query of everything asked for more than once, with how often, in order of first arrival.
    pub fn asked_twice(&self) -> Vec<(String, usize)> {
        let book = self.lock();
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for seen in &book.seen {
            *counts.entry(&seen.target).or_default() += 1;
        }
        let mut twice = Vec::new();
        for seen in &book.seen {
            if let Some(count) = counts.remove(seen.target.as_str()).filter(|count| *count > 1) {
                twice.push((seen.target.clone(), count));
            }
        }
        twice
    }

    /// Requests that carried an `Authorization` header.
    pub fn with_credentials(&self) -> usize {
        self.lock().seen.iter().filter(|seen| seen.has_credentials).count()
    }

    /// Connections accepted.
    pub fn connections(&self) -> u64 {
        self.lock().connections
    }

    /// Requests that got a fault.
    pub fn faults(&self) -> usize {
        self.lock().seen.iter().filter(|seen| seen.fault.is_some()).count()
    }

    /// Requests in whose answers this quirk shows.
    pub fn quirks(&self, word: &str) -> usize {
        self.lock().seen.iter().filter(|seen| seen.quirks.contains(&word)).count()
    }

    /// Forgets what was seen up to now; numbers go on.
    pub fn clear(&self) {
        let mut book = self.lock();
        book.forgotten += u64::try_from(book.seen.len()).unwrap_or(0);
        book.seen.clear();
    }

    /// Waits until the book satisfies a condition: true, or false after `timeout`.
    pub fn wait_until(&self, timeout: Duration, mut condition: impl FnMut(&[Seen]) -> bool) -> bool {
        // The wall clock: the caller's tokio clock may be paused.
        let timeout_ms = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX / 2);
        let deadline_ms = wall_ms() + timeout_ms;
        let mut book = self.lock();
        loop {
            if condition(&book.seen) {
                return true;
            }
            if wall_ms() >= deadline_ms {
                return false;
            }
            let wait = Duration::from_millis(50);
            book = self.book.1.wait_timeout(book, wait).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    fn arrivals(&self) -> Vec<Duration> {
        let book = self.lock();
        let Some(first) = book.seen.first().map(|seen| seen.arrived) else { return Vec::new() };
        book.seen.iter().map(|seen| seen.arrived.duration_since(first)).collect()
    }
}

impl Book {
    fn find(&mut self, number: u64) -> Option<&mut Seen> {
        let at = number.checked_sub(self.forgotten + 1)?;
        self.seen.get_mut(usize::try_from(at).ok()?)
    }

    fn append(&mut self, event: &'static str, seen: &Seen) {
        let Some(file) = &mut self.file else { return };
        let line = Line {
            event,
            number: seen.number,
            at_ms: wall_ms(),
            method: &seen.method,
            target: &seen.target,
            connection: seen.connection,
            has_credentials: seen.has_credentials,
            has_cookie: seen.has_cookie,
            user_agent: seen.user_agent.as_deref(),
            request_id: seen.request_id.as_deref(),
            in_flight: seen.in_flight,
            status: seen.status,
            fault: seen.fault.as_deref(),
            quirks: &seen.quirks,
            body_bytes: seen.body_bytes,
        };
        if let Ok(mut text) = serde_json::to_string(&line) {
            text.push('\n');
            // One write per line: readers of another process see whole lines. A full disk must not stop the server.
            let _ = file.write_all(text.as_bytes());
        }
    }
}

/// The most of these ascending times within any `[t, t + window)`.
pub(crate) fn max_in_window(arrivals: &[Duration], window: Duration) -> usize {
    let mut from = 0;
    let mut most = 0;
    for (to, at) in arrivals.iter().enumerate() {
        while at.saturating_sub(arrivals[from]) >= window && from < to {
            from += 1;
        }
        most = most.max(to - from + 1);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_its_beginning_and_not_its_end() {
        let table: &[(&[u64], usize)] = &[
            (&[], 0),
            (&[0], 1),
            (&[0, 999], 2),
            (&[0, 1000], 1),
            (&[0, 500, 1000, 1499], 3),
            (&[0, 0, 0, 1000, 1000], 3),
            (&[0, 10, 990, 1005, 1009, 1010], 4),
        ];
        for (times, most) in table {
            let arrivals: Vec<Duration> = times.iter().map(|ms| Duration::from_millis(*ms)).collect();
            assert_eq!(max_in_window(&arrivals, Duration::from_secs(1)), *most, "{times:?}");
        }
    }

    #[test]
    fn the_book_counts_what_is_being_served_and_what_was_asked_twice() {
        let ledger = Ledger::default();
        let request = |target: &str| Request::new("GET", target, vec![("authorization".into(), "Basic x".into())], "");
        let first = ledger.arrived(&request("/a?x=1"));
        let second = ledger.arrived(&request("/b"));
        ledger.ended(first);
        let third = ledger.arrived(&request("/a?x=1"));
        ledger.ended(second);
        ledger.ended(third);
        assert_eq!((ledger.max_in_flight(), ledger.in_flight()), (2, 0));
        assert_eq!(ledger.asked_twice(), [("/a?x=1".to_owned(), 2)]);
        assert_eq!(ledger.with_credentials(), 3);
        assert_eq!(ledger.per_second(), [3]);
        assert!(ledger.requests().iter().all(|seen| seen.ended.is_some()));
        assert!(!format!("{:?}", ledger.requests()).contains("Basic"));
        let under_way = ledger.arrived(&request("/c"));
        ledger.clear();
        let next = ledger.arrived(&request("/d"));
        ledger.ended(under_way);
        ledger.ended(next);
        assert_eq!((ledger.count(), next, ledger.requests()[0].number), (1, 5, 5));
        assert!(ledger.requests()[0].ended.is_some() && ledger.in_flight() == 0);
    }
}
