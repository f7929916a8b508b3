//! Login, number of attempts, and the origin of credentials: over a real socket.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_core::future::LocalBoxFuture;
use futures_util::future::join_all;

use crate::{
    Client, Credentials, Error, ErrorKind,
    gate::{Gate, GateClosed, Permit},
    testing::{CountingGate, Heard, Server, Then, answer, json},
};

const BASIC: &str = "Basic cmVhZGVyOmNhbmFyeS1wYXNzd29yZA==";
const UNAUTHORIZED: &str =
    r#"{"httpStatus":"Unauthorized","httpStatusCode":401,"status":"ERROR","message":"Unauthorized"}"#;

fn client(server: &Server) -> Client {
    let credentials = Credentials::Basic { username: "reader".into(), password: "canary-password".into() };
    Client::builder(server.url()).credentials(credentials).retries(3).build().unwrap()
}

async fn read(client: &Client) -> Result<(), Error> {
    client.get("x").json::<serde_json::Value>().await.map(|_| ())
}

fn unauthorized() -> Vec<u8> {
    answer("401 Unauthorized", &["Content-Type: application/json"], UNAUTHORIZED)
}

fn with_cookie(cookie: &str) -> Vec<u8> {
    answer("200 OK", &["Content-Type: application/json", &format!("Set-Cookie: {cookie}; Path=/; HttpOnly")], "{}")
}

fn cookies(server: &Server) -> Vec<Option<String>> {
    server.heard().iter().map(|heard: &Heard| heard.header("cookie").map(str::to_owned)).collect()
}

fn list(cookies: &[Option<&str>]) -> Vec<Option<String>> {
    cookies.iter().map(|cookie| cookie.map(str::to_owned)).collect()
}

#[actix_rt::test]
async fn the_session_cookie_is_sent_with_the_credentials_and_follows_the_server() {
    let server = Server::start(|heard, out| {
        match heard.number {
            0 => out.write(with_cookie("JSESSIONID=A")),
            1 => out.write(json("{}")),
            2 => out.write(answer("404 Not Found", &["Set-Cookie: other=1", "Set-Cookie: JSESSIONID=B"], "")),
            3 => out.write(with_cookie("JSESSIONID=; Max-Age=0")),
            _ => out.write(json("{}")),
        }
        Then::Keep
    });
    let client = client(&server);
    for _ in 0..5 {
        let _ = read(&client).await;
    }
    let (a, b) = (Some("JSESSIONID=A"), Some("JSESSIONID=B"));
    assert_eq!(cookies(&server), list(&[None, a, a, b, None]));
    assert!(server.heard().iter().all(|heard| heard.header("authorization") == Some(BASIC)));
}

#[actix_rt::test]
async fn an_ended_session_is_followed_by_one_login_without_its_cookie() {
    let ends = [
        unauthorized(),
        answer("302 Found", &["Location: /dhis-web-commons/security/login.action"], ""),
        answer("302 Found", &["Location: http://x/dhis-web-commons-security/logout.action"], ""),
        answer("302 Found", &["Location: /login/"], ""),
        answer("200 OK", &["Content-Type: text/html"], "<input type=password>"),
    ];
    for end in ends {
        let server = Server::start(move |heard, out| {
            match heard.number {
                0 => out.write(with_cookie("JSESSIONID=A")),
                1 => out.write(&end),
                _ => out.write(with_cookie("JSESSIONID=B")),
            }
            Then::Keep
        });
        let client = client(&server);
        for _ in 0..3 {
            read(&client).await.unwrap();
        }
        assert_eq!(cookies(&server), list(&[None, Some("JSESSIONID=A"), None, Some("JSESSIONID=B")]));
        assert_eq!(client.requests_sent(), 4);
    }
}

#[actix_rt::test]
async fn refused_credentials_are_tried_once_and_then_never_again() {
    let refusals = [
        unauthorized(),
        answer("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"DHIS2\""], "<html>"),
        answer("302 Found", &["Location: /dhis-web-login"], ""),
        answer("200 OK", &["Content-Type: text/html"], "<title>Login</title>"),
    ];
    for refusal in refusals {
        let server = Server::saying(refusal);
        let client = client(&server);
        for _ in 0..3 {
            let error = read(&client).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Auth);
            assert!(error.to_string().contains("does not accept the credentials"), "{error}");
        }
        assert_eq!((server.heard().len(), client.requests_sent()), (1, 1));
    }
}

