//! `harvester plan`: what a run would ask for, before it asks for any row.

use std::{fmt::Write as _, path::PathBuf};

use clap::Args;
use harvester_actors::report::Outcome;
use serde::Serialize;

use super::{context::CommandContext, run::prepare};
use crate::{
    ask::{self, PlanSummary},
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
pub(super) fn plan(args: &PlanArgs, ctx: &CommandContext) -> u8 {
    let (job, credentials) = match prepare(&args.job, ctx) {
        Ok(ready) => ready,
        Err(error) => return ctx.report_error(&error),
    };
    let per_second = job.limits.requests_per_second;
    let signals = match Signals::install(None, || {}) {
        Ok(signals) => signals,
        Err(_) => Signals::none(),
    };
    match ask::plan(&job, &credentials, signals.stop.clone()) {
        Ok(plan) => {
            let how_to_list = format!("harvester plan {} -v", args.job.display());
            let code = if args.json {
                ctx.write_stdout(lines(&plan).as_bytes())
            } else {
                ctx.write_text(&table(&plan, per_second, ctx.verbose > 0, &how_to_list))
            };
            if code == COMPLETE && !args.json {
                ctx.notice(&format!("next: harvester run {}", args.job.display()));
            }
            code
        }
        Err(failure) => match signals.reason() {
            Some(reason) => exit_code(Outcome::Interrupted, Some(reason)),
            None => ctx.report_error(&failure.into()),
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
fn lines(plan: &PlanSummary) -> String {
    plan.partitions.iter().fold(String::new(), |mut text, partition| {
        let line = Line {
            stream: &plan.streams[partition.stream].name,
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
fn table(plan: &PlanSummary, per_second: u32, is_verbose: bool, how_to_list: &str) -> String {
    let mut text = String::new();
    let width = plan.streams.iter().map(|stream| stream.name.chars().count()).max().unwrap_or(0).max("stream".len());
    let known = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), count);
    let _ = writeln!(text, "{:width$}  {:>10}  {:>10}  {:>12}", "stream", "partitions", "requests", "rows");
    let mut all: Option<u64> = Some(0);
    for stream in &plan.streams {
        all = all.zip(stream.requests).map(|(all, requests)| all + requests);
        let _ = writeln!(
            text,
            "{:width$}  {:>10}  {:>10}  {:>12}",
            stream.name,
            count(stream.partitions),
            known(stream.requests),
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
    use futures_util::FutureExt;
    use harvester_actors::{
        partition::{LeftOut, NewPartition, Stream},
        plan::PlanBuilder,
    };
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_plan_is_a_table_for_people_and_lines_for_machines() {
        let stream = |name: &str, expected_rows| Stream {
            name: name.to_owned(),
            expected_rows,
            optional: false,
            watermark: None,
        };
        let mut plan = PlanSummary::default();
        let mut builder = PlanBuilder::new(&mut plan);
        let organisation_units = builder.add_stream(stream("organisationUnits", Some(20_000)), Value::Null).unwrap();
        let data_elements = builder.add_stream(stream("dataElements", None), Value::Null).unwrap();
        for (pass, key, requests, expected_rows) in [
            (organisation_units, "organisationUnits/0", 11, Some(10_000)),
            (organisation_units, "organisationUnits/1", 10, Some(10_000)),
            (data_elements, "dataElements/0", 2, None),
        ] {
            let (key, requests) = (key.to_owned(), Some(requests));
            let partition = NewPartition { pass, key, selection: Value::Null, requests, expected_rows };
            builder.add_partition(partition).now_or_never().unwrap().unwrap();
        }
        builder.leave_out(LeftOut { stream: "secrets".to_owned(), reason: "403".to_owned() });
        builder.finish().now_or_never().unwrap().unwrap();
        insta::assert_snapshot!(format!("{}\n{}", table(&plan, 2, false, ""), lines(&plan)));
    }
}
