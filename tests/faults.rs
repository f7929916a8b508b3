use std::time::Duration;

use dhis2_stand_in::{
    Body, Envelope, Fault, FaultRule, Framing, Garble, GzipFault, Match, Page, Place as At, RetryAfter,
};

use crate::support::{Place, side_by_side, stand_in, truth};

const ROWS: u32 = 1_100;
const METADATA: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50";
/// Short enough for a test, long enough for a loaded machine.
const LIMITS: &str = "first_byte_timeout_s = 2\nstall_timeout_s = 2\noutage_s = 60";

/// Everything that may pass: healed, the run is complete and exact.
fn passing_faults() -> Vec<(&'static str, Fault)> {
    let status = |code, retry_after: Option<RetryAfter>, body| Fault::Status { code, retry_after, body };
    let cut = |framing, at| Fault::cut_in(framing, At::Fraction(at));
    let gzipped = |at| Fault::Cut { at: At::Fraction(at), framing: None, gzipped: true, reset: false };
    vec![
        ("429", Fault::status(429)),
        ("429 with seconds", status(429, Some("1".into()), Body::Html)),
        ("500", Fault::status(500)),
        ("502", Fault::status(502)),
        ("503", Fault::status(503)),
        ("503 with a date", status(503, Some(RetryAfter::DateIn(Duration::from_secs(1))), Body::Json)),
        ("504", Fault::status(504)),
        ("404 from the container", status(404, None, Body::Html)),
        ("409 of a database in trouble", status(409, None, Body::Message("could not obtain lock".into()))),
        ("closed before the response", Fault::Close),
        ("reset before the response", Fault::Reset),
        ("reset in the body", Fault::reset_after(700)),
        ("cut with a length", cut(Framing::Length, 0.5)),
        ("cut at the first byte", cut(Framing::Length, 0.0)),
        ("cut before the last byte", Fault::cut_in(Framing::Length, At::FromEnd(1))),
        ("cut in a chunk", cut(Framing::Chunked, 0.5)),
        ("cut before the last chunk", Fault::cut_in(Framing::Chunked, At::FromEnd(5))),
        ("cut without a length", cut(Framing::Close, 0.7)),
        ("cut gzip", gzipped(0.5)),
        ("cut gzip trailer", Fault::Cut { at: At::FromEnd(4), framing: None, gzipped: true, reset: false }),
        ("stalled before the head", Fault::Stall { at: None, lasting: None }),
        ("stalled in the body", Fault::stall(At::Fraction(0.5))),
        ("late", Fault::Delay(Duration::from_millis(700))),
        ("login page", Fault::Html200(Page::Proxy)),
        ("empty", Fault::Empty200),
        ("no length", Fault::Framing(Framing::Close)),
        ("control character", Fault::Garble(Garble::Control(At::Fraction(0.4)))),
        ("not UTF-8", Fault::Garble(Garble::InvalidUtf8)),
        ("broken off and closed", Fault::Garble(Garble::WrongJson)),
        ("gzip with a wrong checksum", Fault::Gzip(GzipFault::BadCrc)),
        ("gzip without a trailer", Fault::Gzip(GzipFault::NoTrailer)),
        ("gzip of many members", Fault::Gzip(GzipFault::MultiMember)),
        ("gzip that is none", Fault::Gzip(GzipFault::OverPlainText)),
        ("wrong content type", Fault::ContentType("text/csv".into())),
        ("rows under another name", Fault::Envelope(Envelope::Instances)),
        ("no pager", Fault::Envelope(Envelope::NoPager)),
        ("half of the rows", Fault::Envelope(Envelope::FewerRows)),
        ("another page size", Fault::Envelope(Envelope::OtherPageSize)),
        ("stale connection", Fault::StaleClose),
        ("lost sessions", Fault::LoseSessions),
        ("ousted session", Fault::Logout),
        ("refused for a while", Fault::Refuse(Some(Duration::from_millis(900)))),
    ]
}

