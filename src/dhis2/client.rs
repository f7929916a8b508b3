//! A client of one DHIS2 server: build it once, clone it freely, share it between threads.

use std::{
    cell::RefCell,
    fmt,
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use awc::http::{Uri, header::HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use url::Url;

use crate::{
    auth::{Credentials, Session},
    error::{Error, ErrorKind},
    gate::{DEFAULT_REQUESTS_PER_SECOND, DefaultGate, Gate},
    handle::Handle,
    redaction::{Redaction, said},
    request::Request,
    trust::tls_config,
    wire::{Endpoint, OriginConnector},
};

/// Retries of a failed request, unless the builder sets them.
const DEFAULT_RETRIES: u32 = 3;
/// Kept connections are given up before a servlet container does so itself (Tomcat: 20 s).
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A connection lives no longer, so that a changed address of the host is used some day.
const LIFETIME: Duration = Duration::from_secs(600);

/// Timeouts and size limits of one request.
#[derive(Clone, Debug)]
pub(crate) struct ClientLimits {
    pub(crate) connect_timeout: Duration,
    pub(crate) first_byte_timeout: Duration,
    pub(crate) stall_timeout: Duration,
    pub(crate) bytes_per_second_min: u64,
    pub(crate) rate_over: Duration,
    pub(crate) head_bytes_max: usize,
    pub(crate) error_body_bytes_max: usize,
    pub(crate) body_bytes_max: u64,
    pub(crate) inflate_ratio_max: u64,
    pub(crate) json_bytes_max: usize,
}

impl Default for ClientLimits {
    fn default() -> Self {
        ClientLimits {
            connect_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(600),
            stall_timeout: Duration::from_secs(120),
            bytes_per_second_min: 1024,
            rate_over: Duration::from_secs(60),
            head_bytes_max: 64 << 10,
            error_body_bytes_max: 64 << 10,
            body_bytes_max: 8 << 30,
            inflate_ratio_max: 500,
            json_bytes_max: 16 << 20,
        }
    }
}

/// Sets up a [`Client`].
pub struct ClientBuilder {
    url: String,
    credentials: Option<Credentials>,
    limits: ClientLimits,
    ca_file: Option<PathBuf>,
    user_agent: String,
    gate: Option<Arc<dyn Gate>>,
    requests_per_second: u32,
    retries: u32,
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The url may hold a password until it is checked.
        f.debug_struct("ClientBuilder")
            .field("credentials", &self.credentials)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl ClientBuilder {
    // ---- who we are

    /// Name and password, or a token. Default: none, which few paths allow.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// The `User-Agent` header. Default `dhis2-harvester/<version>`.
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = user_agent.into();
        self
    }

    /// A PEM file with authorities to trust besides the system's. Read once, when the client is built, for https only.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    // ---- how long to wait

    /// Name, connection and TLS together. Default 10 s.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.limits.connect_timeout = limit;
        self
    }

    /// From the connection to the head of the response. Default 600 s: a server may think for minutes.
    pub fn first_byte_timeout(mut self, limit: Duration) -> Self {
        self.limits.first_byte_timeout = limit;
        self
    }

    /// Silence once the body has begun. Default 120 s. There is no limit on the whole transfer.
    pub fn stall_timeout(mut self, limit: Duration) -> Self {
        self.limits.stall_timeout = limit;
        self
    }

    /// A response slower than this, over that much waiting, counts as stalled. Default 1 KiB over 60 s.
    pub fn min_transfer_rate(mut self, bytes_per_second: u64, over: Duration) -> Self {
        self.limits.bytes_per_second_min = bytes_per_second;
        self.limits.rate_over = over;
        self
    }

    // ---- how much to take

    /// The head of a response. Default 64 KiB; the parser below stops at 128 KiB and 96 headers.
    pub fn head_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.head_bytes_max = bytes;
        self
    }

    /// Bytes read of the body of an error response. Default 64 KiB.
    pub fn error_body_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.error_body_bytes_max = bytes;
        self
    }

    /// The body of one response, inflated. Default 8 GiB, since it is never held in memory.
    pub fn body_bytes_max(mut self, bytes: u64) -> Self {
        self.limits.body_bytes_max = bytes;
        self
    }

    /// Largest ratio of inflated to compressed bytes, beyond 8 MiB. Default 500; DHIS2's lists reach 8 to 12.
    pub fn inflate_ratio_max(mut self, ratio: u64) -> Self {
        self.limits.inflate_ratio_max = ratio.max(1);
        self
    }

    /// A response that is parsed as one ([`Response::json`](crate::Response::json)). Default 16 MiB.
    pub fn json_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.json_bytes_max = bytes;
        self
    }

    // ---- how often to send

    /// The gate that paces the requests. Default: one of the client's own.
    pub fn gate(mut self, gate: Arc<dyn Gate>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// The limit of the client's own gate; without effect when another is set. Default 200.
    pub fn requests_per_second(mut self, requests_per_second: u32) -> Self {
        self.requests_per_second = requests_per_second;
        self
    }

    /// Retries of a failed request, after growing waits. Default 3; 0 if the caller retries.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Checks everything that can be checked without the network.
    ///
    /// # Errors
    /// `InvalidConfig`: url, credentials, user agent or certificate file. `Tls`: nothing to trust on this machine (https only).
    pub fn build(self) -> Result<Client, Error> {
        let base = BaseUrl::parse(&self.url)?;
        let tls = if base.https { Some(tls_config(self.ca_file.as_deref())?) } else { None };
        let session = Session::new(self.credentials.as_ref())?;
        let user_agent = HeaderValue::try_from(self.user_agent).map_err(|_| {
            Error::new(ErrorKind::InvalidConfig, "the user agent has characters that no header can carry")
        })?;
        let endpoint =
            Endpoint { host: base.host.clone(), port: base.port, tls, connect_timeout: self.limits.connect_timeout };
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let inner = ClientInner {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            base,
            endpoint,
            limits: self.limits,
            user_agent,
            session,
            sent: Arc::default(),
            request_id_prefix: format!("h{:012x}", rand::random::<u64>() >> 16),
            request_ids: AtomicU64::new(0),
        };
        Ok(Client {
            inner: Arc::new(inner),
            gate: self.gate.unwrap_or_else(|| Arc::new(DefaultGate::new(self.requests_per_second))),
            retries: self.retries,
        })
    }
}

