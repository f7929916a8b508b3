//! `harvester schema`: the JSON Schema of the job file.

use super::door::Door;
use crate::job::schema;

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester schema > job.schema.json

With Even Better TOML or taplo, the first line of a job file is then:  #:schema ./job.schema.json";

/// Runs the command.
pub(super) fn schema(door: &Door) -> u8 {
    door.data(format!("{:#}\n", schema::schema()).as_bytes())
}
