//! Scripts what goes wrong. Faults wrap the truth: the third answer of a path is cut in half, then all is well.
//!
//! A rule says when ([`Match`], narrowed by path, by rows, by a closure), what ([`Fault`]) and how often. The first
//! rule that fires decides over a request. A rule counts the requests that pass its narrowing: `Match::nth(3)` with
//! `.and_path("organisationUnits")` is the third request for organisation units, without it the third of all.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::answer::{Answer, reason};
use crate::clock;
use crate::country::mix;
use crate::dialect::Dialect;
use crate::request::Request;
use crate::wire::{Framing, Gzip, Manner, Place};

/// Which of the requests that a rule counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Match {
    /// All of them.
    Always,
    /// This one, from 1.
    Nth(u64),
    /// Each one whose count is a multiple of this.
    Every(u64),
    /// The first so many.
    First(u64),
    /// This one and all later ones.
    From(u64),
    /// By a seeded lot: a share of them, 0 to 1.
    Chance(u64, f64),
}

impl Match {
    /// All requests.
    pub fn always() -> Self {
        Self::Always
    }

    /// The `number`th request, from 1.
    pub fn nth(number: u64) -> Self {
        Self::Nth(number)
    }

    /// Every `number`th request.
    pub fn every(number: u64) -> Self {
        Self::Every(number)
    }

    fn holds(self, count: u64) -> bool {
        match self {
            Self::Always => true,
            Self::Nth(number) => count == number,
            Self::Every(number) => number > 0 && count.is_multiple_of(number),
            Self::First(number) => count <= number,
            Self::From(number) => count >= number,
            Self::Chance(seed, share) => crate::quirks::lot(seed, count, share),
        }
    }
}

/// The body of a faulty status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A WebMessage, as the application sends it.
    Json,
    /// A page, as a proxy sends it.
    Html,
    /// A page, as the server's own Tomcat sends it.
    Tomcat,
    /// Nothing.
    Empty,
    /// A WebMessage with this message.
    Message(String),
    /// This text as JSON.
    Raw(String),
}

/// The value of a `Retry-After`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetryAfter {
    /// This text.
    Text(String),
    /// The HTTP date so long after the answer.
    DateIn(Duration),
}

impl From<&str> for RetryAfter {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// What a 200 with HTML shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The login form.
    Login,
    /// A maintenance page of a proxy.
    Proxy,
}

/// Damage to the text of a body whose framing stays right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Garble {
    /// One byte becomes a control character: no JSON any more.
    Control(Place),
    /// The highest bit of one byte flips: no UTF-8 any more where the byte was ASCII.
    Flip(Place),
    /// A stray byte stands in the first row's text.
    InvalidUtf8,
    /// A lone surrogate, written as an escape, stands in the first row's text.
    LoneSurrogate,
    /// The text breaks off in the middle and is closed with `]}`.
    WrongJson,
}

/// Damage to compression. All but the first two are sent even to clients that did not ask for gzip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GzipFault {
    /// The checksum is wrong.
    BadCrc,
    /// The trailer is missing, though the framing ends properly.
    NoTrailer,
    /// Several members: legal, and truthful.
    MultiMember,
    /// `Content-Encoding: gzip` over plain text.
    OverPlainText,
    /// The truth, with so many blanks inside.
    Bomb(u64),
}

/// An envelope that this version does not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope {
    /// The rows are called `instances`.
    Instances,
    /// No pager.
    NoPager,
    /// `pager.pageSize` is half of what was asked for; the rows are as asked.
    OtherPageSize,
    /// The last half of the rows is missing, the pager says nothing of it.
    FewerRows,
    /// All rows are missing, the pager says nothing of it.
    NoRows,
}

/// A restart, bare or behind a proxy that stays up: phases one after the other, from the request that triggers it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restart {
    /// The port refuses connections.
    pub refused: Duration,
    /// Connections are accepted, and no byte comes until this is over; then what was asked is answered.
    pub hangs: Duration,
    /// 502 with HTML.
    pub bad_gateway: Duration,
    /// 503 with HTML.
    pub unavailable: Duration,
    /// 404 with HTML, while the application deploys.
    pub not_found: Duration,
    /// The version it comes back with, e.g. `2.41`.
    pub version: Option<String>,
    /// The identity it comes back with.
    pub system_id: Option<String>,
}

impl Restart {
    /// Three phases of this length each (502, 503, 404), the same server afterwards, its sessions lost.
    pub fn lasting(phase: Duration) -> Self {
        Self {
            refused: Duration::ZERO,
            hangs: Duration::ZERO,
            bad_gateway: phase,
            unavailable: phase,
            not_found: phase,
            version: None,
            system_id: None,
        }
    }