/// State shared by all clones of a client.
pub(crate) struct ClientInner {
    id: u64,
    pub(crate) base: BaseUrl,
    endpoint: Endpoint,
    pub(crate) limits: ClientLimits,
    pub(crate) user_agent: HeaderValue,
    pub(crate) session: Session,
    /// Requests whose first byte has left.
    pub(crate) sent: Arc<AtomicU64>,
    request_id_prefix: String,
    request_ids: AtomicU64,
}

impl ClientInner {
    /// At most 36 of `[-_a-zA-Z0-9]`, as the server's log takes them; never the same twice.
    pub(crate) fn next_request_id(&self) -> String {
        let number = self.request_ids.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number:x}", self.request_id_prefix)
    }
}

/// A client of one DHIS2 server.
///
/// Cheap to clone; clones share session, counters and gate. Requests run on whatever actix arbiter (or tokio
/// `LocalSet`) awaits them, with connections of that thread; their futures stay on it. From anywhere
/// else use [`Client::handle`].
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<ClientInner>,
    pub(crate) gate: Arc<dyn Gate>,
    pub(crate) retries: u32,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("url", &self.inner.base.url)
            .field("session", &self.inner.session)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

thread_local! {
    /// awc's clients cannot leave their thread, so each thread has its own for each of ours. Those of clients that are
    /// gone are dropped when the next is made.
    static LOCAL: RefCell<Vec<(u64, Weak<ClientInner>, awc::Client)>> = const { RefCell::new(Vec::new()) };
}

