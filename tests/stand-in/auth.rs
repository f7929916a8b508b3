//! Decides who is asking, and what somebody unknown gets, by version.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use tokio::time::Instant;

use crate::answer::Answer;
use crate::country::mix;
use crate::dialect::{Denial, Dialect, SessionRule};
use crate::request::Request;

/// Somebody who may log in.
#[derive(Clone)]
pub struct User {
    pub(crate) name: String,
    pub(crate) password: String,
    pub(crate) superuser: bool,
    pub(crate) visible_percent: u8,
    pub(crate) tokens: Vec<String>,
    pub(crate) bearers: Vec<String>,
    pub(crate) disabled: bool,
    pub(crate) two_factors: bool,
    /// Children of the root below which data may be read, by their place; empty: the whole tree.
    pub(crate) branches: Vec<u32>,
}

/// Secrets are not shown.
impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).field("superuser", &self.superuser).finish_non_exhaustive()
    }
}

impl User {
    /// Somebody with the authority `ALL`, who sees every row.
    pub fn superuser(name: &str, password: &str) -> Self {
        Self {
            name: name.into(),
            password: password.into(),
            superuser: true,
            visible_percent: 100,
            tokens: Vec::new(),
            bearers: Vec::new(),
            disabled: false,
            two_factors: false,
            branches: Vec::new(),
        }
    }

    /// Somebody without `ALL`, who sees so many per cent of the rows, chosen by formula.
    pub fn limited(name: &str, password: &str, visible_percent: u8) -> Self {
        Self { superuser: false, visible_percent, ..Self::superuser(name, password) }
    }

    /// Gives a personal access token (2.37 and later).
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        self.tokens.push(token.into());
        self
    }

    /// Gives an OAuth2 or JWT bearer token; bearers are understood once any user has one.
    #[must_use]
    pub fn with_bearer(mut self, bearer: &str) -> Self {
        self.bearers.push(bearer.into());
        self
    }

    /// Data may be read only below these children of the root, by their place from 0.
    #[must_use]
    pub fn of_branches(mut self, branches: &[u32]) -> Self {
        self.branches = branches.to_vec();
        self
    }

    /// The account is disabled.
    #[must_use]
    pub fn disabled(mut self) -> Self {
        self.disabled = true;
        self
    }

    /// The account has a second factor: neither password nor token opens the API.
    #[must_use]
    pub fn with_two_factors(mut self) -> Self {
        self.two_factors = true;
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    /// The user logged in too often elsewhere.
    Ousted,
}

#[derive(Debug)]
struct Session {
    user: usize,
    life: Life,
    used: Instant,
}

/// The accounts and the sessions.
#[derive(Debug, Default)]
pub(crate) struct Door {
    pub(crate) users: Vec<User>,
    sessions: HashMap<String, Session>,
    sessions_made: u64,
    failures: HashMap<String, (u32, Instant)>,
    /// Lock an account after repeated failures, for 15 minutes.
    pub(crate) locks: bool,
    /// What checking a password costs.
    pub(crate) password_check: Duration,
    pub(crate) session_timeout: Duration,
    pub(crate) seed: u64,
}

/// Who is asking.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) user: User,
    /// `Set-Cookie` headers to send along.
    pub(crate) cookies: Vec<String>,
    /// How long the server thinks before anything else happens.
    pub(crate) thinks: Duration,
}

/// The outcome at the door.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Come in.
    Known(Box<Caller>),
    /// What somebody unknown gets, after so long a thought.
    Unknown(Box<Answer>, Duration),
}

impl Door {
    pub(crate) fn lose_sessions(&mut self) {
        self.sessions.clear();
    }

    /// Living sessions.
    pub(crate) fn session_count(&self) -> usize {
        let lives = |session: &&Session| session.life == Life::Alive && session.used.elapsed() < self.session_timeout;
        self.sessions.values().filter(lives).count()
    }

    /// Ousts a user's sessions, as logins elsewhere do.
    pub(crate) fn oust(&mut self, name: &str) {
        for session in self.sessions.values_mut() {
            if self.users[session.user].name == name {
                session.life = Life::Ousted;
            }
        }
    }

    fn session_of(&self, request: &Request) -> Option<String> {
        let cookies = request.headers.iter().filter(|(name, _)| name == "cookie");
        let mut pairs = cookies.flat_map(|(_, value)| value.split(';'));
        pairs.find_map(|pair| pair.trim().strip_prefix("JSESSIONID=").map(Into::into))
    }

