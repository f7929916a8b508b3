//! A person can always see how a job is doing: while it runs, after a kill, on a full disk, without a store.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use dhis2_stand_in::{Body, Fault, FaultRule, Latency, Match, StandIn};
use serde_json::Value;

use crate::support::{Place, not_proved, side_by_side, stand_in, wait_until};

const UNITS: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50";

fn slow() -> StandIn {
    stand_in().org_units(3_000).latency(Latency::Constant(Duration::from_millis(60))).start().unwrap()
}

/// What a machine reads.
fn status(place: &Place) -> Value {
    let ended = place.ends(&["status", "job.toml", "--json"]);
    ended.assert_code(0, "status --json");
    serde_json::from_str(&ended.stdout).unwrap()
}

/// What a person reads.
fn told(place: &Place) -> String {
    let ended = place.ends(&["status", "job.toml"]);
    ended.assert_code(0, "status");
    ended.stdout
}

#[test]
fn it_is_told_before_during_and_after_a_run_and_after_a_kill() {
    let server = slow();
    let place = Place::new();
    place.job(server.url(), "in_flight = 2", UNITS);
    assert_eq!(told(&place), "job: has never run\n\nnext: harvester run job.toml\n");
    assert_eq!(status(&place)["state"], "new");

    let mut child = place.start();
    assert!(wait_until(|| status(&place)["streams"]["organisationUnits"]["rows"].as_u64() > Some(100)), "no rows");
    let running = status(&place);
    assert_eq!((&running["state"], &running["pid"]), (&Value::from("running"), &Value::from(child.id())));
    assert_eq!(running["streams"]["organisationUnits"]["expected"], 3_000);
    let text = told(&place);
    for words in
        ["job: running (run 2", &format!("process {}, last update ", child.id()), " of 3 000 rows", "kill -TERM"]
    {
        assert!(text.contains(words), "`{words}` is not in {text}");
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let killed = status(&place);
    assert_eq!((&killed["state"], &killed["outcome"]), (&Value::from("stopped"), &Value::from("interrupted")));
    let text = told(&place);
    for words in ["job: stopped", "ended without a clean shutdown", "next:  harvester run job.toml"] {
        assert!(text.contains(words), "`{words}` is not in {text}");
    }
    // Neither the store nor the spool is needed for it, nor the status itself.
    for gone in ["checkpoint", "spool"] {
        fs::rename(place.file("state/job").join(gone), place.file(gone)).unwrap();
    }
    assert_eq!(told(&place), text);
    for gone in ["checkpoint", "spool"] {
        fs::rename(place.file(gone), place.file("state/job").join(gone)).unwrap();
    }
    fs::remove_file(place.file("state/job/status.json")).unwrap();
    assert!(told(&place).starts_with("job: stopped"), "{}", told(&place));

    place.run().assert_code(0, "the same command");
    let (after, report) = (status(&place), fs::read(place.file("state/job/report.json")).unwrap());
    assert_eq!((&after["state"], &after["exit_code"]), (&Value::from("complete"), &Value::from(0)));
    let report: Value = serde_json::from_slice(&report).unwrap();
    for (key, value) in report.as_object().unwrap() {
        assert_eq!(&after[key], value, "{key}");
    }
    assert!(told(&place).contains("check them with: harvester verify job.toml"), "{}", told(&place));
}

#[test]
fn a_wait_is_told_with_its_reason_and_its_end() {
    let asked = Fault::Status { code: 429, retry_after: Some("300".into()), body: Body::Html };
    let server = stand_in().org_units(3_000).fault(FaultRule::on(Match::From(20)).act(asked)).start().unwrap();
    let place = Place::new();
    let mut child = place.job(server.url(), "", UNITS).start();
    assert!(wait_until(|| status(&place)["waiting_for"].is_string()), "{}", status(&place));
    let waiting = status(&place);
    assert!(waiting["waiting_for"].as_str().unwrap().contains("Retry-After"), "{waiting}");
    let clock = |key: &str| waiting[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let left = clock("until").as_second() - clock("updated_at").as_second();
    assert!((290..=301).contains(&left), "{left} s of 300 left: {waiting}");
    assert!(
        told(&place).contains("waiting: the source asked clients to wait (Retry-After), until 2"),
        "{}",
        told(&place)
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A file system of its own, as small as wanted; gone with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`, said loudly, where nothing can be mounted.
    fn of(size: &str) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let mount = ["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"].map(str::to_owned);
        let is_mounted = Command::new("mount").args(mount).arg(folder.path()).status().is_ok_and(|code| code.success());
        if !is_mounted {
            not_proved("no tmpfs can be mounted, so no disk was full");
        }
        is_mounted.then_some(SmallDisk(folder))
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(self.0.path()).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn on_a_full_disk_it_is_told_what_happened_and_with_room_the_run_goes_on() {
    let Some(disk) = SmallDisk::of("8m") else { return };
    let server = slow();
    let place = Place::new();
    place.job(server.url(), "in_flight = 1", UNITS);
    let with_disk = |arguments: &[&str]| {
        crate::support::Ended::of(place.harvester(arguments).env("STATE_DIRECTORY", disk.0.path()).output().unwrap())
    };
    let mut run = place.harvester(&["run", "job.toml", "--json"]);
    let child = run.env("STATE_DIRECTORY", disk.0.path()).spawn().unwrap();
    let has_rows = || {
        let told: Value = serde_json::from_str(&with_disk(&["status", "job.toml", "--json"]).stdout).unwrap();
        told["streams"]["organisationUnits"]["rows"].as_u64() > Some(100)
    };
    assert!(wait_until(has_rows), "no rows");
    // From here on not a byte is free, for the status neither.
    fs::write(disk.0.path().join("filler"), vec![0; 16 << 20]).unwrap_err();
    let ended = crate::support::Ended::of(child.wait_with_output().unwrap());
    ended.assert_code(14, "a full disk");
    let report = ended.report();
    assert_eq!(report["outcome"], "storage", "{report}");
    assert!(report["error"]["message"].as_str().unwrap().contains("No space left"), "{report}");
    assert!(report["error"]["next"].as_str().unwrap().contains("free some space"), "{report}");
    assert!(!ended.stderr.contains("panicked"), "{ended:#?}");

    let ended = with_disk(&["status", "job.toml", "--json"]);
    ended.assert_code(0, "status --json on a full disk");
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&told["state"], &told["exit_code"]), (&Value::from("stopped"), &Value::from(14)), "{told}");
    assert!(told["error"]["message"].as_str().unwrap().contains("No space left"), "{told}");
    let ended = with_disk(&["status", "job.toml"]);
    ended.assert_code(0, "status on a full disk");
    assert!(ended.stdout.contains("error: ") && ended.stdout.contains("next:  harvester run job.toml"), "{ended:#?}");
    with_disk(&["check", "job.toml"]).assert_code(14, "check on a full disk");

    disk.grow("64m");
    fs::remove_file(disk.0.path().join("filler")).unwrap();
    with_disk(&["run", "job.toml"]).assert_code(0, "with room");
    place.assert_exact(&server, "organisationUnits", "with room");
}

#[test]
fn a_wait_is_told_within_seconds_with_why_and_until_when_wherever_progress_goes() {
    let asked = Fault::Status { code: 503, retry_after: Some("120".into()), body: Body::Html };
    let cases: Vec<(&str, &[&str], Trouble, &[&str])> = vec![
        ("a Retry-After", &[], Trouble::Fault(asked.clone()), &["waiting: ", "Retry-After", "until="]),
        ("without progress", &["--progress", "none"], Trouble::Fault(asked.clone()), &["waiting: ", "until="]),
        ("quietly", &["-q"], Trouble::Fault(asked.clone()), &["WARN waiting: ", "until="]),
        ("as JSON", &["--log-format", "json"], Trouble::Fault(asked), &["\"message\":\"waiting: ", "\"until\":\"2"]),
        ("a server that is gone", &[], Trouble::Gone, &["waiting: ", "gives_up_at=", "last_failure="]),
        ("a server that was never there", &[], Trouble::Never, &["waiting: ", "refused", "gives_up_at="]),
        ("a first answer that takes long", &[], Trouble::Silent, &["waiting: the source to answer"]),
    ];
    side_by_side(cases, 3, |(what, arguments, trouble, says)| {
        let latency =
            if matches!(trouble, Trouble::Silent) { Duration::from_secs(300) } else { Duration::from_millis(40) };
        let server = stand_in().org_units(2_000).latency(Latency::Constant(latency)).start().unwrap();
        if matches!(trouble, Trouble::Never) {
            server.down();
        }
        let place = Place::new();
        let extract = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 20";
        place.job(server.url(), "", extract);
        let stderr = fs::File::create(place.file("stderr")).unwrap();
        let mut command = place.harvester(&[&["run", "job.toml"], arguments].concat());
        let mut child = command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        if !matches!(trouble, Trouble::Silent | Trouble::Never) {
            assert!(
                server.ledger().wait_until(Duration::from_secs(30), |seen| seen.len() > 40),
                "{what}: nothing happened"
            );
        }
        match trouble {
            Trouble::Fault(fault) => server.add_fault(FaultRule::on(Match::always()).act(fault)),
            Trouble::Gone => server.down(),
            Trouble::Silent | Trouble::Never => {}
        }
        let told = wait_until(|| {
            let text = fs::read_to_string(place.file("stderr")).unwrap();
            text.lines().any(|line| says.iter().all(|word| line.contains(word)))
        });
        child.kill().unwrap();
        child.wait().unwrap();
        let text = fs::read_to_string(place.file("stderr")).unwrap();
        assert!(told, "{what}: {text}");
        let waits = text.lines().filter(|line| line.contains("waiting: ")).count();
        assert!(waits <= 3, "{what}: not a line for each attempt: {text}");
    });
}

/// What a server does to be waited for.
enum Trouble {
    /// This, to every request.
    Fault(Fault),
    /// It refuses connections.
    Gone,
    /// It takes its time.
    Silent,
    /// It refuses connections from the first.
    Never,
}