impl Client {
    /// Begins a client for a server: `https://host`, with or without a context path, with or without `/api`.
    pub fn builder(url: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            url: url.into(),
            credentials: None,
            limits: ClientLimits::default(),
            ca_file: None,
            user_agent: concat!("dhis2-harvester/", env!("CARGO_PKG_VERSION")).to_owned(),
            gate: None,
            requests_per_second: DEFAULT_REQUESTS_PER_SECOND,
            retries: DEFAULT_RETRIES,
        }
    }

    /// The same client, session and counters behind another gate; for probes, for instance.
    pub fn with_gate(&self, gate: Arc<dyn Gate>) -> Client {
        Client { gate, ..self.clone() }
    }

    /// The same client with another number of retries.
    pub fn with_retries(&self, retries: u32) -> Client {
        Client { retries, ..self.clone() }
    }

    /// Other credentials for all clones: a renewed token, a corrected password. Forgets that the old ones were refused,
    /// and their session.
    ///
    /// # Errors
    /// `InvalidConfig`: they cannot be sent.
    pub fn replace_credentials(&self, credentials: &Credentials) -> Result<(), Error> {
        self.inner.session.replace(credentials)
    }

    /// A GET request for a path below `/api`, which may have a query: `dataElements`, `/dataElements?page=2` and
    /// `/api/dataElements` are the same place. A whole url is taken if it lies there, too. Mistakes come up when it is sent.
    pub fn get(&self, path: &str) -> Request {
        Request::new(self.clone(), self.inner.base.api_path(path))
    }

    /// A handle for threads that run no arbiter, and for other runtimes.
    ///
    /// # Errors
    /// `InvalidConfig`: the system gives no thread.
    pub fn handle(&self) -> Result<Handle, Error> {
        Handle::start(self.clone())
    }

    /// Requests that left so far, from all clones: repeats, probes and polls included.
    pub fn requests_sent(&self) -> u64 {
        self.inner.sent.load(Ordering::Relaxed)
    }

    /// The server's url as it is used: without `/api`, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.inner.base.url
    }

    /// Scheme, host and port: what shares one budget.
    pub fn origin(&self) -> &str {
        &self.inner.base.origin
    }

    /// This thread's awc client.
    pub(crate) fn local(&self) -> awc::Client {
        LOCAL.with_borrow_mut(|clients| {
            if let Some((_, _, client)) = clients.iter().find(|(id, _, _)| *id == self.inner.id) {
                return client.clone();
            }
            clients.retain(|(_, inner, _)| inner.strong_count() > 0);
            let origin = OriginConnector { endpoint: Rc::new(self.inner.endpoint.clone()) };
            let connector = awc::Connector::new()
                .connector(origin)
                // `OriginConnector` has the limit; awc's must not come first.
                .timeout(self.inner.limits.connect_timeout.saturating_mul(2).saturating_add(KEEP_ALIVE))
                // How many may be on their way is the gate's business. 0 is no limit.
                .limit(0)
                .conn_keep_alive(KEEP_ALIVE)
                .conn_lifetime(LIFETIME);
            let client = awc::ClientBuilder::new()
                .connector(connector)
                .disable_timeout()
                .disable_redirects()
                .no_default_headers()
                .finish();
            clients.push((self.inner.id, Arc::downgrade(&self.inner), client.clone()));
            client
        })
    }
}

/// Characters encoded in a path typed by a person: all that a url may not hold.
const TYPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'[')
    .add(b']')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The server's url, checked and taken apart.
#[derive(Debug)]
pub(crate) struct BaseUrl {
    /// Scheme, host, port, context path.
    url: String,
    origin: String,
    /// Context path: empty, or begins with a slash and does not end with one.
    context: String,
    https: bool,
    host: String,
    port: u16,
    pub(crate) host_header: HeaderValue,
    /// `host:port` as a url has it.
    authority: String,
}