#[actix_rt::test]
async fn a_refusal_with_a_cookie_is_repeated_once_without_it_and_then_final() {
    let server = Server::start(|heard, out| {
        out.write(if heard.number == 0 { with_cookie("JSESSIONID=A") } else { unauthorized() });
        Then::Keep
    });
    let client = client(&server);
    read(&client).await.unwrap();
    for _ in 0..3 {
        let error = read(&client).await.unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::Auth, Some(401)));
    }
    assert_eq!(cookies(&server), list(&[None, Some("JSESSIONID=A"), None]));
}

#[actix_rt::test]
async fn a_cookie_that_comes_with_a_refusal_is_not_kept_and_earns_no_third_try() {
    let server = Server::start(|heard, out| {
        out.write(match heard.number {
            0 => with_cookie("JSESSIONID=A"),
            number => {
                let cookie = format!("Set-Cookie: JSESSIONID=anonymous{number}");
                answer("401 Unauthorized", &["Content-Type: application/json", &cookie], UNAUTHORIZED)
            }
        });
        Then::Keep
    });
    let client = client(&server);
    read(&client).await.unwrap();
    assert_eq!(read(&client).await.unwrap_err().kind(), ErrorKind::Auth);
    assert_eq!(cookies(&server), list(&[None, Some("JSESSIONID=A"), None]));
}

#[actix_rt::test]
async fn sixteen_workers_with_a_wrong_password_make_one_failed_login() {
    let server = Server::start(|_, out| {
        // Long enough for all of them to have come.
        out.pause(30);
        out.write(unauthorized());
        Then::Keep
    });
    let client = client(&server);
    let results = join_all((0..16).map(|_| read(&client))).await;
    assert!(results.iter().all(|result| result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Auth)));
    assert_eq!(server.heard().len(), 1);
}

#[actix_rt::test]
async fn sixteen_workers_with_the_right_password_open_one_session() {
    let server = Server::start(|heard, out| {
        out.pause(5);
        out.write(if heard.header("cookie").is_some() {
            json("{}")
        } else {
            with_cookie(&format!("JSESSIONID=S{}", heard.number))
        });
        Then::Keep
    });
    let client = client(&server);
    for result in join_all((0..16).map(|_| read(&client))).await {
        result.unwrap();
    }
    let cookies = cookies(&server);
    assert_eq!(cookies.len(), 16);
    assert_eq!(cookies[0], None);
    assert!(cookies[1..].iter().all(|cookie| cookie.as_deref() == Some("JSESSIONID=S0")), "{cookies:?}");
}

/// Waits until so many requests have arrived; the answers then overlap whatever the machine is doing.
fn wait_for(arrived: &AtomicUsize, wanted: usize) {
    arrived.fetch_add(1, SeqCst);
    while arrived.load(SeqCst) < wanted {
        std::thread::yield_now();
    }
}

#[actix_rt::test]
async fn a_password_changed_while_eight_are_at_work_makes_one_failed_login() {
    let changed = Arc::new(AtomicBool::new(false));
    let logins = Arc::new(AtomicUsize::new(0));
    let (seen_changed, seen_logins) = (Arc::clone(&changed), Arc::clone(&logins));
    let at_work = AtomicUsize::new(0);
    let server = Server::start(move |heard, out| {
        if !seen_changed.load(SeqCst) {
            out.write(with_cookie("JSESSIONID=A"));
        } else {
            if heard.header("cookie").is_none() {
                seen_logins.fetch_add(1, SeqCst);
            } else {
                wait_for(&at_work, 8);
            }
            // Some servers open a session for the refused.
            let cookie = "Set-Cookie: JSESSIONID=anonymous";
            out.write(answer("401 Unauthorized", &["Content-Type: application/json", cookie], UNAUTHORIZED));
        }
        Then::Keep
    });
    let client = client(&server);
    read(&client).await.unwrap();
    changed.store(true, SeqCst);
    let results = join_all((0..8).map(|_| read(&client))).await;
    assert!(results.iter().all(|result| result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Auth)));
    assert_eq!(logins.load(SeqCst), 1);
    assert_eq!(server.heard().len(), 1 + 8 + 1);
}

