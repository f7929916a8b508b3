//! Recorded responses of real servers, asked for through our client: how every exchange is read, and what it means for a harvest.
//!
//! The recordings lie beside the project, in `../shared/recorded`; `DHIS2_RECORDED` names another place. A small server sends
//! each recorded answer byte for byte, and the client asks for it by the recorded path. Where there are no recordings the
//! tests say so and are skipped; with `CI=true` they fail.
//!
//! The table (a snapshot) has one line per exchange. [`TELLING`] repeats in plain Rust what must not change with it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use dhis2::{Client, Error, ErrorKind, ImportSummary, Pager, split::SplitLimits};
use futures_util::future::LocalBoxFuture;
use harvester_actors::failure::FailureClass;
use serde::Deserialize;
use serde_json::Value;

use super::classify::{Contact, classify};

/// The body of an answer that the client takes whole.
const BODY_BYTES_MAX: usize = 16 << 20;
/// What the table shows of a text.
const TEXT_CHARS_MAX: usize = 80;

/// One recorded exchange.
struct Exchange {
    /// `2.42/dv-one`.
    name: String,
    /// Method, of which the client knows only GET.
    method: String,
    /// Path and query as recorded.
    path: String,
    /// Whether JSON was asked for.
    wants_json: bool,
    /// Status line and headers as recorded.
    head: String,
    /// Body as recorded.
    body: Vec<u8>,
    /// The recording holds only the beginning of the body.
    is_cut: bool,
}

impl Exchange {
    /// Reads a recording: the request's lines with `> `, the answer's head, an empty line, its body.
    fn read(name: String, bytes: &[u8]) -> Exchange {
        let mut rest = bytes;
        let mut line = || {
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
            let line = String::from_utf8(rest[..end].to_vec()).unwrap();
            rest = &rest[end + 1..];
            line
        };
        let (mut request, mut head) = (Vec::new(), String::new());
        let mut is_cut = false;
        loop {
            let line = line();
            if let Some(asked) = line.strip_prefix("> ") {
                request.push(asked.to_owned());
            } else if line.is_empty() {
                break;
            } else if line.starts_with("X-Recorded-Cut") {
                is_cut = true;
            } else {
                head += &format!("{line}\r\n");
            }
        }
        let (method, path) = request[0].split_once(' ').unwrap();
        let accepted = request.iter().find_map(|line| line.strip_prefix("Accept: "));
        Exchange {
            name,
            method: method.to_owned(),
            path: path.to_owned(),
            wants_json: accepted.is_none_or(|types| types == "application/json"),
            head,
            body: rest.to_vec(),
            is_cut,
        }
    }

    fn status(&self) -> u16 {
        self.head.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// The answer as it went over the wire: chunks, where there were chunks, are made again.
    fn on_the_wire(&self) -> Vec<u8> {
        let mut all = format!("{}\r\n", self.head).into_bytes();
        if self.head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            for piece in self.body.chunks(8192) {
                all.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                all.extend_from_slice(piece);
                all.extend_from_slice(b"\r\n");
            }
            all.extend_from_slice(b"0\r\n\r\n");
        } else {
            all.extend_from_slice(&self.body);
        }
        all
    }

    /// What our client asks for: the recorded path, where it is one of the Web API.
    fn asked(&self) -> &str {
        if self.path.starts_with("/api/") { &self.path } else { "/api/elsewhere" }
    }
}

/// Where the recordings are.
fn folder() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/recorded");
    std::env::var_os("DHIS2_RECORDED").map_or(beside, PathBuf::from)
}

