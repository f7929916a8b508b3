//! The final word: a short table for people, one JSON object for machines, and `report.json` in the state folder.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use harvester_actors::report::{Outcome, Report, ReportError, StreamReport};

use super::{
    numbers::{bytes, count, duration, plural, retries},
    words::{After, headline, next_step},
};
use crate::exit_code::{StopReason, exit_code, is_resumable};

/// The report's name within a state folder.
pub const REPORT_FILE: &str = "report.json";
/// Rows of the table at most; the JSON has all of them.
const STREAMS_SHOWN_MAX: usize = 40;
/// Warnings that are shown at most.
const NOTES_SHOWN_MAX: usize = 10;

/// Paths and commands that a report for people names.
#[derive(Clone, Debug, Default)]
pub struct ReportContext {
    /// The job file, as given on the command line.
    pub job_file: String,
    /// The command that runs it: `harvester run jobs/sl.toml`.
    pub command: String,
    /// The folder with the finished files, `{run}` still in it.
    pub directory: String,
    /// `-v`: everything that was left out is listed, each with its reason.
    pub is_verbose: bool,
}

/// The report of something that ended before a run began.
pub fn without_run(job: &str, outcome: Outcome, message: impl Into<String>, next: impl Into<String>) -> Report {
    let class = outcome.as_str().to_owned();
    let error = Some(ReportError { class, message: message.into(), next: next.into() });
    Report { error, ..Report::new(job, outcome, exit_code(outcome, None)) }
}

/// Gives a report what only the process knows: its exit code, and what to do where nothing better is known.
pub(crate) fn complete(report: &mut Report, stop: Option<StopReason>) {
    report.exit_code = exit_code(report.outcome, stop);
    if let Some(error) = report.error.as_mut().filter(|error| error.next.is_empty()) {
        error.next = next_step(report.outcome, After::Run).to_owned();
    }
}

/// Names the flag that helps a run whose job or source has changed. The engine knows no command line.
pub(crate) fn offer_restart(report: &mut Report) {
    if let (Outcome::Changed, Some(error)) = (report.outcome, &mut report.error)
        && !error.next.is_empty()
        && !error.next.contains("--restart")
    {
        error.next.push_str(", or run again with --restart to start over");
    }
}

/// The report as one line of JSON.
pub fn to_json(report: &Report) -> String {
    // A struct of strings and numbers cannot fail to serialize.
    serde_json::to_string(report).unwrap_or_default()
}

/// Keeps the report in the state folder, replacing the one before it.
///
/// # Errors
/// When the disk refuses; the old report stays.
pub fn keep(report: &Report, folder: &Path) -> io::Result<()> {
    replace(&folder.join(REPORT_FILE), to_json(report).as_bytes())
}

/// Replaces a small file so that a reader sees the old one or the new one, whole.
///
/// On a full disk there is no room for a second file; then the old one is overwritten where it lies. A reader may for a
/// moment see half of each, which is better than numbers that stay wrong until somebody makes room.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let part = path.with_extension("json.part");
    let line = [content, b"\n"].concat();
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(&line)?;
        drop(file);
        fs::rename(&part, path)
    })();
    let Err(error) = written else { return Ok(()) };
    let _ = fs::remove_file(&part);
    if error.kind() == io::ErrorKind::StorageFull { overwrite(path, &line) } else { Err(error) }
}

/// Overwrites a file that is there, needing room only for what it grows by.
fn overwrite(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(content)?;
    file.set_len(content.len() as u64)
}

/// The report for people, with the next command to type; ends with a line end.
///
/// - `width`: columns of the terminal; narrow ones lose columns of the table, never its names and rows.
pub fn to_text(report: &Report, context: &ReportContext, width: usize) -> String {
    let mut text = String::new();
    let job = if report.job.is_empty() { context.job_file.as_str() } else { report.job.as_str() };
    let took = duration(Duration::try_from_secs_f64(report.seconds).unwrap_or_default());
    let run = match (report.run_id.as_str(), report.resumed) {
        ("", _) => String::new(),
        (run, true) => format!(" ({took}, run {run}, resumed)"),
        (run, false) => format!(" ({took}, run {run})"),
    };
    let _ = writeln!(text, "{job}: {}{run}", headline(report.outcome));
    if !report.streams.is_empty() {
        text.push('\n');
        text.push_str(&table(report, width));
    }
    if report.requests > 0 {
        let _ = writeln!(
            text,
            "\n{}, {}, peak {}/s",
            plural(report.requests, "request"),
            retries(report.retries),
            report.peak_requests_per_second
        );
    }
    let left_out: Vec<_> = report.left_out.iter().map(|(stream, why)| (stream.as_str(), why.as_str())).collect();
    let how_to_list = format!("harvester status {} -v", context.job_file);
    text.push_str(&left_out_lines(&left_out, context.is_verbose, &how_to_list));
    for warning in report.warnings.iter().take(NOTES_SHOWN_MAX) {
        let _ = writeln!(text, "note: {warning}");
    }
    if report.warnings.len() > NOTES_SHOWN_MAX {
        let more = count((report.warnings.len() - NOTES_SHOWN_MAX) as u64);
        let _ = writeln!(text, "and {more} more; --json has all of them");
    }
    text.push('\n');
    let next = next(report, context);
    let _ = match &report.error {
        Some(error) => writeln!(text, "error: {}\nnext:  {next}", error.message),
        None => writeln!(text, "next: {next}"),
    };
    text
}

