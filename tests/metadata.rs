use std::{collections::BTreeMap, fs, time::Duration};

use dhis2_stand_in::{Change, Collation, Latency, StandIn, User};
use serde_json::Value;

use crate::support::{PASSWORD, Place, side_by_side, stand_in};

const ALL: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"*\"]";
const UNITS: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50";

#[test]
fn all_of_metadata_is_exact_in_every_dialect_and_what_is_left_out_has_its_reason() {
    let cases = vec![
        ("2.25", 4, Collation::C),
        ("2.30", 1, Collation::CaseInsensitive),
        ("2.31", 16, Collation::CaseInsensitive),
        ("2.36", 4, Collation::C),
        ("2.40", 8, Collation::CaseInsensitive),
        ("2.42", 1, Collation::C),
        ("2.43", 16, Collation::C),
    ];
    side_by_side(cases, 4, |(version, in_flight, collation)| {
        let stand_in = stand_in().version(version).org_units(900).collation(collation).start().unwrap();
        let place = Place::new();
        let ended = place.job(stand_in.url(), &format!("in_flight = {in_flight}"), ALL).run();
        ended.assert_code(0, version);
        let report = ended.report();
        for collection in stand_in.collections() {
            let Some(streams) = report["streams"].as_object() else { panic!("{version}: no streams") };
            assert!(
                streams.contains_key(collection) || !report["left_out"][collection].is_null(),
                "{version}: {collection} is neither taken nor left out"
            );
            if streams.contains_key(collection) {
                place.assert_exact(&stand_in, collection, version);
            }
        }
        assert!(report["streams"].as_object().unwrap().len() >= 15, "{version}: {report}");
        assert!(!report["left_out"].as_object().unwrap().is_empty(), "{version}: nothing is left out");
    });
}

#[test]
fn what_all_leaves_out_and_the_files_that_are_written_are_a_line_each_and_all_of_them_on_request() {
    let stand_in = stand_in().org_units(60).refuse_collection("userRoles", 403).start().unwrap();
    let place = Place::new();
    place.job(stand_in.url(), "", ALL);
    let calm = place.ends(&["run", "job.toml"]);
    calm.assert_code(0, "calm");
    let report: Value = serde_json::from_slice(&std::fs::read(place.file("state/job/report.json")).unwrap()).unwrap();
    let left_out: Vec<&String> = report["left_out"].as_object().unwrap().keys().collect();
    assert!(left_out.len() > 1 && left_out.iter().any(|name| *name == "userRoles"), "{left_out:?}");
    let lines = |text: &str, words: &str| text.lines().filter(|line| line.contains(words)).count();
    assert!(lines(&calm.stderr, "left out") <= 2, "once when planned, once at the end: {calm:#?}");
    assert!(calm.stderr.contains("harvester status job.toml -v"), "{calm:#?}");
    assert_eq!(lines(&calm.stderr, "writing the file"), 1, "{calm:#?}");

    let listed = place.ends(&["status", "job.toml", "-v"]).stdout;
    let talkative = place.ends(&["run", "job.toml", "-v"]);
    let planned = place.ends(&["plan", "job.toml", "-v"]).stdout;
    for (what, text) in [("status", &listed), ("run", &talkative.stderr), ("plan", &planned)] {
        assert!(lines(text, "left out") >= left_out.len(), "{what} -v: {text}");
        assert!(left_out.iter().all(|name| text.contains(name.as_str())), "{what} -v: {text}");
    }
    assert_eq!(lines(&place.ends(&["plan", "job.toml"]).stdout, "left out"), 1);
    assert_eq!(lines(&place.ends(&["status", "job.toml"]).stdout, "left out"), 1);
}

#[test]
fn a_collection_that_all_reaches_and_this_user_does_not_get_is_left_out_and_said() {
    let stand_in = stand_in()
        .org_units(120)
        .refuse_collection("userRoles", 403)
        .refuse_collection("optionSets", 404)
        .start()
        .unwrap();
    let place = Place::new();
    let ended = place.job(stand_in.url(), "", ALL).run();
    ended.assert_code(0, "two collections refused");
    let report = ended.report();
    assert!(report["left_out"]["userRoles"].is_string() && report["left_out"]["optionSets"].is_string(), "{report}");
    assert!(!place.file("out/userRoles.ndjson").exists());

    let named = "[[extract]]\nkind = \"metadata\"\ncollections = [\"userRoles\", \"organisationUnits\"]";
    let place = Place::new();
    place.job(stand_in.url(), "", named).run().assert_code(3, "named, so it is missed");
    let named = "[[extract]]\nkind = \"metadata\"\ncollections = [\"userRoles\"]";
    let place = Place::new();
    place.job(stand_in.url(), "", named).run().assert_code(7, "named, and alone");
}

