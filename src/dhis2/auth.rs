//! Credentials go to one origin, in one way, and a wrong password is tried once.
//!
//! All threads of a client share one session: the cookie the server gave (so it need not check the password each time,
//! nor open a session per request), and what is known about the credentials. Until a first response shows that they are
//! accepted, requests go one by one; once they are refused, nothing is sent any more. So sixteen workers with a wrong
//! password make one failed login, not sixteen, and do not lock the account. Credentials that were accepted before may be
//! refused by a database hiccup: then only pings are sent, as seldom as the caller likes, until one is answered.
//!
//! Source: dhis2-core security configuration 2.25 to 2.43: sessions and `JSESSIONID`, lockout after 4 or 5 failures.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use awc::http::header::{HeaderMap, HeaderValue, SET_COOKIE};
use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::{
    error::{Error, ErrorKind},
    redaction::Redaction,
};

/// A text that is never shown: it prints as `***`.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself. For the wire only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Credentials of the client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Credentials {
    /// HTTP Basic, UTF-8. Every version; not for users with two-factor login.
    Basic {
        /// Without a colon.
        username: String,
        /// Any text.
        password: Secret,
    },
    /// Personal access token, `Authorization: ApiToken …`. 2.37 and later.
    Token(Secret),
    /// OAuth2 or JWT, `Authorization: Bearer …`.
    Bearer(Secret),
}

