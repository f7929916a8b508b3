//! One error for everything that can go wrong on the wire, and the questions one can ask it.
//!
//! It says what happened and decides nothing: whether to try again is the asker's business. What the server said is kept
//! as data. It never holds a secret or a row: the url has no credentials, a body is quoted only as far as it is a DHIS2
//! message or the title of a page, and what the server says has passed the client's redaction.

use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

use harvester_pacing::{RequestOutcome, RetryCause};
use serde::{
    Deserialize, Deserializer as _,
    de::{IgnoredAny, MapAccess, Visitor},
};

use crate::redaction::Redaction;

/// Kinds of errors.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ErrorKind {
    /// The client's url, credentials or certificate file are invalid.
    InvalidConfig,
    /// A path or parameter that cannot be sent, or that names another origin.
    InvalidUrl,
    /// The host name does not exist.
    UnknownHost,
    /// The name server does not respond; the host may exist.
    DnsUnavailable,
    /// The host cannot be reached.
    Connect,
    /// The host refused the connection: nothing listens on that port.
    ConnectionRefused,
    /// This process, or this machine, has no file descriptor left for a connection: nothing is known of the server.
    OutOfFiles,
    /// No connection within the connect timeout.
    ConnectTimeout,
    /// No trusted TLS connection: certificate, protocol.
    Tls,
    /// The connection was reset, or broke while sending.
    ConnectionReset,
    /// No answer within the first-byte timeout.
    FirstByteTimeout,
    /// The response began and stopped, or is slower than the minimum transfer rate.
    Stalled,
    /// The response ended too early.
    Truncated,
    /// The response has no known length, so it cannot be known to be complete.
    UnknownLength,
    /// The response's compression is damaged, or not the one asked for.
    Encoding,
    /// Head, body or row is larger than the limit.
    TooLarge,
    /// The server refused: see [`Error::status`] and [`Error::server_message`].
    Status,
    /// The credentials are not accepted: 401, or a login page.
    Auth,
    /// The server wants the request somewhere else. Not followed.
    Redirect,
    /// An HTML page instead of data.
    Html,
    /// Another content type than JSON.
    NotJson,
    /// A success without a body.
    EmptyBody,
    /// Whole, but not what this server version sends: not HTTP, not JSON, the wrong dialect.
    Garbled,
    /// The caller stopped reading the response.
    Cancelled,
    /// The gate is closed: the run is ending.
    GateClosed,
    /// The thread of a [`Handle`](crate::Handle) is gone, or the work on it panicked.
    HandleClosed,
}

/// Body of an error response of DHIS2 (a WebMessage): short single lines, our secrets masked.
///
/// Source: dhis2-core `WebMessage` (2.25 to 2.43); `errorCode` from 2.34.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ServerMessage {
    /// `status`: OK, WARNING or ERROR.
    pub status: Option<String>,
    /// `message`.
    pub message: Option<String>,
    /// `errorCode`, such as E7131.
    pub error_code: Option<String>,
    /// `response.conflicts`, the first of them.
    pub conflicts: Vec<Conflict>,
    /// `message` at full length, for looking for words; not for people, since it may quote a query with its values.
    whole: Whole,
}

/// A text that is looked at and never shown.
#[derive(Clone, Default, Eq, PartialEq)]
struct Whole(Option<String>);

impl fmt::Debug for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Whole").field(&self.0.as_ref().map(String::len)).finish()
    }
}

/// One conflict of a refused request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Conflict {
    /// The object it is about.
    pub object: Option<String>,
    /// The message.
    pub value: Option<String>,
    /// `errorCode`, where there is one.
    pub error_code: Option<String>,
}

/// Characters of a url that a message shows.
const URL_CHARS_MAX: usize = 300;
/// Most conflicts kept.
pub(crate) const CONFLICTS_MAX: usize = 20;
/// Characters of a message that are searched for words: the database's error may follow a long query.
const WHOLE_CHARS_MAX: usize = 16_000;

