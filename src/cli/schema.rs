//! `harvester schema`: the JSON Schema of the job file.

use super::context::CommandContext;
use crate::job::schema;

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester schema > job.schema.json

With Even Better TOML or taplo, the first line of a job file is then:  #:schema ./job.schema.json";

/// Runs the command.
pub(super) fn schema(ctx: &CommandContext) -> u8 {
    ctx.write_stdout(format!("{:#}\n", schema::schema()).as_bytes())
}
