//! The transport against every way a response can be wrong. The server is [`Server`], on a real socket.

use std::time::Duration;

use futures_util::future::join_all;
use harvester_pacing::RequestOutcome::{self, Abandoned, Answered, Failed, Overloaded};

use super::*;
use crate::{
    ClientBuilder, Credentials,
    gate::{Gate, GateClosed, Permit},
    testing::{CountingGate, Server, Then, answer, chunk, gzip, gzipped, head, json},
};

const LENGTH_100: &str = "Content-Length: 100";
const CHUNKED: &str = "Transfer-Encoding: chunked";
const GZIP: &str = "Content-Encoding: gzip";

fn builder(server: &Server) -> ClientBuilder {
    let credentials = Credentials::Basic { username: "reader".into(), password: "canary-password".into() };
    Client::builder(server.url()).credentials(credentials).retries(0)
}

fn client(server: &Server) -> (Client, CountingGate) {
    let gate = CountingGate::default();
    (builder(server).gate(Arc::new(gate.clone())).build().unwrap(), gate)
}

use std::sync::Arc;

/// Reads `/api/x` to the end of its body.
async fn read(client: &Client) -> Result<Vec<u8>, Error> {
    client.get("x").send().await?.bytes(1 << 30).await
}

/// Kind of the client's error for a server that sends `bytes`, then does `then`.
async fn kind_of(bytes: impl AsRef<[u8]>, then: Then) -> Result<Vec<u8>, ErrorKind> {
    let bytes = bytes.as_ref().to_vec();
    let server = Server::start(move |_, out| {
        out.write(&bytes);
        then
    });
    read(&client(&server).0).await.map_err(|error| error.kind())
}

