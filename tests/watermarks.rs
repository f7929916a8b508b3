use std::{collections::BTreeSet, fs};

use dhis2_stand_in::{Change, StandIn};
use serde_json::{Value, json};

use crate::support::{Ended, Place, stand_in};

const INCREMENTAL: &str =
    "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\nmode = \"incremental\"";

/// A place with an incremental job that has a folder for each run.
fn place(server: &StandIn) -> Place {
    let place = Place::new();
    place.job(server.url(), "", INCREMENTAL);
    let job = fs::read_to_string(place.file("job.toml")).unwrap();
    place.write("job.toml", &job.replace("\"out\"", "\"out/{run}\""));
    place
}

/// Changes the job file.
fn rewrite(place: &Place, from: &str, to: &str) {
    let job = fs::read_to_string(place.file("job.toml")).unwrap();
    assert!(job.contains(from), "{job}");
    place.write("job.toml", &job.replace(from, to));
}

fn run_id(ended: &Ended) -> String {
    ended.report()["run_id"].as_str().unwrap().to_owned()
}

fn rows(ended: &Ended) -> u64 {
    ended.report()["streams"]["organisationUnits"]["rows"].as_u64().unwrap()
}

/// What the job remembers, as it stands on the disk.
fn record(place: &Place) -> Value {
    serde_json::from_slice(&fs::read(place.file("state/job/job.json")).unwrap()).unwrap()
}

/// Our time, and `hours` later, as a server in UTC writes it.
fn hours_from_now(hours: i64) -> String {
    let then = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(hours)).unwrap();
    then.strftime("%Y-%m-%dT%H:%M:%S.000").to_string()
}

#[test]
fn each_run_has_an_id_and_a_folder_of_its_own_however_soon_it_follows() {
    let server = stand_in().org_units(60).start().unwrap();
    let place = place(&server);
    let mut ids = Vec::new();
    for arguments in [&[][..], &[], &["--restart"], &[]] {
        let ended = place.ends(&[&["run", "job.toml", "--json"], arguments].concat());
        ended.assert_code(0, "soon");
        ids.push(run_id(&ended));
        let manifest = fs::read(place.file(&format!("out/{}/manifest.json", ids[ids.len() - 1]))).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["streams"]["organisationUnits"]["rows"], rows(&ended));
    }
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    assert_eq!(fs::read_dir(place.file("out")).unwrap().count(), ids.len());
}

#[test]
fn a_run_id_is_later_than_the_one_before_it_though_the_clock_went_back() {
    let server = stand_in().org_units(60).start().unwrap();
    let place = place(&server);
    place.run().assert_code(0, "first");
    for arguments in [&[][..], &["--restart"]] {
        let mut record = record(&place);
        record["last_run_id"] = json!("20400101T235959Z");
        place.write("state/job/job.json", &record.to_string());
        let ended = place.ends(&[&["run", "job.toml", "--json"], arguments].concat());
        ended.assert_code(0, "second");
        assert_eq!(run_id(&ended), "20400102T000000Z");
        fs::remove_dir_all(place.file("out")).unwrap();
    }
}

#[test]
fn a_run_never_publishes_into_a_folder_that_another_run_has_published_into() {
    let server = stand_in().org_units(60).start().unwrap();
    let place = place(&server);
    let first = run_id(place.run().assert_code(0, "first"));
    let mut record = record(&place);
    record["last_run_id"] = json!("20400101T000000Z");
    place.write("state/job/job.json", &record.to_string());
    // Where the next run is going to publish lies what the first one has published.
    let taken = place.file("out/20400101T000001Z");
    fs::rename(place.file(&format!("out/{first}")), &taken).unwrap();
    let before = fs::read(taken.join("manifest.json")).unwrap();
    let refused = place.run();
    refused.assert_code(14, "taken");
    let said = refused.report()["error"]["message"].as_str().unwrap().to_owned();
    assert!(said.contains("20400101T000001Z") && said.contains(&first), "{said}");
    assert_eq!(fs::read(taken.join("manifest.json")).unwrap(), before);
    place.run().assert_code(0, "the next id is free");
}

#[test]
fn a_run_that_fails_loses_no_watermark() {
    let server = stand_in().org_units(300).server_date("2024-05-01T08:00:00").start().unwrap();
    let place = place(&server);
    let first = place.run();
    first.assert_code(0, "first");
    assert_eq!(rows(&first), 300);
    let before = record(&place)["watermarks"].clone();
    assert!(before["organisationUnits"].is_string(), "{before}");

    rewrite(&place, "\"admin\"", "\"admim\"");
    place.run().assert_code(6, "a typo in the user name");
    assert_eq!(record(&place)["watermarks"], before);
    rewrite(&place, "\"admim\"", "\"admin\"");
    let again = place.run();
    again.assert_code(0, "corrected");
    assert!(rows(&again) < 100, "{} rows came again", rows(&again));

    // Rows that the one did not fetch, the other must not leave out.
    rewrite(&place, "mode =", "fields = \"id,name\"\nmode =");
    let other = place.run();
    other.assert_code(0, "other fields");
    assert_eq!(rows(&other), 300);
}

#[test]
fn changes_are_not_skipped_after_a_clock_that_was_ahead() {
    // Rows saved while the clock was ahead, or none; hours that it was ahead.
    for (saved_ahead, hours) in [(false, 1), (false, 5), (false, 72), (true, 5), (true, 72)] {
        let what = format!("{hours} h ahead, rows saved then: {saved_ahead}");
        let server =
            stand_in().org_units(300).time_zone("Etc/UTC", 0).server_date(&hours_from_now(hours)).start().unwrap();
        if saved_ahead {
            server.apply(&Change::update_some("organisationUnits", 7));
        }
        let place = place(&server);
        place.run().assert_code(0, &what);
        // Somebody sets the clock right, and then people go on working.
        assert!(server.set_server_date(&hours_from_now(0)));
        let changed: Vec<String> = server.ids("organisationUnits").into_iter().take(20).collect();
        for id in &changed {
            assert!(server.update("organisationUnits", id));
        }
        assert!(server.set_server_date(&hours_from_now(hours + 1)));
        let second = place.run();
        second.assert_code(0, &what);
        let file = place.file(&format!("out/{}/organisationUnits.ndjson", run_id(&second)));
        let text = fs::read_to_string(file).unwrap();
        let missing: Vec<&String> = changed.iter().filter(|id| !text.contains(id.as_str())).collect();
        assert!(missing.is_empty(), "{what}: {} changes are missing", missing.len());
    }
}

#[test]
fn a_watermark_is_no_later_than_the_newest_row_and_than_the_beginning_of_the_run() {
    let server = stand_in().org_units(300).start().unwrap();
    let place = place(&server);
    let ended = place.run();
    ended.assert_code(0, "quiet");
    let newest = |server: &StandIn| {
        let truth = server.truth("organisationUnits", "lastUpdated");
        let times = truth.iter().map(|row| serde_json::from_str::<Value>(row).unwrap()["lastUpdated"].clone());
        times.map(|time| time.as_str().unwrap().to_owned()).max().unwrap()
    };
    assert_eq!(ended.report()["watermarks"]["organisationUnits"], newest(&server));
    assert_eq!(record(&place)["watermarks"]["organisationUnits"], newest(&server));
    // Nothing has changed: what is known stays known, and comes again by its overlap only.
    let again = place.run();
    again.assert_code(0, "nothing new");
    assert!(rows(&again) < 100, "{}", rows(&again));
    assert_eq!(record(&place)["watermarks"]["organisationUnits"], newest(&server));
}
