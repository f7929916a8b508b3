use std::fs;

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