#[actix_rt::test]
async fn a_whole_body_passes_in_every_framing() {
    let body = "{\"a\":1}".to_owned();
    let packed = gzip(body.as_bytes());
    let twice = [gzip(b"{\"a\""), gzip(b":1}")].concat();
    let end = chunk("");
    for bytes in [
        json(&body),
        gzipped(body.as_bytes()),
        head(&[CHUNKED], [chunk(&body), end.clone()].concat()),
        head(&[CHUNKED], [chunk("{\"a\""), chunk(":1}"), end.clone()].concat()),
        head(&[CHUNKED, GZIP], [chunk(&packed[..5]), chunk(&packed[5..]), end.clone()].concat()),
        answer("200 OK", &["Content-Type: application/json", GZIP], &twice),
        answer("200 OK", &["Content-Type: application/json", "Content-Encoding: identity"], &body),
        answer("200 OK", &["Content-Type: APPLICATION/JSON"], &body),
        answer("200 OK", &["Content-Type: application/vnd.api+json"], &body),
    ] {
        assert_eq!(
            kind_of(&bytes, Then::Close).await,
            Ok(body.clone().into_bytes()),
            "{}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

#[actix_rt::test]
async fn a_cut_body_is_an_error_in_every_framing() {
    let packed = gzip(&b"{\"a\":1}".repeat(100));
    let cut_in_transfer = [
        head(&[LENGTH_100], [b'1'; 60]),
        head(&[LENGTH_100], ""),
        head(&[CHUNKED], "64\r\n11111"),
        head(&[CHUNKED], chunk("11111")),
        head(&[CHUNKED], [chunk("11111"), b"6".to_vec()].concat()),
        head(&[CHUNKED], [chunk("11111"), b"0\r\n".to_vec()].concat()),
        head(&[CHUNKED, GZIP], chunk(&packed)),
        head(&[&format!("Content-Length: {}", packed.len()), GZIP], &packed[..packed.len() - 1]),
        b"HTTP/1.1 200 OK\r\nContent-Le".to_vec(),
        Vec::new(),
    ];
    for bytes in cut_in_transfer {
        assert_eq!(
            kind_of(&bytes, Then::Close).await,
            Err(ErrorKind::Truncated),
            "{}",
            String::from_utf8_lossy(&bytes)
        );
    }
    // The transfer is whole, the compression is not.
    for cut in [0, 1, 5, 10, packed.len() - 8, packed.len() - 1] {
        let bytes = answer("200 OK", &["Content-Type: application/json", GZIP], &packed[..cut]);
        let wanted = if cut == 0 { ErrorKind::EmptyBody } else { ErrorKind::Encoding };
        assert_eq!(kind_of(&bytes, Then::Close).await, Err(wanted), "{cut}");
        let bytes = head(&[CHUNKED, GZIP], [chunk(&packed[..cut]), if cut == 0 { vec![] } else { chunk("") }].concat());
        assert_eq!(kind_of(&bytes, Then::Close).await, Err(ErrorKind::Encoding), "{cut}");
    }
}

#[actix_rt::test]
async fn an_answer_that_does_not_say_its_length_is_an_error_and_its_connection_is_not_used_again() {
    let server = Server::start(|heard, out| {
        if heard.number == 0 {
            // Whole, and on a connection that stays: what follows must not become the next answer's head.
            out.write(head(&[], "{\"rows\":[]}"));
        } else {
            out.write(json("[2]"));
        }
        Then::Keep
    });
    let (client, gate) = client(&server);
    assert_eq!(read(&client).await.unwrap_err().kind(), ErrorKind::UnknownLength);
    assert_eq!(read(&client).await.unwrap(), b"[2]");
    assert_eq!(server.connections(), 2);
    assert_eq!(*gate.outcomes.lock().unwrap(), [Failed { retry_after: None }, Answered]);
}

#[actix_rt::test]
async fn answers_before_the_answer_are_passed_over() {
    let early = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n";
    let server = Server::start(move |heard, out| {
        match heard.number {
            // In one piece, byte by byte, and on a kept connection.
            0 | 1 => out.write([early.as_bytes(), &json("[1]")].concat()),
            2 => early.bytes().chain(json("[1]")).for_each(|byte| out.write([byte])),
            3 => out.write(json("[1]")),
            // Then nothing more: the server has answered something, so it is no stale connection.
            4 => {
                out.write(early);
                return Then::Close;
            }
            // Never asked for, and final.
            _ => out.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
        }
        Then::Keep
    });
    let (client, _) = client(&server);
    for _ in 0..4 {
        assert_eq!(client.get("x").json::<Vec<u8>>().await.unwrap(), [1]);
    }
    assert_eq!(server.connections(), 1);
    assert_eq!(read(&client).await.unwrap_err().kind(), ErrorKind::Truncated);
    assert_eq!(read(&client).await.unwrap_err().kind(), ErrorKind::Garbled);
    assert_eq!(server.heard().len(), 6);
}

#[actix_rt::test]
async fn a_reset_after_any_number_of_bytes_is_an_error() {
    let whole = json(&"1".repeat(5000));
    for after in [0, 1, 20, 100, 4000, whole.len() - 1] {
        let kind = kind_of(&whole[..after], Then::Reset).await.unwrap_err();
        assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::Truncated), "{kind:?} after {after}");
    }
}

#[actix_rt::test]
async fn damaged_compression_is_an_error() {
    let body = b"{\"a\":1}".repeat(100);
    let mut wrong_checksum = gzip(&body);
    let at = wrong_checksum.len() - 6;
    wrong_checksum[at] ^= 1;
    let with = |encoding: &str, body: &[u8]| {
        answer("200 OK", &["Content-Type: application/json", &format!("Content-Encoding: {encoding}")], body)
    };
    for bytes in [
        with("gzip", &wrong_checksum),
        with("gzip", &[gzip(&body), b"{}".to_vec()].concat()),
        with("gzip", b"{\"plain\":1}"),
        with("gzip", b"<html>plain</html>"),
        with("br", b"whatever"),
        with("gzip, gzip", &gzip(&gzip(&body))),
    ] {
        assert_eq!(kind_of(&bytes, Then::Keep).await, Err(ErrorKind::Encoding));
    }
}

#[actix_rt::test]
async fn a_bomb_and_a_body_beyond_its_limit_are_stopped() {
    let bomb = gzip(&vec![b' '; 20 << 20]);
    assert_eq!(
        kind_of(answer("200 OK", &["Content-Type: application/json", GZIP], bomb), Then::Keep).await,
        Err(ErrorKind::TooLarge)
    );
    for bytes in [json(&"1".repeat(1001)), gzipped(&[b'1'; 1001])] {
        let server = Server::saying(bytes);
        let client = builder(&server).body_bytes_max(1000).build().unwrap();
        assert_eq!(read(&client).await.unwrap_err().kind(), ErrorKind::TooLarge);
    }
    let server = Server::saying(json(&"1".repeat(1000)));
    assert!(read(&builder(&server).body_bytes_max(1000).build().unwrap()).await.is_ok());
    assert_eq!(client(&server).0.get("x").bytes(999).await.unwrap_err().kind(), ErrorKind::TooLarge);
}

#[actix_rt::test]
async fn what_is_not_http_is_garbled_and_a_huge_head_is_too_large() {
    for bytes in [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(),
        b"HTTP/1.1 abc\r\n\r\n".to_vec(),
        answer("200 OK", &["Content-Type: application/json", "Content-Length: 5"], ""),
        head(&[CHUNKED], "zz\r\n11"),
        head(&[CHUNKED], "5\r\n1111111\r\n0\r\n\r\n"),
    ] {
        assert_eq!(kind_of(&bytes, Then::Close).await, Err(ErrorKind::Garbled), "{}", String::from_utf8_lossy(&bytes));
    }
    let long = format!("X-Long: {}", "x".repeat(200_000));
    let many: Vec<String> = (0..200).map(|n| format!("X-{n}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let middle = format!("X-Long: {}", "x".repeat(70_000));
    for headers in [&[long.as_str()][..], &many, &[middle.as_str()]] {
        assert_eq!(kind_of(answer("200 OK", headers, "{}"), Then::Hang).await, Err(ErrorKind::TooLarge));
    }
}

#[actix_rt::test]
async fn silence_before_the_head_and_in_the_body_are_told_apart() {
    let server = Server::start(|heard, out| {
        if heard.number == 1 {
            out.write(head(&[LENGTH_100], "{"));
        }
        Then::Hang
    });
    let gate = CountingGate::default();
    let short = Duration::from_millis(60);
    let first = builder(&server).first_byte_timeout(short).gate(Arc::new(gate.clone())).build().unwrap();
    let error = read(&first).await.unwrap_err();
    assert_eq!((error.kind(), error.is_timeout()), (ErrorKind::FirstByteTimeout, true));
    let stall = builder(&server).stall_timeout(short).gate(Arc::new(gate.clone())).build().unwrap();
    let error = read(&stall).await.unwrap_err();
    assert_eq!((error.kind(), error.is_timeout()), (ErrorKind::Stalled, true));
    assert_eq!(server.heard().len(), 2, "a timeout is not repeated");
    assert_eq!(*gate.outcomes.lock().unwrap(), [Overloaded { retry_after: None }; 2]);
}

#[actix_rt::test]
async fn a_body_that_drips_counts_as_stalled() {
    let server = Server::start(|_, out| {
        out.write(head(&["Content-Length: 1000"], ""));
        for _ in 0..1000 {
            out.write("1");
            out.pause(10);
        }
        Then::Close
    });
    let client = builder(&server).min_transfer_rate(1024, Duration::from_millis(200)).build().unwrap();
    let begun = Instant::now();
    let error = read(&client).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stalled, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[actix_rt::test]
async fn an_answer_that_keeps_coming_may_take_longer_than_every_limit() {
    let server = Server::start(|_, out| {
        out.write(head(&["Content-Length: 40"], ""));
        for _ in 0..40 {
            out.write("1");
            out.pause(30);
        }
        Then::Keep
    });
    let limit = Duration::from_millis(900);
    let client =
        builder(&server).first_byte_timeout(limit).stall_timeout(limit).connect_timeout(limit).build().unwrap();
    let begun = Instant::now();
    assert_eq!(read(&client).await.unwrap(), [b'1'; 40]);
    assert!(begun.elapsed() > limit);
}

#[actix_rt::test]
async fn a_slow_reader_is_no_slow_server() {
    let body = "1".repeat(3_000_000);
    let server = Server::saying(json(&body));
    let limit = Duration::from_millis(400);
    let client = builder(&server).stall_timeout(limit).min_transfer_rate(1 << 16, limit).build().unwrap();
    let mut response = client.get("x").send().await.unwrap();
    let mut read = 0;
    while let Some(bytes) = response.chunk().await.unwrap() {
        read += bytes.len();
        if read < 60_000 {
            tokio::time::sleep(limit * 3 / 2).await;
        }
    }
    assert_eq!(read, body.len());
}

#[test]
fn only_the_servers_time_counts_for_the_rate_and_one_long_silence_does_not() {
    let limits =
        ClientLimits { bytes_per_second_min: 1000, rate_over: Duration::from_secs(60), ..ClientLimits::default() };
    let seconds = Duration::from_secs;
    let mut rate = Rate::new(&limits);
    for _ in 0..100 {
        rate.note(1000, seconds(1)).unwrap();
    }
    rate.note(1, seconds(100)).unwrap();
    rate.note(1, seconds(59)).unwrap();
    assert_eq!(rate.note(59_000, seconds(1)).unwrap_err().kind(), ErrorKind::Stalled);
    rate.note(1, seconds(59)).unwrap();
    rate.note(59_999, seconds(1)).unwrap();
}

#[actix_rt::test]
async fn nobody_listening_an_unknown_host_and_a_silent_handshake_are_told_apart() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gate = CountingGate::default();
    let build = |url: String, limit_ms| {
        Client::builder(url)
            .retries(0)
            .connect_timeout(Duration::from_millis(limit_ms))
            .gate(Arc::new(gate.clone()))
            .build()
            .unwrap()
    };
    let client = build(format!("http://127.0.0.1:{port}"), 5000);
    let error = read(&client).await.unwrap_err();
    assert_eq!((error.kind(), error.is_connect()), (ErrorKind::ConnectionRefused, true));
    assert_eq!(client.requests_sent(), 0, "nothing left");
    assert_eq!(gate.left.load(std::sync::atomic::Ordering::SeqCst), 0);
    // Depending on the machine's resolver it says so, is silent, or is not there.
    let error = read(&build("http://no-such-host.invalid".into(), 5000)).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::UnknownHost | ErrorKind::DnsUnavailable | ErrorKind::ConnectTimeout),
        "{error:?}"
    );
    let server = Server::start(|_, _| Then::Hang);
    let error = read(&build(server.url().replace("http", "https"), 100)).await.unwrap_err();
    assert_eq!((error.kind(), error.is_timeout()), (ErrorKind::ConnectTimeout, true));
    // Connecting has its own limit, also where the one for the head is shorter.
    let client = Client::builder(server.url().replace("http", "https")).retries(0);
    let client = client.connect_timeout(Duration::from_millis(200)).first_byte_timeout(Duration::from_millis(20));
    assert_eq!(read(&client.build().unwrap()).await.unwrap_err().kind(), ErrorKind::ConnectTimeout);
    let outcomes = gate.outcomes.lock().unwrap().clone();
    assert_eq!((outcomes[0], outcomes[2]), (Overloaded { retry_after: None }, Overloaded { retry_after: None }));
}

#[actix_rt::test]
async fn a_connection_is_kept_also_after_refusals() {
    let server = Server::start(|heard, out| {
        match heard.number {
            0 => out.write(json("{}")),
            1 => out.write(answer("404 Not Found", &["Content-Type: application/json"], "{\"message\":\"x\"}")),
            2 => out.write(answer("302 Found", &["Location: http://other.example/"], "moved")),
            _ => out.write(gzipped(b"{}")),
        }
        Then::Keep
    });
    let (client, _) = client(&server);
    for _ in 0..5 {
        let _ = read(&client).await;
    }
    assert_eq!((server.heard().len(), server.connections()), (5, 1));
}

#[actix_rt::test]
async fn a_request_on_a_kept_connection_that_was_closed_is_sent_once_more_through_the_gate() {
    for then in [Then::Close, Then::Reset] {
        let server = Server::start(move |heard, out| {
            if heard.number == 1 {
                return then;
            }
            out.write(json("{}"));
            Then::Keep
        });
        let (client, gate) = client(&server);
        read(&client).await.unwrap();
        read(&client).await.unwrap();
        assert_eq!((server.heard().len(), server.connections()), (3, 2));
        assert_eq!((gate.permits.load(std::sync::atomic::Ordering::SeqCst), client.requests_sent()), (3, 3));
        assert_eq!(*gate.outcomes.lock().unwrap(), [Answered, Abandoned, Answered]);
        let heard = server.heard();
        assert_ne!(heard[1].header("x-request-id"), heard[2].header("x-request-id"));
    }
}

#[actix_rt::test]
async fn a_new_connection_that_is_closed_and_a_kept_one_that_has_begun_to_answer_are_not_tried_again() {
    let server = Server::start(|heard, out| {
        match heard.number {
            0 => out.write(json("{}")),
            1 => {
                out.write("HTTP/1.1 200");
                return Then::Close;
            }
            _ => return Then::Close,
        }
        Then::Keep
    });
    let (client, gate) = client(&server);
    read(&client).await.unwrap();
    assert_eq!(read(&client).await.unwrap_err().kind(), ErrorKind::Truncated);
    assert_eq!(server.heard().len(), 2);
    assert_eq!(read(&client).await.unwrap_err().kind(), ErrorKind::Truncated);
    assert_eq!(server.heard().len(), 3);
    assert_eq!(gate.outcomes.lock().unwrap()[1..], [Failed { retry_after: None }; 2]);
}

#[actix_rt::test]
async fn a_server_that_closes_idle_connections_costs_nothing() {
    let server = Server::start(|_, out| {
        out.write(json("{}"));
        Then::Close
    });
    let (client, _) = client(&server);
    for _ in 0..5 {
        read(&client).await.unwrap();
        // The end has arrived when the next request asks for a connection.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((client.requests_sent(), server.connections()), (5, 5));
}

#[actix_rt::test]
async fn a_refusal_keeps_what_the_server_said() {
    let message =
        r#"{"httpStatusCode":409,"status":"ERROR","message":"Query failed because of a timeout","errorCode":"E7131"}"#;
    let in_an_hour = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1))
        .strftime("%a, %d %b %Y %H:%M:%S GMT")
        .to_string();
    let page = "<html><head><title>\n 502 Bad  Gateway</title></head><body>canary</body></html>";
    let answers = [
        answer("409 Conflict", &["Content-Type: application/json"], message),
        answer("503 Service Unavailable", &["Retry-After: 7"], "busy"),
        answer("429 Too Many Requests", &[&format!("Retry-After: {in_an_hour}")], ""),
        answer("502 Bad Gateway", &["Content-Type: text/html"], page),
        answer("404 Not Found", &["Content-Type: text/html", GZIP], gzip(page.as_bytes())),
        answer("500 Internal Server Error", &["Retry-After: soon"], "canary"),
        answer("407 Proxy Authentication Required", &[], ""),
        answer("400 Bad Request", &[], [b'x'; 300_000]),
    ];
    let server = Server::start(move |heard, out| {
        out.write(&answers[heard.number]);
        Then::Keep
    });
    let (client, gate) = client(&server);
    let mut shown = Vec::new();
    let mut errors = Vec::new();
    for _ in 0..8 {
        let error = read(&client).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Status);
        let text = error.to_string();
        let (text, url) = text.split_once(" (GET ").unwrap();
        assert_eq!(url, format!("{}/api/x)", server.url()));
        assert!(error.request_id().is_some());
        shown.push(text.to_owned());
        errors.push(error);
    }
    assert_eq!(
        shown,
        [
            "the server answers 409 Conflict: E7131 Query failed because of a timeout",
            "the server answers 503 Service Unavailable",
            "the server answers 429 Too Many Requests",
            "the server answers 502 Bad Gateway: a page titled \"502 Bad Gateway\"",
            "the server answers 404 Not Found: a page titled \"502 Bad Gateway\"",
            "the server answers 500 Internal Server Error",
            "a proxy on the way wants credentials of its own (407)",
            "the server answers 400 Bad Request",
        ]
    );
    assert_eq!(errors[0].server_message().unwrap().error_code.as_deref(), Some("E7131"));
    assert!(errors[1..].iter().all(|error| error.server_message().is_none()));
    let seven = Some(Duration::from_secs(7));
    assert_eq!(errors[1].retry_after(), seven);
    assert!(errors[2].retry_after().unwrap().as_secs().abs_diff(3600) < 10);
    assert_eq!(errors[5].retry_after(), None);
    let outcomes = gate.outcomes.lock().unwrap().clone();
    assert!(matches!(outcomes[2], Overloaded { retry_after: Some(_) }));
    let none = Overloaded { retry_after: None };
    assert_eq!(outcomes[..2], [Answered, Overloaded { retry_after: seven }]);
    assert_eq!(
        outcomes[3..],
        [none, Failed { retry_after: None }, Failed { retry_after: None }, Answered, Answered] as [RequestOutcome; 5]
    );
}