    fn open_session(&mut self, user: usize, dialect: &Dialect, context_path: &str) -> Vec<String> {
        self.sessions_made += 1;
        if self.sessions_made.is_multiple_of(4096) {
            let timeout = self.session_timeout;
            self.sessions.retain(|_, session| session.used.elapsed() < timeout);
        }
        let id = format!("{:016X}{:016X}", mix(self.seed ^ self.sessions_made), mix(self.sessions_made));
        self.sessions.insert(id.clone(), Session { user, life: Life::Alive, used: Instant::now() });
        let path = if context_path.is_empty() { "/" } else { context_path };
        let mut cookies = vec![format!("JSESSIONID={id}; Path={path}; HttpOnly")];
        if dialect.session_expire_cookie {
            let now = crate::clock::wall_ms();
            let end = now + i64::try_from(self.session_timeout.as_millis()).unwrap_or(0);
            cookies.push(format!("SESSION_EXPIRE=server_time={now}&expiry_time={end}; Path={path}"));
        }
        cookies
    }

    /// Lets a request in, or says what it gets.
    pub(crate) fn check(&mut self, request: &Request, dialect: &Dialect, context_path: &str) -> Verdict {
        let now = Instant::now();
        let timeout = self.session_timeout;
        let cookie = self.session_of(request);
        let session = cookie.as_ref().and_then(|id| self.sessions.get_mut(id));
        let session = session.filter(|session| now.duration_since(session.used) < timeout);
        let seated = match session {
            Some(session) if session.life == Life::Ousted => {
                let to = format!("{context_path}/dhis-web-commons-security/logout.action");
                return Verdict::Unknown(Box::new(Answer::redirect(request, &to)), Duration::ZERO);
            }
            Some(session) => {
                session.used = now;
                Some(session.user)
            }
            None => None,
        };
        let authorization = request.header("authorization").unwrap_or_default();
        let (scheme, rest) = authorization.split_once(' ').unwrap_or((authorization, ""));
        let known = |user: usize, cookies: Vec<String>, thinks: Duration, users: &[User]| {
            Verdict::Known(Box::new(Caller { user: users[user].clone(), cookies, thinks }))
        };
        if scheme.eq_ignore_ascii_case("basic") {
            let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).unwrap_or_default();
            let decoded = String::from_utf8(decoded).unwrap_or_default();
            let (name, password) = decoded.split_once(':').unwrap_or((&decoded, ""));
            if let Some(user) = seated
                && self.users[user].name == name
            {
                return known(user, Vec::new(), Duration::ZERO, &self.users);
            }
            return match self.check_password(name, password, dialect) {
                Ok(user) => {
                    let cookies = self.open_session(user, dialect, context_path);
                    known(user, cookies, self.password_check, &self.users)
                }
                Err(message) => {
                    Verdict::Unknown(Box::new(Answer::wrong_password(request, dialect, message)), self.password_check)
                }
            };
        }
        if scheme.eq_ignore_ascii_case("apitoken") && dialect.tokens {
            let token = rest.trim();
            let holder = self.users.iter().position(|user| user.tokens.iter().any(|known| known == token));
            return match holder.filter(|user| !self.users[*user].disabled && !self.users[*user].two_factors) {
                Some(user) => {
                    let wants_session = dialect.sessions == SessionRule::EveryRequest && seated.is_none();
                    let cookies =
                        if wants_session { self.open_session(user, dialect, context_path) } else { Vec::new() };
                    known(user, cookies, Duration::ZERO, &self.users)
                }
                None => Verdict::Unknown(Box::new(Answer::wrong_token(dialect)), Duration::ZERO),
            };
        }
        let bearers_exist = self.users.iter().any(|user| !user.bearers.is_empty());
        if scheme.eq_ignore_ascii_case("bearer") && (bearers_exist || dialect.oauth_refusal) {
            let bearer = rest.trim();
            let holder = self.users.iter().position(|user| user.bearers.iter().any(|known| known == bearer));
            return match holder {
                Some(user) => {
                    let wants_session = dialect.sessions == SessionRule::EveryRequest && seated.is_none();
                    let cookies =
                        if wants_session { self.open_session(user, dialect, context_path) } else { Vec::new() };
                    known(user, cookies, Duration::ZERO, &self.users)
                }
                None => Verdict::Unknown(Box::new(Answer::bad_bearer(dialect)), Duration::ZERO),
            };
        }
        match seated {
            Some(user) => known(user, Vec::new(), Duration::ZERO, &self.users),
            None => Verdict::Unknown(Box::new(Answer::log_in_first(request, dialect, context_path)), Duration::ZERO),
        }
    }

    /// The user, or the message of the refusal.
    fn check_password(&mut self, name: &str, password: &str, dialect: &Dialect) -> Result<usize, &'static str> {
        const LOCKED_FOR: Duration = Duration::from_mins(15);
        let now = Instant::now();
        if self.locks {
            let failures = self.failures.get(name).copied().filter(|(_, at)| now.duration_since(*at) < LOCKED_FOR);
            if failures.is_some_and(|(count, _)| count >= dialect.failures_until_locked) {
                return Err("Account locked");
            }
        }
        let user = self.users.iter().position(|user| user.name == name && user.password == password);
        match user {
            Some(user) if self.users[user].disabled => {
                Err(if dialect.disabled_is_told { "Account disabled" } else { "Unauthorized" })
            }
            Some(user) if self.users[user].two_factors => Err("Unauthorized"),
            Some(user) => {
                self.failures.remove(name);
                Ok(user)
            }
            None => {
                let entry = self.failures.entry(name.to_owned()).or_insert((0, now));
                *entry = (entry.0 + 1, now);
                Err("Unauthorized")
            }
        }
    }

    /// A login by form or by `/api/auth/login`: cookies when it succeeds.
    pub(crate) fn log_in(
        &mut self,
        name: &str,
        password: &str,
        dialect: &Dialect,
        context_path: &str,
    ) -> Option<Vec<String>> {
        let user = self.check_password(name, password, dialect).ok()?;
        Some(self.open_session(user, dialect, context_path))
    }
}

