//! Every fault shows on the wire as its name says, and heals.

use std::time::Duration;

use tokio::time::Instant;

use super::client::{Client, End, Got, basic, get, get_with};
use crate::{
    Body, Envelope, Fault, FaultRule, Framing, Garble, GzipFault, Latency, Match, Page, Place, Restart, RetryAfter,
    StandIn,
};

const LIST: &str = "/api/organisationUnits?order=id:asc&pageSize=100&fields=:owner";

fn broken(fault: Fault) -> StandIn {
    StandIn::builder()
        .org_units(300)
        .server_date("2024-05-01")
        .fault(FaultRule::on(Match::nth(1)).act(fault))
        .start()
        .unwrap()
}

/// The first answer, and proof that the second one, on a new connection, is whole and true.
fn first(fault: Fault) -> Got {
    let stand_in = broken(fault);
    let got = get(&stand_in, LIST);
    let healed = get(&stand_in, LIST);
    assert_eq!(healed.rows("organisationUnits"), stand_in.truth("organisationUnits", ":owner")[..100]);
    let seen = stand_in.ledger().requests();
    assert!(seen[0].fault.is_some() && seen[1].fault.is_none());
    got
}

fn whole() -> Vec<u8> {
    let stand_in = StandIn::builder().org_units(300).server_date("2024-05-01").start().unwrap();
    get(&stand_in, LIST).bytes().to_vec()
}

#[test]
fn a_hiccup_at_the_door_looks_like_a_wrong_password() {
    let auth =
        |password| [("X-Requested-With", "XMLHttpRequest".to_owned()), ("Authorization", basic("admin", password))];
    for version in ["2.40", "2.42", "2.43"] {
        let hiccups = FaultRule::on(Match::Chance(3, 0.3)).act(Fault::Unauthorized);
        let stand_in = StandIn::builder().version(version).org_units(30).fault(hiccups).start().unwrap();
        let ask = |password| {
            let headers = auth(password);
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            get_with(&stand_in, "/api/me", &headers)
        };
        let answers: Vec<Got> = (0..40).map(|_| ask("district")).collect();
        let refused: Vec<&Got> = answers.iter().filter(|got| got.status == 401).collect();
        assert!((4..20).contains(&refused.len()), "{version}: {} of 40", refused.len());
        assert!(answers.iter().all(|got| matches!(got.status, 200 | 401)));
        stand_in.heal();
        let wrong = ask("wrong");
        let text = r#"{"httpStatus":"Unauthorized","httpStatusCode":401,"status":"ERROR","message":"Unauthorized"}"#;
        for got in refused {
            assert_eq!((got.text().as_str(), got.header("WWW-Authenticate")), (text, None), "{version}");
            assert_eq!((got.status, got.text()), (wrong.status, wrong.text()), "{version}");
        }
    }
}

#[test]
fn a_status_comes_with_its_body_and_its_retry_after() {
    let got = first(Fault::Status { code: 503, retry_after: Some("2".into()), body: Body::Html });
    assert_eq!((got.status, got.header("Retry-After")), (503, Some("2")));
    assert!(got.header("Content-Type").unwrap().starts_with("text/html") && got.text().contains("nginx"));
    let got = first(Fault::Status {
        code: 429,
        retry_after: Some(RetryAfter::DateIn(Duration::from_secs(60))),
        body: Body::Empty,
    });
    assert!(got.header("Retry-After").unwrap().ends_with(" GMT") && got.bytes().is_empty());
    let got = first(Fault::status(500));
    assert_eq!(
        (got.status, got.header("Retry-After"), got.json()["httpStatus"].as_str()),
        (500, None, Some("Internal Server Error"))
    );
    let got =
        first(Fault::Status { code: 409, retry_after: None, body: Body::Message("could not obtain lock".into()) });
    assert_eq!(got.json()["message"], "could not obtain lock");
}