#[actix_rt::test]
async fn a_success_of_another_kind_than_json_is_an_error() {
    let page = "<!doctype html><title>Maintenance</title><p>canary</p>";
    for (bytes, kind) in [
        (answer("200 OK", &["Content-Type: text/html;charset=utf-8"], page), ErrorKind::Html),
        (answer("200 OK", &["Content-Type: text/plain"], "canary"), ErrorKind::NotJson),
        (answer("200 OK", &["Content-Type: application/json+gzip"], "canary"), ErrorKind::NotJson),
        (answer("200 OK", &[], "{}"), ErrorKind::NotJson),
        (answer("200 OK", &["Content-Type: application/json"], ""), ErrorKind::EmptyBody),
        (answer("204 No Content", &[], ""), ErrorKind::EmptyBody),
        (b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(), ErrorKind::EmptyBody),
    ] {
        let server = Server::saying(bytes);
        let error = read(&client(&server).0).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(!format!("{error} {error:?}").contains("canary"));
        assert_eq!(error.to_string().contains("titled \"Maintenance\""), kind == ErrorKind::Html, "{error}");
    }
    // A JSON type around nothing, or around blanks, is found out when it is parsed.
    for body in ["", "  \n"] {
        let server =
            Server::saying(head(&[CHUNKED], [if body.is_empty() { vec![] } else { chunk(body) }, chunk("")].concat()));
        let error = client(&server).0.get("x").json::<serde_json::Value>().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EmptyBody);
    }
    let server = Server::saying(answer("200 OK", &["Content-Type: text/csv"], "a,b\n"));
    assert_eq!(client(&server).0.get("x").raw().bytes(100).await.unwrap(), b"a,b\n");
}

