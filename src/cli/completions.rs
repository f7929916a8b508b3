//! `harvester completions`: what the Tab key knows.

use clap::Args;
use clap_complete::Shell;

use super::{command_line, context::CommandContext};

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester completions bash > /etc/bash_completion.d/harvester
  harvester completions zsh > ~/.zfunc/_harvester
  harvester completions fish > ~/.config/fish/completions/harvester.fish";

/// What `completions` takes.
#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the command.
pub(super) fn completions(args: &CompletionsArgs, ctx: &CommandContext) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command_line(), "harvester", &mut script);
    ctx.write_stdout(&script)
}
