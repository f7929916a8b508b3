use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use crate::support::{Ended, PASSWORD, Place, stand_in};

/// The README.
fn readme() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap()
}

#[test]
fn the_test_command_of_the_readme_is_what_ci_runs() {
    let ci = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/run")).unwrap();
    let command = "cargo test --workspace";
    assert!(readme().lines().any(|line| line.trim() == command), "the README does not say `{command}`");
    assert!(ci.lines().any(|line| line.trim() == command), ".ci/run does not run `{command}`");
}

/// The commands in its blocks of shell, without their comments.
fn commands() -> Vec<String> {
    let text = readme();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let lines = blocks.flat_map(str::lines).map(|line| line.split(" #").next().unwrap().trim().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

/// A program of the test's own.
fn script(place: &Place, name: &str, text: &str) {
    place.write(name, text);
    fs::set_permissions(place.file(name), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let server = stand_in().org_units(2_500).start().unwrap();
    let place = Place::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir(place.file("jobs")).unwrap();
    // The port that the README names may be taken here.
    let by_hand = stand_in().org_units(1_000).start().unwrap();
    for job in fs::read_dir(root.join("jobs")).unwrap() {
        let job = job.unwrap();
        let text = fs::read_to_string(job.path()).unwrap().replace("http://127.0.0.1:8080", by_hand.url());
        fs::write(place.file("jobs").join(job.file_name()), text).unwrap();
    }
    // The editor puts the url in, as a person would.
    let edit = format!("#!/bin/sh\nsed -i 's|^url = .*|url = \"{}\"|' \"$1\"\n", server.url());
    script(&place, "editor", &edit);
    let mut lines = vec!["set -euo pipefail".to_owned()];
    for command in commands() {
        let typed = match command.as_str() {
            // What builds is not built again; it must name what is here.
            "cargo test --workspace" => continue,
            "cargo install --locked --path ." => {
                assert!(root.join("src/main.rs").exists());
                continue;
            }
            "cargo run --release -p dhis2-stand-in -- --port 8080" => {
                assert!(root.join("tests/stand-in/main.rs").exists() && jobs_name_port_8080(root));
                continue;
            }
            "export DHIS2_PASSWORD=district" => format!("export DHIS2_PASSWORD={PASSWORD}"),
            "cargo run --release -- demo" => "harvester demo".to_owned(),
            "export DHIS2_PASSWORD=…" => format!("export DHIS2_PASSWORD={PASSWORD}"),
            other => {
                assert!(!other.contains("cargo"), "this test does not know what to do with `{other}`");
                other.to_owned()
            }
        };
        lines.push(format!("echo '$ '{}; {typed}", quoted(&typed)));
    }
    assert!(lines.len() > 10, "{lines:?}");
    let programs = Path::new(env!("CARGO_BIN_EXE_harvester")).parent().unwrap().display();
    let mut shell = std::process::Command::new("bash");
    shell.args(["-c", &lines.join("\n")]).current_dir(place.path()).env_clear();
    let path = std::env::var_os("PATH").unwrap_or_default();
    shell.env("PATH", format!("{programs}:{}", path.to_string_lossy()));
    shell.env("HOME", place.file("home")).env("EDITOR", place.file("editor"));
    let ended = Ended::of(shell.output().unwrap());
    ended.assert_code(0, "the README, from top to bottom");
    place.assert_exact(&server, "organisationUnits", "the README");
    assert!(place.file("harvest-demo/manifest.json").exists(), "{ended:#?}");
    let names = ended.stdout.lines().filter(|line| line.starts_with("{\"") && line.contains("\"id\":")).count();
    assert_eq!(names, 6, "rows that `get` gave to `head`: {ended:#?}");
    assert!(ended.stderr.contains("next:"), "{ended:#?}");
}

/// Whether the job for the stand-in that is started by hand finds it.
fn jobs_name_port_8080(root: &Path) -> bool {
    fs::read_to_string(root.join("jobs/demo.toml")).unwrap().contains("url = \"http://127.0.0.1:8080\"")
}

/// As one word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
