//! One error for everything that can go wrong on the wire, and the questions one can ask it.
//!
//! It says what happened and decides nothing: whether to try again is the asker's business. What the server said is kept
//! as data. It never holds a secret or a row: the url has no credentials, a body is quoted only as far as it is a DHIS2
//! message or the title of a page.

use std::{error::Error as StdError, fmt, time::Duration};

use harvester_pacing::TurnOutcome;
use serde::Deserialize;

/// What happened.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Kind {
    /// The client was set up wrongly: url, credentials, certificate file.
    Settings,
    /// A path or parameter that cannot be sent, or another origin.
    InvalidUrl,
    /// No such host.
    UnknownHost,
    /// The resolver does not answer; the host may exist.
    Resolver,
    /// The host cannot be reached.
    Connect,
    /// Nobody listens there.
    Refused,
    /// No connection within the connect timeout.
    ConnectTimeout,
    /// No trusted TLS connection: certificate, protocol.
    Tls,
    /// The connection was reset, or broke while sending.
    Reset,
    /// No answer within the first-byte timeout.
    FirstByteTimeout,
    /// The answer began and stopped, or came slower than the least rate.
    Stalled,
    /// The answer ended too early.
    Cut,
    /// The answer does not say how long it is, so nobody can tell whether it is whole.
    NoLength,
    /// The answer's compression is damaged, or not the one asked for.
    Encoding,
    /// Head, body or row is larger than the limit.
    TooLarge,
    /// The server refused: see [`Error::status`] and [`Error::server_message`].
    Status,
    /// The credentials are not accepted: 401, or a login page.
    Auth,
    /// The server wants the request somewhere else. Not followed.
    Redirect,
    /// A page for people where data belong.
    Html,
    /// Another content type than JSON.
    NotJson,
    /// A success without a body.
    Empty,
    /// Whole, but not what this server version sends: not HTTP, not JSON, the wrong dialect.
    Garbled,
    /// The caller stopped reading.
    Stopped,
    /// The gate is closed: the run is ending.
    GateClosed,
    /// The thread of a [`Handle`](crate::Handle) is gone, or the work on it panicked.
    HandleClosed,
}

/// What a DHIS2 server said in the body of a refusal (a WebMessage). Bounded in length.
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
}

/// One conflict of a refused request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Conflict {
    /// What it is about.
    pub object: Option<String>,
    /// What is wrong.
    pub value: Option<String>,
    /// `errorCode`, where there is one.
    pub error_code: Option<String>,
}

/// Longest text kept of what a server says, in characters.
const SAID_CHARS_MAX: usize = 500;
/// Most conflicts kept.
const CONFLICTS_MAX: usize = 20;

/// Cuts what a server says to a bounded single line.
pub(crate) fn said(text: &str) -> String {
    let mut kept: String =
        text.trim().chars().take(SAID_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().chars().nth(SAID_CHARS_MAX).is_some() {
        kept.push('…');
    }
    kept
}

impl ServerMessage {
    /// Reads a message out of a body; none when it is not a JSON object.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Said {
            #[serde(default)]
            status: Text,
            #[serde(default)]
            message: Text,
            #[serde(default)]
            error_code: Text,
            #[serde(default)]
            response: Option<serde_json::Value>,
            #[serde(default)]
            conflicts: Option<serde_json::Value>,
        }
        // serde would take a list for the object's members in order.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return None;
        }
        let said: Said = serde_json::from_slice(body).ok()?;
        let list = said.conflicts.or_else(|| said.response.and_then(|mut r| r.get_mut("conflicts").map(|c| c.take())));
        let conflicts = list.as_ref().and_then(|list| list.as_array()).map_or_else(Vec::new, |list| {
            let text =
                |of: &serde_json::Value, key: &str| of.get(key).and_then(|text| text.as_str()).map(crate::error::said);
            list.iter()
                .take(CONFLICTS_MAX)
                .map(|one| Conflict {
                    object: text(one, "object"),
                    value: text(one, "value"),
                    error_code: text(one, "errorCode"),
                })
                .collect()
        });
        Some(ServerMessage { status: said.status.0, message: said.message.0, error_code: said.error_code.0, conflicts })
    }
}

/// A text, or nothing where something else stands.
#[derive(Default)]
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Text(value.as_str().map(said)))
    }
}

