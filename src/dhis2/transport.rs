//! The one place where a request leaves, and where only a complete response passes.
//!
//! ```text
//! login known? ─▶ gate ─▶ send ─▶ head: time, length, type, login page? ─▶ body: time, rate, length, inflate
//! ```
//!
//! awc is given no timers, no redirects, no decompression: each of them would hide something. What is repeated here is
//! repeated once, through the gate: a request on a kept connection that the server had closed, and a request whose
//! session had ended.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    rc::Rc,
    time::Duration,
};

use awc::{
    ClientResponse,
    error::{ConnectError, PayloadError, SendRequestError},
    http::{
        Method, StatusCode, Version,
        header::{self, HeaderMap, HeaderValue},
    },
};
use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use harvester_pacing::RequestOutcome;
use tokio::time::Instant;

use crate::{
    auth::{AuthFailure, RequestAuth},
    client::{Client, ClientLimits},
    error::{Error, ErrorKind, ServerMessage},
    inflate::{InflateError, InflateLimits, Inflater},
    redaction::Redaction,
    uid::Uid,
    wire::{RequestTrace, SharedPermit, TRACE},
};

/// Room for inflated bytes; also the longest stretch of work between two looks at the clock.
const INFLATE_BUFFER_BYTES: usize = 64 << 10;

/// Content types that a request accepts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Accept {
    /// JSON, nothing else.
    Json,
    /// Anything but an HTML page.
    Anything,
}

/// One request, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct RequestSpec {
    /// Behind `/api/`, with query, encoded.
    pub(crate) path: String,
    pub(crate) accept: Accept,
    /// A probe does not wait for a login that is on trial.
    pub(crate) is_probe: bool,
}

impl RequestSpec {
    /// Class of requests whose latencies are comparable: endpoint, page size, whether only ids are asked for. Ids,
    /// keys and the place in a list do not count.
    fn class(&self) -> u64 {
        let (path, query) = self.path.split_once('?').unwrap_or((&self.path, ""));
        let mut hasher = DefaultHasher::new();
        for (position, segment) in path.split('/').enumerate() {
            // Endpoints are named by their first two segments at most; an id is as good as another.
            let counts = position < 2 && segment.parse::<Uid>().is_err();
            if counts { segment } else { "*" }.hash(&mut hasher);
        }
        for parameter in query.split('&') {
            if parameter.starts_with("pageSize=") || matches!(parameter, "paging=false" | "fields=id") {
                parameter.hash(&mut hasher);
            }
        }
        // 0 is the class of unknown requests.
        hasher.finish().max(1)
    }
}

/// The permit of a request that is running. Dropped without [`HeldPermit::end`], it counts as abandoned.
pub(crate) struct HeldPermit {
    permit: SharedPermit,
    /// Time spent waiting for the server.
    spent: Duration,
}

impl HeldPermit {
    pub(crate) fn end(&mut self, outcome: RequestOutcome) {
        if let Some(permit) = self.permit.take() {
            permit.end(outcome, self.spent);
        }
    }
}

/// A successful response with valid headers; the body is not read yet.
pub(crate) struct OpenResponse {
    pub(crate) status: u16,
    pub(crate) content_type: Option<String>,
    pub(crate) url: String,
    pub(crate) request_id: String,
    pub(crate) held: HeldPermit,
    body: Body,
}

impl OpenResponse {
    /// Waits for the next chunk of the body. Ends the permit on an error, not at the end: what the bytes mean may still be
    /// wrong.
    pub(crate) async fn chunk(&mut self) -> Result<Chunk, Error> {
        let read = self.body.advance(&mut self.held.spent).await;
        read.map_err(|error| self.fail(error))
    }

    /// The bytes of the chunk that [`OpenResponse::chunk`] has just found; none at the end of the body.
    pub(crate) fn bytes(&self, chunk: &Chunk) -> Option<&[u8]> {
        self.body.bytes(chunk)
    }

    /// Ends the permit with what the error means, and says which request it was.
    pub(crate) fn fail(&mut self, error: Error) -> Error {
        self.held.end(error.request_outcome());
        error.about(&self.url, &self.request_id)
    }
}