#[actix_rt::test]
async fn a_session_that_ends_while_four_are_at_work_lets_each_come_back_once_without_a_cookie() {
    let at_work = AtomicUsize::new(0);
    let server = Server::start(move |heard, out| {
        out.write(match heard.header("cookie") {
            Some("JSESSIONID=S0") => {
                wait_for(&at_work, 4);
                unauthorized()
            }
            Some(_) => json("{}"),
            None => with_cookie(&format!("JSESSIONID=S{}", heard.number)),
        });
        Then::Keep
    });
    let client = client(&server);
    read(&client).await.unwrap();
    for result in join_all((0..4).map(|_| read(&client))).await {
        result.unwrap();
    }
    let (old, none) = (Some("JSESSIONID=S0"), None);
    assert_eq!(cookies(&server), list(&[none, old, old, old, old, none, none, none, none]));
}

#[actix_rt::test]
async fn an_outage_before_the_first_login_condemns_nobody() {
    let server = Server::start(|heard, out| {
        out.write(if heard.number < 2 { answer("503 Service Unavailable", &[], "") } else { json("{}") });
        Then::Keep
    });
    let client = client(&server).with_retries(0);
    assert_eq!(read(&client).await.unwrap_err().status(), Some(503));
    assert_eq!(read(&client).await.unwrap_err().status(), Some(503));
    read(&client).await.unwrap();
}

#[actix_rt::test]
async fn other_credentials_get_a_chance_of_their_own() {
    let server = Server::start(|heard, out| {
        let good = heard.header("authorization") == Some("ApiToken d2pat_good");
        out.write(if good { with_cookie("JSESSIONID=T") } else { unauthorized() });
        Then::Keep
    });
    let client = client(&server);
    assert_eq!(read(&client).await.unwrap_err().kind(), ErrorKind::Auth);
    let clone = client.clone();
    client.replace_credentials(&Credentials::Token("d2pat_good".into())).unwrap();
    read(&clone).await.unwrap();
    read(&client).await.unwrap();
    assert_eq!(cookies(&server), list(&[None, None, Some("JSESSIONID=T")]));
}

#[test]
fn threads_share_one_session() {
    let server = Server::start(|heard, out| {
        out.write(if heard.header("cookie").is_some() { json("{}") } else { with_cookie("JSESSIONID=A") });
        Then::Keep
    });
    let client = client(&server);
    for _ in 0..3 {
        let client = client.clone();
        std::thread::spawn(move || actix_rt::System::new().block_on(async move { read(&client).await.unwrap() }))
            .join()
            .unwrap();
    }
    let a = Some("JSESSIONID=A");
    assert_eq!(cookies(&server), list(&[None, a, a]));
    // Each thread has connections of its own.
    assert_eq!(server.connections(), 3);
}

#[actix_rt::test]
async fn a_forbidden_path_does_not_condemn_the_credentials() {
    let server = Server::start(|heard, out| {
        let body = r#"{"httpStatusCode":403,"status":"ERROR","message":"Access denied"}"#;
        out.write(if heard.number == 0 {
            answer("403 Forbidden", &["Content-Type: application/json"], body)
        } else {
            json("{}")
        });
        Then::Keep
    });
    let client = client(&server);
    let error = read(&client).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Status, Some(403)));
    read(&client).await.unwrap();
}

#[actix_rt::test]
async fn no_error_and_no_debug_output_shows_a_secret() {
    let location = "Location: http://127.0.0.1:1/api/x";
    let answers = [
        with_cookie("JSESSIONID=canary-cookie"),
        answer("409 Conflict", &[], "{\"message\":\"no\"}"),
        answer("302 Found", &[location], ""),
        json("{"),
        unauthorized(),
        unauthorized(),
    ];
    let server = Server::start(move |heard, out| {
        out.write(&answers[heard.number]);
        Then::Keep
    });
    let client = client(&server).with_retries(0);
    let mut shown = String::new();
    for _ in 0..6 {
        if let Err(error) = read(&client).await {
            shown += &format!(
                "{error} {error:?} {:?} {:?}",
                error.url(),
                std::error::Error::source(&error).map(ToString::to_string)
            );
        }
        shown += &format!("{client:?} {:?}", client.get("x"));
    }
    assert_eq!(server.heard().len(), 6);
    for secret in ["canary", BASIC.strip_prefix("Basic ").unwrap(), "Y2FuYXJ5"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    assert!(shown.contains("409"));
}

#[actix_rt::test]
async fn giving_up_a_login_on_trial_lets_the_next_one_try() {
    let server = Server::start(|heard, out| {
        if heard.number == 0 {
            return Then::Hang;
        }
        out.write(json("{}"));
        Then::Keep
    });
    let client = client(&server);
    let given_up = tokio::time::timeout(Duration::from_millis(50), read(&client)).await;
    assert!(given_up.is_err());
    read(&client).await.unwrap();
}

/// A gate that opens when it is told to.
struct Barred(tokio::sync::Notify, AtomicUsize);

impl Gate for Barred {
    fn permit(&self) -> LocalBoxFuture<'_, Result<Box<dyn Permit>, GateClosed>> {
        Box::pin(async {
            self.1.fetch_add(1, SeqCst);
            self.0.notified().await;
            CountingGate::default().permit().await
        })
    }
}