#[actix_rt::test]
async fn a_json_answer_of_another_shape_is_garbled_and_never_quoted() {
    for body in ["{\"a\":\"canary\"", "{\"a\":\"canary\"}{}", "[\"canary\"]", "{\"a\":canary}"] {
        let server = Server::saying(json(body));
        let (client, gate) = client(&server);
        let error = client.get("x").json::<std::collections::HashMap<String, u32>>().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Garbled, "{body}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        assert_eq!(*gate.outcomes.lock().unwrap(), [Failed { retry_after: None }]);
    }
}

#[actix_rt::test]
async fn no_redirect_is_followed_and_nothing_reaches_another_origin() {
    let other = Server::saying(json("{}"));
    for (status, place) in
        [("301 Moved", "/api/x"), ("302 Found", "/portal"), ("307 Temporary", "/api/x?y"), ("308 Permanent", "/")]
    {
        let location = format!("Location: {}{place}", other.url());
        let server = Server::saying(answer(status, &[&location], ""));
        let (client, gate) = client(&server);
        let error = read(&client).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Redirect);
        assert!(error.to_string().contains(&format!("set url to {}", other.url())), "{error}");
        assert_eq!(*gate.outcomes.lock().unwrap(), [Answered]);
        assert_eq!(server.heard().len(), 1);
    }
    assert_eq!((other.heard().len(), other.connections()), (0, 0));
}