/// All recordings by name; none where they are missing.
fn recordings() -> Option<BTreeMap<String, Exchange>> {
    let folder = folder();
    let mut found = BTreeMap::new();
    for version in fs::read_dir(&folder).into_iter().flatten() {
        let version = version.unwrap().path();
        for file in fs::read_dir(&version).into_iter().flatten() {
            let file = file.unwrap().path();
            if file.extension().is_some_and(|extension| extension == "http") {
                let stem = |path: &Path| path.with_extension("").file_name().unwrap().to_str().unwrap().to_owned();
                let name = format!("{}/{}", version.file_name().unwrap().to_str().unwrap(), stem(&file));
                found.insert(name.clone(), Exchange::read(name, &fs::read(&file).unwrap()));
            }
        }
    }
    if found.is_empty() {
        let text =
            format!("NO RECORDED ANSWERS in {}: this test is skipped (DHIS2_RECORDED names them)", folder.display());
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{text}");
        // Past the test runner's capture: a proof that did not happen is said aloud.
        let _ = fs::write("/dev/stderr", format!("{text}\n"));
        return None;
    }
    Some(found)
}

/// Serves every recording below a context path of its own, `/<position>`; returns the port.
fn serve(exchanges: Vec<(String, Vec<u8>)>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let exchanges = Arc::new(exchanges);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let exchanges = Arc::clone(&exchanges);
            thread::spawn(move || answer(stream.unwrap(), &exchanges));
        }
    });
    port
}

/// Answers one request and closes, as a server does that says no more.
fn answer(mut stream: TcpStream, exchanges: &[(String, Vec<u8>)]) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap();
    let (position, path) = target[1..].split_once('/').unwrap();
    let (asked, answer) = &exchanges[position.parse::<usize>().unwrap()];
    // What was recorded is what our client asks for: its encoding changes nothing. (No answer fails the test.)
    let plain = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    assert_eq!(plain(path), plain(asked.trim_start_matches('/')), "the client asks for something else");
    let _ = stream.write_all(answer);
}

/// What became of one exchange in our hands.
struct Read {
    /// What it means once the server has answered before, and what went wrong on the wire; none for a success.
    failure: Option<(FailureClass, ErrorKind)>,
    /// The server could not run the query that it made of the request.
    query_error: bool,
    /// The line of the table.
    line: String,
}

/// Asks for one exchange and reads the answer as its kind is read.
async fn read(exchange: &Exchange, url: &str) -> Read {
    let client = Client::builder(url).retries(0).build().unwrap();
    let mut line = format!("{} {}", exchange.name, exchange.status());
    if exchange.method != "GET" {
        let _ = write!(line, " {}", exchange.method);
    }
    if exchange.is_cut {
        line += " cut";
    }
    if exchange.method != "GET"
        && let Some(summary) = client.import_summary(&exchange.body)
    {
        let _ = write!(line, " | {}", counts(&summary));
    }
    let asked = client.get(exchange.asked());
    let body = if exchange.path == "/api/system/ping" {
        client.ping().await.map(|()| None)
    } else if exchange.wants_json {
        asked.json::<Value>().await.map(Some)
    } else {
        let bytes = asked.raw().bytes(BODY_BYTES_MAX).await;
        bytes.map(|bytes| {
            assert_eq!(bytes, exchange.body, "{}", exchange.name);
            None
        })
    };
    match body {
        Ok(document) => {
            line += " | ok";
            match document {
                Some(document) => line += &success(&client, exchange, &document).await,
                None => {
                    let _ = write!(line, " | {} bytes", exchange.body.len());
                }
            }
            Read { failure: None, query_error: false, line }
        }
        Err(error) => {
            line += &failure(&error, url);
            let class = classify(&error, Contact::Later).class;
            let query_error = error.server_message().is_some_and(dhis2::ServerMessage::is_query_error);
            Read { failure: Some((class, error.kind())), query_error, line }
        }
    }
}

