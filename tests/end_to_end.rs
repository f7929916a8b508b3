use dhis2_stand_in::{Collation, Framing};

use crate::support::{Place, side_by_side, stand_in};

const METADATA: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]";

#[test]
fn the_file_is_the_servers_rows_byte_for_byte_in_every_dialect() {
    side_by_side(vec!["2.25", "2.30", "2.31", "2.36", "2.40", "2.42", "2.43"], 4, |version| {
        let stand_in = stand_in().version(version).org_units(20_000).start().unwrap();
        let place = Place::new();
        place.job(stand_in.url(), "", METADATA).run().assert_code(0, version);
        place.assert_exact(&stand_in, "organisationUnits", version);
        let manifest = place.manifest();
        assert_eq!(manifest["streams"]["organisationUnits"]["rows"], 20_000, "{version}");
        assert_eq!(manifest["complete"], true, "{version}");
    });
}

#[test]
fn the_file_does_not_depend_on_collation_concurrency_page_size_framing_or_compression() {
    let cases = [(1, 1000), (4, 1000), (16, 1000), (1, 50), (4, 50), (16, 50), (8, 333)];
    let by_bytes = stand_in().org_units(1_500).collation(Collation::C).start().unwrap();
    let truth = by_bytes.truth("organisationUnits", ":owner");
    for collation in [Collation::C, Collation::CaseInsensitive] {
        side_by_side(cases.to_vec(), 4, |(in_flight, page_size)| {
            let what = format!("{collation:?}, in flight {in_flight}, pages of {page_size}");
            let mut builder = stand_in().org_units(1_500).collation(collation);
            if page_size == 50 {
                builder = builder.framing(Framing::Chunked);
            }
            if in_flight == 4 {
                builder = builder.gzip();
            }
            let stand_in = builder.start().unwrap();
            let place = Place::new();
            let limits = format!("in_flight = {in_flight}");
            place.job(stand_in.url(), &limits, &format!("{METADATA}\npage_size = {page_size}"));
            place.run().assert_code(0, &what);
            assert!(place.rows("organisationUnits") == truth, "{what}: the rows differ");
        });
    }
}

#[test]
fn a_second_run_after_a_complete_one_is_a_new_run() {
    let stand_in = stand_in().org_units(300).start().unwrap();
    let place = Place::new();
    place.job(stand_in.url(), "", METADATA).run().assert_code(0, "first");
    let first = place.manifest();
    stand_in.insert("organisationUnits", 7);
    let again = place.run();
    again.assert_code(0, "second");
    assert_eq!(again.report()["resumed"], false);
    assert_eq!(again.report()["streams"]["organisationUnits"]["rows"], 307);
    assert_ne!(place.manifest()["streams"], first["streams"]);
    place.assert_exact(&stand_in, "organisationUnits", "second");
    place.ends(&["verify", "job.toml"]).assert_code(0, "verify");
}

#[test]
fn a_wrong_password_is_sent_once() {
    let stand_in = stand_in().org_units(300).start().unwrap();
    let place = Place::new();
    place.job(stand_in.url(), "", METADATA);
    let ended = place.harvester(&["run", "job.toml", "--json"]).env("DHIS2_PASSWORD", "wrong").output().unwrap();
    let ended = crate::support::Ended::of(ended);
    ended.assert_code(6, "wrong password");
    assert_eq!(ended.report()["outcome"], "denied");
    assert_eq!(stand_in.ledger().with_credentials(), 1);
}

#[test]
fn a_file_that_is_not_ours_is_left_alone() {
    let stand_in = stand_in().org_units(60).start().unwrap();
    let place = Place::new();
    std::fs::create_dir(place.file("out")).unwrap();
    place.write("out/organisationUnits.ndjson", "somebody's\n");
    place.job(stand_in.url(), "", METADATA).run().assert_code(14, "foreign file");
    assert_eq!(std::fs::read_to_string(place.file("out/organisationUnits.ndjson")).unwrap(), "somebody's\n");
    // Which files there will be is known from the plan on, and not only at the end of the night.
    let all = "[[extract]]\nkind = \"metadata\"\ncollections = [\"*\"]";
    place.job(stand_in.url(), "", all).run().assert_code(14, "foreign file among all");
    let pages = stand_in.ledger().requests().iter().filter(|seen| seen.target.contains("fields=:owner")).count();
    assert_eq!(pages, 0, "pages asked for before the file was seen");
    assert_eq!(std::fs::read_to_string(place.file("out/organisationUnits.ndjson")).unwrap(), "somebody's\n");
}

#[test]
fn what_verify_finds_is_what_was_changed() {
    let stand_in = stand_in().org_units(60).start().unwrap();
    let place = Place::new();
    place.job(stand_in.url(), "", METADATA).run().assert_code(0, "run");
    place.ends(&["verify", "job.toml"]).assert_code(0, "untouched");
    let file = place.file("out/organisationUnits.ndjson");
    let text = std::fs::read(&file).unwrap();
    std::fs::write(&file, &text[..text.len() - 1]).unwrap();
    place.ends(&["verify", "job.toml"]).assert_code(4, "one byte short");
    std::fs::remove_file(&file).unwrap();
    place.ends(&["verify", "job.toml"]).assert_code(4, "missing");
}

#[test]
fn verify_never_says_ok_to_the_files_of_another_job_or_of_another_server() {
    let server = stand_in().org_units(60).start().unwrap();
    let place = Place::new();
    place.job(server.url(), "", METADATA).run().assert_code(0, "run");
    let job = std::fs::read_to_string(place.file("job.toml")).unwrap();
    place.write("other.toml", &job.replace("name = \"job\"", "name = \"other\""));
    let moved = job.replace(server.url(), "https://elsewhere.example.org/dhis");
    place.write("moved.toml", &moved);
    for (file, words) in
        [("other.toml", "belongs to the job `job`"), ("moved.toml", "comes from another source, http://")]
    {
        for directory in [None, Some("out")] {
            let directory: Vec<_> = directory.iter().flat_map(|directory| ["--directory", directory]).collect();
            let ended = place.ends(&[&["verify", file], &directory[..]].concat());
            ended.assert_code(4, file);
            assert!(ended.stderr.contains(words) && ended.stderr.contains("next:"), "{file}: {ended:#?}");
            assert!(!ended.stdout.contains("ok"), "{file}: {ended:#?}");
        }
    }
    place.ends(&["verify", "job.toml"]).assert_code(0, "its own");
}