#[test]
fn a_user_who_sees_less_gets_all_that_it_sees() {
    for version in ["2.25", "2.36", "2.40", "2.43"] {
        let stand_in = StandIn::builder()
            .version(version)
            .org_units(900)
            .user(User::limited("admin", PASSWORD, 60))
            .start()
            .unwrap();
        let place = Place::new();
        let extract = "[[extract]]\nkind = \"metadata\"\ncollections = [\"dataElements\"]\npage_size = 50";
        place.job(stand_in.url(), "", extract).run().assert_code(0, version);
        let mut truth = stand_in.truth_for("admin", "dataElements", ":owner");
        let mut rows = place.rows("dataElements");
        truth.sort();
        rows.sort();
        assert!(rows == truth, "{version}: {} rows, {} are visible", rows.len(), truth.len());
    }
}

#[test]
fn rows_that_live_through_the_run_are_there_once_whatever_comes_and_goes() {
    side_by_side(vec!["2.31", "2.36", "2.40", "2.43"], 4, |version| {
        let stand_in = stand_in()
            .version(version)
            .org_units(2_000)
            .latency(Latency::Constant(Duration::from_millis(5)))
            .every_lists("organisationUnits", 4, Change::insert("organisationUnits", 3))
            .every_lists("organisationUnits", 5, Change::delete_some("organisationUnits", 2))
            .every_lists("organisationUnits", 3, Change::update_some("organisationUnits", 2))
            .start()
            .unwrap();
        stand_in.mark();
        let place = Place::new();
        let ended = place.job(stand_in.url(), "in_flight = 4", UNITS).run();
        ended.assert_code(0, version);
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        for row in place.rows("organisationUnits") {
            let row: Value = serde_json::from_str(&row).unwrap();
            *seen.entry(row["id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        assert!(seen.values().all(|times| *times == 1), "{version}: a row is there twice");
        for survivor in stand_in.truth_survivors("organisationUnits") {
            assert!(seen.contains_key(&survivor), "{version}: {survivor} lived through the run and is missing");
        }
        let units = &ended.report()["streams"]["organisationUnits"];
        assert!(units["appeared"].as_u64().is_some(), "{version}: nothing was reconciled: {units}");
        assert!(units["vanished"].as_u64().is_some(), "{version}: {units}");
        place.ends(&["verify", "job.toml"]).assert_code(0, version);
    });
}

#[test]
fn another_server_behind_the_same_url_is_refused_in_a_sentence() {
    let slow = Latency::Constant(Duration::from_millis(40));
    let server = stand_in().org_units(3_000).system_id("one").latency(slow).start().unwrap();
    let (url, port) = (server.url().to_owned(), server.port());
    let place = Place::new();
    place.job(&url, "in_flight = 4", UNITS);
    let mut child = place.start();
    assert!(server.ledger().wait_until(Duration::from_secs(30), |seen| seen.len() > 40));
    child.kill().unwrap();
    child.wait().unwrap();
    drop(server);
    let other = stand_in().org_units(3_000).system_id("two").latency(slow).port(port).start().unwrap();
    let ended = place.run();
    ended.assert_code(13, "another database");
    assert!(ended.report()["error"]["message"].as_str().unwrap().contains("systemId was one, is two"));
    drop(other);
    let same = stand_in().org_units(3_000).system_id("one").port(port).start().unwrap();
    place.run().assert_code(0, "the first one again");
    place.assert_exact(&same, "organisationUnits", "after all");
}

#[test]
fn another_server_after_an_outage_is_refused_in_the_middle_of_a_run() {
    let mut restart = dhis2_stand_in::Restart::lasting(Duration::from_millis(700));
    restart.system_id = Some("two".into());
    let fault = dhis2_stand_in::FaultRule::on(dhis2_stand_in::Match::nth(30))
        .act(dhis2_stand_in::Fault::Restart(restart))
        .times(1);
    let stand_in = stand_in()
        .org_units(3_000)
        .system_id("one")
        .latency(Latency::Constant(Duration::from_millis(20)))
        .fault(fault)
        .start()
        .unwrap();
    let place = Place::new();
    let ended = place.job(stand_in.url(), "in_flight = 4", UNITS).run();
    ended.assert_code(13, "another database after a restart");
    assert!(!place.file("out/manifest.json").exists());
}

#[test]
fn three_incremental_runs_merged_by_key_are_a_full_run() {
    let extract = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\", \"dataElements\"]\n\
                   mode = \"incremental\"\ninclude_deleted = true\npage_size = 200";
    let stand_in = stand_in().org_units(1_000).server_date("2024-05-01T08:00:00").start().unwrap();
    let place = Place::new();
    place.job(stand_in.url(), "", extract);
    let job = fs::read_to_string(place.file("job.toml")).unwrap();
    place.write("job.toml", &job.replace("directory = \"out\"", "directory = \"out/{run}\""));

    let mut merged: BTreeMap<String, String> = BTreeMap::new();
    let mut rows_of_runs = Vec::new();
    for round in 0..3 {
        if round > 0 {
            stand_in.set_server_date(&format!("2024-05-0{}T12:00:00", round + 1));
            stand_in.apply(&Change::insert("organisationUnits", 11));
            stand_in.apply(&Change::update_some("organisationUnits", 23));
            stand_in.apply(&Change::delete_some("organisationUnits", 5));
        }
        if round == 2 {
            // A run that fails moves no watermark.
            stand_in.add_fault(
                dhis2_stand_in::FaultRule::on(dhis2_stand_in::Match::always())
                    .and_path("dataElements")
                    .act(dhis2_stand_in::Fault::status(409)),
            );
            assert_ne!(place.run().code, 0);
            stand_in.heal();
            fs::remove_dir_all(place.file("state/job/spool")).unwrap();
            fs::remove_dir_all(place.file("state/job/checkpoint")).unwrap();
        }
        let ended = place.run();
        ended.assert_code(0, &format!("round {round}"));
        let report = ended.report();
        let folder = place.file(&format!("out/{}", report["run_id"].as_str().unwrap()));
        let read = |stream: &str| fs::read_to_string(folder.join(format!("{stream}.ndjson"))).unwrap();
        for row in read("organisationUnits").lines() {
            let id = serde_json::from_str::<Value>(row).unwrap()["id"].as_str().unwrap().to_owned();
            merged.insert(id, row.to_owned());
        }
        for row in read("deletedObjects").lines() {
            merged.remove(serde_json::from_str::<Value>(row).unwrap()["uid"].as_str().unwrap());
        }
        rows_of_runs.push(report["streams"]["organisationUnits"]["rows"].as_u64().unwrap());
    }
    assert_eq!(rows_of_runs[0], 1_000);
    assert!(rows_of_runs[1..].iter().all(|rows| (20..200).contains(rows)), "{rows_of_runs:?}");
    let mut truth = stand_in.truth("organisationUnits", ":owner");
    let mut merged: Vec<String> = merged.into_values().collect();
    truth.sort();
    merged.sort();
    assert!(merged == truth, "{} rows merged, {} are true", merged.len(), truth.len());
}

#[test]
fn a_watermark_counts_for_the_job_and_the_database_it_comes_from_and_for_no_other() {
    let extract = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\nmode = \"incremental\"";
    let database = |id: &str, port: u16| {
        stand_in().org_units(300).system_id(id).port(port).server_date("2024-05-01T08:00:00").start().unwrap()
    };
    let server = database("one", 0);
    let port = server.port();
    let other = database("two", 0);
    let place = Place::new();
    place.job(server.url(), "", extract);
    let job = fs::read_to_string(place.file("job.toml")).unwrap().replace("\"out\"", "\"out/{run}\"");
    let rows = |job: &str, what: &str| {
        place.write("job.toml", job);
        let ended = place.run();
        ended.assert_code(0, what);
        ended.report()["streams"]["organisationUnits"]["rows"].as_u64().unwrap()
    };
    assert_eq!(rows(&job, "the first run"), 300);
    // What changed in the hour before the last run comes again, and that is nothing here.
    assert!(rows(&job, "the second") < 100);
    assert_eq!(rows(&job.replace("mode =", "fields = \"id,name\"\nmode ="), "other fields"), 300);
    assert!(rows(&job.replace("mode =", "fields = \"id,name\"\nmode ="), "the same fields again") < 100);
    assert_eq!(rows(&job.replace(server.url(), other.url()), "another server"), 300);
    assert_eq!(rows(&job, "the first server again"), 300);
    drop(server);
    let restored = database("three", port);
    assert_eq!(rows(&job, "another database behind the same url"), 300);
    assert!(rows(&job, "the same again") < 100);

    fs::rename(place.file("job.toml"), place.file("moved.toml")).unwrap();
    let moved = place.ends(&["run", "moved.toml", "--json"]);
    moved.assert_code(0, "moved");
    assert!(moved.report()["streams"]["organisationUnits"]["rows"].as_u64().unwrap() < 100);
    fs::rename(place.file("moved.toml"), place.file("gone.toml")).unwrap();
    place.write("new.toml", &job.replace(restored.url(), other.url()));
    fs::remove_file(place.file("gone.toml")).unwrap();
    let foreign = place.ends(&["run", "new.toml", "--json"]);
    foreign.assert_code(13, "another job of the same name");
    let said = foreign.report()["error"].to_string();
    assert!(
        said.contains("which was deleted") && said.contains("source.url was") && said.contains("--restart"),
        "{said}"
    );
}