#[actix_rt::test]
async fn a_ping_goes_out_while_the_first_login_is_held_up_at_the_gate() {
    for refused in [false, true] {
        let server = Server::start(move |_, out| {
            out.write(if refused { unauthorized() } else { json("\"pong\"") });
            Then::Keep
        });
        let barred = Arc::new(Barred(tokio::sync::Notify::new(), AtomicUsize::new(0)));
        let behind_bars = client(&server).with_gate(barred.clone());
        let outside = behind_bars.with_gate(Arc::new(CountingGate::default()));
        let held_up = actix_rt::spawn(async move { read(&behind_bars).await });
        while barred.1.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let pong = tokio::time::timeout(Duration::from_secs(5), outside.ping()).await.unwrap();
        barred.0.notify_one();
        let held_up = held_up.await.unwrap();
        assert_eq!((pong.is_err(), held_up.is_err()), (refused, refused));
        assert_eq!(server.heard().len(), 2);
    }
}

#[actix_rt::test]
async fn a_401_to_a_ping_is_no_verdict_on_the_credentials() {
    let server = Server::start(|heard, out| {
        out.write(if heard.number == 0 { unauthorized() } else { json("1") });
        Then::Keep
    });
    let client = client(&server);
    let error = client.ping().await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Auth, Some(401)));
    read(&client).await.unwrap();
    assert_eq!(server.heard().len(), 2);
}

#[actix_rt::test]
async fn a_token_that_cannot_be_one_is_refused_with_400_and_tried_once() {
    for (header, kind) in [("WWW-Authenticate: ApiToken", ErrorKind::Auth), ("X-Other: ApiToken", ErrorKind::Status)] {
        let body = r#"{"status":"ERROR","message":"Checksum validation failed"}"#;
        let server = Server::saying(answer("400 Bad Request", &["Content-Type: application/json", header], body));
        let client = client(&server);
        let error = read(&client).await.unwrap_err();
        assert_eq!((error.kind(), error.status()), (kind, Some(400)));
        assert!(error.to_string().contains("Checksum validation failed"), "{error}");
        assert_eq!(read(&client).await.unwrap_err().kind(), kind);
        assert_eq!(server.heard().len(), if kind == ErrorKind::Auth { 1 } else { 2 });
    }
}

#[actix_rt::test]
async fn credentials_that_were_accepted_before_are_doubted_until_a_ping_is_answered() {
    let server = Server::start(|heard, out| {
        out.write(match heard.number {
            0 | 5 => json("1"),
            1 | 2 => unauthorized(),
            3 => answer("200 OK", &["Content-Type: text/plain"], "back soon"),
            4 => json("\"pong\""),
            _ => panic!("one request too many"),
        });
        Then::Keep
    });
    let client = client(&server);
    read(&client).await.unwrap();
    for sent in [2, 2] {
        let error = read(&client).await.unwrap_err();
        assert_eq!((error.kind(), error.status(), server.heard().len()), (ErrorKind::Auth, Some(401), sent));
    }
    // Only pings find out, and only one that is answered lifts it.
    assert_eq!(client.ping().await.unwrap_err().status(), Some(401));
    assert_eq!(client.ping().await.unwrap_err().kind(), ErrorKind::Garbled);
    assert!(read(&client).await.is_err());
    client.ping().await.unwrap();
    read(&client).await.unwrap();
    assert_eq!(server.heard().len(), 6);
}

#[actix_rt::test]
async fn credentials_that_were_never_accepted_are_not_even_tried_by_a_ping() {
    let server = Server::saying(unauthorized());
    let client = client(&server);
    assert!(read(&client).await.is_err());
    assert_eq!(client.ping().await.unwrap_err().kind(), ErrorKind::Auth);
    assert_eq!(server.heard().len(), 1);
}

/// Texts that a server should not send: the password, the whole header, what moves a terminal, and a lot of it.
fn indiscreet() -> String {
    let encoded = "canary%2Dpassword";
    format!("\u{1b}[31m canary-password {BASIC} {encoded} \u{202e}\u{9b}2J {}", "x".repeat(5000))
}