    /// A server without a proxy: refuses, then accepts and is silent, then is up. Real ones take 50 s and 20 s.
    pub fn bare(refused: Duration, hangs: Duration) -> Self {
        Self { refused, hangs, ..Self::lasting(Duration::ZERO) }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// A status in place of the truth.
    Status {
        /// The code.
        code: u16,
        /// `Retry-After`.
        retry_after: Option<RetryAfter>,
        /// The body.
        body: Body,
    },
    /// The port refuses connections for so long, or until [`crate::StandIn::up`]; open connections end.
    Refuse(Option<Duration>),
    /// The connection ends (FIN) before a byte of the answer.
    Close,
    /// The connection is reset (RST) before a byte of the answer.
    Reset,
    /// The answer breaks off.
    Cut {
        /// Where in the body as it is on the wire.
        at: Place,
        /// How its end would have been told; `None` leaves it as it is.
        framing: Option<Framing>,
        /// Whether it is compressed, asked for or not.
        gzipped: bool,
        /// RST in place of FIN.
        reset: bool,
    },
    /// The answer stops.
    Stall {
        /// Where; `None`: before the first byte of the head.
        at: Option<Place>,
        /// For how long; `None`: until the client gives up.
        lasting: Option<Duration>,
    },
    /// The body comes slowly.
    Drip {
        /// At this pace, at least 1.
        bytes_per_second: u64,
    },
    /// The first byte comes late.
    Delay(Duration),
    /// 200 with HTML.
    Html200(Page),
    /// 200 with nothing: `Content-Length: 0`.
    Empty200,
    /// 302 to the login page; to another origin if one is given, e.g. `http://127.0.0.1:9`.
    RedirectToLogin(Option<String>),
    /// 302 to this url.
    Redirect(String),
    /// The text is damaged, the framing is right.
    Garble(Garble),
    /// The compression is damaged or unusual.
    Gzip(GzipFault),
    /// The truth, framed like this.
    Framing(Framing),
    /// The truth under this content type.
    ContentType(String),
    /// An envelope of another dialect, or one that does not fit its rows.
    Envelope(Envelope),
    /// The database connection is cut while data values are read: up to 2.42 a 200, whole, with fewer rows than there
    /// are, always a multiple of 1,000 of them (0, 1,000, 14,000, …), the fetch size; in 2.43 a 500. Before 2.38 a real
    /// answer ends in the middle; that is [`Fault::cut`]. Source: 110 of 110 exports of 2.40 and 2.42 whose
    /// connection was cut; the versions before from dhis2-core.
    ExportCut {
        /// Decides how many thousands come, together with how many rows there are.
        seed: u64,
    },
    /// 206 with the rows taken out, the pager as it was.
    PartialContent,
    /// An informational answer (100 to 199) before the true one.
    Informational(u16),
    /// 504 with HTML when more rows than this are asked for at once; smaller pages pass.
    TooHeavy {
        /// The largest page that passes.
        page_size_max: u64,
    },
    /// A further member of the first row, a text of so many bytes.
    HugeRow {
        /// Length of the text.
        bytes: usize,
    },
    /// A further member of the first row, arrays nested so deep.
    DeepRow {
        /// Depth.
        depth: usize,
    },
    /// Additional headers.
    Headers {
        /// How many.
        count: usize,
        /// Length of each value.
        bytes_each: usize,
    },
    /// The connection ends just as a request arrives on it, unless it is the first of that connection.
    StaleClose,
    /// 401 whatever the credentials, as for a wrong password: what a database in trouble looks like at the door. One
    /// request in so many, by [`Match::Chance`], is a hiccup.
    Unauthorized,
    /// All sessions are forgotten before the request is looked at.
    LoseSessions,
    /// 302 to `logout.action`, as for a session ousted by logins elsewhere.
    Logout,
    /// The server restarts; this request is the first to notice.
    Restart(Restart),
    /// One of these, by a seeded lot.
    OneOf(u64, Vec<Fault>),
}

impl Fault {
    /// A status without `Retry-After`: HTML for what proxies send (429, 502, 503, 504), else a WebMessage.
    pub fn status(code: u16) -> Self {
        let body = if matches!(code, 413 | 429 | 502..=504) { Body::Html } else { Body::Json };
        Self::Status { code, retry_after: None, body }
    }

    /// The answer breaks off there, FIN, framing and compression as they are.
    pub fn cut(at: Place) -> Self {
        Self::Cut { at, framing: None, gzipped: false, reset: false }
    }

    /// The answer breaks off there in this framing.
    pub fn cut_in(framing: Framing, at: Place) -> Self {
        Self::Cut { at, framing: Some(framing), gzipped: false, reset: false }
    }

    /// RST behind so many bytes of the body.
    pub fn reset_after(bytes: usize) -> Self {
        Self::Cut { at: Place::Byte(bytes), framing: None, gzipped: false, reset: true }
    }

    /// The answer stops there until the client gives up.
    pub fn stall(at: Place) -> Self {
        Self::Stall { at: Some(at), lasting: None }
    }