/// What `["*"]` does not take, as lines: one line however many there are, unless each is wanted. Nothing for nothing.
///
/// - `left_out`: stream and reason.
/// - `how_to_list`: the command that lists them.
pub(crate) fn left_out_lines(left_out: &[(&str, &str)], is_verbose: bool, how_to_list: &str) -> String {
    match left_out {
        [_, _, ..] if !is_verbose => {
            format!("left out: {} collections; which and why: {how_to_list}\n", count(left_out.len() as u64))
        }
        listed => listed.iter().map(|(stream, reason)| format!("left out: {stream} ({reason})\n")).collect(),
    }
}

/// What to type next.
fn next(report: &Report, context: &ReportContext) -> String {
    let file = &context.job_file;
    let directory = context.directory.replace("{run}", &report.run_id);
    match (&report.error, report.outcome) {
        (_, Outcome::Complete) => {
            format!("the files are in {directory}; check them with: harvester verify {file}")
        }
        (_, Outcome::Rejected) => format!("see {directory}/rejects.ndjson for the rejected rows"),
        (Some(error), outcome) if !error.next.is_empty() => {
            // Whoever reads this at two in the morning shall not have to look the command up.
            let lacks_command = is_resumable(outcome) && !error.next.contains("harvester ");
            if lacks_command { format!("{}: {}", error.next, context.command) } else { error.next.clone() }
        }
        (_, Outcome::Interrupted | Outcome::Limit | Outcome::Unavailable) => {
            format!("run the same command to resume: {}", context.command)
        }
        _ => format!("harvester check {file}"),
    }
}

/// The table of streams.
fn table(report: &Report, width: usize) -> String {
    type Cell = fn(&StreamReport) -> String;
    let some = |wanted: fn(&StreamReport) -> bool| report.streams.values().any(wanted);
    let mut columns: Vec<(&str, Cell)> = vec![("rows", |stream| count(stream.rows))];
    if some(|stream| stream.expected.is_some()) {
        columns.push(("expected", |stream| stream.expected.map_or_else(|| "-".to_owned(), count)));
    }
    if some(|stream| stream.rejected > 0) {
        columns.push(("rejected", |stream| count(stream.rejected)));
    }
    if some(|stream| stream.duplicates > 0) {
        columns.push(("duplicates", |stream| count(stream.duplicates)));
    }
    if some(|stream| stream.filtered > 0) {
        columns.push(("filtered", |stream| count(stream.filtered)));
    }
    columns.push(("bytes", |stream| bytes(stream.bytes)));
    columns.push(("pages", |stream| count(stream.pages)));
    let mut streams: Vec<(&str, StreamReport)> =
        report.streams.iter().map(|(name, stream)| (name.as_str(), *stream)).collect();
    let hidden = streams.len().saturating_sub(STREAMS_SHOWN_MAX);
    streams.truncate(STREAMS_SHOWN_MAX);
    if report.streams.len() > 1 {
        streams.push(("all", report.streams.values().fold(StreamReport::default(), add)));
    }
    let name_width = streams.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max("stream".len());
    let mut lines = vec![format!("{:name_width$}", "stream")];
    lines.extend(streams.iter().map(|(name, _)| format!("{name:name_width$}")));
    let mut used = name_width;
    for (title, cell) in columns {
        let cells: Vec<String> = streams.iter().map(|(_, stream)| cell(stream)).collect();
        let wide = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0).max(title.len());
        // What a person came for stays, however narrow it is.
        if used + 2 + wide > width && title != "rows" && title != "rejected" {
            continue;
        }
        used += 2 + wide;
        let rows = std::iter::once(title.to_owned()).chain(cells);
        for (line, cell) in lines.iter_mut().zip(rows) {
            let _ = write!(line, "  {cell:>wide$}");
        }
    }
    if hidden > 0 {
        let at = lines.len() - 1;
        lines.insert(at, format!("… and {hidden} more; --json has all of them"));
    }
    lines.iter().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// Sums two streams; a total is known only when both are.
