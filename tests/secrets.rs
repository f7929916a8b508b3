use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use dhis2_stand_in::{Fault, FaultRule, Match};

use crate::support::{PASSWORD, Place, stand_in};

/// All files below a folder.
fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

#[test]
fn no_secret_and_no_row_is_in_anything_but_the_data() {
    let faults = FaultRule::on(Match::every(5)).act(Fault::Garble(dhis2_stand_in::Garble::InvalidUtf8));
    let stand_in = stand_in().org_units(400).fault(faults).start().unwrap();
    let place = Place::new();
    let extract = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50";
    place.job(stand_in.url(), "", extract);
    let ended = place.ends(&["-vvv", "run", "job.toml"]);
    ended.assert_code(0, "with every log line there is");
    let truth = stand_in.truth("organisationUnits", ":owner");
    let names: Vec<String> = truth
        .iter()
        .filter_map(|row| serde_json::from_str::<serde_json::Value>(row).unwrap()["name"].as_str().map(str::to_owned))
        .filter(|name| name.len() > 12)
        .collect();
    assert!(names.len() > 100);
    let encoded = "YWRtaW46ZGlzdHJpY3QtY2FuYXJ5LXB3";
    for secret in [PASSWORD, encoded].into_iter().chain(names.iter().map(String::as_str)) {
        assert!(!ended.stderr.contains(secret), "`{secret}` is in the log");
        assert!(!ended.stdout.contains(secret), "`{secret}` is on stdout");
    }
    let mut left = Vec::new();
    files(&place.file("state"), &mut left);
    files(&place.file("out"), &mut left);
    assert!(left.len() >= 4, "{left:?}");
    for path in left {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert!(mode & 0o077 == 0, "{} may be read by others: {mode:o}", path.display());
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        assert!(!text.contains(PASSWORD) && !text.contains(encoded), "{} holds the password", path.display());
        if path.extension().is_none_or(|extension| extension != "ndjson") {
            let row = names.iter().find(|name| text.contains(name.as_str()));
            assert_eq!(row, None, "{} holds a row", path.display());
        }
    }
}

#[test]
fn credentials_never_go_to_another_origin() {
    let elsewhere = stand_in().org_units(60).start().unwrap();
    for fault in [
        Fault::RedirectToLogin(Some(elsewhere.url().to_owned())),
        Fault::Redirect(format!("{}/api/organisationUnits", elsewhere.url())),
    ] {
        let stand_in = stand_in()
            .org_units(400)
            .next_page_base(elsewhere.url())
            .fault(FaultRule::on(Match::nth(5)).act(fault).times(1))
            .start()
            .unwrap();
        let place = Place::new();
        let extract = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50";
        place.job(stand_in.url(), "outage_s = 3", extract).run();
        assert_eq!(elsewhere.ledger().count(), 0, "a request went to another origin");
    }
}

#[test]
fn what_a_server_says_is_masked_bounded_and_plain_wherever_it_is_shown() {
    let encoded = "YWRtaW46ZGlzdHJpY3QtY2FuYXJ5LXB3";
    let said = format!(
        "you sent {PASSWORD}, {encoded} \u{1b}[2J\u{7}\u{202e} and {{\"id\":\"x\"}} {} THE-END",
        "and so on ".repeat(900)
    );
    for (code, body) in
        [(409, dhis2_stand_in::Body::Message(said.clone())), (503, dhis2_stand_in::Body::Message(said.clone()))]
    {
        let fault = Fault::Status { code, retry_after: None, body };
        let rule = FaultRule::on(Match::From(3)).and_path("organisationUnits").act(fault);
        let stand_in = stand_in().org_units(400).fault(rule).start().unwrap();
        let place = Place::new();
        let extract = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50";
        place.job(stand_in.url(), "outage_s = 1", extract);
        let mut shown = vec![("run", place.ends(&["-vv", "run", "job.toml", "--json"]))];
        for command in [&["status", "job.toml"][..], &["status", "job.toml", "--json"], &["plan", "job.toml"]] {
            shown.push((command[0], place.ends(command)));
        }
        shown.push(("get", place.ends(&["get", "organisationUnits", "--job", "job.toml"])));
        let files = ["status.json", "report.json"].map(|file| {
            let text = fs::read_to_string(place.file(&format!("state/job/{file}"))).unwrap();
            (file, crate::support::Ended { code: 0, stdout: text, stderr: String::new() })
        });
        shown.extend(files);
        for (what, ended) in &shown {
            for text in [&ended.stdout, &ended.stderr] {
                assert!(!text.contains(PASSWORD) && !text.contains(encoded), "{code}, {what}: {text}");
                assert!(!text.contains("THE-END"), "{code}, {what}: {text}");
                let wild = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
                assert_eq!(wild, None, "{code}, {what}: {text:?}");
                assert!(!text.contains("u001b"), "{code}, {what}: {text}");
            }
        }
        // A source that is gone for a second may be given up before anybody has heard what it says.
        let means = code != 409 || shown[0].1.stderr.contains("you sent");
        assert!(means, "what it means is still there: {:#?}", shown[0]);
    }
}

#[test]
fn what_the_command_of_a_secret_says_aside_is_not_shown() {
    let stand_in = stand_in().org_units(60).start().unwrap();
    let place = Place::new();
    let extract = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]";
    place.job(stand_in.url(), "", extract);
    let job = fs::read_to_string(place.file("job.toml")).unwrap();
    for (script, code) in [
        ("echo district-canary-pw; echo aside-canary >&2", 0),
        ("echo aside-canary district-canary-pw >&2; exit 3", 78),
    ] {
        let command = format!("{{ command = [\"sh\", \"-c\", \"{script}\"] }}");
        place.write("job.toml", &job.replace("{ env = \"DHIS2_PASSWORD\" }", &command));
        let ended = place.run();
        ended.assert_code(code, script);
        assert!(!ended.stderr.contains("canary"), "{ended:#?}");
    }
}