impl ServerMessage {
    /// Reads a message out of a body; none when it does not begin as a JSON object.
    ///
    /// A body that ends too early, since only its beginning is read, still tells what it said by then: code and message
    /// come before the long lists.
    pub(crate) fn parse(body: &[u8], redaction: &Redaction) -> Option<Self> {
        let mut message = ServerMessage::default();
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        let visitor = MessageVisitor { message: &mut message, redaction };
        match deserializer.deserialize_map(visitor).and_then(|()| deserializer.end()) {
            Ok(()) => Some(message),
            Err(error) if error.is_eof() && message != ServerMessage::default() => Some(message),
            Err(_) => None,
        }
    }

    /// Whether the server could not run the query that it made of a request: its own mistake, which the same request meets
    /// again, while a plainer one (without order, total or deleted rows) may pass.
    ///
    /// Source: 2.40.13, 2.42.7 and 2.43.2, asked: E7145, SQL states of class 42, `ambiguous`, `unique result`,
    /// `No entity found`. Not a table of analytics that does not exist yet (E7144, state 42P01).
    pub fn is_query_error(&self) -> bool {
        if self.error_code.as_deref() == Some("E7144") {
            return false;
        }
        let message = self.whole_message();
        let said = ["is ambiguous", "did not return a unique result", "No entity found for query"];
        self.error_code.as_deref() == Some("E7145")
            || self.sql_state().is_some_and(|state| state.starts_with("42") && state != "42P01")
            || said.iter().any(|words| message.contains(words))
    }

    /// The message at full length, for looking for words. Not for people: it may quote a query with its values.
    pub fn whole_message(&self) -> &str {
        self.whole.0.as_deref().or(self.message.as_deref()).unwrap_or_default()
    }

    /// The five characters behind `SqlState:` in the message (2.38 and later).
    pub fn sql_state(&self) -> Option<&str> {
        let message = self.whole_message();
        let from = message.to_ascii_lowercase().find("sqlstate")? + "sqlstate".len();
        let state = message[from..].trim_start_matches([':', '=', ' ', '[', '`']).get(..5)?;
        state.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()).then_some(state)
    }
}

/// Fills a message member by member, so that a body which is cut still says something.
struct MessageVisitor<'a> {
    message: &'a mut ServerMessage,
    redaction: &'a Redaction,
}

impl<'de> Visitor<'de> for MessageVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let MessageVisitor { message, redaction } = self;
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match name.as_ref() {
                "status" => message.status = redaction.clean_some(map.next_value::<Text>()?.0),
                "errorCode" => message.error_code = redaction.clean_some(map.next_value::<Text>()?.0),
                "message" => {
                    let text = map.next_value::<Text>()?.0;
                    message.whole = Whole(text.as_ref().map(|text| redaction.clean_to(text, WHOLE_CHARS_MAX)));
                    message.message = redaction.clean_some(text);
                }
                "response" => {
                    let response = map.next_value::<serde_json::Value>()?;
                    if let Some(conflicts) = response.get("conflicts") {
                        message.conflicts = Conflict::list(conflicts, redaction);
                    }
                }
                "conflicts" => message.conflicts = Conflict::list(&map.next_value::<serde_json::Value>()?, redaction),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

impl Conflict {
    /// Reads one conflict, of whatever endpoint.
    pub(crate) fn of(value: &serde_json::Value, redaction: &Redaction) -> Self {
        let text =
            |names: &[&str]| names.iter().find_map(|name| value.get(name)?.as_str()).map(|text| redaction.clean(text));
        Conflict {
            object: text(&["object", "uid", "mainId"]),
            value: text(&["value", "message"]),
            error_code: text(&["errorCode"]),
        }
    }

    fn list(value: &serde_json::Value, redaction: &Redaction) -> Vec<Self> {
        let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().take(CONFLICTS_MAX).map(|one| Conflict::of(one, redaction)).collect()
    }
}

/// A text, or nothing where something else stands.
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Ok(Text(Some(text))),
            _ => Ok(Text(None)),
        }
    }
}