fn add(sum: StreamReport, stream: &StreamReport) -> StreamReport {
    StreamReport {
        rows: sum.rows + stream.rows,
        bytes: sum.bytes + stream.bytes,
        pages: sum.pages + stream.pages,
        duplicates: sum.duplicates + stream.duplicates,
        filtered: sum.filtered + stream.filtered,
        rejected: sum.rejected + stream.rejected,
        expected: match (sum.expected, stream.expected) {
            (None, None) => None,
            (sum, stream) => Some(sum.unwrap_or(0) + stream.unwrap_or(0)),
        },
        appeared: None,
        vanished: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcome: Outcome) -> Report {
        let mut report = without_run("sierra-leone", outcome, "it broke", "mend it");
        if outcome == Outcome::Complete {
            report.error = None;
        }
        let stream = |rows, expected| StreamReport {
            rows,
            bytes: rows * 900,
            pages: rows / 1000,
            expected,
            ..Default::default()
        };
        report.run_id = "20260101T000000Z".to_owned();
        report.streams.insert("dataElements".to_owned(), stream(1_037, Some(1_037)));
        report.streams.insert("organisationUnits".to_owned(), stream(20_000, Some(20_000)));
        report.requests = 412;
        report.retries = 3;
        report.seconds = 192.4;
        report.peak_requests_per_second = 198;
        report
    }

    #[test]
    fn the_report_reads_well_at_every_width_and_says_what_to_type_next() {
        let context = ReportContext {
            job_file: "jobs/sl.toml".to_owned(),
            command: "harvester run jobs/sl.toml".to_owned(),
            directory: "out".to_owned(),
            is_verbose: false,
        };
        let mut shown = String::new();
        for width in [40, 80] {
            writeln!(shown, "== {width}\n{}", to_text(&report(Outcome::Complete), &context, width)).unwrap();
        }
        let mut rejected = report(Outcome::Rejected);
        rejected.streams.get_mut("dataElements").unwrap().rejected = 2;
        rejected.left_out.insert("secrets".to_owned(), "403".to_owned());
        rejected.warnings.push("3 rows appeared while the run went on".to_owned());
        writeln!(shown, "== rejected\n{}", to_text(&rejected, &context, 80)).unwrap();
        let locked = without_run("x", Outcome::Locked, "state is held by process 1", "wait");
        writeln!(shown, "== locked\n{}", to_text(&locked, &context, 80)).unwrap();
        insta::assert_snapshot!("report", shown);
    }

    #[test]
    fn what_was_left_out_is_one_line_unless_each_is_asked_for() {
        let many = [("icons", "not kept in the database"), ("secrets", "403"), ("sections", "has no ids")];
        let lines = |left_out: &[_], is_verbose| left_out_lines(left_out, is_verbose, "harvester status sl.toml -v");
        assert_eq!(lines(&many, false), "left out: 3 collections; which and why: harvester status sl.toml -v\n");
        assert_eq!(lines(&many, true).lines().count(), 3);
        assert_eq!(lines(&many[1..2], false), "left out: secrets (403)\n");
        assert_eq!(lines(&[], true), "");
    }

    #[test]
    fn every_outcome_has_a_next_step() {
        let outcomes = [
            Outcome::Complete,
            Outcome::Rejected,
            Outcome::Mismatch,
            Outcome::Unavailable,
            Outcome::Denied,
            Outcome::Refused,
            Outcome::Limit,
            Outcome::Interrupted,
            Outcome::Locked,
            Outcome::Damaged,
            Outcome::Changed,
            Outcome::Storage,
            Outcome::Invalid,
            Outcome::Bug,
        ];
        for outcome in outcomes {
            let mut report = report(outcome);
            report.error = None;
            let text = to_text(&report, &ReportContext::default(), 80);
            assert!(text.contains("next: ") && !text.contains("next: \n"), "{text}");
        }
    }

    #[test]
    fn a_report_that_is_kept_replaces_the_one_before_it() {
        let folder = tempfile::tempdir().unwrap();
        keep(&report(Outcome::Interrupted), folder.path()).unwrap();
        keep(&report(Outcome::Complete), folder.path()).unwrap();
        let kept: Report = serde_json::from_slice(&fs::read(folder.path().join(REPORT_FILE)).unwrap()).unwrap();
        assert_eq!(kept, report(Outcome::Complete));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(keep(&report(Outcome::Complete), Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn overwriting_leaves_nothing_of_a_longer_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        fs::write(&path, "something longer").unwrap();
        overwrite(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert!(overwrite(&folder.path().join("y.json"), b"").is_err());
    }
}