#[test]
fn a_connection_ends_or_is_reset_before_a_byte() {
    let got = first(Fault::Close);
    assert_eq!((got.status, got.end), (0, End::Fin));
    let got = first(Fault::Reset);
    assert_eq!((got.status, got.end), (0, End::Reset));
}

#[test]
fn a_reset_comes_behind_as_many_bytes_as_it_says() {
    let whole = whole();
    for bytes in [0, 1, 100, 5000] {
        let got = first(Fault::reset_after(bytes));
        assert_eq!((got.status, got.end, got.body.is_none()), (200, End::Reset, true), "{bytes}");
        assert!(got.wire.len() <= bytes && whole.starts_with(&got.wire));
    }
}

#[test]
fn a_cut_body_is_short_in_every_framing() {
    let whole = whole();
    for (framing, at) in [
        (Framing::Length, Place::Byte(0)),
        (Framing::Length, Place::Byte(1)),
        (Framing::Length, Place::Fraction(0.5)),
        (Framing::Length, Place::FromEnd(1)),
        (Framing::Chunked, Place::Byte(1)),
        (Framing::Chunked, Place::InsideChunk(0)),
        (Framing::Chunked, Place::BetweenChunks(1)),
        (Framing::Chunked, Place::InSizeLine(1)),
        (Framing::Chunked, Place::BeforeLastChunk),
        (Framing::Chunked, Place::FromEnd(2)),
    ] {
        let got = first(Fault::cut_in(framing, at));
        assert_eq!((got.status, got.end, got.body.is_none()), (200, End::Fin, true), "{framing:?} {at:?}");
        assert_eq!(got.header("Content-Length").is_some(), framing == Framing::Length);
        assert_eq!(got.header("Transfer-Encoding").is_some(), framing == Framing::Chunked);
    }
    let got = first(Fault::cut_in(Framing::Chunked, Place::BeforeLastChunk));
    let marker = b"\r\n";
    assert!(got.wire.ends_with(marker) && got.wire.len() > whole.len(), "all data, no end");
    let got = first(Fault::cut_in(Framing::Close, Place::Byte(700)));
    assert_eq!((got.header("Content-Length"), got.header("Transfer-Encoding"), got.end), (None, None, End::Fin));
    assert_eq!(got.bytes(), &whole[..700], "nothing tells that this is not all");
}

#[test]
fn a_cut_in_compressed_content_is_short_by_its_length_and_by_its_trailer() {
    let got = first(Fault::Cut { at: Place::FromEnd(4), framing: Some(Framing::Length), gzipped: true, reset: false });
    assert!(got.body.is_none());
    let got = first(Fault::Cut { at: Place::FromEnd(4), framing: Some(Framing::Close), gzipped: true, reset: false });
    assert!(got.body.is_some() && got.unpacked().is_none(), "only the trailer tells");
}

#[test]
fn a_stalled_answer_stays_silent_until_the_client_leaves() {
    for (at, status) in [(None, 0), (Some(Place::Byte(0)), 200), (Some(Place::Byte(500)), 200)] {
        let stand_in = broken(Fault::Stall { at, lasting: None });
        let mut client = Client::connect(&stand_in).patience(Duration::from_millis(100));
        client.write("GET", LIST, &[("Authorization", &basic("admin", "district"))], "");
        // All that will ever come is under way before the client's patience begins.
        let bytes = if let Some(Place::Byte(bytes)) = at { bytes } else { 0 };
        assert!(stand_in.ledger().wait_until(Duration::from_secs(20), |seen| {
            seen.first().is_some_and(|seen| {
                seen.fault.is_some() && seen.status.is_some() == (status != 0) && seen.body_bytes == bytes as u64
            })
        }));
        let mut got = client.read("GET");
        while got.status != status {
            got = client.read("GET");
        }
        assert_eq!((got.end, got.body.is_none(), got.wire.len()), (End::Silence, true, bytes), "{at:?}");
        assert_eq!(stand_in.ledger().in_flight(), 1);
        drop(client);
        assert!(stand_in.ledger().wait_until(Duration::from_secs(20), |seen| seen[0].ended.is_some()));
    }
    let passing = broken(Fault::Stall { at: Some(Place::Byte(500)), lasting: Some(Duration::from_millis(100)) });
    let began = Instant::now();
    assert_eq!(get(&passing, LIST).rows("organisationUnits").len(), 100);
    assert!(began.elapsed() >= Duration::from_millis(100));
}