#[test]
fn each_fault_at_the_third_the_seventh_and_every_tenth_request_changes_no_byte() {
    let truth = truth(&stand_in().org_units(ROWS).start().unwrap(), "organisationUnits");
    let mut cases = Vec::new();
    for when in [Match::nth(3), Match::nth(7), Match::every(10)] {
        cases.extend(passing_faults().into_iter().map(|(name, fault)| (name, fault, when)));
    }
    side_by_side(cases, 12, |(name, fault, when)| {
        let what = format!("{name} at {when:?}");
        // The first request of a connection cannot meet a stale one, and which request that is depends on the machine.
        let may_miss = fault == Fault::StaleClose && when != Match::every(10);
        let mut rule = FaultRule::on(when);
        if fault == Fault::Logout {
            // Without a session there is none to be ousted from: sent to a bare login it is a refusal, and final.
            rule = rule.and(|request| request.header("cookie").is_some());
        }
        let stand_in = stand_in().org_units(ROWS).fault(rule.act(fault)).start().unwrap();
        let place = Place::new();
        let ended = place.job(stand_in.url(), LIMITS, METADATA).run();
        ended.assert_code(0, &what);
        assert!(place.rows("organisationUnits") == truth, "{what}: the rows differ");
        assert!(may_miss || stand_in.ledger().faults() > 0, "{what}: the fault did not happen");
    });
}

#[test]
fn a_fault_that_never_heals_ends_with_its_code_and_the_run_goes_on_once_it_has() {
    let truth = truth(&stand_in().org_units(ROWS).start().unwrap(), "organisationUnits");
    let status = |code| Fault::Status { code, retry_after: None, body: Body::Json };
    let cases = vec![
        ("503", Fault::status(503), 5),
        ("closed", Fault::Close, 5),
        ("cut", Fault::cut(At::Fraction(0.5)), 5),
        ("Retry-After of an hour", Fault::Status { code: 503, retry_after: Some("3600".into()), body: Body::Html }, 5),
        ("login page", Fault::Html200(Page::Login), 6),
        ("401", Fault::Unauthorized, 6),
        ("redirected to the login", Fault::RedirectToLogin(None), 6),
        ("a proxy's page", Fault::Html200(Page::Proxy), 7),
        ("another dialect", Fault::Envelope(Envelope::Instances), 7),
        ("refused query", status(409), 7),
        ("forbidden", status(403), 7),
    ];
    side_by_side(cases, 8, |(name, fault, code)| {
        let lists = FaultRule::on(Match::From(8)).and_path("organisationUnits").act(fault);
        let stand_in = stand_in().org_units(ROWS).fault(lists).start().unwrap();
        let place = Place::new();
        place.job(stand_in.url(), "outage_s = 4\nretries = 1\nin_flight = 1", METADATA);
        let ended = place.run();
        ended.assert_code(code, name);
        assert!(!place.file("out/manifest.json").exists(), "{name}: something was published");
        stand_in.heal();
        place.run().assert_code(0, &format!("{name}, healed"));
        assert!(place.rows("organisationUnits") == truth, "{name}: the rows differ");
    });
}

#[test]
fn first_contact_tells_a_mistake_from_an_outage() {
    let cases: Vec<(&str, Option<Fault>, i32)> = vec![
        ("nobody listens", None, 5),
        ("not found", Some(Fault::Status { code: 404, retry_after: None, body: Body::Html }), 7),
        ("elsewhere", Some(Fault::Redirect("https://elsewhere.example.org/".into())), 7),
        ("login form", Some(Fault::Html200(Page::Login)), 6),
        ("HTML", Some(Fault::Html200(Page::Proxy)), 7),
    ];
    side_by_side(cases, 5, |(name, fault, code)| {
        let mut builder = stand_in().org_units(60);
        if let Some(fault) = fault.clone() {
            builder = builder.fault(FaultRule::on(Match::always()).act(fault));
        }
        let stand_in = builder.start().unwrap();
        let url = stand_in.url().to_owned();
        if fault.is_none() {
            drop(stand_in);
        }
        let place = Place::new();
        let ended = place.job(&url, "outage_s = 3", METADATA).run();
        ended.assert_code(code, name);
        assert!(!ended.report()["error"]["next"].as_str().unwrap().is_empty(), "{name}: nothing to do next");
    });
    let place = Place::new();
    place.job("http://no-such-host.invalid", "", METADATA).run().assert_code(7, "unknown host");
}