/// What a success says: rows and pages.
async fn success(client: &Client, exchange: &Exchange, document: &Value) -> String {
    if exchange.method != "GET" {
        return String::new();
    }
    let Some(array) = array_of(document) else { return String::new() };
    let limits = SplitLimits { any_value: true, envelope_bytes_max: 4 << 20, ..SplitLimits::default() };
    let path: Vec<&str> = array.iter().map(String::as_str).collect();
    let rows = client.get(exchange.asked()).rows(&path, limits).await.unwrap();
    let mut seen = 0;
    let envelope = rows
        .for_each(|_| {
            seen += 1;
            Ok(())
        })
        .await
        .unwrap();
    assert!(envelope.found_array(), "{}", exchange.name);
    assert_eq!((envelope.rows(), envelope.unfit_rows()), (seen, 0), "{}", exchange.name);
    let in_document = array.iter().fold(document, |value, key| &value[key.as_str()]).as_array().unwrap().len();
    assert_eq!(seen, in_document as u64, "{}: the splitter sees what a parser of the whole sees", exchange.name);
    let name = if array.is_empty() { "[]".to_owned() } else { array.join(".") };
    let pager = if array.is_empty() { None } else { pager(envelope.text()) };
    format!(" | {name} {seen}{}", pager.unwrap_or_default())
}

/// The pager of an envelope, where there is one; beside the array, as tracker has it until 2.40, or in a member.
fn pager(envelope: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Paged {
        pager: Option<Pager>,
    }
    let inside = serde_json::from_slice::<Paged>(envelope).unwrap().pager;
    let beside = || serde_json::from_slice::<Pager>(envelope).ok().filter(|pager| pager.page.is_some());
    let pager = inside.or_else(beside)?;
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let (page, pages, size) = (number(pager.page), number(pager.page_count), number(pager.page_size));
    let place = if inside.is_some() { "" } else { ", beside" };
    Some(format!(" | page {page} of {pages}, {size} each, total {}{place}", number(pager.total)))
}

/// Where the rows of a list are: keys from the outside in. None for what is no list.
fn array_of(document: &Value) -> Option<Vec<String>> {
    let members = match document {
        Value::Array(_) => return Some(Vec::new()),
        Value::Object(members) => members,
        _ => return None,
    };
    if document["listGrid"]["rows"].is_array() {
        return Some(vec!["listGrid".to_owned(), "rows".to_owned()]);
    }
    let arrays = || members.iter().filter(|(name, value)| value.is_array() && *name != "headers");
    let is_list = members.contains_key("pager") || arrays().count() == 1;
    is_list.then(|| arrays().next()).flatten().map(|(name, _)| vec![name.clone()])
}

fn counts(summary: &ImportSummary) -> String {
    let ImportSummary { status, created, updated, ignored, deleted, conflict_count, conflicts, .. } = summary;
    let codes: Vec<&str> = conflicts.iter().filter_map(|conflict| conflict.error_code.as_deref()).collect();
    let status = status.as_deref().unwrap_or("-");
    let mut text = format!("{status} +{created} ~{updated} ={ignored} -{deleted}");
    if *conflict_count > 0 {
        let _ = write!(text, ", {conflict_count} conflicts {}", codes.join(" "));
    }
    text
}

/// What a failure says: class, kind, what is different at the first contact, marks, the server's words.
fn failure(error: &Error, url: &str) -> String {
    let later = classify(error, Contact::Later);
    let first = classify(error, Contact::First);
    let mut text = format!(" | {} {:?}", later.class.as_str(), error.kind());
    if first.class != later.class {
        let _ = write!(text, ", first {}", first.class.as_str());
    }
    if later.weight != harvester_actors::failure::Weight::Unsaid {
        text += ", heavy if repeated";
    }
    let said = error.server_message();
    if said.is_some_and(dhis2::ServerMessage::is_query_error) {
        text += ", query error";
    }
    let conflicts = said.map_or(0, |said| said.conflicts.len());
    if conflicts > 0 {
        let _ = write!(text, ", {conflicts} conflicts");
    }
    let detail = error.to_string();
    let detail = detail.split(" (GET ").next().unwrap_or_default();
    // Its port is another each time.
    let detail = detail.replace(url.rsplit_once('/').map_or(url, |(origin, _)| origin), "http://here");
    let detail: String = detail.chars().take(TEXT_CHARS_MAX).collect();
    let _ = write!(text, " | {}", detail.trim_end());
    text
}