#[test]
fn a_drip_and_a_delay_take_their_time_and_lose_nothing() {
    let stand_in = broken(Fault::Drip { bytes_per_second: 2000 });
    let began = Instant::now();
    let got = get(&stand_in, "/api/organisationUnits?pageSize=10&order=id:asc");
    let bytes = got.bytes().len();
    assert_eq!(got.rows("organisationUnits").len(), 10);
    assert!(began.elapsed().as_secs_f64() >= bytes as f64 / 2000.0 * 0.9, "{bytes} bytes in {:?}", began.elapsed());
    let stand_in = broken(Fault::Delay(Duration::from_millis(150)));
    let began = Instant::now();
    assert_eq!(get(&stand_in, LIST).status, 200);
    assert!(began.elapsed() >= Duration::from_millis(150));
}

#[test]
fn html_emptiness_and_redirects_come_in_place_of_rows() {
    let got = first(Fault::Html200(Page::Login));
    assert!(
        got.status == 200
            && got.text().contains("j_password")
            && got.header("Content-Type").unwrap().starts_with("text/html")
    );
    assert!(first(Fault::Html200(Page::Proxy)).text().contains("<title>Scheduled maintenance</title>"));
    let got = first(Fault::Empty200);
    assert_eq!(
        (got.status, got.header("Content-Length"), got.header("Content-Type")),
        (200, Some("0"), Some("application/json"))
    );
    let got = first(Fault::RedirectToLogin(None));
    assert_eq!(
        (got.status, got.header("Location")),
        (302, Some("http://stand-in/dhis-web-commons/security/login.action"))
    );
    let got = first(Fault::RedirectToLogin(Some("http://127.0.0.1:9".into())));
    assert_eq!(got.header("Location"), Some("http://127.0.0.1:9/dhis-web-commons/security/login.action"));
    assert_eq!(
        first(Fault::Redirect("https://elsewhere.example/".into())).header("Location"),
        Some("https://elsewhere.example/")
    );
    assert!(first(Fault::Logout).header("Location").unwrap().ends_with("/logout.action"));
}

#[test]
fn garbled_text_is_whole_and_no_json() {
    for garble in [
        Garble::Control(Place::Fraction(0.5)),
        Garble::Control(Place::Byte(0)),
        Garble::Flip(Place::Byte(1)),
        Garble::Flip(Place::FromEnd(1)),
        Garble::InvalidUtf8,
        Garble::LoneSurrogate,
        Garble::WrongJson,
    ] {
        let got = first(Fault::Garble(garble));
        assert_eq!((got.status, got.end), (200, End::Whole), "{garble:?}");
        assert!(serde_json::from_slice::<serde_json::Value>(got.bytes()).is_err(), "{garble:?}");
    }
}

#[test]
fn compression_is_damaged_or_unusual_as_it_says() {
    let whole = whole();
    let got = first(Fault::Gzip(GzipFault::MultiMember));
    assert_eq!(got.unpacked().as_deref(), Some(whole.as_slice()));
    let mut one = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(got.bytes()), &mut one).unwrap();
    assert!(one.len() < whole.len(), "a decoder of one member sees a part");
    for fault in [GzipFault::BadCrc, GzipFault::NoTrailer, GzipFault::OverPlainText] {
        let got = first(Fault::Gzip(fault));
        assert_eq!((got.header("Content-Encoding"), got.end), (Some("gzip"), End::Whole), "{fault:?}");
        assert!(got.unpacked().is_none(), "{fault:?}");
    }
    let got = first(Fault::Gzip(GzipFault::Bomb(20_000_000)));
    assert!(got.bytes().len() < 200_000);
    let plain = got.unpacked().unwrap();
    assert!(plain.len() > 20_000_000 && serde_json::from_slice::<serde_json::Value>(&plain).is_ok());
}