/// Sends one request and reads the headers of its response.
pub(crate) async fn send(client: &Client, spec: &RequestSpec) -> Result<OpenResponse, Error> {
    let session = &client.inner.session;
    let mut with_cookie = true;
    loop {
        let auth = session.acquire(with_cookie, spec.is_probe).await?;
        let mut response = exchange(client, spec, &auth).await?;
        let verdict = check_head(client, spec, &mut response).await;
        // The session of a refusal is not a session of ours.
        if !matches!(verdict, Verdict::Login(_)) {
            session.take_cookies(response.body.payload.headers(), auth.generation);
        }
        match verdict {
            Verdict::Good => {
                // What a probe is answered is looked at first: a proxy may say 200 to anything.
                if !spec.is_probe {
                    session.mark_valid(auth.generation, false);
                }
                return Ok(response.into_open());
            }
            Verdict::Login(failure) => {
                response.held.end(RequestOutcome::Answered);
                match &auth.cookie {
                    // The session may have ended: once more, by name and password.
                    Some(cookie) if with_cookie => {
                        session.expire(cookie);
                        with_cookie = false;
                    }
                    _ => {
                        // A ping during an outage proves nothing against the credentials.
                        if !spec.is_probe {
                            session.refuse(auth.generation, failure.clone());
                        }
                        return Err(failure.error().about(&response.url, &response.request_id));
                    }
                }
            }
            Verdict::Bad(error) => {
                // Whoever refuses with a message of DHIS2 has let us in first.
                let known = matches!(error.status(), Some(400 | 403 | 404 | 409)) && error.server_message().is_some();
                if known && !spec.is_probe {
                    session.mark_valid(auth.generation, false);
                }
                response.held.end(error.request_outcome());
                return Err(error.about(&response.url, &response.request_id));
            }
        }
    }
}

/// A response whose headers are not checked yet.
struct UncheckedResponse {
    body: Body,
    trace: Rc<RequestTrace>,
    held: HeldPermit,
    url: String,
    request_id: String,
    /// Masks secrets in the server's texts.
    redaction: Redaction,
}

impl UncheckedResponse {
    fn status(&self) -> StatusCode {
        self.body.payload.status()
    }

    fn header(&self, name: header::HeaderName) -> Option<String> {
        text(self.body.payload.headers(), name)
    }

    fn into_open(self) -> OpenResponse {
        let content_type = self.redaction.clean_some(self.header(header::CONTENT_TYPE));
        let status = self.status().as_u16();
        let UncheckedResponse { body, held, url, request_id, .. } = self;
        OpenResponse { status, content_type, url, request_id, held, body }
    }

    /// Reads a body that is no data: at most so much of it, and nothing if it does not come whole.
    async fn small_body(&mut self, bytes_max: usize) -> Vec<u8> {
        let mut kept = Vec::new();
        loop {
            match self.body.advance(&mut self.held.spent).await {
                Ok(chunk) => {
                    let Some(bytes) = self.body.bytes(&chunk) else { return kept };
                    let room = bytes_max - kept.len();
                    kept.extend_from_slice(&bytes[..room.min(bytes.len())]);
                    if kept.len() == bytes_max {
                        // Dropping the rest closes the connection.
                        return kept;
                    }
                }
                Err(_) => return Vec::new(),
            }
        }
    }
}

