//! `harvester run`: a job from its file to its report.

use std::{
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use harvester_actors::report::{Outcome, Report};

use super::door::{Door, Stuck};
use crate::{
    assemble::{self, RunRequest},
    job::{AVAILABLE, Credentials, Job},
    observe::{
        LogListener, ProgressListener, Redacting, StatusListener,
        log::LogFormat,
        report::{self, Context},
    },
    service::{Signals, open_files, systemd::SystemdListener},
};

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester run jobs/metadata.toml                     run it, or go on where it stopped
  harvester run jobs/metadata.toml --restart           forget what is fetched so far, and begin anew
  harvester run jobs/metadata.toml --max-seconds 3600  stop after an hour, resumably (exit 10)
  harvester run jobs/metadata.toml --json | jq .outcome

Ctrl-C once: pages in flight are finished and kept, and the same command goes on.
Twice: it leaves at once; that is safe too.";

/// How long a process that leaves at once waits for its terminal.
const LEAVE_LIMIT: Duration = Duration::from_millis(200);

/// What `run` takes.
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    /// The job file
    job: PathBuf,
    /// Forget the checkpoint, and begin anew
    #[arg(long)]
    restart: bool,
    /// Stop after so many seconds, resumably, with exit 10
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
pub(super) fn run(args: &RunArgs, door: &Door) -> u8 {
    let ready = prepare(&args.job, door);
    let ended = ready.and_then(|(job, credentials)| {
        let context = context(&job, door);
        let max_seconds = args.max_seconds.map(Duration::from_secs);
        let report = harvest(job, credentials, door.state_dir()?, args.restart, max_seconds, door)?;
        Ok((report, context))
    });
    finish(ended, &args.job, args.json, door)
}

/// Reads the job, sees whether this version can run it, and fetches its secret.
pub(super) fn prepare(path: &Path, door: &Door) -> Result<(Job, Credentials), Stuck> {
    let job = door.job(path)?;
    job.runnable(&AVAILABLE).map_err(|mistakes| Stuck::mistakes(&mistakes))?;
    open_files::ensure(job.limits.in_flight)?;
    let (credentials, warning) = door.credentials(&job)?;
    for warning in job.warnings.iter().chain(&warning) {
        tracing::warn!("{warning}");
    }
    Ok((job, credentials))
}

/// What the report refers to.
fn context(job: &Job, door: &Door) -> Context {
    let job_file = job.path.display().to_string();
    Context {
        command: format!("harvester run {job_file}"),
        job_file,
        directory: job.sink.directory.display().to_string(),
        is_verbose: door.verbose > 0,
    }
}

/// Runs a job to its end, with everybody listening.
pub(super) fn harvest(
    job: Job,
    credentials: Credentials,
    state_dir: PathBuf,
    restart: bool,
    max_seconds: Option<Duration>,
    door: &Door,
) -> Result<Report, Stuck> {
    let screen = door.screen.clone();
    let before_leaving = move || {
        screen.clear();
        screen.flush(LEAVE_LIMIT);
    };
    let signals = Signals::install(max_seconds, before_leaving)
        .map_err(|error| Stuck::new(Outcome::Bug, format!("cannot listen to signals: {error}"), "report it"))?;
    let mut listeners = crate::observe::Listeners::default()
        .with(LogListener::new(&job.name, door.format, door.screen.mode(), job.limits.outage))
        .with(ProgressListener::new(&job.name, door.screen.clone()));
    match StatusListener::new(&job.name, &assemble::state_folder(&state_dir, &job.name)) {
        Ok(status) => listeners = listeners.with(status),
        Err(error) => tracing::warn!(%error, "cannot keep a status; the run goes on"),
    }
    let watchdog = Door::environment("WATCHDOG_USEC").map(|usec| usec.to_string_lossy().into_owned());
    let notify_socket = Door::environment("NOTIFY_SOCKET");
    match SystemdListener::new(notify_socket.as_deref(), watchdog.as_deref(), job.limits.first_byte_timeout) {
        Ok(systemd) => listeners = listeners.with(systemd),
        Err(error) => tracing::warn!(%error, "cannot talk to the service manager; the run goes on"),
    }
    let listener = Arc::new(Redacting { listener: listeners, redactor: door.redactor.clone() });
    let request = RunRequest { job, credentials, state_dir, restart, listener, stop: signals.stop.clone() };
    let ended = panic::catch_unwind(AssertUnwindSafe(|| assemble::run(request)));
    // The block must be gone before the report is printed, even if the run never began.
    door.screen.clear();
    ended.map(|report| door.redactor.report(&report)).map_err(|_| {
        Stuck::new(
            Outcome::Bug,
            "a bug has stopped the run",
            "report it with the line above; the same command goes on from what is committed",
        )
    })
}

/// Tells how it ended, to people and to machines, and returns the exit code.
pub(super) fn finish(ended: Result<(Report, Context), Stuck>, job: &Path, json: bool, door: &Door) -> u8 {
    let report = match ended {
        Ok((report, context)) => {
            let text = report::to_text(&report, &context, door.screen.columns());
            if report.exit_code == 0 || door.format == LogFormat::Json {
                door.say(&text);
            } else {
                // Quiet is for what goes well.
                door.screen.print(text.trim_end());
            }
            report
        }
        Err(stuck) => {
            door.fail(&stuck);
            let name = job.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            door.redactor.report(&report::without_run(&name, stuck.outcome, stuck.one_line, stuck.next))
        }
    };
    if json {
        let written = door.data(format!("{}\n", report::to_json(&report)).as_bytes());
        if report.exit_code == 0 {
            return written;
        }
    }
    report.exit_code
}
