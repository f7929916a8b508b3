//! The command line itself.

use super::*;

#[test]
fn the_command_line_is_what_clap_takes_for_right() {
    command_line().debug_assert();
}

#[test]
fn every_help_teaches_by_example() {
    // However wide the terminal of whoever runs the test is.
    let mut command = command_line().term_width(100);
    command.build();
    let mut shown = String::new();
    let commands = std::iter::once(command.clone()).chain(command.get_subcommands().cloned());
    for mut command in commands.filter(|command| command.get_name() != "help") {
        let help = command.render_help().to_string();
        assert!(help.contains("Examples:\n"), "{help}");
        shown.push_str(&help);
        shown.push_str("\n----\n");
    }
    insta::assert_snapshot!("help", shown);
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let lines: [&[&str]; 9] = [
        &[],
        &["rum", "x.toml"],
        &["run"],
        &["run", "x.toml", "--max-seconds", "0"],
        &["run", "x.toml", "-q", "-v"],
        &["run", "x.toml", "--progress", "fancy"],
        &["get", "me"],
        &["get", "me", "--job", "x.toml", "--url", "http://x"],
        &["get", "me", "--url", "http://x", "--username", "u", "--token-env", "T"],
    ];
    for line in lines {
        let arguments = std::iter::once("harvester").chain(line.iter().copied()).map(OsString::from);
        let error = Cli::try_parse_from(arguments).expect_err(&format!("{line:?}"));
        assert!(error.use_stderr(), "{line:?}");
    }
}

#[test]
fn the_man_page_has_every_command() {
    let page = String::from_utf8(man::page().unwrap()).unwrap();
    for command in command_line().get_subcommands() {
        assert!(page.contains(&format!("harvester {}", command.get_name())), "{}", command.get_name());
    }
}
