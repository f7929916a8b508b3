//! `harvester run`: a job from its file to its report.

use std::{
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use harvester_actors::report::{Outcome, Report};

use super::context::{CommandContext, CommandError};
use crate::{
    assemble::{self, RunRequest},
    job::{CAPABILITIES, Credentials, Job},
    observe::{
        LogObserver, Observers, ProgressObserver, Redacting, StatusObserver,
        log::LogFormat,
        report::{self, ReportContext},
    },
    service::{Signals, open_files, systemd::SystemdObserver},
};

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester run jobs/metadata.toml                     run it, or resume where it stopped
  harvester run jobs/metadata.toml --restart           discard what is fetched so far, and start over
  harvester run jobs/metadata.toml --max-seconds 3600  stop after an hour, resumably (exit 10)
  harvester run jobs/metadata.toml --json | jq .outcome

Ctrl-C once: pages in flight are finished and kept, and the same command resumes.
Twice: it exits at once; that is safe too.";

/// How long a process that exits at once waits for its terminal.
const LEAVE_LIMIT: Duration = Duration::from_millis(200);

/// What `run` takes.
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    /// The job file
    job: PathBuf,
    /// Discard the checkpoint and start over
    #[arg(long)]
    restart: bool,
    /// Stop after N seconds with exit 10; the same command resumes
    #[arg(long, value_name = "N", value_parser = seconds)]
    max_seconds: Option<u64>,
    /// Print the report as one JSON object on stdout, whatever the exit
    #[arg(long)]
    json: bool,
}

/// Reads `--max-seconds`.
fn seconds(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("it takes a whole number of seconds, at least 1".to_owned()),
        Ok(seconds) => Ok(seconds),
    }
}

/// Runs the command.
pub(super) fn run(args: &RunArgs, ctx: &CommandContext) -> u8 {
    let ready = prepare(&args.job, ctx);
    let ended = ready.and_then(|(job, credentials)| {
        let context = context(&job, ctx);
        let max_seconds = args.max_seconds.map(Duration::from_secs);
        let report = harvest(job, credentials, ctx.state_dir()?, args.restart, max_seconds, ctx)?;
        Ok((report, context))
    });
    finish(ended, &args.job, args.json, ctx)
}

/// Reads the job, sees whether this version can run it, and fetches its secret.
pub(super) fn prepare(path: &Path, ctx: &CommandContext) -> Result<(Job, Credentials), CommandError> {
    let job = ctx.job(path)?;
    job.check_supported(&CAPABILITIES).map_err(|diagnostics| CommandError::unsupported(&diagnostics))?;
    open_files::ensure(job.limits.in_flight)?;
    let (credentials, warning) = ctx.credentials(&job)?;
    for warning in job.warnings.iter().chain(&warning) {
        tracing::warn!("{warning}");
    }
    Ok((job, credentials))
}

/// Paths and the command that the report names.
pub(super) fn context(job: &Job, ctx: &CommandContext) -> ReportContext {
    let job_file = job.path.display().to_string();
    ReportContext {
        command: format!("harvester run {job_file}"),
        job_file,
        directory: job.sink.directory.display().to_string(),
        is_verbose: ctx.verbose > 0,
    }
}

/// Runs a job to its end, with all observers attached.
pub(super) fn harvest(
    job: Job,
    credentials: Credentials,
    state_dir: PathBuf,
    restart: bool,
    max_seconds: Option<Duration>,
    ctx: &CommandContext,
) -> Result<Report, CommandError> {
    let screen = ctx.screen.clone();
    let before_exit = move || {
        screen.clear();
        screen.flush(LEAVE_LIMIT);
    };
    let signals = Signals::install(max_seconds, before_exit)
        .map_err(|error| CommandError::new(Outcome::Bug, format!("cannot listen to signals: {error}"), "report it"))?;
    let mut observers = Observers::default()
        .with(LogObserver::new(&job.name, ctx.format, ctx.screen.mode(), job.limits.outage))
        .with(ProgressObserver::new(&job.name, ctx.screen.clone()));
    match StatusObserver::new(&job.name, &assemble::state_folder(&state_dir, &job.name)) {
        Ok(status) => observers = observers.with(status),
        Err(error) => tracing::warn!(%error, "cannot keep a status; the run continues"),
    }
    let watchdog = CommandContext::environment("WATCHDOG_USEC").map(|usec| usec.to_string_lossy().into_owned());
    let notify_socket = CommandContext::environment("NOTIFY_SOCKET");
    match SystemdObserver::new(notify_socket.as_deref(), watchdog.as_deref(), job.limits.first_byte_timeout) {
        Ok(systemd) => observers = observers.with(systemd),
        Err(error) => tracing::warn!(%error, "cannot talk to the service manager; the run continues"),
    }
    let listener = Arc::new(Redacting { listener: observers, redactor: ctx.redactor.clone() });
    let request = RunRequest { job, credentials, state_dir, restart, listener, stop: signals.stop.clone() };
    let ended = panic::catch_unwind(AssertUnwindSafe(|| assemble::run(request)));
    // The block must be gone before the report is printed, even if the run never began.
    ctx.screen.clear();
    ended.map(|report| ctx.redactor.report(&report)).map_err(|_| {
        CommandError::new(
            Outcome::Bug,
            "an internal error stopped the run",
            "report it with the line above; the same command resumes from what is committed",
        )
    })
}

/// Prints the report for people and for machines; returns the exit code.
pub(super) fn finish(
    ended: Result<(Report, ReportContext), CommandError>,
    job: &Path,
    json: bool,
    ctx: &CommandContext,
) -> u8 {
    let report = match ended {
        Ok((report, context)) => {
            let text = report::to_text(&report, &context, ctx.screen.columns());
            if report.exit_code == 0 || ctx.format == LogFormat::Json {
                ctx.notice(&text);
            } else {
                // Quiet is for what goes well.
                ctx.screen.print(text.trim_end());
            }
            report
        }
        Err(error) => {
            ctx.report_error(&error);
            let name = job.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            ctx.redactor.report(&report::without_run(&name, error.outcome, error.one_line, error.next))
        }
    };
    if json {
        let written = ctx.write_stdout(format!("{}\n", report::to_json(&report)).as_bytes());
        if report.exit_code == 0 {
            return written;
        }
    }
    report.exit_code
}