#[test]
fn framing_type_and_headers_change_and_rows_stay() {
    for framing in [Framing::Chunked, Framing::Close] {
        assert_eq!(first(Fault::Framing(framing)).bytes(), whole());
    }
    let got = first(Fault::ContentType("text/plain".into()));
    assert_eq!(got.header("Content-Type"), Some("text/plain"));
    let got = first(Fault::Headers { count: 300, bytes_each: 2000 });
    assert!(got.headers.len() > 300 && got.bytes() == whole());
}

#[test]
fn envelopes_of_other_dialects_and_monstrous_rows_are_well_formed() {
    assert!(first(Fault::Envelope(Envelope::Instances)).json().get("instances").is_some());
    assert!(first(Fault::Envelope(Envelope::NoPager)).json().get("pager").is_none());
    assert_eq!(first(Fault::Envelope(Envelope::OtherPageSize)).pager("pageSize"), 51);
    let fewer = first(Fault::Envelope(Envelope::FewerRows));
    assert_eq!((fewer.rows("organisationUnits").len(), fewer.pager("total")), (50, 300));
    let huge = first(Fault::HugeRow { bytes: 3_000_000 });
    assert!(huge.rows("organisationUnits")[0].len() > 3_000_000 && huge.rows("organisationUnits").len() == 100);
    let deep = first(Fault::DeepRow { depth: 50 });
    assert_eq!(deep.rows("organisationUnits").len(), 100);
    let other = broken(Fault::Envelope(Envelope::Instances));
    assert!(get(&other, "/api/me").json().get("id").is_some(), "a fault of lists waits for a list");
    assert!(other.ledger().requests()[0].fault.is_none());
}

#[test]
fn a_heavy_page_is_a_504_and_a_light_one_passes() {
    let stand_in = StandIn::builder()
        .org_units(300)
        .fault(FaultRule::on(Match::always()).act(Fault::TooHeavy { page_size_max: 50 }))
        .start()
        .unwrap();
    assert_eq!(get(&stand_in, LIST).status, 504);
    assert_eq!(get(&stand_in, "/api/organisationUnits?paging=false").status, 504);
    assert_eq!(get(&stand_in, "/api/organisationUnits?pageSize=50").status, 200);
    assert_eq!(get(&stand_in, "/api/organisationUnits").status, 200);
}

#[test]
fn a_stale_connection_ends_under_its_second_request_only() {
    let stand_in =
        StandIn::builder().fault(FaultRule::on(Match::always()).act(Fault::StaleClose).times(1)).start().unwrap();
    let mut client = Client::connect(&stand_in);
    assert_eq!(client.get("/api/me").status, 200);
    let got = client.get("/api/me");
    assert_eq!((got.status, got.end), (0, End::Fin));
    let mut client = Client::connect(&stand_in);
    assert_eq!((client.get("/api/me").status, client.get("/api/me").status), (200, 200));
    let honest = StandIn::builder().answers_per_connection(2).start().unwrap();
    let mut client = Client::connect(&honest);
    assert_eq!(client.get("/api/me").header("Connection"), Some("keep-alive"));
    assert_eq!(client.get("/api/me").header("Connection"), Some("close"));
}

