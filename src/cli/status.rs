//! `harvester status`: how a job is doing, from two small files; the checkpoint store is not opened.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use harvester_actors::report::{Outcome, Report};
use jiff::Timestamp;

use super::context::{CommandContext, CommandError};
use crate::{
    assemble,
    job_record::JobRecord,
    observe::{
        Status,
        numbers::{about, count, plural, rate, retries},
        report::{self, REPORT_FILE, ReportContext},
        status::State,
    },
};

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester status jobs/metadata.toml
  watch -n 5 harvester status jobs/metadata.toml
  harvester status jobs/metadata.toml --json | jq '{state, waiting_for, until}'

Reads what the run last wrote about itself: works while it runs, after a kill, and on a full disk.";

/// What `status` takes.
#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// The job file
    job: PathBuf,
    /// Print one JSON object: the report so far, and state, waiting_for, until
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn status(args: &StatusArgs, ctx: &CommandContext) -> u8 {
    let told = (|| {
        let job = ctx.job(&args.job)?;
        let folder = assemble::state_folder(&ctx.state_dir()?, &job.name);
        if let Some(conflict) = JobRecord::load(&folder).and_then(|record| record.conflict(&job, &folder)) {
            return Err(CommandError::new(Outcome::Changed, conflict.message, conflict.next));
        }
        let status = read(&job.name, &folder)?;
        Ok((status, super::run::context(&job, ctx)))
    })();
    match told {
        Ok((status, _)) if args.json => match serde_json::to_string(&status) {
            Ok(line) => ctx.write_stdout(format!("{line}\n").as_bytes()),
            Err(error) => ctx.report_error(&CommandError::new(Outcome::Bug, error.to_string(), "report it")),
        },
        Ok((status, context)) => ctx.write_text(&text(&status, &context, Timestamp::now(), ctx.screen.columns())),
        Err(error) => ctx.report_error(&error),
    }
}