/// Asks for all of `names`, or for everything.
async fn read_all(exchanges: &BTreeMap<String, Exchange>) -> BTreeMap<String, Read> {
    let served = exchanges.values().map(|one| (one.asked().to_owned(), one.on_the_wire())).collect();
    let port = serve(served);
    let mut all = BTreeMap::new();
    for (position, exchange) in exchanges.values().enumerate() {
        all.insert(exchange.name.clone(), read(exchange, &format!("http://127.0.0.1:{port}/{position}")).await);
    }
    all
}

#[actix_rt::test]
async fn every_recorded_exchange_is_read_and_classed_as_the_table_says() {
    let Some(exchanges) = recordings() else { return };
    let read = read_all(&exchanges).await;
    let table: Vec<&str> = read.values().map(|read| read.line.as_str()).collect();
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_snapshot_path("../../tests/snapshots");
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("recorded_exchanges", table.join("\n")));
}

/// Class, kind, and whether the server could not run its own query; none for a success.
type Telling = Option<(FailureClass, ErrorKind, bool)>;

/// The most telling exchanges: the class once the server has answered, what went wrong on the wire, and whether the server
/// could not run its own query. None for a success.
#[rustfmt::skip]
const TELLING: [(&str, Telling); 38] = {
    use FailureClass::{Denied, Forbidden, Garbled, Rejected, TooHeavy, Transient};
    [
        ("2.40/system-ping", None),
        ("2.43/system-ping", None),
        ("2.40/ping", Some((Garbled, ErrorKind::EmptyBody, false))),
        ("2.43/ping-anonymous", Some((Garbled, ErrorKind::EmptyBody, false))),
        ("2.40/auth-wrong-json", Some((Denied, ErrorKind::Auth, false))),
        ("2.40/auth-bad-token", Some((Denied, ErrorKind::Auth, false))),
        ("2.42/auth-bad-token", Some((Denied, ErrorKind::Auth, false))),
        ("2.43/auth-bad-token", Some((Denied, ErrorKind::Auth, false))),
        ("2.40/auth-bad-bearer", Some((Denied, ErrorKind::Auth, false))),
        ("2.40/auth-none-noxhr", Some((Denied, ErrorKind::Auth, false))),
        ("2.43/auth-none-noxhr", Some((Denied, ErrorKind::Auth, false))),
        ("2.40/root-page", Some((Garbled, ErrorKind::Redirect, false))),
        ("2.42/dv-one", None),
        ("2.42/dv-empty", None),
        ("2.42/dv-half-outside", Some((Garbled, ErrorKind::EmptyBody, false))),
        ("2.43/dv-half-outside", Some((Rejected, ErrorKind::Status, false))),
        ("2.40/dv-url-8k", Some((TooHeavy, ErrorKind::Status, false))),
        ("2.42/dv-url-8k", Some((TooHeavy, ErrorKind::Status, false))),
        ("2.43/dv-url-8k", Some((TooHeavy, ErrorKind::Status, false))),
        ("2.43/tracker-events-no-scope", Some((Rejected, ErrorKind::Status, false))),
        ("2.42/accept-xml", Some((Rejected, ErrorKind::Status, false))),
        ("2.42/method-not-allowed", Some((Rejected, ErrorKind::Status, false))),
        ("2.40/not-found-path", Some((Rejected, ErrorKind::Status, false))),
        ("2.42/not-found-path", Some((Transient, ErrorKind::Status, false))),
        ("2.42/not-found-object", Some((Rejected, ErrorKind::Status, false))),
        ("2.40/tracker-enrollments-program-half", Some((Forbidden, ErrorKind::Status, false))),
        ("2.42/analytics-half", Some((Rejected, ErrorKind::Status, false))),
        ("2.43/analytics-events-query", Some((Transient, ErrorKind::Status, false))),
        ("2.40/tracker-trackedEntities-trackedEntityType-deleted", Some((Rejected, ErrorKind::Status, true))),
        ("2.42/tracker-trackedEntities-trackedEntityType-deleted", Some((Rejected, ErrorKind::Status, true))),
        ("2.42/tracker-enrollments-program-order", Some((Rejected, ErrorKind::Status, true))),
        ("2.40/tracker-enrollments-program-total", Some((Rejected, ErrorKind::Status, true))),
        ("2.40/tracker-enrollments-program-enrolled", Some((Rejected, ErrorKind::Status, true))),
        ("2.43/sv-criteria-bad", Some((Rejected, ErrorKind::Status, true))),
        ("2.40/list-filter-bad-property", Some((Rejected, ErrorKind::Status, false))),
        ("2.43/import-datavalues-conflicts", Some((Transient, ErrorKind::Status, false))),
        // Without a length nobody can tell whether it is whole (the recorder asked with `Connection: close`).
        ("2.40/import-datavalues-0", Some((Garbled, ErrorKind::UnknownLength, false))),
        // The recording ends in the middle of the JSON.
        ("2.40/dv-lastupdated", Some((Garbled, ErrorKind::Garbled, false))),
    ]
};

