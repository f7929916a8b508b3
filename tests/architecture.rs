use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The root of the house.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The names under `[dependencies]` of a manifest.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if inside && let Some((name, _)) = line.split_once(['.', '=']) {
            names.insert(name.trim().to_owned());
        }
    }
    assert!(!names.is_empty(), "{manifest} has no dependencies");
    names
}

/// The Rust files of a room, tests included.
fn sources(room: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(room)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "{room} is empty");
    found
}

/// Asserts that no file of `room` has one of these words in its code.
fn assert_absent(room: &str, words: &[&str]) {
    for (path, text) in sources(room) {
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for word in words {
                assert!(!line.contains(word), "{}: `{word}` in `{}`", path.display(), line.trim());
            }
        }
    }
}

#[test]
fn engine_and_client_do_not_know_each_other() {
    assert!(!dependencies("actors/Cargo.toml").contains("dhis2"));
    assert!(!dependencies("src/dhis2/Cargo.toml").contains("harvester-actors"));
}

#[test]
fn the_stand_in_knows_nobody_so_that_client_and_stand_in_cannot_be_wrong_together() {
    let known = dependencies("tests/stand-in/Cargo.toml");
    for ours in ["dhis2", "harvester-actors", "harvester-pacing", "dhis2-harvester"] {
        assert!(!known.contains(ours), "the stand-in depends on {ours}");
    }
}

#[test]
fn pacing_depends_on_none_of_ours_and_does_no_i_o() {
    let known = dependencies("actors/pacing/Cargo.toml");
    for ours in ["dhis2", "harvester-actors", "actix", "awc"] {
        assert!(!known.contains(ours), "pacing depends on {ours}");
    }
    assert_absent("actors/pacing", &["std::fs", "std::net", "tokio::net", "println!"]);
}

#[test]
fn the_engine_knows_no_http_no_file_system_and_no_screen() {
    let known = dependencies("actors/Cargo.toml");
    for foreign in ["awc", "sled", "url", "indicatif", "clap", "rustix"] {
        assert!(!known.contains(foreign), "the engine depends on {foreign}");
    }
    assert_absent("actors", &["std::net", "tokio::fs", "println!", "File::open", "fs::write"]);
}

#[test]
fn extract_sinks_and_checkpoints_do_not_mention_each_other() {
    assert_absent("src/extract", &["crate::sinks", "crate::checkpoints", "crate::cli", "crate::observe"]);
    assert_absent("src/sinks", &["crate::extract", "crate::checkpoints", "crate::cli", "crate::observe", "dhis2::"]);
    assert_absent("src/checkpoints", &["crate::extract", "crate::sinks", "crate::cli", "crate::observe", "dhis2::"]);
}

#[test]
fn only_the_door_and_the_observer_print() {
    for room in ["src/extract", "src/sinks", "src/checkpoints", "src/job", "src/dhis2", "actors"] {
        assert_absent(room, &["println!", "eprintln!", "io::stdout()", "io::stderr()"]);
    }
}

#[test]
fn only_the_client_knows_header_and_parameter_names() {
    let names = ["\"pageSize\"", "\"paging\"", "\"rootJunction\"", "Authorization", "X-Requested-With", "JSESSIONID"];
    for room in ["src/extract", "src/cli", "src/observe", "src/sinks", "actors"] {
        assert_absent(room, &names);
    }
}