    /// What a request meets whose database connection is cut: one of five answers, by a seeded lot.
    ///
    /// The first two are what metadata gives, the others what tracker, registrations and SQL views give.
    pub fn database_cut(seed: u64) -> Self {
        let says = |code, text: &str| Self::Status { code, retry_after: None, body: Body::Message(text.into()) };
        let answers = vec![
            says(409, "FATAL: terminating connection due to administrator command"),
            says(409, "This connection has been closed."),
            says(500, "An unexpected error has occured. Please contact the system administrator"),
            says(500, "JDBC begin transaction failed: "),
            Self::Status { code: 500, retry_after: None, body: Body::Tomcat },
        ];
        Self::OneOf(seed, answers)
    }

    fn needs_rows(&self) -> bool {
        matches!(self, Self::PartialContent | Self::Envelope(_) | Self::HugeRow { .. } | Self::DeepRow { .. })
    }

    /// Whether it would show on this request at all.
    fn applies(&self, request: &Request) -> bool {
        match self {
            Self::StaleClose => request.turn_on_connection > 1,
            Self::TooHeavy { page_size_max } => {
                let whole = request.param("paging") == Some("false");
                let size = request.param("pageSize").and_then(|size| size.parse().ok()).unwrap_or(50);
                request.collection().is_some() && (whole || size > *page_size_max)
            }
            Self::ExportCut { .. } => request.route.parts() == ["dataValueSets"],
            other => !other.needs_rows() || request.collection().is_some(),
        }
    }

    /// A word for the ledger.
    pub(crate) fn label(&self) -> String {
        let text = format!("{self:?}");
        match self {
            Self::Status { code, .. } => format!("status {code}"),
            _ => text.split(['(', ' ', '{']).next().unwrap_or("fault").to_owned(),
        }
    }

    /// The answer a proxy or a broken server gives without looking at the truth.
    pub(crate) fn replacement(&self, request: &Request, context_path: &str, dialect: &Dialect) -> Option<Answer> {
        let login_path = dialect.login_path;
        let answer = match self {
            Self::Status { code, retry_after, body } => {
                let answer = match body {
                    Body::Html => Answer::html(*code, &proxy_page(*code)),
                    Body::Tomcat => Answer::html(*code, &tomcat_page(*code)),
                    Body::Json => web_message(*code, reason(*code)),
                    Body::Message(message) => web_message(*code, message),
                    Body::Raw(text) => Answer::json(*code, text.clone().into_bytes()),
                    Body::Empty => Answer { status: *code, ..Answer::default() },
                };
                match retry_after {
                    Some(RetryAfter::Text(text)) => answer.with_header("Retry-After", text),
                    Some(RetryAfter::DateIn(wait)) => {
                        let at = clock::wall_ms() + i64::try_from(wait.as_millis()).unwrap_or(0);
                        answer.with_header("Retry-After", &clock::http_date(at))
                    }
                    None => answer,
                }
            }
            Self::TooHeavy { .. } => Answer::html(504, &proxy_page(504)),
            Self::Html200(Page::Login) => Answer::login_page(),
            Self::Html200(Page::Proxy) => Answer::html(
                200,
                "<html><head><title>Scheduled maintenance</title></head><body>We will be back soon.</body></html>",
            ),
            Self::Empty200 => Answer::json(200, Vec::new()),
            Self::RedirectToLogin(None) => Answer::redirect(request, &format!("{context_path}{login_path}")),
            Self::RedirectToLogin(Some(origin)) => {
                Answer { status: 302, ..Answer::default() }.with_header("Location", &format!("{origin}{login_path}"))
            }
            Self::Redirect(url) => Answer { status: 302, ..Answer::default() }.with_header("Location", url),
            Self::ExportCut { .. } if dialect.rewritten_values => {
                web_message(500, "An unexpected error has occured. Please contact the system administrator")
            }
            Self::Unauthorized => Answer::wrong_password(request, dialect, "Unauthorized"),
            Self::Logout => {
                Answer::redirect(request, &format!("{context_path}/dhis-web-commons-security/logout.action"))
            }
            _ => return None,
        };
        Some(answer)
    }

    /// Damages the truth before it becomes bytes.
    pub(crate) fn change_answer(&self, answer: &mut Answer) {
        match self {
            Self::ContentType(kind) => answer.content_type = Some(kind.clone()),
            Self::Garble(garble) => garble.apply(&mut answer.body),
            Self::Envelope(envelope) => envelope.apply(answer),
            Self::ExportCut { seed } => cut_export(answer, *seed),
            Self::PartialContent if answer.rows.is_some() => {
                Envelope::NoRows.apply(answer);
                answer.status = 206;
            }
            Self::HugeRow { bytes } => pad_row(answer, &format!("\"{}\"", "x".repeat(*bytes))),
            Self::DeepRow { depth } => pad_row(answer, &format!("{}{}", "[".repeat(*depth), "]".repeat(*depth))),
            Self::Headers { count, bytes_each } => {
                for number in 0..*count {
                    answer.headers.push((format!("X-Filler-{number}"), "f".repeat(*bytes_each)));
                }
            }
            _ => {}
        }
    }