/// Sends once; a second time when the first went out on a kept connection that the server had given up.
async fn exchange(client: &Client, spec: &RequestSpec, auth: &RequestAuth<'_>) -> Result<UncheckedResponse, Error> {
    let inner = &client.inner;
    let url = inner.base.url_of(&spec.path);
    let mut repeated = false;
    loop {
        let mut permit = client.gate.permit().await.map_err(|closed| {
            Error::new(ErrorKind::GateClosed, "no more requests are let through").with_source(closed).about(&url, "")
        })?;
        permit.of_class(spec.class());
        let permit = SharedPermit::new(permit);
        let mut held = HeldPermit { permit: permit.clone(), spent: Duration::ZERO };
        // The wait may have been long: what is known by now?
        if let Err(refused) = inner.session.check(spec.is_probe) {
            held.end(RequestOutcome::Abandoned);
            return Err(refused.about(&url, ""));
        }
        let request_id = inner.next_request_id();
        let trace = RequestTrace::new(std::sync::Arc::clone(&inner.sent), permit);
        let begun = Instant::now();
        let head = send_once(client, spec, auth, &request_id, &trace).await;
        held.spent = begun.elapsed();
        match head {
            Ok(head) => {
                let redaction = inner.session.redaction();
                let body = Body::new(head, &inner.limits, &redaction);
                return Ok(UncheckedResponse { body, trace, held, url, request_id, redaction });
            }
            Err(error)
                if trace.is_stale()
                    && matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::Truncated)
                    && !repeated =>
            {
                // No fault of the server's: it had closed an idle connection while the request was on its way.
                tracing::trace!(%request_id, "kept connection was closed; sending again on another");
                held.end(RequestOutcome::Abandoned);
                repeated = true;
            }
            Err(error) => {
                held.end(error.request_outcome());
                return Err(error.about(&url, &request_id));
            }
        }
    }
}

async fn send_once(
    client: &Client,
    spec: &RequestSpec,
    auth: &RequestAuth<'_>,
    request_id: &str,
    trace: &Rc<RequestTrace>,
) -> Result<ClientResponse, Error> {
    let inner = &client.inner;
    let uri = inner.base.wire_uri(&spec.path)?;
    let mut request = client
        .local()
        .request(Method::GET, uri)
        .no_decompress()
        .insert_header((header::HOST, inner.base.host_header.clone()))
        .insert_header((header::USER_AGENT, inner.user_agent.clone()))
        .insert_header((
            header::ACCEPT,
            if spec.accept == Accept::Json { "application/json" } else { "application/json, */*;q=0.5" },
        ))
        .insert_header((header::ACCEPT_ENCODING, "gzip"))
        // Caches of proxies may be stale and ignore who asks.
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        // Makes the server answer 401 where it would send people to the login page.
        .insert_header(("X-Requested-With", "XMLHttpRequest"))
        .insert_header(("X-Request-ID", request_id));
    if let Some(authorization) = &auth.authorization {
        request = request.insert_header((header::AUTHORIZATION, authorization.clone()));
    }
    if let Some(cookie) = &auth.cookie {
        let mut value = HeaderValue::try_from(cookie.as_str())
            .map_err(|_| Error::new(ErrorKind::Garbled, "the server's cookie cannot be sent back"))?;
        value.set_sensitive(true);
        request = request.insert_header((header::COOKIE, value));
    }
    let sending = TRACE.scope(Rc::clone(trace), request.send_body(awc::body::None::new()));
    let limits = &inner.limits;
    match within_first_byte(trace, limits.first_byte_timeout, sending).await {
        Some(Ok(head)) => Ok(head),
        Some(Err(error)) => Err(trace.take_connect_error().unwrap_or_else(|| send_error(error, trace.is_stale()))),
        None => {
            Err(Error::new(ErrorKind::FirstByteTimeout, format!("no response within {:?}", limits.first_byte_timeout)))
        }
    }
}

/// Interval for checking a time limit that has not started.
const CONNECTING_LOOK: Duration = Duration::from_secs(1);

/// Waits for the head; the time begins when there is a connection, since connecting has a limit of its own.
async fn within_first_byte<F: Future>(trace: &RequestTrace, limit: Duration, sending: F) -> Option<F::Output> {
    tokio::pin!(sending);
    let due = tokio::time::sleep(limit);
    tokio::pin!(due);
    loop {
        tokio::select! {
            biased;
            output = &mut sending => return Some(output),
            () = &mut due => {
                let now = Instant::now();
                if trace.is_connecting() {
                    due.as_mut().reset(now + limit.min(CONNECTING_LOOK));
                } else if let Some(end) = trace.connected_at().map(|at| at + limit).filter(|end| *end > now) {
                    due.as_mut().reset(end);
                } else {
                    return None;
                }
            }
        }
    }
}

