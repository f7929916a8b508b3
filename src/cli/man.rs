//! `harvester man`: the man page, that of each command below it.

use clap_mangen::Man;
use harvester_actors::report::Outcome;

use super::{
    command_line,
    door::{Door, Stuck},
};

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester man | man -l -
  harvester man > ~/.local/share/man/man1/harvester.1";

/// Runs the command.
pub(super) fn man(door: &Door) -> u8 {
    match page() {
        Ok(page) => door.data(&page),
        Err(error) => door.fail(&Stuck::new(Outcome::Bug, format!("cannot write the man page: {error}"), "report it")),
    }
}

/// The whole page.
pub(super) fn page() -> std::io::Result<Vec<u8>> {
    let mut command = command_line();
    command.build();
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("harvester {}", command.get_name());
        Man::new(command.clone().display_name(name)).render(&mut page)?;
    }
    Ok(page)
}