    /// Changes how the truth becomes bytes.
    pub(crate) fn change_manner(&self, manner: &mut Manner) {
        match self {
            Self::Framing(framing) => manner.framing = *framing,
            Self::Cut { framing, gzipped, .. } => {
                if *gzipped {
                    manner.gzip = Gzip::Honest;
                }
                if let Some(framing) = framing {
                    manner.framing = *framing;
                }
            }
            Self::Gzip(fault) => {
                manner.gzip = match fault {
                    GzipFault::BadCrc => Gzip::BadCrc,
                    GzipFault::NoTrailer => Gzip::NoTrailer,
                    GzipFault::MultiMember => Gzip::MultiMember,
                    GzipFault::OverPlainText => Gzip::HeaderOnly,
                    GzipFault::Bomb(blanks) => Gzip::Bomb(*blanks),
                }
            }
            _ => {}
        }
    }
}

fn web_message(code: u16, message: &str) -> Answer {
    let mut body =
        format!("{{\"httpStatus\":\"{}\",\"httpStatusCode\":{code},\"status\":\"ERROR\",\"message\":", reason(code))
            .into_bytes();
    crate::rows::push_text(&mut body, message);
    body.push(b'}');
    Answer::json(code, body).with_header("Cache-Control", "no-cache, private")
}

fn proxy_page(code: u16) -> String {
    let reason = reason(code);
    format!(
        "<html>\r\n<head><title>{code} {reason}</title></head>\r\n<body>\r\n<center><h1>{code} {reason}</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    )
}

fn tomcat_page(code: u16) -> String {
    let reason = reason(code);
    format!(
        "<!doctype html><html lang=\"en\"><head><title>HTTP Status {code} – {reason}</title></head><body><h1>HTTP Status {code} – {reason}</h1>\
         <hr class=\"line\" /><p><b>Type</b> Exception Report</p><p><b>Description</b> The server encountered an unexpected condition that \
         prevented it from fulfilling the request.</p><hr class=\"line\" /><h3>Apache Tomcat</h3></body></html>"
    )
}

/// Where the first row begins: behind `"<name>":[`.
fn rows_start(answer: &Answer) -> Option<usize> {
    let opening = format!("\"{}\":[", answer.rows?);
    find(&answer.body, opening.as_bytes()).map(|at| at + opening.len())
}

/// Keeps some thousands of the rows of an export, fewer than all.
fn cut_export(answer: &mut Answer, seed: u64) {
    const FETCHED_AT_ONCE: usize = 1000;
    let Some(start) = rows_start(answer) else { return };
    let whole = String::from_utf8_lossy(&answer.body[start - 1..answer.body.len() - 1]).into_owned();
    let rows: Vec<&serde_json::value::RawValue> = serde_json::from_str(&whole).unwrap_or_default();
    let thousands = rows.len().saturating_sub(1) / FETCHED_AT_ONCE;
    let lot = mix(mix(seed) ^ u64::try_from(rows.len()).unwrap_or(0));
    let kept = usize::try_from(lot).unwrap_or(0) % (thousands + 1) * FETCHED_AT_ONCE;
    let kept: Vec<&str> = rows[..kept].iter().map(|row| row.get()).collect();
    answer.body.truncate(start);
    answer.body.extend_from_slice(kept.join(",").as_bytes());
    answer.body.extend_from_slice(b"]}");
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// Gives the first row a further member, its last.
fn pad_row(answer: &mut Answer, value: &str) {
    let Some(at) = rows_start(answer) else { return };
    let mut rows = serde_json::Deserializer::from_slice(&answer.body[at..]).into_iter::<serde::de::IgnoredAny>();
    if let Some(Ok(_)) = rows.next() {
        let end = at + rows.byte_offset() - 1;
        answer.body.splice(end..end, format!(",\"padding\":{value}").into_bytes());
    }
}

impl Garble {
    fn apply(self, body: &mut Vec<u8>) {
        let place = |place: Place| match place {
            Place::Byte(byte) => byte,
            Place::FromEnd(bytes) => body.len().saturating_sub(bytes.max(1)),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a share of a length"
            )]
            Place::Fraction(share) => (body.len() as f64 * share.clamp(0.0, 1.0)) as usize,
            _ => body.len() / 2,
        };
        if body.is_empty() {
            return;
        }
        // A text value of the last row, so that the envelope stays as it is.
        let text = body
            .windows(4)
            .rposition(|window| matches!(window, [b'"', b':', b'"', next] if *next != b'"'))
            .map(|at| at + 3);
        match self {
            Self::Control(at) => {
                let at = place(at).min(body.len() - 1);
                body[at] = 0x01;
            }
            Self::Flip(at) => {
                let at = place(at).min(body.len() - 1);
                body[at] ^= 0x80;
            }
            Self::InvalidUtf8 => {
                body.insert(text.unwrap_or(0), 0xff);
            }
            Self::LoneSurrogate => {
                if let Some(at) = text {
                    body.splice(at..at, *b"\\ud800");
                }
            }
            Self::WrongJson => {
                let at = text.unwrap_or(body.len() / 2);
                body.truncate(at);
                body.extend_from_slice(b"]}");
            }
        }
    }
}

impl Envelope {
    fn apply(self, answer: &mut Answer) {
        let Some(name) = answer.rows else { return };
        let Some(rows) = rows_start(answer) else { return };
        let opening = rows - name.len() - 4;
        match self {
            Self::Instances => {
                answer.body.splice(opening + 1..opening + 1 + name.len(), *b"instances");
            }
            Self::NoPager => {
                answer.body.drain(1..opening);
            }
            Self::OtherPageSize => {
                let Some(at) = find(&answer.body[..opening], b"\"pageSize\":") else { return };
                let from = at + b"\"pageSize\":".len();
                let digits = answer.body[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                let size: u64 = String::from_utf8_lossy(&answer.body[from..from + digits]).parse().unwrap_or(0);
                answer.body.splice(from..from + digits, (size / 2 + 1).to_string().into_bytes());
            }
            Self::NoRows => {
                answer.body.truncate(rows);
                answer.body.extend_from_slice(b"]}");
            }
            Self::FewerRows => {
                let whole = String::from_utf8_lossy(&answer.body[rows - 1..answer.body.len() - 1]).into_owned();
                let rows_now: Vec<Box<serde_json::value::RawValue>> = serde_json::from_str(&whole).unwrap_or_default();
                let kept: Vec<&str> = rows_now.iter().take(rows_now.len().div_ceil(2)).map(|row| row.get()).collect();
                answer.body.truncate(rows);
                answer.body.extend_from_slice(kept.join(",").as_bytes());
                answer.body.extend_from_slice(b"]}");
            }
        }
    }
}

type Predicate = Arc<dyn Fn(&Request) -> bool + Send + Sync>;

/// When, what, how often.
#[derive(Clone)]
pub struct FaultRule {
    when: Match,
    path: Option<String>,
    rows_only: bool,
    predicate: Option<Predicate>,
    fault: Fault,
    times: Option<u64>,
    lasting: Option<Duration>,
    counted: u64,
    applied: u64,
    first: Option<Instant>,
}

impl fmt::Debug for FaultRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultRule")
            .field("when", &self.when)
            .field("path", &self.path)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

impl FaultRule {
    /// Begins a rule; without [`FaultRule::act`] it answers 503.
    pub fn on(when: Match) -> Self {
        Self {
            when,
            path: None,
            rows_only: false,
            predicate: None,
            fault: Fault::status(503),
            times: None,
            lasting: None,
            counted: 0,
            applied: 0,
            first: None,
        }
    }

