//! The negative controls: what each protection is for. Every test here passes, and fails in a build with `--features controls`
//! once `HARVESTER_CONTROL` switches its protection off; `tests/prove` does so for the whole table.

use std::{fs, path::Path, time::Duration};

use dhis2_stand_in::{Fault, FaultRule, Framing, Latency, Match, Place as At};

use crate::{
    proof::{SUBJECTS, Scene},
    support::stand_in,
};

/// 15 pages in which a death can be placed.
fn scene() -> Scene {
    Scene::new(&SUBJECTS[0], |server| server.latency(Latency::Constant(Duration::from_millis(20))))
}

/// Patient enough for a loaded machine.
const LIMITS: &str = "in_flight = 2\noutage_s = 4";

#[test]
fn control_end_of_body_a_cut_answer_is_never_printed_as_a_whole_one() {
    for framing in [Framing::Length, Framing::Close] {
        let cut =
            FaultRule::on(Match::always()).and_path("organisationUnits").act(Fault::cut_in(framing, At::Fraction(0.5)));
        let scene = Scene::new(&SUBJECTS[0], |server| server.fault(cut));
        let trial = scene.trial(LIMITS);
        let get = [
            "get",
            "organisationUnits?fields=id&pageSize=50",
            "--username",
            "admin",
            "--password-env",
            "DHIS2_PASSWORD",
        ];
        let output = trial.command(&[], &get).args(["--url", scene.server.url()]).output().unwrap();
        assert!(!output.status.success(), "{framing:?}: half a response was printed as a success");
    }
}

#[test]
fn control_content_type_json_under_another_type_is_no_answer() {
    let other = FaultRule::on(Match::From(6)).and_rows_only().act(Fault::ContentType("text/plain".into()));
    let scene = Scene::new(&SUBJECTS[0], |server| server.fault(other));
    scene.trial(LIMITS).run().assert_code(7, "rows as text/plain");
}

#[test]
fn control_identity_another_database_behind_the_same_url_is_refused() {
    let server = |system_id, port| {
        move |_| {
            let latency = Latency::Constant(Duration::from_millis(40));
            stand_in().org_units(600).system_id(system_id).latency(latency).port(port)
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let first = Scene::new(&SUBJECTS[0], server("11111111-aaaa-4aaa-8aaa-aaaaaaaaaaaa", 0));
    let trial = first.trial_in(folder.path().to_owned(), LIMITS);
    let ledger = first.server.ledger();
    let mut child = trial.command(&[], &["run", "job.toml"]).spawn().unwrap();
    assert!(ledger.wait_until(Duration::from_secs(30), |seen| seen.len() > 15), "nothing happened");
    child.kill().unwrap();
    child.wait().unwrap();
    // At the very same url: another one would be refused as another job.
    let port = first.server.port();
    drop(first);
    let second = Scene::new(&SUBJECTS[0], server("22222222-bbbb-4bbb-8bbb-bbbbbbbbbbbb", port));
    let ended = second.trial_in(folder.path().to_owned(), LIMITS).run();
    ended.assert_code(13, "another systemId");
    assert!(ended.report()["error"]["message"].as_str().unwrap().contains("systemId"), "{ended:#?}");
}

#[test]
fn control_cold_start_processes_that_are_killed_at_once_stay_below_the_limit_together() {
    let scene = scene();
    let trial = scene.trial("requests_per_second = 2\nin_flight = 1");
    let ledger = scene.server.ledger();
    for _ in 0..5 {
        let before = ledger.count();
        let mut child = trial.command(&[], &["run", "job.toml"]).spawn().unwrap();
        assert!(ledger.wait_until(Duration::from_secs(20), |seen| seen.len() > before), "it never sent anything");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let peak = ledger.max_in_window(Duration::from_secs(1));
    assert!(peak <= 2, "{peak} requests in one second, of several processes");
}

#[test]
fn control_torn_tail_a_page_torn_twice_leaves_no_damage() {
    if !cfg!(feature = "failpoints") {
        println!("NOT PROVED HERE: needs `--features failpoints`; tests/prove has them");
        return;
    }
    let scene = scene();
    let trial = scene.trial(LIMITS);
    for passings in [6, 8, 4] {
        let code = trial.run_with(&[], &format!("spool.append.trailer={passings}*off->return"));
        assert_eq!(code, -7, "it should have died within a page");
    }
    trial.completes("torn three times");
}

/// The table of `tests/prove`, read from it: control, package, test.
fn table() -> Vec<[String; 3]> {
    let script = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/prove")).unwrap();
    let rows = script.lines().skip_while(|line| *line != "CONTROLS = [").skip(1).take_while(|line| *line != "]");
    let words = |row: &str| row.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    rows.map(|row| words(row).try_into().unwrap_or_else(|_| panic!("`{row}` is no row"))).collect()
}

#[test]
fn every_protection_has_a_test_that_fails_without_it() {
    let table = table();
    for control in harvester_pacing::control::CONTROLS {
        assert!(table.iter().any(|[name, ..]| name == control), "nothing in tests/prove switches `{control}` off");
    }
    for [control, _, _] in &table {
        assert!(harvester_pacing::control::CONTROLS.contains(&control.as_str()), "`{control}` is no control");
    }
}

/// All Rust source below a folder, as one text.
fn source(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text.push_str(&source(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
    text
}

#[test]
fn every_test_that_the_promises_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text: String = ["actors", "src", "tests"].iter().map(|room| source(&root.join(room))).collect();
    let promises = fs::read_to_string(root.join("tests/promises.md")).unwrap();
    // What stands between backticks and looks like a sentence.
    let quoted = promises.split('`').skip(1).step_by(2);
    let names: Vec<_> = quoted
        .filter(|word| {
            word.matches('_').count() >= 3
                && word.chars().all(|it| it == '_' || it.is_ascii_lowercase() || it.is_ascii_digit())
        })
        // A name of the job file or the report, not of a test.
        .filter(|word| *word != "peak_requests_per_second")
        .collect();
    assert!(names.len() > 40, "only {names:?}");
    for name in names {
        let is_there = text.contains(&format!("fn {name}(")) || text.contains(&format!("fn {name}<"));
        assert!(is_there, "tests/promises.md names `{name}`, which does not exist");
    }
}
