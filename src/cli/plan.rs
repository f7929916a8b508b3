//! `harvester plan`: what a run would ask for, before it asks for any row.

use std::{fmt::Write as _, path::PathBuf};

use clap::Args;
use harvester_actors::{partition::Plan, report::Outcome};
use serde::Serialize;

use super::{door::Door, run::prepare};
use crate::{
    assemble,
    exit_code::{COMPLETE, exit_code},
    observe::{
        numbers::{about, count, plural},
        report::left_out_lines,
    },
    service::Signals,
};

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester plan jobs/metadata.toml
  harvester plan jobs/metadata.toml --json | jq -s 'map(.requests) | add'";

/// What `plan` takes.
#[derive(Args, Debug)]
pub(super) struct PlanArgs {
    /// The job file
    job: PathBuf,
    /// Print one JSON object a line for each partition
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn plan(args: &PlanArgs, door: &Door) -> u8 {
    let (job, credentials) = match prepare(&args.job, door) {
        Ok(ready) => ready,
        Err(stuck) => return door.fail(&stuck),
    };
    let per_second = job.limits.requests_per_second;
    let signals = match Signals::install(None, || {}) {
        Ok(signals) => signals,
        Err(_) => Signals::silent(),
    };
    match assemble::plan(&job, &credentials, signals.stop.clone()) {
        Ok(plan) => {
            let how_to_list = format!("harvester plan {} -v", args.job.display());
            let code = if args.json {
                door.data(lines(&plan).as_bytes())
            } else {
                door.text(&table(&plan, per_second, door.verbose > 0, &how_to_list))
            };
            if code == COMPLETE && !args.json {
                door.say(&format!("next: harvester run {}", args.job.display()));
            }
            code
        }
        Err(failure) => match signals.reason() {
            Some(reason) => exit_code(Outcome::Interrupted, Some(reason)),
            None => door.fail(&failure.into()),
        },
    }
}

/// What `--json` tells of a partition.
#[derive(Serialize)]
struct Line<'a> {
    /// The stream its rows go to.
    stream: &'a str,
    /// Its key.
    partition: &'a str,
    /// Requests, as far as the plan can tell.
    requests: Option<u64>,
    /// Rows, as far as the plan can tell.
    expected: Option<u64>,
}

/// A line of JSON for each partition.
fn lines(plan: &Plan) -> String {
    plan.partitions.iter().fold(String::new(), |mut text, partition| {
        let line = Line {
            stream: &plan.stream_of(partition).name,
            partition: &partition.key,
            requests: partition.requests,
            expected: partition.expected_rows,
        };
        // Texts and numbers cannot fail to serialize.
        let _ = writeln!(text, "{}", serde_json::to_string(&line).unwrap_or_default());
        text
    })
}

/// A table for people: streams, not partitions, of which there may be thousands.
fn table(plan: &Plan, per_second: u32, is_verbose: bool, how_to_list: &str) -> String {
    let mut text = String::new();
    let width = plan.streams.iter().map(|stream| stream.name.chars().count()).max().unwrap_or(0).max("stream".len());
    let known = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), count);
    let _ = writeln!(text, "{:width$}  {:>10}  {:>10}  {:>12}", "stream", "partitions", "requests", "rows");
    let mut all: Option<u64> = Some(0);
    for (index, stream) in plan.streams.iter().enumerate() {
        let partitions: Vec<_> =
            plan.partitions.iter().filter(|partition| partition.stream.0 as usize == index).collect();
        let requests: Option<u64> = partitions.iter().map(|partition| partition.requests).sum();
        all = all.zip(requests).map(|(all, requests)| all + requests);
        let _ = writeln!(
            text,
            "{:width$}  {:>10}  {:>10}  {:>12}",
            stream.name,
            count(partitions.len() as u64),
            known(requests),
            known(stream.expected_rows)
        );
    }
    let left_out: Vec<_> = plan.left_out.iter().map(|left| (left.stream.as_str(), left.reason.as_str())).collect();
    text.push_str(&left_out_lines(&left_out, is_verbose, how_to_list));
    if let Some(requests) = all.filter(|requests| *requests > 0) {
        let least = std::time::Duration::from_secs_f64(requests as f64 / f64::from(per_second.max(1)));
        let _ = writeln!(text, "\n{}, at least {} at {per_second}/s", plural(requests, "request"), about(least));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_is_a_table_for_people_and_lines_for_machines() {
        let plan: Plan = serde_json::from_value(json!({
            "streams": [
                { "name": "organisationUnits", "expected_rows": 20000, "optional": false },
                { "name": "dataElements", "expected_rows": null, "optional": false },
            ],
            "partitions": [
                { "id": 0, "stream": 0, "key": "organisationUnits/0", "selection": {}, "requests": 11, "expected_rows": 10000 },
                { "id": 1, "stream": 0, "key": "organisationUnits/1", "selection": {}, "requests": 10, "expected_rows": 10000 },
                { "id": 2, "stream": 1, "key": "dataElements/0", "selection": {}, "requests": 2, "expected_rows": null },
            ],
            "left_out": [{ "stream": "secrets", "reason": "403" }],
        }))
        .unwrap();
        insta::assert_snapshot!(format!("{}\n{}", table(&plan, 2, false, ""), lines(&plan)));
    }
}