impl BaseUrl {
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        // The text may hold a password, so no message quotes it.
        let bad = |what: &str| Error::new(ErrorKind::InvalidConfig, format!("the server's url {what}"));
        let url = Url::parse(text.trim())
            .map_err(|error| bad("cannot be read: it should look like https://dhis2.example.org").with_source(error))?;
        let https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(bad("must begin with https:// or http://")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("must not hold name and password: set them beside it"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("must end before any `?` or `#`"));
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| bad("has no host"))?;
        let port = url.port_or_known_default().ok_or_else(|| bad("has no port"))?;
        let mut context = url.path().trim_end_matches('/').to_owned();
        // `/api/29` is the same server asked for an older dialect; dialects are told by the server's version here.
        if let Some((before, last)) = context.rsplit_once('/')
            && last.len() == 2
            && last.bytes().all(|byte| byte.is_ascii_digit())
            && before.ends_with("/api")
        {
            context = before.to_owned();
        }
        if let Some(before) = context.strip_suffix("/api") {
            context = before.trim_end_matches('/').to_owned();
        }
        if context.contains("//") {
            return Err(bad("has a double slash in its path"));
        }
        let shown_host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let origin = format!("{}://{shown_host}", url.scheme());
        Ok(BaseUrl {
            url: format!("{origin}{context}"),
            origin,
            https,
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            host_header: HeaderValue::try_from(&shown_host).map_err(|_| bad("has a strange host"))?,
            authority: format!("{host}:{port}"),
            context,
        })
    }

    /// The whole url of a path, for people.
    pub(crate) fn url_of(&self, path: &str) -> String {
        format!("{}/api/{path}", self.url)
    }

    /// The url given to awc: always http, since TLS is made by our own connector.
    pub(crate) fn wire_uri(&self, path: &str) -> Result<Uri, Error> {
        Uri::try_from(format!("http://{}{}/api/{path}", self.authority, self.context)).map_err(|error| {
            Error::new(ErrorKind::InvalidUrl, "the path cannot be sent")
                .with_source(error)
                .about(&self.url_of(path), "")
        })
    }

    /// Reads a path typed by a person: what stands behind `/api/`, encoded.
    pub(crate) fn api_path(&self, typed: &str) -> Result<String, Error> {
        let bad = |what: &str| Error::new(ErrorKind::InvalidUrl, format!("`{}` {what}", said(typed)));
        let mut path = typed.trim();
        if path.contains("://") && !path.contains('?') || path.starts_with("http://") || path.starts_with("https://") {
            path = path
                .strip_prefix(self.url.as_str())
                .filter(|rest| rest.starts_with("/api/"))
                .ok_or_else(|| bad("is another server: credentials go nowhere else"))?;
        } else if !self.context.is_empty() && path.starts_with(&format!("{}/api/", self.context)) {
            path = &path[self.context.len()..];
        }
        if path.starts_with("//") || path.contains('\\') || path.contains('#') || path.chars().any(char::is_control) {
            return Err(bad("is not a path of the Web API"));
        }
        path = path.strip_prefix('/').unwrap_or(path);
        path = path.strip_prefix("api/").unwrap_or(path);
        let segments = path.split(['?']).next().unwrap_or_default();
        if segments.is_empty() || segments.starts_with('/') {
            return Err(bad("names no resource"));
        }
        // A segment that steps out, plain or encoded, would leave `/api`.
        if segments
            .split('/')
            .any(|segment| matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | ".."))
        {
            return Err(bad("leads out of /api"));
        }
        Ok(utf8_percent_encode(path, TYPED).to_string())
    }

    /// Message about a redirect: its target, and the url to set.
    pub(crate) fn redirect_advice(&self, location: &str, redaction: &Redaction) -> String {
        let here = Url::parse(&format!("{}/api/", self.url));
        let there = here.and_then(|here| here.join(location));
        let Ok(there) = there else { return "the server redirects without saying where".to_owned() };
        let origin = there.origin().ascii_serialization();
        let context = there.path().find("/api/").map_or("", |at| &there.path()[..at]);
        let advised = format!("{origin}{context}");
        if advised == self.url {
            format!("the server redirects to another path of its own: `{}`", redaction.clean(there.path()))
        } else {
            let (origin, advised) = (redaction.clean(&origin), redaction.clean(&advised));
            format!("the server redirects to {origin}: set url to {advised}")
        }
    }
}

