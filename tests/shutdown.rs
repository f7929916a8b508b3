//! Every way to stop a run, and readers that go away: the right code, soon, and the same command resumes.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use dhis2_stand_in::{Body, Fault, FaultRule, Latency, Match, StandIn};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::Instant;

use crate::support::{Ended, Place, side_by_side, signal, stand_in, wait_until};

const UNITS: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50";

/// What a service manager allows before it kills.
const PROMISED: Duration = Duration::from_secs(30);

/// A server on which a run lasts some seconds.
fn slow() -> StandIn {
    stand_in().org_units(3_000).latency(Latency::Constant(Duration::from_millis(60))).start().unwrap()
}

/// What `status --json` says now.
fn status(place: &Place) -> Value {
    serde_json::from_str(&place.ends(&["status", "job.toml", "--json"]).stdout).unwrap_or_default()
}

#[test]
fn a_second_ctrl_c_leaves_at_once_and_the_file_is_exact_later() {
    let server = slow();
    let place = Place::new();
    let child = place.job(server.url(), "in_flight = 4", UNITS).harvester(&["run", "job.toml"]).spawn().unwrap();
    assert!(server.ledger().wait_until(PROMISED, |seen| seen.len() > 20), "nothing happened");
    // From here on every answer takes longer than the test may.
    server.set_latency(Latency::Constant(Duration::from_secs(300)));
    let before = server.ledger().count();
    assert!(server.ledger().wait_until(PROMISED, |seen| seen.len() > before), "nothing was asked since");
    signal(&child, Signal::INT);
    assert!(wait_until(|| status(&place)["state"] == "finishing"), "the first Ctrl-C was not heard");
    let second = Instant::now();
    signal(&child, Signal::INT);
    let ended = Ended::of(child.wait_with_output().unwrap());
    assert!(second.elapsed() < Duration::from_secs(2), "it took {:?} to leave", second.elapsed());
    ended.assert_code(130, "twice");
    server.set_latency(Latency::None);
    let again = place.run();
    again.assert_code(0, "the same command");
    assert_eq!(again.report()["resumed"], true);
    place.assert_exact(&server, "organisationUnits", "twice");
}

#[test]
fn sigterm_ends_it_in_time_whatever_it_waits_for() {
    let asked = Fault::Status { code: 503, retry_after: Some("500".into()), body: Body::Html };
    type Trouble = fn(&StandIn, &Fault);
    let cases: Vec<(&str, Trouble)> = vec![
        ("a Retry-After", |server, asked| {
            server.add_fault(FaultRule::on(Match::always()).act(asked.clone()));
        }),
        ("an outage", |server, _| server.down()),
        ("a server that thinks", |server, _| server.set_latency(Latency::Constant(Duration::from_secs(300)))),
        ("a server that was never there", |_, _| {}),
    ];
    side_by_side(cases, 4, |(what, trouble)| {
        let server = slow();
        let is_there = what != "a server that was never there";
        if !is_there {
            server.down();
        }
        let place = Place::new();
        let child = place.job(server.url(), "in_flight = 4", UNITS).harvester(&["run", "job.toml"]).spawn().unwrap();
        if is_there {
            assert!(server.ledger().wait_until(PROMISED, |seen| seen.len() > 20), "{what}: nothing happened");
        }
        trouble(&server, &asked);
        if what == "a server that thinks" {
            assert!(wait_until(|| server.ledger().in_flight() >= 1), "{what}: nothing is asked");
        } else {
            assert!(wait_until(|| status(&place)["waiting_for"].is_string()), "{what}: {}", status(&place));
        }
        let asked_to_stop = Instant::now();
        signal(&child, Signal::TERM);
        let ended = Ended::of(child.wait_with_output().unwrap());
        assert!(asked_to_stop.elapsed() < PROMISED, "{what}: it took {:?}", asked_to_stop.elapsed());
        ended.assert_code(143, what);
        assert!(ended.stderr.contains("run the same command to resume"), "{what}: {ended:#?}");
        server.set_latency(Latency::None);
        server.heal();
        server.up();
        place.run().assert_code(0, &format!("{what}, the same command"));
        place.assert_exact(&server, "organisationUnits", what);
    });
}

#[test]
fn when_the_time_is_over_it_stops_with_10_and_the_same_command_goes_on() {
    let server = slow();
    let place = Place::new();
    place.job(server.url(), "in_flight = 1", UNITS);
    let ended = place.ends(&["run", "job.toml", "--json", "--max-seconds", "1"]);
    ended.assert_code(10, "a second");
    let report = ended.report();
    assert_eq!((&report["outcome"], &report["exit_code"]), (&Value::from("limit"), &Value::from(10)));
    assert!(ended.stderr.contains("run the same command to resume: harvester run job.toml"), "{ended:#?}");
    let again = place.run();
    again.assert_code(0, "the same command");
    assert_eq!(again.report()["resumed"], true);
    place.assert_exact(&server, "organisationUnits", "a second");
}