    /// Counts only requests whose path and query contain this.
    #[must_use]
    pub fn and_path(mut self, part: &str) -> Self {
        self.path = Some(part.into());
        self
    }

    /// Counts only requests for rows of a collection.
    #[must_use]
    pub fn and_rows_only(mut self) -> Self {
        self.rows_only = true;
        self
    }

    /// Counts only requests for rows of which nothing but the id is wanted: listings.
    #[must_use]
    pub fn and_listings_only(mut self) -> Self {
        self.rows_only = true;
        self.and(|request| request.param("fields") == Some("id"))
    }

    /// Counts only requests for rows of which more than the id is wanted.
    #[must_use]
    pub fn and_full_rows_only(mut self) -> Self {
        self.rows_only = true;
        self.and(|request| request.param("fields") != Some("id"))
    }

    /// Counts only requests that the closure accepts.
    #[must_use]
    pub fn and(mut self, predicate: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Self {
        self.predicate = Some(Arc::new(predicate));
        self
    }

    /// Says what goes wrong.
    #[must_use]
    pub fn act(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// Ends the rule after so many applications; without it the rule goes on until [`crate::StandIn::heal`].
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Ends the rule so long after its first application.
    #[must_use]
    pub fn lasting(mut self, duration: Duration) -> Self {
        self.lasting = Some(duration);
        self
    }

    /// A seeded mix on a share of the requests (0 to 1): statuses, resets, cuts in every framing, HTML, garbled text,
    /// broken gzip, wrong envelopes. Only what heals when it is asked again: neither logins nor hours of silence.
    pub fn mixed(seed: u64, share: f64) -> Self {
        let cut = |framing, at| Fault::Cut { at, framing, gzipped: false, reset: false };
        let all = vec![
            Fault::status(503),
            Fault::status(502),
            Fault::status(500),
            Fault::Status { code: 503, retry_after: Some("1".into()), body: Body::Html },
            Fault::Status { code: 429, retry_after: Some("1".into()), body: Body::Empty },
            Fault::Close,
            Fault::Reset,
            Fault::reset_after(1),
            Fault::reset_after(5000),
            cut(Some(Framing::Length), Place::Fraction(0.5)),
            cut(Some(Framing::Length), Place::FromEnd(1)),
            cut(Some(Framing::Chunked), Place::InsideChunk(0)),
            cut(Some(Framing::Chunked), Place::BetweenChunks(0)),
            cut(Some(Framing::Chunked), Place::InSizeLine(0)),
            cut(Some(Framing::Chunked), Place::BeforeLastChunk),
            cut(Some(Framing::Close), Place::Fraction(0.7)),
            Fault::Cut { at: Place::Fraction(0.9), framing: Some(Framing::Length), gzipped: true, reset: false },
            Fault::Html200(Page::Proxy),
            Fault::Empty200,
            Fault::Garble(Garble::WrongJson),
            Fault::Garble(Garble::Control(Place::Fraction(0.5))),
            Fault::Gzip(GzipFault::BadCrc),
            Fault::Gzip(GzipFault::NoTrailer),
            Fault::Gzip(GzipFault::OverPlainText),
            Fault::ContentType("text/plain".into()),
            Fault::Delay(Duration::from_millis(50)),
            Fault::StaleClose,
            Fault::Stall { at: Some(Place::Fraction(0.3)), lasting: Some(Duration::from_millis(200)) },
        ];
        Self::on(Match::Chance(seed, share)).act(Fault::OneOf(seed, all))
    }

    /// Whether the rule fires on this request, and with what; counts it.
    fn fires(&mut self, request: &Request) -> Option<Fault> {
        if self.times.is_some_and(|times| self.applied >= times) {
            return None;
        }
        if let (Some(lasting), Some(first)) = (self.lasting, self.first)
            && first.elapsed() >= lasting
        {
            return None;
        }
        let path_fits = self.path.as_ref().is_none_or(|part| request.target.contains(part.as_str()));
        let rows_fit = !self.rows_only || request.collection().is_some();
        if !path_fits || !rows_fit || self.predicate.as_ref().is_some_and(|predicate| !predicate(request)) {
            return None;
        }
        self.counted += 1;
        if !self.when.holds(self.counted) {
            return None;
        }
        let fault = match &self.fault {
            Fault::OneOf(seed, choices) if !choices.is_empty() => {
                let at = usize::try_from(mix(mix(*seed) ^ self.counted.rotate_left(32))).unwrap_or(usize::MAX)
                    % choices.len();
                choices[at].clone()
            }
            other => other.clone(),
        };
        if !fault.applies(request) {
            return None;
        }
        self.applied += 1;
        self.first.get_or_insert_with(Instant::now);
        Some(fault)
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub(crate) struct Script {
    rules: Vec<FaultRule>,
}

impl Script {
    pub(crate) fn add(&mut self, rule: FaultRule) {
        self.rules.push(rule);
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// The fault for this request: of the first rule that fires. Every rule counts every request.
    pub(crate) fn fault_for(&mut self, request: &Request) -> Option<Fault> {
        let mut chosen = None;
        for rule in &mut self.rules {
            if chosen.is_none() {
                chosen = rule.fires(request);
            } else {
                rule.fires_not(request);
            }
        }
        chosen
    }
}

impl FaultRule {
    /// Another rule was first: only count.
    fn fires_not(&mut self, request: &Request) {
        let applied = (self.applied, self.first);
        let _ = self.fires(request);
        (self.applied, self.first) = applied;
    }
}

/// Reads `every=10,status=503,retry-after=2,path=organisationUnits,times=3`.
///
/// When: `nth=N`, `every=N`, `first=N`, `from=N`, `chance=SHARE` (`seed=N`); narrowed by `path=TEXT`, `rows`, `listings`
/// (rows of which only the id is asked for); ended by `times=N`, `lasting-ms=N`. What: `status=CODE` (`retry-after=TEXT`, `body=json|html|empty`), `close`, `reset`,
/// `reset-after=BYTES`, `cut=BYTES`, `cut-share=SHARE` (`framing=length|chunked|close`, `gzipped`), `stall`,
/// `stall-at=BYTES`, `drip=BYTES_PER_SECOND`, `delay-ms=N`, `html`, `login`, `empty`, `redirect`, `garble`, `bad-crc`,
/// `stale`, `unauthorized`, `lose-sessions`, `refuse-ms=N`, `restart-ms=N` (each of three phases), `hang-ms=N` (refused, then
/// silent, for so long each), `too-heavy=ROWS`, `no-rows`, `fewer-rows`, `partial`, `database-cut` and `export-cut` (`seed=N`),
/// `informational=CODE`, `mixed=SHARE` (`seed=N`).
impl FromStr for FaultRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        fn parse<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
            value.parse().map_err(|_| format!("`{value}` is no value for `{name}`"))
        }
        let pairs: Vec<(&str, &str)> = text
            .split(',')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        let get = |wanted: &str| pairs.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
        let seed: u64 = get("seed").map_or(Ok(1), |value| parse("seed", value))?;
        let mut rule = Self::on(Match::Always);
        let mut fault = None;
        let framing = match get("framing") {
            None => None,
            Some("length") => Some(Framing::Length),
            Some("chunked") => Some(Framing::Chunked),
            Some("close") => Some(Framing::Close),
            Some(other) => return Err(format!("`{other}` is no framing: length, chunked or close")),
        };
        let gzipped = get("gzipped").is_some();
        let cut = |at, reset| Fault::Cut { at, framing, gzipped, reset };
        let millis = |name: &str, value: &str| parse::<u64>(name, value).map(Duration::from_millis);
        for (name, value) in &pairs {
            match *name {
                "nth" => rule.when = Match::Nth(parse(name, value)?),
                "every" => rule.when = Match::Every(parse(name, value)?),
                "first" => rule.when = Match::First(parse(name, value)?),
                "from" => rule.when = Match::From(parse(name, value)?),
                "chance" => rule.when = Match::Chance(seed, parse(name, value)?),
                "path" => rule.path = Some((*value).into()),
                "rows" => rule.rows_only = true,
                "listings" => rule = rule.and_listings_only(),
                "times" => rule.times = Some(parse(name, value)?),
                "lasting-ms" => rule.lasting = Some(millis(name, value)?),
                "seed" | "framing" | "gzipped" | "retry-after" | "body" => {}
                "status" => {
                    let code = parse(name, value)?;
                    let body = match get("body") {
                        Some("json") => Body::Json,
                        Some("html") => Body::Html,
                        Some("empty") => Body::Empty,
                        Some(other) => return Err(format!("`{other}` is no body: json, html or empty")),
                        None => match Fault::status(code) {
                            Fault::Status { body, .. } => body,
                            _ => Body::Json,
                        },
                    };
                    fault = Some(Fault::Status { code, retry_after: get("retry-after").map(Into::into), body });
                }
                "close" => fault = Some(Fault::Close),
                "reset" => fault = Some(Fault::Reset),
                "reset-after" => fault = Some(cut(Place::Byte(parse(name, value)?), true)),
                "cut" => fault = Some(cut(Place::Byte(parse(name, value)?), false)),
                "cut-share" => fault = Some(cut(Place::Fraction(parse(name, value)?), false)),
                "stall" => fault = Some(Fault::Stall { at: None, lasting: None }),
                "stall-at" => fault = Some(Fault::stall(Place::Byte(parse(name, value)?))),
                "drip" => fault = Some(Fault::Drip { bytes_per_second: parse(name, value)? }),
                "delay-ms" => fault = Some(Fault::Delay(millis(name, value)?)),
                "html" => fault = Some(Fault::Html200(Page::Proxy)),
                "login" => fault = Some(Fault::Html200(Page::Login)),
                "empty" => fault = Some(Fault::Empty200),
                "redirect" => fault = Some(Fault::RedirectToLogin(None)),
                "garble" => fault = Some(Fault::Garble(Garble::WrongJson)),
                "bad-crc" => fault = Some(Fault::Gzip(GzipFault::BadCrc)),
                "stale" => fault = Some(Fault::StaleClose),
                "unauthorized" => fault = Some(Fault::Unauthorized),
                "lose-sessions" => fault = Some(Fault::LoseSessions),
                "refuse-ms" => fault = Some(Fault::Refuse(Some(millis(name, value)?))),
                "restart-ms" => fault = Some(Fault::Restart(Restart::lasting(millis(name, value)?))),
                "hang-ms" => {
                    let phase = millis(name, value)?;
                    fault = Some(Fault::Restart(Restart::bare(phase, phase)));
                }
                "no-rows" => fault = Some(Fault::Envelope(Envelope::NoRows)),
                "fewer-rows" => fault = Some(Fault::Envelope(Envelope::FewerRows)),
                "partial" => fault = Some(Fault::PartialContent),
                "export-cut" => fault = Some(Fault::ExportCut { seed }),
                "database-cut" => fault = Some(Fault::database_cut(seed)),
                "informational" => fault = Some(Fault::Informational(parse(name, value)?)),
                "too-heavy" => fault = Some(Fault::TooHeavy { page_size_max: parse(name, value)? }),
                "mixed" => {
                    let mixed = Self::mixed(seed, parse(name, value)?);
                    rule.when = mixed.when;
                    fault = Some(mixed.fault);
                }
                unknown => return Err(format!("`{unknown}` is nothing a fault knows")),
            }
        }
        rule.fault = fault.ok_or("the rule does not say what goes wrong, e.g. status=503")?;
        Ok(rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str) -> Request {
        Request::new("GET", target, Vec::new(), "")
    }

    fn fired(rule: FaultRule, targets: &[&str]) -> Vec<bool> {
        let mut script = Script::default();
        script.add(rule);
        targets.iter().map(|target| script.fault_for(&request(target)).is_some()).collect()
    }

    #[test]
    fn a_rule_counts_only_what_passes_its_narrowing() {
        let targets = ["/api/me", "/api/options", "/api/me", "/api/options?page=2", "/api/options"];
        assert_eq!(fired(FaultRule::on(Match::nth(3)), &targets), [false, false, true, false, false]);
        assert_eq!(
            fired(FaultRule::on(Match::nth(2)).and_path("options"), &targets),
            [false, false, false, true, false]
        );
        assert_eq!(fired(FaultRule::on(Match::every(2)), &targets), [false, true, false, true, false]);
        assert_eq!(
            fired(FaultRule::on(Match::always()).and_rows_only().times(2), &targets),
            [false, true, false, true, false]
        );
        assert_eq!(
            fired(FaultRule::on(Match::always()).and(|request| request.param("page").is_some()), &targets),
            [false, false, false, true, false]
        );
        assert_eq!(fired(FaultRule::on(Match::From(4)), &targets), [false, false, false, true, true]);
    }

    #[test]
    fn a_chance_strikes_about_as_often_as_it_says_and_always_the_same() {
        let strikes =
            |seed| -> Vec<u64> { (1..10_000).filter(|count| Match::Chance(seed, 0.2).holds(*count)).collect() };
        assert!((1800..2200).contains(&strikes(5).len()));
        assert_eq!(strikes(5), strikes(5));
        assert_ne!(strikes(5), strikes(6));
    }

    #[test]
    fn a_rule_is_read_from_text() {
        let rule: FaultRule = "every=10,status=503,retry-after=2,path=organisationUnits,times=3".parse().unwrap();
        assert_eq!(
            (rule.when, rule.times, rule.path.as_deref()),
            (Match::Every(10), Some(3), Some("organisationUnits"))
        );
        assert_eq!(rule.fault, Fault::Status { code: 503, retry_after: Some("2".into()), body: Body::Html });
        let rule: FaultRule = "nth=3,cut=100,framing=chunked".parse().unwrap();
        assert_eq!(rule.fault, Fault::cut_in(Framing::Chunked, Place::Byte(100)));
        let rule: FaultRule = "chance=0.1,listings,no-rows".parse().unwrap();
        assert!(rule.rows_only && rule.predicate.is_some() && rule.fault == Fault::Envelope(Envelope::NoRows));
        let rule: FaultRule = "nth=2,seed=7,database-cut".parse().unwrap();
        assert_eq!(rule.fault, Fault::database_cut(7));
        for bad in ["every=10", "status=abc", "status=503,colour=red", "cut=1,framing=paper", ""] {
            assert!(bad.parse::<FaultRule>().is_err(), "{bad}");
        }
    }

    fn list() -> Answer {
        let body = br#"{"pager":{"page":1,"pageSize":50},"options":[{"id":"a","name":"x"},{"id":"b","name":"y"},{"id":"c","name":"z"}]}"#;
        Answer { rows: Some("options"), ..Answer::json(200, body.to_vec()) }
    }

    #[test]
    fn envelopes_and_rows_change_as_their_names_say() {
        let changed = |fault: Fault| {
            let mut answer = list();
            fault.change_answer(&mut answer);
            String::from_utf8_lossy(&answer.body).into_owned()
        };
        assert!(changed(Fault::Envelope(Envelope::Instances)).contains(r#"},"instances":[{"id":"a""#));
        assert!(changed(Fault::Envelope(Envelope::NoPager)).starts_with(r#"{"options":[{"id":"a""#));
        assert!(changed(Fault::Envelope(Envelope::OtherPageSize)).contains(r#""pageSize":26}"#));
        assert!(changed(Fault::Envelope(Envelope::FewerRows)).ends_with(r#"{"id":"b","name":"y"}]}"#));
        assert!(changed(Fault::Envelope(Envelope::NoRows)).ends_with(r#""pageSize":50},"options":[]}"#));
        assert!(changed(Fault::PartialContent).ends_with(r#""pageSize":50},"options":[]}"#));
        assert!(changed(Fault::DeepRow { depth: 3 }).contains(r#""name":"x","padding":[[[]]]},{"id":"b""#));
        assert!(changed(Fault::HugeRow { bytes: 500 }).len() > 600);
        assert!(changed(Fault::Garble(Garble::LoneSurrogate)).contains(r#""name":"\ud800z"#));
        let wrong = changed(Fault::Garble(Garble::WrongJson));
        assert!(wrong.ends_with("]}") && serde_json::from_str::<serde_json::Value>(&wrong).is_err(), "{wrong}");
        let mut answer = list();
        Fault::Garble(Garble::InvalidUtf8).change_answer(&mut answer);
        assert!(std::str::from_utf8(&answer.body).is_err());
    }
}
