//! Questions without a run: `get`, `plan`, `check`, and what the program says about itself.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use dhis2_stand_in::{Body, Fault, FaultRule, Latency, Match, User};
use serde_json::Value;
use tokio::time::Instant;

use crate::support::{Ended, PASSWORD, Place, not_proved, side_by_side, stand_in};

const UNITS: &str =
    "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\", \"dataElements\"]\npage_size = 50";

#[test]
fn an_answer_comes_as_it_is_however_the_path_is_written() {
    let server = stand_in().org_units(300).context_path("/dhis").start().unwrap();
    let place = Place::new();
    place.job(server.url(), "", UNITS);
    let whole = format!("{}/api/organisationUnits?paging=false&fields=:owner", server.url());
    let mut bodies: Vec<String> = Vec::new();
    for path in [
        "organisationUnits?paging=false&fields=:owner",
        "/organisationUnits?paging=false&fields=:owner",
        "/api/organisationUnits?paging=false&fields=:owner",
        &whole,
    ] {
        let ended = place.ends(&["get", path, "--job", "job.toml"]);
        ended.assert_code(0, path);
        bodies.push(ended.stdout);
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    // Every row stands in it as the server wrote it.
    assert!(server.truth("organisationUnits", ":owner").iter().all(|row| bodies[0].contains(row.as_str())));
    let elsewhere = stand_in().start().unwrap();
    let path = format!("{}/api/me", elsewhere.url());
    place.ends(&["get", &path, "--job", "job.toml"]).assert_code(2, "another origin");
    assert_eq!(elsewhere.ledger().count(), 0);
}

#[test]
fn all_pages_are_the_rows_of_the_collection_in_every_dialect() {
    side_by_side(vec!["2.25", "2.30", "2.31", "2.40", "2.43"], 5, |version| {
        let server = stand_in().version(version).org_units(2_345).start().unwrap();
        let place = Place::new();
        place.job(server.url(), "", UNITS);
        let ended = place.ends(&["get", "organisationUnits?fields=:owner", "--all", "--job", "job.toml"]);
        ended.assert_code(0, version);
        let (mut rows, mut truth) =
            (ended.stdout.lines().collect::<Vec<_>>(), server.truth("organisationUnits", ":owner"));
        rows.sort_unstable();
        truth.sort_unstable();
        assert!(rows == truth, "{version}: {} rows of {}", rows.len(), truth.len());
    });
}

#[test]
fn credentials_come_from_flags_where_there_is_no_job() {
    let token = "d2pat_canary5xVA12xyUbWNedQxy4ohH77WlxRGVvZZ1151814092";
    let server = stand_in().user(User::superuser("robot", "x").with_token(token)).start().unwrap();
    let place = Place::new();
    for flags in [
        vec!["--username", "admin"],
        vec!["--username", "admin", "--password-env", "OTHER"],
        vec!["--token-env", "TOKEN"],
    ] {
        let typed = [vec!["get", "me?fields=username", "--url", server.url()], flags].concat();
        let mut command = place.harvester(&typed);
        command.env("OTHER", PASSWORD).env("TOKEN", token);
        let ended = Ended::of(command.output().unwrap());
        ended.assert_code(0, &typed.join(" "));
        let name = if typed.contains(&"--token-env") { "robot" } else { "admin" };
        assert!(ended.stdout.contains(name), "{ended:#?}");
    }
}

#[test]
fn a_secret_comes_from_wherever_the_job_says() {
    let server = stand_in().start().unwrap();
    let place = Place::new();
    place.write("dhis2", &format!("{PASSWORD}\n"));
    for secret in [
        "{ credential = \"dhis2\" }",
        "{ file = \"dhis2\" }",
        "{ command = [\"cat\", \"dhis2\"] }",
        &format!("\"{PASSWORD}\""),
    ] {
        place.job(server.url(), "", UNITS);
        let text = fs::read_to_string(place.file("job.toml")).unwrap();
        place.write("job.toml", &text.replace("{ env = \"DHIS2_PASSWORD\" }", secret));
        let mut command = place.harvester(&["get", "me?fields=username", "--job", "job.toml"]);
        command.env_remove("DHIS2_PASSWORD").env("CREDENTIALS_DIRECTORY", place.path());
        let ended = Ended::of(command.output().unwrap());
        ended.assert_code(0, secret);
        assert!(ended.stdout.contains("admin") && ended.stderr.is_empty(), "{secret}: {ended:#?}");
    }
}

#[test]
fn a_server_in_trouble_is_asked_again_for_ten_seconds_and_then_it_is_5() {
    let trouble = |rule: FaultRule| {
        rule.and_path("/api/me").act(Fault::Status { code: 503, retry_after: None, body: Body::Html })
    };
    let passing = stand_in().fault(trouble(FaultRule::on(Match::First(3)))).start().unwrap();
    let place = Place::new();
    place.job(passing.url(), "", UNITS);
    place.ends(&["get", "me", "--job", "job.toml"]).assert_code(0, "three times 503");
    assert!(passing.ledger().count() >= 4);

    let lasting = stand_in().fault(trouble(FaultRule::on(Match::always()))).start().unwrap();
    place.job(lasting.url(), "", UNITS);
    let began = Instant::now();
    let ended = place.ends(&["get", "me", "--job", "job.toml"]);
    ended.assert_code(5, "503 for ever");
    assert!(ended.stdout.is_empty() && ended.stderr.contains("503") && ended.stderr.contains("next:"), "{ended:#?}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(lasting.ledger().count() >= 3);
}

#[test]
fn a_plan_is_a_line_of_json_for_each_partition_and_fetches_no_row() {
    let server = stand_in().org_units(2_000).start().unwrap();
    let place = Place::new();
    place.job(server.url(), "in_flight = 4", UNITS);
    let ended = place.ends(&["plan", "job.toml", "--json"]);
    ended.assert_code(0, "plan --json");
    let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 4, "{line}");
        assert!(line["stream"].is_string() && line["partition"].is_string(), "{line}");
        assert!(line["requests"].is_u64() && line["expected"].is_u64(), "{line}");
    }
    for stream in ["organisationUnits", "dataElements"] {
        let expected =
            lines.iter().filter(|line| line["stream"] == stream).filter_map(|line| line["expected"].as_u64());
        assert_eq!(expected.sum::<u64>(), server.count(stream) as u64, "{stream}");
    }
    let fetched = server.ledger().requests().into_iter().find(|seen| seen.target.contains(":owner"));
    assert!(fetched.is_none(), "{fetched:?}");
    assert!(!place.file("state").exists() && !place.file("out").exists(), "a plan leaves nothing behind");
    let ended = place.ends(&["plan", "job.toml"]);
    assert!(
        ended.stdout.contains("organisationUnits") && ended.stderr.contains("next: harvester run job.toml"),
        "{ended:#?}"
    );
}