fn send_error(error: SendRequestError, stale: bool) -> Error {
    use awc::error::SendRequestError as Send;
    let broken = |error: std::io::Error| {
        let (kind, text) = match error.kind() {
            std::io::ErrorKind::UnexpectedEof if stale => {
                (ErrorKind::Truncated, "the kept connection was closed without a response")
            }
            std::io::ErrorKind::UnexpectedEof => {
                (ErrorKind::Truncated, "the connection was closed before the head was complete")
            }
            _ => (ErrorKind::ConnectionReset, "the connection broke before the head was complete"),
        };
        Error::new(kind, text).with_source(error)
    };
    match error {
        Send::Connect(ConnectError::Io(error)) | Send::Send(error) => broken(error),
        Send::Connect(ConnectError::Disconnected) => broken(std::io::ErrorKind::UnexpectedEof.into()),
        Send::Response(parse) => match io_behind(&parse) {
            Some(kind) => broken(kind.into()),
            // actix-http's type is not to be had through awc, so it is told by its words (actix-http 3.20).
            None if parse.to_string() == "message head is too large" => {
                Error::new(ErrorKind::TooLarge, "the head of the response is too large")
            }
            None => Error::new(ErrorKind::Garbled, format!("the response is not HTTP: {parse}")),
        },
        other => Error::new(ErrorKind::Connect, format!("the request could not be sent: {other}")),
    }
}

/// The broken connection behind a head that could not be read.
fn io_behind(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    Some(error.source()?.downcast_ref::<std::io::Error>()?.kind())
}

/// Result of checking the headers, and the body of an error.
enum Verdict {
    Good,
    /// The server wants us to log in.
    Login(AuthFailure),
    Bad(Error),
}

async fn check_head(client: &Client, spec: &RequestSpec, response: &mut UncheckedResponse) -> Verdict {
    let limits = &client.inner.limits;
    let status = response.status();
    let head = &response.body.payload;
    let head_bytes: usize = head.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if head_bytes > limits.head_bytes_max {
        response.trace.poison();
        return Verdict::Bad(Error::new(ErrorKind::TooLarge, "the head of the response is too large"));
    }
    let empty_by_status = status.is_informational() || matches!(status.as_u16(), 204 | 205 | 304);
    let has_length =
        response.body.expected.is_some() || response.body.chunked || !harvester_pacing::control!("end-of-body");
    if !has_length && !empty_by_status {
        // What follows would be taken for the head of the next answer.
        response.trace.poison();
    }
    let login = |what: &str| Verdict::Login(AuthFailure { status: status.as_u16(), what: what.to_owned() });
    match status.as_u16() {
        200..=299 if !has_length && !empty_by_status => Verdict::Bad(
            Error::new(ErrorKind::UnknownLength, "the response has no known length").with_status(status.as_u16()),
        ),
        100..=199 => {
            // Only 101 gets here; what follows belongs to no protocol of ours.
            response.trace.poison();
            let text = format!("the server answers {} to a plain request", status.as_u16());
            Verdict::Bad(Error::new(ErrorKind::Garbled, text).with_status(status.as_u16()))
        }
        206 => {
            response.small_body(limits.error_body_bytes_max).await;
            let text = "the response is a part (206), although the whole was asked for";
            Verdict::Bad(Error::new(ErrorKind::Garbled, text).with_status(status.as_u16()))
        }
        200..=299 => check_success(spec, response, limits).await,
        // A token that cannot be one is answered 400, and the header says what it is about (2.42, 2.43).
        400 | 401 if status == StatusCode::UNAUTHORIZED || response.header(header::WWW_AUTHENTICATE).is_some() => {
            let said =
                ServerMessage::parse(&response.small_body(limits.error_body_bytes_max).await, &response.redaction);
            let why = said.and_then(|said| said.message).unwrap_or_else(|| "Unauthorized".to_owned());
            login(&format!("the server does not accept the credentials ({} {why})", status.as_u16()))
        }
        301 | 302 | 303 | 307 | 308 => {
            let location = response.header(header::LOCATION).unwrap_or_default();
            // Reading the body keeps the connection.
            response.small_body(limits.error_body_bytes_max).await;
            let lower = location.to_ascii_lowercase();
            if lower.contains("login") || lower.contains("logout.action") {
                login("the server sends us to its login page: it does not accept the credentials")
            } else {
                let text = client.inner.base.redirect_advice(&location, &response.redaction);
                Verdict::Bad(Error::new(ErrorKind::Redirect, text).with_status(status.as_u16()))
            }
        }
        _ => Verdict::Bad(refused(response, limits).await),
    }
}