#[actix_rt::test]
async fn every_request_says_who_sends_it_and_wants_no_stale_copy() {
    let server = Server::saying(json("{}"));
    let (client, _) = client(&server);
    read(&client).await.unwrap();
    client.get("y").query("filter", "name:like:[é]").raw().send().await.unwrap().bytes(100).await.unwrap();
    let heard = server.heard();
    for request in &heard {
        for (name, value) in [
            ("cache-control", "no-cache"),
            ("x-requested-with", "XMLHttpRequest"),
            ("user-agent", concat!("dhis2-harvester/", env!("CARGO_PKG_VERSION"))),
            ("accept-encoding", "gzip"),
            ("authorization", "Basic cmVhZGVyOmNhbmFyeS1wYXNzd29yZA=="),
            ("host", server.url().strip_prefix("http://").unwrap()),
        ] {
            assert_eq!(request.header(name), Some(value), "{name}");
        }
        let id = request.header("x-request-id").unwrap();
        assert!(id.len() <= 36 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{id}");
        assert!(request.header("accept").unwrap().starts_with("application/json"));
        assert_eq!(request.header("cookie"), None);
    }
    assert_ne!(heard[0].header("x-request-id"), heard[1].header("x-request-id"));
    assert_eq!((heard[0].path.as_str(), heard[1].path.as_str()), ("/api/x", "/api/y?filter=name:like:%5B%C3%A9%5D"));
}

#[actix_rt::test]
async fn a_dropped_answer_counts_as_abandoned_and_closes_its_connection() {
    let server = Server::saying(json(&"1".repeat(3_000_000)));
    let (client, gate) = client(&server);
    let mut response = client.get("x").send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    assert_eq!(*gate.outcomes.lock().unwrap(), [Abandoned]);
    read(&client).await.unwrap();
    assert_eq!(server.connections(), 2);
}

#[actix_rt::test]
async fn a_permit_lasts_until_the_body_has_been_read() {
    let server = Server::saying(json("[1]"));
    let (client, gate) = client(&server);
    let mut response = client.get("x").send().await.unwrap();
    assert!(gate.outcomes.lock().unwrap().is_empty());
    while response.chunk().await.unwrap().is_some() {}
    assert_eq!(*gate.outcomes.lock().unwrap(), [Answered]);
    assert!(response.chunk().await.unwrap().is_none());
    assert_eq!(gate.outcomes.lock().unwrap().len(), 1);
}

#[actix_rt::test]
async fn a_caller_that_stops_at_a_row_is_told_so_and_the_server_is_not_blamed() {
    let server = Server::saying(json(r#"{"xs":[{"n":1},{"n":2}]}"#));
    let (client, gate) = client(&server);
    let rows = client.get("x").rows(&["xs"], crate::split::SplitLimits::default()).await.unwrap();
    let stopped = rows.for_each(|_| Err(crate::split::RowFault::Stopped("the disk is full".into()))).await.unwrap_err();
    assert_eq!((stopped.kind(), stopped.to_string().contains("row 0")), (ErrorKind::Cancelled, true));
    assert_eq!(std::error::Error::source(&stopped).unwrap().to_string(), "the disk is full");
    assert_eq!(*gate.outcomes.lock().unwrap(), [Abandoned]);
}

#[actix_rt::test]
async fn every_permit_is_told_the_class_of_its_request() {
    let server = Server::saying(json("[]"));
    let (client, gate) = client(&server);
    let alike = [
        // Full pages, wherever they begin.
        vec![
            "dataElements?fields=:owner&page=1&pageSize=1000",
            "dataElements?fields=:owner&filter=id:gt:a&page=1&pageSize=1000",
        ],
        vec!["dataElements?fields=:owner&page=1&pageSize=500"],
        // Counting: one row, ids only.
        vec![
            "dataElements?fields=id&order=id:asc&page=7&pageSize=1",
            "dataElements?fields=id&order=id:asc&page=9&pageSize=1",
        ],
        vec!["dataElements?fields=id&page=1&pageSize=1000"],
        vec!["dataElements?fields=:owner&paging=false"],
        vec!["organisationUnits?fields=:owner&page=1&pageSize=1000"],
        // Single answers.
        vec!["dataElements/fbfJHSPpUQD", "dataElements/cYeuwXTCPkU?x=1"],
        vec!["dataStore/settings/key-001", "dataStore/settings/key-002"],
        vec!["dataStore/settings"],
        vec!["me"],
    ];
    for path in alike.iter().flatten() {
        client.get(path).json::<Vec<u8>>().await.unwrap();
    }
    let mut classes = gate.classes.lock().unwrap().clone().into_iter();
    let mut seen = Vec::new();
    for group in alike {
        let of_group: Vec<_> = classes.by_ref().take(group.len()).collect();
        assert!(of_group.len() == group.len() && of_group.iter().all(|class| *class == of_group[0]), "{group:?}");
        assert!(of_group[0] != 0 && !seen.contains(&of_group[0]), "{group:?}");
        seen.push(of_group[0]);
    }
}

#[actix_rt::test]
async fn a_closed_gate_lets_nothing_out() {
    struct Closed;
    impl Gate for Closed {
        fn permit(&self) -> futures_core::future::LocalBoxFuture<'_, Result<Box<dyn Permit>, GateClosed>> {
            Box::pin(async { Err(GateClosed) })
        }
    }
    let server = Server::saying(json("[1]"));
    let client = client(&server).0.with_gate(Arc::new(Closed));
    let error = read(&client.with_retries(3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GateClosed);
    assert_eq!((server.heard().len(), client.requests_sent()), (0, 0));
}

#[actix_rt::test]
async fn many_requests_at_once_each_get_their_own_answer() {
    let server = Server::start(|heard, out| {
        out.write(json(&format!("\"{}\"", heard.path)));
        Then::Keep
    });
    let (client, gate) = client(&server);
    let asked: Vec<String> = (0..100).map(|n| format!("x{n}")).collect();
    let answers = join_all(asked.iter().map(|path| client.get(path).json::<String>())).await;
    for (path, answer) in asked.iter().zip(answers) {
        assert_eq!(answer.unwrap(), format!("/api/{path}"));
    }
    assert_eq!(gate.outcomes.lock().unwrap().len(), 100);
    assert_eq!((client.requests_sent(), gate.left.load(std::sync::atomic::Ordering::SeqCst)), (100, 100));
}

#[actix_rt::test]
async fn a_client_alone_tries_again_what_may_go_better_and_nothing_else() {
    let server = Server::start(|heard, out| {
        match (heard.path.as_str(), heard.number) {
            ("/api/heals", 0) => out.write(answer("503 Service Unavailable", &["Retry-After: 1"], "")),
            ("/api/heals", 1) => out.write(head(&[LENGTH_100], "cut")),
            ("/api/heals", _) => out.write(json("\"well\"")),
            ("/api/never", _) => out.write(answer("500 Internal Server Error", &[], "")),
            _ => out.write(answer("409 Conflict", &[], "")),
        }
        if heard.number == 1 { Then::Close } else { Then::Keep }
    });
    let client = client(&server).0.with_retries(3);
    let begun = Instant::now();
    assert_eq!(client.get("heals").json::<String>().await.unwrap(), "well");
    assert!(begun.elapsed() >= Duration::from_secs(1), "waits as long as the server asks");
    assert_eq!(server.heard().len(), 3);
    assert_eq!(client.get("never").json::<String>().await.unwrap_err().status(), Some(500));
    assert_eq!(server.heard().len(), 7);
    assert_eq!(client.get("refused").json::<String>().await.unwrap_err().status(), Some(409));
    assert_eq!(server.heard().len(), 8);
}

#[test]
fn a_page_is_a_login_page_when_it_asks_for_a_password() {
    let title = |page: &[u8]| super::title(page, &Redaction::default());
    for page in [
        "<form action='/dhis-web-commons-security/login.action'><input name=x></form>",
        "<input type=\"password\" name=\"pw\">",
        "<INPUT TYPE='Password'>",
        "<input name=\"j_password\">",
        "<title>DHIS 2 | Login</title>",
        "<TITLE lang=en>Sign in\nto X</TITLE>",
    ] {
        assert!(is_login_page(page.as_bytes()), "{page}");
    }
    for page in [
        "",
        "<title>Maintenance</title><a href='/login'>",
        "<title>502</title><form action='/search'>",
        "<title",
        "<form",
    ] {
        assert!(!is_login_page(page.as_bytes()), "{page}");
    }
    assert_eq!(title(b"<title>a &amp;\n b</title>").as_deref(), Some("a &amp; b"));
    assert_eq!(title("<title>İ</title>".as_bytes()).as_deref(), Some("İ"));
    assert_eq!(
        title(&[b"<title>".to_vec(), b"x".repeat(5000), b"</title>".to_vec()].concat()).unwrap().chars().count(),
        121
    );
    assert_eq!((title(b"<title></title>"), title(b"<titl")), (None, None));
}