#[test]
fn ctrl_c_ends_a_question_that_is_not_answered() {
    side_by_side(vec![vec!["get", "me", "--job", "job.toml"], vec!["plan", "job.toml"]], 2, |typed| {
        let server = stand_in().latency(Latency::Constant(Duration::from_secs(300))).start().unwrap();
        let place = Place::new();
        let child = place.job(server.url(), "", UNITS).harvester(&typed).spawn().unwrap();
        assert!(server.ledger().wait_until(PROMISED, |seen| !seen.is_empty()), "{typed:?}: nothing was asked");
        let asked_to_stop = Instant::now();
        signal(&child, Signal::INT);
        let ended = Ended::of(child.wait_with_output().unwrap());
        assert!(asked_to_stop.elapsed() < Duration::from_secs(5), "{typed:?}: {:?}", asked_to_stop.elapsed());
        ended.assert_code(130, typed[0]);
    });
}

/// A line of bash in a place, with `harvester` on its path.
fn bash(place: &Place, line: &str) -> Ended {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_harvester"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var_os("PATH").unwrap().display());
    let mut command = Command::new("bash");
    command
        .args(["-c", line])
        .current_dir(place.path())
        .env("PATH", path)
        .env("STATE_DIRECTORY", place.file("state"))
        .env("DHIS2_PASSWORD", crate::support::PASSWORD)
        .stdin(Stdio::null());
    Ended::of(command.output().unwrap())
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let server = stand_in().org_units(20_000).start().unwrap();
    let place = Place::new();
    place.job(server.url(), "", UNITS.replace("50", "5000").as_str());
    let codes = "; echo \"${PIPESTATUS[0]}\" > code";
    for line in [
        "harvester get 'organisationUnits?fields=id,name' --all --job job.toml | head -3",
        "harvester get 'organisationUnits?paging=false' --job job.toml | head -c 100",
        "harvester plan job.toml --json | head -1",
        "harvester schema | head -1",
        "harvester man | head -1",
        "harvester completions zsh | head -1",
        "harvester --help | head -1",
        "harvester check job.toml | head -1",
        "harvester run job.toml --json -q | head -c 10",
        "harvester status job.toml | true",
        "harvester verify job.toml | true",
    ] {
        let ended = bash(&place, &format!("{line}{codes}"));
        assert_eq!(fs::read_to_string(place.file("code")).unwrap().trim(), "0", "{line}: {ended:#?}");
        for word in ["error", "panicked", "Broken pipe"] {
            assert!(!ended.stderr.contains(word), "{line}: {ended:#?}");
        }
        let wants_lines = line.contains("head") && !line.contains("head -c");
        assert!(!wants_lines || !ended.stdout.is_empty(), "{line}: {ended:#?}");
    }
    place.assert_exact(&server, "organisationUnits", "with a reader that went away");
}

#[test]
fn a_stderr_that_is_closed_full_or_gone_stops_nothing() {
    for (what, to) in
        [("closed", "2>&-"), ("full", "2>/dev/full"), ("gone", "2> >(exec true)"), ("all closed", "<&- >&- 2>&-")]
    {
        let server = stand_in().org_units(600).start().unwrap();
        let place = Place::new();
        place.job(server.url(), "", UNITS);
        let ended = bash(&place, &format!("harvester run job.toml --json -vv {to}"));
        ended.assert_code(0, what);
        place.assert_exact(&server, "organisationUnits", what);
    }
}

/// Starts a talkative run whose stderr is a pipe that nobody reads.
fn unheard(place: &Place) -> Child {
    let command = &mut place.harvester(&["run", "job.toml", "--json", "-vv"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_stderr_that_nobody_reads_neither_stops_the_run_nor_swallows_a_signal() {
    // Two lines a page and more: several times what a pipe holds.
    let pages = UNITS.replace("50", "2");
    let server = stand_in().org_units(3_000).start().unwrap();
    let place = Place::new();
    place.job(server.url(), "requests_per_second = 10000", &pages);
    let mut child = unheard(&place);
    let mut code = None;
    let ended = wait_until(|| {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    child.kill().unwrap();
    assert!(ended, "it stands still after {} requests", server.ledger().count());
    assert_eq!(code.unwrap().code(), Some(0));
    place.assert_exact(&server, "organisationUnits", "unheard");

    let server = stand_in().org_units(12_000).start().unwrap();
    let place = Place::new();
    place.job(server.url(), "requests_per_second = 10000", &pages);
    let mut child = unheard(&place);
    // By then the pipe is full.
    let is_under_way = server.ledger().wait_until(PROMISED, |seen| seen.len() > 1_500);
    let asked_to_stop = Instant::now();
    signal(&child, Signal::TERM);
    let mut code = None;
    let ended = wait_until(|| {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    child.kill().unwrap();
    assert!(is_under_way, "it stands still after {} requests", server.ledger().count());
    assert!(ended && asked_to_stop.elapsed() < Duration::from_secs(10), "{:?}", asked_to_stop.elapsed());
    assert_eq!(code.unwrap().code(), Some(143));
    server.set_latency(Latency::None);
    place.run().assert_code(0, "the same command");
    place.assert_exact(&server, "organisationUnits", "unheard, and stopped");
}