impl Credentials {
    /// The value of the `Authorization` header; marked, so that no debug output shows it.
    pub(crate) fn header(&self) -> Result<HeaderValue, Error> {
        let text = match self {
            Credentials::Basic { username, password } => {
                if username.contains(':') {
                    return Err(Error::new(ErrorKind::InvalidConfig, "a username cannot contain a colon"));
                }
                format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{}", password.expose())))
            }
            Credentials::Token(token) => format!("ApiToken {}", token.expose()),
            Credentials::Bearer(token) => format!("Bearer {}", token.expose()),
        };
        let mut value = HeaderValue::try_from(text)
            .map_err(|_| Error::new(ErrorKind::InvalidConfig, "the token has characters that no header can carry"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// The name of the servlet session's cookie.
const SESSION_COOKIE: &str = "JSESSIONID";
/// A longer cookie value is not a session's.
const COOKIE_BYTES_MAX: usize = 1024;

/// Login state, shared by all threads of a client.
#[derive(Debug)]
pub(crate) struct Session {
    state: Mutex<State>,
    /// Held by the one request that tries credentials not accepted so far.
    trial: tokio::sync::Mutex<()>,
    /// Whether the credentials are known to be valid; read before every request.
    valid: AtomicBool,
}

struct State {
    authorization: Option<HeaderValue>,
    /// Counts replaced credentials, so that a late refusal of the old ones does not condemn the new.
    generation: u64,
    cookie: Option<String>,
    /// These credentials have been accepted some time.
    accepted: bool,
    refused: Option<AuthFailure>,
    /// Masks secrets in the server's texts.
    redaction: Redaction,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("generation", &self.generation)
            .field("has_cookie", &self.cookie.is_some())
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}

/// A refusal of the credentials.
#[derive(Clone, Debug)]
pub(crate) struct AuthFailure {
    pub(crate) status: u16,
    pub(crate) what: String,
}

impl AuthFailure {
    pub(crate) fn error(&self) -> Error {
        Error::new(ErrorKind::Auth, self.what.clone()).with_status(self.status)
    }
}

/// The headers that authenticate one request. While the credentials are on trial, only one exists at a time.
#[derive(Debug)]
pub(crate) struct RequestAuth<'a> {
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) cookie: Option<String>,
    pub(crate) generation: u64,
    _trial: Option<tokio::sync::MutexGuard<'a, ()>>,
}

impl Session {
    /// # Errors
    /// `InvalidConfig`: the credentials cannot be sent.
    pub(crate) fn new(credentials: Option<&Credentials>) -> Result<Self, Error> {
        let mut redaction = Redaction::default();
        if let Some(credentials) = credentials {
            redaction.add_credentials(credentials);
        }
        let authorization = credentials.map(Credentials::header).transpose()?;
        let state = State { authorization, generation: 0, cookie: None, accepted: false, refused: None, redaction };
        Ok(Session { state: Mutex::new(state), trial: tokio::sync::Mutex::new(()), valid: AtomicBool::new(false) })
    }

    /// Masks all credentials so far and the session's cookie in the server's texts.
    pub(crate) fn redaction(&self) -> Redaction {
        let state = self.lock();
        let mut redaction = state.redaction.clone();
        if let Some((_, value)) = state.cookie.as_deref().and_then(|cookie| cookie.split_once('=')) {
            redaction.add(value);
        }
        redaction
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing can panic while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this request may try the credentials. Refused credentials are an error at once.
    ///
    /// - `is_probe`: does not wait, since the one that is on trial may be held up at the gate until the probe has answered.
    pub(crate) async fn acquire(&self, with_cookie: bool, is_probe: bool) -> Result<RequestAuth<'_>, Error> {
        self.check(is_probe)?;
        let mut trial = None;
        if !is_probe && !self.valid.load(Ordering::Acquire) {
            let guard = self.trial.lock().await;
            self.check(is_probe)?;
            if !self.valid.load(Ordering::Acquire) {
                trial = Some(guard);
            }
        }
        let state = self.lock();
        Ok(RequestAuth {
            authorization: state.authorization.clone(),
            cookie: state.cookie.clone().filter(|_| with_cookie),
            generation: state.generation,
            _trial: trial,
        })
    }

    /// Which credentials are in use.
    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Refused credentials are an error; not for a probe that finds out whether they are accepted again.
    pub(crate) fn check(&self, is_probe: bool) -> Result<(), Error> {
        let state = self.lock();
        match &state.refused {
            Some(_) if is_probe && state.accepted => Ok(()),
            Some(refused) => Err(refused.error()),
            None => Ok(()),
        }
    }

    /// The credentials were accepted. A probe that says so lifts a refusal; another request may have been let in before that.
    pub(crate) fn mark_valid(&self, generation: u64, is_probe: bool) {
        if self.valid.load(Ordering::Relaxed) && !is_probe {
            return;
        }
        let mut state = self.lock();
        if state.generation == generation {
            state.accepted = true;
            if is_probe {
                state.refused = None;
            }
            self.valid.store(true, Ordering::Release);
        }
    }

    /// The session has ended: its cookie is forgotten and the credentials are on trial again.
    pub(crate) fn expire(&self, cookie: &str) {
        let mut state = self.lock();
        // Another thread may have a new session already.
        if state.cookie.as_deref() == Some(cookie) {
            state.cookie = None;
            self.valid.store(false, Ordering::Release);
        }
    }

    /// The credentials were refused: for good, or until a probe is answered where they had been accepted.
    pub(crate) fn refuse(&self, generation: u64, failure: AuthFailure) {
        let mut state = self.lock();
        if state.generation == generation {
            state.refused.get_or_insert(failure);
        }
    }

    /// Other credentials from now on; what was known about the old ones is forgotten.
    ///
    /// # Errors
    /// `InvalidConfig`: they cannot be sent.
    pub(crate) fn replace(&self, credentials: &Credentials) -> Result<(), Error> {
        let authorization = Some(credentials.header()?);
        let mut state = self.lock();
        let generation = state.generation + 1;
        let mut redaction = std::mem::take(&mut state.redaction);
        redaction.add_credentials(credentials);
        *state = State { authorization, generation, cookie: None, accepted: false, refused: None, redaction };
        self.valid.store(false, Ordering::Release);
        Ok(())
    }

    /// Takes the session cookie out of a response's head.
    pub(crate) fn take_cookies(&self, headers: &HeaderMap, generation: u64) {
        for value in headers.get_all(SET_COOKIE) {
            let Some(cookie) = value.to_str().ok().and_then(session_cookie) else { continue };
            let mut state = self.lock();
            if state.generation == generation {
                state.cookie = cookie;
            }
        }
    }
}

/// Reads the session out of a `Set-Cookie` value: `Some(None)` when it ends, none for another cookie.
fn session_cookie(value: &str) -> Option<Option<String>> {
    let mut parts = value.split(';').map(str::trim);
    let (name, value) = parts.next()?.split_once('=')?;
    if name.trim() != SESSION_COOKIE || value.len() > COOKIE_BYTES_MAX {
        return None;
    }
    let value = value.trim();
    let ended = value.is_empty()
        || parts.any(|part| {
            part.split_once('=').is_some_and(|(key, age)| {
                key.trim().eq_ignore_ascii_case("max-age") && age.trim().parse().is_ok_and(|seconds: i64| seconds <= 0)
            })
        });
    let sendable = |value: &str| value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',' && byte != b'"');
    if ended {
        Some(None)
    } else if sendable(value) {
        Some(Some(format!("{SESSION_COOKIE}={value}")))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_print_as_stars_everywhere() {
        let basic = Credentials::Basic { username: "reader".into(), password: "hunter2-canary".into() };
        let token = Credentials::Token("d2pat_canary".into());
        let bearer = Credentials::Bearer("jwt.canary".into());
        for credentials in [basic, token, bearer] {
            let session = Session::new(Some(&credentials)).unwrap();
            session.lock().cookie = Some("JSESSIONID=canary".into());
            let shown =
                format!("{credentials:?} {:?} {session:?} {}", credentials.header().unwrap(), Secret::new("canary"));
            assert!(!shown.contains("canary") && !shown.contains("Y2FuYXJ5"), "{shown}");
            assert!(shown.contains("***"));
        }
    }

    #[test]
    fn each_kind_of_credentials_has_its_own_header() {
        let basic = Credentials::Basic { username: "admin".into(), password: "dïstrict:x".into() };
        assert_eq!(basic.header().unwrap(), "Basic YWRtaW46ZMOvc3RyaWN0Ong=");
        assert_eq!(Credentials::Token("d2pat_x".into()).header().unwrap(), "ApiToken d2pat_x");
        assert_eq!(Credentials::Bearer("a.b".into()).header().unwrap(), "Bearer a.b");
        let bad = Credentials::Basic { username: "a:b".into(), password: "".into() };
        assert_eq!(bad.header().unwrap_err().kind(), ErrorKind::InvalidConfig);
        assert_eq!(Credentials::Token("a\nb".into()).header().unwrap_err().kind(), ErrorKind::InvalidConfig);
    }

    #[tokio::test]
    async fn what_comes_late_for_old_credentials_does_not_touch_the_new() {
        let session = Session::new(None).unwrap();
        let old = session.acquire(true, false).await.unwrap();
        session.replace(&Credentials::Token("new".into())).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(SET_COOKIE, HeaderValue::from_static("JSESSIONID=old"));
        session.take_cookies(&headers, old.generation);
        session.mark_valid(old.generation, false);
        session.refuse(old.generation, AuthFailure { status: 401, what: "x".into() });
        let generation = old.generation;
        drop(old);
        assert!(!session.valid.load(Ordering::SeqCst));
        let new = session.acquire(true, false).await.unwrap();
        assert_eq!((new.cookie.clone(), new.generation), (None, generation + 1));
        session.refuse(new.generation, AuthFailure { status: 401, what: "x".into() });
        assert!(session.check(false).is_err() && session.check(true).is_err());
    }

    #[test]
    fn a_cookie_is_taken_replaced_or_ended_and_others_are_ignored() {
        let taken = |value| session_cookie(value);
        let some = |value: &str| Some(Some(value.to_owned()));
        assert_eq!(taken("JSESSIONID=ABC.node1; Path=/; HttpOnly; SameSite=Lax"), some("JSESSIONID=ABC.node1"));
        assert_eq!(taken("JSESSIONID=ABC;Max-Age=3600"), some("JSESSIONID=ABC"));
        assert_eq!(taken("JSESSIONID=; Path=/"), Some(None));
        assert_eq!(taken("JSESSIONID=ABC; max-age=0"), Some(None));
        assert_eq!(taken("SESSION_EXPIRE=server_time=1&expiry_time=2"), None);
        assert_eq!(taken("jsessionid=ABC"), None);
        assert_eq!(taken("JSESSIONID=a b"), None);
        assert_eq!(taken("JSESSIONID"), None);
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod session_tests;