async fn check_success(spec: &RequestSpec, response: &mut UncheckedResponse, limits: &ClientLimits) -> Verdict {
    let status = response.status().as_u16();
    if let Encoding::Unknown(name) = &response.body.encoding {
        let text = format!("the response is encoded as `{}`, which was not asked for", name);
        response.trace.poison();
        return Verdict::Bad(Error::new(ErrorKind::Encoding, text).with_status(status));
    }
    let content_type = response.header(header::CONTENT_TYPE).unwrap_or_default();
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media == "text/html" || media == "application/xhtml+xml" {
        let page = response.small_body(limits.error_body_bytes_max).await;
        if is_login_page(&page) {
            let what = "the server answers with a login page: it does not accept the credentials".to_owned();
            return Verdict::Login(AuthFailure { status, what });
        }
        let title = title(&page, &response.redaction).map_or_else(String::new, |title| format!(", titled \"{title}\""));
        let text = format!("the server returned an HTML page{title}");
        return Verdict::Bad(Error::new(ErrorKind::Html, text).with_status(status));
    }
    if spec.accept == Accept::Anything {
        return Verdict::Good;
    }
    if response.body.expected == Some(0) || matches!(status, 204 | 205) {
        return Verdict::Bad(Error::new(ErrorKind::EmptyBody, "the response body is empty").with_status(status));
    }
    let is_json = media == "application/json" || media == "text/json" || media.ends_with("+json");
    if is_json || !harvester_pacing::control!("content-type") {
        return Verdict::Good;
    }
    response.small_body(limits.error_body_bytes_max).await;
    let text = if media.is_empty() {
        "the response does not say what type it has".to_owned()
    } else {
        format!("the response is not JSON but `{}`", response.redaction.clean(&media))
    };
    Verdict::Bad(Error::new(ErrorKind::NotJson, text).with_status(status))
}

/// The error for a status that is neither success, login nor redirect.
async fn refused(response: &mut UncheckedResponse, limits: &ClientLimits) -> Error {
    let status = response.status();
    let retry_after = response
        .header(header::RETRY_AFTER)
        .and_then(|value| harvester_pacing::retry_after::parse(&value, jiff::Timestamp::now()));
    let body = response.small_body(limits.error_body_bytes_max).await;
    let server = ServerMessage::parse(&body, &response.redaction);
    let said = server.as_ref().map(|said| {
        let code = said.error_code.as_ref().map_or_else(String::new, |code| format!("{code} "));
        format!("{code}{}", said.message.as_deref().unwrap_or_default())
    });
    let said = said.or_else(|| title(&body, &response.redaction).map(|title| format!("a page titled \"{title}\"")));
    let number = status.as_u16();
    let mut text = match number {
        407 => "a proxy on the way wants credentials of its own (407)".to_owned(),
        _ => format!("the server answers {number} {}", status.canonical_reason().unwrap_or_default()),
    };
    if let Some(said) = said.filter(|said| !said.trim().is_empty()) {
        text = format!("{}: {}", text.trim_end(), said.trim());
    }
    Error::new(ErrorKind::Status, text.trim_end())
        .with_status(number)
        .with_retry_after(retry_after)
        .with_server_message(server)
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
}

/// Longest title of a page that is shown.
const TITLE_CHARS_MAX: usize = 120;

/// The title of a page, cut to a line.
pub(crate) fn title(page: &[u8], redaction: &Redaction) -> Option<String> {
    let page = String::from_utf8_lossy(page);
    // Lower-casing ASCII keeps every byte where it is.
    let lower = page.to_ascii_lowercase();
    let open = lower.find("<title")?;
    let from = open + lower[open..].find('>')? + 1;
    let to = from + lower[from..].find("</title")?;
    let title: String = page[from..to].split_whitespace().collect::<Vec<_>>().join(" ");
    let title = redaction.clean_to(&title, TITLE_CHARS_MAX);
    Some(title).filter(|title| !title.is_empty())
}