#[actix_rt::test]
async fn the_most_telling_exchanges_have_the_class_that_is_written_here() {
    let Some(mut exchanges) = recordings() else { return };
    exchanges.retain(|name, _| TELLING.iter().any(|(telling, _)| telling == name));
    let read = read_all(&exchanges).await;
    let mut wrong = Vec::new();
    for (name, expected) in TELLING {
        let read = &read[name];
        let found = read.failure.map(|(class, kind)| (class, kind, read.query_error));
        if found != expected {
            wrong.push(format!("{name}: {found:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Responses of real servers, and of proxies before them, that were seen but are not among the recordings.
#[rustfmt::skip]
const SAID: [(&str, &str, &str, Option<FailureClass>); 45] = {
    use FailureClass::{Denied, Forbidden, Garbled, Rejected, TooHeavy, Transient};
    const JSON: &str = "Content-Type: application/json";
    const HTML: &str = "Content-Type: text/html";
    [
        // Database connections cut under the application.
        ("409", JSON, r#"{"status":"ERROR","message":"FATAL: terminating connection due to administrator command"}"#, Some(Transient)),
        ("409", JSON, r#"{"status":"ERROR","message":"This connection has been closed."}"#, Some(Transient)),
        ("409", JSON, r#"{"status":"ERROR","message":"Query failed, likely because the query timed out"}"#, Some(Transient)),
        ("409", JSON, r#"{"message":"Query failed","errorCode":"E7131"}"#, Some(Transient)),
        ("409", JSON, r#"{"message":"Program does not exist yet","errorCode":"E7136"}"#, Some(Transient)),
        ("409", JSON, r#"{"message":"Query failed (SqlState: 42P01)","errorCode":"E7144"}"#, Some(Transient)),
        ("409", JSON, r#"{"message":"Query failed (SqlState: 57P01)"}"#, Some(Transient)),
        ("409", JSON, r#"{"message":"could not execute query; SQL [n/a]"}"#, Some(Transient)),
        ("409", JSON, r#"{"message":"Could not open JPA EntityManager for transaction"}"#, Some(Transient)),
        ("409", JSON, r#"{"message":"ERROR: deadlock detected"}"#, Some(Transient)),
        ("409", JSON, r#"{"message":"canceling statement due to lock timeout"}"#, Some(Transient)),
        ("409", JSON, r#"{"message":"row is locked by another transaction"}"#, Some(Transient)),
        ("500", JSON, r#"{"status":"ERROR","message":"An unexpected error has occured. Please contact your system administrator"}"#, Some(Transient)),
        ("500", JSON, r#"{"status":"ERROR","message":"JDBC begin transaction failed: "}"#, Some(Transient)),
        ("500", HTML, "<html><title>HTTP Status 500</title>", Some(Transient)),
        // The query is wrong, and stays so.
        ("409", JSON, r#"{"message":"Query failed because of a syntax error (SqlState: 42601)","errorCode":"E7145"}"#, Some(Rejected)),
        ("409", JSON, r#"{"message":"bad grammar; SqlState: 42703"}"#, Some(Rejected)),
        ("409", JSON, r#"{"message":"Could not find OrganisationUnit: `XXXXXXXXXXX`, linked to Event."}"#, Some(Rejected)),
        ("409", JSON, r#"{"message":"could not resolve property: nosuch of: org.hisp.dhis.program.Program"}"#, Some(Rejected)),
        ("409", JSON, r#"{"message":"Category option is blocked, o'clock is not a unit"}"#, Some(Rejected)),
        ("409", JSON, r#"{"message":"too many","errorCode":"E7128"}"#, Some(TooHeavy)),
        ("409", JSON, r#"{"message":"User is not allowed to view org unit","errorCode":"E7120"}"#, Some(Rejected)),
        // Who we are.
        ("400", "WWW-Authenticate: ApiToken", "", Some(Denied)),
        ("401", "WWW-Authenticate: Basic realm=\"x\"", "", Some(Denied)),
        ("302", "Location: /dhis-web-commons-security/logout.action", "", Some(Denied)),
        ("302", "Location: https://sso.example.org/login?next=%2Fapi", "", Some(Denied)),
        ("200", HTML, "<form action=\"/dhis-web-commons-security/login.action\"><input type=\"password\">", Some(Denied)),
        ("403", JSON, r#"{"message":"Access denied","errorCode":"E1006"}"#, Some(Forbidden)),
        ("403", HTML, "<html>", Some(Forbidden)),
        ("407", HTML, "<html>", Some(Denied)),
        // What stands before the server.
        ("404", HTML, "<html>", Some(Transient)),
        ("413", HTML, "<html>", Some(TooHeavy)),
        ("414", HTML, "<html>", Some(TooHeavy)),
        ("431", HTML, "<html>", Some(TooHeavy)),
        ("400", HTML, "<html><title>HTTP Status 400 \u{2013} Bad Request</title>", Some(Rejected)),
        ("408", HTML, "<html>", Some(Transient)),
        ("425", HTML, "<html>", Some(Transient)),
        ("429", HTML, "<html>", Some(Transient)),
        ("502", HTML, "<html>", Some(Transient)),
        ("503", HTML, "<html>", Some(Transient)),
        ("504", HTML, "<html>", Some(Transient)),
        // Successes that are none.
        ("200", HTML, "<html><title>Back soon</title>", Some(Garbled)),
        ("206", JSON, "[]", Some(Garbled)),
        ("204", JSON, "", Some(Garbled)),
        ("200", JSON, "[]", None),
    ]
};

#[actix_rt::test]
async fn what_servers_and_proxies_say_has_the_class_that_is_written_here() {
    let exchanges: BTreeMap<_, _> = SAID
        .iter()
        .enumerate()
        .map(|(position, (status, header, body, _))| {
            let name = format!("{position:02}");
            let length = if *status == "204" { String::new() } else { format!("Content-Length: {}\n", body.len()) };
            let text = format!("> GET /api/x\nHTTP/1.1 {status} \n{header}\n{length}\n{body}");
            (name.clone(), Exchange::read(name, text.as_bytes()))
        })
        .collect();
    let read = read_all(&exchanges).await;
    let mut wrong = Vec::new();
    for ((status, _, body, expected), read) in SAID.iter().zip(read.values()) {
        let found = read.failure.map(|(class, _)| class);
        if found != *expected {
            wrong.push(format!("{status} {body}: {found:?}, not {expected:?} ({})", read.line));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[actix_rt::test]
async fn a_gate_that_is_closed_is_no_outage() {
    struct Closed;
    impl dhis2::gate::Gate for Closed {
        fn permit(&self) -> LocalBoxFuture<'_, Result<Box<dyn dhis2::gate::Permit>, dhis2::gate::GateClosed>> {
            Box::pin(async { Err(dhis2::gate::GateClosed) })
        }
    }
    let client = Client::builder("http://127.0.0.1:9").gate(Arc::new(Closed)).build().unwrap();
    let error = client.ping().await.unwrap_err();
    assert_eq!(classify(&error, Contact::Later).class, FailureClass::Bug);
}
