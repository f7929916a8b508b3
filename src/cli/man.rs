//! `harvester man`: the man page, that of each command below it.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use clap_mangen::Man;
use harvester_actors::report::Outcome;

use super::{
    command_line,
    context::{CommandContext, CommandError},
};

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester man | man -l -
  harvester man > ~/.local/share/man/man1/harvester.1";

/// Runs the command.
pub(super) fn man(ctx: &CommandContext) -> u8 {
    match page() {
        Ok(page) => ctx.write_stdout(&page),
        Err(error) => ctx.report_error(&CommandError::new(
            Outcome::Bug,
            format!("cannot write the man page: {error}"),
            "report it",
        )),
    }
}

/// The whole page.
pub(super) fn page() -> io::Result<Vec<u8>> {
    let mut command = command_line();
    command.build();
    let mut page = Vec::new();
    render(&command, &mut page)?;
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("harvester {}", command.get_name());
        render(&command.clone().display_name(name), &mut page)?;
    }
    Ok(page)
}

/// The page of one command.
fn render(command: &clap::Command, page: &mut Vec<u8>) -> io::Result<()> {
    let man = Man::new(command.clone());
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.get_subcommands().next().is_some() {
        man.render_subcommands_section(page)?;
    }
    // clap_mangen fills these lines, and a table that is filled is no table.
    if let Some(examples) = command.get_after_help() {
        let text = examples.to_string();
        let text = text.strip_prefix("Examples:\n").unwrap_or(&text);
        writeln!(page, ".SH EXAMPLES\n.nf\n{}\n.fi", verbatim(text))?;
    }
    Ok(())
}

/// Text as it stands, in roff.
fn verbatim(text: &str) -> String {
    text.lines()
        .map(|line| {
            let escaped = line.chars().fold(String::new(), |mut escaped, character| {
                match character {
                    '\\' => escaped.push_str("\\e"),
                    '-' => escaped.push_str("\\-"),
                    '\'' => escaped.push_str("\\(aq"),
                    '~' => escaped.push_str("\\(ti"),
                    other if other.is_ascii() => escaped.push(other),
                    other => {
                        let _ = write!(escaped, "\\[u{:04X}]", u32::from(other));
                    }
                }
                escaped
            });
            // A line that begins with a dot would be a request.
            if escaped.starts_with('.') { format!("\\&{escaped}") } else { escaped }
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_a_request_or_an_escape() {
        assert_eq!(verbatim(".x \\n -a 'b' ~ …\n'y"), "\\&.x \\en \\-a \\(aqb\\(aq \\(ti \\[u2026]\n\\(aqy");
    }
}