/// Whether a page asks for name and password.
pub(crate) fn is_login_page(page: &[u8]) -> bool {
    let lower = String::from_utf8_lossy(page).to_ascii_lowercase();
    let password = ["type=\"password\"", "type='password'", "type=password", "j_password"];
    if password.iter().any(|mark| lower.contains(mark)) {
        return true;
    }
    let forms = lower.split("<form").skip(1);
    if forms.map(|form| form.split('>').next().unwrap_or_default()).any(|form| form.contains("login")) {
        return true;
    }
    title(page, &Redaction::default()).is_some_and(|title| {
        let title = title.to_ascii_lowercase();
        ["login", "log in", "sign in"].iter().any(|word| title.contains(word))
    })
}

/// `Content-Encoding` of a body.
enum Encoding {
    Plain,
    Gzip(Box<Inflater>),
    Unknown(String),
}

/// One chunk of a body, as [`OpenResponse::chunk`] returns it.
pub(crate) enum Chunk {
    /// All of `input`.
    Plain,
    /// So many bytes of `output`.
    Inflated(usize),
    /// The body is whole.
    End,
}

/// A body on its way: timed, counted, inflated.
struct Body {
    payload: ClientResponse,
    encoding: Encoding,
    /// `Content-Length`, before decompression.
    expected: Option<u64>,
    chunked: bool,
    received: u64,
    ended: bool,
    /// Packed bytes not yet inflated, or plain bytes just given.
    input: Bytes,
    output: Vec<u8>,
    /// The last step filled `output`: there may be more without new input.
    output_full: bool,
    given: u64,
    stall_timeout: Duration,
    bytes_max: u64,
    rate: Rate,
}

impl Body {
    fn new(payload: ClientResponse, limits: &ClientLimits, redaction: &Redaction) -> Self {
        let headers = payload.headers();
        let encoding = match text(headers, header::CONTENT_ENCODING).map(|name| name.to_ascii_lowercase()) {
            None => Encoding::Plain,
            Some(name) => match name.as_str() {
                "" | "identity" => Encoding::Plain,
                "gzip" | "x-gzip" => Encoding::Gzip(Box::new(Inflater::new(InflateLimits {
                    output_bytes_max: limits.body_bytes_max,
                    ratio_max: limits.inflate_ratio_max,
                }))),
                _ => Encoding::Unknown(redaction.clean(&name)),
            },
        };
        let chunked = payload.version() == Version::HTTP_11
            && text(headers, header::TRANSFER_ENCODING).is_some_and(|name| name.eq_ignore_ascii_case("chunked"));
        // Chunks rule over a length (RFC 9112 §6.3).
        let expected =
            text(headers, header::CONTENT_LENGTH).filter(|_| !chunked).and_then(|length| length.parse().ok());
        Body {
            payload,
            encoding,
            expected,
            chunked,
            received: 0,
            ended: false,
            input: Bytes::new(),
            output: Vec::new(),
            output_full: false,
            given: 0,
            stall_timeout: limits.stall_timeout,
            bytes_max: limits.body_bytes_max,
            rate: Rate::new(limits),
        }
    }

    fn bytes(&self, chunk: &Chunk) -> Option<&[u8]> {
        match chunk {
            Chunk::Plain => Some(&self.input),
            Chunk::Inflated(made) => Some(&self.output[..*made]),
            Chunk::End => None,
        }
    }

    async fn advance(&mut self, spent: &mut Duration) -> Result<Chunk, Error> {
        loop {
            if let Encoding::Gzip(inflater) = &mut self.encoding
                && (!self.input.is_empty() || self.output_full)
            {
                if self.output.is_empty() {
                    self.output.resize(INFLATE_BUFFER_BYTES, 0);
                }
                let (used, made) = inflater.step(&self.input, &mut self.output).map_err(inflate_error)?;
                self.input.advance(used);
                self.output_full = made == self.output.len();
                if made > 0 {
                    return Ok(Chunk::Inflated(made));
                }
                continue;
            }
            if self.ended {
                return Ok(Chunk::End);
            }
            match self.read(spent).await? {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => {
                    self.received += bytes.len() as u64;
                    self.input = bytes;
                    match &self.encoding {
                        Encoding::Plain => {
                            self.given += self.input.len() as u64;
                            if self.given > self.bytes_max {
                                let text = format!("the response is longer than {} bytes", self.bytes_max);
                                return Err(Error::new(ErrorKind::TooLarge, text));
                            }
                            return Ok(Chunk::Plain);
                        }
                        Encoding::Gzip(_) => {}
                        Encoding::Unknown(name) => {
                            let text = format!("the response is encoded as `{}`", name);
                            return Err(Error::new(ErrorKind::Encoding, text));
                        }
                    }
                }
                None => self.end()?,
            }
        }
    }

