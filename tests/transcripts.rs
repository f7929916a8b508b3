//! What a person sees, word for word.
//!
//! One redactor makes the pictures stable. Each placeholder is as wide as what it stands for, or ends a line, so that
//! columns stay columns.

use std::{fs, process::Command};

use dhis2_stand_in::{Body, Fault, FaultRule, Match, StandIn};

use crate::support::{Ended, Place, stand_in};

const UNITS: &str =
    "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\", \"dataElements\"]\npage_size = 50";
/// One request at a time, so that their number and order are the same every time.
const LIMITS: &str = "in_flight = 1\noutage_s = 1";

/// What differs from one time to the next, and what stands for it.
const REDACTED: [(&str, &str); 11] = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", "YYYY-MM-DDThh:mm:ss.ffffffZ"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "YYYY-MM-DDThh:mm:ssZ"),
    (r"\d{8}T\d{6}Z", "YYYYMMDDThhmmssZ"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
    (r"/tmp/\.tmp\w{6}", "/tmp/folder_____"),
    (r"\(\d+\.\d s, run", "(#.# s, run"),
    (r"peak \d+/s", "peak ##/s"),
    (r"\d+\.\d [KMGT]iB free", "##.# GiB free"),
    // Whether the plan is made before or after the first second.
    (r", 0 rows/s, 0 of 200 requests/s", ""),
    (r"process \d+", "process #####"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "uuuuuuuu-uuuu-uuuu-uuuu-uuuuuuuuuuuu"),
];

/// The redactor: holds for every picture that is compared within `compare`.
fn redacted(compare: impl FnOnce()) {
    let mut settings = insta::Settings::clone_current();
    for (pattern, placeholder) in REDACTED {
        settings.add_filter(pattern, placeholder);
    }
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(compare);
}

/// What was typed, what came, and the exit code.
fn typed(place: &Place, line: &str) -> String {
    typed_with(place, line, |_| {})
}

/// The same in another environment.
fn typed_with(place: &Place, line: &str, change: impl FnOnce(&mut Command)) -> String {
    let arguments: Vec<&str> = line.split(' ').collect();
    let mut command = place.harvester(&arguments);
    change(&mut command);
    let ended = Ended::of(command.output().unwrap());
    let mut text = format!("$ harvester {line}\n");
    for (name, said) in [("stdout", &ended.stdout), ("stderr", &ended.stderr)] {
        if !said.is_empty() {
            text.push_str(&format!("-- {name}\n{}\n", said.trim_end_matches('\n')));
        }
    }
    text + &format!("-- exit {}\n", ended.code)
}

fn server() -> StandIn {
    stand_in().org_units(300).start().unwrap()
}

#[test]
fn a_first_evening_with_the_program_reads_like_this() {
    let server = server();
    let place = Place::new();
    place.job(server.url(), LIMITS, UNITS);
    let mut told = Vec::new();
    for line in [
        "status job.toml",
        "verify job.toml",
        "check job.toml",
        "plan job.toml",
        "plan job.toml --json",
        "run job.toml",
        "status job.toml",
        "verify job.toml",
        "check job.toml",
    ] {
        told.push(typed(&place, line));
    }
    let file = place.file("out/dataElements.ndjson");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    told.push(typed(&place, "verify job.toml"));
    redacted(|| insta::assert_snapshot!("a_first_evening", told.join("\n")));
}

#[test]
fn what_goes_wrong_reads_like_this() {
    let server = server();
    let place = Place::new();
    let mut told = Vec::new();
    told.push(typed(&place, "run jop.toml"));
    place.job(server.url(), "in_flight = \"many\"\nrequest_per_second = 3", &UNITS.replace("metadata", "metadat"));
    told.push(typed(&place, "run job.toml"));
    place.job(server.url(), LIMITS, UNITS);
    told.push(typed_with(&place, "run job.toml", |command| {
        command.env_remove("DHIS2_PASSWORD");
    }));
    for line in ["check job.toml", "run job.toml"] {
        told.push(typed_with(&place, line, |command| {
            command.env("DHIS2_PASSWORD", "wrong");
        }));
    }
    told.push(typed(&place, "get nothingHere --job job.toml"));
    told.push(typed(&place, "get https://elsewhere.example.org/api/me --job job.toml"));
    place.job(server.url(), LIMITS, &UNITS.replace("dataElements", "dataElementz"));
    told.push(typed(&place, "run job.toml"));
    fs::copy(place.file("job.toml"), place.file("other.toml")).unwrap();
    told.push(typed(&place, "run other.toml"));
    redacted(|| insta::assert_snapshot!("what_goes_wrong", told.join("\n")));
}

#[test]
fn an_interrupted_run_and_the_next_one_read_like_this() {
    let asked = Fault::Status { code: 503, retry_after: Some("3600".into()), body: Body::Html };
    let rule = FaultRule::on(Match::From(6)).and_path("/api/organisationUnits").act(asked);
    let server = stand_in().org_units(300).fault(rule).start().unwrap();
    let place = Place::new();
    place.job(server.url(), LIMITS, UNITS);
    let mut told = Vec::new();
    for line in ["run job.toml -q", "status job.toml", "check job.toml"] {
        told.push(typed(&place, line));
    }
    server.heal();
    place.job(server.url(), LIMITS, &format!("{UNITS}\nfilters = [\"name:like:a\"]"));
    told.push(typed(&place, "run job.toml"));
    place.job(server.url(), LIMITS, UNITS);
    told.push(typed(&place, "run job.toml"));
    redacted(|| insta::assert_snapshot!("an_interrupted_run", told.join("\n")));
}