/// What somebody unknown gets.
impl Answer {
    fn unauthorized(dialect: &Dialect, message: &str) -> Self {
        Self::message(dialect, 401, message)
    }

    /// 401, or 400 where the checksum within a token is looked at first. No ETag, no length, and a 400 ends the connection.
    fn wrong_token(dialect: &Dialect) -> Self {
        let (status, message) = if dialect.token_checksums {
            (400, "Checksum validation failed")
        } else {
            (401, "The API token does not exists.")
        };
        let answer = Self::message(dialect, status, message).with_header("WWW-Authenticate", "ApiToken");
        Self { streamed: true, closes: status == 400, ..answer }
    }

    pub(crate) fn wrong_password(request: &Request, dialect: &Dialect, message: &str) -> Self {
        // Browsers' scripts are spared the password prompt, otherwise every version names the realm.
        let answer = match dialect.wrong_password {
            Denial::Html => Self::html(
                401,
                "<html><head><title>HTTP Status 401</title></head><body><h1>HTTP Status 401 - Bad credentials</h1></body></html>",
            ),
            Denial::Json => Self::unauthorized(dialect, message),
        };
        if dialect.wrong_password == Denial::Html || request.header("x-requested-with").is_none() {
            answer.with_header("WWW-Authenticate", "Basic realm=\"DHIS2\"")
        } else {
            answer
        }
    }