    /// The transfer has ended: was it whole?
    fn end(&mut self) -> Result<(), Error> {
        self.ended = true;
        if let Some(expected) = self.expected
            && expected != self.received
            && harvester_pacing::control!("end-of-body")
        {
            let text = format!("response truncated: {} of {expected} bytes", self.received);
            return Err(Error::new(ErrorKind::Truncated, text));
        }
        match &self.encoding {
            Encoding::Gzip(inflater) => inflater.finish().map_err(inflate_error),
            Encoding::Plain | Encoding::Unknown(_) => Ok(()),
        }
    }

    async fn read(&mut self, spent: &mut Duration) -> Result<Option<Bytes>, Error> {
        let begun = Instant::now();
        let next = tokio::time::timeout(self.stall_timeout, self.payload.next()).await;
        let waited = begun.elapsed();
        *spent += waited;
        match next {
            Err(_) => {
                let text = format!("the response stopped for {:?} after {} bytes", self.stall_timeout, self.received);
                Err(Error::new(ErrorKind::Stalled, text))
            }
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => {
                self.rate.note(bytes.len() as u64, waited)?;
                Ok(Some(bytes))
            }
            Ok(Some(Err(error))) => Err(body_error(error, self.received)),
        }
    }
}

/// Notices a response that comes, but too slowly to be waited for.
#[derive(Debug)]
struct Rate {
    bytes_per_second_min: u64,
    over: Duration,
    waited: Duration,
    bytes: u64,
}

impl Rate {
    fn new(limits: &ClientLimits) -> Self {
        Rate {
            bytes_per_second_min: limits.bytes_per_second_min,
            over: limits.rate_over,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Takes what came after waiting so long. The caller's own time does not count: a slow reader is no slow server.
    fn note(&mut self, bytes: u64, waited: Duration) -> Result<(), Error> {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < self.over {
            return Ok(());
        }
        let enough = (self.over.as_secs_f64() * self.bytes_per_second_min as f64) as u64;
        // One long silence is the stall timeout's business.
        let slow = self.bytes < enough && waited < self.over;
        let (bytes, seconds) = (self.bytes, self.waited);
        self.waited = Duration::ZERO;
        self.bytes = 0;
        if slow {
            let text = format!("the response comes too slowly: {bytes} bytes in {seconds:.0?}");
            return Err(Error::new(ErrorKind::Stalled, text));
        }
        Ok(())
    }
}

fn inflate_error(error: InflateError) -> Error {
    let kind = match &error {
        InflateError::NotGzip | InflateError::Damaged(_) | InflateError::Truncated => ErrorKind::Encoding,
        InflateError::TooLarge { .. } | InflateError::Bomb { .. } => ErrorKind::TooLarge,
    };
    Error::new(kind, format!("the response cannot be used: {error}"))
}

fn body_error(error: PayloadError, received: u64) -> Error {
    let io = match error {
        PayloadError::Incomplete(Some(io)) | PayloadError::Io(io) => io,
        PayloadError::Incomplete(None) => std::io::ErrorKind::UnexpectedEof.into(),
        other => return Error::new(ErrorKind::Garbled, format!("the transfer is not as HTTP has it: {other}")),
    };
    match io.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Error::new(ErrorKind::Truncated, format!("response truncated after {received} bytes"))
        }
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
            Error::new(ErrorKind::Garbled, format!("the transfer is damaged after {received} bytes"))
        }
        _ => Error::new(ErrorKind::ConnectionReset, format!("the connection broke after {received} bytes")),
    }
    .with_source(io)
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