#[actix_rt::test]
async fn no_answer_makes_an_error_show_a_secret_or_move_a_terminal() {
    let json_text = serde_json::to_string(&indiscreet()).unwrap();
    let header_text: String = indiscreet().chars().filter(char::is_ascii).filter(|c| !c.is_control()).collect();
    let message = format!(
        r#"{{"status":{json_text},"message":{json_text},"errorCode":{json_text},"devMessage":{json_text},
        "response":{{"conflicts":[{{"object":{json_text},"value":{json_text},"errorCode":{json_text}}}]}}}}"#
    );
    let page = format!("<html><title>{}</title>", indiscreet());
    let as_json = "Content-Type: application/json";
    let as_html = "Content-Type: text/html";
    let location = format!("Location: /x/api/{}", header_text.replace(' ', "/"));
    let elsewhere = format!("Location: https://canary-password.example.org/api/{}", &header_text[..0]);
    let media = format!("Content-Type: {header_text}");
    let encoding = format!("Content-Encoding: {header_text}");
    let challenge = format!("WWW-Authenticate: {header_text}");
    let retry_after = format!("Retry-After: {header_text}");
    let answers = vec![
        answer("409 Conflict", &[as_json], &message),
        answer("401 Unauthorized", &[as_json, &challenge], &message),
        answer("400 Bad Request", &[as_json, &challenge], &message),
        answer("503 Service Unavailable", &[as_html, &retry_after], &page),
        answer("200 OK", &[as_html], &page),
        answer("302 Found", &[&location], ""),
        answer("302 Found", &[&elsewhere], ""),
        answer("200 OK", &[&media], "1"),
        answer("200 OK", &[as_json, &encoding], "1"),
        answer(&format!("418 {header_text}"), &[], ""),
    ];
    let count = answers.len();
    let server = Server::start(move |heard, out| {
        out.write(&answers[heard.number]);
        Then::Keep
    });
    for number in 0..count {
        // Another client each time: some of the answers end a login.
        let error = read(&client(&server).with_retries(0)).await.unwrap_err();
        let shown = format!("{error} {error:?} {:?}", error.server_message());
        for secret in ["canary-password", "canary%2Dpassword", "cmVhZGVyOmNhbmFyeS1wYXNzd29yZA"] {
            assert!(!shown.contains(secret), "{number}: {shown}");
        }
        assert!(!shown.chars().any(|c| c.is_control() || c == '\u{202e}'), "{number}: {shown:?}");
        let said = error.server_message().cloned().unwrap_or_default();
        let texts = [said.status, said.message, said.error_code, Some(error.to_string())];
        assert!(texts.iter().flatten().all(|text| text.chars().count() < 500), "{number}: {shown}");
    }
}

#[actix_rt::test]
async fn what_a_server_says_about_itself_shows_no_secret_and_moves_no_terminal() {
    let text = serde_json::to_string(&indiscreet()).unwrap();
    let info = format!(
        r#"{{"version":"2.40.1-canary-password\u001b[2J","revision":{text},"systemId":{text},"serverDate":{text},
        "serverTimeZoneId":{text},"calendar":{text},"systemName":{text},"lastAnalyticsTableSuccess":{text}}}"#
    );
    let me =
        format!(r#"{{"id":{text},"username":{text},"authorities":[{text}],"organisationUnits":[{{"id":{text}}}]}}"#);
    let schemas = format!(
        r#"{{"schemas":[{{"name":{text},"singular":{text},"plural":{text},"collectionName":{text},"klass":{text},"relativeApiEndpoint":{text}}}]}}"#
    );
    let answers = [json(&info), json(&me), json(&schemas), json(r#"{"version":"x canary-password\u001b[2J"}"#)];
    let server = Server::start(move |heard, out| {
        out.write(&answers[heard.number]);
        Then::Keep
    });
    let client = client(&server).with_retries(0);
    let info = client.system_info().await.unwrap();
    assert_eq!(info.version.raw(), "2.40.1-*** [2J");
    let mut shown = format!("{info:?} {}", info.version);
    shown += &format!("{:?} {:?}", client.me().await.unwrap(), client.schemas().await.unwrap());
    let error = client.system_info().await.unwrap_err();
    shown += &format!("{error} {error:?}");
    // Debug escapes what moves a terminal.
    for secret in ["canary-password", "canary%2Dpassword", "cmVhZGVyOmNhbmFyeS1wYXNzd29yZA", "\\u{1b}", "\\u{202e}"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    assert!(shown.len() < 20 * 400, "{}", shown.len());
}