/// What the run last wrote about itself; the report of the last one where there is only that.
fn read(job: &str, folder: &Path) -> Result<Status, CommandError> {
    let trouble = match Status::read(folder) {
        Ok(status) => return Ok(status),
        Err(error) => error,
    };
    if let Some(report) = fs::read(folder.join(REPORT_FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
        return Ok(Status::from_report(report));
    }
    if trouble.kind() != io::ErrorKind::NotFound {
        return Err(CommandError::new(
            Outcome::Storage,
            format!("cannot read the status in {}: {trouble}", folder.display()),
            "run the job again: it writes a new one; what is fetched stays",
        ));
    }
    let has_checkpoint = folder.join("checkpoint").exists();
    let mut status = Status::from_report(Report::new(job, Outcome::Interrupted, 0));
    (status.report.outcome, status.report.exit_code) = (None, None);
    status.state = if has_checkpoint { State::Stopped } else { State::New };
    Ok(status)
}

/// The status for people.
fn text(status: &Status, context: &ReportContext, now: Timestamp, width: usize) -> String {
    let mut text = String::new();
    let file = &context.job_file;
    let state = match status.state {
        State::New => {
            return format!("{}: has never run\n\nnext: harvester run {file}\n", status.report.job);
        }
        State::Running => "running",
        State::Finishing => "finishing",
        State::Stopped => "stopped",
        State::Complete => "complete",
        State::Failed => "failed",
    };
    if let (State::Complete | State::Failed, Some(report)) = (status.state, status.ended()) {
        return report::to_text(&report, context, width);
    }
    let run = if status.report.run_id.is_empty() { String::new() } else { format!(" (run {})", status.report.run_id) };
    let _ = writeln!(text, "{}: {state}{run}", status.report.job);
    if let (State::Running | State::Finishing, Ok(updated)) = (status.state, status.updated_at.parse::<Timestamp>()) {
        let ago = Duration::try_from(now.duration_since(updated)).unwrap_or_default();
        let _ = writeln!(text, "process {}, last update {} ago", status.pid, about(ago));
    }
    if let Some(reason) = &status.waiting_for {
        let until = status.until.as_ref().map_or_else(String::new, |until| format!(", until {until}"));
        let _ = writeln!(text, "waiting: {reason}{until}");
    }
    let numbers = &status.progress;
    let rows: u64 = status.report.streams.values().map(|stream| stream.rows).sum();
    let expected: Option<u64> = status.report.streams.values().map(|stream| stream.expected).sum();
    let rows = match expected.filter(|expected| *expected > 0) {
        Some(expected) => format!("{} of {} rows", count(rows), count(expected)),
        None => plural(rows, "row"),
    };
    let _ =
        writeln!(text, "{rows}, {} of {}", count(numbers.partitions_finished), plural(numbers.partitions, "partition"));
    if status.state == State::Running {
        let left = numbers.remaining_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let left = left.map_or_else(String::new, |left| format!(", about {} left", about(left)));
        let _ = writeln!(
            text,
            "{} rows/s, {} of {} requests/s, {} of {} in flight{left}",
            rate(numbers.rows_per_second),
            rate(numbers.requests_per_second),
            numbers.requests_per_second_limit,
            numbers.in_flight,
            numbers.in_flight_limit
        );
    }
    if status.report.retries > 0 {
        let last = numbers.last_failure.as_ref().map_or_else(String::new, |last| format!("; the last: {last}"));
        let _ = writeln!(text, "{}{last}", retries(status.report.retries));
    }
    let next = match status.state {
        State::Running | State::Finishing => format!("wait for it, or stop it resumably: kill -TERM {}", status.pid),
        State::New | State::Stopped | State::Complete | State::Failed => format!("harvester run {file}"),
    };
    let _ = match &status.report.error {
        Some(error) => writeln!(text, "\nerror: {}\nnext:  {next}", error.message),
        None => writeln!(text, "\nnext: {next}"),
    };
    text
}

#[cfg(test)]
mod tests {
    use harvester_actors::report::StreamReport;

    use super::*;

    fn status(state: State) -> Status {
        let mut status =
            Status::from_report(report::without_run("sl", Outcome::Unavailable, "the source is gone", "wait"));
        status.state = state;
        status.report.run_id = "20260101T000000Z".to_owned();
        status.pid = 4711;
        status.updated_at = "2026-01-01T00:00:00.000Z".to_owned();
        let stream = StreamReport { rows: 30_000, expected: Some(100_000), ..StreamReport::default() };
        status.report.streams.insert("organisationUnits".to_owned(), stream);
        status.progress.partitions = 40;
        status.progress.partitions_finished = 12;
        status
    }

    #[test]
    fn every_state_says_what_it_is_and_what_to_type_next() {
        let context = ReportContext {
            job_file: "sl.toml".to_owned(),
            command: "harvester run sl.toml".to_owned(),
            directory: "out".to_owned(),
            is_verbose: false,
        };
        let now: Timestamp = "2026-01-01T00:00:02Z".parse().unwrap();
        let mut running = status(State::Running);
        running.report.error = None;
        running.report.retries = 3;
        running.progress.last_failure = Some("organisationUnits/3: 503 Service Unavailable".to_owned());
        running.waiting_for = Some("Retry-After".to_owned());
        running.until = Some("2026-01-01T00:10:00Z".to_owned());
        let shown: Vec<String> =
            [running, status(State::Stopped), status(State::Failed), status(State::Complete), status(State::New)]
                .iter()
                .map(|status| text(status, &context, now, 80))
                .collect();
        assert!(shown.iter().all(|text| text.contains("\nnext: ")));
        insta::assert_snapshot!(shown.join("----\n"));
    }

    #[test]
    fn without_a_status_the_report_is_told_and_without_both_whether_there_is_a_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read("x", folder.path()).unwrap().state, State::New);
        fs::create_dir(folder.path().join("checkpoint")).unwrap();
        assert_eq!(read("x", folder.path()).unwrap().state, State::Stopped);
        report::keep(&report::without_run("x", Outcome::Denied, "401", "check"), folder.path()).unwrap();
        assert_eq!(read("x", folder.path()).unwrap().report.exit_code, Some(6));
        fs::write(folder.path().join("status.json"), "{").unwrap();
        assert_eq!(read("x", folder.path()).unwrap().report.exit_code, Some(6));
        fs::remove_file(folder.path().join(REPORT_FILE)).unwrap();
        assert_eq!(read("x", folder.path()).unwrap_err().outcome, Outcome::Storage);
    }
}