/// An error of a request.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    detail: String,
    url: Option<String>,
    status: Option<u16>,
    retry_after: Option<Duration>,
    server: Option<ServerMessage>,
    request_id: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            detail: detail.into(),
            url: None,
            status: None,
            retry_after: None,
            server: None,
            request_id: None,
            source: None,
        }))
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn with_status(mut self, status: u16) -> Self {
        self.0.status = Some(status);
        self
    }

    pub(crate) fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.0.retry_after = retry_after;
        self
    }

    pub(crate) fn with_server_message(mut self, server: Option<ServerMessage>) -> Self {
        self.0.server = server;
        self
    }

    /// Names the request; the first call wins.
    pub(crate) fn about(mut self, url: &str, request_id: &str) -> Self {
        self.0.url.get_or_insert_with(|| url.to_owned());
        self.0.request_id.get_or_insert_with(|| request_id.to_owned());
        self
    }

    /// The kind of error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The status of the response, where there was one.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// Whether some time ran out: connecting, first byte, stalled transfer.
    pub fn is_timeout(&self) -> bool {
        matches!(self.0.kind, ErrorKind::ConnectTimeout | ErrorKind::FirstByteTimeout | ErrorKind::Stalled)
    }

    /// Whether the server was never reached: no name, no connection, no TLS.
    pub fn is_connect(&self) -> bool {
        use ErrorKind::{Connect, ConnectTimeout, ConnectionRefused, DnsUnavailable, Tls, UnknownHost};
        matches!(self.0.kind, UnknownHost | DnsUnavailable | Connect | ConnectionRefused | ConnectTimeout | Tls)
    }

    /// The server's `Retry-After`.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The message in the body of an error response. None when that body was not a JSON object: then a proxy or a
    /// servlet container may have answered instead of DHIS2.
    pub fn server_message(&self) -> Option<&ServerMessage> {
        self.0.server.as_ref()
    }

    /// The url of the request: path and query, never credentials.
    pub fn url(&self) -> Option<&str> {
        self.0.url.as_deref()
    }

    /// The `X-Request-ID` of the request, by which the server's own log names it (2.38 and later).
    pub fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    /// What this says about the next attempt at the same request, where a client by itself repeats it.
    pub(crate) fn retry_cause(&self) -> RetryCause {
        let retry_after = self.0.retry_after;
        match self.0.kind {
            ErrorKind::DnsUnavailable
            | ErrorKind::Connect
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectTimeout
            | ErrorKind::ConnectionReset
            | ErrorKind::FirstByteTimeout
            | ErrorKind::Stalled
            | ErrorKind::Truncated
            | ErrorKind::Encoding => RetryCause::MayPass { retry_after },
            ErrorKind::UnknownLength
            | ErrorKind::Html
            | ErrorKind::NotJson
            | ErrorKind::EmptyBody
            | ErrorKind::Garbled => RetryCause::Garbled { retry_after },
            ErrorKind::Status if matches!(self.0.status, Some(429 | 500 | 502 | 503 | 504)) => {
                RetryCause::MayPass { retry_after }
            }
            ErrorKind::Status
            | ErrorKind::InvalidConfig
            | ErrorKind::InvalidUrl
            | ErrorKind::UnknownHost
            | ErrorKind::OutOfFiles
            | ErrorKind::Tls
            | ErrorKind::TooLarge
            | ErrorKind::Auth
            | ErrorKind::Redirect
            | ErrorKind::Cancelled
            | ErrorKind::GateClosed
            | ErrorKind::HandleClosed => RetryCause::Final,
        }
    }

    /// The outcome for pace and concurrency.
    pub(crate) fn request_outcome(&self) -> RequestOutcome {
        let retry_after = self.0.retry_after;
        match self.0.kind {
            ErrorKind::Connect
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectTimeout
            | ErrorKind::FirstByteTimeout
            | ErrorKind::Stalled => RequestOutcome::Overloaded { retry_after },
            ErrorKind::Status => match self.0.status {
                Some(429 | 502 | 503 | 504) => RequestOutcome::Overloaded { retry_after },
                // Without JSON a 404 is a servlet container's in which DHIS2 is not there.
                Some(404) if self.0.server.is_none() => RequestOutcome::Failed { retry_after },
                Some(500..) => RequestOutcome::Failed { retry_after },
                _ => RequestOutcome::Answered,
            },
            ErrorKind::Auth | ErrorKind::Redirect => RequestOutcome::Answered,
            ErrorKind::Cancelled
            | ErrorKind::GateClosed
            | ErrorKind::HandleClosed
            | ErrorKind::InvalidConfig
            | ErrorKind::InvalidUrl
            | ErrorKind::OutOfFiles => RequestOutcome::Abandoned,
            ErrorKind::UnknownHost
            | ErrorKind::DnsUnavailable
            | ErrorKind::Tls
            | ErrorKind::ConnectionReset
            | ErrorKind::Truncated
            | ErrorKind::UnknownLength
            | ErrorKind::Encoding
            | ErrorKind::TooLarge
            | ErrorKind::Html
            | ErrorKind::NotJson
            | ErrorKind::EmptyBody
            | ErrorKind::Garbled => RequestOutcome::Failed { retry_after },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.detail)?;
        let Some(url) = &self.0.url else { return Ok(()) };
        // A list of ids may be as long as a request line; what is asked for stands in front.
        match url.char_indices().nth(URL_CHARS_MAX) {
            Some((end, _)) => write!(f, " (GET {}…)", &url[..end]),
            None => write!(f, " (GET {url})"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("dhis2::Error")
            .field("kind", &self.0.kind)
            .field("status", &self.0.status)
            .field("detail", &self.0.detail)
            .field("url", &self.0.url)
            .field("request_id", &self.0.request_id)
            .field("source", &self.0.source)
            .finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::redaction::TEXT_CHARS_MAX;

    fn parse(body: &[u8]) -> Option<ServerMessage> {
        ServerMessage::parse(body, &Redaction::default())
    }

    #[test]
    fn a_web_message_is_kept_as_data_and_bounded() {
        let long = "x".repeat(2000);
        let body = format!(
            r#"{{"httpStatus":"Conflict","httpStatusCode":409,"status":"ERROR","message":"bad\n{long}","errorCode":"E7131",
            "response":{{"conflicts":[{{"object":"period","value":"no such period","errorCode":"E7600"}},{{"object":5}}]}}}}"#
        );
        let said = parse(body.as_bytes()).unwrap();
        assert_eq!(said.error_code.as_deref(), Some("E7131"));
        assert_eq!(said.conflicts.len(), 2);
        assert_eq!(said.conflicts[0].object.as_deref(), Some("period"));
        let message = said.message.unwrap();
        assert!(message.starts_with("bad xxx") && message.chars().count() == TEXT_CHARS_MAX + 1, "{message}");
    }

    #[test]
    fn a_message_that_is_cut_still_says_what_came_first() {
        let body =
            br#"{"httpStatus":"Conflict","status":"ERROR","message":"too long","errorCode":"E8002","response":{"conf"#;
        let said = parse(body).unwrap();
        assert_eq!((said.error_code.as_deref(), said.message.as_deref()), (Some("E8002"), Some("too long")));
        for nothing in [&b""[..], b"{", b"{\"message\":\"to", b"{\"message\":\"x\"} {", b"{\"a\":1,}"] {
            assert_eq!(parse(nothing), None, "{}", String::from_utf8_lossy(nothing));
        }
    }

    #[test]
    fn a_query_that_the_server_itself_could_not_run_is_told_from_other_refusals() {
        let said = |code: Option<&str>, message: &str| ServerMessage {
            error_code: code.map(str::to_owned),
            message: Some(message.to_owned()),
            ..ServerMessage::default()
        };
        for (code, message, is) in [
            (Some("E7145"), "Query failed because of a syntax error (SqlState: 42601)", true),
            (None, "ERROR: column reference \"created\" is ambiguous\n  Position: 1409", true),
            (None, "query did not return a unique result: 990", true),
            (None, "No entity found for query", true),
            (None, "PreparedStatementCallback; bad SQL grammar; SqlState: 42703", true),
            (Some("E7144"), "Query failed because a referenced table does not exist (SqlState: 42P01)", false),
            (None, "FATAL: terminating connection (SqlState: 57P01)", false),
            (None, "sqlstate: 4é601", false),
            (Some("E7120"), "User: `x` is not allowed to view org unit: `y`", false),
        ] {
            assert_eq!(said(code, message).is_query_error(), is, "{message}");
        }
        assert_eq!(said(None, "SqlState: 57P01)").sql_state(), Some("57P01"));
        assert_eq!(said(None, "SqlState").sql_state(), None);
    }

    #[test]
    fn a_message_shows_the_beginning_of_a_long_url() {
        let url = format!("https://x.org/api/dataValueSets?{}", "orgUnit=ImspTQPwCqd&".repeat(400));
        let error = Error::new(ErrorKind::Status, "the server answers 414").about(&url, "");
        assert_eq!(error.url(), Some(url.as_str()));
        assert!(error.to_string().starts_with("the server answers 414 (GET https://x.org/api/dataValueSets?orgUnit="));
        assert!(error.to_string().chars().count() < URL_CHARS_MAX + 50);
        let short = Error::new(ErrorKind::Status, "x").about("https://x.org/api/me", "");
        assert_eq!(short.to_string(), "x (GET https://x.org/api/me)");
    }

    #[test]
    fn what_a_database_says_behind_a_long_query_is_found() {
        let select = "select x ".repeat(300);
        let body = format!(r#"{{"message":"bad SQL grammar [{select}]; ERROR: column reference is ambiguous"}}"#);
        let said = parse(body.as_bytes()).unwrap();
        assert!(said.is_query_error() && said.message.as_ref().unwrap().chars().count() == TEXT_CHARS_MAX + 1);
        assert!(format!("{said:?}").len() < 500);
    }

    #[test]
    fn strange_bodies_are_no_message_and_strange_members_are_left_out() {
        assert_eq!(parse(b"<html>"), None);
        assert_eq!(parse(b"[1]"), None);
        let said = parse(br#"{"message":{"a":1},"status":null,"extra":[]}"#).unwrap();
        assert_eq!(said, ServerMessage::default());
    }

    proptest! {
        #[test]
        fn no_body_upsets_it_and_a_beginning_never_says_more_than_the_whole(
            random in prop::collection::vec(any::<u8>(), 0..200),
            code in any::<String>(),
            message in any::<String>(),
            cut in 0.0..1.0,
        ) {
            let _ = parse(&random);
            let body = serde_json::json!({
                "status": "ERROR", "errorCode": code, "message": format!("SqlState: {message}"), "response": {"conflicts": [{"object": message}]},
            })
            .to_string();
            let whole = parse(body.as_bytes()).unwrap();
            let _ = (whole.sql_state(), whole.is_query_error());
            if let Some(part) = parse(&body.as_bytes()[..(body.len() as f64 * cut) as usize]) {
                prop_assert!(part.status.is_none() || part.status == whole.status);
                prop_assert!(part.error_code.is_none() || part.error_code == whole.error_code);
                prop_assert!(part.message.is_none() || part.message == whole.message);
                prop_assert!(part.conflicts.is_empty() || part.conflicts == whole.conflicts);
            }
        }
    }
}