#[test]
fn a_lost_session_is_noticed_by_who_has_only_a_cookie() {
    let stand_in = broken(Fault::LoseSessions);
    stand_in.heal();
    let cookie = get(&stand_in, "/api/me").cookie().unwrap();
    stand_in.add_fault(FaultRule::on(Match::nth(1)).act(Fault::LoseSessions));
    assert_eq!(get_with(&stand_in, "/api/me", &[("Cookie", &cookie)]).status, 302);
    assert_eq!(
        get_with(&stand_in, "/api/me", &[("Cookie", &cookie), ("Authorization", &basic("admin", "district"))]).status,
        200
    );
}

#[test]
fn a_port_that_went_down_refuses_and_comes_back_where_it_was() {
    let stand_in = StandIn::start().unwrap();
    let mut client = Client::connect(&stand_in);
    assert_eq!(client.get("/api/me").status, 200);
    stand_in.down();
    assert_eq!(client.get("/api/me").status, 0, "open connections end");
    assert!(Client::try_connect(&stand_in).is_err());
    stand_in.up();
    assert_eq!(get(&stand_in, "/api/me").status, 200);
    stand_in.add_fault(FaultRule::on(Match::nth(1)).act(Fault::Refuse(Some(Duration::from_millis(150)))));
    let began = Instant::now();
    assert_eq!(get(&stand_in, "/api/me").status, 0);
    loop {
        let answered = Client::try_connect(&stand_in).is_ok_and(|mut client| client.get("/api/me").status == 200);
        if answered {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    assert!(began.elapsed() >= Duration::from_millis(140));
}

#[test]
fn a_dropped_stand_in_frees_its_port_for_the_next() {
    let first = StandIn::builder().version("2.36").start().unwrap();
    let port = first.port();
    let mut client = Client::connect(&first);
    assert_eq!(client.get("/api/system/info").json()["version"], "2.36.1");
    drop(first);
    assert_eq!(client.get("/api/me").status, 0);
    let second = StandIn::builder().version("2.41").port(port).start().unwrap();
    assert_eq!(get(&second, "/api/system/info").json()["version"], "2.41.1");
    assert!(StandIn::builder().port(port).start().is_err());
}

#[test]
fn a_restart_goes_through_its_phases_and_may_come_back_as_another() {
    let stand_in = StandIn::builder().version("2.40").start().unwrap();
    let cookie = get(&stand_in, "/api/me").cookie().unwrap();
    let plan = Restart {
        version: Some("2.41.2".into()),
        system_id: Some("another".into()),
        ..Restart::lasting(Duration::from_millis(500))
    };
    stand_in.restart(plan);
    let mut statuses = Vec::new();
    let mut client = Client::connect(&stand_in);
    let began = Instant::now();
    while statuses.last() != Some(&200) && began.elapsed() < Duration::from_secs(10) {
        let got = client.get("/api/system/info");
        if got.status != 200 {
            assert!(got.header("Content-Type").unwrap().starts_with("text/html"));
        }
        if statuses.last() != Some(&got.status) {
            statuses.push(got.status);
        }
    }
    assert_eq!(statuses, [502, 503, 404, 200]);
    let info = client.get("/api/system/info").json();
    assert_eq!((info["version"].as_str(), info["systemId"].as_str()), (Some("2.41.2"), Some("another")));
    assert_eq!(get_with(&stand_in, "/api/me", &[("Cookie", &cookie)]).status, 302, "sessions died");
    let by_fault = broken(Fault::Restart(Restart::lasting(Duration::from_mins(1))));
    assert_eq!(get(&by_fault, LIST).status, 502);
}

#[test]
fn a_bare_server_refuses_then_accepts_in_silence_then_answers_what_was_asked_meanwhile() {
    let stand_in = StandIn::builder().start().unwrap();
    let cookie = get(&stand_in, "/api/me").cookie().unwrap();
    stand_in.restart(Restart::bare(Duration::from_millis(300), Duration::from_millis(600)));
    let began = Instant::now();
    let mut refused = 0;
    let mut client = loop {
        assert!(began.elapsed() < Duration::from_secs(20));
        if let Ok(client) = Client::try_connect(&stand_in) {
            break client;
        }
        refused += 1;
        std::thread::park_timeout(Duration::from_millis(10));
    };
    assert!(refused > 0 && began.elapsed() >= Duration::from_millis(250), "{refused} in {:?}", began.elapsed());
    client = client.patience(Duration::from_millis(50));
    client.write("GET", "/api/me", &[("Authorization", &basic("admin", "district"))], "");
    assert_eq!(client.read("GET").end, End::Silence);
    let got = client.patience(Duration::from_secs(20)).read("GET");
    assert_eq!((got.status, began.elapsed() >= Duration::from_millis(850)), (200, true), "{:?}", began.elapsed());
    assert_eq!(stand_in.ledger().requests().last().unwrap().fault.as_deref(), Some("silent"));
    assert_eq!(get(&stand_in, "/api/me").status, 200);
    assert_eq!(get_with(&stand_in, "/api/me", &[("Cookie", &cookie)]).status, 302, "sessions died");
}

#[test]
fn a_cut_database_connection_has_five_faces() {
    let stand_in =
        StandIn::builder().fault(FaultRule::on(Match::always()).act(Fault::database_cut(5))).start().unwrap();
    let mut faces: Vec<(u16, String)> = (0..60)
        .map(|_| {
            let got = get(&stand_in, LIST);
            let html = got.header("Content-Type").unwrap().starts_with("text/html");
            let text = if html {
                assert!(got.text().contains("HTTP Status 500"));
                "html".to_owned()
            } else {
                got.json()["message"].as_str().unwrap().chars().take(30).collect()
            };
            (got.status, text)
        })
        .collect();
    faces.sort();
    faces.dedup();
    let expected = [
        (409, "FATAL: terminating connection "),
        (409, "This connection has been close"),
        (500, "An unexpected error has occure"),
        (500, "JDBC begin transaction failed:"),
        (500, "html"),
    ];
    assert_eq!(faces, expected.map(|(status, text)| (status, text.to_owned())));
}

#[test]
fn rows_that_are_left_out_are_still_counted() {
    for (fault, status, left) in [
        (Fault::Envelope(Envelope::NoRows), 200, 0),
        (Fault::Envelope(Envelope::FewerRows), 200, 50),
        (Fault::PartialContent, 206, 0),
    ] {
        let got = first(fault.clone());
        let rows = got.rows("organisationUnits").len();
        assert_eq!((got.status, rows, got.pager("total")), (status, left, 300), "{fault:?}");
    }
    let narrowed = |rule: FaultRule| {
        StandIn::builder().org_units(60).fault(rule.act(Fault::Envelope(Envelope::NoRows))).start().unwrap()
    };
    let counts = |stand_in: &StandIn| {
        ["fields=:owner", "fields=id", "fields=id&pageSize=3"]
            .map(|query| get(stand_in, &format!("/api/organisationUnits?{query}")).rows("organisationUnits").len())
    };
    assert_eq!(counts(&narrowed(FaultRule::on(Match::always()).and_listings_only())), [50, 0, 0]);
    assert_eq!(counts(&narrowed(FaultRule::on(Match::always()).and_full_rows_only())), [0, 50, 3]);
}

#[test]
fn an_informational_answer_comes_before_the_true_one() {
    for code in [100, 102, 103] {
        let stand_in = broken(Fault::Informational(code));
        let mut client = Client::connect(&stand_in);
        assert_eq!(client.get(LIST).status, code);
        let got = client.read("GET");
        assert_eq!((got.status, got.bytes()), (200, whole().as_slice()), "{code}");
        assert_eq!(stand_in.ledger().requests()[0].status, Some(200));
    }
}

#[test]
fn faults_heal_by_number_by_time_and_by_command() {
    let stand_in =
        StandIn::builder().fault(FaultRule::on(Match::every(3)).act(Fault::status(503)).times(2)).start().unwrap();
    let statuses: Vec<u16> = (0..9).map(|_| get(&stand_in, "/api/me").status).collect();
    assert_eq!(statuses, [200, 200, 503, 200, 200, 503, 200, 200, 200]);
    stand_in.add_fault(FaultRule::on(Match::always()).act(Fault::status(503)));
    assert_eq!((get(&stand_in, "/api/me").status, get(&stand_in, "/api/me").status), (503, 503));
    stand_in.heal();
    assert_eq!(get(&stand_in, "/api/me").status, 200);
    stand_in.add_fault(FaultRule::on(Match::always()).act(Fault::status(503)).lasting(Duration::from_millis(80)));
    let began = Instant::now();
    while get(&stand_in, "/api/me").status == 503 {
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    assert!(began.elapsed() >= Duration::from_millis(80));
}

#[test]
fn a_mix_repeats_itself_and_never_lies_with_a_whole_answer() {
    let run = || {
        let stand_in = StandIn::builder()
            .org_units(300)
            .server_date("2024-05-01")
            .fault(FaultRule::mixed(11, 0.5))
            .start()
            .unwrap();
        let truth = stand_in.truth("organisationUnits", ":owner");
        let mut labels = Vec::new();
        for _ in 0..120 {
            let got = Client::connect(&stand_in).get(LIST);
            let seen = stand_in.ledger().requests().pop().unwrap();
            let plain = got.header("Content-Encoding").is_none();
            let rows = got.body.as_deref().and_then(|body| serde_json::from_slice::<serde_json::Value>(body).ok());
            if got.status == 200 && plain && rows.is_some() {
                assert_eq!(got.rows("organisationUnits"), truth[..100], "{:?}", seen.fault);
            }
            labels.push(seen.fault);
        }
        labels
    };
    let labels = run();
    assert_eq!(labels, run());
    let faults = labels.iter().flatten().count();
    assert!((35..75).contains(&faults), "{faults}");
    assert!(labels.iter().flatten().collect::<std::collections::HashSet<_>>().len() > 8);
}

#[test]
fn load_makes_it_slow_behind_the_knee_and_refuses_behind_the_second() {
    let knee = Latency::Knee { service: Duration::from_secs(1), at: 2, refuses_above: Some(4) };
    let stand_in = StandIn::builder().latency(knee).start().unwrap();
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(&stand_in)).collect();
    let auth = basic("admin", "district");
    let began = Instant::now();
    for (number, client) in clients.iter_mut().enumerate() {
        client.write("GET", "/api/me", &[("Authorization", &auth)], "");
        assert!(stand_in.ledger().wait_until(Duration::from_secs(20), |seen| seen.len() == number + 1));
    }
    let mut statuses: Vec<u16> = clients.iter_mut().map(|client| client.read("GET").status).collect();
    assert!(began.elapsed() >= Duration::from_secs(2), "the fourth of them takes twice as long");
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 503, 503]);
    stand_in.set_latency(Latency::None);
    assert_eq!(get(&stand_in, "/api/me").status, 200);
}

#[test]
fn what_is_no_request_gets_a_400_and_a_long_url_a_414() {
    let stand_in = StandIn::start().unwrap();
    assert_eq!(get(&stand_in, &format!("/api/me?x={}", "y".repeat(9000))).status, 414);
    assert_eq!(Client::connect(&stand_in).send("GET", "/api/me\u{1} x", &[], "").status, 400);
    assert_eq!(
        Client::connect(&stand_in)
            .send("POST", "/api/me", &[("Authorization", &basic("admin", "district"))], "{}")
            .status,
        405
    );
    let head =
        Client::connect(&stand_in).send("HEAD", "/api/me", &[("Authorization", &basic("admin", "district"))], "");
    assert_eq!((head.status, head.bytes().len()), (200, 0));
}