#[test]
fn a_check_prints_a_line_for_each_finding_with_what_to_do_and_leaves_nothing() {
    let cases: Vec<(&str, dhis2_stand_in::Builder, &[&str])> = vec![
        (
            "all is well",
            stand_in(),
            &["ok    login       logged in as admin", "ok    rights      superuser", "ok    clock       within"],
        ),
        (
            "a clock that is off",
            stand_in().clock_skew_ms(-240_000),
            &[
                "note  clock       the server's clock is 2",
                "s behind this machine's",
                "next: incremental runs go by the server's clock",
            ],
        ),
        ("an old server", stand_in().version("2.25"), &["ok    version     DHIS2 2.25"]),
    ];
    for (what, server, says) in cases {
        let server = server.start().unwrap();
        let place = Place::new();
        let ended = place.job(server.url(), "", UNITS).ends(&["check", "job.toml"]);
        ended.assert_code(0, what);
        for words in says {
            assert!(ended.stdout.contains(words), "{what}: `{words}` is not in {ended:#?}");
        }
        for line in ended.stdout.lines() {
            let is_finding = ["ok    ", "note  ", "BAD   "].iter().any(|severity| line.starts_with(severity));
            assert!(is_finding || line.starts_with("                  next: "), "{what}: {line}");
        }
        let left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["job.toml"], "{what}");
        assert!(server.ledger().count() <= 4, "{what}: {} requests", server.ledger().count());
    }
    let server = StandInWithLimited::start();
    let place = Place::new();
    place.job(server.0.url(), "", UNITS);
    let text = fs::read_to_string(place.file("job.toml")).unwrap().replace("\"admin\"", "\"clerk\"");
    place.write("job.toml", &text);
    let ended = place.ends(&["check", "job.toml"]);
    ended.assert_code(0, "a user who does not see everything");
    for words in ["note  rights      no superuser", "next: take a user with authority ALL"] {
        assert!(ended.stdout.contains(words), "{ended:#?}");
    }
}

