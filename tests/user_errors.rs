//! Errors of users: the program names the thing, the cause and the next step.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use dhis2_stand_in::{Body, Fault, FaultRule, Latency, Match, Page, StandIn};
use serde_json::Value;

use crate::support::{Ended, Place, side_by_side, stand_in, wait_until};

const UNITS: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50";
const RUN: &[&str] = &["run", "job.toml", "--json"];
const CHECK: &[&str] = &["check", "job.toml"];
/// A server that is gone is given up soon.
const IMPATIENT: &str = "outage_s = 1";

/// What a person has done wrong.
#[derive(Clone)]
struct Mistake {
    /// In a few words.
    what: &'static str,
    /// What was typed.
    typed: Vec<&'static str>,
    /// The job file is changed: a piece, and what stands there instead.
    instead: Vec<(&'static str, String)>,
    /// Environment variables: set, or taken away.
    environment: Vec<(&'static str, Option<&'static str>)>,
    /// What else is done in the folder before.
    before: fn(&Place),
    /// What the server does to every request.
    fault: Option<Fault>,
    /// The exit code.
    code: i32,
    /// Words of the message.
    says: Vec<&'static str>,
}

/// A mistake of what is typed.
fn typed(what: &'static str, typed: &[&'static str], code: i32, says: &[&'static str]) -> Mistake {
    Mistake {
        what,
        typed: typed.to_vec(),
        instead: Vec::new(),
        environment: Vec::new(),
        before: |_| {},
        fault: None,
        code,
        says: says.to_vec(),
    }
}

/// A mistake in the job file, found by `run`.
fn written(what: &'static str, from: &'static str, to: &str, code: i32, says: &[&'static str]) -> Mistake {
    Mistake { instead: vec![(from, to.to_owned())], ..typed(what, RUN, code, says) }
}

/// Something in the folder.
fn found(what: &'static str, typed_: &[&'static str], before: fn(&Place), code: i32, says: &[&'static str]) -> Mistake {
    Mistake { before, ..typed(what, typed_, code, says) }
}

/// Something in the environment.
fn around(
    what: &'static str,
    name: &'static str,
    value: Option<&'static str>,
    code: i32,
    says: &[&'static str],
) -> Mistake {
    Mistake { environment: vec![(name, value)], ..typed(what, RUN, code, says) }
}

/// Something that the server does.
fn served(what: &'static str, fault: Fault, code: i32, says: &[&'static str]) -> Mistake {
    Mistake { fault: Some(fault), ..typed(what, RUN, code, says) }
}

const SECRET: &str = "{ env = \"DHIS2_PASSWORD\" }";

/// The table.
fn mistakes() -> Vec<Mistake> {
    let status = |code, body| Fault::Status { code, retry_after: None, body };
    vec![
        // The job file.
        typed("no such job file", &["run", "jop.toml", "--json"], 78, &["cannot read the job file jop.toml"]),
        typed("a folder", &["check", "."], 78, &["cannot read the job file .: it is a folder"]),
        found(
            "no text",
            RUN,
            |place| fs::write(place.file("job.toml"), [0xff, 0xfe]).unwrap(),
            78,
            &["not UTF-8 text"],
        ),
        found(
            "far too large",
            RUN,
            |place| place.write("job.toml", &"#\n".repeat(600_000)),
            78,
            &["larger than 1 MiB"],
        ),
        written("no TOML", "name = \"job\"", "name = ", 78, &["job.toml:2:8: not TOML", "2 | name ="]),
        written(
            "a misspelt key",
            "page_size",
            "pagesize",
            78,
            &["unknown key `pagesize`", "did you mean `page_size`?"],
        ),
        written("a wrong type", "page_size = 50", "page_size = \"50\"", 78, &["takes a whole number"]),
        written(
            "a kind for later",
            "page_size = 50",
            "[[extract]]\nkind = \"data_store\"\nnamespaces = [\"*\"]",
            78,
            &["kind `data_store` is not available in this version"],
        ),
        written(
            "incremental over one folder",
            "page_size",
            "mode = \"incremental\"\npage_size",
            78,
            &["needs {run} in sink.directory"],
        ),
        written(
            "two files of one name",
            "page_size",
            "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size",
            78,
            &["the stream `organisationUnits` is also that of extract 1"],
        ),
        written(
            "an API version in the url",
            "\"\nusername",
            "/api/40\"\nusername",
            78,
            &["before the version `40` of the API"],
        ),
        Mistake {
            instead: vec![(SECRET, "\"hunter2-canary\"".to_owned())],
            before: |place| fs::set_permissions(place.file("job.toml"), fs::Permissions::from_mode(0o644)).unwrap(),
            ..typed("a password for everybody", RUN, 78, &["chmod 600 job.toml", "password = ***"])
        },
        // Flags.
        typed("no such command", &["rum", "job.toml"], 2, &["'rum'", "'run'", "--help"]),
        typed("no such flag", &["run", "job.toml", "--fast"], 2, &["'--fast'", "--help"]),
        typed("no job", &["run"], 2, &["<JOB>", "--help"]),
        typed(
            "no time at all",
            &["run", "job.toml", "--max-seconds", "0"],
            2,
            &["whole number of seconds, at least 1"],
        ),
        typed("quiet and verbose", &["run", "job.toml", "-q", "-v"], 2, &["cannot be used with", "--help"]),
        typed("no such shell", &["completions", "zhs"], 2, &["possible values: bash", "--help"]),
        typed("nowhere to ask", &["get", "me"], 2, &["--url", "--help"]),
        typed(
            "nobody to ask as",
            &["get", "me", "--url", "http://127.0.0.1:1"],
            2,
            &["--url needs --username or --token-env"],
        ),
        typed(
            "another server",
            &["get", "https://evil.example/api/me", "--job", "job.toml"],
            2,
            &["is another server"],
        ),
        typed("out of the API", &["get", "../dhis-web-login", "--job", "job.toml"], 2, &["leads out of /api"]),
        typed(
            "all of no collection",
            &["get", "system/info", "--all", "--job", "job.toml"],
            2,
            &["not a collection that --all"],
        ),
        // Environment.
        around("no password", "DHIS2_PASSWORD", None, 78, &["`DHIS2_PASSWORD` is not set", "export DHIS2_PASSWORD"]),
        around("an empty password", "DHIS2_PASSWORD", Some(""), 78, &["the secret is empty"]),
        around("no home", "STATE_DIRECTORY", None, 78, &["no place for state", "--state-dir DIR"]),
        written(
            "no systemd",
            SECRET,
            "{ credential = \"dhis2\" }",
            78,
            &["`CREDENTIALS_DIRECTORY` is not set", "LoadCredential=dhis2"],
        ),
        written("a command that fails", SECRET, "{ command = [\"false\"] }", 78, &["the command `false` ended with 1"]),
        written("no secret file", SECRET, "{ file = \"nowhere\" }", 78, &["cannot read `nowhere`"]),
        // Permissions and places.
        around("state below a file", "STATE_DIRECTORY", Some("/dev/null"), 14, &["/dev/null/job"]),
        around("state where nothing can be", "STATE_DIRECTORY", Some("/proc/harvester"), 14, &["/proc/harvester/job"]),
        written("files where nothing can be", "\"out\"", "\"/proc/out\"", 14, &["/proc", "sink.directory"]),
        found(
            "somebody's file",
            RUN,
            foreign,
            14,
            &["out/organisationUnits.ndjson` was not written by this job", "move it away"],
        ),
        found("somebody's file, checked", CHECK, foreign, 14, &["was not written by this job", "next: move it away"]),
        Mistake {
            instead: vec![("URL\"", "https://127.0.0.1:PORT\"\nca_file = \"nowhere.pem\"".to_owned())],
            ..typed("no certificate", RUN, 7, &["nowhere.pem"])
        },
        // The server.
        around(
            "a wrong password",
            "DHIS2_PASSWORD",
            Some("wrong-canary"),
            6,
            &["does not accept the credentials (401"],
        ),
        Mistake {
            environment: vec![("DHIS2_PASSWORD", Some("wrong-canary"))],
            ..typed("a wrong password, checked", CHECK, 6, &["BAD   login", "next: check user name, password or token"])
        },
        Mistake {
            instead: vec![("URL", "http://no-such-host.invalid".to_owned())],
            ..typed("no such host", RUN, 7, &["no-such-host.invalid"])
        },
        Mistake {
            instead: vec![("URL", "http://127.0.0.1:1".to_owned())],
            ..typed("nobody listens", RUN, 5, &["connection refused by 127.0.0.1:1"])
        },
        Mistake {
            instead: vec![("URL", "https://127.0.0.1:PORT".to_owned())],
            ..typed("TLS to a server without", RUN, 7, &["TLS", "http://"])
        },
        served("no DHIS2 at all", status(404, Body::Html), 7, &["404"]),
        served("a login page", Fault::Html200(Page::Login), 6, &["login"]),
        served(
            "a redirect elsewhere",
            Fault::Redirect("https://elsewhere.example.org/".into()),
            7,
            &["elsewhere.example.org"],
        ),
        served("no rights at all", status(403, Body::Json), 7, &["403", "administrator"]),
        served(
            "a server that wants an hour",
            Fault::Status { code: 503, retry_after: Some("3600".into()), body: Body::Html },
            5,
            &["asked clients to wait until 2", "run the same command then: harvester run job.toml"],
        ),
        served("a server in trouble", status(503, Body::Html), 5, &["503"]),
        written("no such collection", "organisationUnits", "organizationUnits", 7, &["organizationUnits"]),
        Mistake {
            typed: vec!["get", "nothingHere", "--job", "job.toml"],
            ..typed("nothing there", &[], 7, &["404 Not Found", "api/nothingHere"])
        },
        // What is on the disk.
        typed(
            "nothing to verify",
            &["verify", "job.toml"],
            4,
            &["nothing has been published in out yet", "harvester run job.toml"],
        ),
        found("a status that is none", &["status", "job.toml"], garbled_status, 14, &["cannot read the status"]),
    ]
}

/// Somebody else's file under a name of ours.
fn foreign(place: &Place) {
    fs::create_dir(place.file("out")).unwrap();
    place.write("out/organisationUnits.ndjson", "somebody's\n");
}

/// A status that nobody can read, and no report beside it.
fn garbled_status(place: &Place) {
    fs::create_dir_all(place.file("state/job")).unwrap();
    place.write("state/job/status.json", "{");
}

/// What only a panic, a backtrace or a `Debug` print looks like.
const RAW: [&str; 14] = [
    "panicked",
    "RUST_BACKTRACE",
    "stack backtrace",
    "internal error",
    "Some(",
    "None",
    "Err(",
    "Ok(",
    "Error {",
    "Os {",
    "kind: ",
    "Custom",
    "PathBuf",
    "Failure {",
];

/// Asserts that a message is one for people.
fn assert_readable(ended: &Ended, what: &str) {
    for raw in RAW {
        assert!(!ended.stderr.contains(raw) && !ended.stdout.contains(raw), "{what}: `{raw}` in {ended:#?}");
    }
    let all = format!("{}{}", ended.stdout, ended.stderr);
    let steps = ["next: ", "next:  ", "For more information, try '--help'."];
    let has_step = all.lines().any(|line| {
        steps.iter().any(|step| line.find(step).is_some_and(|at| line.len() > at + step.len()))
            || line == "For more information, try '--help'."
    });
    assert!(has_step, "{what}: says nothing to do next: {ended:#?}");
}

#[test]
fn every_mistake_has_its_code_its_message_and_a_next_step() {
    let truthful = stand_in().org_units(60).start().unwrap();
    let table = mistakes();
    assert!(table.len() >= 30);
    side_by_side(table, 8, |mistake| {
        let what = mistake.what;
        let faulty: Option<StandIn> = mistake
            .fault
            .clone()
            .map(|fault| stand_in().org_units(60).fault(FaultRule::on(Match::always()).act(fault)).start().unwrap());
        let place = Place::new();
        place.job("URL", IMPATIENT, UNITS);
        let mut text = fs::read_to_string(place.file("job.toml")).unwrap();
        for (from, to) in &mistake.instead {
            assert!(text.contains(from), "{what}: {from} is not in the job");
            text = text.replacen(from, to, 1);
        }
        let server = faulty.as_ref().unwrap_or(&truthful);
        place.write("job.toml", &text.replace("URL", server.url()).replace("PORT", &server.port().to_string()));
        (mistake.before)(&place);
        let mut command = place.harvester(&mistake.typed);
        for (name, value) in &mistake.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let ended = Ended::of(command.output().unwrap());
        ended.assert_code(mistake.code, what);
        let all = format!("{}{}", ended.stdout, ended.stderr);
        for words in &mistake.says {
            assert!(all.contains(words), "{what}: `{words}` is not in {ended:#?}");
        }
        assert!(!all.contains("canary"), "{what}: a secret is in {ended:#?}");
        assert_readable(&ended, what);
        // A script hears of it too, whatever it was.
        if mistake.typed.contains(&"--json") {
            let report = ended.report();
            assert_eq!(report["exit_code"], mistake.code, "{what}: {report}");
            assert!(!report["error"]["message"].as_str().unwrap().is_empty(), "{what}");
            assert!(!report["error"]["next"].as_str().unwrap().is_empty(), "{what}");
        }
    });
}

#[test]
fn all_mistakes_of_a_job_file_are_told_at_once_with_place_and_suggestion() {
    let place = Place::new();
    place.job("https://dhis2.example.org", "in_flight = \"many\"", &UNITS.replace("\"metadata\"", "\"metadat\""));
    let text = fs::read_to_string(place.file("job.toml")).unwrap().replace("password =", "pasword =");
    place.write("job.toml", &text);
    for command in ["run", "check", "plan", "status", "verify"] {
        let ended = place.ends(&[command, "job.toml"]);
        ended.assert_code(78, command);
        for words in [
            "job.toml:7:1: unknown key `pasword` in [source]; did you mean `password`?",
            "7 | pasword = { env = *** }",
            "job.toml:10:13: `in_flight` takes a whole number from 1 to 64, not text",
            "job.toml:13:8: unknown kind `metadat`; did you mean `metadata`?",
            "3 errors in job.toml",
        ] {
            assert!(ended.stderr.contains(words), "{command}: `{words}` is not in {ended:#?}");
        }
    }
}

/// A job that has been killed in the middle.
fn killed(place: &Place, server: &StandIn) {
    place.job(server.url(), "in_flight = 2", UNITS);
    let mut child = place.start();
    let is_under_way = wait_until(|| {
        let ended = place.ends(&["status", "job.toml", "--json"]);
        serde_json::from_str(&ended.stdout).is_ok_and(|status: Value| status["progress"]["partitions_finished"] != 0)
    });
    assert!(is_under_way, "nothing happened");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A server that takes its time.
fn slow() -> StandIn {
    stand_in().org_units(3_000).latency(Latency::Constant(std::time::Duration::from_millis(60))).start().unwrap()
}

#[test]
fn a_changed_filter_is_refused_with_the_difference_and_changed_limits_go_on() {
    let server = slow();
    let place = Place::new();
    killed(&place, &server);
    let changed = format!("{UNITS}\nfilters = [\"level:le:2\"]");
    place.job(server.url(), "in_flight = 2", &changed);
    let ended = place.run();
    ended.assert_code(13, "another filter");
    assert_readable(&ended, "another filter");
    let message = ended.report()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("extract[1].filters was ``, is `level:le:2`"), "{message}");
    let checked = place.ends(CHECK);
    checked.assert_code(13, "checked");
    assert!(checked.stdout.contains("extract[1].filters was ``, is `level:le:2`"), "{checked:#?}");

    place.job(server.url(), "in_flight = 7\nrequests_per_second = 90\nretries = 2", UNITS);
    let checked = place.ends(CHECK);
    checked.assert_code(0, "checked with other limits");
    assert!(checked.stdout.contains("checkpoint  run 2") && checked.stdout.contains(" resumes: "), "{checked:#?}");
    let ended = place.run();
    ended.assert_code(0, "other limits");
    assert_eq!(ended.report()["resumed"], true);
    place.assert_exact(&server, "organisationUnits", "other limits");
    let checked = place.ends(CHECK);
    assert!(checked.stdout.contains("checkpoint  nothing unfinished"), "{checked:#?}");
}

#[test]
fn two_job_files_of_one_name_are_refused_and_both_are_named() {
    let server = stand_in().org_units(60).start().unwrap();
    let place = Place::new();
    place.job(server.url(), "", UNITS).run().assert_code(0, "the first");
    fs::copy(place.file("job.toml"), place.file("other.toml")).unwrap();
    for typed in [vec!["run", "other.toml", "--json"], vec!["status", "other.toml"], vec!["check", "other.toml"]] {
        let ended = place.ends(&typed);
        ended.assert_code(13, typed[0]);
        assert_readable(&ended, typed[0]);
        let all = format!("{}{}", ended.stdout, ended.stderr);
        assert!(all.contains("job.toml") && all.contains("other.toml") && all.contains("another name"), "{all}");
    }
    place.run().assert_code(0, "the first again");
}

#[test]
fn a_second_process_is_refused_with_pid_and_start_of_the_first() {
    let server = slow();
    let place = Place::new();
    let mut first = place.job(server.url(), "in_flight = 1", UNITS).start();
    assert!(server.ledger().wait_until(std::time::Duration::from_secs(30), |seen| seen.len() > 5));
    let second = place.run();
    second.assert_code(11, "a second process");
    assert_readable(&second, "a second process");
    let said = format!("process {}, started 2", first.id());
    assert!(second.report()["error"]["message"].as_str().unwrap().contains(&said), "{second:#?}");
    let checked = place.ends(CHECK);
    checked.assert_code(0, "checked meanwhile");
    assert!(
        checked.stdout.contains(&said) && checked.stdout.contains("next: harvester status job.toml"),
        "{checked:#?}"
    );
    first.kill().unwrap();
    first.wait().unwrap();
    place.run().assert_code(0, "when the first is gone");
    place.assert_exact(&server, "organisationUnits", "when the first is gone");
}

#[test]
fn a_check_finds_a_lost_spool_and_a_damaged_store_and_changes_nothing() {
    let server = slow();
    let place = Place::new();
    killed(&place, &server);
    let state = place.file("state/job");
    let store = |place: &Place| {
        let mut files: Vec<_> = fs::read_dir(place.file("state/job/checkpoint"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| (fs::read(&path).unwrap(), path))
            .collect();
        files.sort();
        files
    };
    let before = store(&place);
    place.ends(CHECK).assert_code(0, "as it is");
    assert!(store(&place) == before, "the check has changed the store");

    fs::rename(state.join("spool"), state.join("away")).unwrap();
    let ended = place.ends(CHECK);
    ended.assert_code(12, "no spool");
    assert!(ended.stdout.contains("--restart"), "{ended:#?}");
    place.run().assert_code(12, "no spool, run");
    fs::rename(state.join("away"), state.join("spool")).unwrap();

    for (mut bytes, path) in store(&place) {
        bytes.iter_mut().step_by(17).for_each(|byte| *byte ^= 0x55);
        fs::write(path, bytes).unwrap();
    }
    let ended = place.ends(CHECK);
    ended.assert_code(0, "a damaged store");
    assert!(ended.stdout.contains("rebuilds the store"), "{ended:#?}");
    assert_readable(&ended, "a damaged store");
    let ended = place.run();
    ended.assert_code(0, "a damaged store, run");
    place.assert_exact(&server, "organisationUnits", "a damaged store");
}

#[test]
fn a_job_file_that_was_moved_goes_on_and_a_copy_of_it_is_refused() {
    let server = stand_in().org_units(1_500).latency(Latency::Constant(Duration::from_millis(50))).start().unwrap();
    let place = Place::new();
    place.job(server.url(), "in_flight = 1", UNITS);
    place.ends(&["run", "job.toml", "--max-seconds", "1"]).assert_code(10, "stopped half way");
    fs::copy(place.file("job.toml"), place.file("copy.toml")).unwrap();
    for refused in ["run", "check", "status"] {
        place.ends(&[refused, "copy.toml"]).assert_code(13, refused);
    }
    fs::rename(place.file("job.toml"), place.file("moved.toml")).unwrap();
    fs::remove_file(place.file("copy.toml")).unwrap();
    place.ends(&["status", "moved.toml"]).assert_code(0, "status");
    place.ends(&["check", "moved.toml"]).assert_code(0, "check");
    let ended = place.ends(&["run", "moved.toml", "--json"]);
    ended.assert_code(0, "run");
    assert_eq!(ended.report()["resumed"], true);
}