    fn bad_bearer(dialect: &Dialect) -> Self {
        if dialect.oauth_refusal {
            let challenge =
                "Bearer realm=\"oauth\", error=\"invalid_token\", error_description=\"Invalid access token\"";
            Self::json(401, br#"{"error":"invalid_token","error_description":"Invalid access token"}"#.to_vec())
                .with_header("Cache-Control", "no-store")
                .with_header("WWW-Authenticate", challenge)
        } else {
            Self::unauthorized(dialect, "Unauthorized")
                .with_header("WWW-Authenticate", "Bearer error=\"invalid_token\"")
        }
    }

    fn log_in_first(request: &Request, dialect: &Dialect, context_path: &str) -> Self {
        let by_script = request.header("x-requested-with").is_some_and(|by| by.eq_ignore_ascii_case("XMLHttpRequest"));
        if by_script && dialect.xhr_is_told {
            Self::unauthorized(dialect, "Unauthorized")
        } else {
            let asks_for_a_page = request.header("accept").is_some_and(|accept| accept.starts_with("text/html"));
            let path = if asks_for_a_page { dialect.html_login_path } else { dialect.login_path };
            Self::redirect(request, &format!("{context_path}{path}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door() -> Door {
        Door {
            users: vec![
                User::superuser("admin", "district").with_token("d2pat_good").with_bearer("jwt"),
                User::superuser("löw", "pässword:with:colons"),
                User::superuser("gone", "x").disabled(),
                User::superuser("twice", "x").with_two_factors(),
            ],
            session_timeout: Duration::from_hours(1),
            ..Door::default()
        }
    }

    fn request(headers: &[(&str, &str)]) -> Request {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Request::new("GET", "/api/me", headers, "")
    }

    fn basic(name: &str, password: &str) -> String {
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}")))
    }

    fn outcome(verdict: &Verdict) -> String {
        match verdict {
            Verdict::Known(caller) => format!("{} {}", caller.user.name, caller.cookies.len()),
            Verdict::Unknown(answer, _) => {
                let location = answer.header("Location").unwrap_or_default().to_owned();
                let kind = if answer.content_type.as_deref().is_some_and(|kind| kind.contains("html")) {
                    "html"
                } else {
                    "json"
                };
                if location.is_empty() {
                    format!("{} {kind}", answer.status)
                } else {
                    format!("{} {location}", answer.status)
                }
            }
        }
    }

    #[test]
    fn the_table_of_refusals_by_version_and_headers() {
        let wrong = basic("admin", "wrong");
        let xhr = ("x-requested-with", "XMLHttpRequest");
        let login = "302 http://stand-in/dhis-web-commons/security/login.action";
        type Line<'a> = (u8, Vec<(&'a str, &'a str)>, &'a str);
        let table: &[Line<'_>] = &[
            (25, vec![("authorization", &wrong)], "401 html"),
            (29, vec![("authorization", &wrong), xhr], "401 html"),
            (30, vec![("authorization", &wrong)], "401 json"),
            (43, vec![("authorization", &wrong), xhr], "401 json"),
            (27, vec![xhr], login),
            (28, vec![xhr], "401 json"),
            (43, vec![xhr], "401 json"),
            (25, vec![], login),
            (41, vec![], login),
            (42, vec![], "302 http://stand-in/dhis-web-login/"),
            (43, vec![], "302 http://stand-in/login/"),
            (36, vec![("authorization", "ApiToken d2pat_good")], login),
            (37, vec![("authorization", "ApiToken d2pat_good")], "admin 1"),
            (42, vec![("authorization", "ApiToken d2pat_good")], "admin 0"),
            (41, vec![("authorization", "ApiToken d2pat_bad")], "401 json"),
            (42, vec![("authorization", "ApiToken d2pat_bad")], "400 json"),
            (40, vec![("authorization", "Bearer jwt")], "admin 1"),
            (40, vec![("authorization", "Bearer other")], "401 json"),
        ];
        for (minor, headers, expected) in table {
            let mut headers = headers.clone();
            headers.push(("host", "stand-in"));
            let verdict = door().check(&request(&headers), &Dialect::of(*minor), "");
            assert_eq!(&outcome(&verdict), expected, "2.{minor} {headers:?}");
        }
    }

    #[test]
    fn a_password_may_hold_colons_and_letters_of_any_script() {
        let verdict =
            door().check(&request(&[("authorization", &basic("löw", "pässword:with:colons"))]), &Dialect::of(40), "");
        assert_eq!(outcome(&verdict), "löw 1");
        for (name, minor) in [("gone", 39), ("gone", 41), ("twice", 40)] {
            let verdict = door().check(&request(&[("authorization", &basic(name, "x"))]), &Dialect::of(minor), "");
            assert_eq!(outcome(&verdict), "401 json", "{name}");
        }
    }

    #[test]
    fn a_session_spares_the_password_check_until_it_is_lost() {
        let mut door = door();
        door.password_check = Duration::from_millis(80);
        let dialect = Dialect::of(40);
        let good = basic("admin", "district");
        let Verdict::Known(caller) = door.check(&request(&[("authorization", &good)]), &dialect, "") else { panic!() };
        assert_eq!(caller.thinks, Duration::from_millis(80));
        let cookie = caller.cookies[0].split(';').next().unwrap().to_owned();
        let again = request(&[("authorization", &good), ("cookie", &cookie)]);
        let Verdict::Known(caller) = door.check(&again, &dialect, "") else { panic!() };
        assert_eq!((caller.thinks, caller.cookies.len()), (Duration::ZERO, 0));
        let Verdict::Known(_) = door.check(&request(&[("cookie", &cookie)]), &dialect, "") else { panic!() };
        door.session_timeout = Duration::ZERO;
        assert!(
            outcome(&door.check(&request(&[("cookie", &cookie)]), &dialect, "")).starts_with("302"),
            "idle too long"
        );
        door.session_timeout = Duration::from_hours(1);
        door.oust("admin");
        assert!(outcome(&door.check(&again, &dialect, "")).ends_with("logout.action"));
        door.lose_sessions();
        let Verdict::Known(caller) = door.check(&again, &dialect, "") else { panic!() };
        assert_eq!(caller.cookies.len(), 1);
        assert!(outcome(&door.check(&request(&[("cookie", &cookie)]), &dialect, "")).starts_with("302"));
    }

    #[test]
    fn five_failures_lock_an_account_where_locking_is_on_and_four_do_in_2_43() {
        for (minor, until) in [(40, 5), (43, 4)] {
            let mut door = door();
            door.locks = true;
            for _ in 0..until {
                assert_eq!(door.check_password("admin", "wrong", &Dialect::of(minor)), Err("Unauthorized"));
            }
            assert_eq!(door.check_password("admin", "district", &Dialect::of(minor)), Err("Account locked"));
        }
        let mut open = door();
        for _ in 0..9 {
            assert_eq!(open.check_password("admin", "wrong", &Dialect::of(40)), Err("Unauthorized"));
        }
        assert_eq!(open.check_password("admin", "district", &Dialect::of(40)), Ok(0));
    }
}