/// What went wrong on the wire.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    detail: String,
    url: Option<String>,
    status: Option<u16>,
    retry_after: Option<Duration>,
    server: Option<ServerMessage>,
    request_id: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
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

    /// Says which request it was; the first to know wins.
    pub(crate) fn about(mut self, url: &str, request_id: &str) -> Self {
        self.0.url.get_or_insert_with(|| url.to_owned());
        self.0.request_id.get_or_insert_with(|| request_id.to_owned());
        self
    }

    /// What happened.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The status of the answer, where there was one.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// Whether some time ran out: connecting, first byte, stalled transfer.
    pub fn is_timeout(&self) -> bool {
        matches!(self.0.kind, Kind::ConnectTimeout | Kind::FirstByteTimeout | Kind::Stalled)
    }

    /// Whether the server was never reached: no name, no connection, no TLS.
    pub fn is_connect(&self) -> bool {
        use Kind::{Connect, ConnectTimeout, Refused, Resolver, Tls, UnknownHost};
        matches!(self.0.kind, UnknownHost | Resolver | Connect | Refused | ConnectTimeout | Tls)
    }

    /// How long the server asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// What the server said in the body of its refusal. None when that body was not a JSON object: then a proxy or a
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

    /// Whether the same request may well succeed a little later: what a client alone tries again.
    pub(crate) fn is_transient(&self) -> bool {
        use Kind::{
            Connect, ConnectTimeout, Cut, Empty, Encoding, FirstByteTimeout, Garbled, Html, NoLength, NotJson, Refused,
            Reset, Resolver, Stalled, Status,
        };
        match self.0.kind {
            Resolver | Connect | Refused | ConnectTimeout | Reset | FirstByteTimeout | Stalled | Cut | NoLength
            | Encoding | Html | NotJson | Empty | Garbled => true,
            Status => matches!(self.0.status, Some(429 | 500 | 502 | 503 | 504)),
            _ => false,
        }
    }

    /// What this means for pace and concurrency.
    pub(crate) fn turn_outcome(&self) -> TurnOutcome {
        let retry_after = self.0.retry_after;
        match self.0.kind {
            Kind::Connect | Kind::Refused | Kind::ConnectTimeout | Kind::FirstByteTimeout | Kind::Stalled => {
                TurnOutcome::Overloaded { retry_after }
            }
            Kind::Status => match self.0.status {
                Some(429 | 502 | 503 | 504) => TurnOutcome::Overloaded { retry_after },
                Some(500..) => TurnOutcome::Failed { retry_after },
                _ => TurnOutcome::Answered,
            },
            Kind::Auth | Kind::Redirect => TurnOutcome::Answered,
            Kind::Stopped | Kind::GateClosed | Kind::HandleClosed | Kind::Settings | Kind::InvalidUrl => {
                TurnOutcome::Abandoned
            }
            Kind::UnknownHost
            | Kind::Resolver
            | Kind::Tls
            | Kind::Reset
            | Kind::Cut
            | Kind::NoLength
            | Kind::Encoding
            | Kind::TooLarge
            | Kind::Html
            | Kind::NotJson
            | Kind::Empty
            | Kind::Garbled => TurnOutcome::Failed { retry_after },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.detail)?;
        if let Some(url) = &self.0.url {
            write!(f, " (GET {url})")?;
        }
        Ok(())
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
    use super::*;

    #[test]
    fn a_web_message_is_kept_as_data_and_bounded() {
        let long = "x".repeat(2000);
        let body = format!(
            r#"{{"httpStatus":"Conflict","httpStatusCode":409,"status":"ERROR","message":"bad\n{long}","errorCode":"E7131",
            "response":{{"conflicts":[{{"object":"period","value":"no such period","errorCode":"E7600"}},{{"object":5}}]}}}}"#
        );
        let said = ServerMessage::parse(body.as_bytes()).unwrap();
        assert_eq!(said.error_code.as_deref(), Some("E7131"));
        assert_eq!(said.conflicts.len(), 2);
        assert_eq!(said.conflicts[0].object.as_deref(), Some("period"));
        let message = said.message.unwrap();
        assert!(message.starts_with("bad xxx") && message.chars().count() == SAID_CHARS_MAX + 1, "{message}");
    }

    #[test]
    fn strange_bodies_are_no_message_and_strange_members_are_left_out() {
        assert_eq!(ServerMessage::parse(b"<html>"), None);
        assert_eq!(ServerMessage::parse(b"[1]"), None);
        let said = ServerMessage::parse(br#"{"message":{"a":1},"status":null,"extra":[]}"#).unwrap();
        assert_eq!(said, ServerMessage::default());
    }
}