#[test]
fn a_page_that_is_too_heavy_is_halved_until_it_passes() {
    let heavy =
        FaultRule::on(Match::always()).and_path("organisationUnits").act(Fault::TooHeavy { page_size_max: 100 });
    let stand_in = stand_in().org_units(ROWS).fault(heavy).start().unwrap();
    let place = Place::new();
    place.job(stand_in.url(), "in_flight = 2", &METADATA.replace("50", "400"));
    place.run().assert_code(0, "pages of 400 where 100 pass");
    place.assert_exact(&stand_in, "organisationUnits", "halved");
}

#[test]
fn a_row_that_is_too_large_is_rejected_once_with_its_id_and_size_and_all_others_are_taken() {
    // The whole collection in the answer behind that for its size, and the third of many pages.
    for (version, answer) in [("2.30", 2), ("2.40", 4)] {
        let huge = FaultRule::on(Match::nth(answer)).and_rows_only().act(Fault::HugeRow { bytes: 17 << 20 });
        let stand_in = stand_in().version(version).org_units(ROWS).fault(huge).start().unwrap();
        let place = Place::new();
        let ended = place.job(stand_in.url(), "in_flight = 1", METADATA).run();
        ended.assert_code(3, version);
        let rejects = std::fs::read_to_string(place.file("out/rejects.ndjson")).unwrap();
        let reject: serde_json::Value = serde_json::from_str(&rejects).expect("one line");
        assert_eq!(reject["class"], "too_large", "{version}: {rejects}");
        assert!(reject["bytes"].as_u64().unwrap() > 17 << 20, "{version}: {rejects}");
        let truth = truth(&stand_in, "organisationUnits");
        let id_of = |row: &String| serde_json::from_str::<serde_json::Value>(row).unwrap()["id"].clone();
        let (refused, mut others): (Vec<_>, Vec<_>) = truth.into_iter().partition(|row| id_of(row) == reject["id"]);
        assert_eq!(refused.len(), 1, "{version}: {rejects}");
        let mut rows = place.rows("organisationUnits");
        rows.sort();
        others.sort();
        assert!(rows == others, "{version}: {} rows, {} others", rows.len(), others.len());
        // The numbers add up with it, so that nothing is listed or asked for again.
        let units = &ended.report()["streams"]["organisationUnits"];
        assert_eq!((units["rejected"].as_u64(), units["appeared"].as_u64()), (Some(1), None), "{version}: {units}");
    }
}

#[test]
fn what_a_table_that_comes_whole_leaves_out_is_listed_and_fetched() {
    // 2.30 has no pages: the first answer is the number of rows, the second all of them.
    let fewer = FaultRule::on(Match::nth(2)).and_rows_only().act(Fault::Envelope(Envelope::FewerRows)).times(1);
    let stand_in = stand_in().version("2.30").org_units(ROWS).fault(fewer).start().unwrap();
    let place = Place::new();
    let ended = place.job(stand_in.url(), "in_flight = 1", METADATA).run();
    ended.assert_code(0, "half of the table at first");
    assert_eq!(stand_in.ledger().faults(), 1);
    let units = &ended.report()["streams"]["organisationUnits"];
    assert_eq!((units["expected"].as_u64(), units["appeared"].as_u64()), (Some(1_100), Some(550)), "{units}");
    // So much at once is one request for the whole table, not one for each hundred ids.
    let requests = stand_in.ledger().requests();
    let asked = requests.iter().filter(|seen| seen.path().ends_with("organisationUnits"));
    assert_eq!(asked.count(), 4, "the number, the half, the list, the whole");
    place.assert_exact(&stand_in, "organisationUnits", "the whole table");
}