/// A server whose user sees half of everything.
struct StandInWithLimited(dhis2_stand_in::StandIn);

impl StandInWithLimited {
    fn start() -> Self {
        StandInWithLimited(stand_in().user(User::limited("clerk", PASSWORD, 50)).start().unwrap())
    }
}

#[test]
fn a_check_of_a_server_that_does_not_answer_is_over_in_ten_seconds() {
    let server = stand_in().latency(Latency::None).start().unwrap();
    server.down();
    let place = Place::new();
    let began = Instant::now();
    let ended = place.job(server.url(), "", UNITS).ends(&["check", "job.toml"]);
    ended.assert_code(5, "nobody there");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(ended.stdout.contains("BAD   source"), "{ended:#?}");
}

/// Runs a program on what another has printed; `None` where it is not on this machine.
fn judged(program: &str, arguments: &[&str], text: &str) -> Option<Ended> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        not_proved(&format!("{program} is missing"));
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let text = text.as_bytes().to_vec();
    let writes = std::thread::spawn(move || drop(stdin.write_all(&text)));
    let output = child.wait_with_output().unwrap();
    writes.join().unwrap();
    Some(Ended::of(output))
}

#[test]
fn completions_parse_in_their_shells_and_know_every_command() {
    let place = Place::new();
    for (shell, arguments) in [("bash", vec!["-n"]), ("zsh", vec!["-n"]), ("fish", vec!["--no-execute"])] {
        let ended = place.ends(&["completions", shell]);
        ended.assert_code(0, shell);
        for command in ["run", "plan", "check", "status", "verify", "get", "demo", "--state-dir", "--max-seconds"] {
            assert!(ended.stdout.contains(command.trim_start_matches('-')), "{shell}: {command} is missing");
        }
        if let Some(judged) = judged(shell, &arguments, &ended.stdout) {
            assert!(judged.code == 0 && judged.stderr.is_empty(), "{shell}: {judged:#?}");
        }
    }
    // And they complete.
    let script = place.ends(&["completions", "bash"]).stdout;
    let question = format!(
        "{script}\nCOMP_WORDS=(harvester sta); COMP_CWORD=1; _harvester harvester sta harvester; echo \"${{COMPREPLY[@]}}\""
    );
    if let Some(judged) = judged("bash", &[], &question) {
        assert_eq!(judged.stdout.trim(), "status", "{judged:#?}");
    }
}

#[test]
fn the_man_page_renders_without_a_warning() {
    let page = Place::new().ends(&["man"]);
    page.assert_code(0, "man");
    // `-P-cbou`: no backspaces for bold and underlined words.
    let Some(judged) = judged("groff", &["-man", "-Tutf8", "-ww", "-P-cbou"], &page.stdout) else { return };
    assert!(judged.code == 0 && judged.stderr.is_empty(), "{}", judged.stderr);
    for words in [
        "NAME",
        "SYNOPSIS",
        "--max-seconds <N>",
        "  3 some rows rejected   10 --max-seconds          14 local storage\n",
        "  harvester run jobs/metadata.toml --json | jq .outcome\n",
        "  DHIS2_PASSWORD=… harvester get me --url https://dhis2.example.org --username reader\n",
    ] {
        assert!(judged.stdout.contains(words), "{words} is not in the page");
    }
}