/// Reads a path typed by a person, or the whole url of something below `/api/` of `base_url`: what stands behind `/api/`,
/// encoded as it is sent.
///
/// # Errors
/// `InvalidUrl` when it leads to another server or out of `/api`; `InvalidConfig` when `base_url` is not a server's.
pub fn api_path(base_url: &str, typed: &str) -> Result<String, Error> {
    BaseUrl::parse(base_url)?.api_path(typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_shareable<T: Send + Sync + Clone>() {}

    #[test]
    fn a_client_can_be_shared_between_threads() {
        is_shareable::<Client>();
    }

    #[test]
    fn a_url_with_or_without_context_and_api_means_the_same_server() {
        for (text, url, api) in [
            ("https://x.org", "https://x.org", "http://x.org:443/api/me"),
            ("https://x.org/", "https://x.org", "http://x.org:443/api/me"),
            ("https://x.org/api", "https://x.org", "http://x.org:443/api/me"),
            ("https://x.org/api/", "https://x.org", "http://x.org:443/api/me"),
            ("https://x.org/api/29", "https://x.org", "http://x.org:443/api/me"),
            ("https://x.org/dhis", "https://x.org/dhis", "http://x.org:443/dhis/api/me"),
            ("https://x.org/dhis/api/", "https://x.org/dhis", "http://x.org:443/dhis/api/me"),
            ("https://x.org/a/b/api/40/", "https://x.org/a/b", "http://x.org:443/a/b/api/me"),
            ("http://x.org:8080/dhis//", "http://x.org:8080/dhis", "http://x.org:8080/dhis/api/me"),
            ("HTTPS://X.org:443/", "https://x.org", "http://x.org:443/api/me"),
            ("http://[::1]:8080", "http://[::1]:8080", "http://[::1]:8080/api/me"),
            (" http://127.0.0.1 ", "http://127.0.0.1", "http://127.0.0.1:80/api/me"),
            ("https://x.org/dhis/40", "https://x.org/dhis/40", "http://x.org:443/dhis/40/api/me"),
            ("https://x.org/apis", "https://x.org/apis", "http://x.org:443/apis/api/me"),
        ] {
            let base = BaseUrl::parse(text).unwrap();
            assert_eq!(base.url, url, "{text}");
            assert_eq!(base.wire_uri("me").unwrap().to_string(), api, "{text}");
        }
        assert_eq!(BaseUrl::parse("http://[::1]:8080").unwrap().host, "::1");
        assert_eq!(BaseUrl::parse("https://x.org:8443").unwrap().host_header, "x.org:8443");
        assert_eq!(BaseUrl::parse("https://x.org:443").unwrap().host_header, "x.org");
    }

    #[test]
    fn a_url_that_hides_something_is_refused_without_quoting_it() {
        for text in [
            "ftp://x.org",
            "x.org",
            "",
            "https://",
            "https://canary:canary@x.org",
            "https://canary@x.org",
            "https://x.org?canary=1",
            "https://x.org/#canary",
            "file:///etc/canary",
            "https://x.org/a//b",
        ] {
            let error = BaseUrl::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
            assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        }
    }

    #[test]
    fn a_typed_path_is_taken_below_api_and_nowhere_else() {
        let base = BaseUrl::parse("https://x.org/dhis").unwrap();
        for (typed, path) in [
            ("me", "me"),
            ("/me", "me"),
            ("/api/me", "me"),
            ("api/me", "me"),
            ("/dhis/api/me", "me"),
            ("https://x.org/dhis/api/me?fields=id", "me?fields=id"),
            (
                "dataElements?fields=id,name[x]&filter=a:in:[b c]",
                "dataElements?fields=id,name%5Bx%5D&filter=a:in:%5Bb%20c%5D",
            ),
            ("me?next=https://other.org/", "me?next=https://other.org/"),
            ("me?x=%20é", "me?x=%20%C3%A9"),
            ("dataElements.json", "dataElements.json"),
            ("dataElements?filter=name:like:a/../b", "dataElements?filter=name:like:a/../b"),
        ] {
            assert_eq!(base.api_path(typed).unwrap(), path, "{typed}");
        }
        for typed in [
            "",
            "/",
            "/api/",
            "//other.org/api/me",
            "https://other.org/api/me",
            "https://x.org/api/me",
            "http://x.org/dhis/api/me",
            "https://x.org:8443/dhis/api/me",
            "https://x.org@evil.org/dhis/api/me",
            "https://u:p@x.org/dhis/api/me",
            "\\\\evil.org/api",
            "https://x.org.evil.org/dhis/api/me",
            "../me",
            "a/../../me",
            "a/%2E%2e/me",
            "me#x",
            "a\\b",
            "a\nb",
            "https://x.org/dhisapi/me",
        ] {
            assert_eq!(base.api_path(typed).unwrap_err().kind(), ErrorKind::InvalidUrl, "{typed}");
        }
    }

    #[test]
    fn a_redirect_tells_what_to_set() {
        let base = BaseUrl::parse("http://x.org/dhis").unwrap();
        for (location, advice) in [
            ("https://x.org/dhis/api/me", "the server redirects to https://x.org: set url to https://x.org/dhis"),
            ("https://new.org/api/me?x=1", "the server redirects to https://new.org: set url to https://new.org"),
            ("/dhis/api/other", "the server redirects to another path of its own: `/dhis/api/other`"),
            ("https://u:p@new.org/", "the server redirects to https://new.org: set url to https://new.org"),
            ("http://[", "the server redirects without saying where"),
        ] {
            assert_eq!(base.redirect_advice(location, &Redaction::default()), advice);
        }
    }

    #[test]
    fn request_ids_are_short_and_never_the_same() {
        let client = Client::builder("http://x.org").build().unwrap();
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| client.inner.next_request_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() <= 36 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')));
        assert!(client.inner.request_id_prefix.len() + 1 + 16 <= 36);
    }
}