#[test]
fn the_schema_accepts_every_job_and_refuses_every_kind_of_mistake() {
    let place = Place::new();
    let schema = place.ends(&["schema"]);
    schema.assert_code(0, "schema");
    let parsed: Value = serde_json::from_str(&schema.stdout).unwrap();
    assert!(parsed["$schema"].is_string(), "{parsed}");
    place.write("schema.json", &schema.stdout);
    let judge = "import json, sys, tomllib\n\
                 try:\n    from jsonschema import Draft202012Validator as V, Draft7Validator as W\n\
                 except ImportError:\n    sys.exit(77)\n\
                 schema = json.load(open(sys.argv[1]))\nV.check_schema(schema)\n\
                 job = tomllib.load(open(sys.argv[2], 'rb'))\n\
                 sys.exit(1 if list(V(schema).iter_errors(job)) else 0)\n";
    let accepts = |path: &std::path::Path| {
        let status = Command::new("python3").arg("-c").arg(judge).arg(place.file("schema.json")).arg(path).status();
        match status.ok().and_then(|status| status.code()) {
            Some(0) => Some(true),
            Some(1) => Some(false),
            _ => None,
        }
    };
    let mut jobs = 0;
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/jobs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let Some(accepted) = accepts(&path) else {
                not_proved("python3 has no jsonschema");
                return;
            };
            assert!(accepted, "{}", path.display());
            jobs += 1;
        }
    }
    assert!(jobs >= 2);
    place.job("https://h.example", "", UNITS);
    let right = fs::read_to_string(place.file("job.toml")).unwrap();
    assert_eq!(accepts(&place.file("job.toml")), Some(true));
    for (from, to) in [
        ("page_size", "pagesize"),
        ("page_size = 50", "page_size = \"50\""),
        ("\"metadata\"", "\"metadat\""),
        ("version = 1", "version = 2"),
        ("kind = \"files\"", ""),
        ("[limits]", "[limits]\nin_flight = 65"),
    ] {
        assert!(right.contains(from), "{from}");
        place.write("job.toml", &right.replacen(from, to, 1));
        assert_eq!(accepts(&place.file("job.toml")), Some(false), "{from} -> {to}");
    }
}

#[test]
fn once_the_server_has_answered_a_page_that_is_not_there_for_a_moment_is_asked_for_again() {
    // A servlet container answers so while the application is being replaced.
    let gone = Fault::Status { code: 404, retry_after: None, body: Body::Html };
    let rule = FaultRule::on(Match::nth(3)).and_path("/api/organisationUnits").act(gone);
    let server = stand_in().org_units(4_500).fault(rule).start().unwrap();
    let place = Place::new();
    place.job(server.url(), "", UNITS);
    let ended = place.ends(&["get", "organisationUnits?fields=id", "--all", "--job", "job.toml"]);
    ended.assert_code(0, "a moment");
    assert_eq!(ended.stdout.lines().count(), 4_500);
    // A first answer like that is a mistake in the address.
    let server = stand_in().fault(FaultRule::on(Match::always()).act(Fault::Status {
        code: 404,
        retry_after: None,
        body: Body::Html,
    }));
    let server = server.start().unwrap();
    place.job(server.url(), "", UNITS);
    place.ends(&["get", "organisationUnits", "--all", "--job", "job.toml"]).assert_code(7, "from the first");
}

#[test]
fn a_page_that_is_not_there_for_ever_ends_with_5_although_it_is_an_answer() {
    let gone = Fault::Status { code: 404, retry_after: None, body: Body::Html };
    let rule = FaultRule::on(Match::always()).and_path("/api/organisationUnits").act(gone);
    let server = stand_in().fault(rule).start().unwrap();
    let place = Place::new();
    place.job(server.url(), "outage_s = 5", UNITS);
    for typed in [vec!["get", "organisationUnits", "--all", "--job", "job.toml"], vec!["plan", "job.toml"]] {
        let began = Instant::now();
        place.ends(&typed).assert_code(5, &typed.join(" "));
        assert!(began.elapsed() < Duration::from_secs(30), "{typed:?}: {:?}", began.elapsed());
    }
}

#[test]
fn a_question_that_waits_says_why_and_until_when_and_not_for_each_attempt() {
    let commands = vec![vec!["get", "me", "--job", "job.toml"], vec!["plan", "job.toml"], vec!["check", "job.toml"]];
    side_by_side(commands, 3, |typed| {
        let server = stand_in().start().unwrap();
        let place = Place::new();
        place.job(server.url(), "outage_s = 9", UNITS);
        server.down();
        let gone = place.ends(&typed);
        gone.assert_code(5, typed[0]);
        let waits: Vec<_> = gone.stderr.lines().filter(|line| line.contains("waiting: ")).collect();
        assert!((1..=2).contains(&waits.len()), "{gone:#?}");
        assert!(waits[0].contains("refused") && waits[0].contains("gives_up_at="), "{gone:#?}");

        // One that takes the connection and says nothing.
        server.up();
        server.set_latency(Latency::Constant(Duration::from_secs(300)));
        let stderr = fs::File::create(place.file("stderr")).unwrap();
        let mut child = place.harvester(&typed).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let says = || fs::read_to_string(place.file("stderr")).unwrap().contains("waiting: the source to answer");
        let is_told = crate::support::wait_until(says);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_told, "{}: {}", typed[0], fs::read_to_string(place.file("stderr")).unwrap());
    });
}
